"""Models of an encoder and a decoder take the same batches, learn what transformers would have them
learn, and see no target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf
from transformers import AutoModelForSeq2SeqLM

import trainwright as tw
from tests.pretrain.test_ul2 import END, SMALL, VOCABULARY, batches
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.lm import generation
from trainwright.lm.encoder_decoder import halves
from trainwright.lm.losses import isolation_error, token_losses, way_of

T5 = {
    "type": "t5",
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}
BART = {
    "type": "bart",
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "dropout": 0.0,
}


@pytest.fixture(params=[T5, BART], ids=["t5", "bart"])
def model(request: pytest.FixtureRequest) -> tf.PreTrainedModel:
    return families.create(families.from_table(request.param, None, "here"), 0, "here").eval()  # type: ignore[return-value]


def denoised() -> Batch:
    return batches(SMALL)[0][1]


def losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return token_losses(model, batch, Context())


def test_the_loss_is_that_of_transformers(model: tf.PreTrainedModel) -> None:
    batch = denoised()
    found, seen = losses(model, batch), 0
    for r in range(len(batch["input_ids"])):
        for number in (0, 1):
            at = (batch["document"][r] == number).nonzero()[:, 0]
            targets = batch["targets"][r, at]
            first = int((targets != UNTRAINED).nonzero()[0, 0])
            labels = targets[targets != UNTRAINED][None]
            with torch.no_grad():
                theirs = model(input_ids=batch["input_ids"][r, at[:first + 1]][None], labels=labels).loss
            ours = found[r, at][targets != UNTRAINED].mean()
            assert torch.allclose(ours, theirs, atol=1e-5), (
                "each document as if it were alone, its targets its labels"
            )
            seen += 1
    assert seen == 16 and (found[batch["targets"] == UNTRAINED] == 0).all()


def test_nothing_of_a_target_is_seen_before_its_turn(model: tf.PreTrainedModel) -> None:
    batch = denoised()
    trained = batch["targets"] != UNTRAINED
    before = losses(model, batch)
    for r in range(2):
        at = trained[r].nonzero()[:, 0]
        middle = int(at[len(at) // 2])
        other = dict(batch) | {"targets": batch["targets"].clone(), "input_ids": batch["input_ids"].clone()}
        other["targets"][r, middle] = (other["targets"][r, middle] + 5) % END
        if (
            middle + 1 < batch["input_ids"].shape[1]
            and trained[r, middle + 1]
            and batch["position_ids"][r, middle + 1]
        ):
            other["input_ids"][r, middle + 1] = other["targets"][r, middle]
        assert torch.allclose(losses(model, other)[r, :middle], before[r, :middle], atol=1e-6)
    part = halves(batch, 0)
    own = {tuple(row[there == 1].tolist()) for row, there in zip(part.read, part.there, strict=True)}
    assert len(part.read) == 16 and all(len(given) > 1 for given in own)
    assert ((part.wanted != UNTRAINED).sum() == trained.sum()) and (part.begun[:, 0] == 0).all()


def test_plain_text_is_written_behind_its_first_token(model: tf.PreTrainedModel) -> None:
    ids = torch.arange(1, 13).repeat(1, 1)
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:], "position_ids": torch.arange(11)[None]}
    with torch.no_grad():
        theirs = model(input_ids=ids[:, :1], labels=ids[:, 1:]).loss
    assert torch.allclose(losses(model, batch).mean(), theirs, atol=1e-5)
    nothing = batch | {"targets": torch.full_like(ids[:, 1:], UNTRAINED)}
    assert not losses(model, nothing).any()


def test_documents_are_apart_and_what_needs_a_decoder_alone_says_so(model: tf.PreTrainedModel) -> None:
    assert isolation_error(model, VOCABULARY, Context()) == 0.0
    with pytest.raises(UserError, match="has an encoder; this method needs a model that is a decoder alone"):
        way_of(model)


RECIPE = """title = "T5"
[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 400
control_tokens = ["[R]", "[X]", "[S]"]
tune = 0.1
test = 0.1
methods = [{ use = "python_library", megabytes = 0.05, domains = ["prose"] }]

[[stage]]
name = "base"
kind = "train"
from = { data = "corpus" }
model = { type = "t5", vocab_size = 512, d_model = 32, d_kv = 8, d_ff = 64, num_layers = 2, num_heads = 4 }
steps = STEPS
batch_tokens = 1024
methods = [{ use = "pack", length = 128 }, { use = "ul2" }, { use = "next_token" },
           { use = "adamw", lr = 1e-2 }]

[[stage]]
name = "judge"
kind = "evaluate"
from = { models = ["base"], data = "corpus" }
methods = [{ use = "held_out", tokens = 500, length = 64 }]
"""


@pytest.mark.slow
def test_a_life_of_t5(tmp_path: Path) -> None:
    (tmp_path / "life.toml").write_text(RECIPE.replace("STEPS", "20"))
    made = tw.run(tw.load(tmp_path / "life.toml"), tmp_path / "store")
    rows = made["base"].metrics()
    assert (
        rows[-1]["loss"] < rows[0]["loss"] - 0.5
        and made["judge"].figures["numbers"]["base"]["loss/prose"] > 0
    )
    families.export(made["base"].path, tmp_path / "out", "float32")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    ours = families.load(made["base"].path, "here").eval()
    batch = {
        "input_ids": torch.arange(8)[None],
        "targets": torch.arange(1, 9)[None],
        "position_ids": torch.arange(8)[None],
    }
    assert torch.equal(losses(ours, batch), losses(again, batch))
    assert isinstance(generation.generate(made["base"].path, "the sea", 5, 0.0, False, 0), str)
