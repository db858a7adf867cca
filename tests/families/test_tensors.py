"""Checkpoints are written so that others read them, and read so that nothing is held."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainwright.core.errors import UserError
from trainwright.families.tensors import INDEX, Entry, Reader, Writer, copy_rest, same_rest

HELD = {"half": torch.arange(7).bfloat16() / 4, "flag": torch.tensor([True, False, True]),
        "whole": torch.arange(6.0).view(2, 3) - 2.5, "empty": torch.zeros(0, 4),
        "number": torch.tensor(3.5), "long": torch.tensor([2**40, -1])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    save_file(HELD, tmp_path / "model.safetensors")
    return tmp_path


def written(out: Path, most: int) -> Writer:
    out.mkdir()
    writer = Writer(out, [Entry(n, tuple(t.shape), t.dtype) for n, t in HELD.items()], most)
    for name in writer.order:
        flat = HELD[name].view(-1)
        writer.add(name, [flat[:2], flat[2:]])
    writer.close()
    return writer


def test_every_type_and_shape_is_read(folder: Path) -> None:
    reader = Reader(folder, "here")
    assert reader.names == sorted(HELD)
    for name, tensor in HELD.items():
        assert torch.equal(reader.get(name), tensor) and reader.get(name).dtype == tensor.dtype, name
    assert torch.equal(reader.piece("whole", 2, 5), HELD["whole"].view(-1)[2:5])
    assert torch.equal(reader.piece("whole", 4, 99), HELD["whole"].view(-1)[4:])


@pytest.mark.parametrize("most", [10**9, 20])
def test_what_is_written_in_pieces_is_read_by_safetensors(most: int, tmp_path: Path) -> None:
    writer = written(tmp_path / "out", most)
    held = {n: t for f in writer.files for n, t in load_file(tmp_path / "out" / f).items()}
    assert held.keys() == HELD.keys() and all(torch.equal(held[n], t) for n, t in HELD.items())
    assert (len(writer.files) > 1) == (most == 20) == (tmp_path / "out" / INDEX).is_file()
    for file in writer.files:                           # unaligned, torch could not view them
        raw = (tmp_path / "out" / file).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        for name, at in json.loads(raw[8:8 + size]).items():
            if name != "__metadata__":
                assert (8 + size + at["data_offsets"][0]) % HELD[name].dtype.itemsize == 0, name


def test_a_tensor_that_is_not_whole_is_noticed(tmp_path: Path) -> None:
    writer = Writer(tmp_path, [Entry("a", (4,), torch.float32), Entry("b", (1,), torch.float32)])
    with pytest.raises(ValueError, match="the pieces of a do not make it up"):
        writer.add("a", [torch.zeros(3)])
    with pytest.raises(ValueError, match="b was not written"):
        writer.close()


def test_a_damaged_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged .* does not lie in it"):
        Reader(folder, "here")
    file.write_bytes(b"\xff" * 8 + raw[8:])
    with pytest.raises(UserError, match="its header is too long"):
        Reader(folder, "here")


def test_twins_differ_in_their_weights_alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "config.json").write_text("{}")
    save_file({"w": torch.zeros(1)}, other / "model.safetensors")
    assert same_rest([folder, other])
    (other / "tokenizer.json").write_text("{}")
    assert not same_rest([folder, other])


def test_what_a_link_leads_to_is_not_copied(tmp_path: Path) -> None:
    """But for the links of the Hub's cache, which lead to its blobs."""
    hub = tmp_path / "models--a--b"
    for name in ("snapshots/1", "blobs", "out"):
        (hub / name).mkdir(parents=True)
    (hub / "blobs" / "x").write_text("words")
    (hub / "snapshots" / "1" / "vocab.txt").symlink_to("../../blobs/x")
    copy_rest(hub / "snapshots" / "1", hub / "out")
    assert (hub / "out" / "vocab.txt").read_text() == "words"
    (tmp_path / "secret").write_text("key")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"vocab\.txt is a link to a file outside"):
        copy_rest(tmp_path / "model", tmp_path)
