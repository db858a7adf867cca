"""What checkpoints must have in common where numbers of one are put beside those of another: their function,
their vocabulary and their special tokens.

Two configs compute alike if small models of them with equal weights give equal outputs. What differs beside
that acts in training alone or far away in a text, and is said in a line.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.files import expected, read_json
from trainwright.core.shown import brief
from trainwright.families.base import create, family_of, skeleton
from trainwright.families.configs import CONFIG, shrunk
from trainwright.families.tokenizers import SAYS, load_tokenizer

APART = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "eos_token_id")
"""Fields of a config that say nothing of its model's function; ends are put together."""
LAYERS = ("layer_types", "mlp_layer_types")
"""Fields that a small model does not have."""
ROLES = ("bos_token_id", "pad_token_id")
MOST = 8_000_000
"""Parameters up to which a small model is made."""
SHOWN = 60
"""Letters of a value."""


class Side(NamedTuple):
    """A model that is put beside others."""

    name: str
    config: Any
    folder: Path | None
    """None while it is not made yet."""


def check_alike(sides: list[Side]) -> list[str]:
    """Refuse models that differ from the first of them in more than their numbers; returns lines about what
    differs and does not matter.

    Raises:
        UserError: the first difference of function, vocabulary or special tokens, by name.
    """
    lines: list[str] = []
    first = sides[0]
    for other in sides[1:]:
        lines += _configs(first, other)
    spoken = [
        (s, t) for s in sides if s.folder is not None and (t := load_tokenizer(s.folder, s.name)) is not None
    ]
    for other, tokenizer in spoken[1:]:
        if told := _tokenizers(spoken[0][1], tokenizer):
            raise UserError(f"{spoken[0][0].name} and {other.name} have different tokenizers: {told}. A "
                            "transform with { use = \"vocabulary_transfer\" } brings one onto the other's.")
        if spoken[0][1].chat_template != tokenizer.chat_template:
            lines.append(f"{spoken[0][0].name} and {other.name} have different chat templates: that of "
                         f"{spoken[0][0].name} is kept")
    return lines


def all_ends(sides: list[Side]) -> list[int]:
    """The tokens at which any of some models ends what it writes, as their configs and
    generation configs say."""
    found: list[int] = []
    for side in sides:
        for told in (*_said(side.folder), getattr(side.config, "eos_token_id", None)):
            found += [
                n for n in (told if isinstance(told, list) else [told]) if n is not None and n not in found
            ]
    return found


def _said(folder: Path | None) -> list[Any]:
    if folder is None or not (file := folder / SAYS).is_file():
        return []
    with expected(file):
        told = read_json(file).get("eos_token_id")
        if not all(isinstance(n, int) for n in (told if isinstance(told, list) else [told or 0])):
            raise ValueError(f"eos_token_id = {brief(told)} is no token")
        return [told]


# ---- configs --------------------------------------------------------------------------------------------


def _configs(first: Side, other: Side) -> list[str]:
    mine, theirs = _fields(first.config), _fields(other.config)
    apart = {
        n: (mine.get(n), theirs.get(n))
        for n in sorted(mine.keys() | theirs.keys())
        if mine.get(n) != theirs.get(n)
    }
    roles = {n: pair for n, pair in apart.items() if n.rpartition(".")[2] in ROLES}
    made = first.folder is not None and other.folder is not None
    for name, pair in roles.items():
        # before a model is made, nobody knows its tokenizer's tokens, nor what its config then says beside
        if made and None not in pair:
            raise UserError(f"{first.name} and {other.name} cannot be put together: {_words(name, pair)}.")
    apart = {n: pair for n, pair in apart.items() if n not in roles and (made or None not in pair)}
    if not apart:
        return []
    alike = (
        None if type(first.config) is not type(other.config) else _compute_alike(first.config, other.config)
    )
    layers = [n for n in apart if n.rpartition(".")[2] in LAYERS]
    if alike is None:
        layers += [n for n in apart if "drop" not in n]
    if alike is False or layers:
        named = (layers or list(apart))[:3]
        more = f" and {len(apart) - len(named)} more" if len(apart) > len(named) else ""
        raise UserError(
            f"{first.name} and {other.name} compute different functions of their weights: "
            f"{', '.join(_words(n, apart[n]) for n in named)}{more}."
        )
    return [f"{first.name} and {other.name} differ in what does not act on a short text: "
            f"{', '.join(_words(n, pair) for n, pair in apart.items())}; that of {first.name} is kept"]


