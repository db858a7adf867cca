"""Every format that people keep texts in is read by the library for it; what cannot be read is counted
and named."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.data.sources.text.test_text import jsonl, rows, written
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.data.sources.text import _rich
from trainwright.data.sources.text._files import known
from trainwright.data.sources.text.text import Text

ROWS = [{"text": "the sea", "n": 1}, {"text": "ein „Wort“\tmore", "n": 2}]


def texts(root: Path, *names: str) -> list[str]:
    return [row["text"] for row in rows(root, paths=list(names))]


def zstandard(data: bytes) -> bytes:
    made = pa.BufferOutputStream()
    with pa.CompressedOutputStream(made, "zstd") as out:
        out.write(data)
    return made.getvalue().to_pybytes()  # type: ignore[no-any-return]


def arrow(kind: Callable[..., Any]) -> bytes:
    out = pa.BufferOutputStream()
    table = pa.Table.from_pylist(ROWS)
    with kind(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue().to_pybytes()  # type: ignore[no-any-return]


TABLES: dict[str, bytes] = {
    "t.ndjson": jsonl(ROWS).encode(),
    "t.tsv": "text\tn\nthe sea\t1\n\"ein „Wort“\tmore\"\t2\n".encode(),
    "t.yaml": "- text: the sea\n  n: 1\n- {text: \"ein „Wort“\\tmore\", n: 2}\n".encode(),
    "t.yml": "text: the sea\n---\ntext: \"ein „Wort“\\tmore\"\n".encode(),
    "t.arrow": arrow(pa.ipc.new_stream),
    "t.feather": arrow(pa.ipc.new_file),
    "t.jsonl.gz": gzip.compress(jsonl(ROWS).encode()),
    "t.json.bz2": bz2.compress(json.dumps(ROWS).encode()),
    "t.csv.xz": lzma.compress("text,n\nthe sea,1\n\"ein „Wort“\tmore\",2\n".encode()),
    "t.jsonl.zst": zstandard(jsonl(ROWS).encode()),
    "t.json.zst": zstandard(json.dumps(ROWS, indent=1).encode()),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_of_a_table_in_any_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TABLES[name])
    found = rows(tmp_path, paths=[name])
    assert [row["text"] for row in found] == [row["text"] for row in ROWS]
    assert {row["domain"] for row in found} == {"t"} and found[1]["source"].startswith(f"{name}:")


@pytest.mark.slow
def test_a_compressed_table_is_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    many = [{"text": f"{number} " * 40} for number in range(20_000)]
    (tmp_path / "t.jsonl.zst").write_bytes(zstandard(jsonl(many).encode()))
    assert texts(tmp_path, "t.jsonl.zst") == [row["text"] for row in many]


@pytest.mark.parametrize("name", [n for n in TABLES if Path(n).suffix in (".gz", ".bz2", ".xz", ".zst")])
def test_a_compressed_file_that_is_cut_short_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(TABLES[name][:-12])
    with pytest.raises(UserError, match=f"{name}.*damaged or cut short"):
        rows(tmp_path, paths=[name])


@pytest.mark.parametrize(("name", "content", "told"), [
    ("t.yaml", "- text: &a x\n- text: *a\n", r"t\.yaml, line 2: references \(\*name\) are not read"),
    ("t.yaml", "- text: [\n", r"t\.yaml, line 2: this is no YAML"),
    ("t.yaml", "- !!python/object/apply:os.getcwd []\n", r"t\.yaml, line 1: this is no YAML"),
    ("t.tsv", "text\tn\na\n", r"t\.tsv, line 2: this row has not the 2 columns"),
    ("t.arrow", "ARROW1 no", r"t\.arrow is no Arrow file that can be read"),
])
def test_what_is_wrong_with_a_file_is_said_where(tmp_path: Path, name: str, content: str, told: str) -> None:
    written(tmp_path, {name: content})
    with pytest.raises(UserError, match=told):
        rows(tmp_path, paths=[name])


def test_source_code_is_a_document(tmp_path: Path) -> None:
    written(tmp_path, {"src/a.rs": "fn main() {}\n", "src/b.go": "package b\n"})
    assert texts(tmp_path, "src") == ["fn main() {}\n", "package b\n"]


# ---- pages, mail, notebooks, word processors, PDF ----------------------------------------------------

PAGE = ("<html><head><title>t</title><script>x()</script></head><body><nav><a href='/'>Home</a></nav>"
        f"<article><h1>The sea</h1><p>{'The ship sails on the wide sea. ' * 9}</p></article></body>")
MAIL = ("Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nFrom: a@b.c\n"
        "Content-Type: multipart/alternative; boundary=x\n\n"
        "--x\nContent-Type: text/html\n\n<p>rich</p>\n--x\nContent-Type: text/plain\n\nplain words\n--x--\n")
BOOK = {"cells": [{"cell_type": "markdown", "source": ["# Title\n", "words"]},
                  {"cell_type": "code", "source": "x = 1", "outputs": [{"text": "9" * 99}]},
                  {"cell_type": "code", "source": []}], "metadata": {}}


def word() -> bytes:
    docx = pytest.importorskip("docx")
    made, out = docx.Document(), io.BytesIO()
    made.add_paragraph("first")
    table = made.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    made.add_paragraph("last")
    made.save(out)
    return out.getvalue()


def pdf(text: str) -> bytes:
    """The smallest PDF that has a page with a text."""
    stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode()
    parts = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
             b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R"
             b"/Resources<</Font<</F1 5 0 R>>>>>>",
             b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream),
             b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    out, places = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        places.append(len(out))
        out += b"%d 0 obj%s endobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % at for at in places)
    return (out + b"xref\n0 %d\n0000000000 65535 f \n" % (len(parts) + 1) + table
            + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(parts) + 1, len(out)))


def test_a_page_is_its_article(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    (tmp_path / "a.html").write_text(PAGE)
    text, = texts(tmp_path, "a.html")
    assert "The ship sails" in text and "Home" not in text and "x()" not in text and "<" not in text


def test_a_mail_is_its_subject_and_its_plain_body(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_text(MAIL)
    assert texts(tmp_path, "a.eml") == ["Grüße\n\nplain words"]


def test_a_notebook_is_its_texts_and_code_without_what_it_printed(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text(json.dumps(BOOK))
    assert texts(tmp_path, "a.ipynb") == ["# Title\nwords\n\n```python\nx = 1\n```"]


def test_a_word_processors_file_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(word())
    assert texts(tmp_path, "a.docx") == ["first\n\nleft\tright\n\nlast"]


def test_a_small_word_processors_file_does_not_unfold_into_a_large_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("word/document.xml", "x"):
            packed.writestr(name, bytes(_rich.LIMIT // 2 + 1))
    (tmp_path / "a.docx").write_bytes(word())
    ctx = Context(root=tmp_path)
    assert len(Text(paths=["."]).apply(documents.empty(), ctx).to_pylist()) == 1
    assert ctx.texts["could not be read"] == "1: bomb.docx (more than 64 MiB, unpacked)"


def test_what_cannot_be_read_is_counted_and_named_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("pypdf")
    for name, content in {"a": pdf("the wide sea"), "scan": pdf(""), "broken": b"%PDF-1.4 nothing"}.items():
        (tmp_path / f"{name}.pdf").write_bytes(content)
    ctx = Context(root=tmp_path)
    found = Text(paths=["."]).apply(documents.empty(), ctx).to_pylist()
    assert [row["text"] for row in found] == ["the wide sea"]
    said = ctx.texts["could not be read"]
    assert said.startswith("2: ") and "broken.pdf (" in said and "scan.pdf (no text in it)" in said
    assert not caplog.records, "what a library says of a file is not its own to print"


def test_without_its_library_a_format_is_left_out_of_folders_and_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    written(tmp_path, {"d/a.txt": "the sea", "d/a.pdf": "x"})
    ctx = Context(root=tmp_path)
    assert len(Text(paths=["d"]).apply(documents.empty(), ctx).to_pylist()) == 1
    assert ctx.texts["not read in d"] == 'pdf files, which need pip install "trainwright[readers]": 1'
    with pytest.raises(UserError, match=r'needs the library pypdf: pip install "trainwright\[readers\]"'):
        rows(tmp_path, paths=["d/a.pdf"])


def test_the_formats_that_are_promised_are_known() -> None:
    promised = {".tsv", ".ndjson", ".yaml", ".arrow", ".html", ".eml", ".ipynb", ".docx", ".pdf", ".rs"}
    assert promised <= set(known())
