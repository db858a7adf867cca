"""What is said stands behind the token of good text, and has no other control token in it."""
from __future__ import annotations

import pytest
import torch

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate.decode.behind_good import BehindGood
from trainwright.lm.generation import Prompt, written


def test_scores_by_hand() -> None:
    """Without a control token <good> (5) is certain; behind <good> or <bad> (4) both are impossible."""
    ctx = Context(tokenizer=tiny.tokenizer())
    process = BehindGood(last=5).processor(tiny.model(), ctx)
    scores = torch.arange(8.0).expand(3, 8)
    made = process(torch.tensor([[1, 2], [1, 5], [4, 1]]), scores)
    assert made[0].softmax(-1).tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    for row in (1, 2):
        assert made[row, [4, 5]].eq(-torch.inf).all() and torch.equal(made[row, :4], scores[row, :4])


def test_a_text_that_is_written() -> None:
    """From prompts with and without a control token, at any temperature."""
    model, tokenizer = tiny.model().eval(), tiny.tokenizer()
    ctx = Context(tokenizer=tokenizer, decode=[BehindGood(last=222)])
    for temperature in (0.0, 5.0):
        one, two = written(model, tokenizer, [Prompt([0, 7], 12, 1, temperature),
                                              Prompt([0, 222], 12, 2, temperature)], ctx)
        assert one[0] == 222 and not {221, 222} & {*one[1:], *two}


def test_no_room_for_the_tokens() -> None:
    with pytest.raises(UserError, match="no room for the two"):
        BehindGood().processor(tiny.model(), Context(tokenizer=tiny.tokenizer()))
