"""Drawings of schedules: made by the methods themselves, and of schedules alone."""
from __future__ import annotations

import re

import pytest

from trainwright.core import registry
from trainwright.report import schedule


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear"])
def test_a_schedule_is_drawn(name: str) -> None:
    drawn = schedule.svg(registry.cards()[name])
    (line,) = re.findall(r'<polyline points="([^"]+)"', drawn)
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert len(heights) == schedule.STEPS and f"<title>Learning rate of {name}" in drawn
    top = heights.index(min(heights))
    assert 0 < top < schedule.STEPS - 1 and heights[0] > heights[top] < heights[-1], "up, then down again"


@pytest.mark.parametrize("name", ["constant", "adamw", "early_stop", "lora", "grpo"])
def test_what_is_no_schedule_is_not(name: str) -> None:
    assert schedule.svg(registry.cards()[name]) == ""
