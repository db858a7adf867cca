"""Cat: features of several runs, joined, and what a linear probe makes of them against those of one run.

"Learning useful representations for shifting tasks and distributions" (arXiv 2212.07346). n models are
trained on the same data with the same settings and other seeds (``seed`` of a stage), and stay as they are.
Of a document x of L tokens with final hidden states h_i(x) [L, d_i] of model i, the features are the means
over tokens, and

    Cat_n(x) = [mean h_1(x), …, mean h_n(x)]      [d_1 + … + d_n]

A logistic regression for the labels of the corpus, which is the new task, is fitted on training documents and
measured on held-out ones:

    cat/alone       right answers, features of the model that is measured
    cat/joined      the same, with those of ``from.members`` behind them
    cat/features    numbers that the joined probe reads

The probe's penalty is chosen for each alike, by cross-validation on the training documents; features are
brought to mean 0 and variance 1 there. The paper's claim is about tasks and texts that the models were not
trained for; on their own data joining gains little. Compare with ``cat/alone`` of one model that is as wide
as all together: without it, more features are only a larger model. Left out: distilling the joined features
into one model, and tuning each member first.

Not for snapshots of one run, which are no independent episodes.

Errors: no members; fewer than two labels, or too few documents of one; scikit-learn is missing.
"""
from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import Count, Row
from trainwright.core.stage import MODELS, Role
from trainwright.corpus.examples import Examples
from trainwright.data.order.examples import documents_of, inputs_of
from trainwright.lm.classes import pooled
from trainwright.lm.losses import body_states, positions, way_of

FOLDS = 3
"""Of the cross-validation of the probe's penalty."""
STRENGTHS = 5
"""Penalties that are tried, from 1e-4 to 1e4."""
Split = Literal["train", "tune", "test"]


class Cat(Evaluator):
    """Measures linear probes on the features of one model and of several."""

    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    split: Split = "test"
    """Which documents are asked."""
    fitted: Count = 500
    """Training documents that the probe is fitted on, at most."""
    asked: Count = 500
    """Documents that are asked, at most."""
    length: Row = 256
    """Tokens that are read of a document."""
    batch_size: Count = 32
    """Documents of a forward pass."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    roles: ClassVar[dict[str, Role]] = {"members": MODELS._replace(needed=True)}
    makes: ClassVar[tuple[str, ...]] = ("cat/*",)
    needs: ClassVar[tuple[str, ...]] = ("sklearn",)
    example: ClassVar[dict[str, Any]] = {"length": 16, "fitted": 60}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        splits: tuple[tuple[Split, int], ...] = (("train", self.fitted), (self.split, self.asked))
        own = [self.features(model, split, many, ctx) for split, many in splits]
        labels = [found[1] for found in own]
        counts = np.unique(labels[0], return_counts=True)[1]
        if len(counts) < 2 or counts.min() < FOLDS or not len(labels[1]):
            raise UserError(f"cat: a probe needs held-out documents, and training documents of two labels or "
                            f"more, {FOLDS} at least of each.")
        alone = {"cat/alone": accuracy([found[0] for found in own], labels, ctx)}
        if not ctx.inputs.get("members"):
            return alone
        joined = [[found[0]] for found in own]
        for folder in ctx.inputs["members"]:
            member = families.load(folder, self.name).to(ctx.device).eval()
            for parts, (split, many) in zip(joined, splits, strict=True):
                parts.append(self.features(member, split, many, ctx)[0])
        whole = [np.concatenate(parts, axis=1) for parts in joined]
        return alone | {"cat/joined": accuracy(whole, labels, ctx), "cat/features": float(whole[0].shape[1])}

    @torch.no_grad()
    def features(self, model: nn.Module, split: Split, many: int,
                 ctx: Context) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Mean final states [documents, d] of a model, and the documents' labels."""
        way_of(model)
        folder = ctx.path("data")
        found: Examples = documents_of(folder, split, self.domains)
        inputs = inputs_of(folder, ("text", "label"), self.length, None, ctx.tokenizer)
        order = torch.randperm(len(found), generator=ctx.rng(f"cat/{split}", at=0)).tolist()[:many]
        states: list[NDArray[np.float32]] = []
        labels = [np.zeros(0, np.int64)]
        for at in range(0, len(order), self.batch_size):
            made = inputs.batch(found.rows(order[at:at + self.batch_size], inputs.columns))
            batch = {n: torch.from_numpy(a).to(ctx.device) for n, a in made.items()}
            hidden = sharding.within(model, body_states, batch["input_ids"], positions(model, batch))
            states.append(pooled(hidden, batch["attention_mask"], "mean").float().cpu().numpy())
            labels.append(made["labels"])
        return np.concatenate(states or [np.zeros((0, 1), np.float32)]), np.concatenate(labels)


def accuracy(features: list[NDArray[np.float32]], labels: list[NDArray[np.int64]], ctx: Context) -> float:
    """Right answers of a probe that is fitted on the first of both and asked the second."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise UserError('cat needs scikit-learn: pip install "trainwright[select]".') from None
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def probe(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))

    seed = ctx.rng("cat", at=0).initial_seed() % 2**32
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(features[0], labels[0]))

    def right(strength: float) -> float:
        x, y = features[0], labels[0]
        return sum(float(probe(strength).fit(x[a], y[a]).score(x[b], y[b])) for a, b in folds)

    best = max(np.logspace(-4, 4, STRENGTHS).tolist(), key=right)
    return float(probe(best).fit(features[0], labels[0]).score(features[1], labels[1]))
