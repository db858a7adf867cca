"""Masked language modeling: transformers' own loss, a model that learns to fill gaps, and who is refused."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED
from trainwright.core.recipe import load
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.pretrain.masked_token import MaskedToken
from trainwright.storage.store import Store

BERT = {"type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "vocab_size": 50}


def test_it_is_the_loss_of_transformers_token_by_token() -> None:
    model = families.create(families.from_table(BERT, None, "here"), 0, "here")
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(50, (3, 12), generator=draw)
    there = (torch.arange(12) < torch.tensor([[12], [7], [3]])).long()
    targets = torch.where((torch.rand(3, 12, generator=draw) < 0.3) & there.bool(), ids, UNTRAINED)
    batch = {"input_ids": ids, "attention_mask": there, "targets": targets}
    losses = MaskedToken().loss(model, batch, {}, Context())
    wanted = model(input_ids=ids, attention_mask=there, labels=targets).loss
    assert losses.shape == (3, 12) and torch.equal(losses == 0, targets == UNTRAINED)
    assert torch.allclose(losses.sum() / MaskedToken().count(batch), wanted)
    alone = model(input_ids=ids[1:2, :7]).logits[0]                                      # padding is not read
    assert torch.allclose(losses[1, :7], F.cross_entropy(alone, targets[1, :7], reduction="none"), atol=1e-6)


def test_a_batch_without_gaps() -> None:
    batch = {"input_ids": torch.zeros(1, 2), "targets": torch.zeros(1, 2)}
    with pytest.raises(UserError, match=r"add \{ use = \"mask_words\" \}"):
        MaskedToken().loss(torch.nn.Linear(1, 1), batch, {}, Context())


def masked(life: Path, objective: str) -> Path:
    """The tiny life, cut down to a corpus and a BERT that is trained with these methods, and measured."""
    text = life.read_text().partition('[[stage]]\nname = "adapt"')[0]
    text = text.replace("vocab_size = 300", "vocab_size = 300\nmask_token = true")
    start, end = text.index("model = {"), text.index("steps = 6")
    fields = ", ".join(f"{k} = {v!r}".replace("'", '"') for k, v in BERT.items() if k != "vocab_size")
    text = f"{text[:start]}model = {{ {fields} }}\n{text[end:]}".replace("steps = 6", "steps = 30")
    plain, row = 'length = 32 }, { use = "next_token" }', f'length = 32, isolate = "rows" }}, {objective}'
    text = text.replace(plain, row)
    life.write_text(text)
    return life


@pytest.mark.slow
def test_a_bert_learns_to_fill_gaps(life: Path) -> None:
    recipe = load(masked(life, '{ use = "mask_words" }, { use = "masked_token" }'))
    base = run(recipe, Store(life.parent / "store"))["base"]
    told = [row["loss"] for row in base.metrics()]
    assert sum(told[-5:]) / 5 < 0.8 * told[0] and "train_loss/code" in base.metrics()[0]
    assert families.family_of(families.load(base.path, "here")).name == "masked_lm"


def test_next_token_is_refused_for_it_before_anything_runs(life: Path) -> None:
    file = masked(life, '{ use = "next_token" }')
    with pytest.raises(UserError, match=r"stage 'base': next_token scores .* is of the family masked_lm\."):
        jobs(load(file), Store(life.parent / "store"))
    file.write_text(file.read_text().replace('type = "bert"', 'family = "causal_lm", type = "bert"'))
    with pytest.raises(UserError, match="stage 'base': the outputs of BertLMHeadModel depend on later"):
        jobs(load(file), Store(life.parent / "store"))


def test_so_is_an_evaluator_of_other_models(life: Path) -> None:
    judge = '''
[[stage]]
name = "judge"
kind = "evaluate"
from = { models = ["base"], data = "corpus" }
methods = [{ use = "held_out", length = 32 }]
'''
    file = masked(life, '{ use = "mask_words" }, { use = "masked_token" }')
    file.write_text(file.read_text() + judge)
    with pytest.raises(UserError, match="stage 'judge': base: held_out scores models of the families"):
        jobs(load(file), Store(life.parent / "store"))
