"""Token losses with the balance of experts that a model's config asks for, such as Mixtral's
``output_router_logits = true`` with ``router_aux_loss_coef``.

The balance b_r of a row r is the model's own ``aux_loss`` of that row alone (of E experts, E times the sum
over them of the share of tokens that they got and the mean probability that they got it with; see "Switch
Transformers", arXiv 2101.03961). Each learned token of the row adds coefficient × b_r to its loss, so that
the mean loss of a step is the cross-entropy plus the coefficient times the mean balance of the rows. Over a
row, and not over a micro-batch, since then neither
``accumulate`` nor the number of ranks changes a result. For one row it is what
transformers computes from labels.

It costs one forward pass a row instead of one a micro-batch, and is not compiled.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright import families
from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.lm.cross_entropy import tiled_cross_entropy

_weights: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()


def balance_weight(model: nn.Module) -> float:
    """By how much the balance of experts is multiplied; 0 where the config does not ask for it."""
    if model not in _weights:
        _weights[model] = families.own_weight(model.config) if families.is_pretrained(model) else 0.0
    return _weights[model]


def balanced_losses(model: nn.Module, batch: Batch, places: Tensor | None, weight: float,
                    plain_head: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropies [R, L], float32, and what the balance adds to each; both 0 where a target is -100.

    Args:
        places: positions as the model counts them, where it takes any.
        plain_head: whether the head is a linear layer on what the body gives.

    Raises:
        UserError: a batch with a ``prefix``, of which the balance knows nothing.
    """
    if "prefix" in batch:
        raise UserError(
            f"the balance of experts that the config of this {type(model).__name__} asks for cannot be "
            f"computed "
            "where a prefix is seen by all: set output_router_logits = false."
        )
    targets = batch["targets"]
    learned = targets != UNTRAINED
    behind = torch.arange(2, targets.shape[1] + 2, device=targets.device)
    ends = (learned * behind).amax(1).clamp(min=1, max=targets.shape[1]).tolist()
    losses, added = [], []
    # a row ends with its last target: behind it is padding
    for r, end in enumerate(ends):
        given = {"input_ids": batch["input_ids"][r:r + 1, :end]}
        if places is not None:
            given["position_ids"] = places[r:r + 1, :end]
        row, balance = sharding.within(model, _row, given, targets[r, :end], plain_head)
        losses.append(F.pad(row, (0, targets.shape[1] - end)))
        added.append(weight * balance.float() * learned[r])
    return torch.stack(losses), torch.stack(added)


def _row(model: Any, given: dict[str, Tensor], targets: Tensor, plain_head: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropies of a row's targets, and the model's own ``aux_loss``."""
    if not plain_head:
        out = model.forward(use_cache=False, **given)
        return F.cross_entropy(
            out.logits[0].float(), targets, ignore_index=UNTRAINED, reduction="none"
        ), out.aux_loss
    read: list[Tensor] = []
    hook = model.get_decoder().register_forward_hook(lambda module, _, said: read.append(said[0]))
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    try:
        balance = model.forward(use_cache=False, **given, **few).aux_loss
    finally:
        hook.remove()
    head, trained = model.get_output_embeddings(), (targets != UNTRAINED).nonzero()[:, 0]
    losses = tiled_cross_entropy(read[-1][0][trained], head.weight, head.bias, targets[trained])
    return losses.new_zeros(len(targets)).index_copy(0, trained, losses), balance
