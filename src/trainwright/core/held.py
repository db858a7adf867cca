"""Frozen weights that are held in another form, such as four bits each. What the core must know of them: they
are neither cut into shards nor copied into."""
from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Hold = Callable[[nn.Module], None]
"""Puts the frozen weights of a model into another form, in place."""


class Held(Tensor):
    """A tensor that stands for weights and does not have them."""

    def held(self) -> dict[str, Tensor]:
        """The tensors that hold it, by name."""
        raise NotImplementedError


def held(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, those in another form as the several that hold them."""
    out: dict[str, Tensor] = {}
    for name, t in tensors.items():
        parts = t.held() if isinstance(t, Held) else {}
        out |= {f"{name}/{part}": of for part, of in parts.items()} or {name: t}
    return out
