"""A recipe: a list of stages, read from TOML and checked before anything runs."""
from __future__ import annotations

import codecs
import copy
import dataclasses
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwright.core import registry
from trainwright.core.errors import UserError, suggest
from trainwright.core.settings import MOST, Seed, fit, levels, make, too_deep
from trainwright.core.shown import BRIEF, brief, cut
from trainwright.core.stage import Made, Stage, check_seed, label_of, stages

LARGEST_RECIPE = 16 << 20
"""Bytes beyond which a file is no recipe."""
WORD = r"[A-Za-z0-9_.+]+(-[A-Za-z0-9_.+]+)*"
"""What a stage may be called."""
HUB = r"hf://([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*"
ELSEWHERE = {"inputs": "from", "learning_rate": "lr", "max_steps": "steps", "max_length": "length",
             "max_seq_length": "length", "sequence_len": "length",
             "per_device_train_batch_size": "batch_size", "micro_batch_size": "batch_size",
             "gradient_accumulation_steps": "accumulate",
             "gradient_checkpointing": "checkpointing", "warmup_steps": "warmup", "warmup_ratio": "warmup",
             "lora_r": "rank", "r": "rank", "lora_alpha": "alpha", "num_train_epochs": "tokens",
             "epochs": "tokens", "max_grad_norm": "norm", "dataset": "from", "base_model": "from"}
"""What other programs call a setting."""


@dataclass(frozen=True)
class Recipe:
    """A model's whole training life."""

    title: str
    seed: int
    trackers: tuple[str, ...]
    stages: tuple[Stage, ...]
    file: Path
    text: str

    @property
    def root(self) -> Path:
        """The folder against which relative paths in the recipe are read."""
        return self.file.parent

    def stage(self, name: str) -> Stage:
        for one in self.stages:
            if one.name == name:
                return one
        known = [s.name for s in self.stages]
        raise UserError(f"{self.file}: there is no stage {name!r}{suggest(name, known)}.")


def load(file: Path | str, changes: dict[str, Any] | None = None) -> Recipe:
    """Read and check a recipe; ``changes`` maps ``stage.key`` or a top-level key to a new value.

    Raises:
        UserError: a missing file, broken TOML, an unknown key, a wrong type, a stage that names no earlier
            one …
    """
    file = Path(file)
    table, text = read(file)
    return parse(table, file, text, changes or {})


def read(file: Path) -> tuple[dict[str, Any], str]:
    """The table in a TOML file, and its text."""
    if not file.is_file():
        raise UserError(f"there is no recipe {file}.")
    if file.stat().st_size > LARGEST_RECIPE:
        raise UserError(f"{file}: larger than {LARGEST_RECIPE >> 20} MiB, which no recipe is.")
    text = _decoded(file)
    return _parsed(text, str(file)), text


def _decoded(file: Path) -> str:
    """The text of a file in UTF-8, with or without a mark of it at the beginning."""
    data = file.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{file}: a text file in UTF-16: save it in UTF-8.")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}: not a text file in UTF-8 (line {line}).") from None


def _parsed(text: str, where: str) -> dict[str, Any]:
    """What a text in TOML says."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not valid TOML: {error}.") from None
    except RecursionError:
        raise UserError(f"{where}: lists and tables stand too deep within each other.") from None
    except ValueError as error:                      # a number of more digits than Python reads
        digits = re.search(r"\d[\d_]{4000}", text)
        if digits is None:
            raise UserError(f"{where}: not valid TOML: {error}.") from None
        line = text.count("\n", 0, digits.start()) + 1
        raise UserError(f"{where}, line {line}: a number of more digits than any setting takes.") from None
    check_depth(table, where)
    return table


def check_depth(table: Any, where: str) -> None:
    """Refuse a table that no recursive function could go through."""
    if (key := too_deep(table)) is not None:
        raise UserError(f"{where}: {cut(key, BRIEF)}: lists and tables stand too deep within each other.")


def parse(table: dict[str, Any], file: Path, text: str = "", changes: dict[str, Any] | None = None) -> Recipe:
    """A recipe from a table as TOML gives it."""
    check_depth(table, str(file))
    table = copy.deepcopy(table)
    for key, value in (changes or {}).items():
        check_depth(value, f"{file}: --set {cut(key, BRIEF)}")
        change(table, key, value, file)
    if {"compare", "arm"} & set(table):
        raise UserError(f"{file}: this is a comparison: trainwright compare {file}.")
    known = {"title": str, "seed": Seed, "trackers": tuple[str, ...], "stage": list}
    for key in table:
        if key not in known:
            raise UserError(f"{file}: unknown key {brief(key)}{suggest(key, known)}.")
    if isinstance(table.get("stage"), dict):
        raise UserError(f"{file}: a recipe has a list of stages: write [[stage]], not [stage].")
    if not isinstance(table.get("stage", []), list):
        raise UserError(f"{file}: stage must be a list, not {brief(table['stage'])}.")
    top = {key: fit(value, known[key], f"{file}: {key}") for key, value in table.items() if key != "stage"}
    listed = table.get("stage")
    if not listed:
        raise UserError(f"{file}: a recipe needs at least one [[stage]].")
    check_seed(top.get("seed", 0), str(file))
    names = [one.get("name") for one in listed if isinstance(one, dict)]
    found: list[Stage] = []
    for number, one in enumerate(listed, 1):
        found.append(read_stage(one, f"{file}: stage {number}", str(file), Names(found, names, file.parent)))
    title, seed, trackers = top.get("title", file.stem), top.get("seed", 0), top.get("trackers", ())
    return Recipe(title, seed, trackers, tuple(found), file, text)


def place_of(root: Path, name: str) -> Path:
    """The path that a recipe in the folder ``root`` names; ``~`` is the user's home."""
    return root / os.path.expanduser(name)


