"""CLIP: the loss of transformers' own model, the bound of the temperature, and one contrast on two ranks."""
from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.conftest import Ranks
from trainwright import families
from trainwright.check import tiny
from trainwright.core.batches import cut
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Data, State
from trainwright.pretrain.clip import LARGEST, Clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clip")


def of_transformers(model: nn.Module, batch: Batch) -> Any:
    """What transformers computes, given texts as they end for its pooling."""
    ids, there = families.ended(model, batch["input_ids"], batch["attention_mask"])
    return model(input_ids=ids, attention_mask=there, pixel_values=batch["pixel_values"], return_loss=True)


@pytest.mark.parametrize("parts", [1, 4])
def test_loss_and_gradients_are_those_of_transformers(parts: int, folder: Path) -> None:
    run = tiny.stage(Clip(), folder)
    batch = run.pull()
    found = run.gradients(cut(batch, parts), note=True)
    wanted = of_transformers(run.model, batch)
    wanted.loss.backward()
    assert float(run.ctx.notes["loss"][0][0]) == pytest.approx(float(wanted.loss.detach()), abs=1e-5)
    trained = {n: p for n, p in run.params.items() if p.requires_grad}
    assert trained.keys() == found.keys()
    for name, parameter in trained.items():
        assert parameter.grad is not None
        assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-5), name


def test_what_is_logged_is_the_share_of_the_right_ones(folder: Path) -> None:
    run = tiny.stage(Clip(), folder)
    batch = run.pull()
    run.gradients([batch], note=True)
    logits = of_transformers(run.model, batch).logits_per_image
    right = torch.arange(len(logits))
    for name, way in (("image", logits), ("text", logits.T)):
        told = float(run.ctx.notes[f"accuracy_{name}"][0][0])
        assert told == pytest.approx(float((way.argmax(1) == right).float().mean()))
    scale = float(run.model.logit_scale.detach().exp())
    assert float(run.ctx.notes["logit_scale"][0][0]) == pytest.approx(scale)


def test_the_scale_is_held_at_a_hundred_and_comes_back(folder: Path) -> None:
    run = tiny.stage(Clip(), folder)
    with torch.no_grad():
        run.model.logit_scale.fill_(7.0)
    run.settle()
    assert float(run.model.logit_scale.detach().exp()) == pytest.approx(100.0, rel=1e-6)
    assert float(run.gradients([run.pull()])["logit_scale"]) != 0, "it is not stuck there"
    with torch.no_grad():
        run.model.logit_scale.fill_(LARGEST - 1)
    run.settle()
    assert float(run.model.logit_scale.detach()) == pytest.approx(LARGEST - 1)


def test_a_step_is_one_contrast_not_several(folder: Path) -> None:
    """The mean of the losses of two halves would be another number: a half has fewer wrong ones."""
    run = tiny.stage(Clip(), folder)
    batch = run.pull()
    losses = [float(of_transformers(run.model, b).loss.detach()) for b in (batch, *cut(batch, 2))]
    run.gradients(cut(batch, 2), note=True)
    found = float(run.ctx.notes["loss"][0][0])
    assert found == pytest.approx(losses[0], abs=1e-5) and abs(found - sum(losses[1:]) / 2) > 0.3


class Words(Data):
    """Rows without pictures."""

    def next(self, pull: Callable[[], Batch], state: State, ctx: Any) -> Batch:
        ids = torch.ones(ctx.batch_rows, 4, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": ids}


def test_mistakes_are_named(folder: Path) -> None:
    run = tiny.built([Words(), Clip(), tiny.default("Optimizer")], folder, kind=tiny.CLIP)
    with pytest.raises(UserError, match=r"^clip: the batch has no pixel_values: .*fields = \["):
        run.step()
    with pytest.raises(UserError, match=r"clip: a Linear has no logit_scale"):
        Clip().init(nn.Linear(2, 2), run.ctx)
    with pytest.raises(UserError, match=r"clip scores models of the families image_text, and a Llama"):
        tiny.built([Words(), Clip(), tiny.default("Optimizer")], folder, kind=tiny.LLAMA)


LIFE = """title = "Pictures"
seed = 1

[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
tune = 0.0
test = 0.25
methods = [{ use = "images", paths = ["pictures"] }]

[[stage]]
name = "base"
kind = "train"
from = { data = "corpus" }
model.type = "clip"
model.projection_dim = 8
model.text_config = { TOWER }
model.vision_config = { TOWER, image_size = 8, patch_size = 4 }
steps = 4
batch_size = 8
accumulate = 2
precision = "fp32"
methods = [
  { use = "examples", fields = ["image", "text"], length = 16 },
  { use = "clip" },
  { use = "clip_gradients" },
  { use = "adamw", lr = 1e-2, eps = 1e-3 },
  { use = "retrieval", at = [1, 3], show = 2 },
  { use = "zero_shot" },
]
""".replace(
    "TOWER", "hidden_size = 16, intermediate_size = 32, num_hidden_layers = 2, num_attention_heads = 2"
)


def write_pictures(folder: Path) -> None:
    """Squares of two colours, twelve each, the same on every machine."""
    for colour, rgb in (("red", (220, 40, 40)), ("blue", (40, 40, 220))):
        (folder / colour).mkdir(parents=True)
        for i in range(12):
            draw, out = random.Random(f"{colour}{i}"), io.BytesIO()
            shade = tuple(c + draw.randint(-30, 30) for c in rgb)
            Image.new("RGB", (8, 8), shade).save(out, "PNG")  # type: ignore[arg-type]
            (folder / colour / f"{i}.png").write_bytes(out.getvalue())
            (folder / colour / f"{i}.txt").write_text(f"A {colour} square, number {i % 4}.")


@pytest.mark.slow
def test_two_ranks_make_one_contrast(tmp_path: Path, ranks: Ranks) -> None:
    write_pictures(tmp_path / "pictures")
    (tmp_path / "life.toml").write_text(LIFE)
    found = []
    for number in (1, 2):
        done = ranks(tmp_path, f"store{number}", number)
        assert not done.returncode, done.stdout
        (made,) = (tmp_path / f"store{number}").glob("base-*")
        rows = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
        manifest = json.loads((made / "manifest.json").read_text())
        found.append((load_file(made / "model.safetensors"), rows, manifest))
    (one, rows, told), (two, others, again) = found
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], rtol=0, atol=1e-5), name
    for a, b in zip(rows, others, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a["accuracy_image"] == b["accuracy_image"]
    assert told["figures"]["evaluation"].keys() == again["figures"]["evaluation"].keys()
    assert told["pictures"]["retrieval"]["words"] == again["pictures"]["retrieval"]["words"]
