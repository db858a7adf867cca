"""Models of an image tower and a text tower that are compared in one space: CLIP and its kin.

Beside the checkpoint lies ``preprocessor_config.json``, which says how an image becomes pixels; transformers'
own image processors read it.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.families.base import Family

PREPROCESSOR = "preprocessor_config.json"
PREPROCESSED = "_preprocessed"
"""Where a loaded model keeps what lay in that file."""
BICUBIC = 3
"""Pillow's number of the filter."""


class Pictures(NamedTuple):
    """How an image becomes what a model reads: its shorter side resized, the middle cropped, normalized."""

    image_size: int
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def table(self) -> dict[str, Any]:
        """As transformers' ``CLIPImageProcessor`` writes it."""
        side = self.image_size
        return {"image_processor_type": "CLIPImageProcessor", "do_resize": True,
                "size": {"shortest_edge": side}, "resample": BICUBIC,
                "do_center_crop": True, "crop_size": {"height": side, "width": side},
                "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                "image_mean": list(self.mean), "image_std": list(self.std), "do_convert_rgb": True}


class ImageText(Family):
    """transformers' models that say how well an image and a text belong together."""

    auto: ClassVar[str] = "AutoModelForZeroShotImageClassification"

    def takes(self, config: Any) -> bool:
        return {"text_config", "vision_config"} <= set(config.sub_configs)

    def vocabulary(self, config: Any) -> int | None:
        return config.text_config.vocab_size  # type: ignore[no-any-return]

    def most_positions(self, config: Any) -> int | None:
        return int(config.text_config.max_position_embeddings)

    def load(self, name: str, where: str, config: Any) -> nn.Module:
        model = super().load(name, where, config)
        file = Path(name) / PREPROCESSOR
        if file.is_file():
            model.__dict__[PREPROCESSED] = json.loads(file.read_text(encoding="utf-8"))
        return model

    def save(self, model: nn.Module, folder: Path, tokenizer: Any) -> None:
        super().save(model, folder, tokenizer)
        text = json.dumps(model.__dict__.get(PREPROCESSED) or pictures(model).table(), indent=1) + "\n"
        (folder / PREPROCESSOR).write_text(text, encoding="utf-8")

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Those of both towers."""
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
        return [block for one in lists if len({type(b) for b in one}) == 1 for block in one]


def pictures(model: nn.Module) -> Pictures:
    """How the images of a model are made."""
    side = int(model.config.vision_config.image_size)  # type: ignore[union-attr, arg-type]
    table = model.__dict__.get(PREPROCESSED)
    return Pictures(side, tuple(table["image_mean"]), tuple(table["image_std"])) if table else Pictures(side)


def image_embeddings(model: nn.Module, pixels: Tensor) -> Tensor:
    """Where pictures [R, channels, height, width] lie in the common space: float32 [R, d], of length 1."""
    return F.normalize(sharding.within(model, _image, pixels).float(), dim=-1)


def text_embeddings(model: nn.Module, ids: Tensor, there: Tensor) -> Tensor:
    """Where texts lie in the common space: float32 [R, d], of length 1.

    Args:
        ids: int64 [R, L].
        there: int64 [R, L], 1 where a row has a token.
    """
    return F.normalize(sharding.within(model, _text, ids, there).float(), dim=-1)


def _image(model: Any, pixels: Tensor) -> Tensor:
    return model.get_image_features(pixel_values=pixels).pooler_output  # type: ignore[no-any-return]


def _text(model: Any, ids: Tensor, there: Tensor) -> Tensor:
    return model.get_text_features(input_ids=ids, attention_mask=there).pooler_output  # type: ignore[no-any-return]
