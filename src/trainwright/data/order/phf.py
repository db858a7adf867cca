"""Pretraining with human preferences: segments of a text are marked good or bad, and the model learns which.

"Pretraining Language Models with Human Preferences" (arXiv 2302.08582). Left out: that the embeddings of the
control tokens start at the mean of all others with a bit of noise, since a model that is made here has them
from the first step on, and they start like all others. A segment has a badness s: a line the share of its
characters that ``patterns`` match (telephone numbers, insults), a sentence the probability that
``from.classifier`` gives ``bad_class``, or a document its ``column``, a score that a method wrote. It is bad
if s > ``threshold``. ``mode`` says what follows, with p the probability of the token that is predicted and s
the score of *its* segment:

    conditional    a control token before each segment, <good> or <bad>, except in the share ``silent`` of
                   them; all is learned, the control tokens too: -log p
    unlikelihood   -log p of the tokens of good segments, -alpha log(1 - p) of those of bad ones
                   (1 - p at least 1e-20)
    filtering      documents (parts of a row) whose mean badness is above the threshold are not learned
    rwr            -w log p, with w = exp(R / beta) at most 1,000 and the reward R = -s
    awr            -alpha w log p + (1 - alpha) (R - V)^2, with w = exp((R - V) / beta) at most 1,000, where
                   V is what ``value_head`` says in the place before (no gradient flows into w)

Conditional training was the best of the paper's objectives. To sample as the paper does, add the decoding
method ``behind_good``: text then stands behind <good>, and neither control token is said. Without it the
model behaves as after ordinary training.

Put it after ``pack``; it is the objective too, in place of ``next_token``. The control tokens ``good`` and
``bad`` are those of the tokenizer, from ``control_tokens = ["<good>", "<bad>"]`` in the corpus stage. With a
tokenizer that lacks them they are the model's last two ids, <good> the last, which must be beyond the
tokenizer (``model = { vocab_size = … }``), unless ``last`` names ids that no text has. They push the end of a
row out, so rows should be long compared with segments. A segment that a row cuts counts as far as it is in
the row. ``filtering`` spends positions on what it does not learn; ``filter`` in the corpus stage does not. A
document without a score is good, gets no control token, and has the reward 0. The authors' code of RWR takes
off an untrained value, and its unlikelihood at a threshold of 0 mixes the two losses; both are as in the
paper here.

Not with a score that is wrong about what is bad: everything rests on it. A classifier reads each sentence in
the training loop, which costs a forward pass of it.

Errors: none or several of patterns, column and bad_class, no such column or class, no classifier, no room
for the ids, rows not from a corpus, ``awr`` without ``value_head``.
State: the ids. """
from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, Objective, State
from trainwright.core.stage import MODEL, Role
from trainwright.data.order import _segments
from trainwright.data.order._segments import Classifier, Text, scores_of, texts
from trainwright.lm.control_tokens import Controls, controls
from trainwright.lm.losses import logged_losses, note_domains, tokens_by_domain, trained_tokens
from trainwright.lm.values import has_value_head, valued_losses

EMPTY = {"input_ids": 0, "targets": UNTRAINED, "document": -1, "address": -1, "bad": 0, "score": 0.0,
         "position_ids": 0}
MOST = 1000.0
"""The largest weight of a token."""
JUDGE = "classifier"
"""The role of the model that scores sentences."""


