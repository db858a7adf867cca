"""Reading files into rows: plain text, JSON, Parquet and CSV, with the place of every mistake."""
from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainwright.core.errors import UserError

if TYPE_CHECKING:
    from trainwright.corpus.columns import Keep
    from trainwright.corpus.sources import Row

PLAIN = (".txt", ".md", ".rst", ".py")
ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".wav", ".flac", ".ogg", ".mp3")
"""Of images and sounds."""
MEDIA = ("image", "audio")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
         "bard": "assistant",
         "user": "user", "assistant": "assistant", "system": "system", "tool": "tool", "function": "tool",
         "observation": "tool"}
"""Who speaks in ``conversations`` (the ShareGPT convention), and the role that chat templates know."""


@dataclass(frozen=True)
class Reading:
    """How rows become documents."""

    domain: str
    field: str
    id: str
    invalid: str
    characters: int
    columns: dict[str, str]
    """Typed columns, by the name that they have in the file."""
    root: Path
    """Folder that paths of media start from."""
    keep: Keep | None
    """What keeps media."""


def suffix(name: str) -> str:
    """The ending that says how to read a file, without ``.gz``."""
    return Path(name.removesuffix(".gz")).suffix.lower()


def known() -> list[str]:
    return sorted([*PLAIN, *TABLES])


def read(path: Path, written: str, how: Reading) -> Iterator[Row]:
    """The documents of one file; ``written`` is its path as the recipe says it, which ids and errors use."""
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
            if suffix(path.name) in PLAIN:
                yield from _plain(file, written, how)
                return
            for line, row in TABLES[suffix(path.name)](file, written):
                yield row_to_document(row, written, line, how)
    except (OSError, EOFError) as error:
        raise UserError(f"cannot read {written}: {error}.") from None


def _plain(file: IO[bytes], written: str, how: Reading) -> Iterator[Row]:
    from trainwright.corpus.sources import document
    text = _decode(file.read(), written, how.invalid)
    for number, piece in enumerate(pieces(text, how.characters), 1):
        name = f"{how.domain}/{written}" + (f":{number}" if how.characters else "")
        yield document(id=name, text=piece, domain=how.domain, source=written)


def _decode(data: bytes, written: str, invalid: str) -> str:
    try:
        return data.decode("utf-8-sig", errors="strict" if invalid == "error" else "replace")
    except UnicodeDecodeError as error:
        raise UserError(f"{written} is not UTF-8 (byte {error.start}): convert it, or set "
                        'invalid = "replace".') from None


def pieces(text: str, characters: int) -> Iterator[str]:
    """Cut at blank lines into pieces of about ``characters``; joined they are the text. 0: the text as it
    is."""
    if not characters:
        yield text
        return
    held, size = [], 0
    for paragraph in text.split("\n\n"):
        if held and size + len(paragraph) > characters:
            yield "\n\n".join(held) + "\n\n"
            held, size = [], 0
        held.append(paragraph)
        size += len(paragraph) + 2
    yield "\n\n".join(held)


def _json(file: IO[bytes], written: str) -> Iterator[tuple[int, Any]]:
    """A JSON list of objects, or one object a line."""
    start = file.read(64).lstrip()
    file.seek(0)
    if not start.startswith(b"["):
        yield from _jsonl(file, written)
        return
    try:
        rows = json.load(file)
    except ValueError as error:
        raise UserError(f"{written} is no JSON: {error}.") from None
    yield from enumerate(rows, 1)


def _jsonl(file: IO[bytes], written: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            raise UserError(f"{written}, line {number}: this is no JSON object ({error}).") from None


def _csv(file: IO[bytes], written: str) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(sys.maxsize)  # a document may be longer than the 128 KiB that the module allows
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{written}, line {reader.line_num}: this row has not the "
                                    f"{len(reader.fieldnames or [])} columns that the first line names.")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{written}, line {reader.line_num}: {error}.") from None


def _parquet(file: IO[bytes], written: str) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    try:
        batches = pq.ParquetFile(file, pre_buffer=False).iter_batches(batch_size=1024)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                yield (number := number + 1), row
    except pa.ArrowException as error:
        raise UserError(f"{written} is no Parquet file that can be read: {error}.") from None


