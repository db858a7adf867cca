"""Transfers of a matrix by hand, and the matrix of real models against measuring each alone."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.corpus.corpora import build, texts
from tests.evaluate.audit.audits import small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate.audit._stream import Held
from trainwright.evaluate.audit.continual_pretraining_benchmark import (
    ContinualPretrainingBenchmark,
    transfers,
)
from trainwright.evaluate.held_out import HeldOut


def test_transfers_by_hand() -> None:
    """Three domains. After the third, the first lost 0.7 since it was read and the second gained 0.1."""
    matrix = np.array([[5.0, 6.0, 7.0], [3.0, 5.5, 7.5], [3.2, 4.0, 6.0], [3.7, 3.9, 2.0]])
    told = transfers(matrix, ["a", "b", "c"])
    assert told == pytest.approx({
        "stream_current": 3.0, "stream_last": 3.2,
        "backward_transfer/b": 0.2, "backward_transfer/c": 0.3, "backward_transfer": 0.3,
        "forward_transfer/a": 0.0, "forward_transfer/b": -1.0, "forward_transfer": -0.5})


def test_the_matrix_is_what_each_model_has_alone(tmp_path: Path) -> None:
    rows = [row for domain in ("x", "y") for row in texts(16, domain)]
    build(tmp_path / "c", rows, tune=0.1, test=0.4)
    for seed in (1, 2):
        small(seed=seed).save_pretrained(tmp_path / f"m{seed}")
    stream = [tmp_path / "m1", tmp_path / "m2"]
    ctx = Context(inputs={"data": [tmp_path / "c"], "stream": stream, "alone": stream[::-1]},
                  names={"stream": ["first", "second"]})
    held = Held(tokens=200, length=32)
    told = ContinualPretrainingBenchmark(domains=("y", "x"), held=held).measure(small(), ctx)
    with torch.no_grad():
        alone = [HeldOut(tokens=200, length=32).measure(small(seed=s), ctx) for s in (0, 1, 2)]
    for name, found in zip(("loss", "loss_after_1", "loss_after_2"), alone, strict=True):
        for domain in ("x", "y"):
            assert told[f"{name}/{domain}"] == pytest.approx(found[f"loss/{domain}"])
    assert told["backward_transfer"] == pytest.approx(alone[2]["loss/y"] - alone[1]["loss/y"])
    other = (alone[1]["loss/y"] + alone[2]["loss/x"] - alone[2]["loss/y"] - alone[1]["loss/x"]) / 2
    assert told["stream_against_alone"] == pytest.approx(other)
    png, words = ctx.pictures["stream"]
    assert png.startswith(b"\x89PNG") and "after second: y" in words
    with pytest.raises(UserError, match="2 models for 1 domains"):
        ContinualPretrainingBenchmark(domains=("x",), held=held).measure(small(), ctx)
    with pytest.raises(UserError, match="no domain 'z'"):
        ContinualPretrainingBenchmark(domains=("z", "x")).measure(small(), ctx)
