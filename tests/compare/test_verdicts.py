"""Verdicts on claims: each follows from its numbers, and is wrong no more often than announced."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from trainwright.compare import verdicts
from trainwright.compare.verdicts import Expects, expects, follows, judge, not_tested, read, together
from trainwright.core.errors import UserError

LOWER, HIGHER = Expects("lower"), Expects("higher")
BASE = [10.0, 12.0, 11.0, 13.0, 14.0]


def word(claim, arm, better="lower", base=BASE):
    return judge(claim, [x - y for x, y in zip(arm, base, strict=True)], base, better).word


# ---- how a claim is written -----------------------------------------------------------------------------


def test_what_a_claim_may_expect() -> None:
    assert expects("lower", "x") == LOWER and expects("higher", "x") == HIGHER
    for given in ({"at_most": 0.78}, {"at_least": 2.0}, {"as_good": 0.02}):
        found = expects(given, "x")
        assert found.written() == given and (found.kind, found.amount) == next(iter(given.items()))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("less", "'less' is none of lower, higher"),
        ("at_most", "did you mean"),
        ({}, "expects is"),
        ({"at_most": 0.7, "at_least": 0.5}, "a table with one of"),
        ({"at_mots": 0.7}, "no 'at_mots'.*at_most"),
        ({"at_most": 0}, "factor is a number above 0"),
        ({"as_good": -0.1}, "margin is a number above 0"),
        ({"at_most": True}, "True"),
        ({"at_most": "0.7"}, "'0.7'"),
        ({"at_least": math.inf}, "inf"),
        ({"at_least": math.nan}, "nan"),
        (3, "expects is"),
    ],
)
def test_what_it_may_not(given, says) -> None:
    with pytest.raises(UserError, match=says) as error:
        expects(given, "papers/x.toml: claim 2")
    assert str(error.value).startswith("papers/x.toml: claim 2: ")


# ---- the interval of a ratio ----------------------------------------------------------------------------


def test_fieller_is_the_set_of_factors_that_a_t_test_accepts() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(10, 1, 6)
    arm = 0.8 * base + draw.normal(0, 0.5, 6)
    low, high = verdicts.fieller(arm, base)
    for theta, p in ((low, 0.05), (high, 0.05)):
        assert scipy.stats.ttest_1samp(arm - theta * base, 0).pvalue == pytest.approx(p)
    assert low < arm.mean() / base.mean() < high
    assert scipy.stats.ttest_1samp(arm - (low + high) / 2 * base, 0).pvalue > 0.05


def test_fieller_has_no_ends_where_the_baseline_may_be_zero() -> None:
    assert verdicts.fieller(np.array([1.0, 2, 3]), np.array([-1.0, 0.1, 1.2])) == (None, None)
    assert verdicts.fieller(np.array([1.0, 2, 3]), np.array([-5.0, -5.1, -5.2])) == (None, None)
    same = np.array([2.0, 2, 2])
    assert verdicts.fieller(same / 2, same) == pytest.approx((0.5, 0.5))


@pytest.mark.slow
def test_the_ratio_s_interval_covers_it_and_leaves_one_out_with_the_test() -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        shared = draw.normal(0, 1.0, 5)                    # what a seed does to both sides
        base = 10 + shared + draw.normal(0, 0.3, 5)
        arm = 8 + 0.8 * shared + draw.normal(0, 0.3, 5)
        low, high = verdicts.fieller(arm, base)
        covered += low <= 0.8 <= high
        assert (low <= 1 <= high) == (scipy.stats.ttest_rel(arm, base).pvalue >= 0.05)
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)  # four standard errors


# ---- words, by hand -------------------------------------------------------------------------------------


def test_directions() -> None:
    below = [x - d for x, d in zip(BASE, (2.0, 2.1, 1.9, 2.2, 1.8), strict=True)]
    assert word(LOWER, below) == "reproduced" and word(HIGHER, below) == "contradicted"
    loose = [x - d for x, d in zip(BASE, (2.0, -2.1, 1.9, -2.2, 1.8), strict=True)]
    assert word(LOWER, loose) == "no difference" == word(HIGHER, loose)


def test_a_factor_is_reached_by_the_interval_or_only_the_direction_is_there() -> None:
    wobble = (0.02, -0.02, 0.01, -0.01, 0.0)
    arm = [x * (0.8 + w) for x, w in zip(BASE, wobble, strict=True)]     # 0.78 to 0.82
    assert word(Expects("at_most", 0.79), arm) == "reproduced"
    assert word(Expects("at_most", 0.5), arm) == "weaker"
    assert word(Expects("at_most", 0.9), arm) == "reproduced", "more than was claimed"
    assert word(Expects("at_least", 1.2), arm) == "contradicted"
    more = [x * (1.5 + w) for x, w in zip(BASE, wobble, strict=True)]
    assert word(Expects("at_least", 1.5), more) == "reproduced"
    assert word(Expects("at_least", 3.0), more) == "weaker"
    assert word(Expects("at_most", 0.9), more) == "contradicted"


def test_a_bound_on_a_price_needs_the_whole_interval() -> None:
    wobble = (0.02, -0.02, 0.01, -0.01, 0.0)
    arm = [x * (1.05 + w) for x, w in zip(BASE, wobble, strict=True)]
    assert Expects("at_most", 1.1).bound and Expects("at_least", 0.9).bound
    assert not Expects("at_most", 0.9).bound and not LOWER.bound
    assert word(Expects("at_most", 1.1), arm) == "reproduced"
    assert word(Expects("at_most", 1.055), arm) == "no difference"
    assert word(Expects("at_most", 1.0), arm) == "contradicted"
    assert word(Expects("at_least", 0.95), arm) == "reproduced"
    assert word(Expects("at_least", 1.0), [0.9 * x for x in arm]) == "contradicted"


def test_a_factor_of_what_may_be_zero_is_never_reached() -> None:
    base = [-1.0, 0.1, 1.2, 2.5, -1.0]
    v = judge(Expects("at_most", 0.5), [-3.0, -3.1, -2.9, -3.0, -3.05], base)
    assert v.word == "weaker" and v.ratio_low is None and "without an interval" in v.sentence("a", "b", "x")
    with pytest.raises(UserError, match="claim a direction"):
        judge(Expects("at_most", 0.5), [0.1, 0.2], [-1.0, -2.0])


def test_as_good_is_two_one_sided_tests() -> None:
    differences = [0.01, -0.02, 0.0, 0.02, -0.005]
    for margin, expected in ((0.03, "reproduced"), (0.01, "no difference")):
        v = judge(Expects("as_good", margin), differences, BASE)
        sides = [scipy.stats.ttest_1samp(differences, end, alternative=way).pvalue
                 for end, way in ((margin, "less"), (-margin, "greater"))]
        assert v.p == pytest.approx(max(sides)) and v.word == expected
    least = v.detectable
    assert judge(Expects("as_good", 1.001 * least), differences, BASE).word == "reproduced"
    assert judge(Expects("as_good", 0.999 * least), differences, BASE).word == "no difference"


def test_as_good_and_not_equal() -> None:
    margin = Expects("as_good", 0.05)
    far, near = [0.21, 0.2, 0.19, 0.2, 0.205], [0.03, 0.07, 0.05, 0.06, 0.04]
    assert judge(margin, far, BASE, "lower").word == "contradicted"
    assert judge(margin, near, BASE, "lower").word == "weaker"
    assert judge(margin, far, BASE, "higher").word == "reproduced", "what is better is as good"
    assert judge(margin, [-x for x in far], BASE, "higher").word == "contradicted"


def test_numbers_without_spread() -> None:
    """Bytes that are counted are the same for each seed."""
    fewer, same = [-30.0] * 3, [0.0] * 3
    base = [100.0] * 3
    v = judge(Expects("at_most", 0.7), fewer, base)
    assert (v.word, v.ratio_low, v.ratio_high) == ("reproduced", pytest.approx(0.7), pytest.approx(0.7))
    assert judge(Expects("at_most", 0.5), fewer, base).word == "weaker"
    assert judge(LOWER, same, base).word == "no difference"
    assert judge(Expects("as_good", 1.0), same, base).word == "reproduced"
    assert judge(Expects("as_good", 1.0), fewer, base, "higher").word == "contradicted"


def test_what_is_no_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        judge(LOWER, [0.1, 0.2], BASE)
    with pytest.raises(ValueError, match="two seeds"):
        judge(LOWER, [0.1], [1.0])


# ---- several claims, and none ---------------------------------------------------------------------------


def test_holm_is_over_the_claims_that_were_tested() -> None:
    found = [judge(LOWER, d, BASE) for d in ([-1.0, -1.3, -0.7, -1.6, -0.4], [-1.0, -1.4, -0.6, -2.0, -0.1])]
    assert [v.word for v in found] == ["reproduced", "reproduced"] and 0.025 < found[1].p < 0.05
    gap = not_tested(LOWER, "needs scale", "it starts at 7 B parameters.", "x")
    one, none, two = together([found[0], gap, found[1]])
    assert none is gap and one.claims == two.claims == 2
    assert one.p_holm == pytest.approx(2 * one.p) and two.p_holm == pytest.approx(max(one.p_holm, two.p))
    assert (one.word, two.word) == ("reproduced", "reproduced")
    three = together([replace(found[1]), found[1], found[1]])
    assert {v.word for v in three} == {"no difference"} and three[0].p_holm == pytest.approx(3 * found[1].p)
    assert three[0].detectable > found[1].detectable
    assert (three[0].low, three[0].high) == (found[1].low, found[1].high), "intervals are of one claim"


def test_a_reason_has_no_numbers_and_numbers_no_reason() -> None:
    v = not_tested(LOWER, "needs data", "the corpus is not public.", "x")
    assert v.word == "not tested" and v.difference is None
    assert v.sentence("a", "b", "loss") == "Not tested, needs data: the corpus is not public."
    with pytest.raises(UserError, match=r"is no reason.*needs scale"):
        not_tested(LOWER, "needs luck", "…", "x")
    with pytest.raises(UserError, match="in a sentence"):
        not_tested(LOWER, "needs scale", " ", "x")


@pytest.mark.parametrize("claim", [LOWER, Expects("at_most", 0.9), Expects("as_good", 0.5)])
def test_a_verdict_comes_back_from_its_file_and_a_changed_word_does_not(claim) -> None:
    v = judge(claim, [-0.2, 0.1, -0.1, 0.05, 0.0], BASE)
    table = json.loads(json.dumps(v.table()))
    assert read(table, "evidence/x.json") == v and follows(v) == v.word
    other = "reproduced" if v.word != "reproduced" else "contradicted"
    with pytest.raises(UserError, match="does not follow from its numbers"):
        read(table | {"word": other}, "evidence/x.json")
    with pytest.raises(UserError, match="extra"):
        read(table | {"extra": 1}, "evidence/x.json")


def test_sentences_name_scale_interval_and_claim() -> None:
    arm = [x * f for x, f in zip(BASE, (0.8, 0.79, 0.81, 0.8, 0.805), strict=True)]
    v = judge(Expects("at_most", 0.5), [x - y for x, y in zip(arm, BASE, strict=True)], BASE)
    said = v.sentence("paca", "lora", "time per step")
    assert said.startswith("At this scale time per step of paca is lower than that of lora by ")
    assert "0.801 times as much (0.79" in said and "at most 0.5 times, and only the direction" in said
    flat = judge(LOWER, [0.1, -0.1, 0.2, -0.2, 0.05], BASE).sentence("paca", "lora", "loss")
    assert "no difference between paca and lora" in flat and "four times in five" in flat
    near = judge(Expects("as_good", 0.01), [0.1, -0.1, 0.2, -0.2, 0.05], BASE).sentence("a", "b", "loss")
    assert "does not show it as good within 0.01, only within" in near


# ---- how often they are wrong ---------------------------------------------------------------------------


def simulated(claim, effect, repetitions=2000, seed=2, better="lower"):
    """Words of that many comparisons, five seeds each, differences of the spread 1 about the effect."""
    draw = np.random.default_rng(seed)
    base = 100 + draw.normal(0, 1, (repetitions, 5))
    return [judge(claim, list(d), list(b), better).word
            for d, b in zip(draw.normal(effect, 1, (repetitions, 5)), base, strict=True)]


ROOM = 0.02
"""Four standard errors of 5 % over 2,000 comparisons."""


@pytest.mark.slow
def test_equal_arms_are_seldom_called_different() -> None:
    words = simulated(LOWER, 0.0)
    wrong = [sum(w == one for w in words) / len(words) for one in ("reproduced", "contradicted")]
    assert sum(wrong) < 0.05 + ROOM and all(abs(x - 0.025) < 0.014 for x in wrong)


@pytest.mark.slow
def test_what_is_at_the_margin_is_seldom_called_as_good() -> None:
    """The worst case of each side: worse by exactly the margin; and better is not as bad."""
    claim = Expects("as_good", 6.0)
    assert simulated(claim, 6.0).count("reproduced") / 2000 < 0.05 + ROOM
    assert simulated(claim, 6.0).count("contradicted") / 2000 < 0.025 + 0.014
    assert simulated(claim, 0.0).count("reproduced") / 2000 > 0.99


@pytest.mark.slow
def test_a_claimed_factor_that_is_true_is_seldom_called_weaker() -> None:
    """The mean is 100, so an effect of -10 is a factor of 0.9; its interval misses it in one of forty."""
    words = simulated(Expects("at_most", 0.9), -10.0)
    assert words.count("weaker") / 2000 < 0.025 + 0.014 and words.count("contradicted") == 0
    assert simulated(Expects("at_most", 0.5), -10.0).count("weaker") / 2000 > 0.99


@pytest.mark.slow
def test_holm_holds_a_paper_of_four_claims() -> None:
    draw = np.random.default_rng(3)
    wrong = 0
    for family in draw.normal(0, 1, (1000, 4, 5)):
        found = together([judge(LOWER, list(d), BASE) for d in family])
        wrong += any(v.word != "no difference" for v in found)
    assert wrong / 1000 < 0.05 + 0.028
