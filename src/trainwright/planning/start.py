"""A commented recipe to begin with, for a model and data that were looked at.

What the files of ``templates/`` leave open is found out here: whether the data are conversations, documents
or pairs, how long they are in the model's own tokens, what marks the answers, and how many rows at a time
fit into memory. The recipe is read as ``run`` reads it before it is written.
"""

from __future__ import annotations

import json
import shlex
import string
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwright import families
from trainwright.core import hardware, registry
from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.files import write_text
from trainwright.core.recipe import parse
from trainwright.core.shown import plain
from trainwright.corpus.chat import BY_TURN, MARKS, Chat
from trainwright.corpus.documents import empty, stream
from trainwright.corpus.ends import give_end
from trainwright.life.jobs import Source, source_of
from trainwright.planning.templates import FOLDER, templates
from trainwright.storage.store import Store

NEEDS = {"chat": "conversation", "prefer": "pair"}
"""What the data must be for a template."""
KINDS = {"conversation": "conversations", "pair": "pairs of a better and a worse answer", "text": "documents"}
WORDS = 4096
"""Entries of a tokenizer that is trained here."""
LOOKED = 1000
"""Documents that are looked at."""
LENGTHS = (256, 512, 1024, 2048, 4096)
WITHIN = 0.95
"""Share of the documents that a row holds whole."""
TITLES = {"chat": "Tuned on", "continue": "Further on", "compare": "Which way to tune on",
          "curate": "Made of", "prefer": "What is preferred in"}
PASSES = {"chat": 3, "prefer": 1, "continue": 1, "compare": 1}
LEAST, MOST = 30, 3_000_000
"""Steps that training has at least, and tokens at most."""
SHARE = 0.6
"""Of the free memory, what a run is meant to take."""


@dataclass(frozen=True)
class Seen:
    """What was found out of data and model."""

    kind: str
    documents: int
    more: bool
    """Whether there are more documents than were looked at."""
    tokens: list[int]
    """Of each document; empty without a tokenizer."""
    domain: str
    first: str
    """The beginning of the first document, or of the first thing that is asked."""
    template: str | None
    """The setting ``chat_template``; None where the tokenizer's own serves as it is."""
    notes: tuple[str, ...]


def write(name: str, model: str | None, data: str, out: Path, store: Store,
          columns: str | None = None) -> list[str]:
    """Write the recipe and return what was seen, a line each.

    Args:
        columns: those of other names, as ``prompt=question,answer=reply``.

    Raises:
        UserError: no such template, data that are not what it needs, a file that is there already.
    """
    if name not in templates():
        raise UserError(f"init: there is no template {name!r}{suggest(name, templates())}.")
    if out.exists():
        raise UserError(f"{out} is there already: name another file with --out.")
    if model is None and name != "curate":
        raise UserError(f"init: the template {name!r} needs a model: --model, with the folder of a "
                        "checkpoint, package://NAME or hf://OWNER/NAME.")
    source = source_of(model, Path(), {}, "--model") if model else None
    tokenizer = families.load_tokenizer(_place(source, store), "--model") if source else None
    if source and tokenizer is None:
        raise UserError(f"--model: {model} has no tokenizer.")
    named = _columns(columns)
    seen = look(data, tokenizer, named)
    if name in NEEDS and seen.kind != NEEDS[name]:
        raise UserError(f"--data: {data} holds {KINDS[seen.kind]}, and {name!r} needs {KINDS[NEEDS[name]]}; "
                        f"{'try continue' if seen.kind == 'text' else 'see trainwright show text'}.")
    config = source.config(store, "--model") if source else None
    fields = _fields(name, model, data, out, seen, config) | {"columns": _columns_setting(named)}
    made = string.Template((FOLDER / f"{name}.toml").read_text(encoding="utf-8")).substitute(fields)
    made = "\n".join(line.rstrip() for line in made.split("\n") if line != "\0")
    stages = {k: v for k, v in tomllib.loads(made).items() if k not in ("compare", "arm")}
    parse(stages, out.resolve(), made)
    write_text(out, made)
    return [f"data: {fields['seen']}", *([f"rows: {fields['lengths']}"] if seen.tokens else []), *seen.notes]


