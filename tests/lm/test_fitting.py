"""What laws share in fitting."""

from __future__ import annotations

import numpy as np
import pytest

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.fitting import at_edge, bootstrap, grouped, held_out, linear, nearest, thin


def test_runs_of_one_budget_are_one_group() -> None:
    """Whole steps cut a budget of a million tokens off at different places; another corpus is another
    group."""
    rows = [
        {"n": 10, "d": d, "data": data} for d in (1_000_000, 983_040, 999_424, 2_000_000) for data in "ab"
    ]
    groups = grouped(rows, ("n", "d"))
    assert [(len(g), {r["data"] for r in g}) for g in groups] == [
        (3, {"a"}),
        (3, {"b"}),
        (1, {"a"}),
        (1, {"b"}),
    ]


def test_least_squares_on_logarithms() -> None:
    x = np.log([[1.0, 1.0], [2.0, 1.0], [1.0, 4.0], [2.0, 4.0]])
    found = linear(x, np.log(3.0) + x @ [-0.5, 2.0])
    assert found is not None and found == pytest.approx([np.log(3.0), -0.5, 2.0])
    assert linear(np.log([[1.0, 3.0], [2.0, 6.0], [4.0, 12.0]]), np.arange(3.0)) is None, "both grow in step"
    assert linear(np.log([[2.0], [2.0]]), np.arange(2.0)) is None, "it does not vary"


def test_the_bootstrap_is_derived_and_says_when_it_cannot_tell() -> None:
    table = np.arange(8.0)[:, None]
    draws = [bootstrap(table, lambda t: t.mean(0), Context(seed=s), "key", 200) for s in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert draws[0].std() == pytest.approx(table.std() / np.sqrt(8), rel=0.2)
    with pytest.raises(UserError, match="only 8 runs count"):
        bootstrap(
            table,
            lambda t: t.mean(0) if t.min() == 0 and t.max() == 7 and 4 in t else None,
            Context(),
            "key",
            200,
        )


def test_a_group_is_judged_by_the_others() -> None:
    groups = [[{"x": 1.0}], [{"x": 2.0}], [{"x": 9.0}]]
    asked = held_out(
        groups, lambda others: [g[0]["x"] for g in others], lambda made, group: float(group[0]["x"] in made)
    )
    assert asked == [0.0, 0.0, 0.0]
    assert held_out(groups[:1], lambda others: others or None, lambda made, group: 1.0) == []


def test_nearest_goes_by_ratio_and_edges_are_counted() -> None:
    rows = [{"lr": 1e-4, "loss": 3.0}, {"lr": 1e-3, "loss": 2.0}, {"lr": 1e-2, "loss": 1.0}]
    assert nearest(rows, {"lr": 4e-4})["lr"] == 1e-3
    assert at_edge([rows, [*rows, {"lr": 0.1, "loss": 5.0}]], ("lr",)) == [
        "in 1 of 2 groups the best run lies at the edge of the grid of lr: widen it there"
    ]
    assert thin(8, 4, 0.1) == [] and "only 7 runs in 4 groups are within near = 0.1" in thin(7, 4, 0.1)[0]
