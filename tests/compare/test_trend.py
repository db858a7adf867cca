"""An effect against scale: lines by hand, words that follow, and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from trainwright.compare.statistics import paired
from trainwright.compare.trend import table, trend

SCALES = (1e6, 1e7, 1e8)
WOBBLE = np.array([0.01, -0.02, 0.015, -0.01, 0.005])


def effects(*means, noise=1.0):
    return [m + noise * np.roll(WOBBLE, i) for i, m in enumerate(means)]


def test_a_line_by_hand() -> None:
    """Without noise: 0.4, 0.3, 0.2 over three decades falls by 0.1 a decade and is at 0.1 one beyond."""
    t = trend(SCALES, [[0.4] * 3, [0.3] * 3, [0.2] * 3])
    assert t.effect.difference == pytest.approx(0.3) and t.change.difference == pytest.approx(-0.2)
    assert (t.first.difference, t.last.difference) == (pytest.approx(0.4), pytest.approx(0.2))
    assert t.beyond.difference == pytest.approx(0.1) and t.scale == pytest.approx(1e9)
    far = trend(SCALES, [[0.4] * 3, [0.3] * 3, [0.2] * 3], extrapolate=100)
    assert far.beyond.difference == pytest.approx(0.0, abs=1e-12) and far.scale == pytest.approx(1e10)


def test_intervals_are_those_of_each_seed_s_own_line() -> None:
    d = np.array(effects(0.4, 0.35, 0.1))
    t = trend(SCALES, d)
    lines = [np.polyfit([6, 7, 8], d[:, s], 1) for s in range(5)]
    for found, place in ((t.first, 6), (t.last, 8), (t.beyond, 9)):
        expected = paired([float(np.polyval(line, place)) for line in lines])
        assert (found.difference, found.low, found.high) == pytest.approx(
            (expected.difference, expected.low, expected.high))
    assert t.change.low == pytest.approx(paired([2 * float(line[0]) for line in lines]).low)


@pytest.mark.parametrize(
    ("means", "word"),
    [
        ((-0.4, -0.3, -0.2), "shrinks"),
        ((-0.2, -0.3, -0.4), "grows"),
        ((0.2, 0.3, 0.4), "grows"),
        ((-0.3, -0.31, -0.3), "holds"),
        ((-0.3, -0.28, -0.26), "holds"),
        ((0.2, 0.0, -0.2), "shrinks"),
        ((0.0, 0.15, 0.3), "grows"),
        ((0.0, -0.15, -0.3), "grows"),
        ((0.3, 0.15, 0.0), "shrinks"),
        ((0.0, 0.0, 0.0), "not decided"),
    ],
)
def test_the_word_follows_from_the_means(means, word) -> None:
    assert trend(SCALES, effects(*means)).word == word


def test_what_the_seeds_cannot_show_is_not_decided() -> None:
    loud = effects(0.3, 0.25, 0.2, noise=20)
    assert trend(SCALES, loud).word == "not decided"
    sure = effects(0.3, 0.24, 0.18, noise=1.2)
    assert trend(SCALES, sure, holds=0.9).word == "holds" and trend(SCALES, sure, holds=0.2).word == "shrinks"


def test_counted_numbers_have_a_trend_without_noise() -> None:
    assert trend(SCALES, [[-0.3] * 2, [-0.299] * 2, [-0.301] * 2]).word == "holds"
    assert trend(SCALES, [[-0.3] * 2, [-0.5] * 2, [-0.7] * 2]).word == "grows"


def test_sizes_that_do_not_lie_on_a_line_are_said_not_to() -> None:
    assert trend(SCALES, effects(0.2, 0.29, 0.3, noise=0.3)).bent
    assert not trend(SCALES, effects(0.2, 0.25, 0.3, noise=0.3)).bent
    assert not trend(SCALES, [[0.4] * 3, [0.3] * 3, [0.2] * 3]).bent, "rounding is no bend"
    assert trend(SCALES, [[0.4] * 3, [0.2] * 3, [0.2] * 3]).bent


def test_what_is_no_ladder_is_refused() -> None:
    with pytest.raises(ValueError, match="3 sizes at least, not of 2"):
        trend(SCALES[:2], effects(0.1, 0.2))
    with pytest.raises(ValueError, match="grow"):
        trend((1e6, 1e6, 1e7), effects(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="same seeds"):
        trend(SCALES, [[0.1, 0.2], [0.1, 0.2, 0.3], [0.1, 0.2]])


def test_it_can_be_written() -> None:
    t = trend(SCALES, effects(0.4, 0.3, 0.2))
    found = table(t)
    assert found["word"] == t.word and found["change"]["low"] == t.change.low
    assert found["beyond"]["mean"] == t.beyond.difference and found["scale_beyond"] == t.scale


@pytest.mark.slow
def test_a_constant_effect_is_seldom_said_to_change() -> None:
    """Noise that falls tenfold over the sizes; a change is found in one of twenty at most, and the line at
    the next decade is in its interval in nineteen."""
    draw = np.random.default_rng(0)
    spread = np.array([0.3, 0.1, 0.03])[:, None]
    wrong = covered = 0
    for _ in range(2000):
        t = trend(SCALES, 0.5 + spread * draw.standard_normal((3, 5)))
        wrong += t.word in ("grows", "shrinks")
        covered += t.beyond.low <= 0.5 <= t.beyond.high
    assert wrong / 2000 < 0.05 + 0.02 and covered / 2000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
def test_an_effect_that_halves_is_seldom_said_to_hold() -> None:
    """From 0.625 to 0.375: a change of exactly half its mean, the limit of ``holds``."""
    draw = np.random.default_rng(1)
    means = np.array([0.625, 0.5, 0.375])[:, None]
    words = [trend(SCALES, means + 0.05 * draw.standard_normal((3, 5)), holds=0.5).word
             for _ in range(2000)]
    assert words.count("holds") / 2000 < 0.05 + 0.02 and words.count("grows") == 0
