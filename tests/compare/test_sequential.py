"""Looking after every seed: intervals that hold at all times, and decisions that are seldom wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from trainwright.compare import sequential
from trainwright.compare.sequential import FIRST, anytime, decisions, evidence, reach
from trainwright.compare.statistics import paired

MOST = 20


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- one look -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("t", "n"), [(0.3, 3), (2.5, 5), (4.0, 12)])
def test_the_evidence_is_the_ratio_of_the_two_likelihoods_of_t(t: float, n: int) -> None:
    """By integration: the noncentral t over effects of N(0, g), divided by Student's t."""
    spread = math.sqrt(sequential.SPREAD)

    def under(effect: float) -> float:
        return float(scipy.stats.nct.pdf(t, n - 1, effect * math.sqrt(n)) * scipy.stats.norm.pdf(
            effect, 0, spread))

    middle = t / math.sqrt(n)
    mixed = scipy.integrate.quad(under, middle - 4, middle + 4, limit=200, epsabs=1e-12)[0]
    expected = mixed / scipy.stats.t.pdf(t, n - 1)
    assert math.exp(evidence(t, n)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("n", range(FIRST, MOST + 1))
def test_the_interval_ends_where_the_evidence_reaches_its_bound(n: int) -> None:
    assert math.exp(evidence(reach(n), n)) == pytest.approx(20)
    assert reach(n) > -scipy.stats.t.ppf(0.025, n - 1), "looking has a price"
    assert reach(n, 0.01) > reach(n)


def test_the_interval_and_its_p_value_agree() -> None:
    for values in generator(1).normal(0.8, 1.0, (200, 6)):
        found, fixed = anytime(values), paired(values)
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        assert found.low < fixed.low and found.high > fixed.high and found.p > fixed.p
    assert reach(10) / -scipy.stats.t.ppf(0.025, 9) == pytest.approx(1.85, abs=0.01), "as the docstring says"


def test_the_ends_of_what_can_be_seen() -> None:
    two = anytime([1.0, 1.1])
    assert two.low == -math.inf and two.high == math.inf and two.p > 0.05
    same = anytime([0.5, 0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5) and same.p == pytest.approx(1 / 31)
    none = anytime([0.0, 0.0, 0.0])
    assert (none.low, none.high, none.p) == (0, 0, 1)
    with pytest.raises(ValueError, match="two seeds"):
        anytime([1.0])


# ---- all looks ------------------------------------------------------------------------------------------


def looks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and n of the first 3, 4 … differences of each row."""
    n = np.arange(1, values.shape[1] + 1)
    mean = values.cumsum(axis=1) / n
    squares = (values**2).cumsum(axis=1) - n * mean**2
    sd = np.sqrt(np.maximum(squares, 0) / np.maximum(n - 1, 1))
    return mean[:, FIRST - 1 :], sd[:, FIRST - 1 :], n[FIRST - 1 :]


def ever_missed(values: np.ndarray, truth: float) -> float:
    """Share of rows whose interval leaves the truth out at any of its looks."""
    mean, sd, n = looks(values)
    half = np.array([reach(int(k)) for k in n]) * sd / np.sqrt(n)
    return float((abs(mean - truth) > half).any(axis=1).mean())


def test_the_quick_simulation_is_the_same_interval() -> None:
    rows = generator(2).normal(0.1, 1, (5, MOST))
    mean, sd, n = looks(rows)
    for i, k in ((0, FIRST), (3, 7), (4, MOST)):
        found = anytime(rows[i, :k])
        at = k - FIRST
        assert found.high == pytest.approx(mean[i, at] + reach(k) * sd[i, at] / math.sqrt(n[at]))


def test_the_truth_is_in_all_intervals_at_once() -> None:
    """A hundred looks, and 20,000 sequences; the t interval misses it in a third of them."""
    rows = generator(3).normal(0.7, 1.0, (20_000, 100))
    assert ever_missed(rows, 0.7) < 0.05
    mean, sd, n = looks(rows)
    fixed = abs(mean - 0.7) > -scipy.stats.t.ppf(0.025, n - 1) * sd / np.sqrt(n)
    assert 0.3 < fixed.any(axis=1).mean() < 0.45


@pytest.mark.parametrize("noise", ["t of 3", "uniform", "exponential"])
def test_other_noise_does_not_break_it(noise: str) -> None:
    """Of the differences of two alike arms, which is symmetric whatever the noise is."""
    draw, shape = generator(4), (2, 20_000, MOST)
    made = {"t of 3": draw.standard_t(3, shape), "uniform": draw.random(shape),
            "exponential": draw.exponential(size=shape)}[noise]
    assert ever_missed(made[0] - made[1], 0.0) < 0.05


# ---- decisions ------------------------------------------------------------------------------------------


def race(arms: np.ndarray, base: np.ndarray, margin: float | None = None) -> tuple[dict[str, str], int]:
    """Add a seed to all undecided arms until none is left; what was decided, and how many runs it took."""
    differences = {f"{i}": list(row[:FIRST] - base[:FIRST]) for i, row in enumerate(arms)}
    runs, n = FIRST * (len(arms) + 1), FIRST
    while True:
        said = decisions(differences, "lower", margin)
        open_arms = [k for k, v in said.items() if v == "not decided"]
        if not open_arms or n == MOST:
            return dict(said), runs
        for k in open_arms:
            differences[k].append(arms[int(k)][n] - base[n])
        runs += len(open_arms) + 1
        n += 1


def families(effects: list[float], count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` comparisons of arms with these true differences; all share the noise of their seeds."""
    draw = generator(seed)
    shared = draw.normal(0, 3, (count, 1, MOST))
    arms = shared + draw.normal(0, 1, (count, len(effects), MOST)) + np.array(effects)[:, None]
    return arms, shared[:, 0] + draw.normal(0, 1, (count, MOST))


@pytest.mark.slow
def test_of_a_thousand_comparisons_of_equal_arms_at_most_fifty_are_wrong() -> None:
    """Three arms, a look after every seed up to twenty."""
    arms, base = families([0.0, 0.0, 0.0], 1000, seed=5)
    wrong = sum(set(race(a, b)[0].values()) != {"not decided"} for a, b in zip(arms, base, strict=True))
    assert wrong <= 50


@pytest.mark.slow
def test_wrong_is_also_a_difference_that_matters_and_is_denied() -> None:
    """One arm is better, one worse by exactly the margin, one equal: whatever is said falsely counts."""
    arms, base = families([-4.0, 3.0, 0.0], 1000, seed=6)
    right = ({"better", "not decided"}, {"worse", "not decided"}, {"no difference", "not decided"})
    wrong, runs, decided = 0, 0, 0
    for a, b in zip(arms, base, strict=True):
        said, n = race(a, b, margin=3.0)
        wrong += any(said[str(i)] not in allowed for i, allowed in enumerate(right))
        decided += sum(v != "not decided" for v in said.values())
        runs += n
    assert wrong <= 50
    assert decided > 0.97 * 3000, "what is clear is decided"
    assert runs < 0.65 * 1000 * 4 * MOST, "and with fewer runs than twenty seeds of all arms"


def test_an_arm_is_decided_alone() -> None:
    clear, vague = [-5.0, -5.1, -4.9, -5.05], [0.1, -0.2, 0.3, -0.1, 0.2, -0.3]
    assert decisions({"a": clear, "b": vague}, "lower") == {"a": "better", "b": "not decided"}
    assert decisions({"a": clear, "b": vague}, "higher") == {"a": "worse", "b": "not decided"}
    assert decisions({"b": vague}, "lower", margin=2.0) == {"b": "no difference"}
    assert decisions({"b": vague}, "lower", margin=0.1) == {"b": "not decided"}
    assert decisions({}, "lower") == {}


def test_more_arms_ask_for_more() -> None:
    values = [-1.0, -1.2, -0.8, -1.3]
    assert anytime(values).p < 0.05 < 6 * anytime(values).p
    alone, among = decisions({"a": values}, "lower"), {str(i): [0.1, -0.1, 0.2] for i in range(5)}
    assert alone["a"] == "better" and decisions(among | {"a": values}, "lower")["a"] == "not decided"
