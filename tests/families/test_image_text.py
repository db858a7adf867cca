"""Images and texts: the checkpoint says how an image becomes pixels, and transformers reads that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus import bpe

TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TABLE: dict[str, Any] = {
    "type": "clip",
    "projection_dim": 8,
    "text_config": TOWER,
    "vision_config": TOWER | {"image_size": 32, "patch_size": 8},
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe.train(["the sea the ship the rain"] * 3, 300)


def made(tokenizer: Any) -> nn.Module:
    return families.create(families.from_table(TABLE, tokenizer, "here"), 0, "here")


def test_the_text_tower_knows_the_tokens(tokenizer: Any) -> None:
    model = made(tokenizer)
    assert families.vocabulary_of(model) == len(tokenizer) and families.positions_of(model.config) == 77
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id
    with pytest.raises(
        UserError, match=r"^here: model\.vision_config\.imgae_size is no field of CLIPVisionConfig"
    ):
        families.from_table(TABLE | {"vision_config": {"imgae_size": 8}}, tokenizer, "here")
    with pytest.raises(UserError, match=r"model\.text_config\.num_hidden_layers = 9999 is too many"):
        families.from_table(TABLE | {"text_config": {"num_hidden_layers": 9999}}, tokenizer, "here")


def test_both_towers_have_blocks(tokenizer: Any) -> None:
    model = made(tokenizer)
    blocks = families.family_of(model).blocks(model)
    assert len(blocks) == 4 and len({id(b) for b in blocks}) == 4


def test_transformers_makes_pixels_as_the_checkpoint_says(tmp_path: Path, tokenizer: Any) -> None:
    from PIL import Image
    from transformers import CLIPProcessor

    model = made(tokenizer)
    families.save(model, tmp_path / "a", tokenizer)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    given = CLIPProcessor.from_pretrained(tmp_path / "a")(text="the sea", images=image, return_tensors="pt")
    how = families.pictures(model)
    wanted = (np.asarray(image) / 255 - np.array(how.mean)) / np.array(how.std)  # nothing to resize or crop
    assert how.image_size == 32
    assert torch.allclose(given["pixel_values"][0], torch.tensor(wanted).permute(2, 0, 1).float(), atol=1e-5)
    loaded = families.load(tmp_path / "a", "here")
    with torch.no_grad():
        out = [m.eval()(**given).logits_per_image for m in (model, loaded)]
    assert torch.allclose(*out) and all(
        torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items()
    )


def test_another_way_to_make_pixels_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    families.save(made(tokenizer), tmp_path / "a", tokenizer)
    file = tmp_path / "a" / "preprocessor_config.json"
    table = json.loads(file.read_text()) | {"image_mean": [0.5, 0.5, 0.5], "do_center_crop": False}
    file.write_text(json.dumps(table))
    model = families.load(tmp_path / "a", "here")
    assert families.pictures(model).mean == (0.5, 0.5, 0.5)
    families.save(model, tmp_path / "b", tokenizer)
    assert json.loads((tmp_path / "b" / "preprocessor_config.json").read_text()) == table