def _place(source: Source, store: Store) -> Any:
    return source.location if source.location.startswith("hf://") else source.path(store, "--model")


# ---- the data ------------------------------------------------------------------------------------------


def _columns(named: str | None) -> dict[str, str]:
    """``prompt=question,answer=reply`` as the setting of the method."""
    pairs = [one.partition("=") for one in named.split(",")] if named else []
    if any(not (name.strip() and column.strip()) for name, _, column in pairs):
        raise UserError(f"--columns: {plain(named or '')} is no list such as prompt=question,answer=reply.")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _columns_setting(named: dict[str, str]) -> str:
    """What follows ``paths`` in a recipe."""
    inner = ", ".join(f"{name} = {_quoted(column)}" for name, column in named.items())
    return f", columns = {{ {inner} }}" if inner else ""


def look(data: str, tokenizer: Any, columns: dict[str, str]) -> Seen:
    """The first documents of a file, a folder or a data set, in a model's tokens where it has a tokenizer."""
    method = registry.create({"use": "text", "paths": [data], "columns": columns}, Path(), "--data")
    table = method.apply(empty(), Context()).limit(LOOKED + 1)  # type: ignore[attr-defined]
    rows = [row for batch in stream(table) for row in batch.to_pylist()]
    if not rows:
        raise UserError(f"--data: {data} holds no document.")
    more, rows = len(rows) > LOOKED, rows[:LOOKED]
    kinds = ["pair" if r["chosen"] is not None else "conversation" if r["messages"] else "text" for r in rows]
    kind = max(set(kinds), key=kinds.count)
    if len(set(kinds)) > 1:
        other = sum(k != kind for k in kinds)
        raise UserError(f"--data: {data} mixes {KINDS[kind]} with other documents ({other} of {len(kinds)}): "
                        "put them into files of their own.")
    notes: list[str] = []
    talks = [_messages(row, kind) for row in rows]
    spoken = kind == "conversation" or (kind == "pair" and talks[0] is not None)
    template = None
    if tokenizer is not None:
        if taken := give_end(tokenizer):
            notes.append(f"tokenizer: it names no end of text; {taken} is taken for it")
        if spoken:
            template, chat = _template(tokenizer, talks, notes)
            tokens = [len(ids) for ids, _, _ in chat.encode([r["id"] for r in rows], talks)]
        else:
            tokens = [len(one) + 1 for one in tokenizer([r["text"] for r in rows])["input_ids"]]
    else:
        tokens = []
    first = _asked(talks[0]) if spoken else rows[0]["text"]
    return Seen(kind, len(rows), more, tokens, rows[0]["domain"], " ".join(first.split())[:120], template,
                tuple(notes))


def _messages(row: dict[str, Any], kind: str) -> Any:
    """The conversation of a row as JSON: of a pair, with the better answer."""
    if kind == "conversation":
        return row["messages"]
    prompt, chosen = (json.loads(row[n]) if row[n] else None for n in ("prompt", "chosen")) \
        if kind == "pair" else (None, None)
    return json.dumps([*(prompt or []), *chosen]) if isinstance(chosen, list) else None


def _asked(talk: str) -> str:
    """What a user says first, or else what anybody says first."""
    said = [(m["role"], m["content"]) for m in json.loads(talk) if isinstance(m.get("content"), str)]
    return next((content for role, content in said if role == "user"), said[0][1] if said else "")


def _template(tokenizer: Any, talks: list[str], notes: list[str]) -> tuple[str | None, Chat]:
    """The setting with which what the assistant says can be told, and the template."""
    own = tokenizer.chat_template
    choices = [None] if own and MARKS.search(str(own)) else [BY_TURN] if own else []
    why = "" if own else "the tokenizer has no chat template"
    for choice in [*choices, "chatml"]:
        try:
            chat = Chat(tokenizer, choice)
            chat.encode([""] * len(talks), talks)
        except UserError as error:
            why = str(error)
            continue
        if why:
            notes.append(f"template: {choice}, since {why.rstrip('.')}")
        return choice, chat
    raise UserError(f"--data: {why}")


