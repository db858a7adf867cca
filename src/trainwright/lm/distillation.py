"""Distances between a model and a frozen one that reads the same tokens, for objectives that distill.

``frozen_model`` finds the other model, ``divergence`` compares predictions and ``distance`` hidden states.
Both give one number for each position [R, L], undivided, as an objective's ``loss`` returns it.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.lm.losses import body_states, field, positions, way_of


def frozen_model(who: str, role: str, ctx: Context) -> nn.Module:
    """The model that the stage has in a role, frozen and in evaluation mode.

    Args:
        who: the method's name, for the message.
        role: such as ``reference`` or ``teacher``.

    Raises:
        UserError: ``from`` names none.
    """
    if role not in ctx.frozen:
        raise UserError(
            f'{who}: the stage has no model to hold on to: write from = {{ {role} = "NAME", … }}, an '
            'earlier stage '
            "or the path of a checkpoint."
        )
    return ctx.frozen[role]


def divergence(model: nn.Module, other: nn.Module, batch: Batch) -> Tensor:
    """KL(p' || p) of the next token [R, L], float32, p' being the other model's; 0 where nothing is learned.

    From the logits z and z' it is lse(z) - lse(z') - sum p' (z - z'). Where the two models are equal, the
    value and its gradient are exactly 0: an optimizer that divides by the size of gradients would turn
    rounding errors into steps. No gradient flows into the other model, whose vocabulary must be the same.
    """
    trained = (field(batch, "targets").flatten() != UNTRAINED).nonzero()[:, 0]
    z = _logits_of(model, batch, trained)
    with torch.no_grad():
        z_other = _logits_of(other, batch, trained)
        whole = z_other.logsumexp(-1)
        p_other = (z_other - whole[:, None]).exp()
    return _spread(z.logsumexp(-1) - whole - (p_other * (z - z_other)).sum(-1), trained, batch)


def distance(model: nn.Module, other: nn.Module, batch: Batch, summed: bool = False) -> Tensor:
    """Squared difference of the final hidden states [R, L], float32; 0 where nothing is learned.

    It is the mean over a state's entries, or their sum (``summed``), the square of the 2-norm. No gradient
    flows into the other model.

    Raises:
        UserError: the two models have hidden states of different widths.
    """
    trained = (field(batch, "targets").flatten() != UNTRAINED).nonzero()[:, 0]
    mine = _states(model, batch)[trained]
    with torch.no_grad():
        theirs = _states(other, batch)[trained]
    if mine.shape != theirs.shape:
        raise UserError(
            f"the hidden states of the two models cannot be compared: {mine.shape[-1]} columns and "
            f"{theirs.shape[-1]}."
        )
    squares = (mine.float() - theirs.float()).square()
    return _spread(squares.sum(-1) if summed else squares.mean(-1), trained, batch)


def _states(model: nn.Module, batch: Batch) -> Tensor:
    """What the body gives to the head: [R L, H]."""
    return sharding.within(model, body_states, batch["input_ids"], positions(model, batch)).flatten(0, 1)


def _logits_of(model: nn.Module, batch: Batch, trained: Tensor) -> Tensor:
    """Of the next token at the trained positions: [N, V], float32."""
    ids, places = batch["input_ids"], positions(model, batch)
    if way_of(model).plain_head:
        logits: Tensor = sharding.within(model, _logits, ids, places, trained)
    else:  # a head with a cap or a scale: the model's own forward
        given = {} if places is None else {"position_ids": places}
        logits = model(input_ids=ids, use_cache=False, **given).logits.flatten(0, 1)[trained]
    return logits.float()


def _logits(model: nn.Module, ids: Tensor, places: Tensor | None, trained: Tensor) -> Tensor:
    return model.get_output_embeddings()(body_states(model, ids, places).flatten(0, 1)[trained])


def _spread(values: Tensor, trained: Tensor, batch: Batch) -> Tensor:
    """Numbers of the trained positions at their places, 0 elsewhere."""
    targets = field(batch, "targets")
    return values.new_zeros(targets.numel()).index_copy(0, trained, values).view_as(targets)
