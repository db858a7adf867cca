"""A number for each place of a text: a value head, and its values with the losses from one forward pass."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.families import token_logits
from trainwright.lm.cross_entropy import tiled_cross_entropy
from trainwright.lm.heads import found
from trainwright.lm.layers import Carrier
from trainwright.lm.losses import body_states, output_head, positions, way_of

NAME = "value_head"
"""The head, on the model itself."""


class Head(Carrier):
    """Values [.., L] of hidden states [.., L, d]; zero at the start."""

    def __init__(self, width: int, settings: Any) -> None:
        super().__init__()
        self.settings, self.out = settings, nn.utils.skip_init(nn.Linear, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(hidden.to(self.out.weight.dtype))[..., 0].float()  # type: ignore[no-any-return]


def has_value_head(model: nn.Module) -> bool:
    """Whether a method has put one on the model."""
    return found(model, NAME, Head) is not None


def valued_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropies [R, L], as ``token_losses`` gives them, and the values [R, L] of the last hidden states
    in the same places.

    Raises:
        UserError: a model without a head of its own for tokens.
    """
    way, targets = way_of(model), batch["targets"]
    if output_head(model) is None:
        raise UserError(f"a {type(model).__name__} does not say which of its layers makes its logits, so "
                        "that nothing can be read in front of it.")
    fn = _plain if way.plain_head else _other
    return sharding.within(model, fn, batch["input_ids"], positions(model, batch),  # type: ignore[no-any-return]
                           targets)


def _plain(model: nn.Module, ids: Tensor, places: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    hidden, head = body_states(model, ids, places), output_head(model)
    flat = targets.flatten()
    trained = (flat != UNTRAINED).nonzero()[:, 0]
    each = tiled_cross_entropy(hidden.flatten(0, 1)[trained], head.weight, head.bias,  # type: ignore
                               flat[trained])
    losses = each.new_zeros(len(flat)).index_copy(0, trained, each).view_as(targets)
    return losses, model.get_submodule(NAME)(hidden)


def _other(model: nn.Module, ids: Tensor, places: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    read: list[Tensor] = []
    head = output_head(model)
    assert head is not None
    hook = head.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    try:
        logits = token_logits(model, ids, places)
    finally:
        hook.remove()
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=UNTRAINED,
                             reduction="none")
    return losses.view_as(targets), model.get_submodule(NAME)(read[-1])


def width_of(model: nn.Module) -> int:
    """Entries of the hidden state that the head for tokens reads."""
    head: Any = output_head(model)
    if head is None:
        raise UserError(f"a {type(model).__name__} has no layer that makes logits of hidden states.")
    return int(torch.as_tensor(head.weight.shape)[1])
