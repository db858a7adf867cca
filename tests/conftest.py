"""What many tests share: a folder of texts, a tiny life in one recipe, and the program as a process."""
from __future__ import annotations

import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import trainwright
from trainwright.core.registry import FOLDERS

Ranks = Callable[..., subprocess.CompletedProcess[str]]
Forked = Callable[[str, Path], Any]

LIFE = """title = "A tiny life"
seed = 3

[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
tune = 0.1
test = 0.1
methods = [{ use = "text", paths = ["texts/prose", "texts/code"] }]

[[stage]]
name = "base"
kind = "train"
from = { data = "corpus" }
model = { type = "llama", hidden_size = 16, intermediate_size = 32, num_hidden_layers = 2, num_attention_heads = 2, \
          num_key_value_heads = 1, max_position_embeddings = 64 }
steps = 6
batch_tokens = 256
precision = "fp32"
compile = false
save_every = 2
methods = [{ use = "pack", length = 32 }, { use = "next_token" }, { use = "clip_gradients" }, { use = "adamw", lr = 1e-2 }, { use = "wsd" }]

[[stage]]
name = "adapt"
kind = "train"
from = { model = "base", data = "corpus" }
steps = 3
batch_tokens = 256
precision = "fp32"
compile = false
methods = [{ use = "pack", length = 32, domains = ["code"] }, { use = "next_token" }, { use = "adamw", lr = 1e-2 }]

[[stage]]
name = "merged"
kind = "merge"
from = { models = ["base", "adapt"] }
methods = [{ use = "interpolate", weights = [0.5, 0.5] }]

[[stage]]
name = "judge"
kind = "evaluate"
from = { models = ["base", "merged"], data = "corpus" }
old = ["prose"]
new = ["code"]
methods = [{ use = "held_out", length = 32 }]
"""  # noqa: E501


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--house", action="store_true", help="leave out the tests of single methods")


def pytest_configure() -> None:
    """No garbage is collected while modules are imported and tests are found: nearly all of it stays.

    Signals that whoever started the tests lets them ignore (``nohup``, a shell in the background) are
    heard again: tests send them."""
    gc.disable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--house``, the rooms of methods; None leaves the decision to others."""
    inside = collection_path.relative_to(Path(__file__).parent).parts
    return True if config.getoption("house") and inside and inside[0] in FOLDERS else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests begin each half, one file after another in turn. Two processes that take a half each,
    and at the end quick tests of the other's, make no costly fixture twice."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    half = {path: i % 2 for i, path in enumerate(dict.fromkeys(item.path for item in slow))}
    first, second = ([item for item in slow if half[item.path] == which] for which in (0, 1))
    room = max(0, (len(items) + 1) // 2 - len(first))
    items[:] = [*first, *quick[:room], *second, *quick[room:]]


def pytest_collection_finish() -> None:
    """What importing and collecting left behind is not looked through again by the collections of garbage
    that plans and probes begin with; the others are rarer than usual, which saves a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


