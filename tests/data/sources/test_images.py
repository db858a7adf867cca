"""Pictures from folders: captions beside them, in a table or in their names; none
transparent or too large."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.frames import told
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import media
from trainwright.corpus.documents import empty
from trainwright.data.sources.images import Images


def png(color: Any = (200, 30, 40), size: tuple[int, int] = (12, 6), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, color).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of captioned pictures, one with a picture further below."""
    captions = {"cats/one": "A cat.\nde=Eine Katze.", "cats/wild/two": " A lion. ", "cups/a": "Zoë’s cup."}
    for name, caption in captions.items():
        file = tmp_path / "pictures" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return tmp_path


def read(root: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    ctx = Context(root=root, folder=root / "work" / "step")
    return told(Images(**{"paths": ["pictures"]} | settings).apply(empty(), ctx))


def kept(root: Path, row: dict[str, Any]) -> Path:
    return media.path(root / "work" / media.FOLDER, row["image"])


def test_the_caption_is_the_first_line_beside_the_picture_and_the_folder_its_domain(folder: Path) -> None:
    rows = read(folder)
    found = {name: (row["domain"], row["text"], row["source"]) for name, row in rows.items()}
    assert found == {"cats/cats/one.png": ("cats", "A cat.", "pictures/cats/one.png"),
                     "cats/cats/wild/two.png": ("cats", "A lion.", "pictures/cats/wild/two.png"),
                     "cups/cups/a.png": ("cups", "Zoë’s cup.", "pictures/cups/a.png")}
    row = rows["cats/cats/one.png"]
    assert json.loads(row["metadata"]) == {"width": 12, "height": 6}
    assert kept(folder, row).read_bytes() == png(), "byte for byte"
    assert {r["domain"] for r in read(folder, domain="all").values()} == {"all"}


def test_a_table_says_what_its_pictures_show(folder: Path) -> None:
    for file in (folder / "pictures").rglob("*.txt"):
        file.unlink()
    lines = [{"file_name": "one.png", "text": "From a table.", "year": 1999},
             {"file_name": "wild/two.png", "text": "Below."}]
    (folder / "pictures" / "cats" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    rows = read(folder, missing="skip")
    found = {name: row["text"] for name, row in rows.items()}
    assert found == {"cats/cats/one.png": "From a table.", "cats/cats/wild/two.png": "Below."}
    assert json.loads(rows["cats/cats/one.png"]["metadata"])["year"] == 1999
    (folder / "pictures" / "cats" / "metadata.jsonl").write_text('{"text": "no name"}\n')
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 1: a line is a JSON object with file_name"):
        read(folder)


def test_names_may_be_captions_and_pictures_may_have_none(folder: Path) -> None:
    (folder / "pictures" / "cups" / "blue_tea-cup2.PNG").write_bytes(png())
    assert read(folder, captions="name")["cups/cups/blue_tea-cup2.PNG"]["text"] == "blue tea cup2"
    assert {row["text"] for row in read(folder, captions="none").values()} == {""}
    with pytest.raises(UserError, match=r"pictures/cups/blue_tea-cup2\.PNG has no caption: .*\"skip\""):
        read(folder)
    assert len(read(folder, missing="skip")) == 3


def test_transparency_becomes_the_background_and_large_pictures_small(folder: Path) -> None:
    file = folder / "pictures" / "cups" / "a.png"
    file.write_bytes(png((10, 20, 30, 0), (40, 20), "RGBA"))
    white, red = (255, 255, 255), (255, 0, 0)
    for settings, color, size in (({}, white, (40, 20)), ({"background": "#ff0000", "side": 5}, red, (10, 5)),
                                  ({"side": 20}, white, (40, 20))):
        with Image.open(kept(folder, read(folder, **settings)["cups/cups/a.png"])) as opened:
            assert opened.mode == "RGB" and opened.size == size
            assert (np.asarray(opened) == color).all()
    file.write_bytes(png(size=(300, 200)))
    row = read(folder, side=50)["cups/cups/a.png"]
    assert json.loads(row["metadata"]) == {"width": 75, "height": 50}


def test_mistakes_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no folder nowhere"):
        read(folder, paths=["nowhere"])
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"the folder empty holds no picture"):
        read(folder, paths=["empty"])
    (folder / "pictures" / "cups" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(UserError, match=r"a\.png: an image cannot be read"):
        read(folder)
    wrong: dict[str, dict[str, Any]] = {
        "background must be a colour": {"background": "plaid"}, "side must": {"side": -1},
        "no folder": {"paths": []}}
    for match, settings in wrong.items():
        with pytest.raises(ValueError, match=match):
            Images(**{"paths": ["pictures"]} | settings)


def test_what_it_depends_on_are_the_files(folder: Path) -> None:
    method = Images(paths=["pictures"])
    before = method.depends(folder)
    assert before == method.depends(folder)
    (folder / "pictures" / "cups" / "a.txt").write_text("Another cup.")
    assert method.depends(folder) != before
