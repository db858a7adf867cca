"""Methods by name. A method's file name is its name; nothing else lists it, and listing imports none."""
from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.abc import Loader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trainwright.core import source
from trainwright.core.card import Card, kept_cards, read
from trainwright.core.errors import UserError, exited, located, suggest
from trainwright.core.settings import make
from trainwright.core.shown import BRIEF, brief, cut
from trainwright.core.source import ROOT

if TYPE_CHECKING:
    from trainwright.core.method import Method

FOLDERS = ("data", "pretrain", "optim", "finetune", "align", "compress", "merge", "evaluate", "search")
"""Places in a life, in its order."""
ELSEWHERE = "elsewhere"
"""The place of methods of other packages."""


@cache
def cards() -> dict[str, Card]:
    """Every method that is installed, by name, sorted: ours and those of the entry points
    ``trainwright.methods``."""
    found: dict[str, Card] = {}
    files = [(f.stem, _room(f), f) for folder in FOLDERS for f in (ROOT / folder).rglob("*.py")
             if not f.stem.startswith("_")]
    for point in entry_points(group="trainwright.methods"):
        spec = importlib.util.find_spec(point.value.partition(":")[0])
        if spec is not None and spec.origin:
            files.append((point.name, ELSEWHERE, Path(spec.origin)))
    kept = kept_cards()
    for name, folder, file in sorted(files):
        if name in found:
            raise UserError(f"two methods are called {name!r}: {found[name].file} and {file}.")
        found[name] = kept.card(file, name, folder)
    kept.write()
    return found


def order(folder: str) -> tuple[int, str]:
    """Where a place stands in a life: what places are sorted by."""
    top = folder.partition("/")[0]
    return (FOLDERS.index(top) if top in FOLDERS else len(FOLDERS)), folder


def _room(file: Path) -> str:
    """The place that a method of ours stands in: its folder, or the one around it where it has a folder of
    its own."""
    own = file.parent.name == file.stem and all(
        f == file or f.name.startswith("_") for f in file.parent.glob("*.py")
    )
    return (file.parents[1] if own else file.parent).relative_to(ROOT).as_posix()


def locate(use: str, root: Path, where: str) -> Path:
    """The source file of the method that a recipe calls ``use``: a name, or a path such as ``./mine.py``."""
    if use.endswith(".py"):
        file = (root / use).resolve()
        if not file.is_file():
            raise UserError(f"{where}: there is no file {file}.")
        return file
    if use not in cards():
        raise UserError(
            f"{where}: there is no method {brief(use)}{suggest(use, cards())}; `trainwright list` shows all."
        )
    return cards()[use].file


def card_of(use: str, root: Path) -> Card | None:
    """The card of an installed method or of a file; None where there is none."""
    if use.endswith(".py"):
        file = (root / use).resolve()
        return read(file, file.stem, "") if file.is_file() else None
    return cards().get(use)


def called(use: str) -> str:
    """The name under which a method's settings are changed: of a file it is that of the file."""
    return Path(use).stem if use.endswith(".py") else use


@cache
def load(file: Path) -> type[Method]:
    """The one method class that ``file`` defines."""
    from trainwright.core.method import KINDS, Method
    if ROOT in file.parents:
        module = importlib.import_module(
            ".".join(("trainwright", *file.relative_to(ROOT).with_suffix("").parts))
        )
    else:
        name = f"trainwright_local_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        with _importing_beside(file):
            _execute(module, spec.loader, file)
        _NAMED.add(file)
    own = [v for v in vars(module).values()
           if isinstance(v, type) and issubclass(v, Method) and issubclass(v, tuple(KINDS.values()))
           and v.__module__ == module.__name__ and not v.__name__.startswith("_")]
    if len(own) != 1:
        names = ", ".join(c.__name__ for c in own) or "no class derives from a kind such as Update"
        raise UserError(f"{file} must define one method, and it defines {len(own)}: {names}.")
    return own[0]


def _execute(module: ModuleType, loader: Loader, file: Path) -> None:
    """Run a user's file; an error in it is reported with its line."""
    source.parsed(file)
    try:
        loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
        ]
        line = f", line {lines[-1]}" if lines else ""
        what = exited(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}."
        raise UserError(f"{file}{line}: {what}") from None


_NAMED: set[Path] = set()
"""Users' files that were run because a recipe, or the command line, named them."""
_BESIDE: dict[str, Path] = {}
"""Modules that users' files have imported from beside them, and from which folder."""


@contextmanager
def _importing_beside(file: Path) -> Iterator[None]:
    """While a user's file runs, it can import what lies beside it: behind all that is installed, and never
    what lies beside another user's file under the same name. Python leaves no compiled files there."""
    folder, before, path, keeps = file.parent, set(sys.modules), list(sys.path), sys.dont_write_bytecode
    for name in [n for n, place in _BESIDE.items() if place != folder]:
        sys.modules.pop(name, None)
        del _BESIDE[name]
    importlib.invalidate_caches()
    sys.path, sys.dont_write_bytecode = [*path, str(folder)], True
    try:
        yield
    finally:
        sys.path, sys.dont_write_bytecode = path, keeps
        for name in sys.modules.keys() - before:
            lies, top = Path(getattr(sys.modules[name], "__file__", None) or "/"), name.partition(".")[0]
            if lies in (folder / f"{top}.py", folder / top) or folder / top in lies.parents:
                _BESIDE[name] = folder


def find(name: str) -> type[Method]:
    """The class of an installed method."""
    return load(locate(name, Path(), "method"))


def use_of(method: Method | type[Method]) -> str:
    """What a recipe calls a method: its name, or the path of its file where another one (or none) is
    installed by that name."""
    from trainwright.core.method import snake
    cls = method if isinstance(method, type) else type(method)
    file, name = Path(inspect.getfile(cls)), snake(cls.__name__)
    known = cards().get(name)
    return name if known is not None and known.file == file else str(file)


def create(settings: dict[str, Any], root: Path, where: str) -> Method:
    """A method from its table in a recipe (``use`` and its settings)."""
    if not isinstance(settings, dict) or not isinstance(settings.get("use"), str):
        raise UserError(f"{where}: a method is a table such as {{ use = \"next_token\" }}, not "
                        f"{brief(settings)}.")
    with located(where):
        cls = load(locate(settings["use"], root, where))
        place = f"{where} ({cut(settings['use'], BRIEF)})"
        made = make(cls, {k: v for k, v in settings.items() if k != "use"}, place)
    return made  # type: ignore[no-any-return]


def recall(settings: Any, where: str) -> Method:
    """A method from its table in a folder (beside a delta, in a checkpoint). A folder is data: what it names
    is installed, or lies in a file that has been run already because a recipe in hand names it.

    Raises:
        UserError: it names another file, which is not run.
    """
    use = settings.get("use") if isinstance(settings, dict) else None
    if isinstance(use, str) and use.endswith(".py"):
        file = Path(use).resolve()
        beside = {getattr(sys.modules.get(name), "__file__", None) for name in _BESIDE}
        if file not in _NAMED and str(file) not in beside and file not in {c.file for c in cards().values()}:
            raise UserError(
                f"{where} was made by the method in {file}, and a folder alone runs nothing: name "
                "that file in the recipe, or install the method."
            )
    return create(settings, Path(), where)


def default_of(kind: str) -> str | None:
    """The method of a kind that stands in where a recipe names none."""
    return next((c.name for c in cards().values() if c.default and kind in c.kinds), None)
