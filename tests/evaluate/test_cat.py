"""Cat: joined features are those of all models side by side, and help where one alone does not see."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate.cat import Cat, accuracy


def context() -> Context:
    ctx = tiny.context(tiny.place())
    ctx.tokenizer = tiny.tokenizer()
    return ctx


def test_probes_read_one_model_and_all_side_by_side(tmp_path: Path) -> None:
    for seed in (1, 2):
        families.save(tiny.model(seed=seed), tmp_path / str(seed), tiny.tokenizer())
    ctx, method, model = context(), Cat(length=16, fitted=60), tiny.model().eval()
    ctx.inputs = ctx.inputs | {"members": [tmp_path / "1", tmp_path / "2"]}
    found = method.measure(model, ctx)
    assert found["cat/features"] == 3 * model.config.hidden_size
    assert 1 / 3 < found["cat/alone"] <= 1 and found["cat/joined"] > 0.5
    states, labels = method.features(model, "train", 60, ctx)
    assert states.shape == (len(labels), model.config.hidden_size) and len(set(labels)) == 3


def test_a_label_that_no_model_sees_alone_is_seen_by_both() -> None:
    draw = np.random.default_rng(0)
    signs, labels = draw.normal(size=(400, 2)).astype(np.float32), np.zeros(400, np.int64)
    labels[:] = signs.sum(1) > 0
    halves = [signs[:200], signs[200:]], [labels[:200], labels[200:]]
    both, one = (accuracy([part[:, :n] for part in halves[0]], halves[1], Context()) for n in (2, 1))
    assert both > 0.95 and 0.6 < one < 0.85


def test_without_enough_labels_there_is_nothing_to_tell_apart() -> None:
    with pytest.raises(UserError, match="training documents of two labels or more"):
        Cat(domains=("prose",), length=16).measure(tiny.model(), context())
