"""Pre-LN blocks, found by what they are made of, proved by running them, and wired as Post-LN blocks."""
from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.lm.layers import block_names


class Parts(NamedTuple):
    """What the parts of a block are called in it: its norms in the order in which they act, and what stands behind each."""

    first: str
    attention: str
    second: str
    feed: str


def parts_of_blocks(model: nn.Module) -> dict[str, Parts]:
    """The parts of each repeated block of a decoder, by the block's name.

    Raises:
        UserError: a block has other parts than two norms, an attention and a feed-forward.
    """
    found = {name: _parts(name, model.get_submodule(name)) for name in block_names(model)}
    if not found:
        raise UserError(f"a {type(model).__name__} has no repeated blocks.")
    return found


def _parts(name: str, block: nn.Module) -> Parts:
    dimensions = {n: {p.ndim for p in m.parameters()} for n, m in block.named_children()}
    norms = [n for n, of in dimensions.items() if of == {1}]
    matrices = [n for n, of in dimensions.items() if max(of, default=0) > 1]
    attention = [n for n in matrices if "attn" in n.lower() or "attention" in n.lower()]
    if len(norms) != 2 or len(attention) != 1 or len(matrices) != 2:
        raise UserError(f"{name} is no Pre-LN block of two norms, an attention and a feed-forward: it has "
                        f"{', '.join(norms + matrices) or 'no such parts'}.")
    dropout = next((n for n, m in block.named_children() if isinstance(m, nn.Dropout) and m.p), "")
    if dropout:
        raise UserError(f"{name}.{dropout} drops part of what goes into a residual sum, which a Post-LN block cannot do: "
                        "set the model's dropout to 0.")
    return Parts(norms[0], attention[0], norms[1], next(n for n in matrices if n not in attention))


# ---- the proof -----------------------------------------------------------------------------------------------------------

Seen = dict[str, tuple[Tensor, Tensor]]
"""What went into a block and its parts, and what came out; the block itself is called ''."""


@torch.no_grad()
def prove(model: nn.Module, blocks: dict[str, Parts]) -> None:
    """That every block is x + attention(norm(x)) and then x + feed(norm(x)), seen on two tokens. Not asked without weights.

    Raises:
        UserError: a block computes something else.
    """
    if next(model.parameters()).is_meta:
        return
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    two = torch.arange(2 * table.shape[1], device=table.device).sin().view(1, 2, -1).to(table)     # one token may be all zeros
    seen: dict[str, Seen] = {name: {} for name in blocks}
    hooks = [model.get_submodule(f"{name}.{part}" if part else name).register_forward_hook(
        partial(_note, seen[name], part), with_kwargs=True) for name, parts in blocks.items() for part in ("", *parts)]
    training = [m for m in model.modules() if m.training]
    try:
        model.eval()(inputs_embeds=two, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    for name, parts in blocks.items():
        if not _pre_norm(seen[name], parts):
            raise UserError(f"{name} is no Pre-LN block: it does not compute x + {parts.attention}({parts.first}(x)) and then "
                            f"x + {parts.feed}({parts.second}(x)).")


def _note(seen: Seen, part: str, module: nn.Module, given: tuple[Any, ...], told: dict[str, Any], out: Any) -> None:
    seen[part] = _input(given, told).clone(), _output(out).clone()


def _input(given: tuple[Any, ...], told: dict[str, Any]) -> Tensor:
    x: Tensor = given[0] if given else told["hidden_states"]
    return x


def _output(out: Any) -> Tensor:
    y: Tensor = out[0] if isinstance(out, tuple) else out
    return y


def _pre_norm(seen: Seen, parts: Parts) -> bool:
    if set(seen) != {"", *parts}:
        return False
    (x, y), middle = seen[""], seen[parts.second][0]
    chain = [(seen[parts.first][0], x), (seen[parts.attention][0], seen[parts.first][1]),
             (middle, x + seen[parts.attention][1]), (seen[parts.feed][0], seen[parts.second][1]),
             (y, middle + seen[parts.feed][1])]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in chain)


# ---- the wiring ----------------------------------------------------------------------------------------------------------


class PostNorm(nn.Module):
    """Makes a Post-LN block of a Pre-LN block, whose own ``forward`` goes on to call its parts in their order.

    The first norm lets its input through. The second, which gets the sum behind attention, is computed with the first one's
    weights. The sum behind the feed-forward is taken here, of what that read and gave, and the second norm of it is the
    block's output; the block's own last sum is dropped.
    """

    def __init__(self, block: nn.Module, parts: Parts) -> None:
        super().__init__()
        self.norms = block.get_submodule(parts.first), block.get_submodule(parts.second)   # in a tuple: they stay the block's
        self.sum: Tensor | None = None
        self.open = False
        first, second = self.norms
        first.forward = _through
        second.forward = partial(_as, first)
        self.handles = [block.register_forward_pre_hook(self.begin),
                        block.register_forward_hook(self.end, prepend=True)]       # before those that record hidden states
        self.feed = parts.feed
        self.follow(block)

    def follow(self, block: nn.Module) -> None:
        """Listen to the block's feed-forward of now."""
        feed = block.get_submodule(self.feed)
        self.heard = feed, feed.register_forward_hook(self.add, with_kwargs=True)

    def begin(self, block: nn.Module, given: tuple[Any, ...]) -> None:
        if block.get_submodule(self.feed) is not self.heard[0]:                    # a later surgery has put another in its place
            self.heard[1].remove()
            self.follow(block)
        self.open = True

    def add(self, feed: nn.Module, given: tuple[Any, ...], told: dict[str, Any], out: Any) -> None:
        if self.open:                                       # not when a checkpointed block is computed again for backward
            self.sum = _input(given, told) + _output(out)

    def end(self, block: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        assert self.sum is not None
        y = _as(self.norms[1], self.sum)
        self.sum, self.open = None, False
        return (y, *out[1:]) if isinstance(out, tuple) else y

    def undo(self) -> None:
        """The block is what it was."""
        for handle in (*self.handles, self.heard[1]):
            handle.remove()
        for norm in self.norms:
            del norm.forward


def _through(x: Tensor) -> Tensor:
    return x


def _as(norm: nn.Module, x: Tensor) -> Tensor:
    """What the norm computes, whatever stands in for its ``forward``."""
    y: Tensor = type(norm).forward(norm, x)
    return y
