"""Matrices that are held in fewer bits than they have: what all forms of them share.

Such a tensor has the shape and the type of the weights that it stands for. Every operation on it makes them
for its own time; autograd keeps the bits, and backward makes the weights again. Nothing can be written into
it. Where only some rows are asked for (the embeddings of a text, a tile of the head), ``rows`` says how.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from trainwright.core.errors import UserError
from trainwright.core.held import Held

aten = torch.ops.aten
SAME = (aten.detach.default, aten.alias.default, aten.clone.default)
TURNED = (aten.t.default, aten.transpose.int, aten.permute.default)


class Bits(Held):
    """A frozen matrix in fewer bits."""

    turned: bool
    """Whether it stands for the transposed matrix of the one that was packed."""
    many: ClassVar[str]
    """How many bits, in words."""
    setting: ClassVar[str]
    """What a stage asks for them by."""

    def like(self, dtype: torch.dtype | None = None, turn: bool = False) -> Bits:
        """The same bits as another tensor: of another type, or transposed."""
        raise NotImplementedError

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weights themselves, as a tensor of their own."""
        raise NotImplementedError

    def rows(self, which: slice | Tensor) -> Tensor:
        """Some rows of a matrix that is not turned."""
        return self.dense()[which]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (),  # type: ignore[override]
                           kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if func in SAME and isinstance(args[0], Bits):
            return args[0].like()
        if func in TURNED:
            order = [place % 2 for place in (args[1] if func is aten.permute.default else args[1:])]
            stays = order in ([0, 1], [0, 0], [1, 1]) and (func is aten.permute.default or order != [0, 1])
            return args[0].like(turn=not stays)
        if func is aten._to_copy.default and given.get("device", args[0].device) == args[0].device:
            return args[0].like(given.get("dtype"))
        if (which := _asked(func, args)) is not None:
            return args[0].rows(which)
        for value, argument in zip(args, func._schema.arguments, strict=False):
            if isinstance(value, Bits) and argument.alias_info and argument.alias_info.is_write:
                raise UserError(f"a method writes into weights that are frozen in {value.many} bits: leave "
                                f'out the stage\'s "{value.setting}", or that method.')
        return func(*tree_map_only(Bits, dense, args), **tree_map_only(Bits, dense, given))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({list(self.shape)})"


def _asked(func: Any, args: tuple[Any, ...]) -> slice | Tensor | None:
    """The rows that an operation reads, where it reads rows alone."""
    if not args or not isinstance(args[0], Bits) or args[0].turned:
        return None
    if func is aten.embedding.default:
        return args[1]                                                         # type: ignore[no-any-return]
    if func is aten.index.Tensor and len(args[1]) == 1:
        return args[1][0]                                                      # type: ignore[no-any-return]
    if func is aten.slice.Tensor and (len(args) < 2 or args[1] == 0):
        return slice(*args[2:])
    return None


def dense(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The weights themselves, as a tensor of their own where they are in fewer bits.

    Args:
        dtype: of the result; default: that of ``weight``.
    """
    if isinstance(weight, Bits):
        return weight.dense(dtype)
    return weight if dtype is None else weight.to(dtype)
