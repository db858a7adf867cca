"""Rows of single documents: each once an epoch, and from a file of pairs to an objective that sees both
answers."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import trainwright
from tests.align import pairs
from tests.corpus.corpora import build, texts
from tests.corpus.test_columns import picture
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.examples import Examples
from trainwright.data.sources.text.text import Text

OBJECTIVE = '''"""The log-probability of the chosen answer against that of the other: for a test."""
import torch.nn.functional as F

from trainwright.core.method import Objective


class Prefers(Objective):
    """The mean difference of two losses, pair by pair."""

    def count(self, batch):
        return float(len(batch["chosen_ids"]))

    def loss(self, model, batch, state, ctx):
        ctx.note("margin", 1.0)
        return self.nats(model, batch, "chosen") - self.nats(model, batch, "rejected")

    def nats(self, model, batch, side):
        logits = model(input_ids=batch[f"{side}_ids"], attention_mask=batch[f"{side}_attention_mask"]).logits
        targets = batch[f"{side}_targets"]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none")
        return losses.view_as(targets).sum(1) / 100
'''
RECIPE = """seed = 2

[[stage]]
name = "pairs"
kind = "corpus"
vocab_size = 300
tune = 0.1
test = 0.1
methods = [{ use = "text", paths = ["pairs.jsonl"] }]

