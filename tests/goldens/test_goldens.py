"""Loss curves of 50 steps, held to those that were written down: a change that should not change results
must show the same ones.

Where a change of results is meant, say so in the changelog and write new curves:
``TRAINWRIGHT_RENEW_GOLDENS=1 python -m pytest tests/goldens``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwright.check import tiny
from trainwright.core import registry
from trainwright.core.loop import Train

STEPS = 50
DATA = {"use": "pack", "length": 32}
NEXT = {"use": "next_token"}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "pretrain": [
        DATA,
        NEXT,
        {"use": "clip_gradients", "norm": 0.5},
        {"use": "adamw", "lr": 1e-2},
        {"use": "cosine", "warmup": 0.1},
    ],
    "lora": [
        DATA | {"domains": ["chat"]},
        NEXT,
        {"use": "lora", "rank": 4, "alpha": 8.0},
        {"use": "adamw", "lr": 2e-2},
        {"use": "wsd", "warmup": 0.1},
    ],
    "muon": [
        DATA,
        NEXT,
        {"use": "torch_optim", "optimizer": "Muon", "lr": 2e-2, "params": "*_proj.weight"},
        {"use": "adamw", "lr": 1e-2, "params": "!*_proj.weight"},
        {"use": "linear"},
    ],
}
AFTER = {"lora": "pretrain"}
"""Recipes that go on with the model of another: to a model that knows nothing an adapter can teach little."""


def curve(name: str, folder: Path) -> list[float]:
    """The loss of each step, in float32."""
    model = tiny.model()
    losses: list[float] = []
    for recipe in [RECIPES[n] for n in (AFTER.get(name), name) if n]:
        losses.clear()
        methods = [registry.create(table, Path(), "golden") for table in recipe]
        run = Train(model, methods, STEPS, accumulate=2, ctx=tiny.context(folder))
        run.run(on_step=lambda row: losses.append(row["loss"]))
    return losses


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are then taken in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_curve_is_the_same(name: str, tmp_path: Path) -> None:
    losses = curve(name, tmp_path)
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5]), "a curve that does not fall says little"
    file = Path(__file__).with_name(f"{name}.json")
    if os.environ.get("TRAINWRIGHT_RENEW_GOLDENS") == "1":
        file.write_text(
            json.dumps({"recipe": RECIPES[name], "loss": [round(x, 6) for x in losses]}, indent=1) + "\n"
        )
    golden = json.loads(file.read_text())
    assert golden["recipe"] == RECIPES[name], "the recipe was changed and its curve was not renewed"
    assert losses == pytest.approx(golden["loss"], rel=1e-3)
