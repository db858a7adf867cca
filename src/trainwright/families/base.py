"""What every family of models can do, and how a family is found: one file of this folder with one class.

A family turns a table of a recipe (``model = { type = "llama", … }``) into a config, a config into a model or
its skeleton, a folder into a model, and a model into a folder. Nothing outside this folder asks which
architecture a model has.
"""
from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from trainwright.core import sharding
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import snake

MOST_LAYERS, MOST_MODULES = 2048, 40_000
"""More of them are a slip of the pen, and would take hours to put together."""
DEFAULT, ARCHITECTURE = 1, 2
"""How specifically a family claims a config: by its type, or by the architecture that the config names."""
MADE_FROM = "_made_from"
"""Where a model keeps the config that it was made from, if it is no model of transformers."""
BUFFERS = (r"\.position_ids$", r"rotary_emb\.inv_freq$", r"\.(masked_)?bias_mask$")
"""Tensors in old checkpoints that every model computes by itself."""


class Tokens(NamedTuple):
    """What a model must know of the tokens that it reads."""

    size: int
    special: dict[str, int | None]
    """``bos_token_id`` and the like; empty while the tokenizer is not there yet."""

    @classmethod
    def of(cls, tokenizer: Any) -> Tokens:
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        return cls(len(tokenizer), {n: getattr(tokenizer, n) for n in special})


