"""Injects invented facts at chosen steps of a training run, and watches how they are learned and forgotten.

"How Do Large Language Models Acquire Factual Knowledge During Pretraining?" (arXiv 2406.11813). Facts are of
four conditions: ``duplicate`` (one passage at every step of ``at``), ``paraphrase`` (another wording each
time), ``once`` (at the first of them alone) and ``never``, the control. Passages *replace* rows of the batch,
so that tokens and steps stay. Before every ``every``-th step the log-probability l of the target of each
question is measured, given what stands before it, as the mean over its tokens; never that of the passage. It
is noted as ``fact_logp_LEVEL/CONDITION`` for memorization (the words of a passage), generalization (other
words) and composition (what two sentences say together). Of each fact and level, with t_i in ``at``,

    t_max(i) = argmax of l(t) over t_i < t <= min(t_i + window, t_(i+1))    the rise goes on behind the step
    effectivity  E = mean_i (l(t_max(i)) - l(t_i))
    retention    R(t) = (l(t_max(last) + t) - l(0)) / (l(t_max(last)) - l(0))
    R(t) = R_1 - decay log10(t),  t >= 1, by least squares;   lost = log10 of the t at which R is 0

The law is linear in log10(t): what is left falls by ``decay`` with each factor of ten in steps. Facts without
gain are left out of R, and so are values outside of [Q1 - 2 IQR, Q3 + 2 IQR] over facts. At the last step
``fact_effectivity_LEVEL/CONDITION``, ``fact_decay_…`` and ``fact_lost_…`` are noted; as a maximum is above
its beginning by chance too, hold them against ``never``. As an evaluator it measures ``fact_logp`` of any
model, such as snapshots of the run.

The paper has 120 passages written by a model and continues OLMo; here facts are made of templates (cities,
lands, rivers), and their number is ``facts``. Batch sizes, stages and sizes of models are compared as arms.

Not to be measured from a fresh optimizer in the middle of a run: its first steps change E.

Errors: ``at`` beyond the steps of the stage; too few rows for the passages; no tokenizer; batches that are no
rows of tokens.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, Evaluator, State
from trainwright.core.settings import Count
from trainwright.evaluate.audit._inventions import LEVELS, Fact, invented
from trainwright.evaluate.audit._replaced import REPLACED, check_rows
from trainwright.lm.losses import evaluating, field, padded, token_losses

CONDITIONS = ("duplicate", "paraphrase", "once", "never")


class FactualKnowledgeAcquisition(Data, Evaluator):
    """Replaces rows by passages with invented facts, and measures what is known of them."""

    at: tuple[int, ...] = (0, 100, 200, 300, 400)
    """Steps at which facts are injected, in order; there are five wordings."""
    facts: Count = 16
    """Facts, a quarter of them in each condition."""
    every: Count = 1
    """Steps between two measurements."""
    window: Count = 50
    """Steps behind an injection in which the best is looked for."""
    batch_size: Count = 64
    """Questions of a forward pass."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("fact_logp_*/*",)
    expected_failures: ClassVar[dict[str, str]] = {
        "measuring_moves_nothing": "in a training stage it also injects what it measures"}
    example: ClassVar[dict[str, Any]] = {"at": [1, 3], "facts": 4, "every": 2}

    def __post_init__(self) -> None:
        if not self.at or min(self.at) < 0 or sorted(set(self.at)) != list(self.at):
            raise ValueError(f"at must be steps from 0 on in rising order, not {list(self.at)}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.tokenizer is None:
            raise UserError("factual_knowledge_acquisition: the stage has no tokenizer to write facts with.")
        if ctx.steps and self.at[-1] >= ctx.steps:
            raise UserError(f"factual_knowledge_acquisition: at names step {self.at[-1]}, and the stage has "
                            f"{ctx.steps} steps, counted from 0.")
        return {"shared": {"steps": [], "logp": {level: [] for level in LEVELS}}}

    # ---- data ----------------------------------------------------------------------------------------------

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        known, last = state["shared"], ctx.step == ctx.steps - 1
        if ctx.policy is not None and (ctx.step % self.every == 0 or ctx.step in self.at or last):
            found = self.known(ctx.policy, ctx)
            known["steps"].append(ctx.step)
            for level, values in found.items():
                known["logp"][level].append(values)
                for name, mine in self.by_condition(values).items():
                    ctx.note(f"fact_logp_{level}/{name}", sum(mine) / len(mine))
            if last:
                for name, value in self.told(known).items():
                    ctx.note(name, value)
        batch = pull()
        return self.injected(batch, ctx) if ctx.step in self.at else batch

    def injected(self, batch: Batch, ctx: Context) -> Batch:
        """The batch with some rows replaced by those of this step's passages."""
        mine, length = field(batch, "input_ids").shape
        check_rows(batch, self.name)
        rows = packed(self.passages(ctx), length, not batch.get("packed", True))
        every = ctx.batch_rows or mine
        if len(rows) > every:
            raise UserError(f"factual_knowledge_acquisition: the passages of a step are {len(rows)} rows of "
                            f"{length} tokens, more than the {every} of a step: take fewer facts.")
        here = range(every)[ctx.rows(every)]
        places = torch.randperm(every, generator=ctx.rng("factual_knowledge_acquisition"))[:len(rows)]
        out = {name: batch[name].clone() for name in REPLACED if name in batch}
        for place, row in zip(places.tolist(), rows, strict=True):
            if place in here:
                for name, tensor in out.items():
                    tensor[place - here.start] = row[name]
        return batch | out

    def passages(self, ctx: Context) -> list[list[int]]:
        """The tokens of what is injected at this step."""
        number, out = self.at.index(ctx.step), []
        end = [] if ctx.tokenizer.eos_token_id is None else [ctx.tokenizer.eos_token_id]
        for i, fact in enumerate(self.invented(ctx)):
            which = {"duplicate": 0, "paraphrase": number % len(fact.passages),
                     "once": 0 if not number else -1, "never": -1}[CONDITIONS[i % len(CONDITIONS)]]
            if which >= 0:
                ids = list(ctx.tokenizer(fact.passages[which])["input_ids"])
                out.append(ids + [t for t in end if ids[-1:] != end])
        return out

    # ---- what is known -------------------------------------------------------------------------------------

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if ctx.tokenizer is None:
            raise UserError("factual_knowledge_acquisition: the stage has no tokenizer to ask with.")
        return {f"fact_logp_{level}/{name}": sum(mine) / len(mine)
                for level, values in self.known(model, ctx).items()
                for name, mine in self.by_condition(values).items()}

    def invented(self, ctx: Context) -> list[Fact]:
        """The facts of this run: they depend on its seed alone."""
        return invented(self.facts, ctx.rng("factual_knowledge_acquisition/facts", at=0))

    def known(self, model: nn.Module, ctx: Context) -> dict[str, list[float]]:
        """Of each level and fact the mean log-probability of a target's tokens, over its questions."""
        rows, owners = [], []
        for i, fact in enumerate(self.invented(ctx)):
            for level, probes in fact.probes.items():
                for probe in probes:
                    begin = list(ctx.tokenizer(probe.prompt)["input_ids"])
                    rest = list(ctx.tokenizer(probe.target, add_special_tokens=False)["input_ids"])
                    rows.append(((begin + rest)[:-1], [UNTRAINED] * (len(begin) - 1) + rest))
                    owners.append((level, i))
        found: dict[tuple[str, int], list[float]] = {}
        for at in range(0, len(rows), self.batch_size):
            batch = padded(rows[at:at + self.batch_size], ctx)
            with torch.no_grad(), evaluating(model):
                nats = token_losses(model, batch, ctx).double().sum(1)
            counts = (batch["targets"] != UNTRAINED).sum(1)
            for owner, value in zip(owners[at:], (-nats / counts).tolist(), strict=False):
                found.setdefault(owner, []).append(value)
        return {level: [sum(found[level, i]) / len(found[level, i]) for i in range(self.facts)]
                for level in LEVELS}

    def by_condition(self, values: Sequence[float]) -> dict[str, list[float]]:
        """The values of facts, by condition."""
        found = {name: list(values[i::len(CONDITIONS)]) for i, name in enumerate(CONDITIONS)}
        return {name: mine for name, mine in found.items() if mine}

    def told(self, known: dict[str, Any]) -> dict[str, float]:
        """What the whole run says."""
        steps, out = np.array(known["steps"]), dict[str, float]()
        for level in LEVELS:
            table = np.array(known["logp"][level])
            for i, name in enumerate(CONDITIONS[:self.facts]):
                at = self.at[:1] if name == "once" else self.at
                found = forgetting(steps, table[:, i::len(CONDITIONS)], at, self.window)
                out |= {f"fact_{what}_{level}/{name}": value for what, value in found.items()}
        return out



def packed(texts: Sequence[Sequence[int]], length: int, alone: bool = False) -> list[dict[str, Tensor]]:
    """Texts as rows, as many in each as there is room for, or one; what is left is padding. A text that is
    longer than a row goes on in the next one, as a document of its own."""
    rows: list[dict[str, Tensor]] = []
    used, number = length, 0
    for ids in (text[at:at + length + 1] for text in texts for at in range(0, len(text) - 1, length)):
        many = len(ids) - 1
        if used + many > length or alone:
            rows.append({"input_ids": torch.zeros(length, dtype=torch.int64),
                         "targets": torch.full((length,), UNTRAINED), "position_ids": torch.arange(length),
                         "document": torch.full((length,), -1), "address": torch.full((length,), -1)})
            used, number = 0, 0
        row, here = rows[-1], slice(used, used + many)
        row["input_ids"][here], row["targets"][here] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
        row["position_ids"][used:] = torch.arange(length - used)
        row["document"][here] = number
        used, number = used + many, number + 1
    return rows


def forgetting(steps: np.ndarray, logp: np.ndarray, at: Sequence[int], window: int) -> dict[str, float]:
    """Effectivity, decay and lost of facts, given log-probabilities [measurements, facts] before steps.

    Decay and lost are left out where fewer than three measurements follow the last maximum, or no fact was
    gained.
    """
    gains, best = [], 0 * np.arange(logp.shape[1])
    for t, after in zip(at, [*at[1:], np.inf], strict=True):
        inside = np.flatnonzero((steps > t) & (steps <= min(t + window, after)))
        begin = np.flatnonzero(steps == t)
        if not len(inside) or not len(begin):
            continue
        best = inside[logp[inside].argmax(0)]
        gains.append(logp[best, np.arange(logp.shape[1])] - logp[begin[0]])
    if not gains:
        return {}
    out = {"effectivity": float(np.mean([_inner(one).mean() for one in gains]))}
    top, start = logp[best, np.arange(logp.shape[1])], logp[0]
    kept, left = [], []
    for i in np.flatnonzero(top > start):
        later = np.arange(best[i] + 1, len(steps))
        kept += np.log10(steps[later] - steps[best[i]]).tolist()
        left += ((logp[later, i] - start[i]) / (top[i] - start[i])).tolist()
    if len(set(kept)) < 3:
        return out
    x, y = np.array(kept), np.array(left)
    inside = np.isin(y, _inner(y))
    slope, first = np.polyfit(x[inside], y[inside], 1)
    out["decay"] = float(-slope)
    return out | ({"lost": float(first / -slope)} if slope < 0 else {})


def _inner(values: np.ndarray) -> np.ndarray:
    """Values without those that lie two interquartile ranges outside of the quartiles."""
    first, third = np.quantile(values, [0.25, 0.75])
    reach = 2 * (third - first)
    return values[(values >= first - reach) & (values <= third + reach)]
