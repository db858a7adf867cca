"""Documents as tokens in memory-mapped shards, made once for each content, and the reader of them.

A shard holds a batch of documents and is kept in a cache under a hash of the tokenizer, the chat template and
the texts, so that a build tokenizes only what no build before it has. Where a batch ends depends on the ids
of its own documents, so that a document that is added or removed changes the batch it is in and no other.
"""
from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainwright.core.errors import UserError, suggest
from trainwright.core.files import MISREAD, expected, read_json, room
from trainwright.corpus.chat import Chat
from trainwright.storage.caches import SUMMED, sweep, vouch, vouched

if TYPE_CHECKING:
    from trainwright.corpus.examples import Examples

SPLITS = ("train", "tune", "test")
DOCUMENTS, BYTES = 4096, 8 << 20
"""About how many documents, or bytes of text, go into one shard; it never holds four times as many."""
AT_ONCE = 2 << 20
"""Bytes of text handed to the tokenizer in one call: its own account of a token takes a hundred bytes and
more."""
FORMAT = 1
"""Raised when the tokens of a text would come out otherwise, so that no older shard is taken from the
cache."""
MAPS = 64
"""Shards that are open at a time, in a whole process: each takes a file descriptor."""
CORPORA = 16
"""Corpora whose index is in memory at a time."""


class Document(NamedTuple):
    """A row of the table, as far as its tokens depend on it."""

    id: str
    content: str
    messages: str | None


class Shard(NamedTuple):
    """A batch of documents on disk; the arrays have one entry for each document, in the order of the file."""

    length: NDArray[np.int64]
    trained: NDArray[np.int64]
    bytes: NDArray[np.int64]
    cached: bool
    masked: bool
    damaged: bool = False
    """Whether the cache had it, and not as it was written."""


