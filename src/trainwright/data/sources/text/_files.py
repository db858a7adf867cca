"""Reading files into rows: plain text, JSON, Parquet and CSV, with the place of every mistake.

Whatever is wrong with a file, the error names the file, the line or row, what is wrong
and what would be right.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from trainwright.core.errors import UserError
from trainwright.core.shown import brief
from trainwright.data.sources.text._compressed import DAMAGED, OPENERS, lines, opened, whole, without
from trainwright.data.sources.text._rich import LIMIT, RICH
from trainwright.data.sources.text._rows import MEDIA, Reading, row_to_document

if TYPE_CHECKING:
    from trainwright.corpus.sources import Row

CODE = (".py", ".js", ".ts", ".java", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".rs", ".rb", ".php",
        ".swift", ".kt", ".scala", ".sh", ".sql", ".r", ".jl", ".lua", ".pl", ".hs", ".ml", ".ex", ".dart")
"""Of source code."""
PLAIN = (".txt", ".md", ".rst", *CODE)
UNREAD = "could not be read"
NAMED = 5
"""Files that are named at most."""
ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".wav", ".flac", ".ogg", ".mp3")
"""Of images and sounds."""
BETWEEN = re.compile(r"((?>\r\n|\n|\r)[^\S\r\n]*(?>\r\n|\n|\r))")
"""What parts two paragraphs: a line that is blank, or holds nothing that is seen, whatever ends lines."""
Numbered = Iterator[tuple[int, Any]]
"""Rows of a table, each with its line, or its number where a format has no lines."""


def suffix(name: str) -> str:
    """The ending that says how to read a file, without that of its compression."""
    return Path(without(name)).suffix.lower()


def known() -> list[str]:
    return sorted([*PLAIN, *TABLES, *RICH])


def lacking(name: str) -> str:
    """The package without which a file of this name cannot be read here; empty where nothing is missing."""
    rich = RICH.get(suffix(name))
    return rich.library if rich is not None and not rich.there() else ""


def read(path: Path, written: str, how: Reading) -> Iterator[Row]:
    """The documents of one file; ``written`` is its path as the recipe says it, which ids and errors use."""
    if suffix(path.name) in PLAIN:
        yield from _plain(path, written, how)
        return
    if suffix(path.name) in RICH:
        yield from _rich(path, written, how)
        return
    for line, row in rows(path, written):
        yield row_to_document(row, written, line, how)


def rows(path: Path, written: str) -> Numbered:
    """The rows of one table.

    Raises:
        UserError: whatever is wrong with the file.
    """
    last = 0
    try:
        with opened(path) as file:
            for last, row in TABLES[suffix(path.name)](file, written):
                yield last, row
    except UserError:
        if path.suffix.lower() in OPENERS and (damage := _damage(path)):
            _refuse(written, f", after line {last:,}" if last else "", damage)
        raise
    except Exception as error:  # of whatever library reads it: no format has a list of all that may be wrong
        _refuse(written, f", after line {last:,}" if last else "", error)


def _damage(path: Path) -> Exception | None:
    """What is wrong with a compressed file, if anything: behind a damage it may go on with other letters."""
    try:
        with opened(path) as file:
            while file.read(1 << 20):
                pass
    except (OSError, *DAMAGED) as error:
        return error
    return None


def _refuse(written: str, where: str, error: Exception) -> NoReturn:
    """What went wrong with a file, in one sentence."""
    remedy = ""
    why = str(error) or type(error).__name__
    if isinstance(error, DAMAGED):
        remedy = ": the compressed file is damaged or cut short, so fetch or make it again"
    elif isinstance(error, RecursionError):
        why = "values are nested too deeply"
    elif isinstance(error, MemoryError):
        why = "it does not fit into memory"
    elif isinstance(error, OSError) and error.strerror:
        why = error.strerror
    raise UserError(f"cannot read {written}{where} ({why.rstrip('.')}){remedy}.") from None


# ---- plain text --------------------------------------------------------------------------------------


def _plain(path: Path, written: str, how: Reading) -> Iterator[Row]:
    from trainwright.corpus.sources import document
    try:
        with opened(path) as file:
            content = whole(file, written)
    except (OSError, MemoryError, *DAMAGED) as error:
        _refuse(written, "", error)
    text = _decode(content, written, how.invalid)
    for number, piece in enumerate(pieces(text, how.characters), 1):
        name = f"{how.domain}/{written}" + (f":{number}" if how.characters else "")
        yield document(id=name, text=piece, domain=how.domain, source=written)


def _rich(path: Path, written: str, how: Reading) -> Iterator[Row]:
    """The document that a page, a mail or a PDF is; one of which nothing can be read is counted and named."""
    from trainwright.corpus.sources import document
    why = ""
    try:
        with opened(path) as file:
            data = file.read(LIMIT + 1)
        text = RICH[suffix(path.name)].read(data) if len(data) <= LIMIT else ""
        why = f"more than {LIMIT >> 20} MiB" if len(data) > LIMIT else "" if text.strip() else "no text in it"
    except Exception as error:  # of whatever library reads it: no format has a list of all that may be wrong
        text, why = "", str(error).split("\n")[0][:100] or type(error).__name__
    if why:
        how.say(UNREAD, f"{written} ({why})", NAMED)
        return
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
    parts = BETWEEN.split(text)
    held, size = "", 0
    for paragraph, between in zip(parts[::2], [*parts[1::2], ""], strict=True):
        if held and size + len(paragraph) > characters:
            yield held
            held, size = "", 0
        held += paragraph + between
        size += len(paragraph) + len(between)
    yield held


# ---- JSON --------------------------------------------------------------------------------------------


def _json(file: IO[bytes], written: str) -> Numbered:
    """A JSON list of objects, one object a line, or objects that go over several lines."""
    start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    if start.startswith(b"["):
        listed = _parsed(whole(file, written), f"{written} is no JSON: ")
        yield from enumerate(listed if isinstance(listed, list) else [listed], 1)
        return
    first = next((line for _, line in lines(file, written) if line.strip()), b"")
    file.seek(0)
    try:
        json.loads(first.decode("utf-8-sig") or "{}")
    except (ValueError, RecursionError):
        yield from _objects(whole(file, written), written)
    else:
        yield from _jsonl(file, written)


def _objects(data: bytes, written: str) -> Numbered:
    """Objects one after the other, each with the line that it begins in."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise UserError(f"{written}, line {line}: this is not UTF-8 ({error.reason}).") from None
    decoder, at, line = json.JSONDecoder(object_pairs_hook=_once), 0, 1
    while (begins := _blank(text, at)) < len(text):
        line += text.count("\n", at, begins)
        try:
            value, at = decoder.raw_decode(text, begins)
        except RecursionError:
            raise UserError(f"{written}, line {line}: values are nested too deeply.") from None
        except ValueError as error:
            raise UserError(
                f"{written}, line {line}: the object that begins here is no JSON ({error})."
            ) from None
        yield line, value
        line += text.count("\n", begins, at)


