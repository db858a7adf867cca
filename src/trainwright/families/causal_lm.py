"""Language models that write with a decoder alone: each output depends on the tokens before it."""
from __future__ import annotations

from typing import Any, ClassVar

from trainwright.families.base import Family


class CausalLm(Family):
    """transformers' ``…ForCausalLM``; of types that fill gaps too, those with ``is_decoder = true``."""

    auto: ClassVar[str] = "AutoModelForCausalLM"
    causal: ClassVar[bool] = True

    def takes(self, config: Any) -> bool:
        from transformers import AutoModelForMaskedLM
        fills_gaps = type(config) in AutoModelForMaskedLM._model_mapping
        decoder = not fills_gaps or bool(getattr(config, "is_decoder", False))
        return decoder and not config.is_encoder_decoder
