"""A reward model: the number of transformers' own, kept in an artifact, and read by later stages."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.align.pairs import batch, context, moved
from trainwright import families
from trainwright.align._pairs import rows_of
from trainwright.align._rewards import ends, head_of, rewards
from trainwright.align.reward_head import RewardHead
from trainwright.check import tiny
from trainwright.core.errors import UserError


def test_a_reward_is_that_of_a_classifier_of_transformers() -> None:
    from transformers import LlamaForSequenceClassification
    model = moved()
    RewardHead().operate(model, context())
    model.config.num_labels, model.config.pad_token_id = 1, None
    theirs = LlamaForSequenceClassification(model.config)
    theirs.model.load_state_dict(model.model.state_dict())
    head = head_of(model).out
    with torch.no_grad():
        theirs.score.weight.copy_(head.weight)
    rows = rows_of(batch())
    places = ends(rows)
    for row, last in enumerate(places.tolist()):
        one = theirs.eval()(input_ids=rows["input_ids"][row:row + 1, :last + 1]).logits[0, 0]
        torch.testing.assert_close(rewards(model, rows)[row], one, rtol=1e-5, atol=1e-5)


def test_it_is_read_at_the_token_that_ends_the_answer() -> None:
    rows, tokenizer = rows_of(batch()), tiny.tokenizer()
    read = rows["input_ids"][torch.arange(16), ends(rows)].tolist()
    assert {tokenizer.decode([t]) for t in read} == {"<|im_end|>"}


def test_a_later_stage_has_the_rewards_of_the_model_that_was_saved(tmp_path: Path) -> None:
    model, method, rows = moved(), RewardHead(), rows_of(batch())
    method.operate(model, context())
    with torch.no_grad():
        head_of(model).out.weight *= 1.5
    before = rewards(model, rows)
    assert families.write(model, [method], 1, tmp_path / "out", tiny.tokenizer()) == ["reward_head"]
    again = families.load(tmp_path / "out", "test")
    torch.testing.assert_close(rewards(again, rows), before)
    with pytest.raises(UserError, match="gives no rewards"):
        rewards(families.load(tmp_path / "out" / "backbone", "test"), rows)


def test_a_second_head_is_refused() -> None:
    model = tiny.model()
    RewardHead().operate(model, context())
    with pytest.raises(UserError, match="a reward head already"):
        RewardHead().operate(model, context())
