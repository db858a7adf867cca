"""Draws answers token by token from all that a decoder may say: the quick way of ``generation.sampled``.

    drawing = Drawing.of(model)                 None where the model keeps something else than keys and values
    told = drawing.answers(prompts, ends)       of each prompt its tokens, and their log-probabilities

A prompt is read once for all answers to it, and its keys and values are copied to each. These stand in
tensors that are made once for all tokens that may come, so that a step writes one column of them. With p the
softmax of the scores over the temperature and u ~ U[0, 1) the next number of the answer's own generator,

    token = the first i with p_0 + ... + p_i > u,    logp = log p_token

so that a token costs one random number, and not one for each word of the vocabulary (``generation.drawn``).
Answers that have ended leave the batch when they are a quarter of it.

Not for models of encoder and decoder, nor those with a window, a state or a cache of another kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from trainwright import families
from trainwright.core import sharding
from trainwright.core.errors import UserError

TAKES = {"input_ids", "attention_mask", "position_ids", "past_key_values", "logits_to_keep"}
"""What the forward pass of a model must take."""
ENDED = 4
"""Answers that have ended are dropped when they are one in so many."""


class Asking(Protocol):
    """A text to continue, and how: a ``generation.Prompt``."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def new_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def temperature(self) -> float: ...


class Told(NamedTuple):
    """An answer and the log-probabilities of its tokens."""

    ids: list[int]
    logp: list[float]


