"""Models: from a recipe's table, from a seed, in and out of folders. This is all that the rest of the package uses."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainwright.core.errors import UserError, located
from trainwright.core.method import Evaluator, Objective
from trainwright.families.artifact import load
from trainwright.families.base import (
    Family,
    body_parameters,
    create,
    families,
    family_of,
    is_pretrained,
    made_from,
    named,
    quiet,
    skeleton,
    transformers_config,
)
from trainwright.families.causality import check_causal, check_causal_config, evaluating, is_causal, takes_positions, token_logits
from trainwright.families.checkpoints import (
    BACKBONE,
    backbone,
    check_folder,
    export,
    load_config,
    load_tokenizer,
    save,
    unpack,
)

__all__ = [
    "BACKBONE", "Family", "backbone", "body_parameters", "check_causal", "check_causal_config", "check_folder", "check_methods",
    "create", "evaluating", "export", "families", "family_of", "from_table", "is_causal", "is_closed", "is_pretrained", "load",
    "load_config", "load_tokenizer", "made_from", "quiet", "save", "skeleton", "takes_positions", "token_logits", "unpack"]


def from_table(table: dict[str, Any], tokenizer: Any, where: str, root: Path = Path()) -> Any:
    """A config from ``model = { type = "llama", … }``; vocabulary and special tokens come from the tokenizer.

    Args:
        table: ``type`` (or what else a family is asked for by, such as ``factory``), its fields, and ``family`` where the type
            alone would be taken for another.
        root: folder against which paths in the table are read.

    Raises:
        UserError: an unknown type or field, or a vocabulary smaller than the tokenizer's.
    """
    if sum(isinstance(table.get(key), str) for key in {f.key for f in families().values()}) != 1:
        raise UserError(f"{where}: model needs a type, for example {{ type = \"llama\", hidden_size = 128 }}, or a function of "
                        "yours: { factory = \"./net.py:build\" }.")
    fields = {k: v for k, v in table.items() if k != "family"}
    family = named(table["family"], where) if "family" in table else _asked_for(fields)
    if family is None:
        return transformers_config(fields, tokenizer, where)
    if not isinstance(fields.get(family.key), str):
        raise UserError(f"{where}: a model of the family {family.name} needs model.{family.key}.")
    return family.config(fields, tokenizer, where, root)


def is_closed(table: dict[str, Any] | None) -> bool:
    """Whether models of this table of a recipe can be loaded again only with the table."""
    family = _asked_for(table or {})
    return family is not None and family.closed


def check_methods(methods: Iterable[Objective | Evaluator], config: Any, where: str) -> None:
    """That objectives and evaluators score models of this family, and that the model is causal where its family is.

    Raises:
        UserError: one that does not, or a model that sees what it is to predict.
    """
    with located(where):
        family = family_of(config)
        for m in methods:
            if family.name not in m.families and "*" not in m.families:
                raise UserError(f"{m.name} scores models of the families {', '.join(m.families)}, and this one is of the family "
                                f"{family.name}.")
        if family.causal:
            check_causal_config(config)


def _asked_for(table: dict[str, Any]) -> Family | None:
    """The family that a key of a table names."""
    return next((f for f in families().values() if f.key != Family.key and f.key in table), None)
