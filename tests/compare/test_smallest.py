"""The smallest number that reaches a share of the baseline, from a comparison's result."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trainwright.cli import app
from trainwright.compare.smallest import smallest
from trainwright.core.errors import UserError

SETTING = "intrinsic_dimension.dimension"


def arm(name: str, dimension: int | None, *scores: float, metric: str = "accuracy/test") -> dict[str, Any]:
    methods = [{"use": "adamw", "lr": 1e-3}]
    if dimension is not None:
        methods.append({"use": "intrinsic_dimension", "dimension": dimension})
    runs = [{"seed": i, "metrics": {metric: s}, "failed": None} for i, s in enumerate(scores)]
    return {"name": name, "stage": {"methods": methods}, "runs": runs}


def result(*arms: dict[str, Any], metric: str = "accuracy/test") -> dict[str, Any]:
    return {"metric": metric, "baseline": "full", "arms": list(arms)}


TABLE = result(
    arm("400", 400, 0.80, 0.90),
    arm("full", None, 1.00, 0.80),
    arm("100", 100, 0.50, 0.70),
    arm("200", 200, 0.82, 0.79),
    arm("50", 50, 0.30, 0.30),
)


def test_d90_by_hand() -> None:
    """The baseline is 0.9 on average, 90 % of it 0.81: 200 has 0.805, 400 has 0.85. Seed 0 alone asks for
    0.9 and finds none, seed 1 for 0.72 and finds 200."""
    found = smallest(TABLE, SETTING)
    assert (found.number, found.below) == (400, 200)
    assert found.baseline == pytest.approx(0.9) and found.threshold == pytest.approx(0.81)
    assert list(found.scores) == [50, 100, 200, 400] and found.scores[200] == pytest.approx(0.805)
    assert found.by_seed == (None, 200)


@pytest.mark.parametrize(("share", "number", "below"), [(0.3, 50, None), (0.6, 100, 50), (0.99, None, 400)])
def test_other_shares(share: float, number: int | None, below: int | None) -> None:
    found = smallest(TABLE, SETTING, share)
    assert (found.number, found.below) == (number, below)


def test_what_reaches_the_share_exactly_counts() -> None:
    assert smallest(result(arm("full", None, 0.5), arm("2", 2, 0.25)), SETTING, 0.5).number == 2


def test_of_a_loss_the_gain_over_the_start_counts() -> None:
    arms = [arm("full", None, 2.0, metric="gain/code"), arm("8", 8, 1.9, metric="gain/code")]
    assert smallest(result(*arms, metric="loss/code"), SETTING).number == 8
    with pytest.raises(UserError, match="of loss/prose no share can be taken"):
        smallest(result(*arms, metric="loss/prose"), SETTING)
    with pytest.raises(UserError, match="of forgetting/code no share"):
        smallest(result(*arms, metric="forgetting/code"), SETTING)


def test_seeds_that_an_arm_lacks_are_left_out_for_all() -> None:
    found = smallest(result(arm("full", None, 1.0, 0.0), arm("4", 4, 0.95)), SETTING)
    assert found.number == 4 and found.baseline == 1.0 and found.by_seed == (4,)


@pytest.mark.parametrize(
    ("setting", "share", "words"),
    [
        ("intrinsic_dimension.dimensions", 0.9, r"no arm has it \(did you mean 'intrinsic_dim"),
        ("adamw.lr", 0.9, "two have the same"),
        (SETTING, 1.5, "share must be above 0 and at most 1"),
    ],
)
def test_mistakes(setting: str, share: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        smallest(TABLE, setting, share)


def test_the_command_reads_a_result(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(TABLE))
    run = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["smallest", str(file), SETTING])
    assert run.exit_code == 0 and "400" in run.output and "90 %" in run.output
    assert "between 200 and 400" in run.output
    run = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(
        app, ["smallest", str(file), SETTING, "--share", "0.99"]
    )
    assert run.exit_code == 0 and "none of 50, 100, 200 and 400" in run.output
