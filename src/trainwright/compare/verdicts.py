"""What a paper claims against what was measured: one word for each claim, which follows from its numbers.

A claim expects a direction (``lower``, ``higher``), a factor of the baseline's mean (``at_most``,
``at_least``), or equality up to a margin (``as_good``). It is judged on paired differences, one a seed:

- a direction by the two-sided paired t test of the differences;
- a factor by the interval of the ratio of the two means, after Fieller ("Some Problems in Interval
  Estimation", 1954): the t interval of all θ for which ``arm - θ · baseline`` has a mean of zero. It leaves
  1 out exactly where the t test finds a direction;
- equality by two one-sided tests, TOST ("A comparison of the two one-sided tests procedure …", Schuirmann
  1987): the differences are shown to lie within the margin where their 90 % interval does.

Holm's correction is over all claims of a paper (``together``). Intervals are those of one claim alone, at
95 %. There is no way to give a measured number a reason, and no way to give a reason numbers.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from trainwright.compare import statistics
from trainwright.compare.statistics import ALPHA, holm, paired
from trainwright.core.errors import UserError, suggest

Word = Literal["reproduced", "weaker", "no difference", "contradicted", "not tested"]
REASONS = ("needs scale", "needs data", "needs hardware", "needs a method")
"""Why a claim may stand without a measurement."""
WAYS = ("lower", "higher")
AMOUNTS = ("at_most", "at_least", "as_good")
SCALE = "At this scale"
"""With these words every sentence about a measurement begins."""


@dataclass(frozen=True)
class Expects:
    """What a claim expects of an arm's metric, beside the baseline's."""

    kind: Literal["lower", "higher", "at_most", "at_least", "as_good"]
    amount: float | None = None
    """The factor of the baseline's mean, or the margin in the units of the metric."""

    @property
    def sign(self) -> int:
        """-1 where the claim is that the metric is lower, 1 where higher, 0 where it is neither."""
        if self.amount is None:
            return -1 if self.kind == "lower" else 1
        if self.kind == "at_most":
            return -1 if self.amount < 1 else 0
        return 1 if self.kind == "at_least" and self.amount > 1 else 0

    @property
    def bound(self) -> bool:
        """Whether the factor only limits a price (``at_most = 1.1``): there is no direction then, and the
        whole interval has to keep to it."""
        return self.kind in ("at_most", "at_least") and not self.sign

    def written(self) -> str | dict[str, float]:
        """As a paper's file has it."""
        return self.kind if self.amount is None else {self.kind: self.amount}

    def __str__(self) -> str:
        if self.kind == "as_good":
            return f"as good, within {self.amount:g}"
        return self.kind if self.amount is None else f"{self.kind.replace('_', ' ')} {self.amount:g} times"


