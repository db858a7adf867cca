"""Building a corpus: documents through the curating methods, a tokenizer trained or loaded, tokens in shards,
one index.

The table is streamed three times (to Parquet, to the tokenizer's trainer, to the shards) and is never whole
in memory; only ids, domains and lengths are. What a reader selects does not depend on the order in which the
documents came.

A corpus made of an earlier one (``from.data``) begins with its documents for training and its tokenizer; the
documents that were kept back stay kept back, whatever the methods do, so that all corpora made of one are
measured on the same text.
"""
from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainwright.core.claims import name_all
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus import (
    beginnings,
    bpe,
    chat,
    documents,
    ends,
    left_out,
    media,
    provenance,
    splits,
    tokens,
)
from trainwright.corpus.columns import DOMAIN, ID, ORIGIN, SOURCE, TEXT, classes
from trainwright.corpus.editing import LEARNED, conversation

TRAINER_BYTES = 256 << 20
"""Bytes of text that a tokenizer is trained on at most: a larger corpus gives a sample of documents, by
hash."""

SAY_EVERY = 10.0
"""Seconds between two lines about tokens."""


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What a corpus stage says beside its methods."""

    data: Path | None = None
    """Folder of an earlier corpus whose documents to begin with."""
    tokenizer: str | None = None
    """Folder whose tokenizer to use; with neither it nor ``vocab_size`` documents are kept alone, without
    tokens."""
    vocab_size: int | None = None
    """Train a byte-level BPE of this size instead."""
    mask_token: bool = False
    """Give that tokenizer a mask token."""
    control_tokens: tuple[str, ...] = ()
    """Control tokens that the tokenizer is given where it lacks them."""
    prefix: str | None = None
    """Control token with which every text and every conversation begins."""
    tune: float = 0.01
    """Share of each domain's documents (by hash of the id) kept for tuning."""
    test: float = 0.02
    """Share of each domain's documents kept for evaluation."""
    chat_template: str | None = None
    """Template for conversations: a built-in name, a file, ``by_turn``; None: the tokenizer's own."""
    engine: Literal["native", "ray"] = "native"
    """What runs the table of documents."""


def build(folder: Path, methods: list[Curate], settings: CorpusSettings, ctx: Context, cache: Path,
          say: Callable[[str], None]) -> dict[str, Any]:
    """Fill ``folder`` with documents, tokenizer, shards and index; returns the figures of the manifest.

    Raises:
        UserError: no document with text, an id that occurs twice, no fitting chat template, nothing to learn.
    """
    earlier = documents.Earlier(settings.data) if settings.data else None
    table = _write_documents(folder, methods, settings, ctx, earlier)
    for name, text in ctx.texts.items():
        say(f"{name}: {text}")
    dropped = f", {table.empty:,} empty ones dropped" if table.empty else ""
    names = sorted(set(table.domains))
    where = f"the domain {names[0]}" if len(names) == 1 else f"{len(names)} domains ({', '.join(names)})"
    size = f"{table.bytes / 1e6:.1f} MB" if table.bytes >= 1e6 else f"{table.bytes / 1e3:.1f} kB"
    say(f"documents: {len(table.ids):,} ({size}) in {where}{dropped}")
    encoder = _encoder(folder, table, settings, say)
    figures = _tokenize(folder / "tokens", table, encoder, cache / "tokens", say)
    notes = {name: float(sum(value for value, _ in told)) for name, told in ctx.notes.items()}
    return figures | {"empty_documents": table.empty, "vocab_size": encoder.vocab_size if encoder else 0,
                      "curated": table.curated, "kept": table.kept, "media_bytes": table.media_bytes,
                      "notes": notes}


