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

With ``compute`` = C floating-point operations, N and D are chosen too, under 6 N D = C: for each share the N
between ``sizes`` with the least domain loss, which is
    N = (alpha A / (beta B r^eta) (C / 6)^beta)^(1 / (alpha + beta)),
and the best share among those; no more domain data than ``domain_tokens`` then. A recipe has chosen its
model already: there the suggestion is only said.

Across domains, a term F / K^mu is added to the domain loss. K says how easy a domain is to learn: a larger K
means a lower loss. It comes from a short run on the domain alone (``short_runs``: its loss before and after,
about 1 % of the cost of the runs for a fit), as K = 1 / before + early (before - after). Fitted on runs of
three domains or more, the law then speaks of a domain of which there are no runs.

Fitting takes runs with several N, D and shares, with ``mixture.weights.DOMAIN`` and ``loss/DOMAIN`` of
both parts, as a store has them: Huber loss of logarithms from eight starting points; ``draws`` fits on
resampled residuals give the intervals of the constants and the share. The error is that on the largest N,
the largest D and a middle share, each left out, and on a domain left out. Not confirmed by the paper:
epsilon (a setting here, not fitted), the Huber constant (1e-3), and how K combines the two losses.

The constants here are an example and belong to no model: fit them. To fill in a recipe, name a ``mixture``
without weights.

Errors: runs with fewer than three N, D or shares, or, across domains, of fewer than three that differ in K;
a row without a share or a loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, Any, ClassVar

import numpy as np

