"""Questions and answers about Python that are on every machine, from the docstrings of functions and classes.

Chat documents (``messages``: a user's question, an assistant's answer) in one domain, made from the
docstrings of the standard library and the installed packages. The answer is the docstring's opening
paragraphs, without the line breaks inside a paragraph. The same interpreter and packages give the same
conversations.

Not for teaching a model to talk: every answer is a docstring. It is real text to try supervised fine-tuning
on.

Errors: a number that is not positive.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

SECTION = re.compile(r"(Args|Arguments|Parameters|Returns|Examples?|Raises|Attributes|Note|See [Aa]lso)\b"
                     r"|[:>.]{2}|:\w+")
"""How a paragraph begins that is no prose: a section of parameters or examples, or markup."""
QUESTIONS = ("What does {name} do in Python?", "Explain {name} from the module {module}.",
             "What is {name} for?",
             "I found {name} in some Python code. What is it?", "How would you describe {name} in {module}?")


class PythonQuestions(Curate):
    """Chats about the functions and classes of the standard library and of the packages that are needed
    anyway."""

    example: ClassVar[dict[str, Any]] = {"most": 20}

    most: int = 2000
    """How many conversations at most."""
    longest: int = 600
    """Characters of an answer at most; it ends with a whole paragraph, or a whole sentence of the first."""
    domain: str = "questions"
    """Domain of the conversations."""

    def __post_init__(self) -> None:
        if self.most < 1 or self.longest < 1:
            raise ValueError(f"most and longest must be positive, not {self.most} and {self.longest}.")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.sources import table, union
        rows = list(islice(self._rows(), self.most))
        return union(documents, table(self.name, [partial(iter, rows)]))

    def _rows(self) -> Iterator[Row]:
        from trainwright.corpus.sources import document
        from trainwright.data.sources._python_sources import ordered, packages, parse, read
        from trainwright.data.sources.python_library import REQUIRING
        seen: set[str] = set()
        for file in ordered(packages(REQUIRING)):
            parsed = parse(read(file) or "", 120) if file.name.endswith(".py") else None
            for name, doc in parsed.prose.items() if parsed else ():
                answer = opening(doc, self.longest)
                if not name or len(answer) < 40 or answer in seen:
                    continue
                seen.add(answer)
                messages = [{"role": "user", "content": question(file.name, name)},
                            {"role": "assistant", "content": answer}]
                yield document(id=f"{self.domain}/{file.name}:{name}", domain=self.domain,
                               source=file.release,
                               metadata={"path": file.name}, messages=messages)


def question(path: str, name: str) -> str:
    """One of the questions, chosen by a hash of what it asks about."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    words = QUESTIONS[hashlib.sha256(f"{path}:{name}".encode()).digest()[0] % len(QUESTIONS)]
    return words.format(name=f"{module.rpartition('.')[2]}.{name.partition(':')[0]}", module=module)


def opening(doc: str, longest: int) -> str:
    """The paragraphs of a docstring up to a length, before sections of parameters and examples begin."""
    out = ""
    for paragraph in re.split(r"\n\s*\n", doc.strip()):
        text = " ".join(paragraph.split())
        if SECTION.match(text):
            break
        if len(out) + len(text) > longest:
            return out or " ".join(re.findall(r"[^.]*\.(?:\s|$)", text[:longest])).strip()
        out = f"{out}\n\n{text}".strip()
    return out
