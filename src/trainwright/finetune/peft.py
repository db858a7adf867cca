"""Any tuner of the PEFT library as a surgery: DoRA, IA3, VeRA, OFT, BOFT, LoHa, LoKr, RandLoRA, FourierFT …

The tuners of PEFT (https://github.com/huggingface/peft) are put into the model in place. ``config`` names a
configuration class of PEFT and ``options`` are its fields. The option ``target_modules`` chooses layers; by
default these are all linear layers but the output head.

Do not use it for what acts outside the layers: soft prompts, and tuners that add a loss or need a call
between steps (AdaLoRA, X-LoRA, Poly).

Errors: the extra ``peft`` is not installed; PEFT refuses the options; a tuner that cannot be merged.
"""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationMixin

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Surgery
from trainwright.lm.layers import LINEAR, roles

HELD = "_peft_model"
"""Where PEFT's wrapper is kept, beside the modules, so that the model and its names stay what they are."""
OUTSIDE = ("use_asa", "alora_invocation_tokens", "eva_config")
"""Options by which a tuner of layers comes to need more than its layers, which PEFT does not report."""


class Peft(Surgery):
    """A tuner of PEFT, put into the model in place."""

    config: str
    """Name of PEFT's configuration class, such as LoraConfig, IA3Config or VeraConfig."""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of that class, such as { r = 8, use_dora = true }."""
    example: ClassVar[dict[str, Any]] = {"config": "LoraConfig", "options": {"r": 2, "use_dora": True}}
    needs: ClassVar[tuple[str, ...]] = ("peft",)

    def __post_init__(self) -> None:
        self.build()

    def claims(self, model: nn.Module) -> set[str]:
        return {"*"}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        from peft import get_peft_model
        config = self.build()
        if HELD in model.__dict__:
            raise UserError(
                f"peft ({self.config}): the model carries a tuner of PEFT already; a stage can have one."
            )
        if config.task_type is None and isinstance(model, GenerationMixin):
            config.task_type = "CAUSAL_LM"
        if self.all_linear(model, config):
            config.target_modules = "all-linear"
        devices = [ctx.device.index or 0] if ctx.device.type == "cuda" else []
        training = model.training
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(ctx.rng(f"peft/{self.config}", at=0).initial_seed())
            with _told(f"peft: {self.config} cannot be put into this model"):
                model.__dict__[HELD] = get_peft_model(model, config)
        model.train(training)  # new modules always come in training mode
        if not any(p.requires_grad for p in model.parameters()):
            raise UserError(f"peft: {self.config} with {self.options} leaves nothing to train.")
        self.try_merge(model)

    def try_merge(self, model: nn.Module) -> None:
        """Merge a copy of a layer of each name: better refused now than after the training."""
        from peft.tuners.tuners_utils import BaseTunerLayer
        alike = {n.rpartition(".")[2]: m for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
        with torch.no_grad(), _told(f"peft: {self.config} cannot be merged into the weights of this model"):
            for layer in alike.values():
                copy.deepcopy(layer).merge()

    def fold(self, model: nn.Module) -> None:
        tuner = model.__dict__[HELD].base_model
        with torch.no_grad(), _told(f"peft: {self.config} could not be merged"):
            tuner.merge_and_unload()
        del model.__dict__[HELD]

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``adapter_config.json`` and ``adapter_model.safetensors``, which ``peft.PeftModel`` reads."""
        from peft import get_peft_model_state_dict
        wrapper = model.__dict__[HELD]
        folder.mkdir(parents=True, exist_ok=True)
        tensors = get_peft_model_state_dict(wrapper)
        save_file(
            {
                n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()
            },  # cloned: no two may share memory
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        config = copy.deepcopy(wrapper.active_peft_config)
        config.inference_mode = True
        config.save_pretrained(str(folder))

    def build(self) -> Any:
        """A fresh configuration (PEFT writes into the one it is given). Raises ValueError, as settings do."""
        kinds, tuners, base = _library()
        if self.config not in kinds:
            raise ValueError(f"PEFT has no configuration {self.config!r}{suggest(self.config, kinds)}.")
        kind = kinds[self.config]
        fields = {f.name for f in dataclasses.fields(kind) if f.init}
        for option in self.options.keys() - fields:
            raise ValueError(f"{self.config} has no field {option!r}{suggest(option, fields)}.")
        with _told(f"{self.config} refuses its options", ValueError):
            config = kind(**copy.deepcopy(self.options))
        tuner = tuners[config.peft_type]
        if not issubclass(tuner, base):
            raise ValueError(
                f"{self.config} changes the input of the whole model (prompts, prefixes), not its layers, "
                "which a surgery cannot; take a tuner of layers such as LoraConfig."
            )
        if tuner.forward is not base.forward or any(config.__dict__.get(o) for o in OUTSIDE):
            raise ValueError(
                f"{self.config} with these options acts outside the layers (another loss, routing, a call "
                "between steps), which a surgery cannot; take a tuner of layers such as LoraConfig."
            )
        return config

    def all_linear(self, model: nn.Module, config: Any) -> bool:
        """Whether to take all linear layers: none are named, and PEFT means it for them."""
        fields = type(config).__dataclass_fields__
        named = any(config.__dict__.get(f) for f in ("target_modules", "target_parameters"))
        if "target_modules" not in fields or "feedforward_modules" in fields or named:
            return False  # two sorts of targets (IA3): PEFT's own choice stands
        known = vars(_library()[1][config.peft_type]).get("target_module_mapping") or {}
        linear = roles(model, (n for n, m in model.named_modules() if isinstance(m, LINEAR)))
        meant = {n for names in known.values() for n in names} & {n.rpartition(".")[2] for n in linear}
        return bool(meant) or "all-linear" in fields["target_modules"].metadata.get("help", "")


def _library() -> tuple[dict[str, type], dict[Any, type], Any]:
    """PEFT's configurations by class name, its tuners by type, and the base of those that live in layers."""
    try:
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
        from peft.tuners.tuners_utils import BaseTuner
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise UserError("the method peft needs the PEFT library: pip install trainwright[peft].") from None
    return (
        {c.__name__: c for c in PEFT_TYPE_TO_CONFIG_MAPPING.values()},
        PEFT_TYPE_TO_TUNER_MAPPING,
        BaseTuner,
    )


@contextmanager
def _told(what: str, kind: type[Exception] = UserError) -> Iterator[None]:
    """PEFT refuses with errors of every kind: report each in one sentence."""
    try:
        yield
    except Exception as error:
        raise kind(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