def _write_documents(folder: Path, methods: list[Curate], settings: CorpusSettings, ctx: Context,
                     earlier: documents.Earlier | None) -> documents.Table:
    documents.start(settings.engine)
    taps = folder / "taps"
    taps.mkdir()
    steps = _steps(methods, ctx.folder or taps, earlier is not None)
    frame = earlier.training() if earlier else documents.empty()
    for number, step in enumerate(steps):
        if step.method:
            step.scratch.mkdir(parents=True, exist_ok=True)
            frame = documents.standard(step.method.apply(frame, replace(ctx, folder=step.scratch)), step.name)
        frame = provenance.tapped(frame, taps, number, step.name)
    writer = documents.Writer(folder / "documents")
    try:
        for batch in documents.stream(frame):
            writer.add(pa.Table.from_batches([batch]))
        traced = _provenance(folder, taps, steps, writer.blank)
        if not writer.rows:
            raise UserError(_empty(provenance.counts(traced, [s.name for s in steps]), writer.found, methods))
        for rows in earlier.held(writer.schema) if earlier else ():
            writer.add(rows)
    finally:
        writer.close()
    table = writer.table()
    left_out.write(folder, traced, taps, table.files)
    table.curated, table.kept = provenance.counts(traced, [s.name for s in steps]), provenance.kept(traced)
    _refuse_twins(table)
    _split(table, traced, settings, earlier)
    places = [f / media.FOLDER for f in (ctx.folder or taps, settings.data) if f]
    table.media_bytes = media.collect(sorted(table.media), places, folder / media.FOLDER)
    shutil.rmtree(taps)
    return table


class _Step(NamedTuple):
    """A method under a name of its own (None: the documents of an earlier corpus), and its scratch."""

    name: str
    method: Curate | None
    scratch: Path


def _steps(methods: list[Curate], work: Path, earlier: bool) -> list[_Step]:
    used = [m.name for m in methods]
    named: list[tuple[str, Curate | None]] = [("from.data", None)] if earlier else []
    named += [(m.name if used.count(m.name) == 1 else name, m)
              for (name, _), m in zip(name_all(methods), methods, strict=True)]
    return [_Step(name, method, work / f"{number:03d}-{name}") for number, (name, method) in enumerate(named)]


def _provenance(folder: Path, taps: Path, steps: Sequence[_Step], blank: Sequence[str]) -> pa.Table:
    traced = provenance.trace(taps, [s.name for s in steps])
    usual = {s.name: provenance.words(s.method) for s in steps if s.method}
    traced = provenance.explained(traced, usual, {s.name: s.scratch for s in steps}, blank)
    pq.write_table(traced, folder / provenance.FILE, compression="zstd")
    return traced


def _split(table: documents.Table, traced: pa.Table, settings: CorpusSettings,
           earlier: documents.Earlier | None) -> None:
    written = traced.filter(traced[ORIGIN].is_valid())
    seen = dict(zip(written[ID].to_pylist(), written[ORIGIN].to_pylist(), strict=True))
    roots = splits.roots(table.origins, seen)
    if earlier is not None:
        table.splits = splits.kept(table.ids, roots, earlier.split)
        return
    wanted = pa.array(sorted(set(roots.values())), pa.large_string())
    known = traced.filter(pc.is_in(traced[ID], value_set=wanted))
    domains = dict(zip(known[ID].to_pylist(), known[DOMAIN].to_pylist(), strict=True))
    table.splits = splits.assign(table.ids, table.domains, settings.tune, settings.test, roots, domains)


def _empty(curated: list[dict[str, Any]], table: documents.Table, methods: list[Curate]) -> str:
    path = ", ".join(f"{row['out']:,} out of {row['method']}" for row in curated) or "no method"
    read = "; ".join(f"{m}" for m in methods)
    return (f"the corpus is empty: no document with text was left ({path}; {table.empty} were blank). Its "
            f"methods: {read}.")


def _refuse_twins(table: documents.Table) -> None:
    order = np.argsort(table.ids, kind="stable")
    same = np.flatnonzero(table.ids[order][1:] == table.ids[order][:-1])
    if len(same):
        places = order[same[0] : same[0] + 2]
        sources = [row[SOURCE] for i, row in enumerate(documents.rows(table, [SOURCE])) if i in places]
        raise UserError(f"{len(same):,} documents share an id with another, the first "
                        f"{table.ids[places[0]]!r} (from {sources[0]} and {sources[1]}): read each file "
                        "once, and give such documents different domains or ids.")


# ---- tokens ------------------------------------------------------------------------------------------


