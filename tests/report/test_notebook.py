"""What a notebook shows of a plan, an artifact, a store and a comparison."""
from __future__ import annotations

import re
from pathlib import Path

from rich.text import Text

import trainwright as tw
from tests.report.comparison import sample
from trainwright import api
from trainwright.report import notebook


def test_text_and_html_say_the_same() -> None:
    line = Text.assemble(("red", "red"), " and <b>plain</b>")
    assert notebook.text(line) == "red and <b>plain</b>"
    made = notebook.html(line)
    assert made.startswith("<pre") and "&lt;b&gt;plain" in made and "color: #800000" in made


def test_a_plan_and_a_store(life: Path) -> None:
    recipe = tw.load(life)
    planned = api.plan(tw.load({"stage": [{"name": "corpus", "kind": "corpus", "vocab_size": 300, "methods": [
        {"use": "text", "paths": [str(life.parent / "texts")]}]}]}), life.parent / "store")
    assert "1 of 1 stages to run" in str(planned) and "corpus" in planned._repr_html_()
    shown = re.sub(r"<.*?>", " ", api.Store(life.parent / "store")._repr_html_())
    assert "holds no artifact yet" in " ".join(shown.split())
    assert recipe.title == "A tiny life"


def test_a_comparison() -> None:
    result = api.Result(sample.result())
    assert result["arms"][0]["name"] in str(result) and "verdict" in result._repr_html_()


def test_all_names_are_completed() -> None:
    assert {*tw.__all__, "__version__"} <= set(dir(tw)) and dir(tw) == sorted(dir(tw))
