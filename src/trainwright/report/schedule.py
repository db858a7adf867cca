"""A schedule of the learning rate as a small drawing, made by the method itself. Plain SVG text."""
from __future__ import annotations

from html import escape
from typing import Any

from torch import nn

from trainwright.core import registry
from trainwright.core.card import Card
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Controller, Set

STEPS = 200
WIDTH, HEIGHT, EDGE = 320, 96, 8


def svg(card: Card) -> str:
    """The factor of the peak rate over a stage, with default settings where it has them; empty for what is
    no schedule, or needs more than a stage to be one."""
    factors = _factors(card)
    if len(set(factors)) < 2:
        return ""
    most = max(factors)
    points = [(EDGE + (WIDTH - 2 * EDGE) * i / (len(factors) - 1),
               HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * x / most) for i, x in enumerate(factors)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    words = escape(f"Learning rate of {card.name} over a stage: it begins at {factors[0]:.2g} of its peak, "
                   f"is highest after {factors.index(most) / STEPS:.0%} and ends at {factors[-1]:.2g}.")
    floor, right = HEIGHT - EDGE, WIDTH - EDGE
    return (f'<svg class="schedule" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'role="img"><title>{words}</title><line x1="{EDGE}" x2="{right}" y1="{floor}" y2="{floor}" '
            'stroke="currentColor" opacity="0.4"/>'
            f'<polygon points="{EDGE},{floor} {line} {right},{floor}" fill="#2563a8" opacity="0.12"/>'
            f'<polyline points="{line}" fill="none" stroke="#2563a8" stroke-width="2"/></svg>')


def _factors(card: Card) -> list[float]:
    if not card.is_a("Controller") or "optim" not in card.folder:
        return []
    try:
        cls: Any = registry.load(card.file)
        method = cls(**(cls.example if any(not default for _, _, default, _ in card.settings) else {}))
        assert isinstance(method, Controller)
        if "knob:lr" not in method.claims(nn.Module()):
            return []
        state, found = method.init(nn.Module(), Context(steps=STEPS)), [1.0]
        for step in range(STEPS):
            view = View(step, STEPS, {}, {"lr": found[-1]})
            set_now = [c.value for c in method.tick(view, state) if isinstance(c, Set) and c.knob == "lr"]
            found.append(float(set_now[-1]) if set_now else found[-1])
    except (UserError, KeyError, TypeError, ValueError):
        return []
    return found[1:]
