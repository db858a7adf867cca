"""What checksums cost: the share of a run's processor time that is spent on them.

``python benchmarks/checksums.py [WORD …]`` runs ``recipes/quickstart.toml`` in a new store, in this process,
with the words that ``trainwright run`` takes, and prints the seconds of processor time: of all, of the
hashing, and of what else looking at an artifact and sealing it takes.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainwright import cli
from trainwright.core import files

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
spent = dict.fromkeys(("hashing", "around it"), 0.0)
inside = threading.local()


def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its processor time added to ``spent``; what is timed within another does not count
    twice."""

    def measured(*given: Any, **named: Any) -> Any:
        if getattr(inside, "depth", 0):
            return function(*given, **named)
        begun, inside.depth = time.thread_time(), 1
        try:
            return function(*given, **named)
        finally:
            spent[what] += time.thread_time() - begun
            inside.depth = 0

    return measured


class Digest:
    """A hash whose time is taken."""

    def __init__(self) -> None:
        self.digest = BLAKE2B()
        self.update, self.hexdigest = timed("hashing", self.digest.update), self.digest.hexdigest


def blake2b(*given: Any, **named: Any) -> Any:
    """A hash; that of a file, to which its bytes are given later, is timed."""
    return BLAKE2B(*given, **named) if given or named else Digest()


BLAKE2B, FILE = hashlib.blake2b, hashlib.file_digest


def main(words: list[str]) -> None:
    hashlib.file_digest = timed("hashing", FILE)
    hashlib.blake2b = blake2b  # type: ignore[assignment, misc]
    for name in ("seal", "intact", "vouch", "vouched"):
        setattr(files, name, timed("around it", getattr(files, name)))
    with tempfile.TemporaryDirectory() as store:
        sys.argv = ["trainwright", "run", str(RECIPE), "--store", store, *words]
        begun = time.process_time()
        try:
            cli.main()
        except SystemExit as ended:
            if ended.code:
                raise
    whole = time.process_time() - begun
    told = {"seconds": round(whole, 1)} | {k: round(v, 3) for k, v in spent.items()}
    print(json.dumps(told | {"share": round(sum(spent.values()) / whole, 5)}))


if __name__ == "__main__":
    main(sys.argv[1:])
