"""Models: from a recipe's table, from a seed, in and out of folders. The rest uses this alone."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from trainwright.core.errors import UserError, located
from trainwright.core.method import Evaluator, Objective
from trainwright.families.artifact import load
from trainwright.families.base import (
    Family,
    body_parameters,
    create,
    families,
    family_of,
    has_family,
    is_pretrained,
    made_from,
    named,
    skeleton,
)
from trainwright.families.causality import (
    check_causal,
    check_causal_config,
    evaluating,
    is_causal,
    takes_positions,
    token_logits,
)
from trainwright.families.checkpoints import (
    BACKBONE,
    backbone,
    check_folder,
    download,
    export,
    load_config,
    save,
    unpack,
)
from trainwright.families.configs import Tokens, config_file, first_position, transformers_config
from trainwright.families.deltas import write
from trainwright.families.image_text import (
    Pictures,
    ended,
    image_embeddings,
    pictures,
    text_embeddings,
)
from trainwright.families.libraries import quiet
from trainwright.families.own_loss import check_knobs, own_weight
from trainwright.families.tokenizers import front, load_tokenizer, prompt, stop_at, suffix
from trainwright.families.weights import weight_files

__all__ = [
    "BACKBONE",
    "Family",
    "Pictures",
    "backbone",
    "body_parameters",
    "check_causal",
    "check_causal_config",
    "check_folder",
    "check_objectives",
    "config_file",
    "config_vocabulary",
    "create",
    "download",
    "ended",
    "evaluating",
    "export",
    "families",
    "family_of",
    "first_position",
    "from_table",
    "front",
    "has_family",
    "image_embeddings",
    "is_causal",
    "is_closed",
    "is_pretrained",
    "load",
    "load_config",
    "load_tokenizer",
    "made_from",
    "own_weight",
    "pictures",
    "positions_of",
    "prompt",
    "quiet",
    "save",
    "skeleton",
    "stop_at",
    "suffix",
    "takes_positions",
    "text_embeddings",
    "token_logits",
    "unpack",
    "vocabulary_of",
    "weight_files",
    "write",
]


def from_table(table: dict[str, Any], tokenizer: Any, where: str, root: Path = Path(),
               vocabulary: int | None = None) -> Any:
    """A config from ``model = { type = "llama", … }``; vocabulary and special tokens come from the tokenizer.

    Args:
        table: ``type`` (or what else a family is asked for by, such as ``factory``), its fields, and
            ``family`` where the type alone would be taken for another.
        root: folder against which paths in the table are read.
        vocabulary: how many tokens there are, where that is known and the tokenizer is not there yet.

    Raises:
        UserError: an unknown type or field, or a vocabulary smaller than the tokenizer's.
    """
    if sum(isinstance(table.get(key), str) for key in {f.key for f in families().values()}) != 1:
        raise UserError(f"{where}: model needs a type, for example {{ type = \"llama\", hidden_size = 64 }}, "
                        "or a function of yours: { factory = \"./net.py:build\" }.")
    known = Tokens.of(tokenizer) if tokenizer is not None else Tokens(vocabulary, {}) if vocabulary else None
    fields = {k: v for k, v in table.items() if k != "family"}
    family = named(table["family"], where) if "family" in table else _asked_for(fields)
    quiet()
    if family is None:
        made = transformers_config(fields, known, where)
        with located(where):
            check_knobs(fields, made, where)
            return family_of(made).fitted(made, known)
    if not isinstance(fields.get(family.key), str):
        raise UserError(f"{where}: a model of the family {family.name} needs model.{family.key}.")
    made = family.config(fields, known, where, root)
    with located(where):
        check_knobs(fields, made, where)
    return made


def is_closed(table: dict[str, Any] | None) -> bool:
    """Whether models of this table of a recipe can be loaded again only with the table."""
    family = _asked_for(table or {})
    return family is not None and family.closed


def check_objectives(methods: Iterable[Objective | Evaluator], model: Any) -> None:
    """Refuse objectives and evaluators of other families, and a model that is not causal where its family is.

    Args:
        model: a model, which may be without weights, or its config. Causality is measured on a small model of
            that config, where one is quick to make.

    Raises:
        UserError: a method that does not, a model that sees what it is to predict, or one whose own loss has
            something in it that is not known.
    """
    family = family_of(model)
    for m in methods:
        if family.name not in m.families and "*" not in m.families:
            raise UserError(f"{m.name} scores models of the families {', '.join(m.families)}, and a "
                            f"{type(model).__name__} is of the family {family.name}.")
    config = made_from(model) if isinstance(model, nn.Module) else model
    own_weight(config)
    if family.causal:
        check_causal_config(config)


def vocabulary_of(model: nn.Module) -> int | None:
    """Tokens that a model has embeddings for, or None where it is told none."""
    return config_vocabulary(made_from(model))


def config_vocabulary(config: Any) -> int | None:
    """The same, of a config."""
    return family_of(config).vocabulary(config)


def positions_of(config: Any) -> int | None:
    """Tokens that a row may have, or None where there is no such limit."""
    return family_of(config).most_positions(config)


def blocks_of(config: Any) -> tuple[int, int]:
    """Hidden size and number of the repeated blocks, as far as a config tells; 0 where it does not."""
    from transformers import PreTrainedConfig
    if not isinstance(config, PreTrainedConfig):
        return 0, 0
    text = config.get_text_config()
    return getattr(text, "hidden_size", 0), getattr(text, "num_hidden_layers", 0)


def _asked_for(table: dict[str, Any]) -> Family | None:
    """The family that a key of a table names."""
    return next((f for f in families().values() if f.key != Family.key and f.key in table), None)