class Roomy(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer [rows, heads, tokens, width], in tensors with room for all that may come."""

    def __init__(self, plain: DynamicLayer, rows: Tensor, more: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = plain.dtype, plain.device, True
        self.known = plain.keys.shape[2]
        self.whole = [_grown(t, rows, more) for t in (plain.keys, plain.values)]
        self._show()

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any,
               **unused: Any) -> tuple[Tensor, Tensor]:
        end = self.known + key_states.shape[2]
        for t, new in zip(self.whole, (key_states, value_states), strict=True):
            t[:, :, self.known:end] = new
        self.known = end
        self._show()
        return self.keys, self.values

    def keep(self, rows: Tensor) -> None:
        """Only these rows."""
        more = self.whole[0].shape[2] - self.known
        self.whole = [_grown(t, rows, more) for t in (self.keys, self.values)]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (t[:, :, :self.known] for t in self.whole)


def _grown(t: Tensor, rows: Tensor, more: int) -> Tensor:
    """These rows of a tensor, with room behind its tokens."""
    whole = t.new_empty(len(rows), t.shape[1], t.shape[2] + more, t.shape[3])
    whole[:, :, :t.shape[2]] = t.index_select(0, rows)
    return whole


class Read(NamedTuple):
    """Prompts that a model has read, a row for each answer."""

    cache: DynamicCache
    scores: Tensor
    """Of the first token [R, V]."""
    places: Tensor
    """Of the first token, int64 [R, 1]."""
    seen: Tensor | None
    """Which tokens, with those to come, are no padding, int64 [R, L]; None where all are none."""


class Drawing:
    """How answers are drawn from one model."""

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, next(model.parameters()).device

    @classmethod
    def of(cls, model: Any) -> Drawing | None:
        """None where the model needs another way."""
        takes = inspect.signature(model.forward).parameters.keys()
        if model.config.is_encoder_decoder or not takes >= TAKES or families.first_position(model.config):
            return None
        return cls(model) if _plain(_cache(model)) else None

    def answers(self, prompts: Sequence[Asking], ends: Iterable[int],
                together: bool = False) -> list[Told] | None:
        """Of prompts that ask for equally many tokens; None where the model turns out to need another way.

        Args:
            ends: tokens of which each ends an answer.
            together: whether all ranks draw at once: one that is done goes on for the others.
        """
        new = prompts[0].new_tokens
        read = self._read(prompts, new)
        if read is None:
            return None
        draw = Draw(prompts, self.device)
        ids = torch.zeros(len(prompts), new, dtype=torch.int64, device=self.device)
        logp = torch.zeros(len(prompts), new, device=self.device)
        last = torch.tensor(sorted(ends), dtype=torch.int64, device=self.device)
        rows = torch.arange(len(prompts), device=self.device)
        lengths, done = torch.full_like(rows, new), torch.zeros_like(rows, dtype=torch.bool)
        for at in range(new):
            token, chance = draw(read.scores)
            ids[rows, at], logp[rows, at] = token, chance
            ended = torch.isin(token, last) & ~done
            lengths[rows[ended]], done = at + 1, done | ended
            if at + 1 == new or not _go_on(not bool(done.all()), together):
                break
            if not together and int(done.sum()) * ENDED >= len(done):
                left = (~done).nonzero()[:, 0]
                rows, token, done, read = rows[left], token[left], done[left], _kept(read, left)
                draw.keep(left)
            read = self._step(read, token)
        return [Told(one[:n], told[:n]) for one, told, n in
                zip(ids.tolist(), logp.tolist(), lengths.tolist(), strict=True)]

    def _read(self, prompts: Sequence[Asking], new: int) -> Read | None:
        """The prompts, each once."""
        numbers: dict[tuple[int, ...], int] = {}
        owners = [numbers.setdefault(tuple(p.ids), len(numbers)) for p in prompts]
        rows = torch.tensor(owners, device=self.device)
        sizes = torch.tensor([len(ids) for ids in numbers], device=self.device)
        width = int(sizes.max())
        ids = torch.tensor([[0] * (width - len(one)) + list(one) for one in numbers], device=self.device)
        places = torch.arange(width, device=self.device) - (width - sizes)[:, None]
        seen = None if bool((sizes == width).all()) else (places >= 0).long()
        cache = _cache(self.model)
        scores = self._scores(ids, places.clamp(min=0), seen, cache)
        if not _plain(cache) or not all(layer.is_initialized for layer in cache.layers):
            return None
        cache.layers = [Roomy(layer, rows, new) for layer in cache.layers]
        if seen is not None:
            seen = torch.cat([seen, seen.new_ones(len(seen), new)], 1)[rows]
        return Read(cache, scores[rows], sizes[rows][:, None], seen)

    def _step(self, read: Read, token: Tensor) -> Read:
        """One token more."""
        known = read.cache.layers[0].known + 1
        seen = None if read.seen is None else read.seen[:, :known]
        scores = self._scores(token[:, None], read.places, seen, read.cache)
        return read._replace(scores=scores, places=read.places + 1)

    def _scores(self, ids: Tensor, places: Tensor, seen: Tensor | None, cache: DynamicCache) -> Tensor:
        given = {} if seen is None else {"attention_mask": seen}
        out = self.model(input_ids=ids, position_ids=places, past_key_values=cache, use_cache=True,
                         logits_to_keep=1, **given)
        scores: Tensor = out.logits[:, -1].float()
        return scores


class Draw:
    """Draws a token for each row, from numbers that depend on its seed alone."""

    def __init__(self, prompts: Sequence[Asking], device: torch.device) -> None:
        most = max(p.new_tokens for p in prompts)
        made = [torch.rand(most, generator=torch.Generator().manual_seed(p.seed), dtype=torch.float64)
                for p in prompts]
        self.numbers, self.at = torch.stack(made).to(device), 0
        self.warmth = torch.tensor([[p.temperature] for p in prompts], device=device)
        self.shaped = bool((self.warmth != 1).any())

    def __call__(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens [R] and their log-probabilities [R], of scores [R, V]."""
        p = (scores / self.warmth if self.shaped else scores).softmax(-1)
        below = p.cumsum(-1, dtype=torch.float64)
        u = self.numbers[:, self.at, None] * below[:, -1:]             # which is 1, but for rounding
        token = torch.searchsorted(below, u, right=True)
        chance = p.gather(1, token.clamp(max=p.shape[1] - 1))[:, 0]
        if bool(chance.isnan().any()):
            raise no_numbers()
        self.at += 1
        return token[:, 0], chance.log()

    def keep(self, rows: Tensor) -> None:
        """Only these rows."""
        self.numbers, self.warmth = self.numbers[rows], self.warmth[rows]


def no_numbers() -> UserError:
    """What to say of scores from which nothing can be drawn."""
    return UserError(
        "the model gives no numbers (NaN) as scores of the next token: its weights are damaged, or it "
        "diverged when it was trained."
    )


def _go_on(more: bool, together: bool) -> bool:
    """Whether anybody has an answer that goes on."""
    return sharding.total(float(more)) > 0 if together else more


def _kept(read: Read, rows: Tensor) -> Read:
    for layer in read.cache.layers:
        layer.keep(rows)
    return read._replace(places=read.places[rows], seen=None if read.seen is None else read.seen[rows])


def _cache(model: Any) -> DynamicCache:
    return DynamicCache(config=model.config)


def _plain(cache: DynamicCache) -> bool:
    """Whether all that is kept of a text is keys and values of all its tokens."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)
