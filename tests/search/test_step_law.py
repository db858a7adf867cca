"""The published constants at published points, and a fit that finds planted ones."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit
from trainwright.planning import runs
from trainwright.search.step_law import CONSTANTS, StepLaw

PLANTED = StepLaw(lr_scale=0.9, lr_parameters=-0.55, lr_tokens=0.2, batch_scale=3.0, batch_exponent=0.45)


def fitted(rows: list[dict[str, Any]], law: StepLaw | None = None, seed: int = 0) -> Fit:
    return runs.fitted(law or StepLaw(), rows, Context(seed=seed), "rows")


def test_the_published_law_by_hand() -> None:
    """At 10^9 parameters and 10^11 tokens the powers of ten can be added on paper."""
    told = StepLaw().suggest({"parameters": 1e9, "tokens": 1e11})
    assert told["adamw.lr"] == pytest.approx(1.79 * 9.1201e-4, rel=1e-3), "-0.713 x 9 + 0.307 x 11 = -3.04"
    assert told["batch_tokens"] == pytest.approx(0.58 * 1.90985e6, rel=1e-3), "0.571 x 11 = 6.281"
    assert told["batch_tokens"] / 2048 == pytest.approx(541, abs=0.5), (
        "rows of the paper's 2,048 tokens: a batch is in tokens"
    )


def test_the_authors_bootstrap_table_gives_the_same_law() -> None:
    """The means of their 1,000 released fits, at the point of their own example: 7e9 parameters, 1.4e12
    tokens."""
    n, d = math.log(7e9), math.log(1.4e12)
    law = StepLaw()
    assert law.rate(7e9, 1.4e12) == pytest.approx(math.exp(0.586308 - 0.712922 * n + 0.307491 * d), rel=0.02)
    assert law.batch(1.4e12) == pytest.approx(math.exp(-0.543542 + 0.570944 * d), rel=0.01)


def test_the_schedule_ends_at_a_fixed_rate_and_not_at_a_share_of_the_peak() -> None:
    for facts in ({"parameters": 1e6, "tokens": 1e7}, {"parameters": 1e9, "tokens": 1e11}):
        told = StepLaw().suggest(facts)
        assert told["cosine.final"] * told["adamw.lr"] == pytest.approx(1e-5, rel=1e-3)
        assert "cosine.final" not in StepLaw().suggest(facts | {"adamw.lr": 3e-3}), (
            "the end belongs to the law's own peak"
        )
    assert "cosine.final" not in StepLaw(final_lr=False).suggest(facts)


def test_far_from_the_paper_it_says_so() -> None:
    law = StepLaw()
    assert law.doubts({"parameters": 5e8, "tokens": 2e10}) == ""
    for n, d in ((5e6, 2e10), (5e8, 1e8), (7e9, 5e10)):
        assert "extrapolated" in law.doubts({"parameters": n, "tokens": d})


@pytest.mark.parametrize("seed", range(4))
def test_a_fit_finds_planted_constants_within_its_interval(seed: int) -> None:
    """From noisy losses over a grid of rates and batches at nine pairs of parameters and tokens, started at
    other constants."""
    fit = fitted(PLANTED.made_up(Context(seed=seed)), seed=seed)
    found = runs.intervals(fit)
    assert set(found) == set(CONSTANTS)
    outside = [n for n, (low, high) in found.items() if not low <= getattr(PLANTED, n) <= high]
    assert not outside, {n: (getattr(PLANTED, n), found[n]) for n in outside}
    exponents = ("lr_parameters", "lr_tokens", "batch_exponent")
    assert all(abs(getattr(fit.law, n) - getattr(PLANTED, n)) < 0.1 for n in exponents)
    assert all(
        not low <= getattr(StepLaw(), n) <= high for n, (low, high) in found.items() if n in exponents
    ), "and no others"


def test_its_error_is_that_of_groups_it_has_not_seen() -> None:
    """One group whose best lies elsewhere: fitted with it, the law would go there; left out, it cannot, and
    that is told."""
    rows = PLANTED.made_up(Context())
    clean = fitted(rows).errors
    mean, worst = (
        f"percent above a group's best loss, fitted on the others, {what}" for what in ("mean", "worst")
    )
    before = "percent above a group's best loss, with the constants before, mean"
    assert clean[mean] < 0.1 < clean[before], "the published constants are wrong here, and measured so"
    first = [r for r in rows if (r["parameters"], r["tokens"]) == (1e6, 2e7)]
    order = sorted(first, key=lambda r: r["loss"])
    swapped = [r | {"loss": order[-1 - order.index(r)]["loss"]} if r in first else r for r in rows]
    assert fitted(swapped).errors[worst] > max(1.0, 5 * clean[worst])


@pytest.mark.slow
def test_all_good_runs_place_the_best_better_than_the_best_run_alone() -> None:
    """Noise decides which run of a flat bottom is the lowest."""
    off: dict[float, list[float]] = {0.0025: [], 1e-9: []}
    for seed in range(6):
        rows = PLANTED.made_up(Context(seed=seed))
        for near, errors in off.items():
            law = fitted(rows, StepLaw(near=near)).law
            assert isinstance(law, StepLaw)
            errors += [
                math.log(law.rate(n, d) / PLANTED.rate(n, d)) ** 2 for n in (1e6, 1.6e7) for d in (2e7, 3.2e8)
            ]
            errors += [math.log(law.batch(d) / PLANTED.batch(d)) ** 2 for d in (2e7, 3.2e8)]
    assert np.mean(off[0.0025]) < 0.7 * np.mean(off[1e-9])


@pytest.mark.slow
def test_what_the_runs_were_goes_into_the_law() -> None:
    rows = PLANTED.made_up(Context())
    law = fitted([r | {"optimizer": "lion", "final_lr": 2e-5} for r in rows]).law
    assert (law.optimizer, law.final_lr) == ("lion", 2e-5) and law.fitted_parameters == (1e6, 1.6e7)
    assert "lion.lr" in law.suggest({"parameters": 1e6, "tokens": 2e7})
    assert fitted([r | {"cosine.final": 0.1} for r in rows]).law.final_lr is False, (
        "a tenth of each peak is no fixed rate"
    )
    assert fitted([r | {"cosine.final": 1e-5 / r["lr"]} for r in rows]).law.final_lr == pytest.approx(1e-5)
    with pytest.raises(UserError, match="several optimizers"):
        fitted([r | {"optimizer": "lion" if i % 2 else "adamw"} for i, r in enumerate(rows)])


def test_rows_that_cannot_tell_are_refused() -> None:
    rows = PLANTED.made_up(Context())
    in_step = [r for r in rows if r["tokens"] == 20 * r["parameters"]]
    assert len({r["parameters"] for r in in_step}) == 3
    one_batch = [r | {"batch_tokens": 4096.0} for r in rows]
    for short in (in_step, one_batch, [r for r in rows if r["parameters"] == 1e6]):
        with pytest.raises(UserError, match="do not tell its constants apart"):
            fitted(short)
    with pytest.raises(UserError, match="row 1 has no 'loss'"):
        fitted([{k: v for k, v in r.items() if k != "loss"} for r in rows])


def test_three_groups_are_fitted_and_not_judged() -> None:
    corner = {(1e6, 2e7), (1.6e7, 2e7), (1e6, 3.2e8)}
    fit = fitted([r for r in PLANTED.made_up(Context()) if (r["parameters"], r["tokens"]) in corner])
    assert fit.errors == {} and fit.law.lr_parameters == pytest.approx(PLANTED.lr_parameters, abs=0.2)


def test_a_grid_that_ends_at_its_best_run_is_told() -> None:
    rows = PLANTED.made_up(Context())
    assert fitted(rows).notes == []
    cut = [r for r in rows if r["lr"] <= 1.01 * PLANTED.rate(r["parameters"], r["tokens"])]
    assert any("edge of the grid of lr" in note for note in fitted(cut).notes)


@pytest.mark.parametrize(
    "wrong", [{"lr_scale": 0.0}, {"near": -1.0}, {"fitted_tokens": (5.0,)}, {"fitted_parameters": (2, 1)}]
)
def test_constants_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(StepLaw(), **wrong)
