"""The answer in words follows the verdict."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.report.comparison import sample
from trainwright.report.comparison.numbers import read
from trainwright.report.comparison.sentences import lead, story


def sentences(result: dict[str, Any]) -> list[str]:
    return [re.sub(r"<[^>]+>", "", line) for _, line in story(read(result))]


def changed(result: dict[str, Any], arm: str, metric: str, values: dict[str, Any]) -> dict[str, Any]:
    """The result with other values in one comparison."""
    result = copy.deepcopy(result)
    next(c for c in result["comparisons"] if (c["arm"], c["metric"]) == (arm, metric)).update(values)
    return result


def test_same_arm_twice() -> None:
    result = sample.again()
    assert lead(read(result)).startswith("The same arm twice in the stage adapt, each with 5 seeds")
    assert len(sentences(result)) == 1 and sentences(result)[0].startswith(
        "full again: no difference from full at this budget"
    )
    alarm = changed(result, "full again", "loss/code", {"verdict": "worse"})
    assert "A difference was found where there is none." in sentences(alarm)[1]


@pytest.mark.parametrize(
    ("difference", "better", "verdict", "says"),
    [
        (
            -0.02,
            "lower",
            "better",
            "lora is better than full: its loss on code is lower by 0.020 [0.010, 0.030].",
        ),
        (
            0.02,
            "lower",
            "worse",
            "lora is worse than full: its loss on code is higher by 0.020 [0.010, 0.030].",
        ),
        (
            0.02,
            "higher",
            "better",
            "lora is better than full: its loss on code is higher by 0.020 [0.010, 0.030].",
        ),
        (
            0.02,
            "lower",
            "no difference",
            "lora: no difference from full at this budget in loss on code (+0.020 [0.010, 0.030]).",
        ),
    ],
)
def test_the_words_follow_the_verdict(difference: float, better: str, verdict: str, says: str) -> None:
    """An interval that leaves out zero is no verdict: Holm's correction decides, and the sentence follows
    it."""
    values = {
        "difference": difference,
        "low": difference - 0.01,
        "high": difference + 0.01,
        "better": better,
        "verdict": verdict,
    }
    assert sentences(changed(sample.single(), "lora", "loss/code", values))[0].startswith(says)


def test_gain_has_a_sentence_unless_it_is_the_main_metric_in_other_words() -> None:
    result = sample.single() | {"metric": "perplexity/code"}
    assert not any("learns" in s for s in sentences(result))
    result = sample.single() | {"metric": "forgetting/prose"}
    assert "It learns less of code: +0.908 instead of +0.945." in sentences(result)[0]
    assert (
        "forgets" not in sentences(result)[0]
        and "its forgetting of prose is lower by" in sentences(result)[0]
    )