def own_code(*tables: Any) -> list[str]:
    """Files of Python that tables of a recipe name, and that whoever prepares its stages runs: methods, and
    factories of models."""
    found: dict[str, None] = {}
    for one, _ in levels(tables):
        for value in (one.get("use"), one.get("factory")) if isinstance(one, dict) else ():
            file = value.rpartition(":")[0] or value if isinstance(value, str) else ""
            found |= {file: None} if file.endswith(".py") else {}
    return list(found)


class Names:
    """What a stage may name under ``from``.

    Args:
        before: the stages before it.
        every: the names of all stages of the list, in order, as far as they have one.
        root: the folder against which paths are read.
        given: further names and what is behind them (what stands around a list within a stage).
    """

    def __init__(self, before: Sequence[Stage], every: Sequence[Any], root: Path,
                 given: dict[str, tuple[Made, ...]] | None = None) -> None:
        self.before, self.every, self.root = before, every, root
        self.known = dict(given or {})
        for stage in before:
            self.known |= {stage.name: (stage.makes,)} | stage.children()

    def check(self, name: str, role: str, where: str) -> None:
        """Raise a UserError for a name that is neither an earlier stage nor a path."""
        if name.startswith("hf://") and not re.fullmatch(HUB, name):
            raise UserError(f"{where}: from.{role} = {brief(name)}: a model of the Hub is hf://OWNER/NAME.")
        if name in self.known or name.startswith(("package://", "hf://")):
            return
        if name in self.every:
            itself = self.every.index(name) == len(self.before)
            which = "this stage itself" if itself else "a later stage"
            raise UserError(
                f"{where}: from.{role} = {name!r} is {which}; stages run in order, each from earlier ones."
            )
        stage, label = label_of(name)
        if label and stage in self.known:
            kept = [n for n in self.known if n.startswith(f"{stage}@")]
            raise UserError(f"{where}: from.{role} = {name!r}: {stage!r} keeps "
                            + (f"the snapshots {', '.join(kept)}." if kept
                               else "no snapshots: name them in its snapshots = […]."))
        if not os.path.exists(place_of(self.root, name)):
            raise UserError(f"{where}: from.{role} = {brief(name)} is neither an earlier stage nor a path"
                            f"{suggest(name, self.known)}.")


def read_stage(table: Any, where: str, file: str, names: Names) -> Stage:
    """One stage from its table.

    Raises:
        UserError: a mistake in it; ``where`` names it until its own name is known.
    """
    if not isinstance(table, dict):
        raise UserError(f"{where} must be a table: write [[stage]].")
    name = table.get("name")
    if not isinstance(name, str) or len(name) > 100 or not re.fullmatch(WORD, name):
        raise UserError(f"{where}: name must be a word of at most 100 letters, digits, '_', '.' or '-', not "
                        f"{brief(name)}.")
    where = f"{file}: stage {name!r}"
    if name in names.known:
        raise UserError(f"{where}: two stages have this name.")
    cls = _kind(table.get("kind"), where)
    known = {"kind", "from", *(f.name for f in dataclasses.fields(cls))} - {"inputs"}
    for key in table:
        if key not in known:
            raise UserError(f"{where}: unknown setting {brief(key)}{_meant(key, known, table)}.")
    settings = {("inputs" if k == "from" else k): v for k, v in table.items() if k != "kind"}
    settings["inputs"] = _inputs(settings.get("inputs", {}), names, where)
    for method in settings.get("methods", ()) if isinstance(settings.get("methods", ()), list) else ():
        if not isinstance(method, dict) or not isinstance(method.get("use"), str):
            raise UserError(f"{where}: a method is a table such as {{ use = \"next_token\" }}, not "
                            f"{brief(method)}.")
    made: Stage = make(cls, cls.read(settings, names, file, where), where)
    try:
        made.check(where)
    except UserError as error:
        raise UserError(cut(str(error), max(MOST, len(where) + 2 * BRIEF))) from None
    return made


