"""What a method says of itself, read from its source without importing it.

The cards of installed methods are kept in one file of the user's cache folder, and read anew where a source
has changed.
"""
from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import trainwright
from trainwright.core import source
from trainwright.core.errors import UserError
from trainwright.core.settings import field_docs

KINDS_FILE = Path(__file__).with_name("method.py")
Setting = tuple[str, str, str, str]
"""Name, type, default (as written; empty where the setting is needed) and docstring."""


@dataclasses.dataclass(frozen=True)
class Card:
    """A method's card."""

    name: str
    folder: str
    kinds: tuple[str, ...]
    """The kinds that its class derives from, in the order of ``method.py``."""
    file: Path
    summary: str
    doc: str
    default: bool
    """Whether a stage uses it when its recipe names no method of its kind."""
    fields: tuple[Setting, ...]
    """Its own settings."""
    fixed: tuple[str, ...]
    """Settings of its kinds that its class fixes (a ``ClassVar``), so that no recipe can say them."""

    @property
    def kind(self) -> str:
        """Its kinds as people read them: ``Surgery, Optimizer``."""
        return ", ".join(self.kinds)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """All of its settings: its own first, then those of its kinds (``weight``, ``lr``)."""
        found = {f[0]: f for f in self.fields}
        for kind in self.kinds:
            for one in (kind, *kinds()[kind].bases):
                found |= {
                    f[0]: f for f in kinds()[one].fields if f[0] not in found and f[0] not in self.fixed
                }
        return tuple(found.values())

    def is_a(self, kind: str) -> bool:
        """Whether it is of a kind; an Optimizer is an Update too."""
        return any(kind in (one, *kinds()[one].bases) for one in self.kinds)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of method: the kinds that it is a special case of, nearest first, and the settings that it
    adds."""

    bases: tuple[str, ...]
    fields: tuple[Setting, ...]


# ---- reading -----------------------------------------------------------------------------------------


@cache
def kinds() -> dict[str, Kind]:
    """The kinds of method by name, in the order of ``method.py``: its classes that derive from ``Method``."""
    kept = kept_cards()
    if kept.kinds is not None:
        return kept.kinds
    found: dict[str, Kind] = {}
    for node in source.parsed(KINDS_FILE).body:
        bases = [ast.unparse(b) for b in node.bases] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, ast.ClassDef) and (known := [b for b in bases if b == "Method" or b in found]):
            above = [one for b in known if b in found for one in (b, *found[b].bases)]
            found[node.name] = Kind(tuple(dict.fromkeys(above)), tuple(_fields(node)))
    kept.kinds = found
    return found


def read(file: Path, name: str, folder: str) -> Card:
    """The card of the one method that ``file`` defines.

    Raises:
        UserError: it is no Python, or no class in it derives from a kind of method.
    """
    return _read(file, name, folder)[0]


def _read(file: Path, name: str, folder: str) -> tuple[Card, set[Path]]:
    """A card, and the files that it was read from: the classes between it and its kinds may lie elsewhere."""
    tree = source.parsed(file)
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")):
        above = list(_above(file, node))
        found = {kind for _, one in above for kind in _kinds_of(one)}
        if found:
            fields = {f[0]: f for _, one in reversed(above) for f in _fields(one)}
            own = [f[0] for f in _fields(node)]
            ordered = [*(fields[n] for n in own), *(f for n, f in fields.items() if n not in own)]
            known = {f[0] for kind in kinds().values() for f in kind.fields}
            fixed = tuple(sorted({n for _, one in above for n in _fixed(one)} & known))
            card = Card(
                name,
                folder,
                tuple(k for k in kinds() if k in found),
                file,
                *_docs(tree, node),
                _is_default(node),
                tuple(f for f in ordered if f[0] not in fixed),
                fixed,
            )
            return card, {f for f, _ in above}
    raise UserError(f"{file}: no class that derives from a kind of method; see `trainwright new`.")


def _docs(tree: ast.Module, node: ast.ClassDef) -> tuple[str, str]:
    """The first paragraph of what is written about a method, as one line, and all of it."""
    doc = ast.get_docstring(node) or ast.get_docstring(tree) or ""
    module_doc = ast.get_docstring(tree) or doc
    first = " ".join(module_doc.strip().split("\n\n")[0].split())
    return first, module_doc if doc in module_doc else f"{module_doc}\n\n{doc}"


def _above(file: Path, node: ast.ClassDef, seen: tuple[str, ...] = ()) -> Iterator[tuple[Path, ast.ClassDef]]:
    """A class and those that it derives from, but for the kinds themselves: of its file, or imported by
    name."""
    yield file, node
    for base in node.bases:
        name = ast.unparse(base)
        if name.rpartition(".")[2] not in kinds() and name not in seen:
            for where, one in _class(file, name):
                yield from _above(where, one, (*seen, name))


def _class(file: Path, name: str) -> Iterator[tuple[Path, ast.ClassDef]]:
    tree = source.parsed(file)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield file, node
        elif isinstance(node, ast.ImportFrom):
            for one in (n for n in node.names if (n.asname or n.name) == name):
                for other in source.resolve(
                    file, node.level, node.module or "", one.name, source.beside(file)
                ):
                    if other != file:
                        yield from _class(other, one.name)


def _kinds_of(node: ast.ClassDef) -> list[str]:
    return [name for base in node.bases if (name := ast.unparse(base).rpartition(".")[2]) in kinds()]


def _is_default(node: ast.ClassDef) -> bool:
    assigned = {ast.unparse(t): n.value for n in node.body if isinstance(n, (ast.Assign, ast.AnnAssign))
                for t in (n.targets if isinstance(n, ast.Assign) else [n.target])}
    value = assigned.get("default")
    return isinstance(value, ast.Constant) and value.value is True


def _fixed(node: ast.ClassDef) -> list[str]:
    return [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            and "ClassVar" in ast.unparse(n.annotation)]


def _default(value: ast.expr) -> str:
    """A default as a person writes it: that of ``field(default_factory=dict)`` is ``{}``."""
    if not isinstance(value, ast.Call) or ast.unparse(value.func) not in ("field", "dataclasses.field"):
        return ast.unparse(value)
    told = {k.arg: k.value for k in value.keywords}
    if "default" in told:
        return ast.unparse(told["default"])
    made = told["default_factory"]
    if isinstance(made, ast.Lambda):
        return ast.unparse(made.body)
    return {"dict": "{}", "list": "[]", "tuple": "()"}.get(ast.unparse(made), f"{ast.unparse(made)}()")


def _fields(node: ast.ClassDef) -> list[Setting]:
    docs = field_docs(node)
    return [
        (
            n.target.id,
            ast.unparse(n.annotation),
            _default(n.value) if n.value else "",
            docs.get(n.target.id, ""),
        )
        for n in node.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.target.id not in _fixed(node)
    ]


# ---- keeping -----------------------------------------------------------------------------------------


class Kept:
    """The cards of an earlier process, each with the size and time of the files that it was read from.

    Where the file cannot be read it is empty, and where it cannot be written nothing is kept: neither is an
    error.
    """

    def __init__(self) -> None:
        self.file, self.made_by = _place(), _made_by()
        self.cards: dict[str, dict[str, Any]] = {}
        self.kinds: dict[str, Kind] | None = None
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            text = self.file.read_text(encoding="utf-8") if self.file else '{"made_by": null}'
            told: dict[str, Any] = json.loads(text)
            if told["made_by"] == self.made_by:
                kinds = {n: Kind(tuple(k["bases"]), _settings(k["fields"])) for n, k in told["kinds"].items()}
                self.cards, self.kinds = dict(told["cards"]), kinds
        self.changed = self.kinds is None

    def card(self, file: Path, name: str, folder: str) -> Card:
        """The card of an installed method."""
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            told = self.cards[str(file)]
            if all(list(source.stamp(Path(f))) == stamp for f, stamp in told["files"].items()):
                return Card(name, folder, tuple(told["kinds"]), file, str(told["summary"]), str(told["doc"]),
                            bool(told["default"]), _settings(told["fields"]), tuple(map(str, told["fixed"])))
        made, sources = _read(file, name, folder)
        stamps = {str(f): list(source.stamp(f)) for f in sources}
        left_out = ("name", "folder", "file")
        self.cards[str(file)] = {"files": stamps} | {
            f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.name not in left_out
        }
        self.changed = True
        return made

    def write(self) -> None:
        """Keep what is new, whole or not at all; cards of files that are gone are forgotten."""
        if not self.changed or self.file is None:
            return
        here = {file: card for file, card in self.cards.items() if os.path.exists(file)}
        told = {
            "made_by": self.made_by,
            "kinds": {n: dataclasses.asdict(k) for n, k in kinds().items()},
            "cards": here,
        }
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self.file.parent, prefix=f"{self.file.stem}.")
            try:
                with open(handle, "w", encoding="utf-8") as out:
                    json.dump(told, out)
                os.replace(part, self.file)
            except OSError:
                os.unlink(part)
                raise
        self.changed = False


@cache
def kept_cards() -> Kept:
    """What this process knows of earlier ones."""
    return Kept()


def _settings(told: Any) -> tuple[Setting, ...]:
    return tuple((str(a), str(b), str(c), str(d)) for a, b, c, d in told)


def _place() -> Path | None:
    """The file in the user's cache folder, one for each version of this package and of Python; None where
    there is no home."""
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        folder = asked if asked.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    version = hashlib.sha256(repr((trainwright.__version__, sys.version)).encode()).hexdigest()[:12]
    return folder / "trainwright" / f"cards-{version}.json"


def _made_by() -> list[list[int]]:
    """What decides how a card is read, in a checkout too, where the version stays and the code does not."""
    return [list(source.stamp(Path(f))) for f in (__file__, source.__file__, KINDS_FILE)]
