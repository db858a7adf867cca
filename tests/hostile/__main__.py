"""Every hostile input, not only the sample that the tests take: ``make hostile``.

Each piece of it is tried in a process of its own, one after the other: ``python -m tests.hostile`` tries all,
``python -m tests.hostile PIECE …`` those, of ``inputs-1`` … (malformed commands, recipes and files, a seed
each), ``methods-1`` … (every value of every setting of a part of the methods) and ``stages-1`` …. Whatever
does not let go, even of the interpreter, is ended, named and counted as a hang.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile import outcome
from tests.hostile import test_settings as settings
from tests.hostile.drawing import drawn

EACH = 1000
"""Inputs of a seed."""
PIECES = {"inputs": 10, "methods": 24, "stages": 6}
"""How many pieces there are of each kind."""
STUCK = 900
"""Seconds by the clock after which a single case is ended with its process."""
FORK = multiprocessing.get_context("fork")
AT = "at"
"""The file of a piece that names what is being tried."""
Case = tuple[str, Callable[[], str]]
"""What is tried, and what tries it: it returns what is wrong, or nothing."""


def cases(kind: str, part: int, home: Path) -> Iterator[Case]:
    """What a piece tries. The first piece of a kind tries what is refused without being run, too."""
    if kind == "inputs":
        for one in drawn(part, EACH):
            yield f"{one.what} {one.words}", lambda one=one: outcome.problem(one, home)
        return
    wrong = (settings.method_cases if kind == "methods" else settings.stage_cases)()[1]
    yield from ((why, lambda why=why: why) for why in wrong if part == 1)
    step = PIECES[kind]
    if kind == "methods":
        for case in list(settings.runnable())[part - 1 :: step]:
            yield str(case), lambda case=case: settings.tried(case)
    else:
        for stage in settings.runnable_stages()[part - 1 :: step]:
            yield str(stage), lambda stage=stage: settings.tried_stage(stage, home)


def attempt(piece: str, home: Path) -> int:
    """Try a piece in this process; returns whether something was wrong."""
    kind, _, part = piece.partition("-")
    outcome.at_home(home)
    tried = wrong = 0
    for what, attempted in cases(kind, int(part), home):
        (home / AT).write_text(what, "utf-8", "backslashreplace")
        faulthandler.dump_traceback_later(STUCK, exit=True)
        why = attempted()
        faulthandler.cancel_dump_traceback_later()
        tried += 1
        if why:
            wrong += 1
            print(f"{what}: {why}".encode("utf-8", "backslashreplace").decode(), flush=True)
    (home / AT).unlink()
    print(f"{piece}: {tried:,} tried, {wrong:,} ended otherwise than in a sentence", flush=True)
    return int(bool(wrong))


def elsewhere(piece: str) -> bool:
    """Try a piece in a process of its own, forked from this one, which has the imports and knows what is
    accepted; returns whether all is well."""
    with tempfile.TemporaryDirectory(prefix="trainwright-hostile-") as home:
        child = FORK.Process(target=lambda: sys.exit(attempt(piece, Path(home))))
        child.start()
        child.join()
        if (at := Path(home) / AT).is_file():
            print(f"{piece}: the process ended with {child.exitcode} at {at.read_text('utf-8')}", flush=True)
    return child.exitcode == 0


def main(words: list[str]) -> int:
    known = [f"{kind}-{part}" for kind, parts in PIECES.items() for part in range(1, parts + 1)]
    if strange := set(words) - set(known):
        print(f"there is no piece {', '.join(sorted(strange))}: {known[0]} … {known[-1]}")
        return 2
    settings.method_cases()
    settings.stage_cases()
    failed = [piece for piece in words or known if not elsewhere(piece)]
    print(f"{len(words or known)} pieces; something is wrong in {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
