"""Mix-LN: the first quarter of a decoder's blocks is Post-LN (normalizes the residual sum), the rest Pre-LN.

"Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN" (arXiv 2412.13795). For
block i of L, counted from 0, with input x [.., width] and the two norms N_a and N_f,

    i < floor(post_ln L):   x <- N_a(x + attention(x)),        x <- N_f(x + mlp(x))          Post-LN
    the others:             x <- x + attention(N_a(x)),        x <- x + mlp(N_f(x))          Pre-LN, unchanged

Gradients are smaller in the deep blocks under Pre-LN and, according to the paper, in the early ones under
Post-LN; mixing evens them out. Every block keeps its two norms with their gains, and the final norm stays,
so that the number of parameters does not change; residual sums are not scaled and the initial weights
stay. ``post_ln = 1`` is Post-LN throughout, ``post_ln = 0`` leaves the model unchanged. A share that
amounts to no block at all (a quarter of 3) is an error.

The authors train with Adam at 1e-3 (71 M to 250 M parameters) or 5e-4, a warm-up of 10 % and no clipping,
and initialize embeddings with a deviation of 0.63 in all variants; transformers uses 0.02
(``initializer_range``), so that the first block, which has no norm in front of it, gets small inputs.

It cannot be folded into the plain architecture. The artifact has all weights, under their own names, in
``backbone/``, and the wiring in ``adapter/``; later stages, evaluation and ``generate`` load both,
transformers loads neither, and merging refuses the artifact.

Do not use it on a trained model, whose function it changes, or on a shallow one, where it changes little.
Early Post-LN blocks make training less stable: "The Curse of Depth in Large Language Models" (arXiv
2502.05795) reports that it diverged at 350 M and 1 B parameters, where the Mix-LN paper reports gains up to
7 B. Start with a lower rate and a warm-up.

Errors: blocks that are not Pre-LN with two norms (parallel or scaled residuals, four norms). To check
this, a model that has weights is run on two tokens.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm.layers import block_names

NAME = "post_norm"
"""Name of the wiring on a block: a module without parameters."""
Seen = dict[str, tuple[Tensor, Tensor]]
"""Inputs and outputs of a block and its parts; the block's own name is ''."""


class MixLn(Surgery):
    """Turns the first blocks of a Pre-LN decoder into Post-LN blocks."""

    post_ln: float = 0.25
    """Share of the blocks, from the first, that are Post-LN."""
    neutral: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"post_ln": 0.5}
    off: ClassVar[dict[str, Any] | None] = {"post_ln": 0.0}

    def __post_init__(self) -> None:
        if not 0 <= self.post_ln <= 1:
            raise ValueError(f"post_ln must be a share between 0 and 1, not {self.post_ln}.")

    def early(self, blocks: int) -> int:
        """How many blocks are Post-LN."""
        count = math.floor(self.post_ln * blocks + 1e-9)
        if self.post_ln and not count:
            raise UserError(
                f"mix_ln: post_ln = {self.post_ln} of {blocks} blocks is not a single one: take "
                f"{math.ceil(1e3 / blocks) / 1e3} or more, or a deeper model."
            )
        return count

    def claims(self, model: nn.Module) -> set[str]:
        blocks = parts_of_blocks(model)
        chosen = list(blocks.items())[: self.early(len(blocks))]
        return {f"{name}.{norm}.*" for name, parts in chosen for norm in (parts.first, parts.second)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        blocks = parts_of_blocks(model)
        if early := self.early(len(blocks)):
            prove(model, blocks)
        for name, parts in list(blocks.items())[:early]:
            block = model.get_submodule(name)
            block.add_module(NAME, PostNorm(block, parts))

    def fold(self, model: nn.Module) -> None:
        """Removes the wiring, which leaves the plain Pre-LN model of these weights: another function."""
        for name, wiring in [(n, m) for n, m in model.named_modules() if isinstance(m, PostNorm)]:
            wiring.undo()
            delattr(model.get_submodule(name.rpartition(".")[0]), NAME)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """Writes no file: the wiring follows from the settings, and all weights belong to the plain model."""
        folder.mkdir(parents=True, exist_ok=True)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        """Nothing to read."""


class Parts(NamedTuple):
    """The names of a block's parts: its norms in the order in which they act, each with what follows it."""

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
        raise UserError(
            f"{name} is no Pre-LN block of two norms, an attention and a feed-forward: it has "
            f"{', '.join(norms + matrices) or 'no such parts'}."
        )
    dropout = next((n for n, m in block.named_children() if isinstance(m, nn.Dropout) and m.p), "")
    if dropout:
        raise UserError(
            f"{name}.{dropout} drops part of what goes into a residual sum, which a Post-LN block cannot do: "
            "set the model's dropout to 0."
        )
    return Parts(norms[0], attention[0], norms[1], next(n for n in matrices if n not in attention))


@torch.no_grad()
def prove(model: nn.Module, blocks: dict[str, Parts]) -> None:
    """Check on two tokens that every block computes x + attention(norm(x)), then x + feed(norm(x)).

    A model without weights is not checked.

    Raises:
        UserError: a block computes something else.
    """
    if next(model.parameters()).is_meta:
        return
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    # not embeddings of the model, since one token may be all zeros
    two = torch.arange(2 * table.shape[1], device=table.device).sin().view(1, 2, -1).to(table)
    seen: dict[str, Seen] = {name: {} for name in blocks}
    hooks = [
        model.get_submodule(f"{name}.{part}" if part else name).register_forward_hook(
            partial(_note, seen[name], part), with_kwargs=True
        )
        for name, parts in blocks.items()
        for part in ("", *parts)
    ]
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
            raise UserError(
                f"{name} is no Pre-LN block: it does not compute x + {parts.attention}({parts.first}(x)) and "
                f"then x + {parts.feed}({parts.second}(x))."
            )


def _note(
    seen: Seen, part: str, module: nn.Module, given: tuple[Any, ...], told: dict[str, Any], out: Any
) -> None:
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
    chain = [
        (seen[parts.first][0], x),
        (seen[parts.attention][0], seen[parts.first][1]),
        (middle, x + seen[parts.attention][1]),
        (seen[parts.feed][0], seen[parts.second][1]),
        (y, middle + seen[parts.feed][1]),
    ]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in chain)


