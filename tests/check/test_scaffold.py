"""A new method of each kind: it passes every law as it is written, and only its own test asks for more."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment
from trainwright.check import battery, scaffold
from trainwright.check.subject import Subject, load
from trainwright.core.card import kinds
from trainwright.core.errors import UserError
from trainwright.papers import library


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for room in (
        "data",
        "data/order",
        "data/filter",
        "optim",
        "finetune",
        "pretrain",
        "merge",
        "evaluate",
        "search",
    ):
        (tmp_path / "src" / "trainwright" / room).mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / "trainwright" / room / "__init__.py").touch()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_a_new_method_passes_every_law(kind: str, checkout: Path, tmp_path: Path) -> None:
    folder = "evaluate" if kind == "Decode" else None
    method, test, paper = scaffold.write("a_new_one", kind, folder, checkout)
    assert method.parent.relative_to(checkout / "src" / "trainwright") == test.parent.relative_to(
        checkout / "tests"
    )
    found = library.read(paper.parent)["a-new-one"]
    assert found.methods == ("a_new_one",) and not found.claims
    assert load(str(method)).__name__ == "ANewOne" and "TheMethod" not in method.read_text()
    (tmp_path / "runs").mkdir()
    subject = Subject(str(method), tmp_path / "runs")
    for law in (law for law in battery.laws_for(load(str(method))) if law is not None):
        assert battery.problem(law, subject) == "", law.name


def test_a_paper_that_has_a_file_keeps_it(checkout: Path) -> None:
    mine = checkout / "src" / "trainwright" / "papers" / "a-new-one.toml"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert len(scaffold.write("a_new_one", "Update", "optim", checkout)) == 2 and mine.read_text() == "mine"


@pytest.mark.slow
def test_its_own_test_is_still_to_be_written(checkout: Path) -> None:
    method, test, _ = scaffold.write("a_new_one", "Update", "optim", checkout)
    words = test.read_text().replace("trainwright.optim.a_new_one", "a_new_one")
    (method.parent / test.name).write_text(words)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.name],
        cwd=method.parent,
        env=environment() | {"PYTHONPATH": str(Path(scaffold.__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "write the fact that makes the paper work" in done.stdout


@pytest.mark.parametrize(
    ("name", "kind", "folder", "words"),
    [
        ("ANewOne", "Update", None, "no name in snake_case"),
        ("a_new_one", "Updat", None, r"no kind 'Updat' \(did you mean 'Update'"),
        ("a_new_one", "Update", "optimm", "no folder 'optimm'"),
        ("a_new_one", "Curate", "data/filters", r"did you mean 'data/filter'"),
        ("adamw", "Update", None, "there is a method 'adamw' already"),
    ],
)
def test_a_wrong_wish_is_refused(
    name: str, kind: str, folder: str | None, words: str, checkout: Path
) -> None:
    with pytest.raises(UserError, match=words):
        scaffold.write(name, kind, folder, checkout)


def test_nothing_is_overwritten(checkout: Path, tmp_path: Path) -> None:
    scaffold.write("a_new_one", "Curate", "data/filter", checkout)
    with pytest.raises(UserError, match="exists already"):
        scaffold.write("a_new_one", "Curate", "data/filter", checkout)
    with pytest.raises(UserError, match="no checkout of Trainwright"):
        scaffold.write("a_new_one", "Curate", None, tmp_path / "src")


def test_the_usual_place_is_where_most_of_a_kind_are() -> None:
    assert scaffold._usual("Optimizer") == "optim" and scaffold._usual("Arithmetic") == "merge"
    assert scaffold._usual("Task") == "evaluate", (
        "there is none yet: where evaluators are, of which it is one"
    )


def test_every_kind_has_a_template() -> None:
    files = {f.stem for f in scaffold.TEMPLATES.glob("[!_]*.py")}
    assert files == {scaffold._snake(kind) for kind in kinds()}


@pytest.mark.parametrize("name", ["class", "none", "update", "a" * 61])
def test_words_of_python_and_kinds_are_no_names(name: str, checkout: Path) -> None:
    with pytest.raises(UserError, match="cannot be the name of a method"):
        scaffold.write(name, "Update", None, checkout)
    assert not [*checkout.rglob(f"*{name}*.py")]
