"""Models of an image tower and a text tower that are compared in one space: CLIP and its kin.

Beside the checkpoint lies ``preprocessor_config.json``, which says how an image becomes pixels; transformers'
own image processors read it.

CLIP takes the state of the first end-of-text token as that of the text. A tokenizer may put the same token in
front of every text, of which the text tower would then see nothing: it is left out here, there is one at the
end of every row, and the tokenizer that is saved with the model does so by itself.
"""
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.files import read_json
from trainwright.core.settings import FLOAT32
from trainwright.core.shown import brief
from trainwright.families.base import Family
from trainwright.families.configs import SPECIAL, Tokens

PREPROCESSOR = "preprocessor_config.json"
PREPROCESSED = "_preprocessed"
"""Where a loaded model keeps what lay in that file."""
BICUBIC = 3
"""Pillow's number of the filter."""
OLD_END = 2
"""An ``eos_token_id`` by which transformers knows old CLIP checkpoints: the end is then the largest token."""


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

    def fitted(self, config: Any, tokens: Tokens | None) -> Any:
        text = config.text_config
        if tokens is not None and tokens.special and getattr(text, "eos_token_id", None) in (None, OLD_END):
            raise UserError("a model of images and texts needs a tokenizer with an end-of-text token, whose "
                            f"number is not {OLD_END}.")
        for name in SPECIAL:                                       # CLIP's own may lie beyond the vocabulary
            if (getattr(text, name, None) or 0) >= text.vocab_size:
                setattr(text, name, None)
        return config

    def vocabulary(self, config: Any) -> int | None:
        return config.text_config.vocab_size  # type: ignore[no-any-return]

    def most_positions(self, config: Any) -> int | None:
        return int(config.text_config.max_position_embeddings)

    def load(self, name: str, where: str, config: Any) -> nn.Module:
        model = super().load(name, where, config)
        file = Path(name) / PREPROCESSOR
        if file.is_file():
            model.__dict__[PREPROCESSED] = _preprocessing(file)
        return model

    def save(self, model: nn.Module, folder: Path, tokenizer: Any) -> None:
        most = self.most_positions(model.config)
        super().save(model, folder, None if tokenizer is None else _ending(tokenizer, most))
        text = json.dumps(model.__dict__.get(PREPROCESSED) or pictures(model).table(), indent=1) + "\n"
        (folder / PREPROCESSOR).write_text(text, encoding="utf-8")

    def token_embedding(self, model: nn.Module) -> nn.Module:
        """That of the text tower."""
        return model.text_model.get_input_embeddings()  # type: ignore[operator, union-attr, no-any-return]

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Those of both towers."""
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
        return [block for one in lists if len({type(b) for b in one}) == 1 for block in one]


def _preprocessing(file: Path) -> dict[str, Any]:
    """What a ``preprocessor_config.json`` says of images.

    Raises:
        UserError: it is damaged, or its numbers are no colours.
    """
    table = read_json(file)
    if not isinstance(table, dict):
        raise UserError(f"{file} is damaged: it holds no table.")
    for name in ("image_mean", "image_std"):
        numbers = table.get(name)
        if not isinstance(numbers, list) or not numbers or not all(
                isinstance(n, (int, float)) and abs(n) <= FLOAT32 and (n or name == "image_mean")
                for n in numbers):
            raise UserError(f"{file}: {name} must be a list of numbers, one of each colour, not "
                            f"{brief(numbers)}.")
    return table


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
    return F.normalize(sharding.within(model, _text, *ended(model, ids, there)).float(), dim=-1)


def ended(model: nn.Module, ids: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The same rows without an end-of-text token in front, and with one at the end: behind the last token, or
    in its place where the row is full."""
    text: Any = model.config.text_config  # type: ignore[union-attr]
    end = getattr(text, "eos_token_id", None)
    if end is None:
        return ids, there
    end = text.vocab_size - 1 if end == OLD_END else end
    length = ids.shape[1]
    place = torch.arange(length, device=ids.device)[None]
    front = (ids[:, :1] == end).long() * (there.sum(1, keepdim=True) > 1)
    ids = ids.gather(1, (place + front).clamp(max=length - 1))
    size = there.sum(1, keepdim=True) - front
    last = ids.gather(1, (size - 1).clamp(min=0))
    size = (size + (last != end)).clamp(max=length)
    return torch.where(place == size - 1, end, ids), (place < size).long()


def _image(model: Any, pixels: Tensor) -> Tensor:
    return model.get_image_features(pixel_values=pixels).pooler_output  # type: ignore[no-any-return]


def _text(model: Any, ids: Tensor, there: Tensor) -> Tensor:
    made = model.get_text_features(input_ids=ids, attention_mask=there)
    return made.pooler_output  # type: ignore[no-any-return]


def _ending(tokenizer: Any, most: int) -> Any:
    """A tokenizer that puts the end-of-text token behind a text, where it has put it in front."""
    if tokenizer.eos_token is None or tokenizer.bos_token != tokenizer.eos_token:
        return tokenizer
    from tokenizers import processors
    made = copy.deepcopy(tokenizer)
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {made.eos_token}", special_tokens=[(made.eos_token, made.eos_token_id)])
    made.pad_token, made.model_max_length = made.pad_token or made.eos_token, most
    return made
