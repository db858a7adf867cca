"""Snapshots of a training stage: weights and whole states kept on the way, and runs that go on from them."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.core.recipe import load, parse
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.stages import _training
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store

SHORT = 'steps = 6\nbatch_tokens = 256'
"""The length of the stage ``base`` in the tiny life."""


def lives(life: Path, *changes: tuple[str, str]) -> dict[str, Artifact]:
    """Run the tiny life, cut down to its corpus and its first model, with these changes."""
    text = life.read_text().partition('[[stage]]\nname = "adapt"')[0]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    life.write_text(text)
    return run(load(life), Store(life.parent / "store"))


def more(text: str) -> tuple[str, str]:
    """A change that adds a stage at the end."""
    return ('{ use = "wsd" }]\n', '{ use = "wsd" }]\n' + text)


STAGE = """
[[stage]]
name = "on"
kind = "train"
from = {{ state = "base@{label}", data = "corpus" }}
steps = {steps}
batch_tokens = 256
precision = "fp32"
compile = false
methods = [{{ use = "pack", length = 32 }}, {{ use = "next_token" }}, {{ use = "clip_gradients" }},
           {{ use = "adamw", lr = 1e-2 }}, {{ use = "{schedule}" }}]
"""


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return dict(families.load(artifact.path, "a test").state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


@pytest.mark.slow
def test_a_snapshot_holds_the_weights_of_then(life: Path) -> None:
    made = lives(life, (SHORT, f"{SHORT}\nsnapshots = [3, 0.5, 1.0]"))
    base = made["base"]
    at = {label: weights(Artifact(base.path / "snapshots" / label)) for label in ("3", "0.5", "1.0")}
    assert same(at["3"], at["0.5"]), "half of six steps"
    assert same(at["1.0"], weights(base)) and not same(at["3"], weights(base))


@pytest.mark.slow
def test_snapshots_change_no_weight(life: Path) -> None:
    plain = weights(lives(life)["base"])
    assert same(plain, weights(lives(life, (SHORT, f"{SHORT}\nsnapshots = [2]"))["base"]))


@pytest.mark.slow
def test_a_run_goes_on_from_a_snapshot_to_the_bit(life: Path) -> None:
    on = STAGE.format(label="2", steps=6, schedule="wsd")
    made = lives(life, more(on), (SHORT, f"{SHORT}\nsnapshots = [2]"))
    assert same(weights(made["on"]), weights(made["base"])), (
        "the optimizer and the place in the data go on too"
    )
    assert made["on"].figures["tokens"] == made["base"].figures["tokens"], "counted from the start of the run"
    assert [row["step"] for row in made["on"].metrics()] == [3, 4, 5, 6]


@pytest.mark.slow
def test_a_finished_run_is_extended_as_if_it_had_been_longer(life: Path) -> None:
    constant = ('{ use = "wsd" }', '{ use = "constant" }')
    whole = lives(life, constant, ("steps = 6", "steps = 9"))["base"]
    text = life.read_text().replace("steps = 9", "steps = 6\nsnapshots = [1.0]")
    life.write_text(text + STAGE.format(label="1.0", steps=9, schedule="constant"))
    made = run(load(life), Store(life.parent / "store"))
    assert made["base"].figures["steps"] == 6 and same(weights(made["on"]), weights(whole))


@pytest.mark.slow
def test_a_snapshot_is_a_model_for_later_stages(life: Path) -> None:
    text = life.read_text().replace("steps = 6", "steps = 6\nsnapshots = [3]", 1)
    life.write_text(text.replace('models = ["base", "adapt"]', 'models = ["base@3", "base"]'))
    made = run(load(life), Store(life.parent / "store"))
    early, late, merged = (
        weights(a) for a in (Artifact(made["base"].path / "snapshots" / "3"), made["base"], made["merged"])
    )
    assert all(torch.allclose(t, (early[n] + late[n]) / 2) for n, t in merged.items())


@pytest.mark.slow
def test_a_run_that_is_interrupted_keeps_its_snapshots(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainwright.core import loop
    step, seen = loop.Train.step, list[int]()

    def breaks(self: loop.Train) -> None:
        step(self)
        seen.append(self.ctx.step)
        if self.ctx.step == 5 and seen.count(5) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Train, "step", breaks)
    changes = (SHORT, f"{SHORT}\nsnapshots = [2, 5]")
    with pytest.raises(KeyboardInterrupt):
        lives(life, changes)
    made = run(load(life), Store(life.parent / "store"))
    assert seen == [1, 2, 3, 4, 5, 5, 6], "it went on behind the fourth step, and step 2 was not taken again"
    assert {f.name for f in (made["base"].path / "snapshots").iterdir()} == {"2", "5"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("snapshots = [3]", "snapshots = [0]", "snapshots are steps .* or shares of the run .* not 0"),
        ("snapshots = [3]", "snapshots = [1.5]", "snapshots are steps .* not 1.5"),
        ("snapshots = [3]", "snapshots = [3, 3]", "snapshots names a state twice"),
        ("snapshots = [3]", "snapshots = [3, 7]", "7 is step 7, and the stage has 6"),
        ("base@3", "base@4", "'base' keeps the snapshots base@3"),
        ("base@3", "corpus@4", "'corpus' keeps no snapshots"),
        ("state = \"base@3\"", "state = \"base\"", "from.state must be a state"),
        (
            "state = \"base@3\"",
            "state = \"base@3\", model = \"base\"",
            "say one of from.model .* from.state .* model",
        ),
        (
            "from = { state = \"base@3\", data = \"corpus\" }\nsteps = 6",
            "from = { state = \"base@3\", data = \"corpus\" }\nsteps = 2",
            "the state of step 3 is beyond its 2 steps",
        ),
        (
            "{ use = \"clip_gradients\" }, { use = \"adamw\", lr = 1e-2 }, { use = \"wsd\" }]\n[[",
            "{ use = \"lora\" }, { use = \"adamw\" }]\n[[",
            "a run that goes on with base@3 has the same surgeries as 'base': lora",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(life: Path, old: str, new: str, sentence: str) -> None:
    on = STAGE.format(label="3", steps=6, schedule="wsd")
    text = (
        life.read_text()
        .partition('[[stage]]\nname = "adapt"')[0]
        .replace(SHORT, f"{SHORT}\nsnapshots = [3]", 1)
    )
    text = (text.rstrip() + "\n" + on.lstrip())
    assert old in text
    life.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=sentence):
        run(load(life), Store(life.parent / "store"))


@pytest.mark.slow
def test_other_methods_may_go_on_with_a_state(life: Path) -> None:
    """The optimizer goes on; a schedule that is new begins, and what one that is gone had set is gone."""
    on = STAGE.format(label="3", steps=6, schedule="linear")
    made = lives(life, more(on), (SHORT, f"{SHORT}\nsnapshots = [3]"))
    rates = [row["lr"] for row in made["on"].metrics()]
    assert rates == sorted(rates, reverse=True) and rates[0] < 1e-2
    life.write_text(life.read_text().replace(', { use = "linear" }', ""))
    made = run(load(life), Store(life.parent / "store"))
    assert [row["lr"] for row in made["on"].metrics()] == [1e-2] * 3


# ---- roles -------------------------------------------------------------------------------------------------


def stage(**settings: Any) -> dict[str, Any]:
    return {"name": "base", "kind": "train", "from": {"data": "corpus"}, "steps": 1, "batch_size": 8,
            "model": {"type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            "methods": [{"use": "pack", "length": 32}]} | settings


CORPUS = {
    "name": "corpus",
    "kind": "corpus",
    "vocab_size": 300,
    "methods": [{"use": "text", "paths": ["texts"]}],
}


def planned(life: Path, *tables: dict[str, Any]) -> None:
    recipe = parse({"stage": [CORPUS, *tables]}, life)
    jobs(recipe, Store(life.parent / "store"))


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ([stage(**{"from": {"data": "corpus", "teacher": "corpus"}})], r"nobody here asks for from\.teacher"),
        ([stage(**{"from": {"date": "corpus"}})], r"nobody here asks for from\.date \(did you mean 'data'"),
        (
            [stage(**{"from": {"data": "corpus", "tokenizer": ["corpus", "corpus"]}})],
            r"from\.tokenizer takes one artifact, not 2",
        ),
        (
            [stage(), stage(name="b", **{"from": {"data": "base"}})],
            r"from\.data must be a corpus; 'base' is of kind train",
        ),
        (
            [stage(methods=[{"use": "pack", "length": 32}, {"use": "rehearsal_free_distillation"}])],
            r"rehearsal_free_distillation needs from\.reference",
        ),
        (
            [{"name": "m", "kind": "merge", "methods": [{"use": "interpolate"}]}],
            r"a stage of kind merge needs from\.models",
        ),
    ],
)
def test_roles_are_asked_for_and_given(life: Path, tables: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        planned(life, *tables)


def test_without_a_compiler_a_stage_is_refused_or_not_compiled(
    life: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_training.shutil, "which", lambda name: None)
    monkeypatch.setattr(_training, "COMPILE_FLOPS", {"cpu": 0.0, "cuda": 0.0})
    monkeypatch.delenv("CXX", raising=False)
    life.write_text(life.read_text().replace("compile = false", "compile = true"))
    sentence = r"stage 'base': compile = true needs a C\+\+ compiler, and there is no g\+\+: install one"
    with pytest.raises(UserError, match=sentence):
        run(load(life), Store(life.parent / "store"))
    assert not list((life.parent / "store").glob("base-*"))
    life.write_text(life.read_text().replace("compile = true", 'compile = "auto"'))
    made = run(load(life), Store(life.parent / "store"))
    assert made["base"].figures["compiled"] is False


@pytest.mark.slow
def test_several_corpora_are_one_data(life: Path) -> None:
    two = CORPUS | {
        "name": "two",
        "from": {"tokenizer": "corpus"},
        "methods": [{"use": "text", "paths": ["texts/prose"]}],
    }
    two.pop("vocab_size")
    both = stage(
        methods=[{"use": "pack", "length": 32, "data": "two"}], **{"from": {"data": ["corpus", "two"]}}
    )
    recipe = parse({"stage": [CORPUS, two, both]}, life)
    made = run(recipe, Store(life.parent / "store"))
    assert made["base"].figures["tokens"] == 8 * 32
    lost = stage(methods=[{"use": "pack", "length": 32}], **{"from": {"data": ["corpus", "two"]}})
    with pytest.raises(UserError, match=r"the stage needs one artifact as 'data'.* corpus, two: say which"):
        run(parse({"stage": [CORPUS, two, lost]}, life), Store(life.parent / "store"))


@pytest.mark.slow
def test_a_tokenizer_that_found_fewer_tokens_than_it_was_asked_for_goes_on(life: Path) -> None:
    """Before it is trained, a corpus' vocabulary is known only from above."""
    text = life.read_text().replace("vocab_size = 300", "vocab_size = 2000")
    life.write_text(text)
    store = Store(life.parent / "store")
    made = run(load(life), store)
    assert made["corpus"].figures["vocab_size"] < 2000
    assert run(load(life), store)["adapt"].path == made["adapt"].path
    for stage in ("judge", "merged", "adapt", "corpus"):
        store.remove(made[stage].path.name, force=True)
    assert run(load(life), store)["adapt"].figures["steps"]