def write_texts(folder: Path) -> Path:
    """Twelve documents of each of two domains, the same on every machine."""
    draw = random.Random(0)
    words = {"prose": "the sea a ship rain over cold islands and wind from grey hills",
             "code": "def return x y ( ) : = + if else for in range print"}
    for domain, text in words.items():
        some = text.split()
        (folder / domain).mkdir(parents=True)
        for i in range(12):
            lines = [" ".join(draw.choices(some, k=9)) for _ in range(12)]
            (folder / domain / f"{i:02d}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def life(tmp_path: Path) -> Path:
    """A recipe file with its texts beside it; the store is best ``store`` beside it too."""
    write_texts(tmp_path / "texts")
    file = tmp_path / "life.toml"
    file.write_text(LIFE)
    return file


def environment() -> dict[str, str]:
    """Of a process of ours: one thread, no network, this checkout."""
    source = str(Path(trainwright.__file__).parents[1])
    return os.environ | {
        "PYTHONPATH": source,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }


class Warm:
    """The program in processes that are forked from one that has imported what it may need: as ``python -m
    trainwright`` does it, without the seconds that this takes each time."""

    def __init__(self) -> None:
        self.around, self.asked = environment(), 0
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py"))], env=self.around, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **what: Any) -> Any:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.asked += 1
        print(json.dumps(what | {"number": self.asked}), file=self.server.stdin, flush=True)
        while True:                                # answers for which a test did not wait any longer
            number, answer = json.loads(self.server.stdout.readline())
            if number == self.asked:
                return answer

    def fits(self) -> bool:
        """Whether the environment is the one that the server was started in."""
        changed = dict(environment().items() ^ self.around.items())
        return changed.keys() <= {"PYTEST_CURRENT_TEST"}

    def start(self, *words: Any, cwd: Path) -> Program:
        return Program(self, list(map(str, words)), cwd)

    def close(self) -> None:
        self.server.communicate()


class Program:
    """A program that runs, with the face of ``subprocess.Popen``."""

    def __init__(self, warm: Warm, words: list[str], cwd: Path) -> None:
        self.warm = warm
        handle, self.out = tempfile.mkstemp(prefix="said-")
        os.close(handle)
        handle, self.err = tempfile.mkstemp(prefix="told-")
        os.close(handle)
        self.returncode: int | None = None
        self.pid: int = warm.ask(start=words, folder=str(cwd.resolve()), out=self.out, err=self.err)

    def poll(self, seconds: float = 0.0) -> int | None:
        until = time.monotonic() + seconds
        while self.returncode is None:             # the server is not kept for longer than a moment
            left = until - time.monotonic()
            self.returncode = self.warm.ask(wait=self.pid, seconds=max(0.0, min(1.0, left)))
            if left <= 1.0:
                break
        return self.returncode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for its end; returns what it said, as text.

        Raises:
            subprocess.TimeoutExpired: it did not end in so many seconds, and was killed.
        """
        if self.poll(timeout) is None:
            os.kill(self.pid, signal.SIGKILL)
            self.poll(timeout)
            raise subprocess.TimeoutExpired("trainwright", timeout)
        said = []
        for file in (self.out, self.err):
            said.append(Path(file).read_text(errors="replace"))
            os.unlink(file)
        return said[0], said[1]


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    server = Warm()
    yield server
    server.close()


@pytest.fixture(scope="session")
def forked(warm: Warm) -> Forked:
    """``forked(module, folder)`` is what ``main(folder)`` of a module returns, by way of JSON, in a process
    that is forked from the warm one; it may fork others, and change what it has imported."""

    def run(module: str, folder: Path) -> Any:
        root = str(Path(__file__).parents[1])
        program = warm.start("-c", f"import json, pathlib, sys; sys.path.insert(0, {root!r}); "
                                   f"import {module} as asked; "
                                   f"print(json.dumps(asked.main(pathlib.Path({str(folder)!r}))))",
                             cwd=folder)
        said, errors = program.communicate(800)
        assert program.poll() == 0, errors + "".join(f.read_text()[-2000:] for f in folder.glob("*.log"))
        return json.loads(said)
    return run


@pytest.fixture
def command(warm: Warm) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``python -m trainwright`` in a folder and wait for it; or ``python`` with other words, which is a
    new process."""

    def run(
        *words: Any, cwd: Path, python: tuple[str, ...] = ("-m", "trainwright")
    ) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, *python, *map(str, words)]
        if python != ("-m", "trainwright") or not warm.fits():
            return subprocess.run(
                line, cwd=cwd, env=environment(), text=True, capture_output=True, timeout=120
            )
        program = warm.start(*words, cwd=cwd)
        out, err = program.communicate()
        return subprocess.CompletedProcess(line, program.poll() or 0, out, err)
    return run


@pytest.fixture(scope="session")
def ranks(warm: Warm) -> Ranks:
    """``ranks(folder, store, number, *words)`` runs ``folder/life.toml`` on so many forked ranks, as torchrun
    does, on so many ``nodes``."""

    def run(folder: Path, store: str, number: int, *words: str, nodes: int = 1
            ) -> subprocess.CompletedProcess[str]:
        code, out = warm.ask(ranks=number, nodes=nodes, folder=str(folder), store=store, words=words)
        return subprocess.CompletedProcess(words, code, out)
    return run
