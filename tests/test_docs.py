"""The documentation is true: commands, methods, links, recipes and Python in it are
held against the package."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import Warm, environment
from trainwright.compare import spec as specs
from trainwright.compare.compare import Comparison
from trainwright.core import recipe as recipes
from trainwright.core import registry
from trainwright.core.card import read
from trainwright.core.stage import stages
from trainwright.papers import evidence
from trainwright.papers.library import papers
from trainwright.storage.store import Store

ROOT = Path(__file__).parents[1]
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = "".join(f.read_text(encoding="utf-8") for f in WRITTEN)
README = ROOT / "README.md"


def rel(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def generator() -> ModuleType:
    """``docs/generate.py``, which is a program and no part of the package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def pages() -> dict[str, str]:
    return dict(generator().pages())


def blocks(file: Path, language: str) -> list[str]:
    found = re.findall(
        rf"^( *)```{language}\n(.*?)^ *```", file.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


def every(language: str) -> list[Any]:
    return [
        pytest.param(f, b, id=f"{rel(f)}-{i}") for f in WRITTEN for i, b in enumerate(blocks(f, language))
    ]


def command_names() -> list[str]:
    import typer

    from trainwright.cli import app

    def names(command: Any, path: str) -> Iterator[str]:
        inner = getattr(command, "commands", None)
        if isinstance(inner, dict):
            for name, one in inner.items():
                yield from names(one, f"{path} {name}")
        else:
            yield path
            assert command.help and len(command.help) > 20, f"{path} has no help that is worth reading"
            assert all(p.help for p in command.params if p.name != "help"), f"{path}: an argument has no help"
    return list(names(typer.main.get_command(app), "trainwright"))


@pytest.mark.slow
def test_every_command_is_told_of() -> None:
    generated = pages()["_generated/commands.md"]
    for name in command_names():
        assert f"### {name}\n" in generated
        assert name in TEXTS or name.removeprefix("trainwright ") in TEXTS, (
            f"no written page speaks of `{name}`"
        )


def test_every_command_in_the_pages_exists() -> None:
    known = {tuple(name.split()[1:]) for name in command_names()}
    lines = [line.strip() for f in WRITTEN for b in blocks(f, "bash") for line in b.splitlines()]
    used = [
        m.group(1).split()
        for line in lines
        if (m := re.search(r"(?:^|/|-m )trainwright (.+?)(?: #|$)", line))
    ]
    assert used
    for words in used:
        assert {tuple(words[:1]), tuple(words[:2])} & known, (
            f"trainwright {' '.join(words)}: there is no such command"
        )


def test_every_make_target_in_the_pages_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    used = set(re.findall(r"(?:`|^)make ([a-z]+)", TEXTS, flags=re.M))
    assert used and used <= targets


def test_every_extra_is_told_of() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = (ROOT / "docs" / "install.md").read_text()
    assert not [e for e in extras if f"`{e}`" not in told]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(registry.cards()))
def test_card_renders(name: str) -> None:
    card, page = registry.cards()[name], pages()[f"methods/{name}.md"]
    assert page.startswith(f"# {name}\n") and f"({name}.md)" in pages()["methods/index.md"]
    assert all(f"| `{field}` |" in page for field, *_ in card.fields)
    assert page.count("```") % 2 == 0
    line = tomllib.loads(page.split("```toml\n")[1].split("```")[0])["methods"][0]
    assert line["use"] == name and {f for f, _, default, _ in card.fields if not default} <= set(line)


def test_every_stage_and_key_is_told_of() -> None:
    told = (ROOT / "docs" / "recipes.md").read_text()
    for kind, cls in stages().items():
        assert f'--8<-- "_generated/stage-{kind}.md"' in told
        keys = {"from" if f.name == "inputs" else f.name for f in dataclasses.fields(cls)}
        keys -= set() if cls.acting else {"from", "methods"}
        assert not [k for k in keys if f"| `{k}` |" not in pages()[f"_generated/stage-{kind}.md"]]


@pytest.mark.parametrize(("file", "text"), every("toml"))
def test_recipes_in_the_pages_are_right(file: Path, text: str, tmp_path: Path) -> None:
    """Whole recipes are read and their methods made; a method that a page only invents
    is one of its own file."""
    table = tomllib.loads(text)
    for number, one in enumerate(table.get("stage", ())):
        for method in one.get("methods", ()):
            assert registry.create(method, tmp_path, f"{rel(file)}: stage {number}")
    for name in ("base", "corpus", "coder", "reader"):     # what a stage that is shown alone is made from
        (tmp_path / name).mkdir()
    if table.get("stage"):
        assert recipes.parse(table, tmp_path / "recipe.toml").stages


