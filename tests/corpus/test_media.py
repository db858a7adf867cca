"""Images and sounds: kept once, by what they are, and found again."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.corpora import build
from tests.corpus.test_columns import picture
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus import documents, media
from trainwright.corpus.inputs import pixels

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
    name = f"media:{'ab12' * 16}.png"
    with pytest.raises(UserError, match=rf"there is no file of {name}"):
        media.find(Context(folder=tmp_path), name)


@pytest.mark.parametrize("name", ["media:../x.png", "media:/etc/passwd", "x", "media:ab.png/../../../x.png",
                                  f"media:{'a' * 64}./x", f"{'a' * 64}.png"])
def test_no_reference_leads_out_of_a_corpus(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no reference of an image or a sound"):
        media.collect([name], [tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert media.keeper(Context()) is None


@pytest.mark.parametrize("data", [
    RED[:-30], RED[:20], b"", b"II*\0" + bytes(40), b"BM" + bytes(60), b"GIF89a" + b"\xff" * 30,
    b"\x89PNG\r\n\x1a\n" + b"\xff" * 60])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="an image cannot be read"), media.picture(data) as opened:
        opened.convert("RGB")


def test_an_image_does_not_unfold_into_all_of_the_memory() -> None:
    from PIL import Image
    out = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(out, "PNG")
    assert len(out.getvalue()) < 100_000
    with pytest.raises(UserError, match="exceeds limit"), media.picture(out.getvalue()):
        pass
    out = io.BytesIO()
    Image.new("1", (30_000, 1)).save(out, "PNG")
    with pytest.raises(UserError, match="an image of 30000 x 1 points is too narrow"):
        pixels(out.getvalue(), families.Pictures(224))
