"""Which way a number is better, and which settings name one."""
from __future__ import annotations

import pytest

from trainwright.core.metrics import direction, improves, watched
from trainwright.optim.constant import Constant
from trainwright.optim.early_stop import EarlyStop


def test_direction() -> None:
    assert direction("loss/code") == direction("forgetting/prose") == "lower"
    assert direction("gain/code") == direction("acc/arc_easy") == "higher"
    assert direction("delight") is None


def test_a_filter_of_the_harness_follows_a_comma() -> None:
    assert direction("exact_match,strict-match/gsm8k") == "higher"
    assert direction("word_perplexity/wikitext") == "lower"
    assert direction("acc_stderr/arc_easy") is None, "an error is no score"


@pytest.mark.parametrize(("value", "than", "way", "by", "expected"), [
    (1.0, 2.0, "lower", 0.0, True), (2.0, 2.0, "lower", 0.0, False), (1.95, 2.0, "lower", 0.1, False),
    (2.0, 1.0, "higher", 0.0, True), (1.05, 1.0, "higher", 0.1, False)])
def test_improves(value: float, than: float, way: str, by: float, expected: bool) -> None:
    assert improves(value, than, way, by) is expected  # type: ignore[arg-type]


def test_a_setting_that_names_a_number_is_found_by_its_type() -> None:
    assert watched(EarlyStop(metric="loss/code")) == {"metric": "loss/code"}
    assert watched(Constant()) == {}
