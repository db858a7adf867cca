"""A measured difference with its interval as a small drawing: where zero is, where the claim is, what was
found. Plain SVG text; nothing is imported to draw it."""
from __future__ import annotations

from html import escape
from typing import Any

WIDTH, HEIGHT, EDGE = 180, 22, 8
COLOURS = {"reproduced": "#1a8a5a", "weaker": "#b98300", "no difference": "#6b7280",
           "contradicted": "#c2352b"}
"""By verdict; the word always stands beside the drawing, so that nobody has to tell colours apart."""


def svg(verdict: dict[str, Any], metric: str) -> str:
    """The interval of a difference, the arm less the baseline. The thin line is zero, the dashed one is what
    was claimed, and the shaded side is where the claim lies.

    Args:
        verdict: with ``difference``, ``low``, ``high``, ``word``, ``expects`` and ``baseline_mean``.
    """
    low, high, found = verdict["low"], verdict["high"], verdict["difference"]
    claimed, margin = _claimed(verdict)
    points = [0.0, low, high, *([claimed] if claimed is not None else []),
              *((-margin, margin) if margin else ())]
    reach = 1.15 * max(map(abs, points)) or 1.0

    def at(x: float) -> float:
        return round(EDGE + (x / reach + 1) / 2 * (WIDTH - 2 * EDGE), 1)

    middle, colour = HEIGHT / 2, COLOURS[verdict["word"]]
    parts = [f'<rect x="{left}" y="2" width="{round(right - left, 1)}" height="{HEIGHT - 4}" '
             'fill="currentColor" opacity="0.07"/>' for left, right in [_side(verdict, at, claimed, margin)]]
    parts.append(f'<line x1="{at(0)}" x2="{at(0)}" y1="2" y2="{HEIGHT - 2}" stroke="currentColor" '
                 'opacity="0.5"/>')
    if claimed is not None:
        parts.append(f'<line x1="{at(claimed)}" x2="{at(claimed)}" y1="2" y2="{HEIGHT - 2}" '
                     'stroke="currentColor" stroke-dasharray="2 2" opacity="0.8"/>')
    parts.append(f'<line x1="{at(low)}" x2="{at(high)}" y1="{middle}" y2="{middle}" stroke="{colour}" '
                 'stroke-width="3" stroke-linecap="round"/>')
    parts.append(f'<circle cx="{at(found)}" cy="{middle}" r="4" fill="{colour}"/>')
    title = escape(f"{metric}: {found:+.3g}, 95 % interval {low:+.3g} to {high:+.3g}")
    return (f'<svg class="interval" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'role="img"><title>{title}</title>{"".join(parts)}</svg>')


def _claimed(verdict: dict[str, Any]) -> tuple[float | None, float]:
    """The claimed factor as a difference, where there is one and its baseline is known; the margin of "as
    good"."""
    expects, base = verdict["expects"], verdict["baseline_mean"]
    if not isinstance(expects, dict):
        return None, 0.0
    (kind, amount), = expects.items()
    if kind == "as_good":
        return None, amount
    return ((amount - 1) * base if base else None), 0.0


def _side(verdict: dict[str, Any], at: Any, claimed: float | None, margin: float) -> tuple[float, float]:
    """Where the claim lies, from left to right."""
    left, right = float(EDGE), float(WIDTH - EDGE)
    if margin:
        return at(-margin), at(margin)
    expects = verdict["expects"]
    less = expects == "lower" or (isinstance(expects, dict) and "at_most" in expects)
    end = at(0.0 if claimed is None else claimed)
    return (left, end) if less else (end, right)
