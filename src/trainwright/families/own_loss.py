"""What a model of transformers adds to the loss of its tokens when it is given
labels: the balance of experts.

Nothing here knows a type of model. A small one of the same config is asked for its own loss, and what
that has beside the cross-entropy of its logits is looked at, so that a setting in a config that speaks of
a loss acts, or is refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.families.base import create, family_of
from trainwright.families.configs import shrunk

SEEN = 1e-5
"""Part of a loss that rounding does not explain."""
ALIKE = 1e-2
"""How far the weight that is measured may be from that of the config."""
ASKS = "output_"
"""In the names of settings that ask for one more output."""
INNER = 8
"""Inner units of the small model's layers."""


def own_weight(config: Any) -> float:
    """By how much a model's own ``aux_loss`` is multiplied in its loss; 0 where its
    loss is that of the tokens.

    Raises:
        UserError: it adds something else.
    """
    return (
        _weight(json.dumps(_table(config), sort_keys=True, default=str), _Held(config))
        if _knobs(config)
        else 0.0
    )


def check_knobs(table: dict[str, Any], config: Any, where: str) -> None:
    """Refuse a setting of a table that speaks of a loss, or asks for one more output, and changes no loss.

    Raises:
        UserError: also where a model of this config adds what is not known here.
    """
    usual = (
        {f.name: f.default for f in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else {}
    )
    said = [n for n, value in table.items() if value and value != usual.get(n)
            and (n in _knobs(config) or (value is True and ASKS in n))]
    if not said or own_weight(config):
        return
    for name in (f.name for f in dataclasses.fields(config) if ASKS in f.name):
        if getattr(config, name) is False and own_weight(_changed(config, name)):
            raise UserError(
                f"{where}: model.{said[0]} = {table[said[0]]} changes nothing without model.{name} = true."
            )
    raise UserError(f"{where}: model.{said[0]} = {table[said[0]]} changes nothing in a model of type "
                    f"{config.model_type!r}: leave it out.")


def _table(config: Any) -> dict[str, Any]:
    made = getattr(config, "to_dict", dict)()
    return made if isinstance(made, dict) else {}


def _knobs(config: Any) -> dict[str, float]:
    """The numbers of a config, and of its parts, whose names speak of a loss, where they are not 0."""
    return {n: float(v) for n, v in _numbers(_table(config)) if "loss" in n and v}


def _numbers(table: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(name, str) and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value


def _changed(config: Any, name: str) -> Any:
    return type(config)(
        **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)} | {name: True}
    )


class _Held:
    """A config that is no part of a key."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)


@cache
def _weight(key: str, held: _Held) -> float:
    config = held.config
    found = _measured(config)
    if found is None:
        return 0.0
    added, balance = found
    if abs(added) <= SEEN:
        return 0.0
    alike = [v for v in _knobs(config).values() if balance and abs(added / balance / v - 1) < ALIKE]
    if not alike or config.is_encoder_decoder:
        names = ", ".join(f"{n} = {v:g}" for n, v in _knobs(config).items())
        raise UserError(
            f"a model of type {config.model_type!r} with {names} adds to the loss of its tokens what is not "
            "known here: set it to 0."
        )
    return alike[0]


def _measured(config: Any) -> tuple[float, float] | None:
    """What a small model's own loss has beside the cross-entropy of its logits, as a part of it, and its own
    ``aux_loss``, as the same part; None where no small model can be made and run."""
    inner = {
        n: INNER for n, v in _table(config).items() if n.endswith("intermediate_size") and isinstance(v, int)
    }
    small = shrunk(config, pad_token_id=None if getattr(config, "pad_token_id", None) is None else 1, **inner)
    ids = torch.randint(2, 64, (1, 16), generator=Context(seed=0).rng("own_loss"))
    if small is None or not family_of(config).causal:
        return None
    if small.is_encoder_decoder:
        small.decoder_start_token_id = 0
    try:
        model: Any = create(small, 0, "").eval()
        with torch.no_grad():
            out = model(input_ids=ids, labels=ids, use_cache=False)
            logits, wanted = (
                (out.logits, ids) if small.is_encoder_decoder else (out.logits[:, :-1], ids[:, 1:])
            )
            plain = float(F.cross_entropy(logits.double().flatten(0, 1), wanted.flatten()))
            balance = getattr(out, "aux_loss", None)
            return float(out.loss) / plain - 1, (0.0 if balance is None else float(balance)) / plain
    except Exception:                                      # sizes that do not fit, which is told elsewhere
        return None