def expects(given: Any, where: str) -> Expects:
    """``"lower"``, ``"higher"``, ``{ at_most = 0.78 }``, ``{ at_least = 1.5 }`` or ``{ as_good = 0.02 }``.

    Args:
        where: the file and the claim, for messages.

    Raises:
        UserError: anything else.
    """
    if isinstance(given, str):
        if given not in WAYS:
            raise UserError(f"{where}: expects = {given!r} is none of "
                            f"{', '.join(WAYS)}{suggest(given, (*WAYS, *AMOUNTS))}.")
        return Expects("lower" if given == "lower" else "higher")
    if not isinstance(given, dict) or len(given) != 1:
        raise UserError(f'{where}: expects is "lower", "higher", or a table with one of '
                        f"{', '.join(AMOUNTS)}, such as {{ at_most = 0.78 }}.")
    (kind, amount), = given.items()
    if kind not in AMOUNTS:
        raise UserError(f"{where}: expects has no {kind!r}{suggest(str(kind), AMOUNTS)}; "
                        f"it knows {', '.join(AMOUNTS)}.")
    number = not isinstance(amount, bool) and isinstance(amount, int | float)
    if not number or not 0 < amount < math.inf:
        what = "margin" if kind == "as_good" else "factor"
        raise UserError(f"{where}: expects: {kind} = {amount!r}: the {what} is a number above 0.")
    return Expects(kind, float(amount))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim's word and all that it rests on; the word is a function of the rest (``follows``)."""

    word: Word
    expects: Expects
    better: Literal["lower", "higher"] = "lower"
    """Which way the metric is better."""
    n: int = 0
    """Paired differences."""
    difference: float | None = None
    """The mean of the arm less that of the baseline."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval of the difference."""
    baseline_mean: float | None = None
    ratio: float | None = None
    """The arm's mean as a factor of the baseline's, where that is above zero."""
    ratio_low: float | None = None
    ratio_high: float | None = None
    """Ends of its 95 % interval; none where the baseline's mean cannot be told from zero."""
    p: float | None = None
    """Of the test on which the claim stands: of no difference, of the factor as a bound, or TOST's."""
    p_holm: float | None = None
    """The same after Holm's correction over the claims of the paper."""
    p_difference: float | None = None
    """Of the two-sided test of no difference, whatever the claim is."""
    sd: float | None = None
    """Of the differences."""
    detectable: float | None = None
    """The smallest true difference that would be found four times in five; where the claim is ``as_good``,
    the smallest margin that these differences show."""
    claims: int = 1
    """Over how many claims Holm's correction is."""
    reason: str | None = None
    """One of REASONS, where nothing was measured."""
    why: str = ""
    """The reason in a sentence."""

    def table(self) -> dict[str, Any]:
        """For a JSON file; ``read`` is the way back."""
        return asdict(self) | {"expects": self.expects.written()}

    def sentence(self, arm: str, baseline: str, what: str,
                 shown: Callable[[float], str] = "{:.3g}".format) -> str:
        """The verdict in plain words.

        Args:
            arm: the name of what the claim is about.
            baseline: the name of what it is compared with.
            what: the metric in words, such as ``loss on code``.
            shown: how a number of the metric is written.
        """
        if self.reason is not None:
            return f"Not tested, {self.reason}: {self.why.rstrip('.')}."
        found = f"{self._direction(arm, baseline, what, shown)}{self._factor()}"
        return f"{SCALE} {found}. {self._against(shown)}"

    def _direction(self, arm: str, baseline: str, what: str, shown: Callable[[float], str]) -> str:
        d, low, high = self.difference, self.low, self.high
        assert d is not None and low is not None and high is not None and self.p_difference is not None
        if self.p_difference * self.claims >= ALPHA:
            return (f"no difference between {arm} and {baseline} was found in {what} "
                    f"({shown(d)}, 95 % interval {shown(low)} to {shown(high)})")
        way, ends = ("lower", (-high, -low)) if d < 0 else ("higher", (low, high))
        return (f"{what} of {arm} is {way} than that of {baseline} by {shown(abs(d))} "
                f"(95 % interval {shown(ends[0])} to {shown(ends[1])})")

    def _factor(self) -> str:
        if self.ratio is None or self.expects.amount is None or self.expects.kind == "as_good":
            return ""
        if self.ratio_low is None or self.ratio_high is None:
            return f", {self.ratio:.3g} times as much, without an interval, as the baseline's may be zero"
        return f", {self.ratio:.3g} times as much ({self.ratio_low:.3g} to {self.ratio_high:.3g})"

    def _against(self, shown: Callable[[float], str]) -> str:
        """What that means for the claim."""
        e, corrected = self.expects, " after Holm's correction" if self.claims > 1 else ""
        p = f"p = {self.p_holm:.2g}{corrected}"
        assert self.detectable is not None
        if self.word == "no difference":
            if e.kind == "as_good":
                return (f"That does not show it as good within {e.amount:g}, only within "
                        f"{shown(self.detectable)} ({p}).")
            return (f"Claimed is {e}; a true difference of {shown(self.detectable)} would be found four "
                    f"times in five ({p}).")
        meaning = {"reproduced": "which is reproduced", "contradicted": "which is contradicted",
                   "weaker": "and it is worse, by no more than might lie within" if e.kind == "as_good"
                   else "and only the direction is reproduced"}
        return f"Claimed is {e}, {meaning[self.word]} ({p})."


def judge(claim: Expects, differences: Sequence[float], baseline: Sequence[float],
          better: Literal["lower", "higher"] = "lower") -> Verdict:
    """The verdict on one claim, without others beside it.

    Args:
        differences: arm less baseline, one a seed, at least two.
        baseline: the baseline's values of the same seeds.
        better: which way the metric is better; where the claim is ``as_good`` the word depends on it.

    Raises:
        ValueError: fewer than two seeds, numbers that are not finite, or as many of one as not of the other.
        UserError: a factor of a baseline whose mean is not above zero.
    """
    if len(differences) != len(baseline):
        raise ValueError(f"{len(differences)} differences and {len(baseline)} values of the baseline are not "
                         "of the same seeds.")
    base = np.asarray(baseline, dtype=float)
    arm, found = base + np.asarray(differences, dtype=float), paired(differences)
    mean = float(base.mean())
    if claim.kind in ("at_most", "at_least") and not mean > 0:
        raise UserError(f"a factor of the baseline's mean says nothing where that is {mean:g}; claim a "
                        "direction.")
    low, high = fieller(arm, base)
    p, detectable = found.p, found.detectable
    if claim.bound:
        assert claim.amount is not None
        p = paired(list(arm - claim.amount * base)).p
    elif claim.kind == "as_good":
        assert claim.amount is not None
        p, detectable = tost(found, claim.amount)
    made = Verdict(word="no difference", expects=claim, better=better, n=found.n,
                   difference=found.difference, low=found.low, high=found.high, baseline_mean=mean,
                   ratio=float(arm.mean()) / mean if mean > 0 else None, ratio_low=low, ratio_high=high,
                   p=p, p_holm=p, p_difference=found.p, sd=found.sd, detectable=detectable)
    return replace(made, word=follows(made))