def _encoder(folder: Path, table: documents.Table, settings: CorpusSettings,
             say: Callable[[str], None]) -> tokens.Encoder | None:
    """What makes tokens of documents, saved to ``folder``; None for a corpus of documents alone."""
    tokenizer = _tokenizer(table, settings, say)
    if tokenizer is None:
        return None
    beginnings.add(tokenizer, settings.control_tokens)
    if settings.prefix:
        beginnings.begin(tokenizer, settings.prefix)
    talks = table.conversations or settings.chat_template
    talk = chat.Chat(tokenizer, settings.chat_template) if talks else None
    if talk is not None:
        talk.template = beginnings.template(tokenizer, talk.template)
        first = list(islice(_talks(table), chat.COMPARED))
        talk.check([name for name, _ in first], [messages for _, messages in first])
        tokenizer.chat_template = talk.template
    tokenizer.save_pretrained(folder)
    return tokens.Encoder(tokenizer, talk)


def _tokenizer(table: documents.Table, settings: CorpusSettings, say: Callable[[str], None]) -> Any:
    from trainwright.families import load_tokenizer
    if settings.vocab_size is not None:
        share = min(1.0, TRAINER_BYTES / max(table.bytes, 1))
        drawn = np.array([share == 1 or tokens.uniform(i, "tokenizer") < share for i in table.ids])
        wanted = (table.splits == 0) & drawn
        controls = [*chat.control_tokens(settings.chat_template), *settings.control_tokens]
        rows = zip(documents.rows(table, [TEXT]), wanted, strict=True)
        texts = (row[TEXT] for row, use in rows if use)
        made = bpe.train(texts, settings.vocab_size, controls, settings.mask_token)
        say(f"tokenizer: {len(made):,} tokens, byte-level BPE trained on {int(wanted.sum()):,} documents")
        if len(made) < settings.vocab_size:
            say(f"tokenizer: vocab_size = {settings.vocab_size:,} asked for more, but the text has nothing "
                "left to merge")
        return made
    if settings.tokenizer is None:
        return None
    loaded = load_tokenizer(Path(settings.tokenizer), "corpus")
    if loaded is None and settings.data == Path(settings.tokenizer):
        return None  # an earlier corpus of documents alone: so is this one
    if loaded is None or not loaded.is_fast:
        raise UserError(f"{settings.tokenizer} has no tokenizer.json: the corpus needs a tokenizer of the "
                        "tokenizers library.")
    if end := ends.give_end(loaded):
        say(f"tokenizer: it does not say what ends a text; {end} is taken, which it has")
    return loaded


def _talks(table: documents.Table) -> Iterator[tuple[str, str]]:
    """Id and messages of each document that is learned from messages."""
    for row in documents.rows(table, [ID, *LEARNED]) if table.conversations else ():
        if (talk := conversation(*(row[name] for name in LEARNED))) is not None:
            yield row[ID], talk


def _tokenize(out: Path, table: documents.Table, encoder: tokens.Encoder | None, cache: Path,
              say: Callable[[str], None]) -> dict[str, Any]:
    """Fill ``out`` with shards and the index; returns figures of both."""
    out.mkdir(parents=True, exist_ok=True)
    shards = _shards(out, table, encoder, cache, say) if encoder else [_no_tokens(table)]
    index = _index(table, shards)
    pq.write_table(index, out / "index.parquet", compression="zstd")
    facts = {"vocab_size": encoder.vocab_size if encoder else 0,
             "dtype": encoder.dtype.name if encoder else "uint16",
             "domains": sorted(set(table.domains)), "chat": any(s.masked for s in shards),
             "speaks": table.conversations > 0,
             "by_turn": bool(encoder and encoder.chat and encoder.chat.by_turn),
             "columns": table.columns, "labels": classes(table.labels)}
    (out / "tokens.json").write_text(json.dumps(facts))
    untrained = _untrained(table, index) if encoder else 0
    heard = (
        encoder.chat.survey(m for _, m in _talks(table)) if encoder and encoder.chat else chat.Survey(0, {})
    )
    figures: dict[str, Any] = {
        "documents": len(table.ids), "tokens": pc.sum(index["length"]).as_py(),
        "trained_tokens": pc.sum(index["trained"]).as_py(), "bytes": pc.sum(index["bytes"]).as_py(),
        "conversations": table.conversations, "untrained_documents": untrained,
        "empty_answers": heard.empty,
        "tokenized_now": sum(len(s.length) for s in shards if not s.cached) if encoder else 0,
        "from_cache": sum(len(s.length) for s in shards if s.cached), "domains": _by_domain(index)}
    silent = f"; {untrained:,} conversations have nothing to learn" if untrained else ""
    made = (f"{figures['tokens']:,} in {len(shards)} shards, {figures['from_cache']:,} documents from the "
            f"cache{silent}")
    say(f"tokens: {made if encoder else 'none, since there is no tokenizer'}")
    if heard.empty:
        say(f"conversations: {heard.empty:,} have an answer that says nothing, of which the end is learned")
    if heard.unread:
        say(f"conversations: the chat template does not read {', '.join(heard.unread)} of their messages")
    return figures