def _meant(key: str, known: Iterable[str], table: dict[str, Any]) -> str:
    """What somebody may have meant by a key that a stage does not have: what other programs call one that it
    has, or a setting of one of its methods."""
    own = ELSEWHERE.get(key, key)
    if own != key and own in known:
        return f" (did you mean {own!r}?)"
    methods = table.get("methods")
    for method in methods if isinstance(methods, list) else ():
        card = registry.cards().get(str(method.get("use"))) if isinstance(method, dict) else None
        if card is not None and any(setting[0] == own for setting in card.settings):
            return f"; {card.name} has the setting {own!r}: write it there"
    return suggest(key, known)


def _kind(kind: Any, where: str) -> type[Stage]:
    if not isinstance(kind, str) or kind not in stages():
        near = suggest(kind, stages()) if isinstance(kind, str) and kind else ""
        raise UserError(f"{where}: kind must be one of {', '.join(stages())}, not {brief(kind)}{near}.")
    return stages()[kind]


def _inputs(given: Any, names: Names, where: str) -> dict[str, list[str]]:
    if not isinstance(given, dict):
        raise UserError(f"{where}: from must be a table such as {{ model = \"base\" }}, not {brief(given)}.")
    out: dict[str, list[str]] = {}
    for role, told in given.items():
        listed = [told] if isinstance(told, str) else told
        if not isinstance(listed, list) or not listed or not all(isinstance(n, str) for n in listed):
            raise UserError(f"{where}: from.{role} must be a name or a list of names, not {brief(told)}.")
        for name in listed:
            names.check(name, role, where)
        out[role] = listed
    return out


def change(table: dict[str, Any], key: str, value: Any, file: Path) -> None:
    """``--set adapt.tokens=1000``, ``--set seed=3``, ``--set adapt.methods.adamw.lr=1e-3``."""
    listed = table.get("stage", ())
    tables = [s for s in listed if isinstance(s, dict)] if isinstance(listed, list) else []
    stages = {str(s.get("name")): s for s in tables}
    whole = max((n for n in stages if key.startswith(f"{n}.")), key=len, default="")
    parts = [whole, *key.removeprefix(f"{whole}.").split(".")] if whole else key.split(".")
    if key in stages:
        raise UserError(f"{file}: --set {key}: say which setting of the stage, such as {key}.seed=1.")
    if len(parts) == 1:
        table[key] = value
        return
    if not whole:
        raise UserError(f"{file}: --set {key}: there is no stage {parts[0]!r}{suggest(parts[0], stages)}.")
    at: Any = stages[whole]
    for part in parts[1:-1]:
        if isinstance(at, list):
            tables = [m for m in at if isinstance(m, dict)]
            at = next((m for m in tables if registry.called(str(m.get("use"))) == part), None)
        else:
            at = at.setdefault(part, {})
        if not isinstance(at, (dict, list)):
            raise UserError(f"{file}: --set {key}: there is no {part!r} to change.")
    if not isinstance(at, dict):
        raise UserError(f"{file}: --set {key}: say which setting of which method, such as "
                        f"{parts[0]}.methods.adamw.lr=1e-3.")
    at[parts[-1]] = value


def parse_change(text: str) -> tuple[str, Any]:
    """``STAGE.KEY=VALUE`` from a command line; the value is read as TOML, or as a string where it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {cut(text, 2 * BRIEF)}: write STAGE.KEY=VALUE, for example adapt.tokens=1e6.")
    try:
        read = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except (ValueError, RecursionError):
        said = cut(text, 2 * BRIEF)
        raise UserError(f"--set {said}: this is no value: it is too long or too deep.") from None
    return key.strip(), read["value"] if len(read) == 1 else value.strip()
