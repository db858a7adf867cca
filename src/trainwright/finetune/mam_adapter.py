"""MAM adapter: a short learned prefix in attention, and a scaled parallel adapter beside each feed-forward layer.

"Towards a Unified View of Parameter-Efficient Transfer Learning" (arXiv 2110.04366): adapters, prefixes and LoRA all change a
hidden state h by some Delta h. With x what the sublayer reads, s the ``scale`` and r the ``bottleneck``,

    FFN:        h <- FFN(x) + s (W_up relu(W_down x + b_down) + b_up),   W_down [r, d], W_up [d, r],
    attention:  head = softmax(q [P_k; K]') [P_v; V] = (1 - lambda(x)) attention(x) + lambda(x) softmax(q P_k') P_v,

where lambda(x), the share of the sums of exponentials that the prefix has, gates it. P_k and P_v [prefix, head size] are learned
for each key-value head, and every position of every document sees them. Queries are turned by their position before they meet
P_k, which stands at none: the function is that of a cache that begins with P_k and P_v, and packed documents see what they would
alone. All else is frozen. The adapter starts at zero (W_down uniform in +-1/sqrt(d)); a prefix cannot: before it learned
anything it takes part of the attention, most where little is seen yet. ``prefix = 0`` is the paper's scaled parallel adapter.

The paper's models have norms behind the sublayers; here x is what the sublayer reads, behind the norm before it. P is trained
itself. With ``hidden`` a network of two layers makes it of learned vectors, one network for each attention; the authors' code has
one 800 wide, whose first layer all of them share.

It cannot be folded in: relu and lambda depend on x. The artifact has the plain checkpoint in ``backbone/`` and what was learned
in ``adapter/``; later stages, evaluation and ``generate`` load both, transformers alone does not, and merging refuses it.
Not where speed counts: the prefix keeps attention from its fastest kernels, and the adapter stays beside the layer for good.
Errors: a block whose attention or feed-forward layer is no module of its own, or that has a prefix or an adapter already;
attention that takes no mask, caps its scores or has sinks.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.method import Surgery
from trainwright.finetune import _mam
from trainwright.finetune._mam import ParallelAdapter, Prefix
from trainwright.lm import deltas
from trainwright.lm.layers import freeze

FILE = "mam_adapter.safetensors"


class MamAdapter(Surgery):
    """Prefix tuning in attention and a scaled parallel adapter beside the feed-forward layer."""

    prefix: int = 30
    """Learned keys and values of each attention; 0: none."""
    bottleneck: int = 512
    """Inner width of the adapter beside each feed-forward layer; 0: none."""
    scale: float = 4.0
    """Factor of what the adapter adds."""
    dropout: float = 0.0
    """Share of the adapter's inner values that are dropped in training."""
    hidden: int = 0
    """Width of the network that makes the prefix; 0: it is trained itself."""
    neutral: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    bench: ClassVar[Bench | None] = Bench(
        suite="adapt", claim="as good as full fine-tuning with 6.7 % of the parameters, better than LoRA of as many",
        add=({"use": "mam_adapter", "prefix": 6, "bottleneck": 32}, {"use": "adamw", "lr": 6e-3, "weight_decay": 0.0}),
        baseline=({"use": "lora", "rank": 4}, {"use": "adamw", "lr": 6e-3, "weight_decay": 0.0}), versus="LoRA of rank 4",
        search={"adamw.lr": [2e-3, 6e-3, 1.8e-2]})
    example: ClassVar[dict[str, Any]] = {"prefix": 3, "bottleneck": 4}

    def __post_init__(self) -> None:
        if min(self.prefix, self.bottleneck, self.hidden) < 0 or not self.prefix + self.bottleneck:
            raise ValueError("prefix, bottleneck and hidden must be 0 or more, and one of the first two above 0, not "
                             f"{self.prefix}, {self.bottleneck} and {self.hidden}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout}.")

    def operate(self, model: nn.Module, ctx: Context) -> None:
        found, device = _mam.sublayers(model), next(model.parameters()).device
        if self.prefix:
            _mam.check_attention(model)
        freeze(model)
        wide = model.config.get_text_config().hidden_size
        for one in found:
            if self.bottleneck:
                rng = ctx.rng(f"mam_adapter/{one.ffn}", at=0)
                _mam.put_beside(model.get_submodule(one.ffn), ParallelAdapter(wide, self, rng, device))
            if self.prefix:
                attention, rng = model.get_submodule(one.attention), ctx.rng(f"mam_adapter/{one.attention}", at=0)
                _mam.put_before(attention, Prefix(attention.config, self, rng, device))

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        mine = {n: m for n, m in model.named_modules() if isinstance(m, (ParallelAdapter, Prefix)) and m.settings == self}
        return {f"{n}.{p}": t for n, m in mine.items() for p, t in m.named_parameters()}

    def fold(self, model: nn.Module) -> None:
        """Takes prefixes and adapters out: what is left is the model, as it was."""
        for module in list(model.modules()):
            parts = dict(module.named_children())
            if (adapter := parts.get("mam_adapter")) is not None and adapter.settings == self:
                _mam.take_away(module)
            if (prefix := parts.get("mam_prefix")) is not None and prefix.settings == self:
                _mam.take_out(module)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``mam_adapter.safetensors``: everything that is trained, under its name in the model."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)