def _shards(out: Path, table: documents.Table, encoder: tokens.Encoder, cache: Path,
            say: Callable[[str], None]) -> list[tokens.Shard]:
    rows = (tokens.Document(r[ID], r[TEXT] or "", conversation(*(r[name] for name in LEARNED)))
            for r in documents.rows(table, [ID, TEXT, *LEARNED]))
    shards, told = [], time.monotonic()
    for shard in tokens.write(rows, encoder, cache, out):
        shards.append(shard)
        if shard.damaged:
            say(f"tokens: a shard in {cache} was not as it had been written, and is made again")
        if time.monotonic() - told > SAY_EVERY:
            told = time.monotonic()
            say(f"tokens: {sum(len(s.length) for s in shards):,} of {len(table.ids):,} documents")
    return shards


def _no_tokens(table: documents.Table) -> tokens.Shard:
    """In place of the shards of a corpus without a tokenizer."""
    sizes = [len((row[TEXT] or "").encode()) for row in documents.rows(table, [TEXT])]
    size = np.array(sizes, dtype=np.int64)
    return tokens.Shard(np.zeros_like(size), np.zeros_like(size), size, False, False)


def _untrained(table: documents.Table, index: pa.Table) -> int:
    """Conversations without a token to learn; a plain text of one token has none either but is no mistake."""
    talks = {name for name, _ in _talks(table)}
    untrained = sum(name in talks for name in index.filter(pc.equal(index["trained"], 0))["id"].to_pylist())
    if talks and untrained == len(talks):
        raise UserError(f"none of the {untrained:,} conversations has a token to learn: the assistant says "
                        "nothing in them; messages need turns of role 'assistant'.")
    return untrained


def _index(table: documents.Table, shards: Sequence[tokens.Shard]) -> pa.Table:
    """One row for each document, sorted by id, so that the order of the files never matters."""
    order = np.argsort(table.ids, kind="stable")
    number = np.concatenate([np.full(len(s.length), i, dtype=np.int64) for i, s in enumerate(shards)])
    offset = np.concatenate([np.cumsum(s.length) - s.length for s in shards])
    length, size, trained = (np.concatenate([getattr(s, name) for s in shards])
                             for name in ("length", "bytes", "trained"))
    split = np.array(tokens.SPLITS, dtype=object)[table.splits]
    return pa.table({
        **{name: pa.array(values[order], pa.string())
           for name, values in (("id", table.ids), ("domain", table.domains), ("split", split))},
        "shard": number[order], "offset": offset[order], "length": length[order], "bytes": size[order],
        "trained": trained[order]})


def _by_domain(index: pa.Table) -> dict[str, dict[str, dict[str, int]]]:
    """Documents, tokens, trained tokens and bytes of each domain and split."""
    numbers = ("length", "trained", "bytes")
    wanted = [("id", "count"), *((name, "sum") for name in numbers)]
    sums = index.group_by(["domain", "split"]).aggregate(wanted)
    found: dict[str, dict[str, dict[str, int]]] = {}
    for row in sorted(sums.to_pylist(), key=lambda r: (r["domain"], tokens.SPLITS.index(r["split"]))):
        found.setdefault(row["domain"], {})[row["split"]] = {
            "documents": row["id_count"], "tokens": row["length_sum"], "trained_tokens": row["trained_sum"],
            "bytes": row["bytes_sum"]}
    return found
