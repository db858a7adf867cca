"""How often the better answer is ranked first, with the interval of a share."""
from __future__ import annotations

import pytest
import torch

from tests.align.pairs import context, moved
from trainwright.align.preference_accuracy import PreferenceAccuracy, numbers_of
from trainwright.align.reward_head import RewardHead
from trainwright.check import tiny
from trainwright.core.errors import UserError


def test_the_interval_is_that_of_wilson() -> None:
    """13 of 20: (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n)."""
    told = numbers_of(torch.tensor([1.0] * 13 + [-1.0] * 7))
    n, p, z = 20, 0.65, 1.959964
    middle, width = (p + z**2 / (2 * n)), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    right = {"preference_accuracy": 0.65, "preference_accuracy_low": (middle - width) / (1 + z**2 / n),
             "preference_accuracy_high": (middle + width) / (1 + z**2 / n), "preference_margin": 0.3,
             "preference_pairs": 20.0}
    assert told == pytest.approx(right, rel=1e-5)


def test_ties_count_half() -> None:
    assert numbers_of(torch.tensor([0.0, 0.0, 1.0, -1.0]))["preference_accuracy"] == 0.5
    with pytest.raises(UserError, match="no pair is left"):
        numbers_of(torch.zeros(0))


def test_a_model_against_itself_prefers_nothing() -> None:
    told = PreferenceAccuracy(by="reference", length=32, domains=("chat",), split="train").measure(
        tiny.model(), context())
    assert (told["preference_accuracy"], told["preference_margin"]) == (0.5, 0.0)


def test_what_ranks_the_answers_is_a_setting() -> None:
    model = moved(far=0.3)
    RewardHead().operate(model, context())
    told = [PreferenceAccuracy(by=by, length=32, domains=("chat",), split="train").measure(model, context())
            for by in ("reward", "reference", "likelihood")]
    assert len({t["preference_margin"] for t in told}) == 3
    assert len({t["preference_pairs"] for t in told}) == 1
    assert PreferenceAccuracy(by="reference").asks() and not PreferenceAccuracy().asks()
