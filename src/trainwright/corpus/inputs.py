"""Where the fields of documents become what a model reads: the one place for tokens, pixels and classes.

Of R documents and rows of at most L tokens:

    text       input_ids, attention_mask, targets, position_ids [R, L]    the tokens of the corpus' shards
    chosen     chosen_ids, chosen_attention_mask, chosen_targets [R, L]   prompt and this answer of a pair
    rejected   rejected_ids, rejected_attention_mask, rejected_targets    the prompt and that one
    reference  chosen_reference, rejected_reference [R] float32           what a frozen model makes of them
    teacher    teacher_ids, teacher_logp [R, L, K]                        likeliest next tokens of a teacher
    image      pixel_values [R, 3, H, W] float32                          resized, cropped, normalized
    label      labels [R] int64                                           a number, or the class' place
    number     numbers [R] float32

``targets`` hold the next token, -100 where nothing is learned: at the last token, on padding, on what the
assistant does not say, and on all of a pair's prompt. What is too long is cut at its end, a pair first at the
beginning of its prompt, so that something is left to compare. A conversation is rendered once, by the chat
template of the corpus.
"""
from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainwright.core.errors import UserError, suggest
from trainwright.core.files import expected
from trainwright.core.method import UNTRAINED
from trainwright.corpus import media
from trainwright.corpus.chat import BY_TURN, Chat
from trainwright.corpus.columns import CHOSEN, ID, LABEL, MESSAGES, PROMPT, REJECTED, TEXT, is_number
from trainwright.corpus.tokens import Corpus, Document, Encoder

if TYPE_CHECKING:
    from trainwright.families.image_text import Pictures

