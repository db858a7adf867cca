"""Settings, checked against the types of their fields; an unknown key is an error that names the nearest."""
from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from functools import cache
from typing import Annotated, Any

from trainwright.core.errors import UserError, suggest

FILE = "names a file or a folder"
FilePath = Annotated[str, FILE]
"""A setting that names a file or a folder, from the recipe's folder on: its content is part of an artifact's
identity (``core/identity.py``)."""


def make(cls: type, given: dict[str, Any], where: str) -> Any:
    """Build the frozen dataclass ``cls`` from recipe settings; ``where`` names the place in errors.

    A field that is itself a frozen dataclass is given as a table. What the table leaves out is as in the
    field's default.

    Raises:
        UserError: an unknown key (with the nearest right one), a missing one, or a value of the wrong type.
    """
    return _make(cls, given, where, f"{where}: ", {})


def _make(cls: type, given: dict[str, Any], where: str, prefix: str, start: dict[str, Any]) -> Any:
    """``cls`` from ``start`` and what is given; the name of a field follows ``prefix`` in errors."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints, values = hints_of(cls), dict(start)
    for key, value in given.items():
        if key not in fields:
            raise UserError(f"{where}: unknown setting {key!r}{suggest(key, fields)}.")
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
    except ValueError as error:
        raise UserError(f"{where}: {str(error).rstrip('.')}.") from None


def group_of(kind: Any) -> type | None:
    """The dataclass that a field's type is (perhaps optional), if any: a group of settings."""
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
    return typing.get_type_hints(cls)


def fit(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``. Integers pass for floats (and 2e6 for an integer), lists for tuples and tables
    for groups of settings; nothing else is converted.

    Raises:
        UserError: the value has another type; ``where`` begins the sentence.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, args, where)
    if origin is typing.Literal:
        if value not in args:
            raise UserError(f"{where} must be one of {', '.join(map(repr, args))}, not {value!r}.")
        return value
    if origin in (tuple, list) or kind in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, not {value!r}.")
        return tuple(fit(v, args[0] if args else Any, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a table such as {{ a = 1 }}, not {value!r}.")
        return {k: fit(v, args[1] if args else Any, f"{where}.{k}") for k, v in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not isinstance(value, kind):
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a table such as {{ a = 1 }}, not {value!r}.")
        return _make(kind, value, where, f"{where}.", {})
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if value != value:
            raise UserError(f"{where} must be a number, and nan is none.")
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool)):
        return value
    raise UserError(f"{where} must be {name_of(kind)}, not {value!r}.")


def _fit_union(value: Any, args: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in args:
        return None
    real = [a for a in args if a is not type(None)]
    for arg in sorted(real, key=lambda a: a is not type(value)):     # its own type first: 1.0 is not 1
        try:
            return fit(value, arg, where)
        except UserError as error:
            if len(real) == 1:
                raise error
    raise UserError(f"{where} must be {' or '.join(name_of(a) for a in real)}, not {value!r}.")


def name_of(kind: Any) -> str:
    """The type in words that a recipe's author uses."""
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
