"""Configs of transformers: made from a table of a recipe, read from a folder, and of another size.

Special tokens have one role each. A padding token's row of the embeddings is never trained
(``padding_idx``), so that the end of a text is never padding: a model's config names a padding token where
the tokenizer has one for that alone, or where the type cannot be without, which is found out by trying.
Then it is a row behind those of the tokenizer.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from trainwright.core.errors import UserError
from trainwright.core.files import read_json
from trainwright.core.settings import COUNTED
from trainwright.core.shown import brief
from trainwright.families import packed
from trainwright.families.libraries import first_line, near, quiet

MOST_LAYERS = 2048
"""More of them are a slip of the pen, and would take hours to put together."""
MOST_LABELS = 1 << 20
"""Of a classifier: transformers gives each a name."""
MOST_BYTES = 16 << 20
"""Of a config; the largest that are known have a megabyte."""
CONFIG, PART = "config.json", "part.json"
"""The file of a model's config, and that of a part of a model which alone computes something else: under this
name no other reader takes the folder for a checkpoint."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
"""What a config calls the tokens that a tokenizer has for itself."""
FORCED = r"forced_.*_token_id"
"""Tokens that a type would have generation write, which are some others in a vocabulary of another kind."""


class Tokens(NamedTuple):
    """What a model must know of the tokens that it reads."""

    size: int
    special: dict[str, int | None]
    """``bos_token_id`` and the like; empty while the tokenizer is not there yet."""

    @classmethod
    def of(cls, tokenizer: Any) -> Tokens:
        return cls(len(tokenizer), {n: getattr(tokenizer, n) for n in SPECIAL})


# ---- made of a table ------------------------------------------------------------------------------------


def transformers_config(table: dict[str, Any], tokens: Tokens | None, where: str) -> Any:
    """A transformers config from ``{ type = "llama", … }``; one of several models has a table for each.

    Raises:
        UserError: an unknown type or field, a vocabulary smaller than the tokenizer's, or a padding token
            that is another of its tokens.
    """
    from transformers import CONFIG_MAPPING
    kind = table["type"]
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"{where}: model.type {kind!r} is no model of transformers{near(kind, CONFIG_MAPPING)}."
        )
    cls = CONFIG_MAPPING[kind]
    fields = {k: dict(v) if isinstance(v, dict) else v for k, v in table.items() if k != "type"}
    _check_fields(fields, cls, f"{where}: model")
    if tokens is None:
        return _started(_made(cls, fields, where), table, None)
    text = cls.sub_configs.get("text_config")
    held = fields.setdefault("text_config", {}) if text else fields
    whose = text if dataclasses.is_dataclass(text) else cls
    _fit_vocabulary(held, whose, tokens, where)
    unpadded = _fit_padding(held, whose, tokens, where)
    if unpadded and _cannot_be_without_padding(cls, fields):
        held |= {"pad_token_id": tokens.size, "vocab_size": _one_more(kind, table, tokens, where)}
        _check_positions(cls, fields, where)
    made = _made(cls, fields, where)
    return _started(made, table, tokens.special.get("bos_token_id") or 0)


def _started(config: Any, table: dict[str, Any], first: int | None) -> Any:
    """The config, whose decoder begins with ``first`` where the table leaves that open, or
    with what the type says."""
    unset = first is not None or getattr(config, "decoder_start_token_id", None) is None
    if config.is_encoder_decoder and "decoder_start_token_id" not in table and unset:
        config.decoder_start_token_id = first or 0
    return config


def _made(cls: Any, fields: dict[str, Any], where: str) -> Any:
    quiet()
    try:
        return cls(**fields)
    except ZeroDivisionError:
        zeros = ", ".join(
            f"model.{key}" for key, value in fields.items() if value == 0 and value is not False
        )
        raise UserError(f"{where}: {zeros or 'model'} must not be 0.") from None
    except Exception as error:
        raise UserError(f"{where}: model: {first_line(error).rstrip('.')}.") from None


def _check_fields(fields: dict[str, Any], cls: Any, where: str) -> None:
    known = {f.name for f in dataclasses.fields(cls)} | set(getattr(cls, "attribute_map", {}))
    for key, value in fields.items():
        part = cls.sub_configs.get(key)
        if key not in known and key not in _read_by(cls):
            raise UserError(f"{where}.{key} is no field of {cls.__name__}{near(key, known)}.")
        if isinstance(value, dict) and dataclasses.is_dataclass(part):
            _check_fields(value, part, f"{where}.{key}")
        _check_size(key, value, f"{where}.{key}")


