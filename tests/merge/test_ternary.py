"""Signs come back from their file as they were, in about as many bytes as the entropy asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainwright.core.errors import UserError
from trainwright.merge import _ternary


def drawn(n: int, share: float) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (n,), generator=draw) * 2 - 1
    return (signs * (torch.rand(n, generator=draw) < share)).to(torch.int8)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_round_trip(share: float, tmp_path: Path) -> None:
    signs = drawn(20_000, share)
    size = _ternary.write(tmp_path / "a.bin", 0.25, len(signs), signs.split(7_000))
    number, total, pieces = _ternary.read(tmp_path / "a.bin")
    assert number == 0.25 and total == len(signs) and torch.equal(torch.cat(list(pieces)), signs)
    assert size == (tmp_path / "a.bin").stat().st_size


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.2])
def test_bytes_are_near_to_the_entropy_bound(share: float, tmp_path: Path) -> None:
    signs = drawn(400_000, share)
    size = _ternary.write(tmp_path / "a.bin", 1.0, len(signs), [signs])
    bound = _ternary.entropy_bytes(len(signs), int(signs.count_nonzero()))
    assert bound < size < 1.05 * bound


def test_the_bound_by_hand() -> None:
    assert _ternary.entropy_bytes(1000, 500) == pytest.approx((1000 + 500 + 16) / 8)
    assert _ternary.entropy_bytes(1000, 0) == 2.0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    signs = drawn(1_000, 0.2)
    _ternary.write(file := tmp_path / "a.bin", 1.0, len(signs), [signs])
    raw = file.read_bytes()
    file.write_bytes(b"something else" + raw[14:])
    with pytest.raises(UserError, match=r"a\.bin is damaged"):
        _ternary.read(file)
    file.write_bytes(raw[:30])
    with pytest.raises(UserError, match=r"a\.bin is damaged"):
        list(_ternary.read(file)[2])