# ---- what the template leaves open ---------------------------------------------------------------------


def _fields(name: str, model: str | None, data: str, out: Path, seen: Seen, config: Any) -> dict[str, str]:
    """The text for each place of a template."""
    test = min(0.1, max(0.02, round(20 / seen.documents, 2)))
    own = _quoted(_local(model, out)) if model else ""
    fields = {"file": plain(shlex.quote(out.name)), "model": own, "data": _quoted(_local(data, out)),
              "seen": _counted(seen), "test": f"{test:g}", "title": _quoted(f"{TITLES[name]} {seen.domain}"),
              "question": _quoted(seen.first), "prompt": plain(shlex.quote(seen.first)),
              "metric": _quoted(f"loss/{seen.domain}"), "domain": _quoted(seen.domain),
              "objective": "supervised" if seen.kind == "conversation" else "next_token",
              "template": _template_line(seen), "tokenizer": f"tokenizer = {own}" if model
              else f"vocab_size = {WORDS}                                     # of a tokenizer trained on it"}
    if not seen.tokens or config is None:
        return fields
    most = families.positions_of(config) or LENGTHS[-1]
    rank = sorted(seen.tokens)[min(len(seen.tokens) - 1, int(WITHIN * len(seen.tokens)))]
    length = next((n for n in LENGTHS if n >= rank), LENGTHS[-1])
    length = min(length, most)
    whole = sum(n <= length for n in seen.tokens) / len(seen.tokens)
    passes = PASSES.get(name, 1)
    total = int(min(MOST, passes * sum(seen.tokens) * (1 - test)))
    rows = max((r for r in (1, 2, 4, 8, 16, 32) if total // (r * length) >= LEAST), default=1)
    tokens = max(total, LEAST * rows * length)
    longest = f"a row of {length} tokens holds {whole:.0%} of the {KINDS[seen.kind]} whole"
    said = f"{passes} times through what was looked at" if seen.more else f"{passes} times through the data"
    if tokens > total:
        said = f"{tokens / (total / passes):.0f} times through the data, which are few"
    fields |= {"length": str(length), "lengths": f"{longest.capitalize()}.", "tokens": f"{tokens:_}",
               "batch": str(rows * length), "passes": said,
               "accumulate": str(_parts(config, rows, length, name)),
               "steps": str(max(LEAST, passes * seen.documents // 8))}
    return fields


def _parts(config: Any, rows: int, length: int, name: str) -> int:
    """Micro-batches of a step that fit into the memory that is free, by a rough count."""
    model = families.skeleton(config, "--model")
    size = sum(p.numel() for p in model.parameters())
    hidden, layers = families.blocks_of(config)
    fixed = (4 if name in ("chat", "prefer") else 16) * size
    of_a_row = 80 * hidden * layers * length
    room = SHARE * hardware.memory_bytes() - fixed
    if room < of_a_row:
        return rows
    return min(n for n in range(1, rows + 1) if rows % n == 0 and (rows // n) * of_a_row <= room)


def _counted(seen: Seen) -> str:
    number = f"more than {seen.documents:,}" if seen.more else f"{seen.documents:,}"
    middle = f", of {sorted(seen.tokens)[len(seen.tokens) // 2]} tokens in the middle and at most "\
             f"{max(seen.tokens):,}" if seen.tokens else ""
    return f"{number} {KINDS[seen.kind] if seen.documents > 1 else seen.kind}{middle}."


def _template_line(seen: Seen) -> str:
    if seen.template is None:
        return "\0"
    why = "the model's own; answers are found turn by turn" if seen.template == BY_TURN \
        else "roles between <|im_start|> and <|im_end|>"
    return f'chat_template = "{seen.template}"                           # {why}'


def _local(name: str, out: Path) -> str:
    """A path as the recipe's folder sees it; addresses and packages as they are."""
    if "://" in name:
        return name
    place, folder = Path(name).expanduser().resolve(), out.resolve().parent
    return place.relative_to(folder).as_posix() if place.is_relative_to(folder) else place.as_posix()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