class Family:
    """A family of transformers models. One that is not of transformers overrides all that follows."""

    key: ClassVar[str] = "type"
    """The field of ``model = { … }`` by which a recipe asks for a model of this family."""
    file: ClassVar[str] = "config.json"
    """The file by which a folder is known to hold such a model."""
    closed: ClassVar[bool] = False
    """Whether a folder alone is not enough to load it: the table of the recipe that made it is needed too."""
    auto: ClassVar[str] = ""
    """transformers' class of such models."""
    causal: ClassVar[bool] = False
    """Whether no output may depend on a later token; it is measured then."""
    benign: ClassVar[tuple[str, ...]] = ()
    """Patterns of tensors that a checkpoint may have beside the model's: heads of other tasks."""

    @property
    def name(self) -> str:
        return snake(type(self).__name__)

    # ---- which models are meant ---------------------------------------------------------------------

    def claims(self, config: Any, classes: Sequence[str]) -> int:
        """How specifically a config, which names the architectures ``classes``, is claimed; 0: not at all."""
        found = self.class_names(config)
        if not found:
            return 0
        return ARCHITECTURE if set(found) & set(classes) else DEFAULT * self.takes(config)

    def takes(self, config: Any) -> bool:
        """Whether a config of a type that this family has, but of no architecture, is meant to be of it."""
        return True

    def class_names(self, config: Any) -> tuple[str, ...]:
        """transformers' classes of this family for a config."""
        return tuple(c.__name__ for c in _classes(self._auto(), type(config)))

    def _auto(self) -> Any:
        import transformers
        return getattr(transformers, self.auto)

    # ---- config ---------------------------------------------------------------------------------------

    def config(self, table: dict[str, Any], tokens: Tokens | None, where: str, root: Path) -> Any:
        """A config from a table of a recipe that is read in ``root``."""
        made = transformers_config(table, tokens, where)
        if not (names := self.class_names(made)):
            raise UserError(f"{where}: transformers has no model of type {table['type']!r} in the family "
                            f"{self.name}.")
        made.architectures = list(names[:1])
        return made

    def config_in(self, folder: str) -> Any:
        """The config in a folder (or of a Hub name), without running anything that lies there."""
        from transformers import AutoConfig
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)

    def vocabulary(self, config: Any) -> int | None:
        """Tokens that the model has embeddings for."""
        return getattr(config.get_text_config(), "vocab_size", None)

    def most_positions(self, config: Any) -> int | None:
        """Tokens that a row may have, or None where there is no such limit."""
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        return None if most is None else int(most)

    def blocks_of(self, config: Any) -> tuple[int, int]:
        """Width of the hidden states and number of blocks; 0 where the config does not tell."""
        text = config.get_text_config()
        return getattr(text, "hidden_size", 0), getattr(text, "num_hidden_layers", 0)

    def smaller(self, config: Any) -> Any:
        """A config of the same architecture that is quick to make, or None where none is known."""
        return shrunk(config)

    # ---- models -----------------------------------------------------------------------------------------

    def build(self, config: Any, where: str) -> nn.Module:
        """The model, on torch's current device and drawn from its current generator."""
        quiet()
        try:
            model: nn.Module = self._auto().from_config(config, dtype=torch.float32, trust_remote_code=False)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{where}: transformers cannot make this model: "
                            f"{first_line(error).rstrip('.')}.") from None
        return model

    def load(self, name: str, where: str, config: Any) -> nn.Module:
        """The model in a folder (or of a Hub name), in float32.

        Args:
            config: what the recipe says of it, where that is needed.

        Raises:
            UserError: it cannot be read, or its file has other tensors than the model that its config
                describes.
        """
        quiet()
        try:
            model, report = self._auto().from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
                ignore_mismatched_sizes=True, output_loading_info=True)        # both reported below
        except Exception as error:
            raise UserError(f"{where}: cannot load the model {name}: {first_line(error)}") from None
        check_tensors(report, (*BUFFERS, *self.benign), f"{where}: {name}")
        return model  # type: ignore[no-any-return]

    def save(self, model: nn.Module, folder: Path, tokenizer: Any) -> None:
        """A checkpoint that transformers reloads without this package."""
        quiet()
        model.save_pretrained(folder)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The repeated blocks of the model, which may be sharded and recomputed one by one."""
        return sharding.blocks(model)


@cache
def families() -> dict[str, Family]:
    """Every family by name: one for each file of this folder that defines one."""
    package = importlib.import_module(__package__ or "")
    found: dict[str, Family] = {}
    for entry in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found |= {cls().name: cls() for cls in own if issubclass(cls, Family) and cls is not Family}
    return found


def family_of(thing: Any) -> Family:
    """The family of a model or a config.

    Raises:
        UserError: there is none.
    """
    config = made_from(thing) if isinstance(thing, nn.Module) else thing
    model = thing if is_pretrained(thing) else None
    named = getattr(config, "architectures", None) or ()
    classes = named if model is None else [c.__name__ for c in type(model).__mro__]
    best = max(families().values(), key=lambda family: family.claims(config, classes))
    if not best.claims(config, classes):
        kind = getattr(config, "model_type", type(config).__name__)
        known = ", ".join(sorted(families()))
        raise UserError(f"a model of type {kind!r} is of none of the families {known}; "
                        'a function of yours can make it: model = { factory = "./net.py:build" }.')
    return best


def named(name: str, where: str) -> Family:
    """The family of a name."""
    if name not in families():
        raise UserError(f"{where}: there is no family of models {name!r}{suggest(name, families())}.")
    return families()[name]


def made_from(model: nn.Module) -> Any:
    """The config that a model was made from.

    Raises:
        UserError: it is neither a model of transformers nor one that a family has made.
    """
    if MADE_FROM in model.__dict__:
        return model.__dict__[MADE_FROM]
    if not is_pretrained(model):
        raise UserError(f"a {type(model).__name__} is of no family of models, so that it cannot be saved as "
                        "a checkpoint; keep it from Python, or make it in a recipe: "
                        'model = { factory = "./net.py:build" }.')
    return model.config


def has_family(model: nn.Module) -> bool:
    """Whether a family has made it; others come from Python alone."""
    return MADE_FROM in model.__dict__ or is_pretrained(model)


def is_pretrained(model: Any) -> bool:
    """Whether it is a model of transformers."""
    from transformers import PreTrainedModel
    return isinstance(model, PreTrainedModel)


def create(config: Any, seed: int, where: str) -> nn.Module:
    """A model with fresh float32 weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _build(config, where)


def skeleton(config: Any, where: str) -> nn.Module:
    """The model without weights (meta tensors), to count and plan with.

    Raises:
        UserError: it cannot be made, or it would have more modules than any model has.
    """
    modules = count(1)

    def counted(module: nn.Module, name: str, part: nn.Module | None) -> None:
        if next(modules) > MOST_MODULES:
            raise UserError(f"{where}: the model would have more than {MOST_MODULES:,} modules: look at the "
                            "sizes in its config.")

    hook = register_module_module_registration_hook(counted)
    try:
        with torch.device("meta"):
            return _build(config, where)
    finally:
        hook.remove()