def _words(name: str, pair: tuple[Any, Any]) -> str:
    return f"{name} ({', '.join(repr(v)[:SHOWN] for v in pair)})"


def _fields(config: Any) -> dict[str, Any]:
    """A config's fields, those of its parts under ``PART.FIELD``."""
    from transformers import PreTrainedConfig
    table = config.to_dict() if isinstance(config, PreTrainedConfig) else config.table()
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items() if inner not in APART}
        elif name not in APART:
            flat[name] = value
    return flat


def _compute_alike(one: Any, two: Any) -> bool | None:
    """Whether small models of both, with equal weights, give equal outputs; None where
    there are no such models."""
    made = [_small(c) for c in (one, two)]
    if None in made:
        return None
    try:
        models: list[Any] = [create(c, 0, "").eval() for c in made]
        models[1].load_state_dict(models[0].state_dict())
        ids = torch.randint(2, 64, (1, 16), generator=Context(seed=0).rng("alike"))
        given = {"decoder_input_ids": ids} if made[0].is_encoder_decoder else {}
        with torch.no_grad():
            said = [m(input_ids=ids, use_cache=False, **given).logits for m in models]
    except Exception:                                      # other tensors, or a type with rules of its own
        return False if _shapes(made[0]) != _shapes(made[1]) else None
    return torch.equal(*said)


def _shapes(config: Any) -> dict[str, Any]:
    return {n: p.shape for n, p in skeleton(config, "").named_parameters()}


def _small(config: Any) -> Any:
    """A small model's config with the same function: fewer layers, words, heads and inner units."""
    from transformers import PreTrainedConfig
    if not isinstance(config, PreTrainedConfig) or not family_of(config).class_names(config):
        return None
    padding = None if getattr(config, "pad_token_id", None) is None else 1
    for changes in (_narrow(config), {}):
        small = shrunk(config, pad_token_id=padding, **changes)
        try:
            if small is not None and sum(p.numel() for p in skeleton(small, "").parameters()) <= MOST:
                return small
        except UserError:
            continue
    return None


def _narrow(config: Any) -> dict[str, int]:
    heads, shared = (getattr(config, n, None) for n in ("num_attention_heads", "num_key_value_heads"))
    if not isinstance(heads, int) or not heads:
        return {}
    part = math.gcd(heads, shared) if isinstance(shared, int) and shared else heads
    inner = {
        n: 8 for n, v in config.to_dict().items() if n.endswith("intermediate_size") and isinstance(v, int)
    }
    groups = {"num_key_value_heads": shared // part} if isinstance(shared, int) and shared else {}
    return {"hidden_size": config.hidden_size // part, "num_attention_heads": heads // part} | groups | inner


# ---- tokenizers -----------------------------------------------------------------------------------------


def _tokenizers(one: Any, two: Any) -> str:
    """The first difference of two tokenizers, as the end of a sentence; empty where they read texts alike."""
    mine, theirs = one.get_vocab(), two.get_vocab()
    for token in sorted(mine.keys() | theirs.keys(), key=lambda t: (mine.get(t, theirs.get(t, 0)), t)):
        if mine.get(token) != theirs.get(token):
            kinds = [f"token {v[token]}" if token in v else "no token" for v in (mine, theirs)]
            return f"{token[:SHOWN]!r} is {kinds[0]} of the one and {kinds[1]} of the other"
    if one.is_fast and two.is_fast:
        parts = [json.loads(t.backend_tokenizer.to_str()) for t in (one, two)]
        for name in ("model", "pre_tokenizer", "normalizer", "added_tokens"):
            if parts[0].get(name) != parts[1].get(name):
                return f"they differ in their {name}"
    pair = one.bos_token, two.bos_token
    return _words("bos_token", pair) if None not in pair and pair[0] != pair[1] else ""


def write_ends(folder: Path, ends: list[int], dtype: str | None) -> None:
    """Let the configs in a folder name these ends, and the type of the numbers beside them."""
    for name in (CONFIG, SAYS):
        file = folder / name
        if not file.is_file():
            continue
        held = json.loads(file.read_text(encoding="utf-8"))
        if ends:
            held["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        if dtype and name == CONFIG:
            held.pop("torch_dtype", None)
            held["dtype"] = dtype
        file.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
