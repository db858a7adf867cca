"""Settings, checked against the types of their fields; an unknown key is an error that names the nearest."""
from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, NamedTuple

from trainwright.core.errors import UserError, suggest
from trainwright.core.shown import BRIEF, brief, cut

FILE = "names a file or a folder"
FilePath = Annotated[str, FILE]
"""A setting that names a file or a folder, from the recipe's folder on: its content is part of an artifact's
identity (``storage/identity.py``)."""
MOST = 300
"""Characters of a message about a setting."""
DEEPEST = 32
"""Levels of lists and tables within each other."""
FLOAT32 = 3.4028234663852886e38
"""The largest number of the weights' own type."""


class Between(NamedTuple):
    """What numbers a setting takes, as the metadata of its type: ``Annotated[float, Between(0, 1)]``."""

    low: float
    high: float
    above: bool = False
    """Whether it must be above ``low``, not equal to it."""
    below: bool = False
    """Whether it must be below ``high``."""

    def has(self, value: float) -> bool:
        ends = (self.above and value == self.low) or (self.below and value == self.high)
        return self.low <= value <= self.high and not ends

    def __str__(self) -> str:
        if self.high in (LARGEST, FLOAT32):
            return f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        if self.above or self.below:
            least = f"{'above' if self.above else 'at least'} {_named(self.low)}"
            return f"{least} and {'below' if self.below else 'at most'} {_named(self.high)}"
        return f"from {_named(self.low)} to {_named(self.high)}"


LARGEST = 2**31 - 1
"""The largest count that is not one of tokens."""
COUNTED, FINITE = Between(-LARGEST, LARGEST), Between(-FLOAT32, FLOAT32)
"""What settings of the types int and float take that say nothing else."""
Count = Annotated[int, Between(1, LARGEST)]
"""How many: 1 or more."""
Large = Annotated[int, Between(-(2**63 - 1), 2**63 - 1)]
"""A whole number that may be as large as numbers of tokens are."""
Row = Annotated[int, Between(2, LARGEST)]
"""Tokens of a row: one to read and one to learn, at least."""
Seed = Annotated[int, Between(0, 2**63 - 1)]
"""What a generator starts from."""
Rate = Annotated[float, Between(0, FLOAT32)]
"""A number of 0 or more."""
Positive = Annotated[float, Between(0, FLOAT32, above=True)]
"""A number above 0."""
Seconds = Annotated[float, Between(0, 86_400, above=True)]
"""How long something may take, a day at most."""
Part = Annotated[float, Between(0, 1, below=True)]
"""A part that is never the whole, such as what a running mean keeps at each step: at least 0 and below 1."""
Exponent = Annotated[float, Between(-10, 10)]
"""A power that something measured is raised to."""
Endless = Annotated[float, Between(-float("inf"), float("inf"))]
"""A number that may be infinite."""


def _named(bound: float) -> str:
    powers = {power: f"2**{power} - 1" for power in (31, 63)}
    return next((said for power, said in powers.items() if bound == 2**power - 1), f"{bound:g}")


def make(cls: type, given: dict[str, Any], where: str) -> Any:
    """Build the frozen dataclass ``cls`` from recipe settings; ``where`` names the place in errors.

    A field that is itself a frozen dataclass is given as a table. What the table leaves out is as in the
    field's default.

    Raises:
        UserError: an unknown key (with the nearest right one), a missing one, a value of the wrong type or
            out of range. It is one sentence, however long the value.
    """
    return _make(cls, given, where, f"{where}: ", {})


