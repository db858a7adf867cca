"""Reading documents: every format, every place of a mistake."""
from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpus.corpora import ODD, build
from trainwright.core import settings
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.data.sources.text.text import Text

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 👋🏽"}]


def rows(root: Path, **given: Any) -> list[dict[str, Any]]:
    """The documents that the method reads with these settings, from a recipe in ``root``."""
    method = settings.make(Text, given, "text")
    table = method.apply(documents.empty(), Context(root=root))
    return [row for batch in documents.stream(table) for row in batch.to_pylist()]


def written(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def jsonl(things: list[Any]) -> str:
    return "".join(json.dumps(thing, ensure_ascii=False) + "\n" for thing in things)


def test_files_of_text_are_one_document_each(tmp_path: Path) -> None:
    written(tmp_path, {"a.txt": "\ufeffmark", "b.md": "x\r\ny", "c.py": "pass", "d.rst": "é",
                       "e.txt.gz": gzip.compress("zip — é".encode())})
    found = rows(tmp_path, paths=["a.txt", "b.md", "c.py", "d.rst", "e.txt.gz"])
    assert [r["text"] for r in found] == ["mark", "x\r\ny", "pass", "é", "zip — é"]
    assert [r["domain"] for r in found] == ["a", "b", "c", "d", "e"]
    assert [r["id"] for r in found] == ["a/a.txt", "b/b.md", "c/c.py", "d/d.rst", "e/e.txt.gz"]
    assert all(r["messages"] is None and r["metadata"] == "{}" for r in found)


def test_folders_and_globs(tmp_path: Path) -> None:
    written(tmp_path, {"books/x.txt": "x", "books/deep/y.md": "y", "books/.hidden/z.txt": "z",
                       "books/cover.png": b"\x89",
                       "w/1.txt": "1"})
    folder = rows(tmp_path, paths=["books/"])
    assert [(r["id"], r["domain"]) for r in folder] == [("books/books/deep/y.md", "books"),
                                                        ("books/books/x.txt", "books")]
    assert [r["text"]
            for r in rows(tmp_path, paths=["books/**/*.md", "*/*.txt"], domain="all")] == ["y", "x", "1"]
    assert [r["text"]
            for r in rows(tmp_path, paths=["books/x.txt", "./books/*.txt"])] == ["x"], "a file is read once"
    assert [r["domain"] for r in rows(tmp_path, paths=["books/*.txt", "w/1.*"])] == ["books", "w"]
    assert rows(tmp_path / "books", paths=["../w"])[0]["domain"] == "w"
    assert [r["text"] for r in rows(Path(), paths=[str(tmp_path / "w")])] == ["1"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.parquet", "t.jsonl.gz"])
def test_tables_of_every_format_give_the_same_documents(tmp_path: Path, name: str) -> None:
    texts = [text.replace("\x00", "") for text in ODD]
    things = [{"n": str(i), "body": text} for i, text in enumerate(texts)]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(things), tmp_path / name)
    elif name.endswith("csv"):
        lines = ["n,body", *(f'{t["n"]},"{t["body"]}"' for t in things)]
        written(tmp_path, {name: "\n".join(lines)})
    elif name.endswith(".json"):
        written(tmp_path, {name: json.dumps(things, indent=1)})
    else:
        content = jsonl(things).encode()
        written(tmp_path, {name: gzip.compress(content) if name.endswith("gz") else content})
    found = rows(tmp_path, paths=[name], field="body", domain="d")
    assert [r["text"] for r in found] == texts
    assert [json.loads(r["metadata"]) for r in found] == [{"n": str(i)} for i in range(len(texts))]
    assert len({r["id"] for r in found}) == len(texts)
    assert all(r["id"].startswith(f"d/{name}:") for r in found)
    assert [r["id"] for r in rows(tmp_path, paths=[name], field="body",
                                  id="n")] == [str(i) for i in range(len(texts))]


@pytest.mark.parametrize("row", [
    {"messages": TALK}, {"messages": json.dumps(TALK)}, {"text": "also", "messages": TALK},
    {"prompt": "Hi", "completion": "Hello 👋🏽"}, {"prompt": TALK[:1], "completion": TALK[1:]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello 👋🏽"}]},
    {"conversations": TALK}])
def test_conversations_of_every_convention(tmp_path: Path, row: dict[str, Any]) -> None:
    written(tmp_path, {"t.jsonl": jsonl([row | {"n": 1}])})
    found, = rows(tmp_path, paths=["t.jsonl"])
    assert json.loads(found["messages"]) == TALK and found["text"] == "Hi\n\nHello 👋🏽"
    assert json.loads(found["metadata"]) == {"n": 1}


def test_conversations_in_parquet_lose_the_columns_that_are_null(tmp_path: Path) -> None:
    talk = [TALK[0] | {"name": "Zoë"}, TALK[1]]
    pq.write_table(pa.Table.from_pylist([{"messages": talk}]), tmp_path / "t.parquet")
    assert json.loads(rows(tmp_path, paths=["t.parquet"])[0]["messages"]) == talk


def test_the_documents_of_a_corpus_are_read_back(tmp_path: Path) -> None:
    build(tmp_path / "c", [{"id": "a", "text": ODD[0]}, {"id": "b", "text": "Hi", "messages": TALK}],
          chat_template="chatml")
    found = rows(tmp_path, paths=["c/documents"], id="id")
    assert [(r["id"], r["text"]) for r in found] == [("a", ODD[0]), ("b", "Hi\n\nHello 👋🏽")]
    assert found[0]["messages"] is None and json.loads(found[1]["messages"]) == TALK


def test_pieces_join_to_the_text(tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {i} " + "word " * (i % 7) for i in range(50)) + "\n\n"
    written(tmp_path, {"book.txt": text})
    found = rows(tmp_path, paths=["book.txt"], piece=200)
    assert "".join(r["text"] for r in found) == text and len(found) > 5
    assert max(len(r["text"]) for r in found) <= 202
    assert [r["id"] for r in found][:2] == ["book/book.txt:1", "book/book.txt:2"]


def test_characters_that_no_file_can_hold_are_replaced(tmp_path: Path) -> None:
    written(tmp_path, {"t.jsonl": '{"text": "half \\ud83d and whole \\ud83d\\ude00"}\n'})
    assert rows(tmp_path, paths=["t.jsonl"])[0]["text"] == "half \ufffd and whole 😀"


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    written(tmp_path, {"old.txt": b"caf\xe9"})
    with pytest.raises(UserError,
                       match=r'old\.txt is not UTF-8 \(byte 3\): convert it, or set invalid = "replace"'):
        rows(tmp_path, paths=["old.txt"])
    assert rows(tmp_path, paths=["old.txt"], invalid="replace")[0]["text"] == "caf\ufffd"


@pytest.mark.parametrize(("name", "content", "given", "told"), [
    ("t.jsonl", '{"text": "a"}\n{"text": \n', {}, r"t\.jsonl, line 2: this is no JSON object"),
    ("t.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}\n', {}, r"t\.jsonl, line 3: this is no JSON object"),
    ("t.jsonl", '["a"]\n', {}, r"t\.jsonl, row 1: a row is an object with columns"),
    ("t.json", '[{"text": 1', {}, r"t\.json is no JSON"),
    ("t.jsonl", '{"body": "a", "n": 1}\n', {},
     r"row 1: there is no column 'text'; it has body, n: name that of the documents with field"),
    ("t.jsonl", '{"text": 5}\n', {}, r"row 1: the column 'text' must hold text, not '5'"),
    ("t.jsonl", '{"text": "a"}\n', {"id": "key"},
     r"the column 'key' \(the setting id\) must hold .*; it has text"),
    ("t.jsonl", '{"messages": []}\n', {}, r"messages must be a list of at least one message"),
    ("t.jsonl", '{"messages": [{"content": "a"}]}\n', {}, r"a message must be \{role, content\}"),
    ("t.jsonl", '{"messages": [{"role": "user", "content": [1]}]}\n', {},
     r"the content of a message must be text, not '\[1\]'"),
    ("t.jsonl", '{"conversations": [{"from": "cat", "value": "miau"}]}\n', {},
     r"conversations are from .*, not 'cat'"),
    ("t.csv", "text,n\na,1\nb\n", {}, r"t\.csv, line 3: this row has not the 2 columns"),
    ("t.csv", b"text\ncaf\xe9\n", {}, r"t\.csv, line \d: .*utf-8"),
    ("t.parquet", "no parquet", {}, r"t\.parquet is no Parquet file"),
    ("t.txt.gz", "no gzip", {}, r"cannot read t\.txt\.gz"),
    ("t.rtf", "<p>", {}, r"t\.rtf: the ending '\.rtf' is not known; known are \.arrow, \.c, "),
])
def test_mistakes_in_files_are_told_with_their_place(tmp_path: Path, name: str, content: str | bytes,
                                                     given: dict[str, Any],
                                                     told: str) -> None:
    written(tmp_path, {name: content})
    with pytest.raises(UserError, match=told):
        rows(tmp_path, paths=[name], **given)


@pytest.mark.parametrize(("given", "told"), [
    ({"paths": ["gone.txt"]}, r"no file or folder gone\.txt .*; a data set of the Hub is hf://OWNER/NAME"),
    ({"paths": ["*.txt"]}, r"no file matches \*\.txt"),
    ({"paths": ["pictures"]}, r"the folder pictures holds no file that can be read"),
    ({"paths": ["pictures/*"]}, r"pictures/cover\.png: the ending '\.png' is not known"),
    ({"paths": []}, "paths names no file"),
    ({}, "'paths' is needed"),
    ({"paths": "a.txt"}, "paths must be a list"),
    ({"paths": ["pictures"], "piece": -1}, "piece must not be negative"),
    ({"paths": ["pictures"], "invalid": "ignore"}, "invalid must be one of 'error', 'replace'"),
])
def test_mistakes_in_settings(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    written(tmp_path, {"pictures/cover.png": b"\x89"})
    with pytest.raises(UserError, match=told):
        rows(tmp_path, **given)


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(name: str, subset: str | None, *, split: str, streaming: bool) -> list[dict[str, Any]]:
        asked.append((name, subset, split, streaming))
        if split == "none":
            raise ValueError("Bad split: none\nand more")
        return [{"text": "a", "n": 1}, {"text": "b", "n": 2}]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = rows(tmp_path, paths=["hf://owner/name"], subset="small", split="test")
    assert asked == [("owner/name", "small", "test", True)]
    assert [(r["id"], r["text"]) for r in found] == [("name/hf://owner/name:1", "a"),
                                                     ("name/hf://owner/name:2", "b")]
    assert {r["domain"] for r in found} == {"name"}
    with pytest.raises(UserError, match=r"cannot open hf://owner/name \(split 'none'\): Bad split: none"):
        rows(tmp_path, paths=["hf://owner/name"], split="none")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json").mkdir()
    for name in ("json", "../x", "./x", "/etc/x", "a/b/c", "", "a b", "https://x.org/y", "datasets/"):
        with pytest.raises(UserError, match=r"names no data set of the Hub: write hf://OWNER/NAME"):
            rows(tmp_path, paths=[f"hf://{name}"])
    assert len(asked) == 2, "no folder of this machine is taken for a data set"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r'needs the library datasets: pip install "trainwright\[hub\]"'):
        rows(tmp_path, paths=["hf://owner/name"])


def test_a_data_set_of_the_hub_with_structs_and_one_that_breaks(tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Paris", "a": None}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}

    def load(name: str, subset: str | None, *, split: str, streaming: bool) -> Any:
        yield {"messages": [TALK[0] | {"tool_calls": None}, answer]}
        if split == "broken":
            raise ConnectionError("gone\nand more")

    fake = types.ModuleType("datasets")
    fake.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    found = json.loads(rows(tmp_path, paths=["hf://o/n"])[0]["messages"])
    assert found[0] == TALK[0] and found[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    with pytest.raises(UserError, match=r"^cannot read hf://o/n after row 1: gone$"):
        rows(tmp_path, paths=["hf://o/n"], split="broken")


def test_it_adds_to_what_came_before_it(tmp_path: Path) -> None:
    written(tmp_path, {"a.txt": "a", "b.txt": "b"})
    one = Text(paths=["a.txt"]).apply(documents.empty(),
                                      Context(root=tmp_path)).with_column("extra", documents.daft.lit(1))
    both = Text(paths=["b.txt"]).apply(one, Context(root=tmp_path))
    assert both.to_pydict()["extra"] == [1, None] and both.to_pydict()["text"] == ["a", "b"]


def test_a_changed_file_makes_another_corpus(tmp_path: Path) -> None:
    written(tmp_path, {"w/a.txt": "a", "other.txt": "o"})
    method = Text(paths=["w", "hf://owner/name"])
    before = method.depends(tmp_path)
    written(tmp_path, {"other.txt": "changed"})
    assert method.depends(tmp_path) == before
    written(tmp_path, {"w/a.txt": "longer"})
    changed = method.depends(tmp_path)
    written(tmp_path, {"w/b.txt": "b"})
    assert len({before, changed, method.depends(tmp_path)}) == 3
    with pytest.raises(UserError, match="no file or folder gone"):
        Text(paths=["gone"]).depends(tmp_path)
