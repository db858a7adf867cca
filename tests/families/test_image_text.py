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


@pytest.mark.slow
def test_another_way_to_make_pixels_is_kept(tmp_path: Path, tokenizer: Any) -> None:
    families.save(made(tokenizer), tmp_path / "a", tokenizer)
    file = tmp_path / "a" / "preprocessor_config.json"
    table = json.loads(file.read_text()) | {"image_mean": [0.5, 0.5, 0.5], "do_center_crop": False}
    file.write_text(json.dumps(table))
    model = families.load(tmp_path / "a", "here")
    assert families.pictures(model).mean == (0.5, 0.5, 0.5)
    families.save(model, tmp_path / "b", tokenizer)
    assert json.loads((tmp_path / "b" / "preprocessor_config.json").read_text()) == table


@pytest.mark.parametrize("text", [
    "[]", "{", "{}", '{"image_mean": 1, "image_std": [1, 1, 1]}', '{"image_mean": ["a"], "image_std": [1]}',
    '{"image_mean": [0, 0, 0], "image_std": [0, 1, 1]}', '{"image_mean": [NaN], "image_std": [1]}'])
def test_what_makes_no_pixels_is_refused(tmp_path: Path, tokenizer: Any, text: str) -> None:
    families.save(made(tokenizer), tmp_path, tokenizer)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        families.load(tmp_path, "here")


def rows(*texts: list[int], length: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Token rows of equal length and where they have a token."""
    ids = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
    return ids, torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])


def test_every_row_has_one_end_and_none_in_front(tokenizer: Any) -> None:
    model, end = made(tokenizer), tokenizer.eos_token_id
    ids, there = families.ended(model, *rows(
        [end, 5, 6, end], [5, 6], [end, 5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 10], [end, end], [5, end]))
    found = [row[seen.bool()].tolist() for row, seen in zip(ids, there, strict=True)]
    assert found == [[5, 6, end], [5, 6, end], [5, 6, 7, 8, 9, end], [5, 6, 7, 8, 9, end], [end], [5, end]]


def test_texts_that_differ_lie_apart(tokenizer: Any) -> None:
    """The text tower reads from left to right: the state of a token in front is the same for all texts."""
    model = made(tokenizer).eval()
    ids, there = rows([tokenizer.eos_token_id, 5, 6], [tokenizer.eos_token_id, 7, 8])
    with torch.no_grad():
        one, two = families.text_embeddings(model, ids, there)
        same = model.get_text_features(input_ids=ids, attention_mask=there).pooler_output
    assert (one - two).norm() > 0.1 and torch.allclose(same[0], same[1]), "so much for leaving it in front"
    assert one.norm() == pytest.approx(1.0) and one.dtype == torch.float32


def test_the_saved_tokenizer_says_to_transformers_what_was_trained(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import CLIPModel, CLIPProcessor
    model, texts = made(tokenizer).eval(), ["the sea", "the rain the rain"]
    families.save(model, tmp_path, tokenizer)
    given = CLIPProcessor.from_pretrained(tmp_path)(text=texts, padding=True, return_tensors="pt")
    ids, there = rows(*(tokenizer(text)["input_ids"] for text in texts), length=8)
    with torch.no_grad():
        wanted = families.text_embeddings(model, ids, there)
        found = CLIPModel.from_pretrained(tmp_path).get_text_features(**given).pooler_output
    assert torch.allclose(found / found.norm(dim=1, keepdim=True), wanted, atol=1e-6)
    assert CLIPProcessor.from_pretrained(tmp_path).tokenizer.model_max_length == 77
    assert tokenizer("the sea")["input_ids"][0] == tokenizer.bos_token_id, "the one given stays as it is"


@pytest.mark.parametrize("table", [TABLE, TABLE | {"family": "image_text"}])
def test_the_end_must_be_one_that_transformers_finds(table: dict[str, Any], tokenizer: Any) -> None:
    for end, right in ((None, False), (2, False), (3, True)):
        one = Ending(tokenizer, end)
        if right:
            assert families.from_table(table, one, "here").text_config.eos_token_id == 3
            continue
        with pytest.raises(UserError, match=r"^here: a model of images and texts needs a tokenizer with"):
            families.from_table(table, one, "here")


class Ending:
    """A tokenizer with another end of text."""

    def __init__(self, tokenizer: Any, end: int | None) -> None:
        self.size, self.eos_token_id = len(tokenizer), end
        self.bos_token_id = self.pad_token_id = None

    def __len__(self) -> int:
        return self.size


def test_a_config_without_its_tokenizer_names_no_token_that_is_not_there() -> None:
    config = families.from_table(TABLE, None, "here", vocabulary=300)
    text = config.text_config
    assert text.vocab_size == 300 and text.eos_token_id is None and text.bos_token_id is None
    assert families.blocks_of(config) == (16, 2)