def _make(cls: type, given: dict[str, Any], where: str, prefix: str, start: dict[str, Any]) -> Any:
    """``cls`` from ``start`` and what is given; the name of a field follows ``prefix`` in errors."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints, values = hints_of(cls), dict(start)
    for key, value in given.items():
        if key not in fields:
            raise UserError(cut(f"{where}: unknown setting {brief(key)}{suggest(str(key), fields)}.", MOST))
        place, group = f"{prefix}{key}", group_of(hints[key])
        if group is not None and isinstance(value, dict):
            values[key] = _make(group, value, place, f"{place}.", _values(default_of(fields[key])))
        else:
            values[key] = fit(value, hints[key], place)
    for name, field in fields.items():
        if default_of(field) is dataclasses.MISSING and name not in values:
            raise UserError(f"{where}: the setting {name!r} is needed and has no default.")
    try:
        return cls(**values)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise UserError(cut(f"{where}: {str(error).rstrip('.')}.", MOST)) from None


def group_of(kind: Any) -> type | None:
    """The dataclass that a field's type is (perhaps optional), if any: a group of settings."""
    kind = _bare(kind)
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    return next((one for one in options if isinstance(one, type) and dataclasses.is_dataclass(one)), None)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, or ``dataclasses.MISSING``."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _values(group: Any) -> dict[str, Any]:
    """The values of a group of settings by name; none where there is no such default."""
    if not dataclasses.is_dataclass(group):
        return {}
    return {f.name: getattr(group, f.name) for f in dataclasses.fields(group)}


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The types of the fields, with their ranges. A range that a kind of method gives a setting holds where a
    method gives it another default."""
    found = typing.get_type_hints(cls, include_extras=True)
    for base in cls.__mro__[1:]:
        for name, kind in typing.get_type_hints(base, include_extras=True).items():
            if typing.get_origin(kind) is Annotated and found[name] == _bare(kind):
                found[name] = kind
    return found


def _bare(kind: Any) -> Any:
    """A type without its range and marks."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def fit(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``. Integers pass for floats (and 2e6 for an integer), lists for tuples and tables
    for groups of settings; nothing else is converted.

    Raises:
        UserError: the value has another type or is out of range; ``where`` begins the sentence.
    """
    limits = next((m for m in getattr(kind, "__metadata__", ()) if isinstance(m, Between)), None)
    kind = _bare(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return _sound(value, where)
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, args, where)
    if origin is typing.Literal:
        if not isinstance(value, (str, int, float)) or value not in args:
            raise _refused(where, f"one of {', '.join(map(repr, args))}", value)
        return value
    if origin in (tuple, list) or kind in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise _refused(where, "a list", value)
        kinds = args if origin is tuple and args[-1] is not ... else (args or (Any,))[:1] * len(value)
        if len(kinds) != len(value):
            raise _refused(where, f"a list of {len(kinds)}", value)
        pairs = enumerate(zip(value, kinds, strict=True))
        return tuple(fit(v, one, f"{where}[{i}]") for i, (v, one) in pairs)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise _refused(where, "a table such as { a = 1 }", value)
        inner = args[1] if args else Any
        keys = {key: _text(key, f"a key of {where}") for key in value}
        return {key: fit(value[key], inner, f"{where}.{cut(key, BRIEF)}") for key in keys.values()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not isinstance(value, kind):
        if not isinstance(value, dict):
            raise _refused(where, "a table such as { a = 1 }", value)
        return _make(kind, value, where, f"{where}.", {})
    if kind in (int, float):
        return _number(value, kind, limits, where)
    if isinstance(value, kind):
        return _text(value, where) if kind is str else value
    raise _refused(where, name_of(kind), value)


def _refused(where: str, what: str, value: Any) -> UserError:
    return UserError(cut(f"{where} must be {what}, not {brief(value)}.", MOST))


def _number(value: Any, kind: type, limits: Between | None, where: str) -> Any:
    """A number of its type and within its range."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refused(where, name_of(kind), value)
    if kind is int:
        if isinstance(value, float) and not value.is_integer():
            raise _refused(where, name_of(kind), value)
        value = int(value)
    elif value != value:
        raise UserError(f"{where} must be a number, and nan is none.")
    usual = COUNTED if kind is int else FINITE
    words = f"a {'whole number below 2**31' if kind is int else 'finite number below 3.4e38'} in size"
    own = limits or usual
    if own.high <= usual.high and not usual.has(value):
        raise _refused(where, words, value)
    if not own.has(value):
        raise _refused(where, str(own), value)
    try:
        return kind(value)
    except OverflowError:                            # a whole number where infinity may stand
        raise _refused(where, words, value) from None