[[stage]]
name = "tuned"
kind = "train"
from = { data = "pairs" }
model = { type = "llama", hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, \
num_attention_heads = 2, num_key_value_heads = 1, max_position_embeddings = 64 }
epochs = 4
batch_size = 11
precision = "fp32"
compile = false
methods = [{ use = "examples", fields = ["chosen", "rejected"], length = 40 }, { use = "./prefers.py" }, \
{ use = "adamw", lr = 1e-2 }]
"""


def context(folder: Path, rows: int = 8, **more: Any) -> Context:
    return Context(seed=3, batch_rows=rows, inputs={"data": [folder]}, **more)


def batches(method: Examples, ctx: Context, many: int) -> list[Any]:
    state: dict[str, Any] = {"shared": {"rows": 0}}
    return [method.next(dict, state, ctx) for _ in range(many)]


def labelled(n: int = 20) -> list[dict[str, Any]]:
    return [row | {"columns": {"label": f"class {i % 2}"}} for i, row in enumerate(texts(n, "a"))]


def test_from_a_file_of_pairs_to_an_objective_that_sees_both(tmp_path: Path) -> None:
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for i in range(40):
            pair = {"prompt": f"Say {i}: ", "chosen": f"{i} it is", "rejected": f"never will I say {i}",
                    "rater": i % 3}
            file.write(json.dumps(pair) + "\n")
    (tmp_path / "prefers.py").write_text(OBJECTIVE)
    (tmp_path / "life.toml").write_text(RECIPE)
    life = trainwright.run(trainwright.load(tmp_path / "life.toml"))
    read = open_corpus(life["pairs"].path)
    assert {"prompt", "chosen", "rejected"} <= set(read.columns) and len(read.examples("train")) == 33
    rows = [json.loads(line) for line in (life["tuned"].path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 12, "four epochs of 33 pairs, 11 at a time"
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5, "it learns to prefer what was chosen"


def test_each_epoch_has_every_document_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    build(tmp_path / "c", labelled(24), tune=0.0, test=0.0)
    made = batches(Examples(fields=("text", "label"), length=32), context(tmp_path / "c"), 6)
    rows = [tuple(row) for batch in made for row in batch["input_ids"].tolist()]
    assert len(set(rows[:24])) == 24 and set(rows[:24]) == set(rows[24:]) and rows[:24] != rows[24:]
    again = batches(Examples(fields=("text", "label"), length=32), context(tmp_path / "c"), 6)
    assert all(torch.equal(a[n], b[n]) for a, b in zip(made, again,
                                                       strict=True) for n in a if torch.is_tensor(a[n]))
    assert Examples().epoch(context(tmp_path / "c")) == 24


def test_labelled_text(tmp_path: Path) -> None:
    build(tmp_path / "c", labelled(), tune=0.0, test=0.0)
    method, ctx = Examples(fields=("text", "label"), length=16), context(tmp_path / "c", rows=20)
    (batch,) = batches(method, ctx, 1)
    assert batch["labels"].shape == (20,) and batch["labels"].sum() == 10
    assert batch["labels"].dtype == torch.int64
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["domain"].shape == (20, 16)
    assert torch.equal(batch["document"], batch["attention_mask"] - 1) and batch["domains"] == ("a",)
    shown = method.preview(batch, ctx)
    assert "input:" in shown and "⟦" in shown and "labels: " in shown
    assert method.row_tokens() == 16 and Examples(fields=("label",)).row_tokens() is None


def test_images_with_texts_on_a_model_that_reads_both(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel
    (tmp_path / "images").mkdir()
    with (tmp_path / "images" / "rows.jsonl").open("w") as file:
        for i in range(6):
            (tmp_path / "images" / f"{i}.png").write_bytes(picture((40 * i, 0, 0), (12, 9)))
            file.write(json.dumps({"image": f"{i}.png", "text": f"red of {40 * i}"}) + "\n")
    build(tmp_path / "c", None, Text(paths=[str(tmp_path / "images" / "rows.jsonl")]), tune=0.0, test=0.0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(
        text_config=small | {"vocab_size": 400, "max_position_embeddings": 16},
        vision_config=small | {"image_size": 8, "patch_size": 4}, projection_dim=4))
    method, ctx = Examples(fields=("image", "text"), length=16), context(tmp_path / "c", rows=6)
    ctx.policy = model
    method.init(model, ctx)
    (batch,) = batches(method, ctx, 1)
    assert batch["pixel_values"].shape == (6, 3, 8, 8) and batch["pixel_values"].dtype == torch.float32
    reds = batch["pixel_values"][:, 0].mean((1, 2)).sort().values
    assert (reds.diff() > 0.1).all() and "pixel_values: (3, 8, 8)" in method.preview(batch, ctx)
    out = model(**{n: batch[n] for n in ("input_ids", "attention_mask", "pixel_values")})
    assert out.logits_per_image.shape == (6, 6)
    (larger,) = batches(Examples(fields=("image",), image_size=5), ctx, 1)
    assert larger["pixel_values"].shape == (6, 3, 5, 5) and larger["domain"].shape == (6,)


def test_a_rank_has_its_part_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "c", labelled(), tune=0.0, test=0.0)
    method = Examples(length=16)
    (whole,) = batches(method, context(tmp_path / "c"), 1)
    monkeypatch.setattr(Context, "rows", lambda self, n: slice(n // 2, n))
    (half,) = batches(method, context(tmp_path / "c"), 1)
    assert torch.equal(half["input_ids"], whole["input_ids"][4:])


def test_mistakes_are_named(tmp_path: Path) -> None:
    build(tmp_path / "c", labelled())
    with pytest.raises(UserError, match="has a chosen; it has text, label"):
        batches(Examples(fields=("chosen",)), context(tmp_path / "c"), 1)
    with pytest.raises(UserError, match="how many rows a step has"):
        batches(Examples(), context(tmp_path / "c", rows=0), 1)
    for wrong, why in (({"fields": ()}, "one field at least"), ({"fields": ("text", "text")}, "none twice"),
                       ({"length": 1}, "length must be 2 or more"),
                       ({"image_size": 0}, "image_size positive")):
        with pytest.raises(ValueError, match=why):
            Examples(**wrong)


def test_the_end_of_an_answer_may_be_left_out() -> None:
    whole, steps = (pairs.batch(ends=ends) for ends in (True, False))
    for side in ("chosen", "rejected"):
        learned, kept = (one[f"{side}_targets"] != -100 for one in (whole, steps))
        assert (learned.sum(1) - kept.sum(1)).tolist() == [1] * len(learned)
        last = learned.shape[1] - 1 - learned.flip(1).int().argmax(1)
        assert not kept[torch.arange(len(kept)), last].any() and not (kept & ~learned).any()
    with pytest.raises(ValueError, match="ends = false goes with"):
        Examples(fields=("chosen", "rejected", "reference"), ends=False)
