"""Random crops: every part of a picture that is seen is where it was, moved by at most ``pad``."""
from __future__ import annotations

import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.data.order.random_crop import RandomCrop


def moved(step: int, pad: int = 2, rows: int = 64) -> torch.Tensor:
    """Pictures whose pixels say where they were: [rows, 2, 8, 8]."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    batch = {"pixel_values": torch.stack([y, x]).expand(rows, -1, -1, -1), "label": torch.arange(rows)}
    out = RandomCrop(pad=pad).next(lambda: batch, {}, Context(seed=3, step=step, batch_rows=rows))
    assert (
        torch.equal(out["label"], batch["label"]) and out["pixel_values"].shape == batch["pixel_values"].shape
    )
    return out["pixel_values"]


def test_a_picture_moves_as_a_whole_and_its_edge_goes_on() -> None:
    pixels = moved(0)
    shifts = pixels[:, :, 4, 4] - 4
    places = torch.arange(8.0)
    for one, (down, right) in zip(pixels, shifts.tolist(), strict=True):
        assert torch.equal(one[0], (places + down).clamp(0, 7)[:, None].expand(8, 8))
        assert torch.equal(one[1], (places + right).clamp(0, 7).expand(8, 8))
    assert set(shifts.flatten().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}, "all places come up"


def test_the_place_follows_from_seed_step_and_row() -> None:
    assert torch.equal(moved(0), moved(0)) and not torch.equal(moved(0), moved(1))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"^random_crop: the batch has no pictures"):
        RandomCrop().next(dict, {}, Context(batch_rows=2))
    with pytest.raises(UserError, match="pad must be"):
        make(RandomCrop, {"pad": 0}, "here")
