"""What every family of models can do, and how a family is found: one file of this folder with one class.

A family turns a table of a recipe (``model = { type = "llama", … }``) into a config, a config into a model or
its skeleton, a folder into a model, and a model into a folder. Nothing outside this folder asks which
architecture a model has.
"""
from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from trainwright.core import sharding
from trainwright.core.errors import UserError, located, suggest
from trainwright.core.method import snake
from trainwright.families import packed
from trainwright.families.configs import Tokens, first_position, read_config, shrunk, transformers_config
from trainwright.families.libraries import check_tensors, check_ties, first_line, left_open, quiet
from trainwright.families.weights import check_sizes

MOST_MODULES = 40_000
"""More of them are a slip of the pen, and would take hours to put together."""
DEFAULT, ARCHITECTURE = 1, 2
"""How specifically a family claims a config: by its type, or by the architecture that the config names."""
MADE_FROM = "_made_from"
"""Where a model keeps the config that it was made from, if it is no model of transformers."""
BUFFERS = (r"\.position_ids$", r"rotary_emb\.inv_freq$", r"\.(masked_)?bias_mask$")
"""Tensors in old checkpoints that every model computes by itself."""


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
        with located(where):
            return self.fitted(made, tokens)

    def fitted(self, config: Any, tokens: Tokens | None) -> Any:
        """A config that was made of a table, with what else it must have in this family.

        Raises:
            UserError: the tokenizer lacks what such a model needs.
        """
        return config

    def config_in(self, folder: str) -> Any:
        """The config in a folder (or of a Hub name), without running anything that lies there."""
        return read_config(folder)

    def vocabulary(self, config: Any) -> int | None:
        """Tokens that the model has embeddings for."""
        return getattr(config.get_text_config(), "vocab_size", None)

    def most_positions(self, config: Any) -> int | None:
        """Tokens that a row may have, or None where there is no such limit."""
        text = config.get_text_config()
        most = getattr(text, "max_position_embeddings", None)
        return None if most is None else int(most) - first_position(text)

    def blocks_of(self, config: Any) -> tuple[int, int]:
        """Width of the hidden states and number of blocks; 0 where the config does not tell."""
        text = config.get_text_config()
        return getattr(text, "hidden_size", 0), getattr(text, "num_hidden_layers", 0)

    def smaller(self, config: Any) -> Any:
        """A config of the same architecture that is quick to make, or None where none is known."""
        return shrunk(config, pad_token_id=None if getattr(config, "pad_token_id", None) is None else 1)

    # ---- models -----------------------------------------------------------------------------------------

    def build(self, config: Any, where: str) -> nn.Module:
        """The model, on torch's current device and drawn from its current generator."""
        quiet()
        try:
            model: nn.Module = self._auto().from_config(config, dtype=torch.float32, trust_remote_code=False)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{where}: transformers cannot make this model: {first_line(error).rstrip('.')}"
                            f"{left_open(error, config)}.") from None
        _check_embeddings(model, self.token_embedding(model), where)
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
        with located(where):
            try:
                made = self.config_in(name)
                asked = packed.unpacking(made, Path(name))
                plain = skeleton(made, where, self)
                if Path(name).is_dir():
                    check_sizes(plain, Path(name))
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)                   # two loads are equal, whatever a library fills in
                    model, report = self._auto().from_pretrained(
                        name, config=asked, dtype=torch.float32, use_safetensors=True,
                        trust_remote_code=False, ignore_mismatched_sizes=True,
                        output_loading_info=True)                        # these two are reported below
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"cannot load the model {name}: {first_line(error)}") from None
        packed.forget(model)
        check_ties(plain, model, f"{where}: {name}")
        check_tensors(report, (*BUFFERS, *self.benign), f"{where}: {name}")
        return model  # type: ignore[no-any-return]

    def save(self, model: nn.Module, folder: Path, tokenizer: Any) -> None:
        """A checkpoint that transformers reloads without this package."""
        quiet()
        model.save_pretrained(folder)  # type: ignore[operator]
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    def token_embedding(self, model: nn.Module) -> nn.Module:
        """What turns tokens into vectors."""
        return model.get_input_embeddings()  # type: ignore[operator, no-any-return]

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


def skeleton(config: Any, where: str, family: Family | None = None) -> nn.Module:
    """The model without weights (meta tensors), to count and plan with.

    Args:
        family: of which it is to be a model; by default the one that claims the config.

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
            return _build(config, where, family)
    finally:
        hook.remove()


def _build(config: Any, where: str, family: Family | None = None) -> nn.Module:
    with located(where):
        mine = family or family_of(config)
    return mine.build(config, where)


def _check_embeddings(model: nn.Module, embedding: nn.Module | None, where: str) -> None:
    """Refuse a type that never trains a token's row of the embeddings, or has rows for another vocabulary,
    whatever its config says."""
    config: Any = model.config
    kept, said = getattr(embedding, "padding_idx", None), getattr(config, "vocab_size", None)
    if kept is not None and kept != getattr(config.get_text_config(), "pad_token_id", None):
        raise UserError(
            f"{where}: a model of type {config.model_type!r} takes the token {kept} for padding whatever its "
            "config says, and would never learn what it is in this tokenizer: take another type."
        )
    if config.sub_configs and said is not None and said != getattr(embedding, "num_embeddings", said):
        raise UserError(
            f"{where}: a model of type {config.model_type!r} is put together of others, which do not heed "
            f"its "
            f"vocab_size = {said}: take another type, or a checkpoint."
        )


def body_parameters(model: nn.Module) -> int:
    """Entries of the matrices between embeddings and head: the size that scaling laws count in."""
    outside = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if is_pretrained(model) and (head := model.get_output_embeddings()) is not None:  # type: ignore[operator]
        outside.append(head)
    apart = {id(p) for m in outside for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in apart)


def _classes(auto: Any, kind: type) -> tuple[type, ...]:
    mapping = auto._model_mapping
    if kind not in mapping:
        return ()
    found = mapping[kind]
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)