def _blank(text: str, at: int) -> int:
    """Where something stands, from there on."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _jsonl(file: IO[bytes], written: str) -> Numbered:
    for number, line in lines(file, written):
        if line.strip():
            yield number, _parsed(line, f"{written}, line {number}: this is no JSON object: ", True)


def _parsed(data: bytes, where: str, whole_line: bool = False) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig") if whole_line else data, object_pairs_hook=_once)
    except RecursionError:
        raise UserError(f"{where}values are nested too deeply.") from None
    except ValueError as error:
        ends = isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc.rstrip())
        remedy = "; an object stands on one line, else name the file .json" if whole_line and ends else ""
        raise UserError(f"{where}{error}{remedy}.") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which no key stands twice: one of the two would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"the key {brief(_twin([name for name, _ in pairs]))} stands twice in one object")
    return found


def _twin(names: Sequence[str]) -> str:
    return next((name for name, count in Counter(names).items() if count > 1), "")


def _refuse_twins(names: Sequence[str], written: str) -> None:
    if len(set(names)) != len(names):
        raise UserError(f"{written} has two columns {brief(_twin(names))}: rename or drop one of them.")


# ---- CSV and Parquet ---------------------------------------------------------------------------------


def _tsv(file: IO[bytes], written: str) -> Numbered:
    yield from _csv(file, written, "\t")


def _csv(file: IO[bytes], written: str, between: str = ",") -> Numbered:
    csv.field_size_limit(sys.maxsize)  # a document may be longer than the 128 KiB that the module allows
    with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True, delimiter=between)
        begins, names = 1, list[str]()
        try:
            for row in reader:
                if row and not names:
                    names = row
                    _refuse_twins(names, written)
                elif row and len(row) != len(names):
                    raise UserError(f"{written}, line {begins}: this row has not the {len(names)} "
                                    f"columns that the first line names, but {len(row)}.")
                elif row:
                    yield reader.line_num, dict(zip(names, row, strict=True))
                begins = reader.line_num + 1
        except csv.Error as error:
            what = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
            raise UserError(f"{written}, line {begins}: in the row that begins here {what}.") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{written}, line {begins}: here or below something is not UTF-8 ({error})."
            ) from None


def _parquet(file: IO[bytes], written: str) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq
    number = 0
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        names = parquet.schema_arrow.names
        _refuse_twins(names, written)
        for batch in parquet.iter_batches(batch_size=1024):
            for row in _rows(batch, names):
                yield (number := number + 1), row
    except pa.ArrowException as error:
        where = f" after row {number:,}" if number else ""
        raise UserError(
            f"{written} is no Parquet file that can be read{where}: {str(error).rstrip('.')}."
        ) from None


def _arrow(file: IO[bytes], written: str) -> Numbered:
    """A file or a stream of Arrow's own format (also what datasets keeps, and Feather)."""
    import pyarrow as pa
    number = 0
    try:
        stream = file.read(6) != b"ARROW1"
        file.seek(0)
        source = pa.ipc.open_stream(file) if stream else pa.ipc.open_file(file)
        names = source.schema.names
        _refuse_twins(names, written)
        for at in () if stream else range(source.num_record_batches):
            for row in _rows(source.get_batch(at), names):
                yield (number := number + 1), row
        for batch in source if stream else ():
            for row in _rows(batch, names):
                yield (number := number + 1), row
    except pa.ArrowException as error:
        raise UserError(f"{written} is no Arrow file that can be read: {str(error).rstrip('.')}.") from None


