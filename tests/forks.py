"""Runs the program in forked processes, which saves its imports.

``main(FOLDER)`` runs ``FOLDER/life.toml`` in three stores below FOLDER and tells what it did:

- ``whole``: without interruption;
- ``times``: killed at random times, again and again, each process going on where the one before it died;
- ``operations``: killed right before the 1st, the 2nd, … file operation of saving, then of
  the export and the commit.

``python tests/forks.py`` is a program of its own: it does what lines on its standard input ask for, and
answers each with one line, which begins with the ``number`` of what was asked:

- ``{"ranks": N, "nodes": M, "folder": …, "store": …, "words": [WORD …]}`` runs ``FOLDER/life.toml`` on so
  many ranks of so many machines: ``[CODE, OUTPUT]``;
- ``{"start": [WORD …], "folder": …, "out": FILE, "err": FILE}`` starts ``trainwright WORD …``, or
  a program in Python where the words are ``-c TEXT``: its number;
- ``{"wait": NUMBER, "seconds": S}`` waits for one that was started: its code, or null where it still runs.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import daft  # noqa: F401  (imported here, so that a forked process need not)
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import trainwright
from trainwright import cli
from trainwright.core import registry
from trainwright.core.stage import stages
from trainwright.life.saving import Metrics
from trainwright.planning import forkserver
from trainwright.report import page, plots
from trainwright.storage import identity

PATIENCE = 120
"""Seconds after which a rank that stands still is killed."""
OTHERS = ("pandas", "pydantic", "ray", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
"""What libraries import only when they are used: daft looks whether it runs within ray."""
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def warm() -> None:
    """Import what any command may need, know the code of every method, and start what plans and comparisons
    fork their processes from: processes that are forked later need not."""
    forkserver.begin()
    for module in pkgutil.walk_packages(trainwright.__path__, "trainwright."):
        if not module.name.endswith("__main__"):
            with contextlib.suppress(ImportError):              # an extra that is not installed
                importlib.import_module(module.name)
    for other in OTHERS:
        with contextlib.suppress(ImportError):
            importlib.import_module(other)
    get_checkpoint_conversion_mapping("llama")
    plots.svg(plots.Figure(), "none", "none")
    page.environment().get_template("run.html")
    assert stages()
    for card in registry.cards().values():
        identity.code(card.file)
    gc.collect()
    gc.freeze()                                                 # what is not touched is not copied
    gc.set_threshold(50_000, 20, 20)                            # as in ``conftest.py``


def fork(
    folder: Path, store: str, arm: Callable[[], None] = lambda: None, words: tuple[str, ...] = ()
) -> int:
    """Start ``trainwright run life.toml --store STORE WORD …``, or the command that ``words`` begin with, in
    a process of its own; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        log = os.open(folder / f"{store}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder)
        begins = () if words and not words[0].startswith("-") else ("run", "life.toml")
        sys.argv = ["trainwright", *begins, *words, "--store", store]
        arm()
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(pid: int, wait: bool = True) -> int | None:
    """The exit code (negative for a signal) of a process, or None while it runs."""
    found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def progress(store: Path) -> int:
    """Steps that the training stage has written down."""
    files = [*store.glob("work/base-*/metrics.jsonl")]
    try:
        return files[0].read_bytes().count(b"\n") if files else 0
    except OSError:
        return 0


def held(last: int) -> None:
    """In a process that is to be killed: it stands still once it has written down so many steps, so that on
    a fast machine too it is no further when it dies."""
    write, begin = Metrics.write, Metrics.__init__

    def stand(step: int) -> None:
        if step >= last:
            time.sleep(PATIENCE)

    def begun(self: Metrics, file: Path, step: int) -> None:
        stand(step)
        begin(self, file, step)

    def written(self: Metrics, row: dict[str, float]) -> None:
        write(self, row)
        stand(int(row["step"]))
    Metrics.__init__, Metrics.write = begun, written            # type: ignore[method-assign]


def at_times(folder: Path, store: str) -> list[int]:
    """Kill at random times until one process gets to the end; returns the steps that were
    written down at each death: two before a step, then one to four more each time."""
    draw, died = random.Random(1), list[int]()
    while True:
        target = died[-1] + draw.randint(1, 3) if len(died) > 1 else 0
        pid, begun = fork(folder, store, partial(held, target and target + 1)), time.monotonic()
        patience, after = draw.uniform(0.1, 0.8), draw.uniform(0, 0.05)
        while (code := ended(pid, wait=False)) is None:
            if progress(folder / store) >= target if target else time.monotonic() - begun > patience:
                time.sleep(after)
                os.kill(pid, signal.SIGKILL)
                code = ended(pid)
                break
            time.sleep(0.002)
        if code == 0:
            return died
        if code != -signal.SIGKILL:
            return [code or 0]
        died.append(progress(folder / store))


def at_operations(folder: Path, store: str) -> dict[str, int]:
    """Kill before each file operation of the saves, and of the export and the commit;
    returns how many of each."""
    draw, killed, at = random.Random(2), {"save": 0, "export": 0}, {"save": 1, "export": 1}
    marks = {"save": "checkpoints/step-", "export": "artifact.tmp"}
    while True:
        pid = fork(folder, store, lambda: sys.addaudithook(killer(dict(at), marks)))
        code = ended(pid)
        if code == 0:
            return killed
        if code != -signal.SIGKILL:
            return {"failed": code or 0}
        what = (folder / "killed").read_text()
        killed[what] += 1
        at[what] += draw.randint(1, 2 if what == "save" else 4)


def killer(at: dict[str, int], marks: dict[str, str]) -> Callable[[str, Any], None]:
    """Counts file operations whose path has a mark (a removal in a folder has none: it belongs to
    the last one that had)."""
    seen, last = dict.fromkeys(at, 0), ""

    def hook(event: str, given: Any) -> None:
        nonlocal last
        if event not in OPERATIONS:
            return
        told, within = " ".join(str(g) for g in given[:2]), last if event in ("os.remove", "os.rmdir") else ""
        last = next((what for what, mark in marks.items() if mark in told and "base-" in told), within)
        if not last:
            return
        what = last
        seen[what] += 1
        if seen[what] == at[what]:
            Path("killed").write_text(what)
            os.kill(os.getpid(), signal.SIGKILL)
    return hook


def on_ranks(folder: Path, store: str, ranks: int, words: list[str],
             prepare: Callable[[int], None] = lambda rank: None, nodes: int = 1) -> tuple[int, str]:
    """As torchrun does it on so many machines: where one process fails, the others are ended. Returns its
    exit code and what all of them said. ``prepare`` is called in each process first, with its rank."""
    log = folder / f"{store}.log"
    before, each = log.stat().st_size if log.is_file() else 0, ranks // nodes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        around = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(each), "GROUP_WORLD_SIZE": str(nodes),
                  "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def arm(rank: int) -> None:
        os.environ.update(around | {"RANK": str(rank), "LOCAL_RANK": str(rank % each),
                                    "GROUP_RANK": str(rank // each)})
        signal.alarm(PATIENCE)
        prepare(rank)
    left = {fork(folder, store, partial(arm, r), tuple(words)) for r in range(ranks)}
    failed = 0
    while left:
        pid, status = os.wait()
        left.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = code
            for other in left:
                os.kill(other, signal.SIGTERM)
    return failed, log.read_bytes()[before:].decode()


def start(words: list[str], folder: str, out: str, err: str) -> int:
    """``python -m trainwright WORD …`` or ``python -c TEXT`` in a folder, with files for what it says;
    returns its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        for handle, name in ((0, os.devnull), (1, out), (2, err)):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND), handle)
        os.chdir(folder)
        sys.path[0] = folder
        if words[:1] == ["-c"]:
            sys.argv = words
            exec(compile(words[1], "<text>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = ["trainwright", *words]
            cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while (code := ended(pid, wait=False)) is None and time.monotonic() < until:
        time.sleep(0.005)
    return code


def serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            told: Any = start(asked["start"], asked["folder"], asked["out"], asked["err"])
        elif "wait" in asked:
            told = wait(asked["wait"], asked["seconds"])
        else:
            told = on_ranks(Path(asked["folder"]), asked["store"], asked["ranks"], asked["words"],
                            nodes=asked["nodes"])
        print(json.dumps([asked["number"], told]), flush=True)


def main(folder: Path) -> dict[str, Any]:
    return {"whole": ended(fork(folder, "whole")), "times": at_times(folder, "times"),
            "operations": at_operations(folder, "operations")}


if __name__ == "__main__":
    warm()
    serve()