class Encoder:
    """A tokenizer, and a chat template where the corpus has conversations.

    Plain text becomes ``[what the tokenizer puts in front] tokens [end-of-text]``; a control token that
    stands in a text is encoded as the characters it is made of, never as the control token.
    """

    def __init__(self, tokenizer: Any, chat: Chat | None) -> None:
        from tokenizers import Tokenizer
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True
        self.end: int | None = tokenizer.eos_token_id
        self.chat = chat
        self.vocab_size = max(self.backend.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype = np.dtype(np.uint16 if self.vocab_size < 65536 else np.uint32)
        facts = f"{FORMAT}\n{self.end}\n{self.backend.to_str()}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()

    def key(self, batch: Sequence[Document]) -> str:
        """A hash of everything that the tokens of ``batch`` depend on."""
        key = hashlib.sha256(self.fingerprint.encode())
        if self.chat is not None and any(d.messages is not None for d in batch):
            key.update(self.chat.fingerprint.encode())
        for document in batch:
            content = (document.content if document.messages is None else document.messages).encode()
            key.update(b"%d %d\n" % (document.messages is not None, len(content)))
            key.update(content)
        return key.hexdigest()

    def encode(self, batch: Sequence[Document]) -> list[tuple[NDArray[Any], NDArray[np.bool_] | None, int]]:
        """For each document its tokens, the mask of the trained ones (None: all) and the UTF-8 bytes of its
        text."""
        found: list[Any] = [None] * len(batch)
        for places in _portions([i for i, d in enumerate(batch) if d.messages is None], batch):
            texts = [batch[i].content for i in places]
            for i, text, encoding in zip(places, texts, self.backend.encode_batch_fast(texts), strict=True):
                ids = encoding.ids
                if self.end is not None and (not ids or ids[-1] != self.end):
                    ids.append(self.end)
                found[i] = np.array(ids, dtype=self.dtype), None, len(text.encode())
        for places in _portions([i for i, d in enumerate(batch) if d.messages is not None], batch):
            assert self.chat is not None
            names, conversations = [batch[i].id for i in places], [batch[i].messages or "" for i in places]
            for i, (ids, mask, size) in zip(places, self.chat.encode(names, conversations), strict=True):
                found[i] = ids.astype(self.dtype), mask, size
        return found

    def continued(self, prompt: str, answer: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The tokens of a text that goes on from a prompt, and which of them the prompt is not. The prompt
        has the same tokens whatever follows."""
        start = self.backend.encode(prompt).ids
        if prompt and start and start[-1] == self.end:
            start = start[:-1]
        rest = self.backend.encode(answer, add_special_tokens=False).ids
        ends = [] if self.end is None else [self.end]
        ids = np.array([*start, *rest, *ends], dtype=np.int64)
        return ids, np.arange(len(ids)) >= len(start)


def _portions(places: list[int], batch: Sequence[Document]) -> Iterator[list[int]]:
    portion: list[int] = []
    size = 0
    for i in places:
        portion.append(i)
        size += len(batch[i].messages or batch[i].content)
        if size >= AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def uniform(name: str, salt: str) -> float:
    """A number in [0, 1) that depends on the two strings alone."""
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=salt.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Cut a stream of documents where the ids say, at 4 × the aim at the latest."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        grown = len(document.messages or document.content)
        size += grown
        ends = uniform(document.id, "shard") < 1 / DOCUMENTS + grown / BYTES
        if ends or len(batch) >= 4 * DOCUMENTS or size >= 4 * BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write(documents: Iterable[Document], encoder: Encoder, cache: Path, out: Path) -> Iterator[Shard]:
    """Fill ``out`` with numbered shards, from the cache where it has them; yields each as it is there."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    sweep(room(cache))
    out.mkdir(parents=True, exist_ok=True)
    for number, batch in enumerate(batches(documents)):
        kept, made = cache / encoder.key(batch), out / f"{number:05d}"
        shard = _cached(kept, encoder.dtype, len(batch))
        if shard is None:
            shard = _make(batch, encoder, made)._replace(damaged=kept.with_suffix(SUMMED).exists())
            _keep(shard, kept, made)
        else:
            for ending in (".bin", ".mask") if shard.masked else (".bin",):
                link(kept.with_suffix(ending), made.with_suffix(ending))
        yield shard


def _cached(kept: Path, dtype: np.dtype[Any], documents: int) -> Shard | None:
    """The shard of that name, if all of it is there, and as it was written."""
    if not vouched(kept.with_suffix(SUMMED)):
        return None
    try:
        told = read_json(kept.with_suffix(".json"))
        length, trained, size = (np.array(told[name], dtype=np.int64)
                                 for name in ("length", "trained", "bytes"))
        size_there = kept.with_suffix(".bin").stat().st_size
        whole = size_there == int(length.sum()) * dtype.itemsize and len(length) == documents
        if told["masked"]:
            whole = whole and kept.with_suffix(".mask").stat().st_size == int(length.sum())
        return Shard(length, trained, size, True, told["masked"]) if whole else None
    except (UserError, *MISREAD):
        return None


def _make(batch: Sequence[Document], encoder: Encoder, made: Path) -> Shard:
    encoded = encoder.encode(batch)
    masked = any(mask is not None for _, mask, _ in encoded)
    masks = [np.ones(len(ids), dtype=bool) if mask is None else mask for ids, mask, _ in encoded]
    _store(made.with_suffix(".bin"), np.concatenate([ids for ids, _, _ in encoded]))
    if masked:
        _store(made.with_suffix(".mask"), np.concatenate(masks).astype(np.uint8))
    length = np.array([len(ids) for ids, _, _ in encoded], dtype=np.int64)
    trained = np.array([int(mask[1:].sum()) for mask in masks], dtype=np.int64)
    return Shard(length, trained, np.array([size for _, _, size in encoded], dtype=np.int64), False, masked)


def _store(path: Path, array: NDArray[Any]) -> None:
    with open(path, "wb") as file:
        file.write(array.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _keep(shard: Shard, kept: Path, made: Path) -> None:
    for ending in (".bin", ".mask") if shard.masked else (".bin",):
        link(made.with_suffix(ending), kept.with_suffix(ending))
    told = {name: getattr(shard, name).tolist()
            for name in ("length", "trained", "bytes")} | {"masked": shard.masked}
    new = kept.with_suffix(f".json.{os.getpid()}")
    new.write_text(json.dumps(told))
    os.replace(new, kept.with_suffix(".json"))
    endings = (".json", ".bin", ".mask") if shard.masked else (".json", ".bin")
    vouch(*(kept.with_suffix(ending) for ending in endings))


def link(source: Path, target: Path) -> None:
    """``target`` as another name of the same file, or a copy where the file system has none; never half of
    one."""
    new = target.with_name(f"{target.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    try:
        os.link(source, new)
    except OSError:
        shutil.copyfile(source, new)
    os.replace(new, target)
    new.unlink(missing_ok=True)


@dataclass(frozen=True)
class Documents:
    """Where the documents of a selection lie, sorted by id: arrays of one length."""

    id: NDArray[np.object_]
    domain: NDArray[np.int64]
    """Index into the corpus' ``domains``."""
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    bytes: NDArray[np.int64]
    """UTF-8 bytes of the text."""
    trained: NDArray[np.int64]
    """Tokens that are learned: all but the first of a plain text, the assistant's of a conversation."""

    def __len__(self) -> int:
        return len(self.id)


class Corpus:
    """A corpus artifact, read where it lies."""

    def __init__(self, folder: Path) -> None:
        told = folder / "tokens" / "tokens.json"
        if not told.is_file():
            raise UserError(f"{folder} is no corpus: it has no tokens.")
        with expected(told):
            facts = read_json(told)
            self.folder = folder
            self.vocab_size: int = facts["vocab_size"]
            self.domains: tuple[str, ...] = tuple(facts["domains"])
            self.chat: bool = facts["chat"]
            self.columns: dict[str, str] = facts["columns"]
            """The kind of each column in which some document has a value (see ``columns.py``)."""
            self.labels: tuple[str, ...] = tuple(facts["labels"])
            """Classes of the column ``label``, in order."""
            self.by_turn: bool = facts["by_turn"]
            self.speaks: bool = facts["speaks"]
            """Whether some document is a conversation, or a pair of them."""
            self._dtype = np.dtype(facts["dtype"])

    @functools.cached_property
    def tokenizer(self) -> Any:
        from trainwright.families import load_tokenizer
        return load_tokenizer(self.folder, "corpus")

    @functools.cached_property
    def _index(self) -> Any:
        return pq.read_table(self.folder / "tokens" / "index.parquet")

    def select(self, split: str, domains: Sequence[str] = ()) -> Documents:
        """The documents of a split, in some domains or all. Raises a UserError where there are none."""
        if split not in SPLITS:
            raise UserError(f"the corpus has no split {split!r}{suggest(split, SPLITS)}.")
        for domain in domains:
            if domain not in self.domains:
                raise UserError(f"the corpus has no domain {domain!r}{suggest(domain, self.domains)}.")
        wanted = pc.equal(self._index["split"], split)
        if domains:
            wanted = pc.and_(wanted, pc.is_in(self._index["domain"], value_set=_strings(domains)))
        table = self._index.filter(wanted)
        if not table.num_rows:
            raise UserError(f"the corpus has no {split!r} document in {', '.join(domains or self.domains)}: "
                            "it takes three "
                            "documents of a domain, and a share above 0, to keep one back.")
        arrays = {name: table[name].to_numpy().astype(np.int64)
                  for name in ("shard", "offset", "length", "bytes", "trained")}
        domain = pc.index_in(table["domain"], value_set=_strings(self.domains)).to_numpy().astype(np.int64)
        return Documents(id=table["id"].to_numpy().astype(object), domain=domain, **arrays)

    def examples(self, split: str, domains: Sequence[str] = ()) -> Examples:
        """The documents of a split with their columns, in the order of ``select``. Raises a UserError where
        there are none."""
        from trainwright.corpus.examples import Examples
        found = self.select(split, domains)
        return Examples(self.folder, found.id, found.domain)

    def read(self, shard: int, offset: int, length: int) -> NDArray[np.int64]:
        """Tokens, int64."""
        whole = self._map(f"{shard:05d}.bin", self._dtype)
        if whole is None:
            raise UserError(f"{self.folder} lacks its shard {shard}: it was removed after the corpus was "
                            "opened.")
        return whole[offset : offset + length].astype(np.int64)

    def read_mask(self, shard: int, offset: int, length: int) -> NDArray[np.bool_]:
        """Which of those tokens are trained: all of them where the shard has no conversation."""
        whole = self._map(f"{shard:05d}.mask", np.dtype(np.uint8))
        return np.ones(length, dtype=bool) if whole is None else whole[offset : offset + length].astype(bool)

    def _map(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any] | None:
        return _mapped(self.folder / "tokens" / name, dtype)


@functools.lru_cache(MAPS)
def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """A file as an array. Nobody keeps it: it is closed once enough others have been read."""
    return np.memmap(path, dtype=dtype, mode="r") if path.is_file() else None


def _strings(values: Sequence[str]) -> Any:
    import pyarrow as pa
    return pa.array(values, pa.string())


@functools.lru_cache(CORPORA)
def open_corpus(folder: Path) -> Corpus:
    """The corpus in ``folder``, opened once."""
    return Corpus(folder)
