"""Areas and rates: by hand, against SciPy, and on scores whose truth is known."""
from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from trainwright.core.context import Context
from trainwright.evaluate.audit._roc import auc, intervals, numbers, resampled, told, tpr


def test_the_area_by_hand_and_by_scipy() -> None:
    assert auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1.0
    assert auc(np.array([2.0, 3.0]), np.array([1.0, 3.0])) == (2 + 0.5) / 4
    draw = np.random.default_rng(1)
    members, others = draw.normal(0.5, 1, 50).round(1), draw.normal(0, 1, 70).round(1)
    assert np.isclose(auc(members, others), mannwhitneyu(members, others).statistic / (50 * 70))


def test_false_alarms_never_lie_above_the_target() -> None:
    """Of four others one is above: it may be taken for a member at 25 %, not at 24 %. Ties are no hits."""
    members, others = np.array([5.0, 3.0, 3.0, 1.0]), np.array([4.0, 3.0, 2.0, 0.0])
    assert [tpr(members, others, rate) for rate in (0.0, 0.24, 0.25, 0.5, 1.0)] == [0.25, 0.25, 0.25, 0.75, 1]
    draw = np.random.default_rng(2)
    for many in (7, 99, 100, 150):
        theirs = draw.normal(size=many).round(1)
        for rate in (0.01, 0.05, 0.3):
            threshold = min((t for t in theirs if (theirs > t).mean() <= rate), default=-np.inf)
            mine = draw.normal(1, 1, 200).round(1)
            assert tpr(mine, theirs, rate) == (mine > threshold).mean()


def test_scores_of_two_gaussians_have_the_area_that_theory_says() -> None:
    """AUC = Phi(d / sqrt 2), TPR at f = Phi(d - z(1 - f)); both lie in their intervals."""
    draw, apart = np.random.default_rng(3), 1.5
    members, others = draw.normal(apart, 1, 400), draw.normal(0, 1, 400)
    mine, theirs = draw.integers(0, 400, (6, 400)), draw.integers(0, 400, (6, 400))
    alone = [told(members[i], others[j]) for i, j in zip(mine, theirs, strict=True)]
    assert np.allclose(resampled(members, others, mine, theirs), alone, atol=1e-6)
    low, high = intervals(members, others, Context(), "gaussians")
    truth = [norm.cdf(apart / 2**0.5), *(norm.cdf(apart - norm.ppf(1 - f)) for f in (0.01, 0.05))]
    assert all(a <= t <= b for a, t, b in zip(low, truth, high, strict=True))
    assert high[0] - low[0] < 0.08
    known = numbers("x", "d", members.tolist(), others.tolist(), Context())
    assert known["x_auc/d"] == pytest.approx(truth[0], abs=0.03) and len(known) == 9
    assert known["x_tpr5_low/d"] <= known["x_tpr5/d"] <= known["x_tpr5_high/d"]
