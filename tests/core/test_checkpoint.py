"""Checkpoints: every kind of state comes back as it was, damage is seen, a full disk spoils nothing."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from trainwright.core import checkpoint, parts, registry
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Data, Objective, ParamMap, State, Surgery, Tensors, Update
from trainwright.optim.adamw import Adamw


class Noise(Data):
    """Random rows."""

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {"shared": {"drawn": 0, "names": ["a", None], "seen": {"x": 0.1, "y": True}}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        state["shared"]["drawn"] += 1
        state["shared"]["seen"]["x"] /= 3
        return {"x": torch.randn(8, 4, generator=ctx.rng("noise"))}


class Square(Objective):
    """Squares of what comes out."""

    def count(self, batch: Batch) -> float:
        return len(batch["x"])

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        return model(batch["x"]).square().sum(-1)


class Remember(Update):
    """Keeps one leaf of every sort."""

    def init(self, model: nn.Module, ctx: Context) -> State:
        leaves = {
            n: {"half": torch.zeros_like(p, dtype=torch.bfloat16), "seen": torch.zeros((), dtype=torch.int64)}
            for n, p in model.named_parameters()
        }
        shared = {"sum": torch.zeros(3, dtype=torch.float64), "empty": {}}
        return {"param": leaves, "shared": shared, "rank": {"mine": torch.ones(2), "log": []}}

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        for n, u in updates.items():
            state["param"][n]["half"].add_(u)
            state["param"][n]["seen"] += 1
        state["shared"]["sum"] += 1 / 3
        state["rank"]["log"].append(ctx.step)
        return updates


def train(*more: Any) -> Train:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2), nn.Linear(3, 2))
    run = Train(model, [Noise(), Square(), *more, Adamw(lr=0.1)], 10)
    run.build()
    return run


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b) and type(a) is type(b)


def test_everything_comes_back(tmp_path: Path) -> None:
    run = train(Remember())
    run.run(until=4)
    path = checkpoint.save(run, tmp_path, {"note": [1, "x"]})
    other, rest = train(Remember()), checkpoint.read(path)
    checkpoint.load_into(other, path, rest)
    assert same(run.states, other.states) and same(
        dict(run.model.state_dict()), dict(other.model.state_dict())
    )
    assert (other.ctx.step, other.ctx.knobs, other.row) == (4, run.ctx.knobs, run.row) and rest["extra"] == {
        "note": [1, "x"]
    }
    assert other.ledger.save() == run.ledger.save()
    run.run()
    other.run()
    assert same(run.states, other.states) and all(
        torch.equal(p, other.params[n]) for n, p in run.params.items()
    )


def test_only_the_last_two_are_kept_and_nothing_temporary(tmp_path: Path) -> None:
    run = train()
    for until in (2, 4, 6):
        run.run(until=until)
        checkpoint.save(run, tmp_path, {})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]
    checkpoint.save(run, tmp_path, {})
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-00000006", []), "saving a step again replaces it"


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "unlisted", "no list"])
def test_damage_is_seen(damage: str, tmp_path: Path) -> None:
    run = train()
    for until in (1, 2):
        run.run(until=until)
        path = checkpoint.save(run, tmp_path, {})
    file = path / "rank-00000.safetensors"
    data = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "flipped":
            file.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        case "missing":
            (path / "state.json").unlink()
        case "unlisted":
            (path / "checksums.json").write_text("{}")
        case "no list":
            (path / "checksums.json").unlink()
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-00000001", [path])


@pytest.mark.parametrize("where", ["tensors", "json"])
def test_a_full_disk_leaves_the_last_checkpoint(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train()
    run.run(until=1)
    good = checkpoint.save(run, tmp_path, {})
    run.run(until=2)

    def full(*given: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"tensors": (parts, "_blocks"), "json": (checkpoint, "sync")}[where], full)
    with pytest.raises(OSError, match="No space left") as told:
        checkpoint.save(run, tmp_path, {})
    assert told.value.errno == errno.ENOSPC
    assert [f.name for f in tmp_path.iterdir()] == ["step-00000001"] and checkpoint.newest(tmp_path) == (
        good,
        [],
    )


def test_other_methods_are_refused(tmp_path: Path) -> None:
    run = train()
    run.run(until=1)
    path = checkpoint.save(run, tmp_path, {})
    with pytest.raises(
        UserError, match=r"has the methods noise.1, square.1, adamw.1; the recipe has .*remember.1"
    ):
        checkpoint.load_into(train(Remember()), path, checkpoint.read(path))


def test_state_of_single_ranks_is_refused_on_another_number_of_them(tmp_path: Path) -> None:
    run = train(Remember())
    run.run(until=1)
    path = checkpoint.save(run, tmp_path, {})
    rest = checkpoint.read(path) | {"world": 2}
    with pytest.raises(
        UserError, match=r"remember.1 keeps state of its own on each rank; go on with 2 ranks, not 1"
    ):
        checkpoint.load_into(train(Remember()), path, rest)
    plain, other = train(), train()
    plain.run(until=1)
    path = checkpoint.save(plain, tmp_path / "plain", {})
    checkpoint.load_into(other, path, checkpoint.read(path) | {"world": 2})
    assert other.ctx.step == 1, "without such state, the number of ranks may change"


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    run = train()
    run.states["noise.1"]["shared"]["seen"]["file"] = Path()
    with pytest.raises(TypeError, match=r"state/noise.1/shared/seen/file holds a \w*Path"):
        checkpoint.save(run, tmp_path, {})


def test_a_checkpoint_is_json_and_raw_tensors(tmp_path: Path) -> None:
    path = checkpoint.save(train(Remember()), tmp_path, {})
    assert {f.name for f in path.iterdir()} == {
        "state.json",
        "plan.json",
        "checksums.json",
        "rank-00000.safetensors",
    }
    tensors = load_file(path / "rank-00000.safetensors")
    plan = json.loads((path / "plan.json").read_text())["tensors"]
    assert plan.keys() == tensors.keys() and plan["state/remember.1/shared/sum"] == [
        "float64",
        [3],
        [[0, [0], [3]]],
    ]
    assert all(
        str(t.dtype) == f"torch.{plan[n][0]}" and list(t.shape) == plan[n][1] for n, t in tensors.items()
    )


def sealed(path: Path) -> Path:
    """The checksums written anew, as somebody does who has changed a checkpoint on purpose."""
    names = [f.name for f in path.iterdir() if f.name != "checksums.json"]
    (path / "checksums.json").write_text(json.dumps({n: checkpoint.checksum(path / n) for n in names}))
    return path


def changed(file: Path, change: Callable[[Any], Any]) -> None:
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


DAMAGE: dict[str, Callable[[Any], Any]] = {
    "gap": lambda plan: plan["tensors"]["model/0.weight"][2][0][1].__setitem__(0, 1),
    "half": lambda plan: plan["tensors"]["model/0.weight"][2][0][2].__setitem__(0, 1),
    "twice": lambda plan: plan["tensors"]["model/0.weight"][2].append(
        plan["tensors"]["model/0.weight"][2][0]
    ),
    "huge": lambda plan: plan["tensors"].update({"state/noise.1/x": ["float32", [2**60], []]}),
    "other file": lambda plan: plan["tensors"]["model/0.weight"][2][0].__setitem__(0, 7),
    "no type": lambda plan: plan["tensors"]["model/0.weight"].__setitem__(0, "load"),
    "no shape": lambda plan: plan["tensors"]["model/0.weight"].__setitem__(1, {"a": 1}),
    "words": lambda plan: plan.update(tensors=["model/0.weight"]),
    "less": lambda plan: plan["tensors"].pop("model/0.weight"),
    "more": lambda plan: plan["tensors"].update({"model/x": plan["tensors"]["model/0.weight"]}),
    "format": lambda plan: plan.update(format=2),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_plan_that_does_not_add_up_is_refused(what: str, tmp_path: Path) -> None:
    """Also where its checksums are right: no part of a tensor is left without values."""
    run = train(Remember())
    path = checkpoint.save(run, tmp_path, {})
    changed(path / "plan.json", DAMAGE[what])
    assert checkpoint.whole(sealed(path))
    with pytest.raises(UserError, match=re.escape(str(path))):
        checkpoint.load_into(train(Remember()), path, checkpoint.read(path))


OTHER = {
    "step": [None, "x", []],
    "world": [None, {}],
    "knobs": [None, "x", [1]],
    "row": [None, [1]],
    "journal": [None, "x", [1], [[1, "lora"]], [["x", {"use": "lora"}]], {"a": 1}],
    "states": [None, "x", [], [1], [{}], [{"a": {}}]],
    "ledger": [None, [1], {}, {"tokens": 1.0}],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in OTHER.items() for value in values]
)
def test_state_of_another_shape_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    path = checkpoint.save(train(), tmp_path, {})
    changed(path / "state.json", lambda rest: rest.update({key: value}))
    with pytest.raises(UserError):
        rest = checkpoint.read(sealed(path))
        checkpoint.journal_of(rest)
        checkpoint.load_into(train(), path, rest)


def test_files_that_are_none_make_no_checkpoint(tmp_path: Path) -> None:
    """A pipe would have a reader wait for ever; a link leads elsewhere; a name may."""
    run = train()
    run.run(until=1)
    path = checkpoint.save(run, tmp_path, {})
    outside = tmp_path / "outside"
    (path / "state.json").rename(outside)
    (path / "state.json").symlink_to(outside)
    assert checkpoint.newest(tmp_path) == (None, [path])
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")
    assert checkpoint.newest(tmp_path) == (None, [path])
    (path / "state.json").unlink()
    changed(path / "checksums.json", lambda sums: sums.update({str(outside): checkpoint.checksum(outside)}))
    assert checkpoint.newest(tmp_path) == (None, [path])


class Grow(Surgery):
    """Adds a layer."""

    width: int = 2
    """Of the layer."""

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        model.append(nn.Linear(2, self.width))
        return None


def test_a_surgery_of_ones_own_file_is_written_with_its_path() -> None:
    table = checkpoint.surgery_table(Grow(width=5))
    assert table == {"use": __file__, "width": 5}


NOTES = "Path(__file__).with_name('ran').write_text('x')"


def test_a_journal_runs_no_file(tmp_path: Path) -> None:
    """What a checkpoint says of surgeries is data: only a file that a recipe has named is run, and that
    once."""
    file = tmp_path / "quiet.py"
    file.write_text(f"""from pathlib import Path
from trainwright.core.method import Surgery
{NOTES}


class Quiet(Surgery):
    \"\"\"Does nothing.\"\"\"

    def operate(self, model, ctx):
        return None
""")
    rest = {"journal": [[1, {"use": str(file)}]]}
    with pytest.raises(
        UserError, match=r"quiet\.py, and a folder alone runs nothing: name that file in the recipe"
    ):
        checkpoint.journal_of(rest)
    assert not (tmp_path / "ran").exists()
    named = registry.create({"use": "./quiet.py"}, tmp_path, "a recipe")
    assert checkpoint.journal_of(rest) == [(1, named)]
    with pytest.raises(UserError, match="adamw is no Surgery"):
        checkpoint.journal_of({"journal": [[1, {"use": "adamw", "lr": 1e-3}]]})
