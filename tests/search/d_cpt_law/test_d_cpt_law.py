"""The law of shares by hand, and a fit that finds planted constants and the best share beyond its runs."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import LIFE, write_texts
from trainwright.cli import app
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit
from trainwright.core.recipe import parse
from trainwright.core.settings import make
from trainwright.life.jobs import jobs
from trainwright.planning import runs
from trainwright.search.d_cpt_law._shares import Constants, names
from trainwright.search.d_cpt_law.d_cpt_law import DCptLaw
from trainwright.storage.store import Store

SETTINGS: dict[str, Any] = {"domain": "code", "general": "prose", "rise": 0.03, "draws": 60}
DOMAIN = Constants(1.2, 50.0, 0.28, 90.0, 0.35, 0.5, 0.5, 0.45)
GENERAL = Constants(2.0, 90.0, 0.33, 30.0, 0.28, 0.25, 0.25, 0.7)
PLANTED = DCptLaw(
    **SETTINGS,
    **{
        n: v
        for part, c in (("domain", DOMAIN), ("general", GENERAL))
        for n, v in zip(names(part), c, strict=True)
    },
)
LARGE = {"parameters": 1e9, "tokens": 1e10}
"""Sixteen times the parameters of the largest run that is fitted, and eight times the tokens of the
longest."""


@cache
def fitted(seed: int) -> Fit:
    return runs.fitted(DCptLaw(**SETTINGS), PLANTED.made_up(Context(seed=seed)), Context(seed=seed), "rows")


def test_the_law_by_hand() -> None:
    """At 10^4 parameters and tokens and a share of 0.25 with round exponents."""
    law = Constants(1.0, 100.0, 0.5, 200.0, 0.5, 0.5, 0.3, 1.0)
    assert law.loss(1e4, 1e4, 0.25, 0.05) == pytest.approx(1 + 1 + 200 * 0.5 / 100 + 0.3 / 0.3)


def test_each_part_has_its_own_share() -> None:
    """More code: a lower loss on code, a higher one on prose."""
    domain, general = PLANTED.losses(1e6, 2e7, np.linspace(0, 1, 50))
    assert (np.diff(domain) < 0).all() and (np.diff(general) > 0).all()
    assert general[0] == GENERAL.loss(1e6, 2e7, 1.0, 0.1) and domain[-1] == DOMAIN.loss(1e6, 2e7, 1.0, 0.1)


@pytest.mark.slow
def test_a_fit_finds_planted_constants() -> None:
    """From losses that scatter by a thousandth, with 95 % intervals: over seeds nearly all hold what was
    planted."""
    held = []
    for seed in range(3):
        fit = fitted(seed)
        found = runs.intervals(fit)
        assert set(found) == {*names("domain"), *names("general")}
        held += [low <= getattr(PLANTED, name) <= high for name, (low, high) in found.items()]
        exponents = [n for n in found if n.endswith(("alpha", "beta", "eta", "gamma"))]
        assert all(abs(getattr(fit.law, n) - getattr(PLANTED, n)) < 0.05 for n in exponents)
        assert all(value < 0.2 for value in fit.errors.values()) and len(fit.errors) == 6
    assert np.mean(held) > 0.85


@pytest.mark.parametrize("seed", range(3))
def test_the_best_share_beyond_the_runs_is_within_its_interval(seed: int) -> None:
    fit = fitted(seed)
    true = PLANTED.share(LARGE)
    value, pair = runs.predicted(fit, LARGE)["mixture.weights.code"]
    assert (
        pair is not None
        and pair[0] <= true <= pair[1]
        and abs(value - true) < 0.03
        and pair[1] - pair[0] < 0.1
    )
    assert 0.05 < true < 0.95 and "extrapolated" in fit.law.doubts(LARGE)
    assert not fit.law.doubts({"parameters": 4e6, "tokens": 8e7})


def test_the_best_share_keeps_the_general_loss_within_its_rise() -> None:
    def general(law: DCptLaw, share: float) -> float:
        return float(law.losses(*LARGE.values(), share)[1])

    share = PLANTED.share(LARGE)
    allowed = (1 + PLANTED.rise) * general(PLANTED, 0.0)
    assert general(PLANTED, share) <= allowed < general(PLANTED, share + 0.002), "and no greater share does"
    assert DCptLaw(**SETTINGS | {"rise": 9.0}).share(LARGE) == 1.0
    law = DCptLaw(**SETTINGS, general_before=0.1)
    assert law.share(LARGE) == 0.0 and "no share keeps the loss on prose" in law.doubts(LARGE)


def test_little_domain_data_makes_a_small_share_a_long_run() -> None:
    """Of 10^8 tokens of code, D = 10^8 / r: by hand on a grid; with more of them the share is larger."""
    grid = np.linspace(0.001, 1, 1000)
    for tokens in (1e8, 1e9):
        told = DCptLaw(**SETTINGS | {"rise": 9.0}, domain_tokens=tokens)
        loss = [told.losses(1e9, tokens / r, r)[0] for r in grid]
        assert told.share(LARGE) == pytest.approx(grid[int(np.argmin(loss))], abs=1e-9)
    assert "rises" not in told.doubts(LARGE)


def test_compute_is_divided_among_parameters_and_tokens() -> None:
    """6 N D = C to the digit, and no other N has a lower domain loss at that share; by brute force."""
    compute = 6 * 1e9 * 1e10
    law = dataclasses.replace(PLANTED, compute=compute, rise=9.0)
    told = law.suggest({})
    n, d, share = told["parameters"], told["tokens"], told["mixture.weights"]["code"]
    assert 6 * n * d == pytest.approx(compute, rel=1e-12)
    grid = np.geomspace(1e7, 1e12, 4000)
    losses = [[PLANTED.losses(size, compute / 6 / size, r)[0] for size in grid] for r in (0.2, share, 0.9)]
    for r, row in zip((0.2, share, 0.9), losses, strict=True):
        assert float(law.allocation(r)[0]) == pytest.approx(grid[int(np.argmin(row))], rel=5e-3)
    assert PLANTED.losses(n, d, share)[0] <= min(map(min, losses)) + 1e-9
    assert not law.needs_a_place() and "widen" not in law.doubts({})
    assert "widen" in dataclasses.replace(law, sizes=(1e7, 1e8)).doubts({})


def test_compute_with_a_limit_on_the_general_loss_and_on_the_data() -> None:
    law = dataclasses.replace(PLANTED, compute=6e19)
    n, d = law.allocation(law.share({}))
    share = law.share({})
    before = PLANTED.losses(n, d, 0.0)[1]
    assert PLANTED.losses(n, d, share)[1] <= 1.03 * before < PLANTED.losses(n, d, share + 0.01)[1]
    few = dataclasses.replace(law, rise=9.0, domain_tokens=1e9)
    share = few.share({})
    assert share * float(few.allocation(share)[1]) <= 1e9
    assert share < dataclasses.replace(law, rise=9.0).share({})


SHORT = {"code": (2.5, 1.9), "math": (3.0, 2.0), "law": (2.8, 1.6), "music": (3.4, 2.9),
         "medicine": (3.1, 1.6)}
ACROSS = dataclasses.replace(PLANTED, short_runs=SHORT, domain_f=0.4, domain_mu=0.7, draws=3)


def runs_across(domains: tuple[str, ...], noise: float = 0.0) -> list[dict[str, Any]]:
    """Runs of several domains that follow the law, each of them mixed with prose."""
    draw, rows = np.random.default_rng(0), []
    for name in domains:
        law = dataclasses.replace(ACROSS, domain=name)
        for i, j, k in np.ndindex(3, 3, 7):
            n, d, r = 1e6 * 4.0**i, 2e7 * 4.0**j, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)[k]
            seen = np.array(law.losses(n, d, r)) * np.exp(noise * draw.normal(size=2))
            rows.append({"parameters": n, "tokens": d, f"mixture.weights.{name}": r, f"loss/{name}": seen[0],
                         "mixture.weights.prose": 1 - r, "loss/prose": seen[1]})
    return rows


def test_a_larger_learnability_means_a_lower_loss() -> None:
    """K = 1 / before + early (before - after), by hand; the loss has F / K^mu more."""
    assert ACROSS.learnability("code") == pytest.approx(1 / 2.5 + 0.6)
    assert dataclasses.replace(ACROSS, early=2.0).learnability("code") == pytest.approx(1 / 2.5 + 1.2)
    plain = PLANTED.losses(1e7, 1e8, 0.3)
    with_k = ACROSS.losses(1e7, 1e8, 0.3)
    assert with_k[0] - plain[0] == pytest.approx(0.4 / 1.0**0.7) and with_k[1] == plain[1]
    hard = dataclasses.replace(ACROSS, domain="music").losses(1e7, 1e8, 0.3)[0]
    easy = dataclasses.replace(ACROSS, domain="medicine").losses(1e7, 1e8, 0.3)[0]
    assert ACROSS.learnability("music") < ACROSS.learnability("medicine") and easy < with_k[0] < hard


@pytest.mark.slow
def test_a_domain_without_runs_is_predicted_from_its_short_run() -> None:
    """Fitted on four domains, the law gives the losses on the fifth, of which there is a short run."""
    rows = runs_across(("math", "law", "music", "medicine"), noise=1e-3)
    told = runs.fitted(dataclasses.replace(ACROSS, domain_f=1.0, domain_mu=1.0), rows, Context(), "rows")
    law = told.law
    assert isinstance(law, DCptLaw)
    for n, d, r in ((1e7, 1e8, 0.2), (2e8, 3e9, 0.6), (1e6, 2e7, 0.9)):
        np.testing.assert_allclose(law.losses(n, d, r), ACROSS.losses(n, d, r), rtol=0.02)
    blind = dataclasses.replace(law, short_runs={})
    assert abs(blind.losses(1e7, 1e8, 0.2)[0] / ACROSS.losses(1e7, 1e8, 0.2)[0] - 1) > 0.05
    assert abs(law.share(LARGE) - ACROSS.share(LARGE)) < 0.05
    assert told.errors["percent error of the loss, a domain left out"] < 2 and len(told.draws) == 3


def test_mistakes_across_domains_are_said() -> None:
    with pytest.raises(UserError, match="of 2 learnabilities"):
        runs.fitted(ACROSS, runs_across(("math", "law")), Context(), "rows")
    with pytest.raises(UserError, match="row 1 is a run of 0 of the domains"):
        runs.fitted(dataclasses.replace(ACROSS, short_runs={"code": (2.5, 1.9)}), runs_across(("math",)),
                    Context(), "rows")
    for told, setting in (("must have one of 'code'", {"short_runs": {"math": [3.0, 2.0]}}),
                          ("no learnability", {"short_runs": {"code": [2.0, 9.0]}}),
                          ("sizes", {"sizes": [3.0, 2.0]}), ("compute", {"compute": 0.0})):
        with pytest.raises(UserError, match=told):
            make(DCptLaw, SETTINGS | setting, "here")


@pytest.mark.slow
def test_the_command_divides_compute(tmp_path: Path) -> None:
    """Without parameters and tokens, which it chooses."""
    file = tmp_path / "rows.jsonl"
    rows = [r for r in PLANTED.made_up(Context()) if r["parameters"] < 6e7 and r["tokens"] < 1e9]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    settings = SETTINGS | {"compute": 6e19, "draws": 2}
    changes = [a for k, v in settings.items() for a in ("--set", f"{k}={json.dumps(v)}")]
    said = CliRunner().invoke(app, ["fit-law", "d_cpt_law", "--rows", str(file), *changes])
    assert said.exit_code == 0, said.output
    assert "what it chooses" in said.output and "compute = 6e+19" in said.output
    assert "parameters" in said.output and "mixture.weights.code" in said.output


def test_a_law_that_is_no_guide_says_so() -> None:
    assert "are an example" in DCptLaw(**SETTINGS).doubts(LARGE)
    bent = DCptLaw(**SETTINGS, domain_c=1e-3, domain_b=500.0)
    assert "rises with its share from" in bent.doubts({"parameters": 1e6, "tokens": 2e7})


@pytest.mark.slow
def test_the_command_fits_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in PLANTED.made_up(Context())))
    said = CliRunner().invoke(
        app,
        [
            "fit-law",
            "d_cpt_law",
            "--rows",
            str(file),
            "--parameters",
            "1e9",
            "--tokens",
            "1e10",
            *(a for k, v in SETTINGS.items() for a in ("--set", f"{k}={json.dumps(v)}")),
        ],
    )
    assert said.exit_code == 0, said.output
    assert (
        "mixture.weights.code" in said.output
        and "domain_gamma" in said.output
        and 'use = "d_cpt_law"' in said.output
    )


@pytest.mark.parametrize("said", [None, {"code": 0.5, "prose": 0.5}])
def test_it_fills_in_a_mixture_that_has_no_weights(said: dict[str, float] | None, tmp_path: Path) -> None:
    """Beside one that has some it says what it would take."""
    write_texts(tmp_path / "texts")
    table = tomllib.loads(LIFE)
    base = table["stage"][1]
    base["methods"] = [
        {"use": "pack", "length": 32},
        {"use": "next_token"},
        {"use": "adamw", "lr": 1e-2},
        {"use": "mixture"} | ({"weights": said} if said else {}),
        {"use": "d_cpt_law", "domain": "code", "general": "prose", "domain_b": 0.01, "general_b": 0.01},
    ]
    job = jobs(
        parse({**table, "stage": table["stage"][:2]}, tmp_path / "life.toml"), Store(tmp_path / "store")
    )[1]
    weights = next(m for m in job.settings["methods"] if m["use"] == "mixture")["weights"]
    (line,) = job.told
    assert sum(weights.values()) == pytest.approx(1) and (
        weights == said if said else 0 < weights["code"] < 1
    )
    assert (
        "stays as the recipe says it" if said else "fills in mixture.weights"
    ) in line and "are an example" in line


def test_a_recipe_is_told_which_size_the_law_would_take(tmp_path: Path) -> None:
    """Its model and its tokens stay; the mixture is filled in."""
    write_texts(tmp_path / "texts")
    table = tomllib.loads(LIFE)
    table["stage"][1]["methods"] = [
        {"use": "pack", "length": 32}, {"use": "next_token"}, {"use": "adamw", "lr": 1e-2},
        {"use": "mixture"}, {"use": "d_cpt_law", "domain": "code", "general": "prose", "compute": 1e15}]
    found = jobs(parse({**table, "stage": table["stage"][:2]}, tmp_path / "life.toml"),
                 Store(tmp_path / "store"))[1]
    assert "fills in mixture.weights" in found.told[0]
    assert "it would take parameters = " in found.told[0] and "it would take tokens = " in found.told[0]


def test_rows_that_cannot_tell_are_refused() -> None:
    rows = PLANTED.made_up(Context())
    wrong: list[tuple[str, list[dict[str, Any]]]] = [
        ("have 1 of parameters", [r for r in rows if r["parameters"] == 1e6]),
        ("have 2 of shares", [r for r in rows if r["mixture.weights.code"] in (0.2, 0.5)]),
        ("row 1: loss/prose", [{k: v for k, v in r.items() if k != "loss/prose"} for r in rows]),
        ("of no mixture of code and prose alone", [r | {"mixture.weights.chat": 0.5} for r in rows]),
        ("of no mixture", [{k: v for k, v in r.items() if "mixture" not in k} for r in rows]),
    ]
    for told, short in wrong:
        with pytest.raises(UserError, match=told):
            runs.fitted(DCptLaw(**SETTINGS), short, Context(), "rows")
    for name, setting in (
        ("rise", {"rise": -1.0}),
        ("another domain", {"general": "code"}),
        ("general_a", {"general_a": 0.0}),
    ):
        with pytest.raises(UserError, match=name):
            make(DCptLaw, SETTINGS | setting, "here")
