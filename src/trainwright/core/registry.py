"""Methods by name. A method's file name is its name; nothing else lists it, and listing imports none of them."""
from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from dataclasses import dataclass
from functools import cache
from importlib.abc import Loader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trainwright.core.errors import UserError, located, suggest
from trainwright.core.settings import field_docs, make

if TYPE_CHECKING:
    from trainwright.core.method import Method

ROOT = Path(__file__).parents[1]
FOLDERS = ("data", "pretrain", "optim", "finetune", "align", "compress", "merge", "evaluate", "search")


@dataclass(frozen=True)
class Card:
    """What a method says of itself, read from its source without importing it."""

    name: str
    folder: str
    kind: str
    file: Path
    summary: str
    doc: str
    default: bool
    fields: tuple[tuple[str, str, str, str], ...]
    """Name, type, default (as written; empty where the setting is needed) and docstring of each setting."""


KIND_NAMES = ("Curate", "Data", "Surgery", "Objective", "Weigh", "Update", "Optimizer", "Controller", "Arithmetic", "Evaluator",
              "Task", "ScalingLaw")
CLASS = rf"^class \w+\([^)]*\b(?:{'|'.join(KIND_NAMES)})\b[^)]*\):\n"
HEAD = re.compile(CLASS + r"(?:(?!    (?:def|async def|@)|\S).*\n)*", re.MULTILINE)
"""A method's class before its first function."""
REST = re.compile(r"(?:\s.*\n|\n)*")
SETTING = re.compile(r"^    \w+\s*[:=]", re.MULTILINE)


@cache
def cards() -> dict[str, Card]:
    """Every method that is installed, by name, sorted: ours and those of the entry points ``trainwright.methods``."""
    found: dict[str, Card] = {}
    files = [(f.stem, f.parent.relative_to(ROOT).as_posix(), f) for folder in FOLDERS
             for f in (ROOT / folder).rglob("*.py") if not f.stem.startswith("_")]
    for point in entry_points(group="trainwright.methods"):
        spec = importlib.util.find_spec(point.value.partition(":")[0])
        if spec is not None and spec.origin:
            files.append((point.name, "elsewhere", Path(spec.origin)))
    for name, folder, file in sorted(files):
        if name in found:
            raise UserError(f"two methods are called {name!r}: {found[name].file} and {file}.")
        found[name] = read_card(file, name, folder, brief=folder != "elsewhere")
    return found


def read_card(file: Path, name: str, folder: str, brief: bool = False) -> Card:
    """The card of the one method that ``file`` defines. ``brief``: no more of it is parsed than that takes."""
    tree = (_head(file) if brief else None) or _parsed(file)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and (kind := _kind(node)):
            doc = ast.get_docstring(node) or ast.get_docstring(tree) or ""
            module_doc = ast.get_docstring(tree) or doc
            whole = module_doc if doc in module_doc else f"{module_doc}\n\n{doc}"
            summary = module_doc.strip().split("\n")[0]
            return Card(name, folder, kind, file, summary, whole, _is_default(node), tuple(_fields(node)))
    raise UserError(f"{file}: no class that derives from a kind of method; see `trainwright new`.")


def _parsed(file: Path) -> ast.Module:
    """The syntax tree of a method's file, which may be a user's own and wrong."""
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: this is no Python: {error.msg}.") from None
    except (UnicodeDecodeError, ValueError):
        raise UserError(f"{file}: not a Python file in UTF-8.") from None


def _head(file: Path) -> ast.Module | None:
    """The syntax tree up to the first function of the method's class, a third of the time of all of it; None where settings may
    stand behind that, or the cut is in the middle of something."""
    text = file.read_text(encoding="utf-8")
    cut = HEAD.search(text)
    rest = REST.match(text, cut.end()) if cut else None
    if cut is None or rest is None or SETTING.search(rest[0]):
        return None
    try:
        return ast.parse(text[:cut.end()])
    except SyntaxError:
        return None


def _kind(node: ast.ClassDef) -> str:
    return next((name for base in node.bases if (name := ast.unparse(base).split(".")[-1]) in KIND_NAMES), "")


@cache
def kind_fields(kind: str) -> tuple[tuple[str, str, str, str], ...]:
    """The settings that every method of a kind has (``weight``, ``params``, ``lr``), read from ``method.py``."""
    tree = ast.parse((ROOT / "core" / "method.py").read_text(encoding="utf-8"))
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    found: dict[str, tuple[str, str, str, str]] = {}
    at: str | None = kind
    while at in classes:
        found = {f[0]: f for f in _fields(classes[at])} | found
        at = ast.unparse(classes[at].bases[0]) if classes[at].bases else None
    return tuple(found.values())


