"""Tensors of several ranks: written as safetensors, read in slices, and refused where they do not add up."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainwright.core import parts

TENSORS = {"model/w": torch.arange(6.0).reshape(2, 3).t(), "half": torch.arange(3).bfloat16() / 3,
           "none": torch.zeros(0, 4), "scalar": torch.tensor(7), "mask": torch.tensor([True, False]),
           "small": torch.tensor([1.5], dtype=torch.float8_e4m3fn)}


def bits(t: torch.Tensor) -> torch.Tensor:
    """Its bytes, for a comparison to the last bit."""
    return t.contiguous().flatten().view(torch.uint8)


def test_what_is_written_is_safetensors(tmp_path: Path) -> None:
    """Of any layout in memory, and of every type that is listed."""
    tied = TENSORS | {"tied": TENSORS["model/w"]} | {f"a {t}": torch.ones(2).to(t) for t in parts.TYPES}
    entries, digest = parts.write(tmp_path, tied)
    assert {f.name for f in tmp_path.iterdir()} == {"rank-00000.safetensors"} and len(digest) == 128
    found = load_file(tmp_path / "rank-00000.safetensors")
    assert found.keys() == tied.keys() == entries.keys()
    for name, t in tied.items():
        assert found[name].dtype == t.dtype and found[name].shape == t.shape
        assert torch.equal(bits(found[name]), bits(t))
    (tmp_path / "plan.json").write_text(parts.written_out(parts.join([entries])))
    assert parts.plan_in(tmp_path) == entries
    empty = {name: torch.zeros_like(t) for name, t in tied.items()}
    parts.fill(tmp_path, entries, empty)
    assert all(torch.equal(bits(empty[n]), bits(t)) for n, t in tied.items())


def test_what_safetensors_does_not_know_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"x is of the type torch.complex64, which cannot be saved"):
        parts.write(tmp_path, {"x": torch.zeros(1, dtype=torch.complex64)})


def test_files_that_are_not_as_planned_are_refused(tmp_path: Path) -> None:
    plan = {"m": parts.Entry("float32", (4,), (parts.Part(0, (0,), (4,)),))}
    with pytest.raises(ValueError, match=r"rank-00000.safetensors"):
        parts.fill(tmp_path, plan, {"m": torch.zeros(4)})
    for content in (b"", b"\xff" * 100, json.dumps({"m": 1}).encode()):
        (tmp_path / "rank-00000.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"rank-00000.safetensors"):
            parts.fill(tmp_path, plan, {"m": torch.zeros(4)})
    for wrong in ({"m": torch.zeros(3)}, {"n": torch.zeros(4)}):
        save_file(wrong, tmp_path / "rank-00000.safetensors")
        with pytest.raises(ValueError, match="m"):
            parts.fill(tmp_path, plan, {"m": torch.zeros(4)})


@pytest.mark.parametrize("cut", [0, 1])
def test_parts_of_several_ranks_become_one(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of ranks goes on: what three ranks wrote of a matrix is read into the whole."""
    whole = torch.arange(35, dtype=torch.float64).reshape(5, 7).to(torch.bfloat16)
    pieces = torch.chunk(whole, 3, dim=cut)
    at, told = 0, []
    for rank, part in enumerate(pieces):
        save_file({"m": part.contiguous()}, tmp_path / f"rank-{rank:05d}.safetensors")
        begin = (at, 0) if cut == 0 else (0, at)
        told.append(parts.Part(rank, begin, tuple(part.shape)))
        at += part.shape[cut]
    plan = {"m": parts.Entry("bfloat16", (5, 7), tuple(told))}
    monkeypatch.setattr(parts, "MAPPED", 1)
    read = torch.empty_like(whole)
    parts.fill(tmp_path, plan, {"m": read})
    assert torch.equal(read, whole)
