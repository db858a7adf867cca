"""Files that are more than their text: pages, mail, notebooks, word-processor files, PDF.

Each is read by the library that is kept for its format. What of a file cannot be read is no mistake of the
recipe: the file is left out, counted and named.
"""

from __future__ import annotations

import email
import email.policy
import importlib.util
import io
import json
import logging
import zipfile
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any, NamedTuple

LIMIT = 64 << 20
"""Bytes of a file beyond which it is not a document that somebody wrote."""


class Rich(NamedTuple):
    """How files of one ending are read."""

    text: Callable[[bytes], str]
    library: str = ""
    """The package that it takes, where it is not Python's own."""

    def read(self, data: bytes) -> str:
        """The text. What the library says of a file that it cannot read is raised, too, and is not its own to
        print."""
        logging.getLogger(self.library or __name__).setLevel(logging.CRITICAL)
        return self.text(data)

    def there(self) -> bool:
        return not self.library or importlib.util.find_spec(self.library) is not None


def _page(data: bytes) -> str:
    """The text of a web page without its frame of menus and notices; all of it, where that cannot be told."""
    import trafilatura
    found = trafilatura.extract(data, include_comments=False) or trafilatura.html2txt(data)
    return str(found or "")


def _mail(data: bytes) -> str:
    """Subject and body of a mail; of several forms of the body the plain one."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    body = message.get_body(("plain", "html"))
    said = "" if body is None else str(body.get_content())
    if body is not None and body.get_content_subtype() == "html" and HTML.there():
        said = _page(said.encode())
    return "\n\n".join(part.strip() for part in (str(message["subject"] or ""), said) if part.strip())


def _notebook(data: bytes) -> str:
    """Texts and code of a notebook in their order, code between fences; what the code printed is left out."""
    book = json.loads(data)
    language = book.get("metadata", {}).get("kernelspec", {}).get("language", "python")
    cells = []
    for cell in book["cells"]:
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        if source.strip():
            cells.append(f"```{language}\n{source}\n```" if cell["cell_type"] == "code" else source)
    return "\n\n".join(cells)


def _word(data: bytes) -> str:
    """Paragraphs and tables of a .docx in their order, a row of a table a line."""
    import docx
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        if sum(file.file_size for file in packed.infolist()) > LIMIT:
            raise ValueError(f"more than {LIMIT >> 20} MiB, unpacked")
    parts = []
    for part in docx.Document(io.BytesIO(data)).iter_inner_content():
        rows = getattr(part, "rows", None)
        parts.append("\n".join("\t".join(c.text for c in r.cells) for r in rows) if rows else _said(part))
    return "\n\n".join(part for part in parts if part.strip())


def _said(part: Any) -> str:
    return str(getattr(part, "text", ""))


def _pdf(data: bytes) -> str:
    """The text of each page of a PDF; scanned pages have none."""
    import pypdf
    reader = pypdf.PdfReader(io.BytesIO(data))
    return "\n\n".join(text for page in reader.pages if (text := page.extract_text().strip()))


HTML = Rich(_page, "trafilatura")
RICH = {".html": HTML, ".htm": HTML, ".eml": Rich(_mail), ".ipynb": Rich(_notebook),
        ".docx": Rich(_word, "docx"), ".pdf": Rich(_pdf, "pypdf")}
"""By ending."""
