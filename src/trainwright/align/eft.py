"""Emulated fine-tuning: what a small model has learned in fine-tuning is added to a large one as it writes.

"An Emulator for Fine-Tuning Large Language Models using Small Language Models" (arXiv 2310.12962). With p the
model that writes, q+ a fine-tuned model of another size, q- what that was before, and all three reading the
prompt and what was written so far,

    log p~(v) = log p(v) + beta (log q+(v) - log q-(v)) + constant          for each token v of the vocabulary

A large p with small q+, q- is up-scaling: the manner of the small model, the knowledge of the large one,
without fine-tuning that. A small p with large q+, q- is down-scaling. Where p is q-, what writes is q+
exactly. Named twice with models of its own each, two traits are mixed by their ``beta``.

q+ is ``tuned`` and q- is ``before``, paths of checkpoints, or ``from.teacher`` and ``from.reference`` of the
stage. The log-ratio is added before the temperature divides; name it before methods that cut the distribution
off (``min_p``, ``nucleus``). The small models cache keys and values: a token costs a forward pass of each.

Left out of the paper: speculative decoding, which is a matter of speed, and the top-p filter of the ratio.

Not a saving of memory: three models are held. Compare with the large model really fine-tuned, and with the
large one of before and the small tuned one alone: it should stand between them.

Errors: a model that is not named; models of other vocabularies.
"""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Decode
from trainwright.core.settings import FilePath, Rate
from trainwright.core.stage import Role
from trainwright.families import takes_positions, vocabulary_of

ROLES = {"tuned": "teacher", "before": "reference"}
"""The role that stands in for a path."""


class Eft(Decode):
    """Adds the log-ratio of two models to the scores of the one that writes."""

    beta: Rate = 1.0
    """Factor of the log-ratio."""
    tuned: FilePath | None = None
    """Checkpoint of the fine-tuned model; default: ``from.teacher``."""
    before: FilePath | None = None
    """Checkpoint of what that model was before; default: ``from.reference``."""
    roles: ClassVar[dict[str, Role]] = {"teacher": Role(needed=True), "reference": Role(needed=True)}

    def asks(self) -> dict[str, Role]:
        return {role: self.roles[role] for name, role in ROLES.items() if self._path(name) is None}

    def _path(self, name: str) -> str | None:
        return self.tuned if name == "tuned" else self.before

    def processor(self, model: nn.Module, ctx: Context) -> Callable[[Tensor, Tensor], Tensor]:
        tuned, before = (Follower(self._model(name, model, ctx), ctx) for name in ROLES)
        warmth = torch.tensor([p.temperature or 1.0 for p in ctx.prompts] or [1.0])[:, None]

        @torch.no_grad()
        def shaped(tokens: Tensor, scores: Tensor) -> Tensor:
            ratio = tuned(tokens) - before(tokens)
            return scores + self.beta * ratio.to(scores.dtype) / warmth.to(scores.device)
        return shaped

    def _model(self, name: str, model: nn.Module, ctx: Context) -> nn.Module:
        path, role = self._path(name), ROLES[name]
        if path is None and role in ctx.frozen:
            other = ctx.frozen[role]
        elif path is None and role not in ctx.inputs:
            raise UserError(f"eft: there is no {name} model: set {name} to the path of a checkpoint, or name "
                            f"from.{role} in the stage.")
        else:
            other = self._loaded(ctx.path(role) if path is None else ctx.root / Path(path), ctx)
        sizes = vocabulary_of(model), vocabulary_of(other)
        if sizes[0] != sizes[1]:
            raise UserError(f"eft: the {name} model has {sizes[1]} tokens and the model that writes "
                            f"{sizes[0]}: all three need one vocabulary.")
        return other

    def _loaded(self, folder: Path, ctx: Context) -> nn.Module:
        own = families.load_tokenizer(folder, self.name)
        if own is not None and ctx.tokenizer is not None and own.get_vocab() != ctx.tokenizer.get_vocab():
            raise UserError(f"eft: the model in {folder} has another tokenizer than the model that writes: "
                            "all three need one vocabulary.")
        other: nn.Module = families.load(folder, self.name)
        return other.to(ctx.device).eval()


class Follower:
    """The log-probabilities of the next token under a model that reads along, with a cache of keys and
    values.

    Args:
        ctx: whose ``prompts`` tell how many positions of each row are padding.
    """

    def __init__(self, model: nn.Module, ctx: Context) -> None:
        self.model, self.lengths = model, [len(p.ids) for p in ctx.prompts]
        self.read = torch.zeros(0, 0, dtype=torch.int64)
        self.begins: Tensor | None = None
        self.cache: Any = None

    def __call__(self, tokens: Tensor) -> Tensor:
        """[rows, vocabulary], float32, behind the tokens so far [rows, length]."""
        tokens = tokens.to(next(self.model.parameters()).device)
        known = self.read.shape[1]
        if not (0 < known < tokens.shape[1] and torch.equal(tokens[:, :known], self.read)):
            width = tokens.shape[1]
            lengths = self.lengths if len(self.lengths) == len(tokens) else [width] * len(tokens)
            known, self.cache, self.begins = 0, None, tokens.new_tensor([width - n for n in lengths])[:, None]
        assert self.begins is not None
        places = torch.arange(tokens.shape[1], device=tokens.device) - self.begins
        given: dict[str, Any] = {"attention_mask": (places >= 0).long(), "past_key_values": self.cache}
        if takes_positions(self.model):
            given["position_ids"] = places.clamp(min=0)[:, known:]
        out = self.model(input_ids=tokens[:, known:], use_cache=True, **given)
        self.read, self.cache = tokens, out.past_key_values
        return out.logits[:, -1].float().log_softmax(-1)  # type: ignore[no-any-return]