def _text(value: Any, where: str) -> str:
    """A string that can be written into a file and handed to the system."""
    if not isinstance(value, str):
        raise _refused(where, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _refused(where, "text in whole characters", value) from None
    if "\0" in value:
        raise _refused(where, "text without NUL", value)
    return value


def too_deep(value: Any, name: str = "", names: int = 3) -> str | None:
    """The key under which lists and tables stand too deep for a recipe, if there is one: the nearest that a
    person would look for, at most ``names`` levels down."""
    inner: Iterable[tuple[str, Any]] = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = [(name, v) for v in value]
    if names and inner:
        return next((found for k, v in inner if (found := too_deep(v, k, names - 1)) is not None), None)
    return name if any(depth > 2 * DEEPEST for _, depth in levels(value)) else None


def levels(value: Any) -> Iterator[tuple[Any, int]]:
    """All that is in a value, keys too, and how many lists and tables around it. It is not recursive."""
    todo = [(value, 0)]
    while todo:
        one, depth = todo.pop()
        yield one, depth
        if isinstance(one, dict):
            todo += [(k, depth + 1) for k in one] + [(v, depth + 1) for v in one.values()]
        elif isinstance(one, (list, tuple)):
            todo += [(v, depth + 1) for v in one]


def _sound(value: Any, where: str) -> Any:
    """A value of any type that a recipe can hold, not too deep and of numbers that every library takes."""
    for one, depth in levels(value):
        if depth > DEEPEST:
            raise UserError(cut(f"{where} must be at most {DEEPEST} lists and tables deep.", MOST))
        if isinstance(one, (dict, list, tuple)):
            continue
        if isinstance(one, str):
            _text(one, where)
        elif isinstance(one, int) and abs(one) >= 2**63:
            raise _refused(where, "a whole number below 2**63 in size", one)
        elif one is not None and not isinstance(one, (int, float)) and not dataclasses.is_dataclass(one):
            raise _refused(where, "text, a number, true or false, a list or a table", one)
    return value


def _fit_union(value: Any, args: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in args:
        return None
    real = [a for a in args if a is not type(None)]
    for arg in sorted(real, key=lambda a: _bare(a) is not type(value)):  # 1.0 stays 1.0 where 1 means a count
        try:
            return fit(value, arg, where)
        except UserError as error:
            if len(real) == 1 or (_bare(arg) is type(value) and type(value) in (int, float, str)):
                raise error
    raise _refused(where, " or ".join(name_of(a) for a in real), value)


def name_of(kind: Any) -> str:
    """The type in words that a recipe's author uses."""
    kind = _bare(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(name_of(a) for a in args if a is not type(None))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (tuple, list):
        return f"a list of {name_of(args[0])}" if args else "a list"
    if origin is dict or kind is dict or dataclasses.is_dataclass(kind):
        return "a table"
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


@cache
def docs_of(cls: type) -> dict[str, str]:
    """The one-line docstring under each field, read from the source of the class and its bases.

    The fields of a group follow it, as ``GROUP.FIELD``.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        found |= field_docs(tree)
    docs: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        docs[field.name] = found.get(field.name, "")
        if (group := group_of(hints_of(cls)[field.name])) is not None:
            docs |= {f"{field.name}.{name}": doc for name, doc in docs_of(group).items()}
    return docs


def groups_of(cls: type) -> dict[str, tuple[tuple[str, str, str, str], ...]]:
    """The settings of each group of ``cls``, by its name: name, type and default as written, docstring."""
    found: dict[str, tuple[tuple[str, str, str, str], ...]] = {}
    for field in dataclasses.fields(cls):
        if (group := group_of(hints_of(cls)[field.name])) is None:
            continue
        docs, values, rows = docs_of(group), _values(default_of(field)), []
        for one in dataclasses.fields(group):
            value = values.get(one.name, default_of(one))
            default = "" if value is dataclasses.MISSING else repr(value)
            rows.append((f"{field.name}.{one.name}", str(one.type), default, docs[one.name]))
        found[field.name] = tuple(rows)
    return found


def field_docs(tree: ast.ClassDef) -> dict[str, str]:
    """Docstrings that follow the annotated fields of a class, without importing it."""
    found: dict[str, str] = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        doc = after.value if isinstance(after, ast.Expr) else None
        if isinstance(doc, ast.Constant) and isinstance(doc.value, str):
            found[node.target.id] = " ".join(doc.value.split())
    return found