from trainwright.core.context import Context
from trainwright.core.method import Fit, ScalingLaw
from trainwright.core.settings import Between, Exponent
from trainwright.lm.fitting import Row
from trainwright.search.d_cpt_law import _across, _shares
from trainwright.search.d_cpt_law._across import Across, Found
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
    compute: float | None = None
    """Floating-point operations to divide among parameters and tokens (6 N D); by default both are given."""
    sizes: tuple[float, float] = (1e6, 1e12)
    """With ``compute``: fewest and most parameters."""
    short_runs: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Across domains: the loss on each domain before and after a short run on it."""
    early: float = 1.0
    """Across domains: how much the fall of the loss in the short run counts."""
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
    domain_f: float = 0.3
    """Domain loss across domains: factor of the learnability (F)."""
    domain_mu: Exponent = 0.5
    """Domain loss across domains: exponent of the learnability."""
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
            "compute",
            "domain_f",
            "domain_mu",
            *names("domain"),
            *names("general"),
        ):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        if self.rise < 0 or self.domain == self.general:
            raise ValueError(f"rise must be 0 or more, and general another domain than {self.domain!r}")
        if not 0 < self.sizes[0] <= self.sizes[1]:
            raise ValueError(f"sizes are the fewest and the most parameters, not {self.sizes}")
        if self.compute is not None and self.compute < 6 * self.sizes[0]:
            raise ValueError(f"compute must pay for a token of the smallest model of sizes, which takes "
                             f"{6 * self.sizes[0]:g}, not {self.compute:g}")
        if self.short_runs and self.domain not in self.short_runs:
            raise ValueError(f"short_runs must have one of {self.domain!r}, of which the law is to speak")
        for name, pair in self.short_runs.items():
            if min(pair) <= 0 or self.learnability(name) <= 0:
                raise ValueError(f"short_runs: {name} = {list(pair)} gives no learnability above 0")

    def constants(self, part: str) -> Constants:
        """The constants of ``domain`` or ``general``."""
        return Constants(*(getattr(self, name) for name in names(part)))

    def losses(self, n: float, d: float, r: Any) -> tuple[Any, Any]:
        """Domain and general loss for shares r of the domain."""
        domain = self.constants("domain").loss(n, d, r, self.epsilon)
        if self.short_runs:
            domain = domain + Across(self.domain_f, self.domain_mu).loss(self.learnability(self.domain))
        return domain, self.constants("general").loss(n, d, 1 - r, self.epsilon)

    def learnability(self, domain: str) -> float:
        """How easy a domain is to learn (K), from its short run."""
        before, after = self.short_runs[domain]
        return 1 / before + self.early * (before - after)

    def allocation(self, r: Any) -> tuple[Any, Any]:
        """Parameters and tokens under 6 N D = ``compute`` with the least domain loss, for shares r."""
        assert self.compute is not None
        c, budget = self.constants("domain"), self.compute / 6
        with np.errstate(divide="ignore"):
            best = (c.alpha * c.a / (c.beta * c.b * r**c.eta) * budget**c.beta) ** (1 / (c.alpha + c.beta))
        n = np.clip(best, *self.sizes)
        return n, budget / n

    def share(self, known: dict[str, float]) -> float:
        """The best share of the domain; if none is allowed, the one with the least general loss."""
        domain, general, before = self._curves(known)
        allowed = self._allowed(general, before)
        return float(
            SHARES[np.where(allowed, domain, np.inf).argmin() if allowed.any() else np.nanargmin(general)]
        )

    def suggest(self, known: dict[str, float]) -> dict[str, Any]:
        share = self.share(known)
        weights = {self.domain: round(share, 4), self.general: round(1 - share, 4)}
        if self.compute is None:
            return {"mixture.weights": weights}
        n, d = self.allocation(share)
        return {"mixture.weights": weights, "parameters": float(n), "tokens": float(d)}

    def _allowed(self, general: Any, before: Any) -> Any:
        """Of which shares the general loss rises little, and the domain's data suffices."""
        little = general <= (1 + self.rise) * before
        if self.compute is None or self.domain_tokens is None:
            return little
        return little & (SHARES * self.allocation(SHARES)[1] <= self.domain_tokens)

    def needs_a_place(self) -> bool:
        return self.compute is None

    def doubts(self, known: dict[str, float]) -> str:
        domain, general, before = self._curves(known)
        place = known
        if self.compute is not None:
            n, d = self.allocation(self.share(known))
            place = {"parameters": float(n), "tokens": float(d)}
        told = _shares.extrapolated(place, self.fitted)
        if not self.fitted:
            told.append(
                "the constants are an example: fit them on runs of your own (trainwright fit-law "
                f"{self.name})"
            )
        if not (general <= (1 + self.rise) * before).any():
            told.append(
                f"no share keeps the loss on {self.general} within {1 + self.rise:g} times "
                f"{np.min(before):.3f}"
            )
        if self.compute is not None and place["parameters"] in self.sizes:
            told.append("the best number of parameters is an end of sizes: widen them")
        rising = np.flatnonzero(np.diff(domain) > 0)
        if self.domain_tokens is None and self.compute is None and rising.size:
            told.append(
                f"the fitted loss on {self.domain} rises with its share from {SHARES[rising[0]]:.2f} on, as "
                "no mixture's does: the best share may be an artefact"
            )
        return "; ".join(told)

    def fit(self, rows: Sequence[Row], ctx: Context) -> Fit:
        if self.short_runs:
            return self._fit_across(rows, ctx)
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

    def _fit_across(self, rows: Sequence[Row], ctx: Context) -> Fit:
        known = {name: self.learnability(name) for name in self.short_runs}
        runs = _across.several(rows, known, self.general, self.name)
        domain = _across.solve_across(runs.domain, runs.k, self.epsilon)
        general = _shares.solve(runs.general, self.epsilon)
        values = runs.domain.n, runs.domain.d
        ranges = tuple(float(f(one)) for one in values for f in (np.min, np.max))
        law = replace(self._with(domain, general), fitted=ranges)
        both = (_across.redrawn_across(runs, domain, self.epsilon, self.draws, ctx, "d_cpt_law/across"),
                _shares.redrawn(runs.general, general, self.epsilon, self.draws, ctx, "d_cpt_law/general"))
        draws = [law._with(one, other) for one, other in zip(*both, strict=True)]
        return Fit(law, draws, _across.errors_across(runs, self.epsilon), [])

    def _with(self, domain: Found, general: Constants) -> DCptLaw:
        """The law with other constants."""
        two = _shares.settings_of({"domain": domain.constants, "general": general})
        more = {"domain_f": float(f"{domain.across.f:.6g}"), "domain_mu": float(f"{domain.across.mu:.6g}")}
        return replace(self, **two, **more)

    def made_up(self, ctx: Context) -> list[Row]:
        return _shares.made_up(self.losses, self.domain, self.general, ctx)

    def _curves(self, known: dict[str, float]) -> tuple[Any, Any, Any]:
        """Domain and general loss for all shares, and the general loss to compare with."""
        if self.compute is not None:
            n, d = self.allocation(SHARES)
            return *self.losses(n, d, SHARES), self.general_before or self.losses(n, d, 0.0)[1]
        n, d = known["parameters"], known["tokens"]
        with np.errstate(divide="ignore"):
            tokens = d if self.domain_tokens is None else self.domain_tokens / SHARES
        return *self.losses(n, tokens, SHARES), self.general_before or float(self.losses(n, d, 0.0)[1])