def _build(config: Any, where: str) -> nn.Module:
    try:
        family = family_of(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return family.build(config, where)


def body_parameters(model: nn.Module) -> int:
    """Entries of the matrices between embeddings and head: the size that scaling laws count in."""
    outside = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if is_pretrained(model) and (head := model.get_output_embeddings()) is not None:  # type: ignore[operator]
        outside.append(head)
    apart = {id(p) for m in outside for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in apart)


# ---- configs of transformers --------------------------------------------------------------------------


def transformers_config(table: dict[str, Any], tokens: Tokens | None, where: str) -> Any:
    """A transformers config from ``{ type = "llama", … }``; one of several models has a table for each.

    Raises:
        UserError: an unknown type or field, or a vocabulary smaller than the tokenizer's.
    """
    from transformers import CONFIG_MAPPING
    kind = table["type"]
    if kind not in CONFIG_MAPPING:
        raise UserError(f"{where}: model.type {kind!r} is no model of "
                        f"transformers{_near(kind, CONFIG_MAPPING)}.")
    cls = CONFIG_MAPPING[kind]
    fields = {k: dict(v) if isinstance(v, dict) else v for k, v in table.items() if k != "type"}
    _check_fields(fields, cls, f"{where}: model")
    if tokens is not None:
        text = cls.sub_configs.get("text_config")
        _fit_vocabulary(fields.setdefault("text_config", {}) if text else fields, text or cls, tokens, where)
    try:
        config = cls(**fields)
    except Exception as error:
        raise UserError(f"{where}: model: {first_line(error)}") from None
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id or 0                    # which T5 leaves open
    return config


def _check_fields(fields: dict[str, Any], cls: Any, where: str) -> None:
    known = {f.name for f in dataclasses.fields(cls)} | set(getattr(cls, "attribute_map", {}))
    for key, value in fields.items():
        part = cls.sub_configs.get(key)
        if key not in known:
            raise UserError(f"{where}.{key} is no field of {cls.__name__}{_near(key, known)}.")
        if isinstance(value, dict) and dataclasses.is_dataclass(part):
            _check_fields(value, part, f"{where}.{key}")
        if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise UserError(f"{where}.{key} = {value} is too many: a model has at most {MOST_LAYERS:,} "
                            "layers.")


def _fit_vocabulary(fields: dict[str, Any], cls: Any, tokens: Tokens, where: str) -> None:
    if fields.setdefault("vocab_size", tokens.size) < tokens.size:
        raise UserError(f"{where}: model.vocab_size {fields['vocab_size']} does not fit the tokenizer, which "
                        f"has {tokens.size} tokens.")
    known = {f.name for f in dataclasses.fields(cls)}
    for name, value in tokens.special.items():
        if name in known:
            fields.setdefault(name, value)


def shrunk(config: Any) -> Any:
    """A transformers config with two layers and a small vocabulary, as far as its fields allow; else None."""
    names = getattr(config, "attribute_map", {})
    left_out = ("layer_types", "mlp_layer_types", "transformers_version")
    small = {"num_hidden_layers": 2, "vocab_size": 64,
             "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    table = {k: v for k, v in config.to_dict().items() if k not in left_out}
    try:
        made = type(config)(**table | {names.get(k, k): v for k, v in small.items()})
    except Exception:                                      # a type with rules of its own
        return None
    made.architectures = config.architectures
    return made


def _classes(auto: Any, kind: type) -> tuple[type, ...]:
    mapping = auto._model_mapping
    if kind not in mapping:
        return ()
    found = mapping[kind]
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


# ---- what libraries say -----------------------------------------------------------------------------------


def check_tensors(report: dict[str, Any], benign: Iterable[str], where: str) -> None:
    """Refuse a checkpoint whose tensors are not the model's, given transformers' report of loading it."""
    for key, words in (("missing_keys", "lacks"), ("unexpected_keys", "has, beside the model's own,"),
                       ("mismatched_keys", "has in another shape")):
        names = sorted(str(k[0]) if isinstance(k, tuple) else str(k) for k in report.get(key, ()))
        names = [n for n in names if not any(re.search(pattern, n) for pattern in benign)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{where} {words} the tensors {', '.join(names[:3])}{more}: its config.json and "
                            "its weights are not of one model.")


def quiet() -> None:
    """Keep transformers' bars and advice, and the deprecations of libraries, out of our output."""
    from transformers.utils import logging
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _near(word: str, among: Any) -> str:
    near = suggest(word, among)
    return near if "did you mean" in near else ""
