"""One contract for all formats: the file, the line or row, what is wrong, what would be right."""
from __future__ import annotations

import errno
import gzip
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.text.test_text import jsonl, rows, written
from trainwright.core import hardware
from trainwright.core.errors import UserError
from trainwright.data.sources.text import _compressed, _files

LINES = jsonl([{"text": f"the cat number {i} sat on the mat"} for i in range(2000)]).encode()
DEEP = '{"text": "a", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"


def damaged() -> bytes:
    packed = bytearray(gzip.compress(LINES, 1, mtime=0))
    packed[len(packed) // 2] ^= 255
    return bytes(packed)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "t.jsonl.gz",
            damaged(),
            r"cannot read t\.jsonl\.gz, after line [\d,]+ \(.*damaged or cut short, so fetch",
        ),
        ("t.jsonl.gz", gzip.compress(LINES)[:-400], r"cannot read t\.jsonl\.gz, .*damaged or cut short"),
        ("t.txt.gz", damaged(), r"cannot read t\.txt\.gz \(.*damaged or cut short"),
        (
            "t.jsonl",
            '{"text": "a"}\n' + DEEP,
            r"t\.jsonl, line 2: this is no JSON object: values are nested too deeply",
        ),
        ("t.json", f"[{DEEP}]", r"t\.json is no JSON: values are nested too deeply"),
        ("t.json", DEEP, r"t\.json, line 1: values are nested too deeply"),
        (
            "t.jsonl",
            '{\n "text": "a"\n}\n',
            r"t\.jsonl, line 1: .*an object stands on one line, else name the file \.json",
        ),
        ("t.json", '{"text": "a"}\n{\n"text" "b"}\n', r"t\.json, line 2: this is no JSON object"),
        (
            "t.json",
            '{\n"text": "a"}\n\n{\n"text" "b"}',
            r"t\.json, line 4: the object that begins here is no JSON",
        ),
        ("t.json", b'{\n"text": "\xff"}', r"t\.json, line 2: this is not UTF-8"),
        ("t.jsonl", '{"text": "a", "text": "b"}\n', r"t\.jsonl, line 1: .*the key 'text' stands twice"),
        (
            "t.jsonl",
            '{"text": "a", "n": ' + "9" * 5000 + "}\n",
            r"t\.jsonl, line 1: this is no JSON object: Exceeds",
        ),
        ("t.json", "5", r"t\.json, row 1: a row is an object with columns, not 5"),
        (
            "t.csv",
            'id,text\n1,one\n2,"two\n3,three\n4,four\n',
            r"t\.csv, line 3: in the row that begins here a quote is opened",
        ),
        ("t.csv", 'id,text\n1,"a\nb\nc"\n2\n', r"t\.csv, line 5: this row has not the 2 columns .*, but 1"),
        ("t.yaml", "- text: a\n- text: b\n  text: c\n", r"t\.yaml, line 2: the key 'text' stands twice in"),
        ("t.csv", "text,text\na,b\n", r"t\.csv has two columns 'text': rename or drop one"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: Any, told: str) -> None:
    written(tmp_path, {name: content})
    with pytest.raises(UserError, match=told) as refused:
        rows(tmp_path, paths=[name])
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.txt.gz", b"a" * 5000), ("t.json.gz", b"[" + b" " * 5000 + b"]"), ("t.txt", b"a" * 5000),
     ("t.json.gz", b'{"text":\n' + b" " * 5000 + b'"a"}')],
)  # fmt: skip
def test_no_more_is_unpacked_than_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 4000.0 * _compressed.SHARE)
    monkeypatch.setattr(_compressed, "LONGEST", 10_000)
    written(tmp_path, {name: gzip.compress(content) if name.endswith(".gz") else content})
    with pytest.raises(UserError, match=rf"{name} holds more than 0\.0 GiB in one piece, .*: cut it into"):
        rows(tmp_path, paths=[name])


def test_a_line_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compressed, "LONGEST", 4000)
    written(tmp_path, {"t.jsonl": '{"text": "a"}\n{"text": "' + "b" * 5000 + '"}\n'})
    with pytest.raises(UserError, match=r"t\.jsonl, line 2: this line has more than"):
        rows(tmp_path, paths=["t.jsonl"])


def test_what_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, {"t.jsonl": LINES, "a.txt": "a"})

    def full(path: Path) -> Any:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(_files, "opened", full)
    for name in ("t.jsonl", "a.txt"):
        with pytest.raises(UserError, match=rf"^cannot read {name} \(Too many open files\)\.$"):
            rows(tmp_path, paths=[name])


def test_a_table_of_which_two_columns_have_one_name(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet has two columns 'text'"):
        rows(tmp_path, paths=["t.parquet"])


@pytest.mark.parametrize(("name", "content"), [
    ("t.json", "\ufeff" + json.dumps([{"text": "a"}, {"text": "b"}], indent=1)),
    ("t.json", '\ufeff{"text": "a"}\n{"text": "b"}\n'),
    ("t.json", '\ufeff{\n "text": "a"\n}\n{\n "text": "b"\n}\n'),
    ("t.json", '\n\n{"text": "a"}\r\n\r\n{"text": "b"}'),
    ("t.jsonl", '\ufeff{"text": "a"}\r\n \r\n{"text": "b"}'),
    ("t.csv", '\ufefftext\r\na\r\n\r\n"b"\r\n')])
def test_marks_and_ends_of_lines_are_no_mistakes(tmp_path: Path, name: str, content: str) -> None:
    written(tmp_path, {name: content})
    assert [r["text"] for r in rows(tmp_path, paths=[name])] == ["a", "b"]


def test_objects_over_several_lines_have_the_line_that_they_begin_in(tmp_path: Path) -> None:
    written(tmp_path, {"t.json": '{\n "text": "a"\n}\n\n{\n "text": "b"\n}\n'})
    assert [r["id"] for r in rows(tmp_path, paths=["t.json"])] == ["t/t.json:1", "t/t.json:5"]


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    written(tmp_path, {"t.csv": f'text\n"{"word " * 40_000}"\n'})
    assert len(rows(tmp_path, paths=["t.csv"])[0]["text"]) == 200_000


def test_times_that_python_has_none_for(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "ns": pa.array([1, 10**18 + 1], pa.timestamp("ns")),
                      "far": pa.array([0, 2**60], pa.timestamp("us")), "near": [datetime(2020, 1, 1)] * 2})
    pq.write_table(table, tmp_path / "t.parquet")
    told = [json.loads(r["metadata"]) for r in rows(tmp_path, paths=["t.parquet"])]
    assert told[0]["ns"] == "1970-01-01 00:00:00.000000001" and told[1]["far"] > "30000"
    assert told[0]["near"] == "2020-01-01 00:00:00"


@pytest.mark.parametrize("between", ["\r\n\r\n", "\n \t\n", "\r\r", "\n\u00a0\n"])
def test_blank_lines_of_every_kind_cut(tmp_path: Path, between: str) -> None:
    text = between.join(f"paragraph {i} " + "word " * 30 for i in range(20))
    written(tmp_path, {"a.txt": text.encode()})
    found = [r["text"] for r in rows(tmp_path, paths=["a.txt"], piece=150)]
    assert len(found) == 20 and "".join(found) == text
