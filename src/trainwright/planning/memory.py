"""Sizes of memory as people write them."""
from __future__ import annotations

import re

from trainwright.core.errors import UserError

UNITS = {
    "B": 1,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(text: str) -> float:
    """``24GiB``, ``512 MB``, ``1.5 TiB`` in bytes.

    Raises:
        UserError: anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if found is None or found[2].upper() not in UNITS or not float(found[1]):
        raise UserError(
            f"{text!r} is no amount of memory: write a number above 0 and a unit (B, KB, MB, GB, TB, KiB, "
            f"MiB, GiB, "
            "TiB), such as 24GiB."
        )
    return float(found[1]) * UNITS[found[2].upper()]
