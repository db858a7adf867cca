"""Every hostile input, not only the sample that the tests take: ``make hostile``.

It prints what is wrong, and how many were tried. Its argument is the number of inputs to draw from
each of ten other seeds.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import write_texts
from tests.hostile import outcome
from tests.hostile import test_settings as settings
from tests.hostile.inputs import drawn

SEEDS = range(1, 11)


def problems(each: int, home: Path) -> Iterator[tuple[str, str]]:
    """What was tried, and what is wrong with how it ended, if anything."""
    for seed in SEEDS:
        for one in drawn(seed, each):
            yield f"{one.what} {one.words} (seed {seed})", outcome.problem(one, home / "texts")
    for accepted, wrong in (settings.method_cases(), settings.stage_cases()):
        yield from ((str(case), "") for case in accepted)
        yield from ((why, why) for why in wrong)
    for case in settings.runnable():
        yield str(case), settings.tried(case)
    for stage in settings.runnable_stages():
        yield str(stage), settings.tried_stage(stage, home)


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="trainwright-hostile-"))
    write_texts(home / "texts")
    tried = wrong = 0
    for what, why in problems(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, home):
        tried += 1
        if why:
            wrong += 1
            print(f"{what}: {why}", flush=True)
    print(f"{tried:,} inputs, {wrong:,} that ended otherwise than in a sentence")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
