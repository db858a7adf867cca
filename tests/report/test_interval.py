"""The drawing of an interval: what is left of zero is drawn left of it, and the claim's side is shaded."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from typing import Any

import pytest

from trainwright.report import interval

MIDDLE = interval.WIDTH / 2


def drawn(**changes: Any) -> xml.Element:
    verdict = {"difference": -0.2, "low": -0.3, "high": -0.1, "word": "reproduced", "expects": "lower",
               "baseline_mean": 1.0} | changes
    return xml.fromstring(interval.svg(verdict, "loss/code"))


def ends(svg: xml.Element, width: str) -> tuple[float, float]:
    line = next(e for e in svg.iter("line") if e.get("stroke-width") == width)
    return float(line.get("x1", 0)), float(line.get("x2", 0))


def test_an_interval_stands_on_its_side_of_zero() -> None:
    low, high = ends(drawn(), "3")
    dot = float(next(drawn().iter("circle")).get("cx", 0))
    assert low < dot < high < MIDDLE and dot == pytest.approx((low + high) / 2, abs=0.1)
    low, high = ends(drawn(low=-0.1, high=0.3, difference=0.1), "3")
    assert low < MIDDLE < high


def test_the_side_of_the_claim_is_shaded() -> None:
    def shade(**changes: Any) -> tuple[float, float]:
        box = next(drawn(**changes).iter("rect"))
        left = float(box.get("x", 0))
        return left, left + float(box.get("width", 0))

    assert shade() == (interval.EDGE, MIDDLE)
    assert shade(expects="higher") == (MIDDLE, interval.WIDTH - interval.EDGE)
    factor = shade(expects={"at_most": 0.75})
    assert factor[0] == interval.EDGE and interval.EDGE < factor[1] < MIDDLE
    margin = shade(expects={"as_good": 0.05})
    assert margin[0] < MIDDLE < margin[1] and MIDDLE - margin[0] == pytest.approx(margin[1] - MIDDLE)


def test_a_factor_is_a_dashed_line_where_the_baseline_is_known() -> None:
    dashed = [e for e in drawn(expects={"at_most": 0.75}).iter("line") if e.get("stroke-dasharray")]
    assert len(dashed) == 1
    unknown = drawn(expects={"at_most": 0.75}, baseline_mean=None)
    assert not [e for e in unknown.iter("line") if e.get("stroke-dasharray")]


def test_numbers_stand_in_the_title_for_who_does_not_see_it() -> None:
    title = "".join(drawn().itertext())
    assert re.search(r"loss/code: -0\.2, 95 % interval -0\.3 to -0\.1", title)
    assert ends(drawn(difference=0.0, low=0.0, high=0.0, word="no difference"), "3") == (MIDDLE, MIDDLE)