class Phf(Data, Objective):
    """Marks good and bad segments of each row, and learns from them."""

    mode: Literal["conditional", "unlikelihood", "filtering", "rwr", "awr"] = "conditional"
    """What becomes of bad segments."""
    patterns: tuple[str, ...] = ()
    """Regular expressions of what is bad, looked for in each line; or ``column``, or ``bad_class``."""
    column: str = ""
    """Column of the documents with their badness."""
    bad_class: str = ""
    """Class of ``from.classifier`` whose probability is the badness of a sentence."""
    threshold: float = 0.0
    """Badness above which a segment is bad."""
    silent: float = 0.01
    """Share of the segments that get no control token."""
    alpha: float | None = None
    """Factor of the unlikelihood (1 by default), or share of the policy in ``awr`` (a half)."""
    beta: float = 10.0
    """Temperature of the weights of ``rwr`` and ``awr``: the smaller, the more the reward counts."""
    good: str = "<good>"
    """The tokenizer's token before good segments."""
    bad: str = "<bad>"
    """The tokenizer's token before bad segments."""
    last: int | None = None
    """Id of <good>, and <bad> the one before it; default: those of the tokenizer, or the model's last."""
    weight: float = 1.0
    """Factor of this loss in the sum."""
    roles: ClassVar[dict[str, Role]] = {JUDGE: MODEL}
    example: ClassVar[dict[str, Any]] = {"patterns": ["farmer", "return"], "last": 222}

    def __post_init__(self) -> None:
        if sum(map(bool, (self.patterns, self.column, self.bad_class))) != 1:
            raise ValueError("say either patterns (regular expressions of what is bad), column (a score of "
                             "the documents) or bad_class (of a classifier of sentences)")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"patterns: {pattern!r} is no regular expression: {error}") from None
        if not 0 <= self.silent <= 1 or not self.factor >= 0 or not self.beta > 0:
            raise ValueError(f"silent must be from 0 to 1, alpha 0 or more and beta above 0, not "
                             f"{self.silent}, {self.alpha} and {self.beta}")
        if self.mode == "awr" and self.factor > 1:
            raise ValueError(f"alpha is a share in awr, from 0 to 1, not {self.alpha}")

    @property
    def factor(self) -> float:
        """``alpha``, or what it is by default."""
        return (0.5 if self.mode == "awr" else 1.0) if self.alpha is None else self.alpha

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.column:
            scores_of(ctx.path("data"), self.column)
        if self.bad_class:
            Classifier.of(ctx, JUDGE, self.bad_class, self.name)
        needed = self.mode == "conditional"
        found = controls(model, ctx.tokenizer, self.good, self.bad, self.last, self.name) if needed else None
        return {"shared": found._asdict() if found else {}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch, marks = pull(), None
        if "address" not in batch:
            raise UserError("phf: the rows do not say where in the corpus they are from: put it behind pack.")
        if self.mode == "conditional":
            marks = Controls(**state["shared"])
            if any(bool((batch["input_ids"] == one).any()) for one in marks):
                raise UserError(f"phf: the text has tokens with the ids {marks.bad} or {marks.good}, which "
                                "are control tokens: set last.")
        rows, length = batch["input_ids"].shape
        made = {n: torch.full((rows, length), empty) for n, empty in EMPTY.items()}
        first, bad, many = ctx.rows(ctx.batch_rows).start, 0, 0
        for r in range(rows):
            at, rng = 0, ctx.rng(f"phf/{first + r}")
            for text in texts(batch, r, ctx.path("data")):
                at = text.at if self.mode != "conditional" else at
                segments = self.judged(text, ctx)
                bad, many = bad + sum(s > self.threshold for _, s in segments), many + len(segments)
                tokens = self.marked(text, segments, marks, rng, ctx)
                put = {n: torch.tensor([one[n] for one in tokens[:length - at + 1]]) for n in tokens[0]}
                end = min(length, at + len(tokens) - 1)
                for n in ("input_ids", "address"):
                    made[n][r, at:end] = put[n][:end - at]
                targets = torch.where(put["learned"], put["input_ids"], UNTRAINED)
                made["targets"][r, at:end] = targets[1:end - at + 1]
                for n in ("bad", "score"):
                    made[n][r, at:end] = put[n][1:end - at + 1]
                made["document"][r, at:end] = text.number
                made["position_ids"][r, at:] = torch.arange(length - at)
                at = end
        ctx.note("bad_segments", bad / max(1, many), weight=many)
        return batch | made

    def judged(self, text: Text, ctx: Context) -> list[tuple[int, float]]:
        """The segments of a text: numbers of tokens, and badness (NaN where it is not known)."""
        folder = ctx.path("data")
        if self.column:
            return _segments.by_column(text, folder, self.column)
        if self.patterns:
            return _segments.by_patterns(text, folder, self.patterns)
        return _segments.by_classifier(text, folder, Classifier.of(ctx, JUDGE, self.bad_class, self.name))

    def marked(self, text: Text, segments: list[tuple[int, float]], marks: Controls | None,
               rng: torch.Generator, ctx: Context) -> list[dict[str, Any]]:
        """The tokens as the model reads them, each with what is known of it."""
        out: list[dict[str, Any]] = []
        at, lead = 0, ctx.tokenizer is not None and text.tokens[0] == ctx.tokenizer.bos_token_id
        known = [s for _, s in segments if not math.isnan(s)]
        dropped = self.mode == "filtering" and bool(known) and sum(known) / len(known) > self.threshold
        for size, score in segments:
            known_score = 0.0 if math.isnan(score) else score
            loud = float(torch.rand((), generator=rng)) >= self.silent and not math.isnan(score)
            for k in range(at, at + size):
                if marks is not None and loud and k == at + (lead and not at):
                    out.append({"input_ids": marks.bad if score > self.threshold else marks.good,
                                "address": -1, "learned": bool(out) or lead, "bad": 0, "score": 0.0})
                out.append({"input_ids": text.tokens[k], "address": text.address[k],
                            "learned": text.learned[k] and not dropped,
                            "bad": int(score > self.threshold), "score": known_score})
            at += size
        return out

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        if self.mode == "awr":
            return self._weighted(model, batch, ctx)
        losses = logged_losses(model, batch, ctx)
        if self.mode == "rwr":
            return losses * torch.exp(-batch["score"] / self.beta).clamp(max=MOST)
        if self.mode != "unlikelihood":
            return losses
        against = -self.factor * torch.log((-torch.expm1(-losses)).clamp(min=1e-20))
        return torch.where((batch["bad"] > 0) & (batch["targets"] != UNTRAINED), against, losses)

    def _weighted(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """Advantage-weighted regression; the value in a place is of the token that it predicts."""
        if not has_value_head(model):
            raise UserError("phf: mode = \"awr\" needs a value of each place: add { use = \"value_head\" }.")
        counts = tokens_by_domain(batch)
        losses, values = valued_losses(model, batch)
        note_domains(losses, batch, counts, ctx)
        ahead = -batch["score"] - values
        weight = torch.exp(ahead.detach() / self.beta).clamp(max=MOST)
        mixed = self.factor * weight * losses + (1 - self.factor) * ahead.square()
        return torch.where(batch["targets"] != UNTRAINED, mixed, 0.0)
