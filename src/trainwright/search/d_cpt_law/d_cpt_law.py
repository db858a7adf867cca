"""D-CPT Law: the share of domain data in continued pretraining, from losses fitted on small runs.

"D-CPT Law: Domain-specific Continual Pre-Training Scaling Law for Large Language Models" (arXiv
2406.01375). For N parameters (matrices alone), D tokens and a share r of one part of the mixture, the loss
on that part is
    L(N, D, r) = E + A / N^alpha + B r^eta / D^beta + C / (r + epsilon)^gamma,
fitted twice: for the domain with its share r, and for the general part with *its* share, 1 - r. The
suggested r
    minimizes L_domain(N, D, r)    where    L_general(N, D, 1 - r) <= (1 + rise) general_before.
``general_before`` is the general loss of the model that training continues from; by default the law's own
without domain data. With ``domain_tokens`` (all the domain data there is, seen once) D is domain_tokens /
r instead. The best of 1,001 shares is taken. Where the fitted domain loss increases with r the law is no
guide, and says so.

Fitting takes runs with several N, D and shares, with ``mixture.weights.DOMAIN`` and ``loss/DOMAIN`` of
both parts, as a store has them: Huber loss of logarithms from eight starting points; ``draws`` fits on
resampled residuals give the intervals of the constants and the share. The error is that on the largest N,
the largest D and a middle share, each left out. Not confirmed by the paper: epsilon (a setting here, not
fitted) and the Huber constant (1e-3). Its cross-domain form is left out.

The constants here are an example and belong to no model: fit them. To fill in a recipe, name a ``mixture``
without weights.

Errors: runs with fewer than three N, D or shares; a row without a share or a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np

from trainwright.core.context import Context
from trainwright.core.method import Fit, ScalingLaw
from trainwright.core.settings import Between, Exponent
from trainwright.lm.fitting import Row
from trainwright.search.d_cpt_law import _shares
from trainwright.search.d_cpt_law._shares import Constants, names

SHARES = np.linspace(0, 1, 1001)


class DCptLaw(ScalingLaw):
    """Suggests the share of domain data in continued pretraining."""

    domain: str
    """Domain of the corpus to improve on."""
    general: str
    """Domain of the corpus whose loss must not rise much."""
    rise: float = 0.02
    """How much the general loss may rise, as a share of it."""
    general_before: float | None = None
    """General loss of the model before this stage; by default the law's own without domain data."""
    domain_tokens: float | None = None
    """Available tokens of the domain, each seen once; by default as many as the share needs."""
    epsilon: Annotated[float, Between(1e-6, 1e3)] = 0.1
    """Keeps the loss finite at a share of 0."""
    draws: int = 200
    """In fitting: number of resampled tables."""
    domain_e: float = 1.5
    """Domain loss: irreducible part (E)."""
    domain_a: float = 80.0
    """Domain loss: factor of the parameters (A)."""
    domain_alpha: Exponent = 0.32
    """Domain loss: exponent of the parameters."""
    domain_b: float = 60.0
    """Domain loss: factor of the tokens (B)."""
    domain_beta: Exponent = 0.32
    """Domain loss: exponent of the tokens."""
    domain_eta: Exponent = 0.4
    """Domain loss: exponent of the share in the term of the tokens."""
    domain_c: float = 0.35
    """Domain loss: factor of the share (C)."""
    domain_gamma: Exponent = 0.6
    """Domain loss: exponent of the share."""
    general_e: float = 1.8
    """General loss: irreducible part (E)."""
    general_a: float = 60.0
    """General loss: factor of the parameters (A)."""
    general_alpha: Exponent = 0.3
    """General loss: exponent of the parameters."""
    general_b: float = 40.0
    """General loss: factor of the tokens (B)."""
    general_beta: Exponent = 0.3
    """General loss: exponent of the tokens."""
    general_eta: Exponent = 0.3
    """General loss: exponent of the share in the term of the tokens."""
    general_c: float = 0.3
    """General loss: factor of the share (C)."""
    general_gamma: Exponent = 0.5
    """General loss: exponent of the share."""
    fitted: tuple[float, ...] = ()
    """Fewest and most parameters, fewest and most tokens of the runs behind the constants; empty: an
    example."""
    columns: ClassVar[tuple[str, ...]] = ("parameters", "tokens")
    example: ClassVar[dict[str, Any]] = {"domain": "code", "general": "prose"}

    def __post_init__(self) -> None:
        for name in (
            "epsilon",
            "draws",
            "general_before",
            "domain_tokens",
            *names("domain"),
            *names("general"),
        ):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.rise < 0 or self.domain == self.general:
            raise ValueError(f"rise must be 0 or more, and general another domain than {self.domain!r}")

    def constants(self, part: str) -> Constants:
        """The constants of ``domain`` or ``general``."""
        return Constants(*(getattr(self, name) for name in names(part)))

    def losses(self, n: float, d: float, r: Any) -> tuple[Any, Any]:
        """Domain and general loss for shares r of the domain."""
        return self.constants("domain").loss(n, d, r, self.epsilon), self.constants("general").loss(
            n, d, 1 - r, self.epsilon
        )

    def share(self, known: dict[str, float]) -> float:
        """The best share of the domain; if none is allowed, the one with the least general loss."""
        domain, general, before = self._curves(known)
        allowed = general <= (1 + self.rise) * before
        return float(
            SHARES[np.where(allowed, domain, np.inf).argmin() if allowed.any() else np.nanargmin(general)]
        )

    def suggest(self, known: dict[str, float]) -> dict[str, Any]:
        share = round(self.share(known), 4)
        return {"mixture.weights": {self.domain: share, self.general: round(1 - share, 4)}}

    def doubts(self, known: dict[str, float]) -> str:
        domain, general, before = self._curves(known)
        told = _shares.extrapolated(known, self.fitted)
        if not self.fitted:
            told.append(
                "the constants are an example: fit them on runs of your own (trainwright fit-law "
                f"{self.name})"
            )
        if not (general <= (1 + self.rise) * before).any():
            told.append(
                f"no share keeps the loss on {self.general} within {1 + self.rise:g} times {before:.3f}"
            )
        if self.domain_tokens is None and (rising := np.flatnonzero(np.diff(domain) > 0)).size:
            told.append(
                f"the fitted loss on {self.domain} rises with its share from {SHARES[rising[0]]:.2f} on, as "
                "no mixture's does: the best share may be an artefact"
            )
        return "; ".join(told)

    def fit(self, rows: Sequence[Row], ctx: Context) -> Fit:
        parts = _shares.parts_of(rows, self.domain, self.general, self.name)
        found = {
            part: _shares.solve(runs, self.epsilon)
            for part, runs in zip(("domain", "general"), parts, strict=True)
        }
        ranges = tuple(float(f(values)) for values in (parts[0].n, parts[0].d) for f in (np.min, np.max))
        law = replace(self, **_shares.settings_of(found), fitted=ranges)
        drawn = [
            _shares.redrawn(runs, found[part], self.epsilon, self.draws, ctx, f"d_cpt_law/{part}")
            for part, runs in zip(found, parts, strict=True)
        ]
        draws = [
            replace(law, **_shares.settings_of(dict(zip(found, both, strict=True))))
            for both in zip(*drawn, strict=True)
        ]
        told = {
            f"{what}, {name}": value
            for name, runs in zip((self.domain, self.general), parts, strict=True)
            for what, value in _shares.errors(runs, self.epsilon).items()
        }
        return Fit(law, draws, told, [])

    def made_up(self, ctx: Context) -> list[Row]:
        return _shares.made_up(self.losses, self.domain, self.general, ctx)

    def _curves(self, known: dict[str, float]) -> tuple[Any, Any, float]:
        """Domain and general loss for all shares, and the general loss to compare with."""
        n, d = known["parameters"], known["tokens"]
        with np.errstate(divide="ignore"):
            tokens = d if self.domain_tokens is None else self.domain_tokens / SHARES
        return *self.losses(n, tokens, SHARES), self.general_before or float(self.losses(n, d, 0.0)[1])
