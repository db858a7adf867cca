"""What methods share that read preference pairs: the rows of both answers, which pairs teach something, and
their log-probabilities under the model in training and under a frozen reference.

A batch is that of ``examples`` with ``fields = ["chosen", "rejected"]``. A pair teaches nothing where both
answers are the same tokens (all of its losses are then constant) or where one of them has lost all of its
tokens to the length of a row. Such pairs are neither counted nor summed.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.families import evaluating, vocabulary_of
from trainwright.lm.layers import Adapter
from trainwright.lm.logprobs import answer_logprobs
from trainwright.lm.losses import isolation_error, way_of

SIDES = ("chosen", "rejected")
How = Literal["model", "adapter_off", "column"]
"""Where the log-probabilities of the reference come from."""
EXACT = 1e-5
"""How far, of its largest output, a model may be from its start with the adapters off: rounding."""


class Pairs(NamedTuple):
    """Of each pair the summed log-probabilities of its answers, and their tokens: float32 [R]."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


def need(who: str, batch: Batch, names: Sequence[str]) -> None:
    """Refuse a batch that lacks what an objective reads."""
    if missing := [name for name in names if name not in batch]:
        fields = '"chosen", "rejected"' + (', "reference"' if "reference" in missing[0] else "")
        raise UserError(f"{who}: the batch has no {missing[0]}: take {{ use = \"examples\", fields = "
                        f"[{fields}] }} as the data method.")


def teaching(who: str, batch: Batch) -> Tensor:
    """Which pairs teach something, bool [R]."""
    need(who, batch, [f"{side}_ids" for side in SIDES])
    chosen, rejected = (batch[f"{side}_targets"] for side in SIDES)
    there = (chosen != UNTRAINED).any(1) & (rejected != UNTRAINED).any(1)
    same = (batch["chosen_ids"] == batch["rejected_ids"]).all(1) & (chosen == rejected).all(1)
    return there & ~same


def rows_of(batch: Batch) -> Batch:
    """The chosen answers, then the rejected ones, as rows of their own: [2 R, L]."""
    names = {"input_ids": "ids", "attention_mask": "attention_mask", "targets": "targets"}
    return {name: torch.cat([batch[f"{side}_{part}"] for side in SIDES]) for name, part in names.items()}


def scored(model: nn.Module, batch: Batch, ctx: Context, packed: bool) -> Pairs:
    """The log-probabilities of the answers of a batch's pairs, in one forward pass."""
    logp, tokens = answer_logprobs(model, rows_of(batch), ctx, packed)
    return Pairs(*logp.chunk(2), *tokens.chunk(2))


# ---- the reference ---------------------------------------------------------------------------------------


def check_reference(who: str, how: How, model: nn.Module, ctx: Context) -> None:
    """Refuse, before the first step, a reference that could not be one.

    Raises:
        UserError: there is none, or it has another vocabulary; weights are trained that no adapter holds, or
            the adapters changed what lies below them.
    """
    if how == "adapter_off":
        _check_adapters(who, model, ctx)
    if how != "model":
        return
    if "reference" not in ctx.frozen:
        raise UserError(f"{who}: the stage has no reference: write from = {{ reference = \"NAME\", … }}, an "
                        "earlier stage or the path of a checkpoint.")
    sizes = [vocabulary_of(m) for m in (model, ctx.frozen["reference"])]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UserError(f"{who}: the reference has {sizes[1]} tokens and the model {sizes[0]}: take the "
                        "model that the stage starts from.")
    way_of(ctx.frozen["reference"])                            # runs it once, which is no cost of a step


def check_isolation(who: str, packed: bool, model: nn.Module, ctx: Context) -> None:
    """Refuse to pack answers for a model that does not keep them apart."""
    size = vocabulary_of(model)
    if packed and size is not None:
        try:
            isolation_error(model, size, ctx)
        except UserError as error:
            raise UserError(f"{who}: {error} Here that is packed = false.") from None


def reference_pairs(how: How, model: nn.Module, batch: Batch, ctx: Context, packed: bool) -> Pairs:
    """The log-probabilities under the reference, without dropout; no gradient flows into it."""
    if how == "column":
        tokens = [(batch[f"{side}_targets"] != UNTRAINED).sum(1) for side in SIDES]
        return Pairs(*(batch[f"{side}_reference"] for side in SIDES), *tokens)
    with torch.no_grad(), frozen(how, model, ctx) as other, evaluating(other):
        return scored(other, batch, ctx, packed)


@contextmanager
def frozen(how: How, model: nn.Module, ctx: Context) -> Iterator[nn.Module]:
    """The reference as a model: the frozen one, or that in training with its adapters switched off."""
    if how == "model":
        yield ctx.frozen["reference"]
        return
    layers: list[Any] = [m for m in model.modules() if isinstance(m, Adapter)]
    try:
        for layer in layers:
            layer.forward = layer.linear
        yield model
    finally:
        for layer in layers:
            del layer.forward


def _check_adapters(who: str, model: nn.Module, ctx: Context) -> None:
    inside = {id(p) for m in model.modules() if isinstance(m, Adapter) for p in m.parameters()}
    if not inside:
        raise UserError(f"{who}: reference = \"adapter_off\" needs an adapter, and the model has none: leave "
                        "reference out, which takes the model that the stage starts from.")
    outside = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
    if outside:
        raise UserError(f"{who}: reference = \"adapter_off\", and {outside[0]} is trained, which no adapter "
                        "holds: switching adapters off would not give the start back; leave reference out.")
    g = ctx.rng("reference", at=0)
    ids = torch.randint(vocabulary_of(model) or 2, (2, 16), generator=g).to(ctx.device)
    with torch.no_grad(), evaluating(model), torch.autocast(ctx.device.type, enabled=False):
        there = sharding.within(model, _logits, ids)
        with frozen("adapter_off", model, ctx):
            off = sharding.within(model, _logits, ids)
    if not float((there - off).abs().max()) <= EXACT * float(there.abs().max()):
        raise UserError(f"{who}: reference = \"adapter_off\", and this adapter starts by changing the layers "
                        "below it, which alone are not the model of the start; leave reference out.")


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits.float()  # type: ignore[no-any-return]
