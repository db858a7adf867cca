"""Images and sounds: kept once, by what they are, and found again."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.corpus.corpora import build
from tests.corpus.test_columns import picture
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus import documents, media

RED, BLUE = picture(), picture((0, 0, 255))


@pytest.mark.parametrize(("data", "ends"), [
    (RED, "png"), (b"\xff\xd8\xff\xe0", "jpg"), (b"RIFF1234WEBPVP8", "webp"), (b"RIFF1234WAVEfmt", "wav"),
    (b"fLaC", "flac"),
    (b"RIFF1234AVI ", "bin"), (b"words", "bin"), (b"", "bin")])
def test_the_ending_is_what_the_bytes_are(data: bytes, ends: str) -> None:
    assert media.ending(data) == ends


def test_the_same_bytes_are_kept_once(tmp_path: Path) -> None:
    first, again, other = (media.put(tmp_path, data, "image") for data in (RED, RED, BLUE))
    assert first == again != other and len([f for f in tmp_path.rglob("*") if f.is_file()]) == 2
    place = media.path(tmp_path, first)
    assert place.parent.name == place.name[:2] and place.suffix == ".png" and place.read_bytes() == RED
    with pytest.raises(ValueError, match="must be of a known format"):
        media.put(tmp_path, b"words", "image")


class Pictures(Curate):
    """Documents with images, one a row."""

    drop: str = ""
    """A document to drop."""

    def apply(self, table: Any, ctx: Context) -> Any:
        from trainwright.corpus.sources import document, union
        from trainwright.corpus.sources import table as made
        keep = media.keeper(ctx)
        usual = {"domain": "d", "source": "s"}
        rows = [document(**usual, id=str(i), text="", columns={"image": picture((i, 0, 0))},
                         keep=keep) for i in range(12)]
        return union(table, made("pictures", [rows.__iter__])).where(~(documents.daft.col("id") == self.drop))


class Sizes(Curate):
    """Reads the images that come in."""

    def apply(self, table: Any, ctx: Context) -> Any:
        import pyarrow as pa

        from trainwright.corpus.selecting import attach, columns
        found = columns(table, "id", "image").to_pylist()
        sizes = [len(media.find(ctx, row["image"]).read_bytes()) for row in found]
        return attach(table,
                      pa.table({"id": pa.array([r["id"] for r in found], pa.large_string()), "size": sizes}))


def test_a_corpus_keeps_the_media_of_its_documents_and_no_others(tmp_path: Path) -> None:
    figures = build(tmp_path / "c", None, Pictures(drop="3"), Sizes())
    kept = sorted(f for f in (tmp_path / "c" / "media").rglob("*") if f.is_file())
    assert len(kept) == 11 and figures["media_bytes"] == sum(f.stat().st_size for f in kept)
    assert figures["documents"] == 11
    assert figures["empty_documents"] == 0, "an image is something to learn from"
    assert picture((3, 0, 0)) not in [f.read_bytes() for f in kept]
    assert not list((tmp_path / "c").glob("taps"))


def test_media_of_an_earlier_corpus_go_along(tmp_path: Path) -> None:
    build(tmp_path / "a", None, Pictures())
    build(tmp_path / "b", None, Sizes(), data=tmp_path / "a", tokenizer=str(tmp_path / "a"))
    one, two = (sorted(f.name for f in (tmp_path / n / "media").rglob("*") if f.is_file()) for n in "ab")
    assert one == two and len(one) == 12


def test_a_reference_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file of media:ab12\.png"):
        media.find(Context(folder=tmp_path), "media:ab12.png")
    assert media.keeper(Context()) is None