def _rows(batch: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    columns = [_values(column) for column in batch.columns]
    return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _yaml(file: IO[bytes], written: str) -> Numbered:
    """A YAML list of rows, or several documents, a row each."""
    import yaml

    class Plain(yaml.SafeLoader):
        """Without references, of which a short file can make an endless text."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                line = self.peek_event().start_mark.line + 1
                raise UserError(f"{written}, line {line}: references (*name) are not read: write the value "
                                "out.")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            if twin := _twin([key.value for key, _ in node.value if isinstance(key.value, str)]):
                line = node.start_mark.line + 1
                raise UserError(f"{written}, line {line}: the key {brief(twin)} stands twice in one object.")
            return super().construct_mapping(node, deep)
    try:
        for number, document in enumerate(yaml.load_all(file, Loader=Plain), 1):
            if isinstance(document, list):
                yield from enumerate(document, 1)
            elif document is not None:
                yield number, document
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{written}, line {line}: this is no YAML ({error.problem}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"{written} is no YAML: {' '.join(str(error).split())}.") from None


def _values(column: Any) -> list[Any]:
    """A column's values. Where a column of structs lacks a key, it is null, and so is left out; a time that
    Python has none for (with nanoseconds, or beyond the year 9999) is written out."""
    import pyarrow as pa
    try:
        found = column.to_pylist(maps_as_pydicts="strict")
    except (ValueError, OverflowError):
        found = column.cast(pa.string()).to_pylist()
    return [filled(value) for value in found] if pa.types.is_nested(column.type) else found


def filled(value: Any) -> Any:
    """A nested value without what is null in it; a message keeps its own, which say that nothing was said."""
    if isinstance(value, dict):
        kept = "role" in value
        return {k: filled(v) for k, v in value.items() if v is not None or kept}
    return [filled(one) for one in value] if isinstance(value, list) else value


TABLES: dict[str, Callable[[IO[bytes], str], Numbered]] = {
    ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".yaml": _yaml,
    ".yml": _yaml, ".parquet": _parquet, ".arrow": _arrow, ".feather": _arrow}


def beside(path: Path, named: Mapping[str, str]) -> Iterator[Path]:
    """Images and sounds in the folder of a table whose first row refers to one by its path."""
    if suffix(path.name) not in TABLES:
        return
    try:
        _, row = next(rows(path, path.name), (0, {}))
    except UserError:                                    # told where the table is read
        return
    columns = [named.get(name, name) for name in MEDIA]
    if isinstance(row, Mapping) and any(isinstance(row.get(column), str) for column in columns):
        yield from (f for f in path.parent.rglob("*") if f.suffix.lower() in ENDINGS and f.is_file())