def _check_size(key: str, value: Any, name: str) -> None:
    """Refuse a number that would take all time and memory before anybody could see what it leads to."""
    if "layer" in key and "size" not in key and isinstance(value, int) and value > MOST_LAYERS:
        raise UserError(f"{name} = {brief(value)} is too many: a model has at most {MOST_LAYERS:,} layers.")
    if key == "num_labels" and isinstance(value, (int, float)) and not 0 <= value <= MOST_LABELS:
        raise UserError(f"{name} = {brief(value)} is no number of labels: a model has at most "
                        f"{MOST_LABELS:,}.")
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int) and not COUNTED.has(one):
            raise UserError(f"{name} must be a whole number below 2**31 in size, not {brief(one)}.")


@cache
def _read_by(cls: Any) -> frozenset[str]:
    """What the models of a type read from their config where it has it, though no
    field of the type says so."""
    name = cls.__module__.replace(".configuration_", ".modeling_")
    spec = importlib.util.find_spec(name)
    if name == cls.__module__ or spec is None or spec.origin is None:
        return frozenset()
    source = Path(spec.origin).read_text(encoding="utf-8")
    return frozenset(re.findall(r"getattr\((?:self\.)?config, \"(\w+)\"", source))


def _fit_vocabulary(fields: dict[str, Any], cls: Any, tokens: Tokens, where: str) -> None:
    if "vocab_size" not in {f.name for f in dataclasses.fields(cls)} | set(getattr(cls, "attribute_map", {})):
        raise UserError(
            f"{where}: model: a {cls.__name__} has no vocab_size, so that such a model cannot be made for "
            "the tokenizer; it can be taken from a checkpoint."
        )
    if fields.setdefault("vocab_size", tokens.size) < tokens.size:
        raise UserError(f"{where}: model.vocab_size {fields['vocab_size']} does not fit the tokenizer, which "
                        f"has {tokens.size} tokens.")
    known = {f.name: f.default for f in dataclasses.fields(cls)}
    for name in known.keys() & tokens.special.keys() - {"pad_token_id"}:
        fields.setdefault(name, tokens.special[name])
    for name in known:
        if re.fullmatch(FORCED, name):
            fields.setdefault(name, None)


# ---- padding --------------------------------------------------------------------------------------------


def _fit_padding(fields: dict[str, Any], cls: Any, tokens: Tokens, where: str) -> bool:
    """Name the padding token; returns whether there is none."""
    if not tokens.special or "pad_token_id" not in {f.name for f in dataclasses.fields(cls)}:
        return False
    others = {tokens.special.get(n) for n in SPECIAL if n != "pad_token_id"}
    own = tokens.special.get("pad_token_id")
    own = None if own in others else own
    said = fields.setdefault("pad_token_id", own)
    if said is not None and said != own and isinstance(said, int) and 0 <= said < tokens.size:
        raise UserError(
            f"{where}: model.pad_token_id = {said} is a token that the tokenizer has for something else, "
            "and a padding token's embedding is never trained: leave it out."
        )
    return said is None


def _one_more(kind: str, table: dict[str, Any], tokens: Tokens, where: str) -> int:
    """The size of a vocabulary with a row for padding behind the tokenizer's."""
    if table.get("vocab_size", tokens.size + 1) == tokens.size:
        raise UserError(
            f"{where}: a model of type {kind!r} needs a row of its own for padding: leave model.vocab_size "
            f"out, or say at least {tokens.size + 1}."
        )
    return max(tokens.size + 1, int(table.get("vocab_size", 0)))


def _check_positions(cls: Any, fields: dict[str, Any], where: str) -> None:
    """Refuse a type that would count positions from behind the vocabulary."""
    made = _made(cls, fields, where)
    begin = first_position(made)
    if begin >= getattr(made, "max_position_embeddings", begin + 1) or _failure(made) != _failure(
        _padded(made, 1)
    ):
        raise UserError(
            f"{where}: a model of type {made.model_type!r} counts positions from the number of its padding "
            "token, and the tokenizer has none: mask_token = true in its corpus stage gives it one."
        )


