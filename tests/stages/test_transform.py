"""One model made of one: what a transformation writes, keeps and refuses, and that later
stages respect its mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stages.test_repeat import BASE, CORPUS, TRAIN
from trainwright import families
from trainwright.core import masks
from trainwright.core.errors import UserError
from trainwright.core.recipe import parse
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store

PRUNE: dict[str, Any] = {"name": "pruned", "kind": "transform", "from": {"model": "base"},
                         "methods": [{"use": "magnitude", "sparsity": 0.5}]}


def made(life: Path, *stages: dict[str, Any]) -> dict[str, Artifact]:
    return run(parse({"seed": 3, "stage": [CORPUS, BASE, *stages]}, life), Store(life.parent / "store"))


def matrices(artifact: Artifact) -> dict[str, torch.Tensor]:
    return {
        n: p.detach() for n, p in families.load(artifact.path, "a test").named_parameters() if "proj" in n
    }


@pytest.mark.slow
def test_the_model_is_written_with_its_mask_and_its_figures(life: Path) -> None:
    done = made(life, PRUNE)
    before, after = matrices(done["base"]), matrices(done["pruned"])
    for name, w in after.items():
        assert int((w == 0).sum()) == w.numel() // 2
        assert torch.equal(w[w != 0], before[name][w != 0])
    figures = done["pruned"].figures
    every = [p for p in families.load(done["pruned"].path, "a test").parameters() if p.ndim > 1]
    assert figures["zeros"] == sum(int((p == 0).sum()) for p in every)
    assert figures["sparsity"] == pytest.approx(figures["zeros"] / sum(p.numel() for p in every), abs=1e-6)
    assert figures["peak_memory_bytes"] > 0
    bits = sum(-(-w.numel() // 8) for w in after.values())
    assert bits <= (done["pruned"].path / masks.FILE).stat().st_size <= bits + 4096, "one bit a weight"


@pytest.mark.slow
@pytest.mark.parametrize("methods", [[], [{"use": "lora", "rank": 2}]], ids=["all weights", "an adapter"])
def test_training_goes_on_within_the_mask(life: Path, methods: list[dict[str, Any]]) -> None:
    on = TRAIN | {"name": "retrained", "from": {"model": "pruned", "data": "corpus"},
                  "methods": [{"use": "pack", "length": 32}, *methods, {"use": "adamw", "lr": 1e-2}]}
    done = made(life, PRUNE, on)
    before, after = matrices(done["pruned"]), matrices(done["retrained"])
    assert all((after[n] == 0)[w == 0].all() for n, w in before.items())
    assert any(not torch.equal(after[n], w) for n, w in before.items())
    assert (done["retrained"].path / masks.FILE).read_bytes() == (
        done["pruned"].path / masks.FILE
    ).read_bytes()


@pytest.mark.slow
def test_it_looks_at_calibration_rows(life: Path) -> None:
    wanda = PRUNE | {"from": {"model": "base", "data": "corpus"}, "calibration": 16, "batch_size": 4,
                     "methods": [{"use": "wanda", "sparsity": 0.5}, {"use": "pack", "length": 32}]}
    done = made(life, wanda, PRUNE | {"name": "plain"})
    one, other = matrices(done["pruned"]), matrices(done["plain"])
    assert all((w == 0).sum(1).eq(w.shape[1] // 2).all() for w in one.values()), "half of each output"
    assert any(not torch.equal(one[n] == 0, other[n] == 0) for n in one)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": []}, "a transformation needs a method"),
        ({"methods": [{"use": "pack"}]}, "its methods only read data, and nothing changes the model"),
        (
            {"methods": [{"use": "magnitude"}, {"use": "pack"}]},
            r"pack reads data: name a corpus as from\.data",
        ),
        (
            {"methods": [{"use": "adamw"}]},
            "adamw is of kind Optimizer and belongs in a stage of kind train, not transform",
        ),
        ({"methods": [{"use": "wanda"}]}, r"wanda looks at data: name a corpus as from\.data"),
        ({"methods": [{"use": "magnitude", "layers": "*.nothing"}]}, "matches no"),
        ({"calibration": 0}, "calibration must be a positive number, not 0"),
        ({"from": {}}, r"a stage of kind transform needs from\.model"),
    ],
)
def test_what_cannot_be_is_one_sentence(life: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        made(life, PRUNE | changes)


def test_its_config_and_vocabulary_are_known_before_it_runs(life: Path) -> None:
    on = TRAIN | {"name": "on", "from": {"model": "pruned", "data": "corpus"}}
    found = jobs(parse({"stage": [CORPUS, BASE, PRUNE, on]}, life), Store(life.parent / "store"))
    assert found[2].stage.config(found[2], Store(life.parent / "store")).hidden_size == 16
    assert found[2].stage.vocabulary(found[2]) == 300
