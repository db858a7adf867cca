"""A power law of errors: planted constants are found, a rival wins where it is true; what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit
from trainwright.planning import runs
from trainwright.search.superficial_alignment_scaling import SuperficialAlignmentScaling

COUNTS = [16, 32, 64, 128, 256, 512]


def fitted(rows: list[dict[str, Any]], **settings: Any) -> Fit:
    return runs.fitted(SuperficialAlignmentScaling(**settings), rows, Context(), "rows")


def test_planted_constants_are_found() -> None:
    """err = 2 n^-1/2: 0.5 at 16 examples, 0.25 at 64; an error of 0.1 takes 400."""
    rows = [{"examples": n, "sums": 1 - 2 * n**-0.5} for n in COUNTS]
    law = fitted(rows, score="sums").law
    assert (law.scale, law.exponent) == pytest.approx((2, 0.5), rel=1e-3)
    assert law.suggest({}) == {"random_subset.count": 400} and law.error(64) == pytest.approx(0.25)
    assert law.doubts({}) == "" and "extrapolated" in fitted(rows, score="sums", target=0.01).law.doubts({})


def test_the_law_that_is_true_is_the_nearest_on_examples_that_were_left_out() -> None:
    told = {
        "power law": lambda n: n**-0.4,
        "power law with a floor": lambda n: 0.2 + n**-0.7,
        "logarithm": lambda n: 0.9 - 0.1 * math.log2(n / 16),
    }
    for name, error in told.items():
        off = fitted([{"examples": n, "score": 1 - error(n)} for n in COUNTS]).errors
        mine = off[f"error off, {name}, left-out examples, mean"]
        assert mine <= min(off.values()) + 1e-6, off
        assert mine < 0.1 * max(off.values()), off


def test_what_it_says_of_the_runs() -> None:
    rows = [{"examples": n, "score": 1 - n**-0.4, "steps": n} for n in COUNTS]
    notes = fitted([*rows, {"examples": 1024, "score": 1.0, "steps": 1024}]).notes
    assert any(note.startswith("1 runs make no mistake") for note in notes)
    assert any("more steps" in note for note in notes)
    assert fitted([row | {"steps": 100} for row in rows]).notes == []


def test_what_it_refuses() -> None:
    rows = [{"examples": n, "score": 1 - n**-0.4} for n in COUNTS]
    with pytest.raises(UserError, match="4 numbers of examples at least"):
        fitted(rows[:3])
    with pytest.raises(UserError, match="'sums' of a run must be a share"):
        fitted(rows, score="sums")
    with pytest.raises(UserError, match="from 0 to 1, not 64"):
        fitted([row | {"score": 64} for row in rows])


@pytest.mark.parametrize(
    "settings", [{"exponent": 0.0}, {"exponent": -1.0}, {"exponent": 1e-9}, {"scale": 1e38}]
)
def test_an_error_that_no_number_of_examples_has(settings: dict[str, float]) -> None:
    law = SuperficialAlignmentScaling(**{"exponent": 0.3, "target": 1e-3} | settings)
    with pytest.raises(UserError, match=r"no number of examples has an error of 0\.001"):
        law.suggest({})
    assert "extrapolated" in law.doubts({})
