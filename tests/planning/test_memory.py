"""Sizes as people write them, the least that a stage needs, and the sentence that refuses it,
in a plan and in a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwright import families
from trainwright.core import hardware, sharding
from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.life.jobs import Job, jobs
from trainwright.life.run import run
from trainwright.planning import memory
from trainwright.stages import _memory
from trainwright.stages._training import stage_of
from trainwright.storage.store import Store


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * 2**30),
        ("512 MB", 512e6),
        ("1.5TiB", 1.5 * 2**40),
        (" 3 kib ", 3072),
        ("7B", 7),
        ("0.5GB", 5e8),
    ],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert memory.parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["24", "GiB", "24 XB", "-1GiB", "0GiB", "1,5GiB", "1e3GiB", "24GiB of it", ""]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(
        UserError, match=r"is no amount of memory: write a number above 0 and a unit .*, such as 24GiB"
    ):
        memory.parse_bytes(text)


def job_of(life: Path, stage: str) -> tuple[Job, Store]:
    store = Store(life.parent / "store")
    return next(j for j in jobs(load(life), store) if j.stage.name == stage), store


def floor(life: Path, stage: str = "base") -> tuple[float, int]:
    """The least that a stage needs, and how many parameters its model has."""
    job, store = job_of(life, stage)
    model = families.skeleton(stage_of(job).start_config(job, store), job.where)
    count = sum(p.numel() for p in model.parameters())
    return _memory.floor(job, model, store), count


KEPT = 2 * (8 * 32) * 16 * 2
"""Two bytes for each number of the hidden states (8 rows of 32 tokens, 16 wide) in front
of each of two blocks."""
TENSORS = 21
"""Parameters of the tiny model: each has a counter of steps, of four bytes."""


@pytest.mark.slow
def test_the_least_is_weights_gradients_states_and_the_inputs_of_blocks(life: Path) -> None:
    needed, count = floor(life)
    assert needed == 16 * count + 4 * TENSORS + KEPT
    life.write_text(life.read_text().replace("batch_tokens = 256", "batch_tokens = 256\naccumulate = 4", 1))
    assert floor(life)[0] == 16 * count + 4 * TENSORS + KEPT / 4


def test_what_is_frozen_has_neither_gradients_nor_states(life: Path) -> None:
    adapter = '{ use = "next_token" }, { use = "lora", rank = 2 }, { use = "adamw"'
    life.write_text(life.read_text().replace('{ use = "next_token" }, { use = "adamw"', adapter))
    needed, count = floor(life, "adapt")
    # inputs + outputs of q, o; k, v; gate, up, down
    layers = 2 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 32))
    assert needed == 4 * count + 16 * (2 * layers) + 4 * (2 * 2 * 7), (
        "A and B of rank 2, weights and three more of each"
    )


def test_a_reference_counts_and_what_looks_at_weights_does_not_stop_it(life: Path) -> None:
    (life.parent / "mine.py").write_text(
        "from trainwright.core.method import Surgery\n"
        "from trainwright.core.stage import Role\n\n\nclass Mine(Surgery):\n"
        "    roles = {'reference': Role()}\n\n"
        "    def operate(self, model, ctx):\n        float(next(model.parameters()).sum())\n"
    )
    life.write_text(
        life.read_text()
        .replace(
            'from = { model = "base", data = "corpus" }',
            'from = { model = "base", data = "corpus", reference = "base" }',
        )
        .replace(
            '"code"] }, { use = "next_token" }', '"code"] }, { use = "next_token" }, { use = "./mine.py" }'
        )
    )
    needed, count = floor(life, "adapt")
    assert needed == 2 * 4 * count, (
        "the weights, and the reference's; a surgery that needs numbers counts as nothing"
    )


def test_ranks_share_the_model(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, count = floor(life)
    monkeypatch.setattr(sharding, "world", lambda: 2)
    assert floor(life)[0] == (16 * count + 4 * TENSORS) / 2 + KEPT / 2
    monkeypatch.setattr(sharding, "world", lambda: 8)
    each = (16 * count + 4 * TENSORS + KEPT) / 8
    assert floor(life)[0] == each, "less than the weights: no rank makes the whole model in memory of its own"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert floor(life)[0] == 4 * each, "four of them on this machine"


def test_a_run_refuses_before_anything_runs_with_the_sentence_of_the_plan(
    life: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(life.parent / "store")
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 50_000.0)
    sentence = (
        r"life\.toml: stage 'base': about 0\.0 GiB of memory are needed and 0\.0 GiB are there: raise "
        r"accumulate, .*"
        r"trainwright plan --fit proposes settings\)\.$"
    )
    with pytest.raises(UserError, match=sentence):
        run(load(life), store)
    assert not store.root.exists() or not [*store.root.glob("*-*")]


def test_what_is_small_is_not_looked_at_closely(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, store = job_of(life, "base")

    def fail(*anything: object) -> float:
        raise AssertionError("looked at")

    monkeypatch.setattr(_memory, "floor", fail)
    job.stage.afford(job, store)
    corpus = job_of(life, "corpus")[0]
    corpus.stage.afford(corpus, store)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 1e6)
    with pytest.raises(AssertionError, match="looked at"):
        job.stage.afford(job, store)
