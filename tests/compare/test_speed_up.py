"""The speed-up on curves whose factor is known: a power law, and an arm that runs along it faster."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trainwright.cli import app
from trainwright.compare.speed_up import of_results, speed_up, tokens_for
from trainwright.core.errors import UserError

BUDGETS = [1e6, 2e6, 4e6, 8e6]
NOISE = [0.0, 0.02, -0.01, 0.015, -0.02]


def loss(tokens: float, seed: int = 0) -> float:
    """A power law, which each seed has a little higher or lower."""
    return 60 * tokens**-0.2 * math.exp(NOISE[seed])


def test_a_law_is_read_backwards() -> None:
    """Between budgets, at them, and beyond both ends."""
    losses = [loss(t) for t in BUDGETS]
    for tokens in (0.5e6, 1e6, 1.5e6, 2e6, 5e6, 8e6, 3e7):
        assert tokens_for(loss(tokens), BUDGETS, losses) == pytest.approx(tokens)
    bent = [3.0, 2.5, 2.4, 2.39]
    halfway = math.exp((math.log(2.5) + math.log(2.4)) / 2)
    assert tokens_for(halfway, BUDGETS, bent) == pytest.approx(math.sqrt(2e6 * 4e6))


def test_an_arm_that_runs_along_the_curve_faster_has_that_factor() -> None:
    baseline = [[loss(t, s) for s in range(5)] for t in BUDGETS]
    found = speed_up("Muon", 2e6, [loss(1.4 * 2e6, s) for s in range(5)], BUDGETS, baseline)
    assert found.factor == pytest.approx(1.4) and found.by_seed == pytest.approx([1.4] * 5)
    assert found.low == pytest.approx(1.4) and found.high == pytest.approx(1.4) and not found.beyond
    slower = speed_up("Lion", 2e6, [loss(0.8 * 2e6, s) for s in range(5)], BUDGETS, baseline)
    assert slower.factor == pytest.approx(0.8)
    assert speed_up("SOAP", 8e6, [loss(1e7, s) for s in range(5)], BUDGETS, baseline).beyond


def test_the_interval_is_of_the_logarithm_over_the_seeds() -> None:
    """Factors of 1.2 and 1.5 and a t of 12.71 with one degree of freedom."""
    baseline = [[loss(t, 0)] * 2 for t in BUDGETS]
    found = speed_up("Muon", 2e6, [loss(1.2 * 2e6), loss(1.5 * 2e6)], BUDGETS, baseline)
    half = 12.7062 * (math.log(1.5) - math.log(1.2)) / 2
    assert found.factor == pytest.approx(math.sqrt(1.2 * 1.5))
    assert found.low == pytest.approx(found.factor * math.exp(-half), rel=1e-4)
    assert found.high == pytest.approx(found.factor * math.exp(half), rel=1e-4)


def result(tokens: float, factor: float = 1.3, **changes: Any) -> dict[str, Any]:
    def arm(name: str, speed: float) -> dict[str, Any]:
        runs = [{"seed": s, "metrics": {"loss/prose": loss(speed * tokens, s)}} for s in range(3)]
        return {"name": name, "parameters": 1000, "runs": runs}

    return {
        "metric": "loss/prose",
        "baseline": "AdamW",
        "budget": {"currency": "tokens", "amount": tokens},
        "arms": [arm("AdamW", 1.0), arm("Muon", factor)],
        **changes,
    }


def test_from_the_results_of_a_comparison_at_two_budgets(tmp_path: Path) -> None:
    found = of_results([result(4e6, 1.2), result(2e6, 1.4)])
    assert [(f.arm, f.tokens) for f in found] == [("Muon", 2e6), ("Muon", 4e6)]
    assert [f.factor for f in found] == pytest.approx([1.4, 1.2])
    assert [f.beyond for f in found] == [False, True]
    files = []
    for tokens in (2e6, 4e6):
        files.append(tmp_path / f"{tokens:g}.json")
        files[-1].write_text(json.dumps(result(tokens)))
    told = CliRunner().invoke(app, ["speed-up", *map(str, files)])
    assert told.exit_code == 0, told.output
    assert "Muon at 2,000,000 tokens: 1.30 times as fast [1.30, 1.30]" in told.output


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([result(1e6)], "two budgets at least"),
        ([result(1e6), result(2e6, metric="accuracy/x")], "no results of one comparison: metric"),
        ([result(1e6, metric="accuracy/x"), result(2e6, metric="accuracy/x")], "a speed-up is of a loss"),
        ([result(1e6), result(2e6, budget={"currency": "flops", "amount": 1e9})], "in tokens"),
        ([result(1e6), result(1e6)], "different budgets"),
    ],
)
def test_what_makes_no_speed_up_is_refused(results: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        of_results(results)


def test_a_baseline_that_does_not_get_better_is_refused() -> None:
    with pytest.raises(UserError, match="does not fall from one budget to the next"):
        tokens_for(2.0, [1e6, 2e6], [2.0, 2.1])
