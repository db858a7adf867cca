"""The text that is on every machine: real, the same each time, and no part of it in two documents."""
from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.corpora import build
from trainwright.core import settings
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.data.sources import _python_sources as sources
from trainwright.data.sources.python_library import PythonLibrary

LONG = (
    "This is a sentence of many plain words that says what a thing does. And here is one more of them, so "
    "that the whole is long enough to be counted as prose by anybody who cares to read it to its end, which "
    "some people do."
)
SOURCE = f'''"""{LONG} one."""
import os


class Thing:
    r"""{LONG} two.

    With é and more.
    """

    def only(self):
        """{LONG} three."""

    def short(self):
        """Too short."""
        return "é"; """{LONG} a string, no docstring"""

    def line(self): """{LONG} four."""


if os.name:
    def only():
        """{LONG} five."""
        return """{LONG} data"""


def only():
    """{LONG} six."""; return 1
'''


def read(**given: Any) -> list[dict[str, Any]]:
    table = settings.make(PythonLibrary, given, "python_library").apply(documents.empty(), Context())
    return [row for batch in documents.stream(table) for row in batch.to_pylist()]


@pytest.fixture(scope="module")
def some() -> list[dict[str, Any]]:
    return read(megabytes=0.3)


@pytest.mark.slow
def test_both_domains_are_filled_and_no_more(some: list[dict[str, Any]]) -> None:
    for domain in ("code", "prose"):
        size = sum(len(r["text"].encode()) for r in some if r["domain"] == domain)
        assert 0.3e6 <= size <= 0.3e6 + sources.LARGEST
    assert {r["domain"] for r in read(megabytes=0.05, domains=["prose"])} == {"prose"}


@pytest.mark.slow
def test_it_is_the_same_each_time_and_names_no_place_of_this_machine(some: list[dict[str, Any]]) -> None:
    assert read(megabytes=0.3) == some
    assert len({r["id"] for r in some}) == len({r["text"] for r in some}) == len(some)
    parts = [r["id"].split("/") for r in some]
    assert not [p for p in parts if ".." in p or "" in p or Path.home().name in p]
    assert all(r["source"].split()[0] == r["id"].split("/")[1] for r in some)


def test_code_is_code_and_prose_is_not_in_it(some: list[dict[str, Any]]) -> None:
    code = [r["text"] for r in some if r["domain"] == "code"]
    assert len(code) > 5
    for text in code:
        assert sources.parse(text, 200).prose == {}  # type: ignore[union-attr]
    prose = [r["text"] for r in some if r["domain"] == "prose"]
    assert len(prose) > 50 and all(len(text) >= 200 and sources.is_prose(text) for text in prose)


def test_docstrings_are_cut_out_and_the_rest_stays_a_program() -> None:
    parsed = sources.parse(SOURCE, 200)
    assert parsed is not None
    assert {name: text.split()[-1] for name, text in parsed.prose.items()} == {
        "": "one.", "Thing": "more.", "Thing.only": "three.", "Thing.line": "four.", "only": "five.",
        "only:2": "six."}
    assert LONG not in parsed.code.replace(f"{LONG} data", "").replace(f"{LONG} a string", "")
    assert "Too short" in parsed.code
    assert parsed.prose["Thing"] == f"{LONG} two.\n\nWith é and more."

    def without(tree: ast.Module) -> str:
        for node in ast.walk(tree):
            if isinstance(node, sources.Documented):
                gone = len(ast.get_docstring(node) or "") > 200 or ast.unparse(node.body[0]) == "..."
                node.body = (node.body[1:] or [ast.Pass()]) if gone else node.body
        return ast.unparse(tree)

    assert without(ast.parse(parsed.code)) == without(ast.parse(SOURCE))


def test_what_does_not_parse_or_is_no_prose_is_left_out() -> None:
    assert sources.parse("def (:\n", 10) is None and sources.parse("\x00", 10) is None
    assert not sources.is_prose("| a | 1 |\n" * 40) and not sources.is_prose(">>> f(x)\n" * 40)
    assert sources.is_prose(LONG)


def test_packages_take_turns() -> None:
    file = {n: [sources.File(n, f"{n}{i}.py", Path()) for i in range(k)] for n, k in (("a 1", 3), ("b 1", 1))}
    found = [f.release for f in sources.ordered(file)]
    assert found == ["a 1", "b 1", "a 1", "a 1"]
    assert [f.name for f in sources.ordered(file)] == [
        f.name for f in sources.ordered({n: fs[::-1] for n, fs in file.items()})
    ]


def test_requirements_are_those_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=2", "Jinja2 (>=3)", "torch ; extra == 'gpu'", "no-such-thing"]
    monkeypatch.setattr(sources.metadata, "requires", lambda _: lines)
    monkeypatch.setattr(sources, "releases", sources.releases.__wrapped__)      # what is known of a process
    assert sources._requirements("it") == ["Jinja2", "no-such-thing", "numpy"]
    found = sources.packages("it")
    assert [name.split()[0] for name in found] == ["python", "jinja2", "numpy"]
    assert PythonLibrary().depends(Path()) == repr(list(found))
    assert all(found.values())
    names = [f.name for files in found.values() for f in files]
    assert not [n for n in names if "/tests/" in n or n.startswith(("test/", "site-packages/"))]


def test_where_it_is_not_installed_the_standard_library_is_read() -> None:
    found = sources.packages("no-such-distribution-at-all")
    assert [name.split()[0] for name in found] == ["python"] and len(next(iter(found.values()))) > 200


@pytest.mark.parametrize(("given", "told"), [
    ({"domains": ["code", "poems"]}, r"domains are code and prose, not \['code', 'poems'\]"),
    ({"domains": []}, "domains are code and prose"), ({"megabytes": 0}, "megabytes must be positive")])
def test_mistakes_in_settings(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(**given)


@pytest.mark.slow
def test_a_corpus_of_it(tmp_path: Path) -> None:
    figures = build(tmp_path / "c", None, PythonLibrary(megabytes=0.1), vocab_size=500)
    assert set(figures["domains"]) == {"code", "prose"}
    assert figures["curated"][0]["out"] == figures["documents"]
