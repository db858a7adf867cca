"""Of a model in mapped files a process owns one tensor at a time, and the numbers are those of any model."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.families.mapped import LARGE, Scratch, is_mapped, taken, write_rows
from trainwright.planning.live import Live

TABLE = {"type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
         "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 512,
         "max_position_embeddings": 64, "tie_word_embeddings": True}


class Own(Live):
    """Counts what torch has allocated, and nothing that is mapped."""

    def add(self, found: Any) -> None:
        if type(found) in (Tensor, nn.Parameter) and found.device.type == "cpu" and not is_mapped(found):
            super().add(found)


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return families.create(families.from_table(TABLE, None, "a test"), 3, "a test")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scratch:
    monkeypatch.delenv("TMPDIR", raising=False)
    (tmp_path / "scratch").mkdir()
    return Scratch(tmp_path / "scratch")


def size(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def largest(model: nn.Module) -> int:
    return max(p.nbytes for p in model.parameters())


def owned(make: Callable[[], nn.Module]) -> tuple[nn.Module, int]:
    """A model, and the most bytes that making it took at once, mapped ones left out."""
    with Own() as own:
        made = make()
    return made, own.peak


def check(made: nn.Module, plain: nn.Module, scratch: Scratch) -> None:
    """The same numbers, ties and flags, the large ones in files that have no name."""
    theirs = dict(plain.named_parameters())
    for name, p in made.named_parameters():
        assert torch.equal(p, theirs.pop(name)) and p.requires_grad
        assert is_mapped(p) or p.nbytes < LARGE, name
    assert not theirs and not [*scratch.folder.iterdir()]


def test_a_model_that_is_drawn(plain: nn.Module, scratch: Scratch) -> None:
    def make() -> nn.Module:
        with scratch.catching():
            return families.create(families.from_table(TABLE, None, "a test"), 3, "a test")

    assert owned(lambda: families.create(families.from_table(TABLE, None, "a test"), 3, "a test"))[1] \
        >= size(plain), "what is counted would show a whole model"
    made, most = owned(make)
    check(made, plain, scratch)
    assert most < 3 * largest(plain) < size(plain) / 2
    with torch.no_grad():
        made.get_parameter("model.layers.0.mlp.up_proj.weight").add_(1)       # a file that may be written to
    after: Any = nn.Linear(256, 256)
    assert not is_mapped(after.weight), "only within"


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_model_that_is_loaded(
    kind: torch.dtype, plain: nn.Module, scratch: Scratch, tmp_path: Path
) -> None:
    stored = families.create(families.from_table(TABLE, None, "a test"), 3, "a test").to(kind)
    families.save(stored, tmp_path / "saved", None)

    def make() -> nn.Module:
        with scratch.catching():
            return families.load(tmp_path / "saved", "a test")

    made, most = owned(make)
    check(made, stored.to(torch.float32), scratch)
    assert most < 3 * largest(plain)
    with scratch.catching(torch.bfloat16):
        coarse = families.load(tmp_path / "saved", "a test")
    large = {n: p for n, p in coarse.named_parameters() if p.ndim > 1}
    assert large and all(p.dtype == torch.bfloat16 and is_mapped(p) for p in large.values())
    assert all(torch.equal(p, made.get_parameter(n).bfloat16()) for n, p in large.items())


def test_another_type_is_made_one_tensor_after_the_other(plain: nn.Module, scratch: Scratch) -> None:
    with scratch.catching():
        made = families.create(families.from_table(TABLE, None, "a test"), 3, "a test")
    with Own() as own:
        scratch.convert(made, torch.bfloat16)
    assert own.peak < largest(plain)
    assert {p.dtype for p in made.parameters() if p.ndim > 1} == {torch.bfloat16}
    assert not any(p.nbytes >= LARGE and not is_mapped(p) for p in made.parameters())


def test_a_full_disk_is_told(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"No space left on device.*set TMPDIR"), scratch.catching():
        nn.Linear(256, 256)
    assert not [*scratch.folder.iterdir()]


def test_TMPDIR_is_where_scratch_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert Scratch(Path("elsewhere")).folder == tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_rows_that_several_write_are_one_tensor(dtype: torch.dtype, tmp_path: Path) -> None:
    """In any order; whoever has no rows writes none."""
    whole, file = (torch.arange(7 * 3).view(7, 3) % 2).to(dtype), tmp_path / "whole"
    for begin, end in ((7, 7), (4, 7), (0, 4)):
        write_rows(whole[begin:end], begin, file)
    made = taken(file, whole)
    assert made.dtype == dtype and made.equal(whole) and is_mapped(made) and not file.exists()
    write_rows(torch.ones(5), 0, file)
    write_rows(torch.zeros(2), 5, file)
    assert taken(file, torch.empty(7)).tolist() == [1] * 5 + [0] * 2