TABLES: dict[str, Callable[[IO[bytes], str], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


def row_to_document(row: Any, written: str, line: int, how: Reading) -> Row:
    """The document that one row of a table is."""
    from trainwright.corpus.sources import document
    where = f"{written}, row {line}"
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: a row is an object with columns, not {str(row)[:40]!r}.")
    if how.id and not isinstance(row.get(how.id), str | int):
        raise UserError(f"{where}: the column {how.id!r} (the setting id) must hold a string or a whole "
                        f"number; {_columns(row)}.")
    name = str(row[how.id]) if how.id else f"{how.domain}/{written}:{line}"
    columns, used = typed(row, how.columns, where)
    messages, spoken = (None, set()) if "chosen" in columns else conversation(row, where)
    viewed = messages is not None or "chosen" in columns
    text = "" if viewed or (how.field not in row and "image" in columns) else _text(row, how.field, where)
    used |= spoken | {"text" if viewed else how.field}
    rest = {key: value for key, value in row.items() if key not in used}
    try:
        return document(id=name, text=text, domain=how.domain, source=f"{written}:{line}", metadata=rest,
                        messages=messages, columns=columns, root=how.root, keep=how.keep)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None


def typed(row: Mapping[str, Any], named: Mapping[str, str], where: str) -> tuple[dict[str, Any], set[str]]:
    """The typed columns of a row, and the columns they stood in: those that the recipe names, and of the
    others a pair (``prompt``, ``chosen``, ``rejected``), a ``label``, an ``image``, an ``audio``."""
    if missing := [column for column in named.values() if column not in row]:
        raise UserError(f"{where}: there is no column {missing[0]!r} (the setting columns); {_columns(row)}.")
    found = {name: row[column] for name, column in named.items()}
    used = set(named.values())
    pair = {name: row.get(found_in) for name in ("prompt", "chosen", "rejected")
            if (found_in := named.get(name, name)) in row}
    if pair.get("chosen") is not None and pair.get("rejected") is not None:
        found |= preference(pair, where)
        used |= {named.get(name, name) for name in pair}
    for name in ("label", *MEDIA):
        if name not in found and name in row and _fits(name, row[name]):
            found[name] = row[name]
            used.add(name)
    return {name: value for name, value in found.items() if value is not None}, used


def _fits(name: str, value: Any) -> bool:
    """Whether a column that has the name of a typed one holds such a thing; else it is metadata."""
    if name == "label":
        return isinstance(value, str | int) and value != ""
    named = isinstance(value, str) and value != "" and "://" not in value
    return named or isinstance(value, bytes | Mapping)


def preference(pair: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Prompt, chosen and rejected of a pair. Those that are strings stay text. Of lists of messages the
    prompt is what both answers begin with, behind the column ``prompt`` where they do not repeat that."""
    answers = [pair["chosen"], pair["rejected"]]
    if all(isinstance(one, str) for one in answers) and isinstance(pair.get("prompt"), str | None):
        return dict(pair)
    chosen, rejected = ([_message(m, where) for m in _list(one, where, name)]
                        for one, name in zip(answers, ("chosen", "rejected"), strict=True))
    prompt = pair.get("prompt") or []
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    asked = [_message(m, where) for m in said]
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
                min(len(chosen), len(rejected)))
    shared = chosen[:same]
    if not chosen[same:] or not rejected[same:]:
        raise UserError(f"{where}: chosen and rejected are the same, or one is the beginning of the other.")
    before = shared if shared[:len(asked)] == asked else [*asked, *shared]
    return {"prompt": before, "chosen": chosen[same:], "rejected": rejected[same:]}


def beside(path: Path, named: Mapping[str, str]) -> Iterator[Path]:
    """Images and sounds in the folder of a table whose first row refers to one by its path."""
    if suffix(path.name) not in TABLES:
        return
    with gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb") as file:
        try:
            _, row = next(iter(TABLES[suffix(path.name)](file, path.name)), (0, {}))
        except UserError:                                    # told where the table is read
            return
    columns = [named.get(name, name) for name in MEDIA]
    if isinstance(row, Mapping) and any(isinstance(row.get(column), str) for column in columns):
        yield from (f for f in path.parent.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file())


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise UserError(f"{where}: there is no column {field!r}; {_columns(row)}: set field.")
    if row[field] is not None and not isinstance(row[field], str):
        raise UserError(f"{where}: the column {field!r} must hold text, not {str(row[field])[:40]!r}.")
    return row[field] or ""


def _columns(row: Mapping[str, Any]) -> str:
    return f"it has {', '.join(sorted(row))}"


def conversation(row: Mapping[str, Any], where: str) -> tuple[list[dict[str, Any]] | None, set[str]]:
    """Messages of a row and the columns they stood in: ``messages``, ``conversations``, or ``prompt`` and
    ``completion``."""
    if row.get("messages") is not None:
        return [_message(m, where) for m in _list(row["messages"], where, "messages")], {"messages"}
    if row.get("conversations") is not None:
        turns = _list(row["conversations"], where, "conversations")
        return [_message(_sharegpt(turn, where), where) for turn in turns], {"conversations"}
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return [{"role": "user", "content": prompt},
                {"role": "assistant", "content": completion}], {"prompt", "completion"}
    if isinstance(prompt, list) and isinstance(completion, list):
        return [_message(m, where) for m in [*prompt, *completion]], {"prompt", "completion"}
    return None, set()


def _list(value: Any, where: str, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: {column} must be a list of at least one message.")
    return value


def _sharegpt(turn: Any, where: str) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    if turn["from"] not in ROLES:
        raise UserError(f"{where}: conversations are from {', '.join(sorted(ROLES))}, not {turn['from']!r}.")
    return {"role": ROLES[turn["from"]], "content": turn.get("value")}


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f"{where}: a message must be {{role, content}}, not {str(message)[:60]!r}.")
    kept = {key: value for key, value in message.items() if value is not None}
    calls = kept.get("tool_calls")
    if not isinstance(kept.get("content"), str) and not calls:
        raise UserError(f"{where}: the content of a message must be text, not "
                        f"{str(message.get('content'))[:40]!r}.")
    return kept