def together(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts on all claims of a paper, after Holm's correction over those that were tested."""
    tested = [v for v in verdicts if v.reason is None]
    p = [v.p for v in tested if v.p is not None]
    corrected: list[Verdict] = []
    for v, adjusted in zip(tested, holm(p), strict=True):
        detectable = v.detectable
        if v.expects.kind != "as_good":
            assert v.sd is not None
            detectable = statistics.detectable(v.sd, v.n, ALPHA / len(tested))
        new = replace(v, p_holm=adjusted, claims=len(tested), detectable=detectable)
        corrected.append(replace(new, word=follows(new)))
    rest = iter(corrected)
    return [v if v.reason is not None else next(rest) for v in verdicts]


def not_tested(claim: Expects, reason: str, why: str, where: str) -> Verdict:
    """A claim without a measurement.

    Raises:
        UserError: a reason that is none of REASONS, or none in a sentence.
    """
    if reason not in REASONS:
        raise UserError(f"{where}: {reason!r} is no reason for which a claim is not tested"
                        f"{suggest(reason, REASONS)}; the reasons are {', '.join(REASONS)}.")
    if not why.strip():
        raise UserError(f"{where}: say in a sentence why the claim {reason}.")
    return Verdict(word="not tested", expects=claim, reason=reason, why=why)


def follows(v: Verdict) -> Word:
    """The word that follows from the numbers."""
    if v.reason is not None:
        return "not tested"
    assert v.p_holm is not None and v.difference is not None and v.p_difference is not None
    if v.expects.kind == "as_good":
        return _as_good(v)
    if v.p_holm >= ALPHA:
        return "no difference"
    if v.expects.bound:
        assert v.ratio is not None and v.expects.amount is not None
        kept = v.ratio <= v.expects.amount if v.expects.kind == "at_most" else v.ratio >= v.expects.amount
        return "reproduced" if kept else "contradicted"
    if v.difference * v.expects.sign < 0:
        return "contradicted"
    return "reproduced" if v.expects.amount is None or _reaches(v) else "weaker"


def _reaches(v: Verdict) -> bool:
    """Whether the interval of the ratio has the claimed factor, or one beyond it."""
    if v.ratio_low is None or v.ratio_high is None or v.expects.amount is None:
        return False
    return v.ratio_low <= v.expects.amount if v.expects.sign < 0 else v.ratio_high >= v.expects.amount


def _as_good(v: Verdict) -> Word:
    """Equality, and what else is true where it was not shown."""
    assert v.p_holm is not None and v.p_difference is not None and v.expects.amount is not None
    assert v.difference is not None and v.low is not None and v.high is not None
    if v.p_holm < ALPHA:
        return "reproduced"
    if v.p_difference * v.claims >= ALPHA:
        return "no difference"
    if (v.difference < 0) == (v.better == "lower"):
        return "reproduced"                                # better is not worse
    nearest = v.low if v.better == "lower" else -v.high
    return "contradicted" if nearest > v.expects.amount else "weaker"


def read(table: dict[str, Any], where: str) -> Verdict:
    """A verdict from a JSON file.

    Raises:
        UserError: what is no verdict, or a word that does not follow from its numbers.
    """
    if unknown := set(table) ^ {f.name for f in fields(Verdict)}:
        raise UserError(f"{where}: a verdict has {', '.join(sorted(unknown))} too much or too little.")
    found = Verdict(**table | {"expects": expects(table["expects"], where)})
    if found.word != (word := follows(found)):
        raise UserError(f"{where}: the verdict {found.word!r} does not follow from its numbers: they say "
                        f"{word!r}.")
    return found


def fieller(arm: np.ndarray, baseline: np.ndarray, alpha: float = ALPHA
            ) -> tuple[float, float] | tuple[None, None]:
    """The interval of the ratio of the two means of paired values, at the level ``1 - alpha``.

    All θ with ``(ā - θ b̄)² <= t² · var(a - θ b) / n``. None where the baseline's mean cannot be told from
    zero, as that holds for factors without end then, or where it is negative.
    """
    n, a, b = len(arm), float(arm.mean()), float(baseline.mean())
    spread = np.cov(arm, baseline, ddof=1) * float(stdtrit(n - 1, alpha / 2)) ** 2 / n
    square = b * b - spread[1, 1]
    if b <= 0 or square <= 0:
        return None, None
    middle = a * b - spread[0, 1]
    root = math.sqrt(max(0.0, middle**2 - square * (a * a - spread[0, 0])))
    return float(middle - root) / float(square), float(middle + root) / float(square)


def tost(found: statistics.Paired, margin: float) -> tuple[float, float]:
    """The p value of a mean difference within ``±margin``, and the least margin with one of 0.05."""
    scale = found.sd / math.sqrt(found.n)
    reach = abs(found.difference) - float(stdtrit(found.n - 1, ALPHA)) * scale
    if not scale:
        return (0.0 if abs(found.difference) < margin else 1.0), reach
    return float(stdtr(found.n - 1, (abs(found.difference) - margin) / scale)), reach
