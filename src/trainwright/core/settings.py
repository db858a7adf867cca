"""Settings of a method, checked: every field has a type, and a value of another type is told apart from a typing slip."""
from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from functools import cache
from typing import Any

from trainwright.core.errors import UserError, suggest


def make(cls: type, given: dict[str, Any], where: str) -> Any:
    """Build the frozen dataclass ``cls`` from recipe settings; ``where`` names the place in errors.

    Raises:
        UserError: an unknown key (with the nearest right one), a missing one, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = hints_of(cls)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in fields:
            raise UserError(f"{where}: unknown setting {key!r}{suggest(key, fields)}.")
        values[key] = fit(value, hints[key], f"{where}: {key}")
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise UserError(f"{where}: the setting {name!r} is needed and has no default.")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {str(error).rstrip('.')}.") from None


@cache
def hints_of(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def fit(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``: whole numbers pass for floats (and 2e6 for whole ones), lists for tuples, nothing else is bent."""
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
    for arg in real:
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
    if origin is dict or kind is dict:
        return "a table"
    words = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


@cache
def docs_of(cls: type) -> dict[str, str]:
    """The one-line docstring under each field, read from the source of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(tree, ast.ClassDef)
        found |= field_docs(tree)
    return {f.name: found.get(f.name, "") for f in dataclasses.fields(cls)}


def field_docs(tree: ast.ClassDef) -> dict[str, str]:
    """Docstrings that follow the annotated fields of a class, without importing it."""
    found: dict[str, str] = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)):
            found[node.target.id] = " ".join(after.value.value.split())
    return found
