"""Rows of tables as documents: which columns are text, a conversation, a pair, a label or a medium, and which
are kept as metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwright.core.errors import UserError
from trainwright.core.shown import brief
from trainwright.data.sources.text._conversations import ANSWER, conversation, preference

if TYPE_CHECKING:
    from trainwright.corpus.columns import Keep
    from trainwright.corpus.sources import Row

MEDIA = ("image", "audio")
UNKNOWN = "not understood, kept as metadata"
OF_A_ROW = ("weight", "sample_weight", "loss_weight", "loss_scale", "train", "training", "trainable")
"""Columns that say how much a whole row counts."""
LISTED = 20
"""Columns that are named at most."""


@dataclass(frozen=True)
class Reading:
    """How rows become documents."""

    domain: str
    field: str
    id: str
    invalid: str
    characters: int
    columns: dict[str, str]
    """Typed columns, by the name that they have in the file."""
    root: Path
    """Folder that paths of media start from."""
    keep: Keep | None
    """What keeps media."""
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the stage says: the columns that became metadata are named there, once."""

    @property
    def spoken(self) -> dict[str, str]:
        """The columns of a question and its answer, where the recipe names them."""
        return {k: self.columns[k] for k in ("prompt", ANSWER)} if ANSWER in self.columns else {}

    def say(self, what: str, one: str, most: int) -> None:
        """Name something that was left out, and count what is beyond ``most``."""
        said = self.texts.get(what, "")
        number = int(said.split(": ")[0]) if said else 0
        names = said.partition(": ")[2] if number else ""
        names = (f"{names}; {one}" if names else one) if number < most else names.removesuffix(" …") + " …"
        self.texts[what] = f"{number + 1}: {names}"

    def unknown(self, columns: set[str]) -> None:
        """Name columns that nothing was made of."""
        named = self.texts.get(UNKNOWN, "").split(", ") if UNKNOWN in self.texts else []
        if len(named) < LISTED and (new := sorted(columns - set(named))):
            self.texts[UNKNOWN] = ", ".join([*named, *new][:LISTED])


def row_to_document(row: Any, written: str, line: int, how: Reading) -> Row:
    """The document that one row of a table is."""
    from trainwright.corpus.sources import document
    where = f"{written}, row {line}"
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: a row is an object with columns, not {brief(row)}.")
    if how.id and not isinstance(row.get(how.id), str | int):
        raise UserError(f"{where}: the column {how.id!r} (the setting id) must hold a string or a whole "
                        f"number; {_columns(row)}.")
    name = str(row[how.id]) if how.id else f"{how.domain}/{written}:{line}"
    columns, used = typed(row, {k: v for k, v in how.columns.items() if k not in how.spoken}, where)
    messages, spoken = None, set[str]()
    if "chosen" not in columns:
        messages, spoken = conversation(row, where, how.spoken, how.field)
    viewed = messages is not None or "chosen" in columns
    text = "" if viewed or (how.field not in row and "image" in columns) else _text(row, how.field, where)
    if not how.spoken:
        used.add("text" if viewed else how.field)
    used |= spoken
    rest = {key: value for key, value in row.items() if key not in used}
    _check_weights(rest, where)
    if rest:
        how.unknown({str(key) for key in rest} - {how.id})
    try:
        return document(id=name, text=text, domain=how.domain, source=f"{written}:{line}", metadata=rest,
                        messages=messages, columns=columns, root=how.root, keep=how.keep)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where}: {error}.") from None
    except RecursionError:
        raise UserError(f"{where}: its values are nested too deeply.") from None


def _check_weights(rest: Mapping[Any, Any], where: str) -> None:
    """Refuse a column that says of a whole row that it counts less, or more."""
    for name in OF_A_ROW:
        value = rest.get(name)
        if isinstance(value, bool | int | float) and value != 1:
            raise UserError(f"{where}: the column {name!r} is {brief(value)}, and no row counts more or less "
                            "than another: leave the row out, or the column, or name it as a number "
                            f"(columns = {{ number = {name!r} }}) for a method to read.")


def typed(row: Mapping[str, Any], named: Mapping[str, str], where: str) -> tuple[dict[str, Any], set[str]]:
    """The typed columns of a row, and the columns they stood in: those that the recipe names, and of the
    others a pair (``prompt``, ``chosen``, ``rejected``), a ``label``, an ``image``, an ``audio``."""
    if missing := [column for column in named.values() if column not in row]:
        raise UserError(f"{where}: there is no column {missing[0]!r} (the setting columns); {_columns(row)}.")
    found = {name: row[column] for name, column in named.items()}
    used = set(named.values())
    pair = {name: row.get(found_in) for name in ("prompt", "chosen", "rejected")
            if (found_in := named.get(name, name)) in row}
    if pair.get("chosen") is not None and pair.get("rejected") is not None:
        made, beside = preference(row, pair, where)
        found |= made
        used |= beside | {named.get(name, name) for name in pair}
    for name in ("label", *MEDIA):
        if name not in found and name in row and _fits(name, row[name]):
            found[name] = row[name]
            used.add(name)
    return {name: value for name, value in found.items() if value is not None}, used


def _fits(name: str, value: Any) -> bool:
    """Whether a column that has the name of a typed one holds such a thing; else it is metadata."""
    if name == "label":
        return isinstance(value, str | int) and value != ""
    named = isinstance(value, str) and value != "" and "://" not in value
    return named or isinstance(value, bytes | Mapping)


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise UserError(f"{where}: there is no column {field!r}; {_columns(row)}: name that of the documents "
                        "with field, or those of a conversation with columns = { prompt = …, answer = … } "
                        "(init: --columns prompt=…,answer=…).")
    if row[field] is not None and not isinstance(row[field], str):
        raise UserError(f"{where}: the column {field!r} must hold text, not {brief(str(row[field]))}.")
    return row[field] or ""


def _columns(row: Mapping[str, Any]) -> str:
    return f"it has {', '.join(sorted(map(str, row)))}"
