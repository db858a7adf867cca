"""Recipes to begin with. What ``$word`` stands for is found out by ``planning/start.py``."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent


def templates() -> dict[str, str]:
    """The templates, each with its first sentence."""
    return {f.stem: _sentence(f.read_text(encoding="utf-8")) for f in sorted(FOLDER.glob("*.toml"))}


def _sentence(text: str) -> str:
    words = " ".join(line.removeprefix("#").strip() for line in text.split("#\n")[0].splitlines())
    return re.split(r"(?<=\?)\s|[:.]\s", words)[0]