class PostNorm(nn.Module):
    """Turns a Pre-LN block into a Post-LN block, whose own ``forward`` still calls its parts in order.

    The first norm becomes the identity. The second, which gets the sum after attention, computes the first
    one. The sum after the feed-forward layer is taken here, from that layer's input and output, and the
    second norm of it replaces the block's output, which is discarded.
    """

    def __init__(self, block: nn.Module, parts: Parts) -> None:
        super().__init__()
        # in a tuple, so that they stay modules of the block
        self.norms = (block.get_submodule(parts.first), block.get_submodule(parts.second))
        self.sum: Tensor | None = None
        self.open = False
        first, second = self.norms
        first.forward = _through
        second.forward = partial(_as, first)
        self.handles = [
            block.register_forward_pre_hook(self.begin),
            # before the hooks that record hidden states
            block.register_forward_hook(self.end, prepend=True),
        ]
        self.feed = parts.feed
        self.follow(block)

    def follow(self, block: nn.Module) -> None:
        """Hook the block's current feed-forward layer."""
        feed = block.get_submodule(self.feed)
        self.heard = feed, feed.register_forward_hook(self.add, with_kwargs=True)

    def begin(self, block: nn.Module, given: tuple[Any, ...]) -> None:
        if block.get_submodule(self.feed) is not self.heard[0]:  # a later surgery has replaced it
            self.heard[1].remove()
            self.follow(block)
        self.open = True

    def add(self, feed: nn.Module, given: tuple[Any, ...], told: dict[str, Any], out: Any) -> None:
        if self.open:  # not while a checkpointed block is recomputed for the backward pass
            self.sum = _input(given, told) + _output(out)

    def end(self, block: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
        assert self.sum is not None
        y = _as(self.norms[1], self.sum)
        self.sum, self.open = None, False
        return (y, *out[1:]) if isinstance(out, tuple) else y

    def undo(self) -> None:
        """Restore the block."""
        for handle in (*self.handles, self.heard[1]):
            handle.remove()
        for norm in self.norms:
            del norm.forward


def _through(x: Tensor) -> Tensor:
    return x


def _as(norm: nn.Module, x: Tensor) -> Tensor:
    """What the norm computes, whatever replaces its ``forward``."""
    y: Tensor = type(norm).forward(norm, x)
    return y