def _is_default(node: ast.ClassDef) -> bool:
    assigned = {ast.unparse(t): n.value for n in node.body if isinstance(n, (ast.Assign, ast.AnnAssign))
                for t in (n.targets if isinstance(n, ast.Assign) else [n.target])}
    value = assigned.get("default")
    return isinstance(value, ast.Constant) and value.value is True


def _fields(node: ast.ClassDef) -> list[tuple[str, str, str, str]]:
    docs = field_docs(node)
    return [(n.target.id, ast.unparse(n.annotation), ast.unparse(n.value) if n.value else "", docs.get(n.target.id, ""))
            for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            and "ClassVar" not in ast.unparse(n.annotation)]


def locate(use: str, root: Path, where: str) -> Path:
    """The source file of the method that a recipe calls ``use``: a name, or a path such as ``./mine.py``."""
    if use.endswith(".py"):
        file = (root / use).resolve()
        if not file.is_file():
            raise UserError(f"{where}: there is no file {file}.")
        return file
    if use not in cards():
        raise UserError(f"{where}: there is no method {use!r}{suggest(use, cards())}; `trainwright list` shows all.")
    return cards()[use].file


@cache
def load(file: Path) -> type[Method]:
    """The one method class that ``file`` defines."""
    from trainwright.core.method import KINDS, Method
    if ROOT in file.parents:
        module = importlib.import_module(".".join(("trainwright", *file.relative_to(ROOT).with_suffix("").parts)))
    else:
        name = f"trainwright_local_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        _execute(module, spec.loader, file)
    own = [v for v in vars(module).values()
           if isinstance(v, type) and issubclass(v, Method) and issubclass(v, tuple(KINDS.values()))
           and v.__module__ == module.__name__ and not v.__name__.startswith("_")]
    if len(own) != 1:
        names = f": {', '.join(c.__name__ for c in own)}" if own else ": no class derives from a kind such as Update"
        raise UserError(f"{file} must define one method, and it defines {len(own)}{names}.")
    return own[0]


def _execute(module: ModuleType, loader: Loader, file: Path) -> None:
    """Run a user's file; what goes wrong in it is told with its line."""
    _parsed(file)
    try:
        loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        del sys.modules[module.__name__]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{file}{line}: {type(error).__name__}: {error}.") from None


def find(name: str) -> type[Method]:
    """The class of an installed method."""
    return load(locate(name, Path(), "method"))


def use_of(method: Method) -> str:
    """What a recipe calls a method: its name, or the path of its file where another one (or none) is installed by that name."""
    file = Path(inspect.getfile(type(method)))
    known = cards().get(method.name)
    return method.name if known is not None and known.file == file else str(file)


def create(settings: dict[str, Any], root: Path, where: str) -> Method:
    """A method from its table in a recipe (``use`` and its settings)."""
    if not isinstance(settings, dict) or not isinstance(settings.get("use"), str):
        raise UserError(f"{where}: a method is a table such as {{ use = \"next_token\" }}, not {settings!r}.")
    with located(where):
        cls = load(locate(settings["use"], root, where))
    made = make(cls, {k: v for k, v in settings.items() if k != "use"}, f"{where} ({settings['use']})")
    return made  # type: ignore[no-any-return]


@cache
def fingerprint(file: Path) -> str:
    """A hash of a method's source and of what it imports from beside the core: part of an artifact's identity."""
    sources: dict[Path, bytes] = {}
    _collect(file, sources)
    digest = hashlib.sha256()
    for _, source in sorted(sources.items()):
        digest.update(source)
    return digest.hexdigest()[:16]


def _collect(file: Path, sources: dict[Path, bytes]) -> None:
    if file in sources or not file.is_file():
        return
    sources[file] = file.read_bytes()
    for node in ast.walk(_parsed(file)):
        modules = [n.name for n in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        for module in modules:
            head, _, rest = module.partition(".")
            if head == "trainwright" and not rest.startswith("core"):
                _collect(ROOT / (rest.replace(".", "/") + ".py"), sources)


def default_of(kind: str) -> str | None:
    """The method of a kind that stands in where a recipe names none."""
    return next((c.name for c in cards().values() if c.default and c.kind == kind), None)
