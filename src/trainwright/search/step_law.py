"""Step Law: the best learning rate and batch size of pretraining, as power laws of parameters and tokens.

"Predictable Scale: Part I, Step Law: Optimal Hyperparameter Scaling Law in Large Language Model
Pretraining" (arXiv 2503.04715). With N parameters (matrices alone: no embeddings, no head) and D tokens of
training,
    lr = lr_scale N^lr_parameters D^lr_tokens,      batch = batch_scale D^batch_exponent   (tokens, not rows).
The authors' runs use AdamW, a warm-up, and a cosine that decays to a fixed rate of 1e-5; ending at a tenth
of the peak instead moves the best peak. Where a stage has ``cosine`` without a ``final``, that is filled
in too. N was 0.21 to 1.07 billion, D 4 to 100 billion; elsewhere the law is extrapolated, and says so: for
a few million parameters fit it on runs of your own.

Fitting takes a grid of rates and batches at several (N, D): of each (N, D) the runs within ``near`` of its
lowest loss (not the best alone, whose position is noise), least squares on logarithms, and the mean of
1,000 bootstrap samples. Its error is measured on each (N, D) in turn, left out of the fit: how far the run
nearest to the prediction is above the best one.
Do not use it for continued training, other optimizers, or schedules without an end.

Errors: constants out of range; too few groups of runs, or groups in which N and D do not vary
independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit, ScalingLaw
from trainwright.core.settings import Exponent
from trainwright.lm.fitting import Row, at_edge, bootstrap, grouped, held_out, linear, logs, nearest, thin

CONSTANTS = ("lr_scale", "lr_parameters", "lr_tokens", "batch_scale", "batch_exponent")


class StepLaw(ScalingLaw):
    """Suggests the peak learning rate and the batch size of a pretraining run."""

    lr_scale: float = 1.79
    """Learning rate at one parameter and one token."""
    lr_parameters: Exponent = -0.713
    """Exponent of the parameters in the learning rate."""
    lr_tokens: Exponent = 0.307
    """Exponent of the tokens in the learning rate."""
    batch_scale: float = 0.58
    """Tokens per step at one token of training."""
    batch_exponent: Exponent = 0.571
    """Exponent of the tokens in the tokens per step."""
    optimizer: str = "adamw"
    """Optimizer of the runs behind the constants; its ``lr`` is filled in."""
    final_lr: float | Literal[False] = 1e-5
    """Rate at the end of those runs' cosine; ``false`` if unknown or not unique, to leave the schedule
    alone."""
    fitted_parameters: tuple[float, ...] = (2.14e8, 1.08e9)
    """Fewest and most parameters of those runs."""
    fitted_tokens: tuple[float, ...] = (4e9, 1e11)
    """Fewest and most tokens of those runs."""
    near: float = 0.0025
    """In fitting: how far above the lowest loss of its group a run may be, as a share of it."""
    default: ClassVar[bool] = True
    scratch: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("parameters", "tokens", "lr", "batch_tokens", "loss")

    def __post_init__(self) -> None:
        for name in ("lr_scale", "batch_scale", "near"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("fitted_parameters", "fitted_tokens"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name} must be two numbers, the smaller one first, not {list(pair)}")

    def rate(self, parameters: float, tokens: float) -> float:
        return self.lr_scale * parameters**self.lr_parameters * tokens**self.lr_tokens

    def batch(self, tokens: float) -> float:
        return self.batch_scale * tokens**self.batch_exponent

    def suggest(self, known: dict[str, float]) -> dict[str, Any]:
        lr = f"{self.optimizer}.lr"
        peak = float(f"{self.rate(known['parameters'], known['tokens']):.4g}")
        own = self.final_lr is False or lr in known  # the end of a schedule belongs to its peak
        final = {} if own else {"cosine.final": float(f"{min(1.0, self.final_lr / peak):.4g}")}
        return {lr: peak, "batch_tokens": round(self.batch(known["tokens"]), 1), **final}

    def doubts(self, known: dict[str, float]) -> str:
        seen = (("parameters", *self.fitted_parameters), ("tokens", *self.fitted_tokens))
        ranges = " and ".join(f"{low:.3g} to {high:.3g} {name}" for name, low, high in seen)
        inside = all(low / 1.1 <= known[name] <= high * 1.1 for name, low, high in seen)
        return "" if inside else f"extrapolated: its constants come from runs of {ranges}"

    def fit(self, rows: Sequence[Row], ctx: Context) -> Fit:
        groups = grouped(rows, ("parameters", "tokens"))
        varied = all(len({float(r[name]) for r in rows}) > 1 for name in ("lr", "batch_tokens"))
        if not varied or self._fitted(groups) is None:
            raise UserError(
                f"step_law: these {len(rows)} runs do not tell its constants apart: it needs three or more "
                "pairs of parameters and tokens that vary independently of each other, and at each a grid "
                "of lr and batch_tokens."
            )
        table = self._table(groups)
        found = bootstrap(table, _constants, ctx, "step_law/bootstrap")
        law = replace(self, **_setting(self, rows))
        return Fit(
            law._with(found.mean(0)),
            [law._with(one) for one in found],
            self._errors(groups),
            thin(len(table), len(groups), self.near) + at_edge(groups, ("lr", "batch_tokens")),
        )

    def made_up(self, ctx: Context) -> list[Row]:
        rows, noise = [], torch.randn(9, 7, 5, generator=ctx.rng("step_law/made_up", at=0)).numpy()
        for i, j, k in np.ndindex(9, 7, 5):
            n, d = 1e6 * 4.0 ** (i // 3), 2e7 * 4.0 ** (i % 3)
            best = np.log2([self.rate(n, d), self.batch(d)])
            # powers of the root of 2, so that the best is not on the grid
            at = np.round(best * 2) / 2 + [j / 2 - 1.5, k / 2 - 1]
            above = 1 + [0.003, 0.0015] @ (at - best) ** 2 + 5e-4 * noise[i, j, k]
            rows.append(
                {
                    "parameters": n,
                    "tokens": d,
                    "lr": 2.0 ** at[0],
                    "batch_tokens": 2.0 ** at[1],
                    "loss": float(above * (2 + (1e6 / n) ** 0.3 + (2e7 / d) ** 0.3)),
                }
            )
        return rows

    def _table(self, groups: Sequence[list[Row]]) -> np.ndarray:
        """Logarithms of parameters, tokens, rate and batch of the runs close to their group's best."""
        return logs(
            [r for g in groups for r in g if r["loss"] <= (1 + self.near) * min(o["loss"] for o in g)],
            self.columns[:4],
        )

    def _with(self, found: np.ndarray) -> StepLaw:
        values = {n: np.exp(v) if "scale" in n else v for n, v in zip(CONSTANTS, found, strict=True)}
        return replace(self, **{n: float(f"{v:.5g}") for n, v in values.items()})

    def _fitted(self, groups: Sequence[list[Row]]) -> StepLaw | None:
        found = _constants(self._table(groups)) if groups else None
        return None if found is None else self._with(found)

    def _above(self, group: list[Row]) -> float:
        """How far the run closest to this law's suggestion is above the best of its group, in percent."""
        at = {
            "lr": self.rate(group[0]["parameters"], group[0]["tokens"]),
            "batch_tokens": self.batch(group[0]["tokens"]),
        }
        return 100 * float(nearest(group, at)["loss"] / min(r["loss"] for r in group) - 1)

    def _errors(self, groups: Sequence[list[Row]]) -> dict[str, float]:
        after = held_out(groups, self._fitted, StepLaw._above)
        told = {"fitted on the others": after, "with the constants before": [self._above(g) for g in groups]}
        return {
            f"percent above a group's best loss, {how}, {what}": float(of(found))
            for how, found in told.items()
            if after
            for what, of in (("mean", np.mean), ("worst", np.max))
        }


def _constants(table: np.ndarray) -> np.ndarray | None:
    lr, batch = linear(table[:, :2], table[:, 2]), linear(table[:, 1:2], table[:, 3])
    return None if lr is None or batch is None else np.concatenate([lr, batch])


def _setting(law: StepLaw, rows: Sequence[Row]) -> dict[str, Any]:
    """Other settings from the rows: the optimizer, the end of the schedule, the ranges."""
    optimizers = {str(r.get("optimizer", law.optimizer)) for r in rows}
    if len(optimizers) > 1:
        raise UserError(
            f"step_law: these are runs of several optimizers ({', '.join(sorted(optimizers))}); fit each by "
            "itself."
        )
    ends = [r["cosine.final"] * r["lr"] if "cosine.final" in r else r.get("final_lr") for r in rows]
    one = None not in ends and max(ends) <= 1.05 * min(ends)
    ranges = {f"fitted_{n}": (min(r[n] for r in rows), max(r[n] for r in rows)) for n in law.columns[:2]}
    return ranges | {"optimizer": optimizers.pop(), "final_lr": float(ends[0]) if one else False}
