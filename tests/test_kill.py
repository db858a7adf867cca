"""``kill -9`` at any moment, then the same command again: the final weights are bit-identical, and
nothing half-written is left.

``forks.py`` kills forked processes at random times and before single file operations; here the program is
also killed, interrupted and stopped as a process of its own, again and again on one store.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import trainwright as tw
from tests import forks
from tests.conftest import LIFE, Forked, Warm, write_texts
from trainwright.core import checkpoint

pytestmark = pytest.mark.slow

STEPS = 30
RECIPE = LIFE.split('[[stage]]\nname = "adapt"')[0]
for _old, _new in (("steps = 6", f"steps = {STEPS}"), ("save_every = 2", "save_every = 3"),
                   ("batch_tokens = 256", "batch_tokens = 1024"),
                   ("hidden_size = 16", "hidden_size = 48, attention_dropout = 0.1"),
                   ("lr = 1e-2 }", 'lr = 1e-2 }, { use = "ema", decay = 0.9 }')):
    assert _old in RECIPE
    RECIPE = RECIPE.replace(_old, _new)


def weights(store: Path) -> bytes:
    (file,) = store.glob("base-*/model.safetensors")
    return file.read_bytes()


def check_clean(store: Path) -> None:
    """Two artifacts, whole; no work folder, no temporary file."""
    folders = sorted(f.name for f in store.glob("*-*"))
    assert folders == sorted(f.parent.name for f in store.glob("*/manifest.json"))
    assert [name.split("-")[0] for name in folders] == ["base", "corpus"]
    assert not [*store.rglob("*.tmp")] and not [*store.glob("work/*")]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> tuple[Path, dict[str, Any]]:
    """A folder in which the program was killed many times, and what was done to it."""
    folder = tmp_path_factory.mktemp("kill")
    write_texts(folder / "texts")
    (folder / "life.toml").write_text(RECIPE)
    return folder, forked("tests.forks", folder)


def test_killed_at_random_times(told: tuple[Path, dict[str, Any]]) -> None:
    folder, done = told
    died = done["times"]
    assert done["whole"] == 0 and len(died) >= 10, (folder / "times.log").read_text()[-3000:]
    assert died[0] == 0 and died[2:] == sorted(set(died[2:])) and died[-1] > STEPS / 2, (
        "each lies behind the last"
    )
    assert (folder / "times.log").read_text().count("resumed") >= 7
    assert weights(folder / "times") == weights(folder / "whole")
    check_clean(folder / "times")


def test_killed_before_any_file_operation_of_saving_and_export(told: tuple[Path, dict[str, Any]]) -> None:
    folder, done = told
    assert done["operations"].get("save", 0) >= 15 and done["operations"]["export"] >= 4, done["operations"]
    assert weights(folder / "operations") == weights(folder / "whole")
    check_clean(folder / "operations")


def test_what_was_measured_is_what_it_is_without_interruption(told: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = told
    rows = {}
    for store in ("whole", "times", "operations"):
        (file,) = (folder / store).glob("base-*/metrics.jsonl")
        rows[store] = [
            {
                k: v
                for k, v in json.loads(line).items()
                if k not in ("seconds", "tokens_per_second", "memory_bytes")
            }
            for line in file.read_text().splitlines()
        ]
    assert [r["step"] for r in rows["whole"]] == list(range(1, STEPS + 1))
    assert rows["whole"] == rows["times"] == rows["operations"]


class Run:
    """``python -m trainwright run`` as a process of its own."""

    def __init__(self, warm: Warm, folder: Path, store: str) -> None:
        self.store = folder / store
        self.process = warm.start("run", "life.toml", "--store", store, cwd=folder)

    def at_step(self, step: int) -> None:
        """Wait until it has written down so many steps."""
        self.when(lambda: forks.progress(self.store) >= step)

    def when(self, so_far: Callable[[], bool]) -> None:
        """Wait until it has come so far."""
        until = time.monotonic() + 120
        while not so_far():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until, "it does not get on"
            time.sleep(0.002)

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        code = self.process.poll()
        assert code is not None
        return code, out, err


def test_the_program_killed_interrupted_and_run_twice_at_once(
    told: tuple[Path, dict[str, Any]], warm: Warm
) -> None:
    folder, _ = told
    first = Run(warm, folder, "mixed")
    first.at_step(5)
    first.send(signal.SIGKILL)
    assert first.end()[0] == -signal.SIGKILL

    second = Run(warm, folder, "mixed")                      # Ctrl-C saves and says how to go on
    second.at_step(12)
    second.send(signal.SIGINT)
    code, out, err = second.end()
    step = forks.progress(second.store)
    assert code == 130 and f"stopped at step {step} of {STEPS}; run the same command to go on" in err, (
        out + err
    )
    assert "Traceback" not in err
    (saved,) = second.store.glob("work/base-*/checkpoints")
    newest = checkpoint.newest(saved)[0]
    assert newest is not None and newest.name == f"step-{step:08d}"

    # the newest checkpoint is damaged: the one before it is used
    file = newest / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    third = Run(warm, folder, "mixed")
    third.at_step(step + 5)
    third.send(signal.SIGSTOP)
    code, out, err = Run(warm, folder, "mixed").end()  # meanwhile another wants to work on the same store
    assert code == 2 and "another process is at work on the stage 'base'" in err and "Traceback" not in err, (
        out + err
    )
    third.send(signal.SIGKILL)
    third.send(signal.SIGCONT)
    code, out, _ = third.end()
    assert (
        code == -signal.SIGKILL
        and f"the checkpoint {newest.name} is damaged; going on from the one before it" in out
    )

    code, out, err = Run(warm, folder, "mixed").end()
    assert code == 0 and "resumed" in out, out + err
    assert weights(folder / "mixed") == weights(folder / "whole")
    check_clean(folder / "mixed")


# ---- a recipe of rounds -----------------------------------------------------------------------------------

SMALL = ((r'vocab_size = 2048\ntest = 0.05\nmethods = .*', 'vocab_size = 300\ntune = 0.1\ntest = 0.1\n'
          'methods = [{ use = "text", paths = ["texts/prose", "texts/code"] }]'),
         (r'model = \{ type = "llama", .* \}', 'model = { type = "llama", hidden_size = 16, '
          'intermediate_size = 32, num_hidden_layers = 1, num_attention_heads = 2, '
          'max_position_embeddings = 512 }'),
         (r'tokens = 600_000\nbatch_tokens = 2048', 'steps = 20\nbatch_tokens = 256\ncompile = false'),
         (r'tokens = 100_000\n  batch_tokens = 2048', 'steps = 30\n  batch_tokens = 256\n  compile = false\n'
          '  save_every = 2'),
         (r'length = 256', 'length = 32'), (r'tokens = 20_000', 'tokens = 500'),
         (r'ratio = 0.2', 'ratio = 1.0'), (r'piece = 400', 'piece = 200'),
         (r'max_tokens = 64', 'max_tokens = 6'), (r'at_once = 32', 'at_once = 4'),
         (r'\(loss > 1.5 AND loss < 4.5\)', 'loss < 20'))
"""What makes the recipe of self-training tiny."""


def answers(store: Path) -> int:
    """Answers that the writer of the second round has kept."""
    for file in store.glob("work/rounds.2.written-*/*/answers.sqlite"):
        try:
            with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as known:
                return int(known.execute("select count(*) from answers").fetchone()[0])
        except sqlite3.Error:                              # the table is about to be made
            return 0
    return 0


def steps(store: Path) -> int:
    """Steps that the second round has written down."""
    files = [*store.glob("work/rounds.2.tune-*/metrics.jsonl")]
    return files[0].read_bytes().count(b"\n") if files else 0


def made(store: Path) -> dict[str, bytes]:
    """The weights of each stage that trains, and the documents of each that writes."""
    found = {f.parent.name: f.read_bytes() for f in store.glob("*/model.safetensors")}
    return found | {f.parents[1].name: f.read_bytes() for f in store.glob("rounds.*/documents/*.parquet")}


def test_self_training_killed_while_it_writes_and_trains_in_the_second_round(
    tmp_path: Path, warm: Warm
) -> None:
    write_texts(tmp_path / "texts")
    text = (Path(__file__).parents[1] / "recipes" / "self_training.toml").read_text()
    for old, new in SMALL:
        text, many = re.subn(old, new, text)
        assert many, old
    (tmp_path / "life.toml").write_text(text)
    store = tmp_path / "killed"
    first = Run(warm, tmp_path, "killed")
    first.when(lambda: answers(store) >= 5)
    first.send(signal.SIGKILL)
    assert first.end()[0] == -signal.SIGKILL
    before = made(store)
    assert answers(store) >= 5
    assert {name.partition("-")[0] for name in before} == {"base", "rounds.1.written", "rounds.1.tune"}
    second = Run(warm, tmp_path, "killed")
    second.when(lambda: steps(store) >= 7)
    second.send(signal.SIGKILL)
    assert second.end()[0] == -signal.SIGKILL
    recipe = tw.load(tmp_path / "life.toml")
    last = tw.run(recipe, store)
    whole = tw.run(recipe, tmp_path / "whole")
    assert made(store) == made(tmp_path / "whole") and before.items() <= made(store).items()
    assert last["rounds.2.tune"].figures["resumed"] and not whole["rounds.2.tune"].figures["resumed"]
    resumed, told = (one["end"].figures["numbers"] for one in (last, whole))
    assert resumed == told and told["rounds.tune"]["loss/prose"] < told["base"]["loss/prose"]
    assert not [*store.glob("work/*")]