def _cannot_be_without_padding(cls: Any, fields: dict[str, Any]) -> bool:
    """Whether models of a type refuse a config without a padding token, or fail without
    one and not with one."""
    try:
        config = cls(**fields)
    except Exception:
        return _allows(cls, fields)
    return _reads_padding(_Kind(config))


def _allows(cls: Any, fields: dict[str, Any]) -> bool:
    """Whether a type takes fields once they name some padding token."""
    padding = {"pad_token_id": 0}
    inner = {"text_config": fields["text_config"] | padding} if "text_config" in fields else padding
    try:
        cls(**fields | inner)
    except Exception:
        return False
    return True


class _Kind:
    """A config as the key of a cache of what holds of all configs of its class."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __hash__(self) -> int:
        return hash(type(self.config))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kind) and type(other.config) is type(self.config)


@cache
def _reads_padding(kind: _Kind) -> bool:
    without, padded = (
        _failure(shrunk(kind.config, pad_token_id=n) or _padded(kind.config, n)) for n in (None, 1)
    )
    return without != "" and without != padded


def _padded(config: Any, padding: int | None) -> Any:
    """A config like this one with another padding token."""
    made = copy.deepcopy(config)
    made.pad_token_id = padding
    return made


def _failure(config: Any) -> str:
    """Why a model of a config cannot be run, as far as shapes tell; empty where it can."""
    from transformers import AutoModel
    quiet()
    try:
        with torch.device("meta"), torch.no_grad():
            ids = torch.zeros(1, 4, dtype=torch.int64)
            given = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
            AutoModel.from_config(config, trust_remote_code=False)(input_ids=ids, **given)
    except Exception as error:
        return repr(error)
    return ""


def first_position(config: Any) -> int:
    """The position of a text's first token: 0, or behind the number of the padding token, as in RoBERTa."""
    padding = getattr(config, "pad_token_id", None)
    return padding + 1 if isinstance(padding, int) and _counts_from_padding(_Kind(config)) else 0


@cache
def _counts_from_padding(kind: _Kind) -> bool:
    """Whether the table of positions has a row for padding."""
    from transformers import AutoModel
    small = shrunk(kind.config, pad_token_id=1) or _padded(kind.config, 1)
    most = getattr(small, "max_position_embeddings", None)
    quiet()
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(small, trust_remote_code=False)
        words = model.get_input_embeddings()
    except Exception:
        return False
    return any(
        isinstance(m, nn.Embedding) and m.num_embeddings == most and m.padding_idx == 1 and m is not words
        for m in model.modules()
    )


# ---- read, and of another size --------------------------------------------------------------------------


def read_config(place: str) -> Any:
    """The config in a folder or of a Hub name, without running anything that lies there. With which kernels a
    model computes is not the folder's to say: transformers would fetch and run those of any name.

    Raises:
        UserError: it is no config, or has more layers than any model.
    """
    from transformers import AutoConfig
    folder, name = Path(place), config_file(Path(place)).name
    if folder.is_dir():
        _check_read(read_json(folder / name, MOST_BYTES), str(folder / name))
    made = AutoConfig.from_pretrained(place, trust_remote_code=False, _configuration_file=name)
    packed.take_out(made)
    made._attn_implementation = made._experts_implementation = None
    return made


def config_file(folder: Path) -> Path:
    """The file of a folder's config."""
    return folder / PART if (folder / PART).is_file() else folder / CONFIG


def _check_read(held: Any, name: str) -> None:
    if not isinstance(held, dict) or not isinstance(held.get("model_type"), str):
        raise UserError(f"{name} is no config of transformers: it has no model_type.")
    for key, value in _walked(held):
        _check_size(key, value, f"{name}: {key}")


def _walked(held: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in held.items():
        yield key, value
        if isinstance(value, dict):
            yield from _walked(value)


def shrunk(config: Any, **changes: Any) -> Any:
    """A transformers config with two layers and a small vocabulary, as far as its fields allow; else None."""
    names = getattr(config, "attribute_map", {})
    left_out = ("layer_types", "mlp_layer_types", "transformers_version")
    small = {"num_hidden_layers": 2, "vocab_size": 64,
             "bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | changes
    try:
        table = {k: v for k, v in config.to_dict().items() if k not in left_out}
        made = type(config)(**table | {names.get(k, k): v for k, v in small.items()})
    except Exception:                                      # a type with rules of its own
        return None
    made.architectures = config.architectures
    return made