def beside_texts(file: Path, folder: Path) -> Path:
    """A recipe that reads fetched texts (``benchmarks/fetch.py``), where a line each stands in for them."""
    names = re.findall(r'"\.\./(\.cache/texts/[\w.]+)"', file.read_text(encoding="utf-8"))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a line", "label": "a"}\n', encoding="utf-8")
    return Path(shutil.copy(file, folder / ".cache")) if names else file


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.toml")), ids=rel)
def test_recipes_are_right(file: Path, tmp_path: Path) -> None:
    file = beside_texts(file, tmp_path)
    if "compare" in tomllib.loads(file.read_text()):
        Comparison(specs.load(file), Store(tmp_path)).check()
        return
    stages_of = [one for whole in recipes.load(file).stages for one in (whole, *getattr(whole, "stage", ()))]
    for stage in stages_of:  # those of a round too
        assert stage.kind == "repeat" or [
            registry.create(m, file.parent, f"{file.name}: {stage.name}") for m in stage.methods
        ]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("file", WRITTEN, ids=rel)
def test_links_lead_somewhere(file: Path) -> None:
    shown = re.sub(r"```.*?```|<!--.*?-->", "", file.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", shown):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        generated = there.relative_to(ROOT / "docs").as_posix() if (ROOT / "docs") in there.parents else ""
        assert there.exists() or generated in pages(), f"{rel(file)}: {target} leads nowhere"
        if anchor:
            text = there.read_text(encoding="utf-8") if there.exists() else pages()[generated]
            assert anchor in anchors(text), f"{rel(file)}: {target}: there is no such heading"


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    import trainwright
    assert project["version"] == trainwright.__version__
    assert f"## {project['version']}, " in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_constraints_pin_every_package_that_is_needed() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert not [w for w in wanted if re.split(r"[\[<>=]", w)[0].lower() not in pinned]


TINY = """
[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
test = 0.3
methods = [{ use = "text", paths = ["../notes/", "../code/"] }]

[[stage]]
name = "base"
kind = "train"
from = { data = "corpus" }
model = { type = "gpt2", n_embd = 16, n_layer = 1, n_head = 2, n_positions = 64 }
steps = 2
batch_size = 2
methods = [{ use = "pack", length = 32 }, { use = "next_token" }, { use = "adamw" }]

[[stage]]
name = "adapt"
kind = "train"
from = { model = "base", data = "corpus" }
steps = 2
batch_size = 2
methods = [{ use = "pack", length = 32 }, { use = "next_token" }, { use = "adamw" }]
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with what the pages' programs speak of: a quickstart, made small, and notes to read."""
    for folder in ("notes", "code"):
        (tmp_path / folder).mkdir()
    for i in range(40):
        (tmp_path / "code" / f"{i}.py").write_text(
            "".join(f"def f{j}(x):\n    return x + {i * j}\n\n\n" for j in range(12))
        )
        words = " ".join(f"{(i * 31 + j * 7) % 97} apples and {j} pears" for j in range(30))
        (tmp_path / "notes" / f"{i}.md").write_text(f"# Note {i}\n\n{words}\n")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.toml").write_text(TINY)
    return tmp_path


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=250
    )


@pytest.mark.slow
@pytest.mark.parametrize(("file", "text"), [p for p in every("python") if "ClassVar" not in p.values[1]])
def test_python_in_the_pages_runs(file: Path, text: str, workplace: Path, warm: Warm) -> None:
    program = warm.start("-c", text, cwd=workplace)
    _, said = program.communicate(250)
    assert program.poll() == 0, f"{rel(file)}\n{text}\n{said[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(("file", "text"), [p for p in every("python") if "ClassVar" in p.values[1]])
def test_method_in_the_pages_is_one(file: Path, text: str, tmp_path: Path) -> None:
    name = re.findall(r"^class (\w+)", text, flags=re.M)[0]
    mine = tmp_path / (re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() + ".py")
    mine.write_text(text)
    card = read(mine, mine.stem, "")
    made = registry.create({"use": f"./{mine.name}"} | generator().example_of(mine), tmp_path, rel(file))
    assert made.name == mine.stem and card.fields and all(doc for *_, doc in card.fields)


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed")
    for name in ("docs", "mkdocs.yml"):
        source = ROOT / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    done = python(tmp_path, "-m", "mkdocs", "build", "--strict", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    made = {f.stem for f in (tmp_path / "site" / "methods").glob("*.html")}
    assert set(registry.cards()) <= made
    page = (tmp_path / "site" / "index.html").read_text()
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page), (
        "the site loads nothing from elsewhere"
    )
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text())
    words = {word.lower() for doc in index["docs"]
             for word in re.split(index["config"]["separator"], doc["text"] + " " + doc["title"])}
    assert {"sharegpt", "early", "eval", "alpaca"} <= words, "what people search for is a word by itself"


def test_the_map_and_the_index_lead_to_every_paper() -> None:
    found = pages()
    assert '"links":true' in found["map.html"] and "papers/${p.id}.html" in found["map.html"]
    for name in papers():
        assert f"papers/{name}.md" in found and f'"id":"{name}"' in found["map.html"]


def test_the_readme_counts_the_evidence() -> None:
    count = Counter[str]()
    for paper in papers().values():
        count.update(evidence.words(paper))
    tested = [count[w] for w in ("reproduced", "weaker", "no difference", "contradicted")]
    said = ("of {} claims that were measured {} were reproduced at this scale, {} only in direction, {} made "
            "no difference, and {} were contradicted.")
    readme = " ".join(README.read_text(encoding="utf-8").split())
    assert said.format(sum(tested), *tested) in readme
