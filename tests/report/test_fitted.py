"""A fitted law in the terminal: what is printed goes back into a recipe."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainwright.cli import app
from trainwright.core import registry
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.report.fitted import recipe_line
from trainwright.search.step_law import StepLaw

PLANTED = StepLaw(lr_scale=0.9, lr_parameters=-0.55, lr_tokens=0.2, batch_scale=3.0, batch_exponent=0.45)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "runs.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in PLANTED.made_up(Context())))
    return file


def printed(*words: object) -> str:
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["fit-law", *map(str, words)])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
def test_the_command_tells_constants_errors_a_prediction_and_the_recipes_line(rows: Path) -> None:
    said = printed("step_law", "--rows", rows, "--parameters", "4e6", "--tokens", "8e7")
    assert (
        "fitted on 315 runs" in said
        and "95 % interval" in said
        and "percent above a group's best loss" in said
    )
    assert (
        "at 4e+06 parameters, 8e+07 tokens" in said and "batch_tokens" in said and "extrapolated" not in said
    )
    line = said.strip().splitlines()[-1]
    law = registry.create(tomllib.loads(f"method = {line}")["method"], Path(), "test")
    assert (
        isinstance(law, StepLaw)
        and law.lr_parameters == pytest.approx(-0.55, abs=0.1)
        and law.fitted_tokens == (2e7, 3.2e8)
    )
    at = next(part for part in said.splitlines() if part.startswith("adamw.lr")).split()
    assert float(at[1]) == pytest.approx(law.rate(4e6, 8e7), rel=2e-3) and float(at[2]) < float(
        at[1]
    ) < float(at[4])


def test_a_setting_of_the_law_is_heard(rows: Path) -> None:
    assert "near = 0.01" in printed("step_law", "--rows", rows, "--set", "near=0.01").splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("adamw",), "adamw is no law"),
        (("stepp_law",), "did you mean 'step_law'"),
        (("step_law",), "there is no run to fit"),
        (("step_law", "--parameters", "1e6"), "go together"),
        (("step_law", "--rows", "ROWS", "--stage", "base"), "says it all"),
    ],
)
def test_mistakes_are_sentences(words: tuple[str, ...], answer: str, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=answer):
        printed(*(rows if w == "ROWS" else w for w in words), "--store", tmp_path / "store")


def test_a_recipe_line_has_what_is_not_the_default() -> None:
    assert recipe_line(StepLaw()) == '{ use = "step_law" }'
    line = recipe_line(StepLaw(final_lr=False, fitted_tokens=(1.0, 2.5)))
    assert line == '{ use = "step_law", final_lr = false, fitted_tokens = [1.0, 2.5] }'
