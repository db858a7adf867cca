"""Foretells from snapshots how far a loss will fall, how sure that is, and when more training stops paying.

"Modeling of learning curves with applications to pos tagging" (arXiv 2402.02515), on losses of snapshots
instead of accuracies of taggers. To the first i snapshots, i >= 3, at x_1 < x_2 < .. of training, fit

    L_i(x) = c_i + a_i x^(-b_i),    a_i >= 0, b_i > 0

by least squares. The curves of i = 3, 4, .. are the learning trace. It is trusted from its prediction level
on, the first one from which the asymptotes c_i are above 0 and move one way only. Past it, training can end
at the first level where

    |c_i - c_(i-1)| <= threshold    and    L_i(x_i) - L_i(at) <= threshold

so that neither more snapshots nor more training would change the loss by more. Measured are

    predicted/DOMAIN         L(at) of the last curve, with predicted_low and predicted_high (95 %)
    predicted_level/DOMAIN   the place of the prediction level, 0 where there is none yet
    stop_at/DOMAIN           the place where training can end, 0 where it cannot
    loss/DOMAIN              of the model in ``from.models``, and predicted_error, predicted - loss

Snapshots come from ``from.snapshots`` (``["base@0.1", "base@0.2", …]``) and lie in one run; the model that is
predicted is not among them, and no fit sees it. Where they are named by their share of training, ``at`` is
its end. The interval is that of the fit alone: a schedule that still decays, a change of data or a jump are
not in it. The paper's anchoring (an artificial point far away) is left out, and so is choosing among systems.

Not over a decaying learning rate: most of the fall then comes at the end, which no power law foresees.

Errors: fewer than three snapshots; snapshots without a number, or of shares and steps mixed; no ``at``.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import Positive
from trainwright.core.stage import MODELS, Role
from trainwright.evaluate.audit._curve import FEWEST, Curve, fit, interval, label
from trainwright.evaluate.audit._stream import Held, known_domains, loaded


class LearningCurvePrediction(Evaluator):
    """Measures what snapshots say of the end of a run, and what that is."""

    domains: tuple[str, ...] = ()
    """Domains; by default all of the corpus."""
    at: Positive | None = None
    """Where in training to foretell the loss, counted as the snapshots are; by default the end, where they
    are shares."""
    threshold: Positive = 0.01
    """Nats per token that are not worth more training."""
    held: Held = Held()
    """What is measured."""
    roles: ClassVar[dict[str, Role]] = {"snapshots": MODELS._replace(needed=True)}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("loss/*", "predicted*/*", "stop_at/*")
    example: ClassVar[dict[str, Any]] = {"held": {"tokens": 100, "length": 32, "batch_size": 4}}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        domains = known_domains(self.domains, ctx, self.name)
        true = self.held.losses(model, domains, ctx)
        out = {f"loss/{domain}": loss for domain, loss in true.items()}
        if not ctx.inputs.get("snapshots"):
            return out
        x, at = places(ctx, self.at, self.name)
        rows = [self.held.losses(one, domains, ctx) for _, one in loaded("snapshots", ctx, self.name)]
        order = np.argsort(x)
        for domain in domains:
            y = np.array([rows[i][domain] for i in order])
            out |= self.foretold(x[order], y, at, ctx, domain)
            out[f"predicted_error/{domain}"] = out[f"predicted/{domain}"] - true[domain]
        return out

    def foretold(self, x: np.ndarray, y: np.ndarray, at: float, ctx: Context,
                 domain: str) -> dict[str, float]:
        """Of losses y at places x, in order."""
        trace = [fit(x[:i], y[:i]) for i in range(FEWEST, len(x) + 1)]
        level = prediction_level(trace)
        out = {f"predicted/{domain}": trace[-1].at(at), f"predicted_level/{domain}": 0.0,
               f"stop_at/{domain}": 0.0}
        if len(x) > FEWEST:
            low, high = interval(x, y, at, ctx, domain)
            out |= {f"predicted_low/{domain}": low, f"predicted_high/{domain}": high}
        if level is not None:
            out[f"predicted_level/{domain}"] = float(x[level + FEWEST - 1])
            ends = (float(x[i + FEWEST - 1]) for i in range(max(level, 1), len(trace))
                    if abs(trace[i].c - trace[i - 1].c) <= self.threshold
                    and trace[i].at(x[i + FEWEST - 1]) - trace[i].at(at) <= self.threshold)
            out[f"stop_at/{domain}"] = next(ends, 0.0)
        return out


def prediction_level(trace: Sequence[Curve]) -> int | None:
    """The first curve from which asymptotes are above 0 and move one way only, or None: the last two at least
    must."""
    c = np.array([curve.c for curve in trace])
    for i in range(len(c) - 1):
        steps = np.diff(c[i:])
        if (c[i:] > 0).all() and ((steps >= 0).all() or (steps <= 0).all()):
            return i
    return None


def places(ctx: Context, at: float | None, who: str) -> tuple[np.ndarray, float]:
    """Where the snapshots were taken, and where the loss is foretold."""
    names = ctx.names.get("snapshots", [])
    x = [label(name) for name in names]
    if len(names) < FEWEST or None in x:
        raise UserError(f"{who}: from.snapshots needs {FEWEST} snapshots or more of one run, such as "
                        "[\"base@0.1\", \"base@0.2\", \"base@0.4\"].")
    found = np.array([one for one in x if one is not None])
    if len({one < 1 for one in found.tolist()}) > 1 or len(set(found.tolist())) < len(found):
        raise UserError(f"{who}: snapshots are named by their step or by their share of training, each once, "
                        f"and not by both: {', '.join(names)}.")
    if at is None and found.max() >= 1:
        raise UserError(f"{who}: say with at for which step the loss is foretold.")
    end = 1.0 if at is None else at
    if end <= found.max():
        raise UserError(f"{who}: at = {end:g} is not behind the last snapshot, {found.max():g}.")
    return found, end
