"""Generation: what a model writes after prompts. Whatever generates text here does it with ``written``.

    said = written(model, ctx.tokenizer, [Prompt(ids, new_tokens=40, seed=seed, temperature=0.8)], ctx)

and, where it is to be learned from, with ``sampled``, which tells the log-probabilities too.

The scores of the next token go through a chain: they are divided by the prompt's temperature, shaped by the
``Decode`` methods of the stage (``ctx.decode``) in recipe order, and a token is drawn from their softmax; at
temperature 0 it is the likeliest. Prompts are batched, and keys and values are cached. Each prompt has a
generator of its own, so the text does not depend on the prompts beside it, the size of a batch or the rank.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Decode
from trainwright.core.shown import brief
from trainwright.lm.drawing import Draw, Drawing, no_numbers
from trainwright.lm.losses import most_positions

Processor = Callable[[Tensor, Tensor], Tensor]
"""From the tokens so far [rows, length] and the scores of the next [rows, vocabulary] to other scores."""
COLDEST = 1e-6
"""The lowest temperature that is not 0; scores are divided in float32."""
MOST_TOKENS = 1_000_000
"""Of one text; no model writes more than that in a day."""
USUAL_TOP_K = 50
"""How many of the likeliest tokens transformers draws from where a model's generation config does not say."""
T = TypeVar("T")


class Prompt(NamedTuple):
    """A text to continue, and how."""

    ids: Sequence[int]
    """Its tokens; a model of encoder and decoder reads them and writes from the beginning."""
    new_tokens: int
    """Most tokens to write."""
    seed: int = 0
    """What is drawn depends on it alone."""
    temperature: float = 0.0
    """By which the scores are divided; at 0 each token is the likeliest."""


class Sampled(NamedTuple):
    """What was written after a prompt."""

    ids: list[int]
    """Its tokens, with the one that ends it."""
    logp: list[float]
    """Of each its log-probability at the prompt's temperature, as it was when the token was drawn."""


def written(model: Any, tokenizer: Any, prompts: Sequence[Prompt], ctx: Context, *, batch_size: int = 32,
            top_k: int | None = None) -> list[list[int]]:
    """The tokens that a model writes after each prompt, up to and including the one that ends the text.

    Args:
        prompts: whose tokens, with the new ones, fit into the model's positions.
        ctx: its ``decode`` shapes the scores.
        batch_size: prompts that are continued at once.
        top_k: among how many of the likeliest tokens to draw, before ``ctx.decode``; 0: among all. By default
            as the model's generation config says, if ``ctx.decode`` names no method.
    """
    def write(part: Sequence[Prompt]) -> list[list[int]]:
        return _batch(model, tokenizer, part, ctx, _chain(model, part, ctx, top_k))
    return _in_batches(model, prompts, batch_size, write)


def sampled(model: Any, tokenizer: Any, prompts: Sequence[Prompt], ctx: Context, *, batch_size: int = 32,
            together: bool = False) -> list[Sampled]:
    """Tokens drawn from all that a model may say after each prompt, with their log-probabilities.

    Nothing but the temperature shapes the scores: neither the model's generation config nor ``ctx.decode``.
    How they are drawn, and what makes it quick, says ``drawing.py``.

    Args:
        prompts: as in ``written``, of a temperature above 0.
        together: whether all ranks write at once, as many prompts each, with a model that is sharded over
            them: a rank that is done goes on for the others.
    """
    for p in prompts:
        check_temperature(p.temperature)
    drawing = Drawing.of(model)

    def write(part: Sequence[Prompt]) -> list[Sampled]:
        if drawing is not None and (told := drawing.answers(part, end_tokens(model, tokenizer), together)):
            return [Sampled(*one) for one in told]
        draw, heard = Draw(part, next(model.parameters()).device), list[Tensor]()

        def choose(tokens: Tensor, scores: Tensor) -> Tensor:
            token, logp = draw(scores)
            heard.append(logp.cpu())
            return torch.zeros_like(scores).scatter_(1, token[:, None], 1.0)
        said = _batch(model, tokenizer, part, ctx, [choose], together)
        logp = torch.stack(heard, 1).tolist()
        return [Sampled(ids, row[:len(ids)]) for ids, row in zip(said, logp, strict=True)]
    return _in_batches(model, prompts, batch_size, write)


def _in_batches(model: Any, prompts: Sequence[Prompt], batch_size: int,
                write: Callable[[Sequence[Prompt]], list[T]]) -> list[T]:
    """What ``write`` makes of prompts of about one length at a time, in their order."""
    out: dict[int, T] = {}

    def place(i: int) -> tuple[int, int, tuple[int, ...]]:
        return prompts[i].new_tokens, len(prompts[i].ids), tuple(prompts[i].ids)
    order = sorted(range(len(prompts)), key=place)
    with families.evaluating(model), torch.no_grad():
        while order:
            new = prompts[order[0]].new_tokens
            part = [i for i in order[:batch_size] if prompts[i].new_tokens == new]
            order = order[len(part):]
            out |= dict(zip(part, write([prompts[i] for i in part]), strict=True))
    return [out[i] for i in range(len(prompts))]


