"""Columns have kinds: what a source may give for each, and how it is stored."""
from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from trainwright.corpus import columns, media
from trainwright.corpus.sources import document

USUAL = {"id": "a", "domain": "d", "source": "s"}


def picture(color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (6, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("name", "value", "made"), [
    ("label", 3, "3"), ("label", "cat", "cat"), ("label", True, "1"), ("number", 2, 2.0),
    ("number", None, None),
    ("prompt", "é", '"é"'),
    ("chosen", [{"role": "user", "content": "é", "name": None}], '[{"role": "user", "content": "é"}]')])
def test_values_as_they_are_stored(name: str, value: Any, made: Any) -> None:
    assert columns.stored(name, value, Path(), None) == made


@pytest.mark.parametrize(("name", "value", "why"), [
    ("label", 1.5, "a label is a whole number or the name of a class, not 1.5"), ("label", "", "a label is"),
    ("number", "x", "a number is a number, not 'x'"), ("number", float("nan"), "not nan"),
    ("number", True, "not True"),
    ("chosen", 3, r"messages are a list of \{role, content\}, not 3"),
    ("chosen", [{"content": "x"}], "messages are a list"),
    ("image", "gone.png", "there is no file gone.png"),
    ("image", "../a.png", r"an image lies in the folder of its table or below it, not at \.\./a\.png"),
    ("audio", "/dev/zero", "an audio lies in the folder of its table"),
    ("image", {"path": "b/../../../etc/a.png"}, "an image lies in the folder"),
    ("image", 3, "an image is a file or its bytes, not 3"),
    ("audio", b"", "an audio is a file or its bytes"), ("score", 1, "there is no typed column 'score'"),
    ("image", picture(), "an image has nowhere to be kept")])
def test_values_that_a_column_cannot_hold(name: str, value: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        columns.stored(name, value, tmp_path, None)


def test_the_kind_of_a_column_that_a_method_adds_is_that_of_its_type() -> None:
    kinds = {"image": pa.large_string(), "messages": pa.string(), "score": pa.float32(), "count": pa.int64(),
             "note": pa.string(), "embedding": pa.list_(pa.float32())}
    found = {name: columns.kind_of(pa.field(name, kind)) for name, kind in kinds.items()}
    assert found == {"image": "image", "messages": "messages", "score": "number", "count": "number",
                     "note": "text",
                     "embedding": ""}


def test_classes_are_in_order() -> None:
    assert columns.classes({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert columns.classes(["b", "a", "10", "b"]) == ["10", "a", "b"]


def test_the_schema_and_the_kinds_fit() -> None:
    assert {column.kind for column in columns.SCHEMA.values()} == set(columns.KINDS)
    assert all(column.holds for column in columns.SCHEMA.values()) and columns.MEDIA == ("image", "audio")
    assert columns.ARROW.names == list(columns.SCHEMA) and columns.ARROW.field("number").type == pa.float64()


def test_a_document_of_typed_columns(tmp_path: Path) -> None:
    row = document(**USUAL, text="a red thing", columns={"label": 2, "image": picture()},
                   keep=lambda data, what: media.put(tmp_path, data, what))
    assert row["label"] == "2" and row["image"].startswith("media:") and row["text"] == "a red thing"
    assert media.path(tmp_path, row["image"]).read_bytes() == picture()
    assert set(row) == set(columns.SCHEMA) and row["chosen"] is None


def test_a_pair_is_whole_and_of_one_kind() -> None:
    row = document(**USUAL, columns={"prompt": "1+1=", "chosen": "2", "rejected": "3"})
    assert row["text"] == "1+1=2" and json.loads(row["rejected"]) == "3" and row["messages"] is None
    with pytest.raises(ValueError, match="has chosen and rejected, not one of them alone"):
        document(**USUAL, columns={"prompt": "1+1=", "chosen": "2"})
    with pytest.raises(ValueError, match="are all text, or all lists of messages"):
        document(**USUAL, columns={"chosen": "2", "rejected": [{"role": "assistant", "content": "3"}]})
