"""Rows with more than text: pairs, classes, images."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpus.test_columns import picture
from tests.data.sources.text.test_text import jsonl, written
from trainwright.core import settings
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents, media
from trainwright.corpus.columns import TYPED
from trainwright.data.sources.text.text import Text

ASKED, GOOD, BAD = ({"role": role, "content": text} for role, text in
                    (("user", "Who?"), ("assistant", "Zoë"), ("assistant", "Nobody")))


def rows(root: Path, **given: Any) -> list[dict[str, Any]]:
    (root / "work" / "method").mkdir(parents=True, exist_ok=True)
    method = settings.make(Text, given, "text")
    table = method.apply(documents.empty(), Context(root=root, folder=root / "work" / "method"))
    return [row for batch in documents.stream(table) for row in batch.to_pylist()]


def one(root: Path, row: dict[str, Any], **given: Any) -> dict[str, Any]:
    written(root, {"t.jsonl": jsonl([row])})
    (found,) = rows(root, paths=["t.jsonl"], **given)
    return found


@pytest.mark.parametrize("row", [
    {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "Who?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
    {"prompt": "Who?", "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [ASKED], "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])}])
def test_pairs_of_conversations_in_every_form(tmp_path: Path, row: dict[str, Any]) -> None:
    found = one(tmp_path, row | {"margin": 2})
    assert [json.loads(found[name]) for name in ("prompt", "chosen", "rejected")] == [[ASKED], [GOOD], [BAD]]
    assert found["text"] == "Who?\n\nZoë" and found["messages"] is None
    assert found["metadata"] == '{"margin": 2}'


@pytest.mark.parametrize("prompt", [{"prompt": "1+1="}, {}])
def test_pairs_of_texts_stay_text(tmp_path: Path, prompt: dict[str, str]) -> None:
    found = one(tmp_path, prompt | {"chosen": "2", "rejected": "3"})
    assert json.loads(found["chosen"]) == "2" and found["text"] == f"{prompt.get('prompt', '')}2"
    assert found["metadata"] == "{}" and (found["prompt"] is None) == (not prompt)


def test_columns_of_other_names(tmp_path: Path) -> None:
    found = one(tmp_path, {"body": "x", "stars": 4, "price": 1.5, "label": "unread"}, field="body",
                columns={"label": "stars", "number": "price"})
    assert (found["text"], found["label"], found["number"]) == ("x", "4", 1.5)
    assert found["metadata"] == '{"label": "unread"}'
    found = one(tmp_path, {"question": "1+1=", "good": "2", "bad": "3"},
                columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert found["text"] == "1+1=2" and found["metadata"] == "{}"


def test_an_image_is_read_from_beside_its_table_or_from_bytes(tmp_path: Path) -> None:
    red, blue = picture(), picture((0, 0, 255))
    table = jsonl([{"image": "pictures/a.png", "text": "red"}, {"image": "pictures/a.png"}])
    written(tmp_path, {"shown/pictures/a.png": red, "shown/t.jsonl": table})
    pq.write_table(pa.table({"image": [{"bytes": blue, "path": None}], "label": [0]}),
                   tmp_path / "shown" / "u.parquet")
    found = rows(tmp_path, paths=["shown"])
    assert [r["text"] for r in found] == ["red", "", ""] and [r["label"] for r in found] == [None, None, "0"]
    files = [media.path(tmp_path / "work" / "media", r["image"]).read_bytes() for r in found]
    assert files == [red, red, blue] and found[0]["image"] == found[1]["image"]


def test_what_only_has_the_name_of_a_typed_column_is_metadata(tmp_path: Path) -> None:
    found = one(tmp_path,
                {"text": "x", "image": "https://a.b/c.png", "label": [1, 2], "number": 3, "audio": None,
                 "chosen": "y"})
    assert all(found[name] is None for name in TYPED) and set(json.loads(found["metadata"])) == {
        "image", "label", "number", "audio", "chosen"}


@pytest.mark.parametrize(("row", "given", "why"), [
    ({"text": "x", "image": "gone.png"}, {}, r"t\.jsonl, row 1: an image is .*; there is no file gone\.png"),
    ({"text": "x", "stars": 1.5}, {"columns": {"label": "stars"}},
     "row 1: a label is a whole number or the name"),
    ({"text": "x"}, {"columns": {"label": "stars"}},
     r"there is no column 'stars' \(the setting columns\); it has text"),
    ({"chosen": [ASKED], "rejected": [ASKED]}, {}, "chosen and rejected are the same"),
    ({"chosen": [ASKED, GOOD], "rejected": "x"}, {}, "rejected must be a list of at least one message"),
    ({"text": "x"}, {"columns": {"lable": "stars"}},
     r"columns names 'lable', which is no typed column.*'label'")])
def test_mistakes_keep_their_place(tmp_path: Path, row: dict[str, Any], given: dict[str, Any],
                                   why: str) -> None:
    with pytest.raises(UserError, match=why):
        one(tmp_path, row, **given)


def test_images_beside_a_table_are_what_it_depends_on(tmp_path: Path) -> None:
    written(tmp_path, {"t.jsonl": jsonl([{"image": "a.png", "text": "x"}]), "a.png": picture(),
                       "u.jsonl": jsonl([{"text": "x"}])})
    named, plain = (Text(paths=[name]) for name in ("t.jsonl", "u.jsonl"))
    before, other = named.depends(tmp_path), plain.depends(tmp_path)
    (tmp_path / "a.png").write_bytes(picture((1, 2, 3), (99, 99)))
    assert named.depends(tmp_path) != before and plain.depends(tmp_path) == other
