"""Membership inference: how well a score of the model separates documents that were trained on from others.

The attack of "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting" (arXiv
1709.01604), with the area under its ROC curve instead of one threshold: the probability that a member (a
``train`` document) has a lower mean loss than a non-member (a ``test`` document of the same domain), ties
counted half,

    membership_auc = #{(m, n): loss(m) < loss(n)} / (members · non-members)

0.5 is no better than guessing: nothing was memorized that the loss would show; 1 separates them perfectly.
``membership_tpr1`` and ``_tpr5`` are the shares of members found while at most 1 % and 5 % of the others are
taken for members; each number has ``_low`` and ``_high``, the ends of its interval of 95 % (a bootstrap over
documents). Further ``attacks`` are measured under their names (``membership_zlib_auc/DOMAIN``); what each
does stands in ``evaluate/audit/_attacks.py``. ``words`` is the control: it reads no model, and where it is
above 0.5, members and others differ in kind, so that no attack says anything about memory. ``min_k_prob``
and ``dc_pdd`` are methods of their own.

Documents are drawn by the hash of their id, so both sides have the same distribution; the first ``length``
tokens of each are read. The standard error of a chance value is about
0.29 / sqrt(documents of the smaller side); with fewer than 100 non-members, none may be taken for a member at
1 %. Do not use it on a corpus whose training documents were selected by something that affects the loss:
members and non-members then differ before any training.

Errors: a domain that the corpus does not have, or without documents of either kind; ``reference`` without
another model; ``recall`` without ``tune`` documents; ``neighbour`` on a model with an encoder.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import Evaluator
from trainwright.core.stage import Role
from trainwright.evaluate.audit._attacks import ATTACKS, attacked
from trainwright.evaluate.audit._texts import Texts


class Membership(Evaluator):
    """Measures ``membership_auc/DOMAIN`` and what is found at few false alarms."""

    domains: tuple[str, ...] = ()
    """Domains to measure; by default all of the corpus."""
    documents: int = 200
    """Most documents per side and domain."""
    length: int = 256
    """Tokens read of each document; fewer if the model has fewer positions."""
    batch_size: int = 16
    """Rows of a forward pass."""
    attacks: tuple[Literal["loss", "zlib", "reference", "neighbour", "recall", "words"], ...] = (
        "loss", "words")
    """What tells members."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True)}
    makes: ClassVar[tuple[str, ...]] = ("membership_*/*",)
    example: ClassVar[dict[str, object]] = {"documents": 10, "length": 32}

    def __post_init__(self) -> None:
        self._texts()
        if not self.attacks:
            raise ValueError("attacks must name at least one attack")

    def asks(self) -> dict[str, Role]:
        return self.roles if "reference" in self.attacks else {}

    def may_make(self, metric: str) -> bool:
        return super().may_make(metric) and self._texts().may_make(metric)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        named = {"membership" if name == "loss" else f"membership_{name}": ATTACKS[name]
                 for name in self.attacks}
        return attacked(named, model, self._texts(), ctx, self.name)

    def _texts(self) -> Texts:
        return Texts(domains=self.domains, documents=self.documents, length=self.length,
                     batch_size=self.batch_size)
