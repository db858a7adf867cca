"""The house rules, read from the source without importing it: sizes, laws of import, and
habits that are not taken."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from trainwright.core import card, registry
from trainwright.core.settings import field_docs

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "trainwright"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
METHODS = [
    f
    for folder in registry.FOLDERS
    for f in sorted((PACKAGE / folder).rglob("*.py"))
    if not f.stem.startswith("_")
]
MOST_LINES = 400
"""No file is cut to meet this number; one that passes it most likely has two subjects."""
STANDING_IN = {"check", "planning"}
"""Rooms with methods of their own that no recipe names: they stand in for others where a stage is tried."""
METHOD_FOLDERS = set(registry.FOLDERS)
BELOW: dict[str, set[str]] = {"core": set(), "families": {"core"}, "corpus": {"core", "families", "storage"}}
"""What each room may import beside itself; a room that is not here may import all but the command line."""
BELOW["storage"] = {"core"}
BELOW["lm"] = {"core", "families", "corpus", "storage"}
BELOW["life"] = {"core", "families", "storage"}
BELOW["stages"] = {"core", "families", "corpus", "life", "storage"}
BELOW["planning"] = BELOW["stages"] | {"stages"}
BELOW["check"] = BELOW["planning"] | {"planning", "lm"}
BELOW |= {folder: METHOD_FOLDERS | BELOW["lm"] | {"lm"} for folder in METHOD_FOLDERS}
BELOW["papers"] = {"core", "storage"}
BELOW["compare"] = BELOW["check"] | {"papers"}
BELOW["report"] = BELOW["compare"] | {"compare"}


def rel(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name (below the package) of everything of ours that a file imports when it runs."""
    for_types = {
        n
        for node in ast.walk(tree(file))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for part in node.body
        for n in ast.walk(part)
    }
    for node in ast.walk(tree(file)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [n.name for n in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{rel(file)}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{n.name}" for n in node.names]
        for name in names if node not in for_types else ():
            if name.startswith("trainwright."):
                yield node.lineno, name.removeprefix("trainwright.")


def calls(file: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call and the dotted name that it calls."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def of_a_kind(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and bool(
        {ast.unparse(b).split(".")[-1] for b in node.bases} & kind_names()
    )


def method_class(file: Path) -> ast.ClassDef:
    """The class of a method file: the one whose name in snake case is the file's."""
    found = [n for n in tree(file).body if of_a_kind(n)]
    assert len(found) == 1, (
        f"{rel(file)}: {len(found)} classes derive directly from a kind; a method file has one"
    )
    assert isinstance(found[0], ast.ClassDef)
    return found[0]


@cache
def kind_names() -> frozenset[str]:
    """The kinds: the classes of ``core/method.py`` that derive from ``Method``, directly or not."""
    found = {"Method"}
    for node in tree(PACKAGE / "core" / "method.py").body:
        if isinstance(node, ast.ClassDef) and {ast.unparse(b) for b in node.bases} & found:
            found.add(node.name)
    return frozenset(found - {"Method"})


def report(problems: list[str]) -> None:
    assert not problems, "\n".join(problems)


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 10 and METHODS and TESTS


def test_files_are_small() -> None:
    report([f"{rel(f)}: {lines(f)} lines: is it one subject?" for f in SOURCES if lines(f) > MOST_LINES])


def test_functions_are_short() -> None:
    functions = (
        (f, n)
        for f in SOURCES
        for n in ast.walk(tree(f))
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    report([f"{rel(f)}:{n.lineno}: {n.name} has {n.end_lineno - n.lineno} lines, at most 40"
            for f, n in functions if n.end_lineno is not None and n.end_lineno - n.lineno > 40])


def test_no_keywords_are_passed_on_unseen() -> None:
    """``**kwargs`` handed to something else hides what is accepted. ``__init_subclass__`` must
    hand on what it is given."""
    problems = []
    for file in SOURCES:
        for function in ast.walk(tree(file)):
            if (
                not isinstance(function, ast.FunctionDef)
                or function.args.kwarg is None
                or function.name == "__init_subclass__"
            ):
                continue
            given = function.args.kwarg.arg
            for call in (n for n in ast.walk(function) if isinstance(n, ast.Call)):
                if any(k.arg is None and ast.unparse(k.value) == given for k in call.keywords):
                    problems.append(f"{rel(file)}:{call.lineno}: {function.name} passes **{given} on")
    report(problems)


def test_no_probing_and_no_warnings() -> None:
    louder = "make it an error, or a number in the report"
    banned = {"hasattr": "say which type it is instead of probing", "warnings.warn": louder, "warn": louder}
    report(
        [
            f"{rel(f)}:{c.lineno}: {name}: {banned[name]}"
            for f in SOURCES
            for c, name in calls(f)
            if name in banned
        ]
    )


SEEDING = re.compile(
    r"((torch(\.cuda|\.random)?|(np\.|numpy\.)?random|transformers)\.)?(manual_seed(_all)?|seed|set_seed)"
)


@cache
def forks() -> frozenset[str]:
    """Names of context managers that fork the global generators: torch's, and ours that yield within it."""
    names = {"fork_rng"}
    for file in SOURCES:
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef) and "contextmanager" in " ".join(
                map(ast.unparse, node.decorator_list)
            ):
                within = [
                    n for n in ast.walk(node) if isinstance(n, ast.With) and "fork_rng" in ast.unparse(n)
                ]
                names |= (
                    {node.name}
                    if any(isinstance(n, ast.Yield) for w in within for n in ast.walk(w))
                    else set()
                )
    return frozenset(names)


@cache
def forked(file: Path) -> set[int]:
    """Lines within such a fork: what is drawn there leaves the global generators as they were."""
    inside: set[int] = set()
    for node in ast.walk(tree(file)):
        entered = [i.context_expr for i in node.items] if isinstance(node, ast.With) else []
        if any(isinstance(e, ast.Call) and ast.unparse(e.func).split(".")[-1] in forks() for e in entered):
            inside |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return inside


def test_no_global_seed() -> None:
    report(
        [
            f"{rel(f)}:{c.lineno}: {name} sets a global seed; use ctx.rng"
            for f in SOURCES
            for c, name in calls(f)
            if SEEDING.fullmatch(name) and c.lineno not in forked(f)
        ]
    )


DRAWING = {
    "torch": {"rand", "randn", "randint", "randperm", "multinomial", "bernoulli", "normal"},
    "np.random": {
        "rand",
        "randn",
        "randint",
        "random",
        "permutation",
        "shuffle",
        "choice",
        "normal",
        "uniform",
    },
    "random": {
        "random",
        "randint",
        "shuffle",
        "choice",
        "choices",
        "sample",
        "uniform",
        "gauss",
        "randrange",
    },
}
IN_PLACE = {
    "normal_",
    "uniform_",
    "bernoulli_",
    "random_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
    "multinomial",
}


def test_every_draw_names_its_generator() -> None:
    problems = []
    for file in SOURCES:
        inside = forked(file)
        for call, name in calls(file):
            head, _, last = name.rpartition(".")
            draws = last in DRAWING.get(head, ()) or (last in IN_PLACE and head not in DRAWING)
            named = any(k.arg == "generator" for k in call.keywords)
            if draws and not named and call.lineno not in inside:
                problems.append(
                    f"{rel(file)}:{call.lineno}: {name} draws from a global generator; give it a generator"
                )
    report(problems)


def test_imports_point_one_way() -> None:
    problems = []
    for file in SOURCES:
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for line, name in imported(file):
            other = name.split(".")[0]
            where = f"{rel(file)}:{line}: {room} imports {name}"
            if room in BELOW and other not in BELOW[room] | {room}:
                problems.append(f"{where}; {room} knows {', '.join(sorted(BELOW[room])) or 'only itself'}")
            elif other.startswith("cli") and not room.startswith(("cli", "__main__")):
                problems.append(f"{where}; nothing imports the command line")
    report(problems)


def test_every_room_has_its_place() -> None:
    """A new folder says what it may import."""
    rooms = {f.relative_to(PACKAGE).parts[0] for f in SOURCES if f.parent != PACKAGE}
    assert rooms == BELOW.keys()


def libraries() -> set[str]:
    """Packages that we depend on; core may name those, even where the bridge to one is called like it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    return {re.split(r"[\[<>=!~ ]", one)[0] for one in wanted}


def test_core_names_no_method() -> None:
    """Not even as a string: what stands in when a recipe names nothing is marked ``default``
    by the method itself."""
    problems = []
    names = {f.stem for f in METHODS} - libraries()
    for file in (f for f in SOURCES if f.parent.name == "core"):
        keys = {id(k) for n in ast.walk(tree(file)) if isinstance(n, ast.Dict) for k in n.keys}
        for node in ast.walk(tree(file)):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value in names
                and id(node) not in keys
            ):
                problems.append(f"{rel(file)}:{node.lineno}: names the method {node.value!r}")
    report(problems)


def test_the_registry_knows_every_kind_and_folder() -> None:
    """It reads names only, so that listing imports nothing; here they are held against
    the classes themselves."""
    assert card.kinds().keys() == kind_names()
    elsewhere = [
        f for f in SOURCES if f not in METHODS and not f.stem.startswith("_") and f.name != "method.py"
    ]
    strays = [
        (f, n) for f in elsewhere for n in tree(f).body if of_a_kind(n) and not STANDING_IN & set(f.parts)
    ]
    report([f"{rel(f)}:{n.lineno}: a method outside the folders of methods" for f, n in strays])


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
def test_method_is_one_class_named_by_its_file(file: Path) -> None:
    name = method_class(file).name
    assert re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower() == file.stem


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
def test_method_has_a_test(file: Path) -> None:
    assert (ROOT / "tests" / file.parent.relative_to(PACKAGE) / f"test_{file.stem}.py").is_file()


@pytest.mark.parametrize("file", METHODS, ids=lambda f: f.stem)
def test_method_says_what_it_is(file: Path) -> None:
    node = method_class(file)
    docs = field_docs(node)
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    settings = [n for n in fields if "ClassVar" not in ast.unparse(n.annotation)]
    assert ast.get_docstring(tree(file)) or ast.get_docstring(node), "a method has a docstring"
    assert not [ast.unparse(n.target) for n in settings if not docs.get(ast.unparse(n.target))], (
        "every setting has a docstring"
    )
    needed = {ast.unparse(n.target) for n in settings if n.value is None}
    assert needed <= example_keys(node), f"example gives no value to {needed - example_keys(node)}"


def example_keys(node: ast.ClassDef) -> set[str]:
    """The settings that the class attribute ``example`` names."""
    for one in node.body:
        targets = (
            [one.target]
            if isinstance(one, ast.AnnAssign)
            else one.targets
            if isinstance(one, ast.Assign)
            else []
        )
        value = one.value if isinstance(one, (ast.AnnAssign, ast.Assign)) else None
        if any(ast.unparse(t) == "example" for t in targets):
            if isinstance(value, ast.Dict):
                return {k.value for k in value.keys if isinstance(k, ast.Constant)}
            if isinstance(value, ast.Call):
                return {k.arg for k in value.keywords if k.arg}
    return set()


FOLDERS = ("docs", "benchmarks", "recipes")
WRITTEN = [p for d in FOLDERS for p in sorted((ROOT / d).rglob("*")) if p.suffix in {".md", ".py", ".toml"}]
PROSE = [*SOURCES, *TESTS, *WRITTEN, *sorted(ROOT.glob("*.md"))]


def test_nothing_is_left_to_do_and_no_machine_is_named() -> None:
    """Unfinished work is finished or written down as a limit; nobody else has the folders of this machine."""
    left = re.compile(r"\b(" + "|".join(("TO" "DO", "FIX" "ME", "X" "XX", "HA" "CK")) + r")\b")
    machine = re.compile(r"(?<![\w./:-])/(work|home|root|mnt|Users|opt)/\w")
    numbered = (
        (f, i, line) for f in PROSE for i, line in enumerate(f.read_text(encoding="utf-8").splitlines(), 1)
    )
    report(
        [
            f"{rel(f)}:{i}: {line.strip()[:80]}"
            for f, i, line in numbered
            if left.search(line) or machine.search(line)
        ]
    )


def asserting(file: Path) -> set[str]:
    """Functions of a test file that assert something, by themselves or through another of the file."""
    functions = {n.name: n for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef)}
    good: set[str] = set()
    grown = True
    while grown:
        now = {name for name, node in functions.items() if any(_asserts(n, good) for n in ast.walk(node))}
        grown, good = now != good, now
    return good


def _asserts(node: ast.AST, good: set[str]) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    last = ast.unparse(node.func).split(".")[-1]
    return (
        last in good
        or last in ("raises", "warns", "fail")
        or last.startswith("assert_")
        or last.startswith("check")
    )


@pytest.mark.parametrize("file", [f for f in TESTS if f.name.startswith("test_")], ids=rel)
def test_every_test_asserts(file: Path) -> None:
    good = asserting(file)
    names = [
        n.name for n in ast.walk(tree(file)) if isinstance(n, ast.FunctionDef) and n.name.startswith("test")
    ]
    assert names, "a test file has tests"
    assert not [n for n in names if n not in good], "these tests assert nothing"


PICKLES = (
    "pickle.",
    "torch.load",
    "torch.save",
    "np.load",
    "np.save",
    "joblib.",
    "shelve.",
    "marshal.",
    "dill.",
)
"""Calls that read objects, or write what has to be read so."""


def test_nothing_is_unpickled() -> None:
    """Data is data. Processes of one run, which trust each other, talk through a pipe."""
    report(
        [
            f"{rel(f)}:{call.lineno}: {name}: write safetensors, Parquet or JSON"
            for f in SOURCES
            if rel(f) != "src/trainwright/planning/worker.py"
            for call, name in calls(f)
            if name.startswith(PICKLES)
        ]
    )


def test_nothing_is_kept_that_is_not_the_project_s() -> None:
    """What Git keeps is text of ours, and a few pictures: no package that someone fetched, nothing large."""
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    kept = [ROOT / name for name in told.stdout.split("\0") if name] if not told.returncode else []
    report(
        [
            f"{rel(f)}: {f.stat().st_size:,} bytes of a sort that is not kept"
            for f in kept
            if f.is_file() and (f.suffix in (".whl", ".gz", ".zip", ".tar") or f.stat().st_size > 1 << 20)
        ]
    )
