"""A local causal language model as the writer; see ``lm/generation.py`` for how it draws tokens."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.chat import own_template
from trainwright.lm.generation import Prompt, encoded, written
from trainwright.lm.losses import most_positions
from trainwright.lm.writing.writer import Request, Stopped, Writer
from trainwright.storage.store import key_of, stamp


class LocalWriter:
    """The model in ``folder``; its chat template is used if the tokenizer has one.

    Raises:
        UserError: a checkpoint without a tokenizer.
    """

    def __init__(self, folder: Path, writer: Writer, method: str, ctx: Context) -> None:
        self.tokenizer = families.load_tokenizer(folder, method)
        if self.tokenizer is None:
            raise UserError(f"{method}: the model in {folder} has no tokenizer, so it cannot write.")
        self.model: Any = families.load(folder, method).to(ctx.device).eval().requires_grad_(False)
        self.chat, self.most = own_template(self.tokenizer) is not None, most_positions(self.model)
        self.writer, self.block, self.ctx = writer, writer.at_once, ctx
        self.identity = f"model {key_of(stamp(folder), [repr(m) for m in ctx.decode])}"

    def answer(self, requests: Sequence[Request], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """One batch."""
        prompts = [Prompt(self._encode(r), self.writer.max_tokens, seed, r.temperature or 0.0)
                   for r, seed in zip(requests, seeds, strict=True)]
        said = written(self.model, self.tokenizer, prompts, self.ctx, batch_size=self.block,
                       top_k=self.writer.top_k)
        yield from enumerate(self.tokenizer.decode(ids, skip_special_tokens=True) for ids in said)

    def close(self) -> None:
        """There is nothing to close."""

    def _encode(self, request: Request) -> list[int]:
        ids = encoded(self.model, self.tokenizer, request.prompt, self.chat, "")
        new = self.writer.max_tokens
        if not ids:
            raise Stopped(f"the prompt of {request.name!r} is empty.")
        if self.most is not None and len(ids) + new > self.most:
            raise Stopped(f"the prompt of {request.name!r} has {len(ids):,} tokens, which with max_tokens = "
                          f"{new:,} for the answer exceed the {self.most:,} positions of the model.")
        return ids