Arrays = dict[str, NDArray[Any]]
Row = dict[str, Any]
Said = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""Tokens of a document, and which of them are learned."""
IMAGE, NUMBER, REFERENCE, TEACHER = "image", "number", "reference", "teacher"
NEEDS: dict[str, tuple[str, ...]] = {
    TEXT: (TEXT, MESSAGES), CHOSEN: (PROMPT, CHOSEN), REJECTED: (PROMPT, REJECTED), IMAGE: (IMAGE,),
    LABEL: (LABEL,), NUMBER: (NUMBER,), REFERENCE: (REFERENCE,), TEACHER: (TEACHER,)}
"""The fields that can become inputs, and the columns that each is made of."""


class Pairs(NamedTuple):
    """What of preference pairs a person should hear of."""

    many: int
    equal: int
    """Pairs of which both answers are the same tokens, within the length of a row."""
    empty: int
    """Pairs with an answer that says nothing: at most the token that ends it is learned."""
    cut: int
    """Pairs that lose tokens, since prompt and answer are longer than a row."""

    def __str__(self) -> str:
        return (f"of {self.many:,} pairs {self.equal:,} have two equal answers, {self.empty:,} an answer "
                f"that says nothing, and {self.cut:,} are cut to the length of a row")


class Inputs:
    """Makes inputs of documents.

    Args:
        corpus: whose documents they are.
        fields: some of ``NEEDS``.
        length: tokens of a row at most.
        pictures: how an image becomes pixels; needed for ``image``.
        tokenizer: for a corpus that has none of its own.

    Raises:
        UserError: a field that cannot become an input or that no document has, or no tokenizer for text.
    """

    def __init__(self, corpus: Corpus, fields: Sequence[str], length: int, pictures: Pictures | None = None,
                 tokenizer: Any = None) -> None:
        self.corpus, self.fields, self.length, self.pictures = corpus, tuple(fields), length, pictures
        for field in fields:
            if field not in NEEDS:
                raise UserError(f"the field {field!r} cannot become an input{suggest(field, NEEDS)}; these "
                                f"can: {', '.join(NEEDS)}.")
            if field not in corpus.columns:
                have = ", ".join(name for name in corpus.columns if name in NEEDS)
                raise UserError(f"no document of the corpus {corpus.folder.name} has a {field}; it has "
                                f"{have}.")
        if REFERENCE in fields and not {CHOSEN, REJECTED} <= set(fields):
            raise UserError("the field reference belongs to a pair: name chosen and rejected, too.")
        if TEACHER in fields and TEXT not in fields:
            raise UserError("the field teacher belongs to a text: name text, too.")
        if IMAGE in fields and pictures is None:
            raise UserError("images need a size: say image_size, or train a model that reads images.")
        spoken = {TEXT, CHOSEN, REJECTED} & set(fields)
        self.encoder = self._encoder(corpus.tokenizer or tokenizer, spoken) if spoken else None

    def _encoder(self, tokenizer: Any, fields: set[str]) -> Encoder:
        if tokenizer is None:
            raise UserError(f"the corpus {self.corpus.folder.name} has no tokenizer, and neither has the "
                            f"model: {', '.join(sorted(fields))} cannot become tokens.")
        talks = tokenizer.chat_template is not None and self.corpus.speaks
        chat = Chat(tokenizer, BY_TURN if self.corpus.by_turn else None) if talks else None
        return Encoder(tokenizer, chat)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        return tuple(dict.fromkeys((ID, *(column for field in self.fields for column in NEEDS[field]))))

    def batch(self, rows: Sequence[Row]) -> Arrays:
        """The inputs made of documents that have these columns.

        Raises:
            UserError: a document that has no value in one of the fields.
        """
        makers: dict[str, Callable[[Sequence[Row]], Arrays]] = {
            TEXT: self._texts, IMAGE: self._images, LABEL: self._labels, NUMBER: self._numbers}
        made: Arrays = {}
        for field in self.fields:
            if field not in (TEXT, CHOSEN, REJECTED):
                _check(rows, field)
            if field in (REFERENCE, TEACHER):
                continue
            made |= self._answers(rows, field) if field in (CHOSEN, REJECTED) else makers[field](rows)
        if TEACHER in self.fields:
            made |= self._teachers(rows, made)
        return made | self._references(rows, made) if REFERENCE in self.fields else made

    # ---- tokens ----------------------------------------------------------------------------------------

    def _texts(self, rows: Sequence[Row]) -> Arrays:
        assert self.encoder is not None
        given = [Document(row[ID], row[TEXT] or "", row[MESSAGES]) for row in rows]
        said = [(ids.astype(np.int64), np.ones(len(ids), bool) if mask is None else mask)
                for ids, mask, _ in self.encoder.encode(given)]
        ids, seen, targets = self._padded([self._cut(*one, keep_end=False) for one in said])
        places = np.tile(np.arange(self.length), (len(rows), 1))
        return {"input_ids": ids, "attention_mask": seen, "targets": targets, "position_ids": places}

    def _answers(self, rows: Sequence[Row], field: str) -> Arrays:
        _check(rows, field)
        said = [self._cut(*self.answer(row, field), keep_end=True) for row in rows]
        ids, seen, targets = self._padded(said)
        return {f"{field}_ids": ids, f"{field}_attention_mask": seen, f"{field}_targets": targets}

    def _references(self, rows: Sequence[Row], made: Arrays) -> Arrays:
        """What ``reference_log_probs`` has written of pairs, which must be these tokens."""
        with expected(self.corpus.folder):
            told = [json.loads(row[REFERENCE]) for row in rows]
            self._check_known(rows, told, fingerprints(made), "reference_log_probs")
            return {f"{field}_{REFERENCE}": np.array([one[field] for one in told], dtype=np.float32)
                    for field in (CHOSEN, REJECTED)}

    def _teachers(self, rows: Sequence[Row], made: Arrays) -> Arrays:
        """What ``teacher_logits`` has written of documents, which must be these tokens."""
        with expected(self.corpus.folder):
            told = [json.loads(row[TEACHER]) for row in rows]
            self._check_known(rows, told, fingerprints(made, ("input_ids", "targets")), "teacher_logits")
            learned, most = made["targets"] != UNTRAINED, told[0]["k"]
            if any(one["k"] != most for one in told):
                raise UserError("teacher_logits has kept more tokens (top_k) of some documents than of "
                                "others.")
            ids = np.zeros((*learned.shape, most), dtype=np.int64)
            logp = np.zeros((*learned.shape, most), dtype=np.float32)
            for row, one in enumerate(told):
                ids[row, learned[row]] = _unpacked(one["ids"], "<i4", most)
                logp[row, learned[row]] = _unpacked(one["logp"], "<f4", most)
        return {"teacher_ids": ids, "teacher_logp": logp}

    def _check_known(self, rows: Sequence[Row], told: Sequence[dict[str, Any]], of: Sequence[int],
                     who: str) -> None:
        """Refuse what a model has said of other tokens than these."""
        for row, one, these in zip(rows, told, of, strict=True):
            if one["of"] != these:
                raise UserError(f"the log-probabilities of the document {row[ID]!r} are those of other "
                                f"tokens: {who} needs the same length ({self.length}), tokenizer and "
                                "chat template as the stage that reads them.")

    def answer(self, row: Row, field: str) -> Said:
        """The tokens of a pair's prompt and one of its answers, of which the answer is learned."""
        assert self.encoder is not None
        prompt, answer = json.loads(row[PROMPT] or "null"), json.loads(row[field])
        if isinstance(answer, str):
            return self.encoder.continued(prompt or "", answer)
        if self.encoder.chat is None:
            raise UserError(f"the document {row[ID]!r} is a pair of conversations, and there is no chat "
                            "template.")
        before = prompt or []
        whole = json.dumps([*before, *answer])
        ids, mask, _ = self.encoder.chat.encode([row[ID]], [whole], [len(before)])[0]
        return ids, mask

    def survey(self, rows: Sequence[Row]) -> Pairs:
        """What there is to say of pairs."""
        equal = empty = cut = 0
        for field in (CHOSEN, REJECTED):
            _check(rows, field)
        for row in rows:
            whole = [self.answer(row, field) for field in (CHOSEN, REJECTED)]
            kept = [self._cut(*one, keep_end=True) for one in whole]
            equal += all(np.array_equal(a, b) for a, b in zip(*kept, strict=True))
            empty += any(learned.sum() <= 1 for _, learned in whole)
            cut += any(len(ids) > self.length for ids, _ in whole)
        return Pairs(len(rows), equal, empty, cut)

    def _cut(self, ids: NDArray[np.int64], learned: NDArray[np.bool_], *, keep_end: bool) -> Said:
        """At most ``length`` tokens: with ``keep_end`` as much is taken off in front as is not learned."""
        first = int(learned[1:].argmax()) if keep_end and learned[1:].any() else 0
        begin = min(first, max(0, len(ids) - self.length))
        return ids[begin:begin + self.length], learned[begin:begin + self.length]

    def _padded(self, said: Sequence[Said]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """``ids``, ``attention_mask`` and ``targets`` [R, L] of documents, each in a row of its own."""
        shape = len(said), self.length
        ids, seen = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        targets = np.full(shape, UNTRAINED, dtype=np.int64)
        for r, (tokens, learned) in enumerate(said):
            ids[r, :len(tokens)], seen[r, :len(tokens)] = tokens, 1
            targets[r, :max(0, len(tokens) - 1)] = np.where(learned[1:], tokens[1:], UNTRAINED)
        return ids, seen, targets

    # ---- pixels and classes ----------------------------------------------------------------------------

    def _images(self, rows: Sequence[Row]) -> Arrays:
        assert self.pictures is not None
        files = [media.path(self.corpus.folder / media.FOLDER, row[IMAGE]) for row in rows]
        return {"pixel_values": np.stack([pixels(file, self.pictures) for file in files])}

    def _labels(self, rows: Sequence[Row]) -> Arrays:
        numbers = all(is_number(label) for label in self.corpus.labels)
        place = {label: int(label) if numbers else i for i, label in enumerate(self.corpus.labels)}
        return {"labels": np.array([place[row[LABEL]] for row in rows], dtype=np.int64)}

    def _numbers(self, rows: Sequence[Row]) -> Arrays:
        return {"numbers": np.array([row[NUMBER] for row in rows], dtype=np.float32)}


def _check(rows: Sequence[Row], field: str) -> None:
    if bare := [row[ID] for row in rows if row[field] is None]:
        raise UserError(f"the document {bare[0]!r} has no {field}: name the domains whose documents have "
                        "one.")


NARROWEST = 50
"""How many times as long as the other one a side of an image may be."""
PAIR = tuple(f"{field}_{part}" for field in (CHOSEN, REJECTED) for part in ("ids", "targets"))


def fingerprints(made: Mapping[str, Any], names: Sequence[str] = PAIR) -> list[int]:
    """A checksum of each row's tokens and of which of them are learned, of arrays or tensors."""
    arrays = [np.ascontiguousarray(made[name].tolist(), dtype="<i8") for name in names]
    return [zlib.crc32(b"".join(array[row].tobytes() for array in arrays)) for row in range(len(arrays[0]))]


def _unpacked(packed: str, kind: str, columns: int) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(packed), dtype=kind).reshape(-1, columns)


def pixels(file: Path | bytes, how: Pictures) -> NDArray[np.float32]:
    """[3, H, W]: an image in RGB, its shorter side resized (bicubic), the middle cropped, normalized by
    channel.

    Raises:
        UserError: it is no image that can be read, or so narrow that next to nothing of it would be seen.
    """
    from PIL import Image
    side = how.image_size
    with media.picture(file) as opened:
        image = opened.convert("RGB")
    short = min(image.size)
    if max(image.size) > NARROWEST * short:
        raise UserError(f"an image of {image.width} x {image.height} points is too narrow: one side may be "
                        f"at most {NARROWEST} times as long as the other.")
    width, height = (side * one // short for one in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    shown = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    values = np.asarray(shown, dtype=np.float32) / 255
    mean, std = (np.array(one, dtype=np.float32) for one in (how.mean, how.std))
    return ((values - mean) / std).transpose(2, 0, 1)
