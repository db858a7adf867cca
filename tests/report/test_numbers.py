"""Figures as people read them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trainwright.report import numbers


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0"),
        (512, "512"),
        (999.6, "1.00 k"),
        (12_431, "12.4 k"),
        (999_999, "1.00 M"),
        (1_048_576, "1.05 M"),
        (7.1e12, "7.10 T"),
        (3e21, "3000 E"),
        (None, "–"),
        (float("nan"), "–"),
        (1.5, "1.50"),
    ],
)
def test_counts(x: float | None, text: str) -> None:
    assert numbers.count(x) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0996, "0.1 s"),
        (0.041, "41 ms"),
        (0.00041, "0.4 ms"),
        (0.41, "0.4 s"),
        (9.97, "10 s"),
        (48.2, "48 s"),
        (99.7, "1 min 40 s"),
        (3599.7, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (187_200, "2 d 4 h"),
        (None, "–"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_ticks_keep_their_zeros() -> None:
    assert [numbers.short(x) for x in (0, 250_000, 500_000, 1e6, 1.5e6, 100)] == [
        "0",
        "250 k",
        "500 k",
        "1 M",
        "1.5 M",
        "100",
    ]


def test_signs_are_true_minus() -> None:
    assert [numbers.signed(x) for x in (0.8114, -0.042, -0.0001, None)] == ["+0.811", "−0.042", "0.000", "–"]


@pytest.mark.parametrize(
    ("metric", "numbers_of", "says"),
    [
        ("loss/code", (0.0362644, 0.03133, 0.0412), ("+0.036", "[0.031, 0.041]")),
        ("loss/code", (-0.0004, -0.0016, 0.0008), ("−0.0004", "[−0.0016, 0.0008]")),
        ("loss/code", (0.04, -0.0012, 0.0812), ("+0.040", "[−0.001, 0.081]")),
        ("loss/code", (0.0, -0.01, 0.01), ("0.000", "[−0.010, 0.010]")),
        ("perplexity/code", (12.1, -80.0, 104.0), ("+12", "[−80, 104]")),
        ("peak_memory_bytes", (-481_346_772.0, -486_020_604.0, -476_672_940.0), ("−481 MB", "[−486, −477]")),
        ("stored_bytes", (-39e6, -39e6, -39e6), ("−39 MB", "")),
        ("trainable_parameters", (0, 0, 0), ("0", "")),
        ("seconds_per_step", (0.033, 0.02, 0.046), ("+33 ms", "[20, 46]")),
        ("loss/code", (None, None, None), ("–", "")),
        ("loss/code", (math.nan, math.nan, math.nan), ("–", "")),
    ],
)
def test_interval_has_the_decimals_it_is_worth(
    metric: str, numbers_of: tuple[Any, Any, Any], says: tuple[str, str]
) -> None:
    assert numbers.interval(metric, *numbers_of) == says


def test_small_figures() -> None:
    ratios = {1.084: "×1.08", 0.63: "×0.63", 0.0194: "×0.019", 0.00059: "×0.00059", 30.2: "×30"}
    ratios |= {0.0: "", None: ""}
    assert {x: numbers.ratio(x, 1.0) for x in ratios} == ratios
    levels = {0.0: "< 0.001", 0.0041: "0.0041", 0.0321: "0.032", 1.0: "1.000", None: "–"}
    assert {p: numbers.p_value(p) for p in levels} == levels
    decimals = {0.0123: 3, 0.0081: 3, 0.0035: 4, 1.3: 1, 8.0: 0, 250.0: 0, 0.0: 3}
    assert {w: numbers.decimals(w) for w in decimals} == decimals
    seconds = {0.0412: "41.2 ms", 0.412: "0.41 s", 41.2: "41.2 s"}
    assert {s: numbers.quantity("seconds_per_step", s) for s in seconds} == seconds
