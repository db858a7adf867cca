"""The attention of a prefix language model: what is given of a document is seen by all of
it, in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.core.method import Batch


def prefix_mask(model: nn.Module, batch: Batch) -> Tensor | None:
    """Which position (third dimension) sees which (fourth), as transformers takes it, [R, 1, L, L];
    None without a ``prefix``.

    ``prefix`` (bool, [R, L]) marks positions that all positions of their document see, those before
    them too. The others are seen by those behind them. Documents begin where ``position_ids`` are 0,
    and do not see each other.

    Raises:
        UserError: the model's attention takes no such mask.
    """
    if "prefix" not in batch:
        return None
    document = (batch["position_ids"] == 0).cumsum(1)
    size = document.shape[1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=document.device).tril()
    seen = ((earlier | batch["prefix"][:, None]) & (document[:, :, None] == document[:, None]))[:, None]
    kind = model.config.get_text_config()._attn_implementation
    if kind == "sdpa":
        return seen
    if kind == "eager":                                                   # which adds the mask to its scores
        return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, torch.finfo(torch.float32).min)
    raise UserError(
        f"the {kind!r} attention of a {type(model).__name__} takes no mask of a prefix language model: load "
        f"it with "
        "'sdpa', or let attention be causal."
    )
