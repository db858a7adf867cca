"""A JSON schema of recipes, from which an editor knows every key, its type and what it means.

It is made of the classes that read recipes: kinds of stage, and the settings of all methods. What a schema
cannot say (names of earlier stages, conditions between settings) is left to ``trainwright plan``. Files of
one's own (``use = "./mine.py"``) take any settings.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from trainwright.core import registry
from trainwright.core.settings import FLOAT32, LARGEST, Between, default_of, docs_of, group_of, hints_of
from trainwright.core.stage import Stage, stages

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
PLAIN: dict[Any, Schema] = {bool: {"type": "boolean"}, int: {"type": "number", "multipleOf": 1},
                            float: {"type": "number"}, str: {"type": "string"}, Any: {}}
"""2e6 is a whole number in a recipe."""
OWN_FILE = {"type": "object", "required": ["use"],
            "properties": {"use": {"type": "string", "pattern": r"\.py$|[/:]"}}}
"""A method of the user's own, in a file or another package."""


def schema() -> Schema:
    """The schema of a recipe; a comparison's tables ``compare`` and ``arm`` are any tables."""
    methods = {name: _table(registry.find(name), {"use": {"const": name}}, ["use"])
               for name in registry.cards()}
    kinds = {name: _stage(name, kind) for name, kind in stages().items()}
    tables = {"type": "array", "items": {"type": "object"}}
    return {
        "$schema": DRAFT, "title": "A Trainwright recipe", "type": "object",
        "anyOf": [{"required": ["stage"]}, {"required": ["compare"]}],
        "properties": {"title": {"type": "string"}, "seed": {"type": "integer", "minimum": 0},
                       "trackers": {"type": "array"}, "compare": {"type": "object"}, "arm": tables,
                       "stage": {"type": "array", "items": {"$ref": "#/$defs/stage"}}},
        "additionalProperties": False,
        "$defs": {
            "stage": _chosen("kind", {name: f"#/$defs/{name}" for name in kinds}),
            "method": _chosen("use", {name: f"#/$defs/method.{name}" for name in methods}, OWN_FILE),
            **kinds, **{f"method.{name}": one for name, one in methods.items()}}}


def _chosen(key: str, places: dict[str, str], other: Schema | None = None) -> Schema:
    """A table whose key says which of several it is. Editors show the names, and then the right settings."""
    names: Schema = {"enum": sorted(places)}
    rules = [{"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": {"$ref": place}}
             for name, place in sorted(places.items())]
    known = {"properties": {key: names}, "required": [key], "allOf": rules}
    return {"type": "object"} | (known if other is None else {"anyOf": [known, other]})


def _stage(name: str, kind: type[Stage]) -> Schema:
    names: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    more = {"kind": {"const": name}, "from": {"type": "object", "additionalProperties": names}}
    if any(field.name == "stage" for field in dataclasses.fields(kind)):
        more["stage"] = {"type": "array", "items": {"$ref": "#/$defs/stage"}}
    made = _table(kind, more, ["name", "kind"], without=("inputs",))
    made["properties"]["methods"] = {"type": "array", "items": {"$ref": "#/$defs/method"}}
    return made


def _table(cls: type, more: Schema, needed: list[str], without: tuple[str, ...] = ()) -> Schema:
    docs, hints = docs_of(cls), hints_of(cls)
    properties = dict(more)
    for field in dataclasses.fields(cls):
        if field.name in without or field.name in more:
            continue
        properties[field.name] = _type(hints[field.name]) | (
            {"description": docs[field.name]} if docs.get(field.name) else {})
        if default_of(field) is dataclasses.MISSING:
            needed = [*needed, field.name]
    return {"type": "object", "properties": properties, "required": sorted(set(needed) - {*without}),
            "additionalProperties": False, "description": _first(cls)}


def _first(cls: type) -> str:
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


def _type(kind: Any) -> Schema:
    """What values a type takes."""
    if typing.get_origin(kind) is typing.Annotated:
        inner, *marks = typing.get_args(kind)
        limits = next((m for m in marks if isinstance(m, Between)), None)
        return _type(inner) | (_range(limits) if limits else {})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(one) for one in args if one is not type(None)]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in (tuple, list) or kind in (tuple, list):
        return {"type": "array"} | ({"items": _type(args[0])} if args else {})
    if (group := group_of(kind)) is not None:
        return _table(group, {}, [])
    if origin is dict or kind is dict:
        return {"type": "object"} | ({"additionalProperties": _type(args[1])} if args else {})
    return PLAIN.get(kind, {})


def _range(limits: Between) -> Schema:
    low = {"exclusiveMinimum" if limits.above else "minimum": limits.low} if limits.low > -LARGEST else {}
    high = {"exclusiveMaximum" if limits.below else "maximum": limits.high}
    return low | (high if limits.high not in (LARGEST, FLOAT32) and limits.high < 2**63 - 1 else {})
