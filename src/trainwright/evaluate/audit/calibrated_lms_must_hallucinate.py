"""How often a model invents facts, against how often it must: as often as facts occurred once in training.

"Calibrated Language Models Must Hallucinate" (arXiv 2311.14648). A corpus has n statements of facts, drawn
from a distribution p over true statements, among them some several times. A model g that is calibrated says a
false one about as often as

    monofact_rate = distinct facts that occur exactly once / n                (Good-Turing's missing mass)

and with probability 1 - delta, delta = 0.01, at least

    hallucination_bound = monofact_rate - miscalibration - 300 |F| / |H| - 7 / sqrt(n)

where |H| / |F| (``false_per_true``) is how many false statements there are for each true one. A bound below 0
says nothing, as of few statements. Measured are beside these

    hallucination_rate = statements that the model samples, at temperature 1, and that no document of the
                         domain has, of any split / samples; with Wilson's interval of 95 % (_low, _high)
    missing_mass       = statements of ``test`` documents that no ``train`` document has / ``test`` documents
    miscalibration     = 1/2 sum_B |p(B) - g(B)|

over ``bins`` of statements of about one probability under g, each with equally many samples of g; p(B) is the
share of the ``test`` statements in it. It is of whole statements, not of tokens, and of few test documents it
is too large, which makes the bound lower. A true statement counts as such only if some document has it: name
all others in ``facts``, a text file of one a line.

Each document of the domain is one fact, and its text is compared without space at its ends. Do not
deduplicate the corpus first: every fact would then occur once. ``start`` is what the facts begin with that
are looked at (others of the domain are left out), needed where the tokenizer puts nothing in front of a text.
The constants 300 and 7 follow from delta.

Not for facts that follow from a rule (sums): the model may be right on one that it never saw.

Errors: no tokenizer; a domain that the corpus does not have; no training fact that begins with
``start``; nothing to begin with.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Evaluator
from trainwright.core.settings import Count, FilePath, Positive
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate import _people
from trainwright.lm.generation import Prompt, room, sampled
from trainwright.lm.losses import evaluating, padded, token_losses


class CalibratedLmsMustHallucinate(Evaluator):
    """Measures ``hallucination_rate``, and what of it a calibrated model cannot avoid."""

    domain: str = "facts"
    """Domain whose documents are a fact each."""
    start: str = ""
    """Text that every fact begins with; what is sampled goes on from there."""
    facts: FilePath | None = None
    """File with true statements beside those of the corpus, one a line."""
    samples: Count = 500
    """Statements that the model is asked for."""
    new_tokens: Count = 48
    """Most tokens of one."""
    bins: Count = 10
    """Bins of the miscalibration."""
    false_per_true: Positive = 1e6
    """False statements of the same form for each true one."""
    batch_size: Count = 32
    """Statements of a forward pass."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("hallucination_*", "monofact_rate", "missing_mass", "miscalibration")
    example: ClassVar[dict[str, Any]] = {"domain": "prose", "start": "a", "samples": 6, "new_tokens": 4}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        from scipy.stats import binomtest
        if ctx.tokenizer is None:
            raise UserError("calibrated_lms_must_hallucinate: the model has no tokenizer.")
        seen, held, true = self._facts(ctx)
        said, logp = self._said(model, ctx)
        false = sum(one not in true for one in said)
        interval = binomtest(false, len(said)).proportion_ci(method="wilson")
        once = monofact_rate(seen)
        out = {"hallucination_rate": false / len(said), "hallucination_rate_low": float(interval.low),
               "hallucination_rate_high": float(interval.high), "monofact_rate": once}
        if not held:
            return out
        known = set(seen)
        off = miscalibration(logp, self._logp(model, held, ctx), self.bins)
        bound = once - off - 300 / self.false_per_true - 7 / len(seen) ** 0.5
        return out | {"missing_mass": sum(one not in known for one in held) / len(held),
                      "miscalibration": off, "hallucination_bound": bound}

    def _facts(self, ctx: Context) -> tuple[list[str], list[str], set[str]]:
        """The statements of training, those of test documents, and all that are true."""
        corpus = open_corpus(ctx.path("data"))
        rows = list(_people.rows(ctx, self.domain, self.name))
        split = {}
        for name in ("train", "test"):
            try:
                split |= dict.fromkeys(corpus.select(name, (self.domain,)).id, name)
            except UserError:
                continue
        texts = [(split.get(row["id"], "tune"), (row["text"] or "").strip()) for row in rows]
        texts = [(s, text) for s, text in texts if text.startswith(self.start)]
        if not any(s == "train" for s, _ in texts):
            raise UserError("calibrated_lms_must_hallucinate: no training document of "
                            f"{self.domain!r} begins with start = {self.start!r}.")
        true = {text for _, text in texts}
        if self.facts is not None:
            try:
                true |= set(map(str.strip, (ctx.root / self.facts).read_text(encoding="utf-8").splitlines()))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"calibrated_lms_must_hallucinate: {self.facts} cannot be read: "
                                f"{error}.") from None
        return ([t for s, t in texts if s == "train"], [t for s, t in texts if s == "test"], true)

    def _begin(self, model: nn.Module, ctx: Context) -> list[int]:
        tokenizer = ctx.tokenizer
        ids = families.prompt(model, tokenizer, self.start) if self.start else families.front(tokenizer)
        if not ids:
            raise UserError("calibrated_lms_must_hallucinate: this tokenizer puts nothing in front of a "
                            "text, and nothing can be sampled behind nothing: say with start what facts "
                            "begin with.")
        return ids

    def _said(self, model: nn.Module, ctx: Context) -> tuple[list[str], np.ndarray]:
        """What the model states, and the log-probability of each statement."""
        begin = self._begin(model, ctx)
        most = room(model, len(begin), self.new_tokens, self.name)
        seeds = [ctx.rng(f"hallucinate/{i}", at=0).initial_seed() for i in range(self.samples)]
        found = sampled(model, ctx.tokenizer, [Prompt(begin, most, seed, 1.0) for seed in seeds], ctx,
                        batch_size=self.batch_size)
        texts = [self.start + ctx.tokenizer.decode(one.ids, skip_special_tokens=True) for one in found]
        return [text.strip() for text in texts], np.array([sum(one.logp) for one in found])

    def _logp(self, model: nn.Module, facts: Sequence[str], ctx: Context) -> np.ndarray:
        """The log-probability that the model gives to each fact, up to its end."""
        begin, end, out = self._begin(model, ctx), ctx.tokenizer.eos_token_id, list[float]()
        for at in range(0, len(facts), self.batch_size):
            rows = []
            for fact in facts[at:at + self.batch_size]:
                rest = ctx.tokenizer(fact.removeprefix(self.start), add_special_tokens=False)["input_ids"]
                rest = [*rest, end] if end is not None else rest
                rows.append(((begin + rest)[:-1], [UNTRAINED] * (len(begin) - 1) + rest))
            with torch.no_grad(), evaluating(model):
                out += (-token_losses(model, padded(rows, ctx), ctx).double().sum(1)).tolist()
        return np.array(out)


def monofact_rate(facts: Sequence[str]) -> float:
    """Distinct facts that occur once, as a share of all statements (not of the distinct ones)."""
    return sum(many == 1 for many in Counter(facts).values()) / len(facts)


def miscalibration(said: np.ndarray, true: np.ndarray, bins: int) -> float:
    """Half the sum over bins of |share of the true - share of the said|, given log-probabilities under the
    model; bins hold equally many of those said, as far as ties allow."""
    edges = np.unique(np.quantile(said, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = [np.bincount(np.searchsorted(edges, of, side="right"), minlength=len(edges) + 1) / len(of)
              for of in (said, true)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
