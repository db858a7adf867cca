"""Intuitive fine-tuning: supervised fine-tuning in which the model reads a little of its own predictions.

"Intuitive Fine-Tuning: Towards Unifying SFT and RLHF into a Single Process" (arXiv 2405.11870). For each
token y_t of an answer, a first pass without gradient finds y'_t, the likeliest token given the true ones
before it. A second pass reads

    e_t = (1 - mixing) E[y_t] + mixing E[y'_t]                       inside the answer; E[y_t] elsewhere

with E the embeddings, and predicts the true tokens: l_t = - log p(y_t). In an answer of n tokens a token
weighs what follows from it (the relation of a step to its whole future in a dynamic program),

    w_t ~ sum over k >= t of decay^(k - t) l_k,     scaled so that the w of an answer sum to n; 1 if decay = 0
    loss = 1/n sum over t of w_t l_t,                  one number an answer; the loop divides by the answers

y'_t is what was predicted one step before, at t - 1: the residual knows the past alone. With mixing = 0 and
decay = 0 it is supervised fine-tuning, each answer weighing the same.

It reads what ``supervised`` reads (``input_ids``, ``targets``, ``position_ids`` [R, L]); a part of a document
that ``pack`` puts into a row is an answer of its own. Two forward passes and one backward pass. As in the
authors' code, gradients flow through w. Unlike there, E is the model's own of now, of which y'_t has no
gradient, and not a frozen copy from before: without mixing the gradient is then that of fine-tuning,
embeddings included. No generation is needed, and no preference pair.

Not for tasks where a single step decides (a class, a choice): there is nothing to look ahead to.

Errors: a model whose output head is not a plain linear layer; a step in which no token is learned.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective, State
from trainwright.core.settings import Part
from trainwright.families import evaluating
from trainwright.lm.cross_entropy import tiled_cross_entropy
from trainwright.lm.losses import body_states, field, positions, way_of

AT_ONCE = 1024
"""Positions of which all logits are made at once, to find the likeliest token."""


class Ift(Objective):
    """Cross-entropy of answers that are read with a residual of own predictions, one number an answer."""

    mixing: Part = 0.2
    """Share of the model's own token in what is read (the paper's lambda)."""
    decay: Part = 0.95
    """How much of the loss one token later a token answers for (the paper's gamma)."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)

    def init(self, model: nn.Module, ctx: Context) -> State:
        if not way_of(model).plain_head:
            raise UserError(f"ift: the output head of a {type(model).__name__} is not a plain linear layer, "
                            "or has an adapter: leave the head out of the adapter's layers.")
        return {}

    def count(self, batch: Batch) -> float:
        answers = _answers(batch)
        return float(len(torch.unique(answers[batch["targets"] != UNTRAINED])))

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        targets, places = batch["targets"], positions(model, batch)
        mixed = _within_answer(batch) if self.mixing else torch.zeros_like(targets, dtype=torch.bool)
        own = torch.zeros_like(targets)
        if mixed.any():
            with torch.no_grad(), evaluating(model):
                own = sharding.within(model, _predicted, batch["input_ids"], places, mixed)
        values: Tensor = sharding.within(model, _losses, batch["input_ids"], own, mixed, places, targets,
                                         self.mixing)
        return self._weighed(values, batch)

    def _weighed(self, values: Tensor, batch: Batch) -> Tensor:
        """From the losses of tokens [R, L] those of answers: at the first of L places of each row that the
        answer has, 0 elsewhere."""
        answers, learned = _answers(batch), (batch["targets"] != UNTRAINED)
        weight = (self._future(values, answers) if self.decay else torch.ones_like(values)) * learned
        number = answers.flatten()
        size = int(number.max()) + 1

        def total(t: Tensor) -> Tensor:
            return t.new_zeros(size).index_add(0, number, t.flatten())
        sums, tokens = total(weight), total(learned.to(values.dtype))
        # a sum of losses of 0 has nothing to weigh: its answer is known by heart
        by_answer = total(weight * values) / torch.where(sums > 0, sums, 1)
        found = torch.where(tokens > 0, by_answer, 0)
        first = torch.zeros_like(values).flatten()
        where = _first_places(number, size)
        return first.index_copy(0, where, found).view_as(values)

    def _future(self, values: Tensor, answers: Tensor) -> Tensor:
        """Of each token its own loss and those after it in its answer, each the less the later it comes."""
        after, future = torch.zeros_like(values[:, 0]), []
        goes_on = F.pad(answers[:, 1:] == answers[:, :-1], (0, 1), value=False)
        for t in reversed(range(values.shape[1])):
            after = values[:, t] + self.decay * after * goes_on[:, t]
            future.append(after)
        return torch.stack(future[::-1], 1)


def _answers(batch: Batch) -> Tensor:
    """The number of the document that each position is of, int64 [R, L], counted over the rows. Padding
    counts with the document before it."""
    begins = field(batch, "position_ids") == 0
    begins[:, 0] = True
    return begins.flatten().cumsum(0).view_as(begins) - 1


def _first_places(number: Tensor, size: int) -> Tensor:
    """Of each document the first of its positions."""
    places = torch.full((size,), len(number), device=number.device)
    return places.scatter_reduce(0, number, torch.arange(len(number), device=number.device), "amin")


def _within_answer(batch: Batch) -> Tensor:
    """Which positions read a token that the one before them was to predict."""
    learned = batch["targets"] != UNTRAINED
    return F.pad(learned[:, :-1], (1, 0), value=False) & (batch["position_ids"] > 0)


def _predicted(model: nn.Module, ids: Tensor, places: Tensor | None, wanted: Tensor) -> Tensor:
    """The likeliest token for each wanted position, as it was predicted one position before; 0 elsewhere."""
    hidden = body_states(model, ids, places)
    before = hidden[F.pad(wanted[:, 1:], (0, 1), value=False)]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    said = torch.cat([head(part).argmax(-1) for part in before.split(AT_ONCE)])
    return torch.zeros_like(ids).masked_scatter(wanted, said)


def _losses(model: nn.Module, ids: Tensor, own: Tensor, mixed: Tensor, places: Tensor | None, targets: Tensor,
            mixing: float) -> Tensor:
    """Cross-entropy [R, L] of what is predicted from mixed embeddings; 0 where nothing is learned."""
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    read = table(ids)
    if mixing:
        share = mixing * mixed[..., None].to(read.dtype)
        read = (1 - share) * read + share * table(own).detach()
    body: Any = model.get_decoder()  # type: ignore[operator]
    given = {} if places is None else {"position_ids": places}
    hidden = body(inputs_embeds=read, use_cache=False, **given)[0].flatten(0, 1)
    trained = (targets.flatten() != UNTRAINED).nonzero()[:, 0]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    losses = tiled_cross_entropy(hidden[trained], head.weight, head.bias, targets.flatten()[trained])
    return losses.new_zeros(targets.numel()).index_copy(0, trained, losses).view_as(targets)
