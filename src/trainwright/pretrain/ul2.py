"""UL2, a mixture of denoisers: parts of each text are hidden in one of several ways; the model predicts them.

"UL2: Unifying Language Learning Paradigms" (arXiv 2205.05131). Left out: lengths of spans that are drawn
around their mean, in whose place T5's rule stands, since by it exactly the share of tokens is hidden that a
denoiser names. Each text starts with the token of its mode, in place of what its tokenizer puts in front.
A denoiser (mean, rate) hides, of a text of L tokens,
    N = round(rate L) tokens, between 1 and L - 1, in n = max(1, round(N / mean)) spans.
N and L - N are each cut into n parts, all cuts equally likely, and the parts alternate, so that a text
begins with what is kept and ends with what is hidden. R (regular) has (3, .15) and (8, .15); X (extreme:
mean >= 12 or rate >= .3) has (3, .5), (8, .5), (64, .15) and (64, .5); S (sequential) hides the end of a
text, one span of round(L / 4) tokens on average, all lengths around that equally likely:
    R, X:   [mode] kept_1 <0> kept_2 <1> …  <0> hidden_1 <1> hidden_2 … end-of-text
    S:      [mode] kept hidden
Only what follows the last kept token or sentinel <i> is learned. Inputs and targets form one document: in
a decoder-only model the inputs attend to each other in both directions and the targets to what precedes
them; in a model with an encoder (``type = "t5"``) the encoder reads the inputs. Name it after ``pack``. A
text is a document's part of a row or, since sentinels take room, a random stretch of it that fits; parts
of fewer than 5 positions get S. All tokens count as text, including the user's turns of a chat.

The modes are tokens of the tokenizer, so that fine-tuning, evaluation and prompts can have them. The corpus
stage gives it them, and with ``prefix`` lets all texts begin with one of them:
    { kind = "corpus", vocab_size = 32768, control_tokens = ["[R]", "[X]", "[S]"], prefix = "[S]", … }
That prefix stays with the tokenizer, and so with the model: documents that are evaluated (``held_out``),
those of later stages, tasks, samples and ``generate`` begin with it. Another corpus made with the same
tokenizer (``from = { tokenizer = … }``) may have another prefix, such as "[R]" for a classification; without
one the model would be asked in no mode, which it has never seen. A tokenizer that has reserved tokens needs
no new ones: name them in ``modes``. Sentinels are ids and not in the tokenizer: the model's last, as in T5,
sentinel i being ``last - i``. The model must have these ids beyond its tokenizer's (``model = { vocab_size =
… }``), or ``last`` must name ids that no text contains.

Of a row's tokens about a third are targets (with the default denoisers 31 % of the text, and the sentinels
and ends), in a causal stage all. The mode takes the place of a token and is never a target, so that in
evaluation a text has as many targets and bytes with a mode as without. Compare runs at equal tokens, as the
paper does, and say what they are at equal targets (``trained_tokens`` of a run).

Do not use it with short rows: where a text is shorter than mean / rate its denoiser hides a single span. The
preview shows the counts.

Errors: modes that the tokenizer does not have; too few ids; control tokens that occur in a text; more spans
than sentinels; a model that cannot take such a mask.
State: ``shared``: last; modes, their tokens; front, the tokens that the tokenizer puts in front of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.lm.encoder_decoder import has_encoder
from trainwright.lm.losses import evaluating, field, token_losses

MODES = ("R", "X", "S")


class Ul2(Data):
    """Hides parts of each text, the targets, in one of several ways that a mode token announces."""

    spans: tuple[tuple[float, ...], ...] = (
        (3.0, 0.15),
        (8.0, 0.15),
        (3.0, 0.5),
        (8.0, 0.5),
        (64.0, 0.15),
        (64.0, 0.5),
    )
    """The denoisers R and X: mean length of a hidden span, and share of hidden tokens."""
    sequential: float = 0.25
    """The denoiser S: mean share of hidden tokens, at the end."""
    weights: tuple[float, ...] = ()
    """Relative frequency of each denoiser, S last; equal by default."""
    modes: tuple[str, str, str] = ("[R]", "[X]", "[S]")
    """Tokens of the tokenizer that announce R, X and S."""
    sentinels: int = 100
    """Number of sentinel tokens: the most spans of a text."""
    last: int | None = None
    """Id of the first sentinel, from which the others count down; by default the model's last."""
    bidirectional: bool = True
    """Whether the inputs attend to each other in both directions."""
    example: ClassVar[dict[str, Any]] = {
        "spans": ((3.0, 0.15), (3.0, 0.5)),
        "modes": ("~", "^", "`"),
        "sentinels": 12,
        "last": 222,
    }

    def __post_init__(self) -> None:
        for pair in self.spans:
            if len(pair) != 2 or pair[0] < 1 or not 0 < pair[1] < 1:
                raise ValueError(
                    "spans are pairs of a mean length (1 or more) and a share between 0 and 1, not "
                    f"{list(pair)}"
                )
        if not 0 < self.sequential < 1:
            raise ValueError(f"sequential must be between 0 and 1, not {self.sequential}")
        if self.weights and (
            len(self.weights) != len(self.spans) + 1 or min(self.weights) < 0 or not sum(self.weights)
        ):
            raise ValueError(
                f"weights must be a number for each of the {len(self.spans)} spans and one for S behind "
                f"them, not {list(self.weights)}"
            )
        if self.sentinels < 1:
            raise ValueError(f"sentinels must be 1 or more, not {self.sentinels}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        size: int = model.get_input_embeddings().num_embeddings
        known = len(ctx.tokenizer) if ctx.tokenizer is not None else 0
        last = size - 1 if self.last is None else self.last
        if last >= size or last < self.sentinels - 1:
            raise UserError(
                f"ul2: {self.sentinels} sentinels up to the id {last} do not fit the model's {size} ids."
            )
        if self.last is None and known > last - self.sentinels + 1:
            raise UserError(
                f"ul2: the tokenizer has {known} tokens and the model {size} ids, which leaves no room for "
                f"{self.sentinels} sentinels: make the model with vocab_size = {known + self.sentinels}, "
                "lower sentinels, or set last to reserved ids."
            )
        if self.bidirectional:
            check_both_ways(model, ctx)
        return {
            "shared": {"last": last, "modes": self.mode_ids(ctx), "front": families.front(ctx.tokenizer)}
        }

    def mode_ids(self, ctx: Context) -> list[int]:
        """The modes' tokens.

        Raises:
            UserError: the tokenizer does not have one of them, or there is none.
        """
        if ctx.tokenizer is None:
            raise UserError("ul2: the stage has no tokenizer, and so no tokens of the modes.")
        found: list[int] = []
        for name in self.modes:
            ids = ctx.tokenizer(name, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise UserError(
                    f"ul2: {name!r} is no token of the tokenizer: give the corpus stage control_tokens = "
                    f"{list(self.modes)}, or set modes to tokens that it has."
                )
            found += ids
        return found

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch, shared = pull(), state["shared"]
        ids, first = field(batch, "input_ids"), ctx.rows(ctx.batch_rows).start
        made = {
            "input_ids": torch.zeros_like(ids),
            "targets": torch.full_like(ids, UNTRAINED),
            "document": torch.full_like(ids, -1),
        }
        prefix = torch.zeros_like(ids, dtype=torch.bool)
        for r in range(len(ids)):
            rng = ctx.rng(f"ul2/{first + r}")
            for text in texts(batch, r):
                text = text.without(shared["front"])
                self.check(text.tokens, shared)
                tokens, given = self.corrupted(text, shared, ctx.tokenizer, rng)
                end = text.at + len(tokens) - 1
                made["input_ids"][r, text.at : end] = torch.tensor(tokens[:-1])
                made["targets"][r, text.at + given - 1 : end] = torch.tensor(tokens[given:])
                made["document"][r, text.at : end] = text.number
                prefix[r, text.at : min(text.at + given, end)] = True
        goes_on = (batch["position_ids"][:, 1:] != 0) & (made["targets"][:, :-1] != UNTRAINED)
        # into padding too
        made["input_ids"][:, 1:] = torch.where(goes_on, made["targets"][:, :-1], made["input_ids"][:, 1:])
        return batch | made | ({"prefix": prefix} if self.bidirectional else {})

    def check(self, tokens: list[int], shared: dict[str, Any]) -> None:
        """Refuse a text with control tokens in it."""
        last, modes = shared["last"], set(shared["modes"])
        strange = next((t for t in tokens if last - self.sentinels < t <= last or t in modes), None)
        if strange is not None:
            raise UserError(
                f"ul2: a text has the token {strange}, which is "
                + (f"a mode: set modes, which are {list(self.modes)}, " if strange in modes else
                   f"a sentinel, as all of {last - self.sentinels + 1} to {last}: set last ")
                + "to what no text has."
            )

    def corrupted(
        self, text: Text, shared: dict[str, Any], tokenizer: Any, rng: torch.Generator
    ) -> tuple[list[int], int]:
        """The tokens of an example, and how many of them are input."""
        last, modes = shared["last"], shared["modes"]
        weights = torch.tensor(self.weights or (1.0,) * (len(self.spans) + 1))
        which = int(torch.multinomial(weights, 1, generator=rng))
        if which == len(self.spans) or not (size := longest(len(text.tokens), text.room, *self.spans[which])):
            return self.sequence(text, modes, rng)
        mean, rate = self.spans[which]
        hidden, n = counts(size, mean, rate)
        if n > self.sentinels:
            raise UserError(
                f"ul2: a text of {size} tokens has {n} spans of {mean:g} in the mean at a rate of {rate:g}; "
                f"set sentinels to {n} or more, not {self.sentinels}."
            )
        tokens, given, wanted = (
            stretch(text.tokens, size, rng),
            [modes[MODES.index(mode(mean, rate))]],
            list[int](),
        )
        at, sizes = 0, zip(parts(size - hidden, n, rng), parts(hidden, n, rng), strict=True)
        for i, (keep, hide) in enumerate(sizes):
            given += [*tokens[at : at + keep], last - i]
            wanted += [last - i, *tokens[at + keep : at + keep + hide]]
            at += keep + hide
        end = [] if tokenizer is None or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return given + wanted + end, len(given)

    def sequence(self, text: Text, modes: list[int], rng: torch.Generator) -> tuple[list[int], int]:
        """An example of S; of a single token nothing is learned."""
        tokens = stretch(text.tokens, min(len(text.tokens), text.room), rng)
        hidden = ending(len(tokens), self.sequential, rng) if len(tokens) > 1 else 0
        return [modes[MODES.index("S")], *tokens], 1 + len(tokens) - hidden

    def preview(self, batch: Batch, ctx: Context) -> str:
        room = batch["input_ids"].shape[1]
        told = []
        for mean, rate in self.spans:
            if size := longest(room, room, mean, rate):
                hidden, n = counts(size, mean, rate)
                told.append(
                    f"{mode(mean, rate)} ({mean:g}, {rate:g}) has {size} tokens of text, {hidden} of them "
                    f"hidden in {n}"
                )
        return f"ul2, hidden spans in {room} positions: " + "; ".join(
            [*told, f"S hides {self.sequential:g} of the text in 1"]
        )


def mode(mean: float, rate: float) -> str:
    """R or X: X for long spans or a high share."""
    return MODES[int(mean >= 12 or rate >= 0.3)]


class Text(NamedTuple):
    """A document's part of a row: its start, its number in the row, its positions, and its tokens."""

    at: int
    number: int
    room: int
    tokens: list[int]

    def without(self, front: list[int]) -> Text:
        """The same without what its tokenizer has put in front of it."""
        begins = bool(front) and self.tokens[: len(front)] == front
        return self._replace(tokens=self.tokens[len(front) :]) if begins else self


def texts(batch: Batch, row: int) -> Iterator[Text]:
    """The texts of a row, each with the token after its last position, if known."""
    ids, targets, documents = (batch[n][row].tolist() for n in ("input_ids", "targets", "document"))
    for number, group in groupby(range(len(ids)), key=documents.__getitem__):
        places = list(group)
        at, end = places[0], places[-1] + 1
        if number >= 0:
            after = [t for t in targets[end - 1 : end] if t != UNTRAINED]
            yield Text(at, number, end - at, ids[at:end] + after)


def counts(size: int, mean: float, rate: float) -> tuple[int, int]:
    """How many of ``size`` tokens to hide, in how many spans: at least one, and all separated."""
    hidden = min(max(round(size * rate), 1), size - 1)
    return hidden, min(max(round(hidden / mean), 1), hidden, size - hidden)


@lru_cache(maxsize=4096)
def longest(have: int, room: int, mean: float, rate: float) -> int:
    """The longest of ``have`` tokens whose example fits into ``room`` positions; 0 if no two do.

    An example of L tokens in n spans has L + 2 n + 2 tokens (with mode and end), all read but the last.
    """
    sizes = range(min(have, room - 3), 1, -1)
    return next((size for size in sizes if size + 2 * counts(size, mean, rate)[1] + 1 <= room), 0)


def parts(total: int, n: int, rng: torch.Generator) -> list[int]:
    """``total`` cut into ``n`` parts of at least 1, all cuts equally likely."""
    cuts = torch.randperm(total - 1, generator=rng)[: n - 1].sort().values + 1
    edges = [0, *cuts.tolist(), total]
    return [b - a for a, b in pairwise(edges)]


def stretch(tokens: list[int], size: int, rng: torch.Generator) -> list[int]:
    """A random stretch of ``size`` tokens."""
    at = int(torch.randint(len(tokens) - size + 1, (), generator=rng))
    return tokens[at : at + size]


def ending(size: int, rate: float, rng: torch.Generator) -> int:
    """How many of ``size`` tokens to hide at the end: ``rate`` of them on average, uniformly around that."""
    mean, _ = counts(size, 1.0, rate)
    spread = min(mean, size - mean) - 1
    return mean - spread + int(torch.randint(2 * spread + 1, (), generator=rng))


def check_both_ways(model: nn.Module, ctx: Context) -> None:
    """Check that a position of the prefix sees all of the prefix and nothing after it. An encoder does.

    Raises:
        UserError: it does not.
    """
    if has_encoder(model):
        return
    ids = torch.arange(8).repeat(3, 1)
    ids[1, 3], ids[2, 6] = 0, 0  # the last of the prefix, and one after it
    batch = {
        "input_ids": ids,
        "targets": torch.full_like(ids, UNTRAINED),
        "position_ids": torch.arange(8).repeat(3, 1),
    }
    batch["targets"][:, 0], batch["prefix"] = 1, torch.arange(8).repeat(3, 1) < 4
    with torch.no_grad(), evaluating(model), torch.autocast(ctx.device.type, enabled=False):
        losses = token_losses(model, {n: t.to(ctx.device) for n, t in batch.items()}, ctx)[:, 0]
    inside, behind = (losses[1:] - losses[0]).abs().tolist()
    if not inside > 10 * behind:
        raise UserError(
            f"the attention of a {type(model).__name__} cannot be opened to what stands behind a token: set "
            "bidirectional = false."
        )
