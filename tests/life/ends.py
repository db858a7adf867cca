"""Ends of a run, each in a forked process: ``main`` tells what came of each.

For each: its exit ``code``, what it ``said``, and the files that were ``left`` in the store's work folder.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forks
from tests.conftest import LIFE, write_texts

PATIENCE = 90.0
WAITING = '''"""Waits at each step for whoever wants to disturb it."""
import os
import time
from trainwright.core.method import Update


class Waiting(Update):
    """Waits."""

    def update(self, updates, params, state, ctx):
        time.sleep(0.02 if "DISTURBED" in os.environ else 0.0)
        return updates
'''
CURATE = '''"""Does what no method should."""
import time
from trainwright.core.errors import UserError
from trainwright.core.method import Curate


class CurateIt(Curate):
    """Waits for ever, or fails."""

    def apply(self, documents, ctx):
        (ctx.folder / "begun").write_text("x")
        {act}
        return documents
'''
CORPUS, REST = LIFE.split('[[stage]]\nname = "base"')
TRAIN = CORPUS + '[[stage]]\nname = "base"' + REST.split('[[stage]]\nname = "merged"')[0]
TRAIN = TRAIN.replace("steps = 6", "steps = 60").replace(
    '{ use = "clip_gradients" }', '{ use = "./waiting.py" }'
)
READS = '"texts/code"] }]'


def home(folder: Path) -> None:
    """A folder with a recipe that trains slowly, in ``train``; curates for ever, in ``slow``; and fails, in
    ``fails``."""
    act = {"slow": "time.sleep(600)", "fails": 'raise UserError("no such luck.")'}
    for name in ("train", "slow", "fails"):
        here = folder / name
        write_texts(here / "texts")
        (here / "waiting.py").write_text(WAITING)
        text = TRAIN
        if name in act:
            (here / "curate_it.py").write_text(CURATE.format(act=act[name]))
            text = TRAIN.replace(READS, '"texts/code"] }, { use = "./curate_it.py" }]')
        assert text != TRAIN or name == "train"
        (here / "life.toml").write_text(text)


def wait(pid: int, until: Callable[[], bool]) -> None:
    """Until something is so, or the process has ended."""
    begun = time.monotonic()
    while not until() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        if time.monotonic() - begun > PATIENCE:
            os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.005)


def end(
    here: Path,
    store: str,
    do: Callable[[int], object] = lambda pid: None,
    arm: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Run, do something to the process, and tell what came of it."""
    pid = forks.fork(here, store, lambda: arm() and None)
    do(pid)
    code = forks.ended(pid)
    said = (here / f"{store}.log").read_text()
    left = sorted(
        f.relative_to(here / store / "work").as_posix()
        for f in (here / store / "work").rglob("*")
        if f.is_file()
    )
    return {"code": code, "said": said, "left": left}


def at_step(here: Path, store: str, act: Callable[[int], object]) -> Callable[[int], None]:
    """Do something once three steps are written down."""

    def do(pid: int) -> None:
        wait(pid, lambda: forks.progress(here / store) >= 3)
        act(pid)

    return do


def disturbed() -> None:
    os.environ["DISTURBED"] = "yes"


def when_curating(here: Path, store: str, number: int) -> Callable[[int], None]:
    def do(pid: int) -> None:
        wait(pid, lambda: any((here / store).glob("work/corpus-*/*/begun")))
        os.kill(pid, number)

    return do


def limited(what: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (most, most))


def head(here: Path) -> dict[str, Any]:
    """Somebody reads one line and goes."""
    reading, writing = os.pipe()

    def do(pid: int) -> None:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            pipe.readline()

    return end(here, "head", do, lambda: (os.dup2(writing, 1), os.close(reading), os.close(writing)))


def main(folder: Path) -> dict[str, Any]:
    home(folder)
    train, slow, fails = (folder / name for name in ("train", "slow", "fails"))
    found: dict[str, Any] = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        name = number.name
        kill = at_step(train, name, lambda pid, n=number: os.kill(pid, n))
        found[f"train {name}"] = end(train, name, kill, disturbed)
        found[f"corpus {name}"] = end(slow, name, when_curating(slow, name, number))
    found["again"] = end(train, "SIGTERM")
    found["fails"] = end(fails, "fails")
    found["head"] = head(train)
    found["closed"] = end(train, "closed", arm=lambda: os.close(1))
    found["size"] = end(train, "size", arm=limited(resource.RLIMIT_FSIZE, 20_000))
    found["corpus size"] = end(train, "corpus size", arm=limited(resource.RLIMIT_FSIZE, 2000))
    found["files"] = end(train, "files", arm=limited(resource.RLIMIT_NOFILE, 16))
    found["few files"] = end(train, "few files", arm=limited(resource.RLIMIT_NOFILE, 10))
    for name, pattern in (("store", "."), ("work", "work"), ("corpus", "corpus-*")):

        def remove(pid: int, name: str = name, pattern: str = pattern) -> None:
            for place in (
                [train / f"no {name}"] if pattern == "." else list((train / f"no {name}").glob(pattern))
            ):
                shutil.rmtree(place, ignore_errors=True)

        found[f"no {name}"] = end(train, f"no {name}", at_step(train, f"no {name}", remove), disturbed)
    return found
