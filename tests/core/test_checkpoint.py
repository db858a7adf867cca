"""Checkpoints: every kind of state comes back as it was, damage is seen, a full disk spoils nothing."""
from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystem

from trainwright.core import checkpoint
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
        leaves = {n: {"half": torch.zeros_like(p, dtype=torch.bfloat16), "seen": torch.zeros((), dtype=torch.int64)}
                  for n, p in model.named_parameters()}
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
    assert same(run.states, other.states) and same(dict(run.model.state_dict()), dict(other.model.state_dict()))
    assert (other.ctx.step, other.ctx.knobs, other.row) == (4, run.ctx.knobs, run.row) and rest["extra"] == {"note": [1, "x"]}
    assert other.ledger.save() == run.ledger.save()
    run.run()
    other.run()
    assert same(run.states, other.states) and all(torch.equal(p, other.params[n]) for n, p in run.params.items())


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
    file = next(path.glob("*.distcp"))
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
def test_a_full_disk_leaves_the_last_checkpoint(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train()
    run.run(until=1)
    good = checkpoint.save(run, tmp_path, {})
    run.run(until=2)

    def full(*given: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(*((FileSystem, "create_stream") if where == "tensors" else (checkpoint, "_sync")), full)
    with pytest.raises(OSError, match="No space left") as told:
        checkpoint.save(run, tmp_path, {})
    assert told.value.errno == errno.ENOSPC
    assert [f.name for f in tmp_path.iterdir()] == ["step-00000001"] and checkpoint.newest(tmp_path) == (good, [])


def test_other_methods_are_refused(tmp_path: Path) -> None:
    run = train()
    run.run(until=1)
    path = checkpoint.save(run, tmp_path, {})
    with pytest.raises(UserError, match=r"has the methods noise.1, square.1, adamw.1; the recipe has .*remember.1"):
        checkpoint.load_into(train(Remember()), path, checkpoint.read(path))


def test_state_of_single_ranks_is_refused_on_another_number_of_them(tmp_path: Path) -> None:
    run = train(Remember())
    run.run(until=1)
    path = checkpoint.save(run, tmp_path, {})
    rest = checkpoint.read(path) | {"world": 2}
    with pytest.raises(UserError, match=r"remember.1 keeps state of its own on each rank; go on with 2 ranks, not 1"):
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


def test_nothing_of_a_user_is_unpickled(tmp_path: Path) -> None:
    """Beside DCP's own metadata, a checkpoint is JSON and raw tensors."""
    run = train(Remember())
    path = checkpoint.save(run, tmp_path, {})
    assert {f.name for f in path.iterdir()} == {"state.json", "checksums.json", ".metadata", "__0_0.distcp"}
    assert json.loads((path / "state.json").read_text())["states"][0]["remember.1"]["shared"]["sum"]["dtype"] == "float64"


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
