"""A model seen block by block: what its linear layers are given when rows of the stage's data go through it.

The hidden states of all rows go through one block at a time, so that a method which changes a block sees what
the blocks before it, changed already, make of the data; and no more than one block computes at once.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.layers import block_names
from trainwright.lm.losses import field

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of one call of a block."""


class _Reached(Exception):
    """The first block was called: nothing behind it need run."""


def block_inputs(model: nn.Module, ctx: Context, method: str) -> list[Call]:
    """What the first block is given for each of ``ctx.batches()``.

    Raises:
        UserError: the stage has no data to look at, or the model repeats no blocks.
    """
    if ctx.batches is None:
        raise UserError(f"{method} looks at data: name a corpus as from.data.")
    names = block_names(model)
    if not names:
        raise UserError(f"{method}: a {type(model).__name__} repeats no blocks.")
    calls: list[Call] = []

    def reached(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        calls.append((args, given))
        raise _Reached

    first, places = model.get_submodule(names[0]), families.takes_positions(model)
    begin = families.first_position(model.config) if families.is_pretrained(model) else 0
    for batch in ctx.batches():
        seen = {"input_ids": field(batch, "input_ids")} | (
            {"position_ids": batch["position_ids"] + begin} if places else {}
        )
        hook = first.register_forward_pre_hook(reached, with_kwargs=True)
        try:
            model(**seen, use_cache=False)
        except _Reached:
            continue
        finally:
            hook.remove()
    return calls


def through_blocks(model: nn.Module, calls: list[Call], look: Callable[[nn.Module, Tensor], None],
                   layers: dict[str, nn.Module]) -> Iterator[list[str]]:
    """Go through the model block by block; yields the names of the layers of each block
    once they have been seen.

    What the caller does to those layers before it asks for the next block is what the next block sees.

    Args:
        calls: what ``block_inputs`` gave; used up.
        look: is given each layer and its input [positions, features].
        layers: the layers to look at, by name.
    """
    for name in block_names(model):
        block, mine = model.get_submodule(name), [n for n in layers if n.startswith(f"{name}.")]

        def seen(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            look(module, args[0].detach().flatten(0, -2))

        hooks = [layers[n].register_forward_hook(seen) for n in mine]
        with torch.no_grad():
            for args, given in calls if mine else ():
                block(*args, **given)
            for hook in hooks:
                hook.remove()
            yield mine
            for i, (args, given) in enumerate(calls):
                out = block(*args, **given)
                calls[i] = ((out[0] if isinstance(out, tuple) else out, *args[1:]), given)