def _batch(model: Any, tokenizer: Any, prompts: Sequence[Prompt], ctx: Context, chain: list[Processor],
           together: bool = False) -> list[list[int]]:
    from transformers import GenerationConfig, LogitsProcessorList
    device, two_parts = next(model.parameters()).device, bool(model.config.is_encoder_decoder)
    ends = end_tokens(model, tokenizer)
    pad = next((n for n in (tokenizer.pad_token_id, tokenizer.eos_token_id) if n is not None), 0)
    told = model.generation_config
    how = GenerationConfig(max_new_tokens=prompts[0].new_tokens, do_sample=False, num_beams=1,
                           pad_token_id=pad, eos_token_id=sorted(ends) or None,
                           bos_token_id=told.bos_token_id,
                           decoder_start_token_id=told.decoder_start_token_id,
                           forced_bos_token_id=told.forced_bos_token_id)
    width = max(len(p.ids) for p in prompts)
    blank = [[0] * (width - len(p.ids)) for p in prompts]
    rows = [(list(p.ids), [1] * len(p.ids)) for p in prompts]
    if two_parts:                                        # an encoder counts positions from the left
        rows = [(ids + [pad] * len(b), there + b) for (ids, there), b in zip(rows, blank, strict=True)]
    else:
        rows = [([pad] * len(b) + ids, b + there) for (ids, there), b in zip(rows, blank, strict=True)]
    with _alone(model):
        made = model.generate(input_ids=torch.tensor([ids for ids, _ in rows], device=device),
                              attention_mask=torch.tensor([there for _, there in rows], device=device),
                              generation_config=how, logits_processor=LogitsProcessorList(chain),
                              synced_gpus=together)
    return [_ended(row, ends) for row in made[:, 1 if two_parts else width:].tolist()]


@contextmanager
def _alone(model: Any) -> Iterator[None]:
    """The model without its generation config, with which transformers fills in whatever a call leaves open:
    penalties, tokens that are kept out, how many texts to write."""
    from transformers import GenerationConfig
    told, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = told


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens of which each ends a text: the model's, else the tokenizer's."""
    end = model.generation_config.eos_token_id
    end = tokenizer.eos_token_id if end is None else end
    return {end} if isinstance(end, int) else set(end or ())


def _ended(ids: list[int], ends: set[int]) -> list[int]:
    """A row without what fills it up behind the token that ends it."""
    return next((ids[:i + 1] for i, token in enumerate(ids) if token in ends), ids)


def _chain(model: Any, prompts: Sequence[Prompt], ctx: Context, top_k: int | None) -> list[Processor]:
    """What the scores of a batch go through."""
    from transformers import TopKLogitsWarper
    for p in prompts:
        check_temperature(p.temperature)
    warmth = torch.tensor([p.temperature for p in prompts])
    draws = [torch.Generator().manual_seed(p.seed) for p in prompts]
    told = replace(ctx, prompts=prompts)
    shaping = [method.processor(model, told) for method in ctx.decode]
    if not warmth.any():
        return [numbers, *shaping]
    if top_k:
        shaping = [TopKLogitsWarper(top_k), *shaping]
    elif top_k is None and not shaping:
        shaping = usual(model)
    divisor = torch.where(warmth > 0, warmth, 1.0)[:, None]

    def choose(tokens: Tensor, scores: Tensor) -> Tensor:
        return drawn(scores, draws, warmth > 0)
    return [numbers, lambda tokens, scores: scores / divisor.to(scores.device), *shaping, choose]


def numbers(tokens: Tensor, scores: Tensor) -> Tensor:
    """The scores as they are.

    Raises:
        UserError: they are no numbers, from which nothing could be drawn.
    """
    if bool(scores.isnan().any()):
        raise no_numbers()
    return scores


def check_temperature(temperature: float) -> None:
    """Refuse what scores cannot be divided by."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, not {temperature}.")
    if temperature and not COLDEST <= temperature <= 1 / COLDEST:
        raise UserError(f"temperature must be 0, which takes the likeliest token, or from {COLDEST:g} to "
                        f"{1 / COLDEST:g}, not {temperature:g}.")


def usual(model: Any) -> list[Processor]:
    """How a model samples where nobody says otherwise: by ``repetition_penalty``, ``no_repeat_ngram_size``,
    ``top_k``, ``top_p`` and ``min_p`` of its generation config, and where that has no ``top_k``, among the 50
    likeliest tokens, as in transformers.

    Raises:
        UserError: one of them is no number that it may be.
    """
    import transformers
    told = model.generation_config
    top_k = USUAL_TOP_K if told.top_k is None else told.top_k
    shaping = (("repetition_penalty", transformers.RepetitionPenaltyLogitsProcessor, told.repetition_penalty),
               ("no_repeat_ngram_size", transformers.NoRepeatNGramLogitsProcessor, told.no_repeat_ngram_size),
               ("top_k", transformers.TopKLogitsWarper, top_k),
               ("top_p", transformers.TopPLogitsWarper, 0 if told.top_p == 1 else told.top_p),
               ("min_p", transformers.MinPLogitsWarper, told.min_p))
    made: list[Processor] = []
    for name, processor, value in shaping:
        try:
            made += [processor(value)] if value else []
        except (TypeError, ValueError):
            raise UserError(f"the model's generation config has {name} = {brief(value)}, which it cannot "
                            "be.") from None
    return made


def drawn(scores: Tensor, draws: Sequence[torch.Generator], drawing: Tensor) -> Tensor:
    """Scores whose argmax is a draw from their softmax, in the rows where ``drawing`` holds.

    With independent e_i ~ Exp(1), the argmax of p_i / e_i is a draw from p, token for token the one that
    ``torch.multinomial`` takes. Each row has a generator of its own, on the CPU, so a row depends neither on
    the rows beside it nor on the device.

    Args:
        scores: (rows, vocabulary), float32; minus infinity for what cannot be drawn.
        draws: a generator for each row.
        drawing: (rows,), bool.
    """
    noise = torch.ones(scores.shape)
    for row, draw, draws_here in zip(noise, draws, drawing.tolist(), strict=True):
        if draws_here:
            row.exponential_(generator=draw)
    chance = scores.softmax(-1) / noise.to(scores.device)
    return torch.where(drawing.to(scores.device)[:, None], chance, scores)


# ---- the command ------------------------------------------------------------------------------------------


def generate(folder: Path, prompt: str, tokens: int, temperature: float, chat: bool, seed: int,
             decode: Sequence[Decode] = ()) -> str:
    """A model's text behind a prompt; sampling depends on the seed alone.

    Raises:
        UserError: the folder holds nothing that writes text, no tokenizer, or (for ``chat``) no template.
    """
    if not 1 <= tokens <= MOST_TOKENS:
        raise UserError(f"tokens must be 1 or more, and at most {MOST_TOKENS:,}, not {str(tokens)[:24]}.")
    check_temperature(temperature)
    model, tokenizer = families.load(folder, "generate"), families.load_tokenizer(folder, "generate")
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer.")
    if not writes(model):
        raise UserError(f"{folder}: a {type(model).__name__} does not write text.")
    ids = encoded(
        model, tokenizer, prompt, chat, f"{folder}: its tokenizer has no chat template; leave out --chat."
    )
    if not ids:
        raise UserError("the prompt is empty and the tokenizer puts nothing in front of it.")
    ctx = Context(seed=seed, tokenizer=tokenizer, decode=decode)
    asked = Prompt(ids, room(model, len(ids), tokens, "generate"), seed, temperature)
    said = written(model, tokenizer, [asked], ctx)[0]
    alone = chat or model.config.is_encoder_decoder  # type: ignore[union-attr]
    return str(tokenizer.decode(said if alone else [*ids, *said], skip_special_tokens=True))


def writes(model: nn.Module) -> bool:
    """Whether it is a model of transformers that generates text."""
    return families.is_pretrained(model) and bool(model.can_generate())  # type: ignore[operator]


def room(model: nn.Module, length: int, new_tokens: int, where: str) -> int:
    """How many of ``new_tokens`` fit into a model's positions behind a prompt of ``length`` tokens.

    Raises:
        UserError: none does; ``where`` begins the sentence.
    """
    most = None if model.config.is_encoder_decoder else most_positions(model)  # type: ignore[union-attr]
    left = new_tokens if most is None else min(new_tokens, most - length)
    if left < 1:
        raise UserError(f"{where}: a prompt of {length} tokens leaves no room in the {most} positions of the "
                        "model.")
    return left


def encoded(model: nn.Module, tokenizer: Any, prompt: str, chat: bool, without_template: str) -> list[int]:
    """A prompt's tokens, those of a user's turn for ``chat``.

    Raises:
        UserError: ``without_template``, where the tokenizer has no chat template.
    """
    if not chat:
        return families.prompt(model, tokenizer, prompt)
    if tokenizer.chat_template is None:
        raise UserError(without_template)
    said = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True,
                                         tokenize=False)
    return list(tokenizer(said, add_special_tokens=False)["input_ids"])
