"""From a few steps to all of them: the line through the points, and which points are worth their time."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trainwright import families
from trainwright.core import hardware
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Data, Evaluator
from trainwright.core.recipe import Recipe, load
from trainwright.life.jobs import Job, jobs
from trainwright.life.run import run
from trainwright.planning import probe
from trainwright.planning.probe import Point, Probe, _Effort
from trainwright.pretrain.next_token import NextToken
from trainwright.storage.store import Store

MEASURED = Probe(
    parameters=100,
    trainable=60,
    flops_per_token=6.0,
    fixed=1000.0,
    device="cpu",
    points=(Point(1, 2000.0, 1.0, 0.5), Point(4, 2600.0, 2.5, 0.4), Point(8, 3000.0, 4.5, 0.25)),
)


def test_between_points_and_beyond_them_it_is_a_line() -> None:
    assert [MEASURED.memory_bytes(n) for n in (1, 2, 4, 6, 8, 16)] == [2000, 2200, 2600, 2800, 3000, 3800]
    falling = replace(MEASURED, points=(Point(1, 2000.0, 1.0, 0.5), Point(2, 1900.0, 0.9, 0.5)))
    assert falling.memory_bytes(8) == 2000 and falling.seconds(8, 1, 1) == 1.5, "more rows never take less"
    single = replace(MEASURED, points=MEASURED.points[:1])
    assert [single.memory_bytes(n) for n in (1, 3)] == [2000, 4000], "from what is in use between two steps"
    assert single.seconds(3, 1, 1) == 3.5


def test_seconds_are_micro_batches_and_the_rest_of_each_step() -> None:
    assert MEASURED.seconds(8, 1, 10) == pytest.approx(10 * (4.5 + 0.25))
    assert MEASURED.seconds(4, 6, 10) == pytest.approx(10 * (6 * 2.5 + 0.25))


def test_compiled_code_starts_late_and_is_quicker_and_smaller() -> None:
    compiled = replace(MEASURED, guessed=True)
    step = 4.5 / probe.COMPILE_GAIN["cpu"] + 0.25
    assert compiled.seconds(8, 1, 100) == pytest.approx(probe.COMPILE_SECONDS["cpu"] + 100 * step)
    kept = 1000 + 4 * 60
    of_it = kept + probe.COMPILE_TAKES["cpu"]
    assert compiled.memory_bytes(8) == pytest.approx(of_it + probe.COMPILE_KEEPS * (3000 - kept))
    beside = replace(compiled, device="cuda")
    assert beside.memory_bytes(8) == pytest.approx(kept + probe.COMPILE_KEEPS * (3000 - kept))


def job_of(life: Path, stage: str) -> tuple[Job, Store]:
    store = Store(life.parent / "store")
    job = next(j for j in jobs(load(life), store) if j.stage.name == stage)
    return job, store


@pytest.mark.slow
def test_a_stage_is_built_before_its_corpus_is_there_and_after(life: Path) -> None:
    life.write_text(
        life.read_text().replace('{ use = "wsd" }', '{ use = "wsd" }, { use = "held_out", length = 32 }')
    )
    train, compiled = probe.build(*job_of(life, "base"))
    assert not compiled and [m.name for m in train.methods] == [
        "synthetic",
        "next_token",
        "clip_gradients",
        "adamw",
    ]
    train.ctx.batch_rows = 4
    train.step()
    assert train.row["tokens"] == 4 * 32 and train.row["loss"] > 0
    run(load(life), Store(life.parent / "store"))
    train, _ = probe.build(*job_of(life, "adapt"))
    assert [m.name for m in train.methods] == ["pack", "next_token", "adamw"]
    weights = families.load(Store(life.parent / "store").named("base").path, "a test").state_dict()
    assert all(torch.equal(t, weights[n]) for n, t in train.model.state_dict().items()), (
        "the weights that the run starts from"
    )


def test_a_teacher_that_is_not_made_yet_has_fresh_weights(life: Path) -> None:
    life.write_text(
        life.read_text()
        .replace('from = { model = "base", data = "corpus" }',
                 'from = { model = "base", data = "corpus", teacher = "base" }')
        .replace('"code"] }, { use = "next_token" }', '"code"] }, { use = "distill" }')
    )
    train, _ = probe.build(*job_of(life, "adapt"))
    teacher = train.ctx.frozen["teacher"]
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    train.ctx.batch_rows = 4
    train.step()
    assert train.row["distillation/forward"] == 0, "fresh weights of one seed: it is its own teacher"


def test_made_up_rows_hold_two_documents() -> None:
    made = probe.Synthetic(tokens=8, vocabulary=50)
    batch = made.next(lambda: {}, {}, Context(batch_rows=3))
    assert batch["packed"] and batch["position_ids"][2].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch["document"][0].tolist() == [0] * 4 + [1] * 4 and batch["input_ids"].shape == (3, 8)
    assert isinstance(made, Data) and not isinstance(made, Evaluator)


def test_made_up_documents_are_as_long_as_they_are_told() -> None:
    batch = probe.Synthetic(tokens=8, vocabulary=50, document=3).next(lambda: {}, {}, Context(batch_rows=2))
    assert batch["position_ids"][1].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert (batch["targets"][0] == UNTRAINED).nonzero()[:, 0].tolist() == [2, 5, 7]
    whole = probe.Synthetic(tokens=8, vocabulary=50, document=90).next(lambda: {}, {}, Context(batch_rows=2))
    assert not whole["packed"] and not whole["document"].any()


def test_where_a_few_rows_are_much_work_each_size_is_tried_once(
    life: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside gradients, as an earlier micro-batch of the step leaves them."""
    life.write_text(life.read_text().replace("steps = 6", "steps = 6\naccumulate = 2", 1))
    monkeypatch.setattr(probe, "MUCH", 0.0)
    tried, step = list[tuple[int, bool]](), _Effort.step

    def once(self: _Effort) -> tuple[float, float]:
        tried.append((self.run.ctx.batch_rows, self.held.keys() == self.run.params.keys()))
        return step(self)

    monkeypatch.setattr(_Effort, "step", once)
    taken = probe.take(load(life), life.parent / "store", "base", 0.05)
    assert tried == [(point.rows, True) for point in taken.points] and taken.points[-1].rows == 4


def test_small_stages_are_tried_whole(life: Path) -> None:
    taken = probe.take(load(life), life.parent / "store", "base", 0.05)
    assert taken.points[-1].rows == 8, "the micro-batch of the recipe"
    assert taken.parameters == taken.trainable and taken.flops_per_token > 6 * 16 * 300
    assert all(p.bytes > taken.fixed > 0 and p.seconds > 0 and p.rest > 0 for p in taken.points)


@pytest.mark.slow
def test_an_objective_that_looks_at_several_rows_is_given_as_many(
    life: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 rows; with its corpus there, and the first micro-batch of three at most."""
    store = Store(life.parent / "store")
    run(load(life), store)
    count, group = NextToken.count, [1]

    def grouped(self: NextToken, batch: dict[str, Any]) -> float:
        if len(batch["input_ids"]) % group[0]:
            raise UserError("next_token: a row is left over")
        return count(self, batch)

    monkeypatch.setattr(NextToken, "count", grouped)
    monkeypatch.setattr(probe, "FIRST", 96)
    monkeypatch.setattr(_Effort, "affords", lambda *given: False)
    for group[0], tried in ((1, [2, 8]), (2, [2, 8]), (4, [8])):
        taken = probe.take(load(life), store.root, "base", 0.05)
        assert taken is not None and [p.rows for p in taken.points] == tried


class _Fake(_Effort):
    """An effort without a stage: two micro-batches a step, so many seconds and FLOPs left."""

    def __init__(self, seconds: float, work: float) -> None:
        self.parts, self.work, self.work_a_row, self.seconds, self.slow = 2, work, 100.0, seconds, False

    def left(self) -> float:
        return self.seconds


@pytest.mark.parametrize(
    ("seconds", "work", "rows"),
    [
        (80.0, 0.0, 16),  # two steps of two micro-batches of 20 rows, a second a row: a quarter of 64
        (0.0, 8000.0, 4),  # so much work is worth it however slow the machine is, for 20 seconds more
        (1.0, 0.0, 4),  # a line takes two points
        (1e6, 0.0, 64),  # and no more than the recipe asks for
    ],
)
def test_the_next_point_is_worth_its_time(
    seconds: float, work: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "memory_bytes", lambda: float("inf"))
    first = Point(2, 3000.0, 2.0, 0.0)
    assert _Fake(seconds, work).next([first], 64, 1000.0) == rows
    assert _Fake(1.0, 0.0).next([first, Point(4, 4000.0, 4.0, 0.0)], 64, 1000.0) == 0
    assert _Fake(1e6, 0.0).next([first, Point(64, 4000.0, 4.0, 0.0)], 64, 1000.0) == 0


def test_a_point_that_memory_may_not_hold_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    # a thousand bytes a row, and a thousand without any
    first = Point(2, 3000.0, 2.0, 0.0)
    for available, rows in ((13_500.0, 8), (7_500.0, 4), (3_500.0, 0)):
        monkeypatch.setattr(hardware, "memory_bytes", lambda: available)  # noqa: B023
        assert _Fake(1e6, 0.0).next([first], 64, 1000.0) == rows


# ---- in processes of their own ---------------------------------------------------------------


def base_of(life: Path) -> tuple[Recipe, Job, Store]:
    store, recipe = Store(life.parent / "store"), load(life)
    return recipe, next(j for j in jobs(recipe, store) if j.stage.name == "base"), store


def test_each_has_its_process_or_all_share_one(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(self: Any, function: Any, *arguments: Any) -> Any:
        asked.append((self, arguments[-1]))
        return replace(MEASURED, parameters=len(asked))

    monkeypatch.setattr(probe.Worker, "ask", ask)
    recipe, job, store = base_of(life)
    with probe.Probes() as probes:
        first = probes.of(recipe, job, store)
        assert probes.of(recipe, job, store) == first and len(asked) == 1, "each once"
        probes.known.clear()
        assert probes.of(recipe, job, store) != first and asked[0][0] is not asked[1][0]
    with probe.Probes(shared=True) as probes:
        for _ in range(2):
            probes.known.clear()
            probes.of(recipe, job, store)
    assert asked[2][0] is asked[3][0] and [part for _, part in asked] == [1.0, 1.0, probe.BRIEF, probe.BRIEF]


def test_code_that_was_made_for_a_probe_is_there_for_the_next(
    life: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def ask(self: Any, *anything: Any) -> Any:
        asked.append(self)
        return replace(MEASURED, anew=len(asked) == 1, parameters=len(asked))

    monkeypatch.setattr(probe.Worker, "ask", ask)
    assert probe.Probes().of(*base_of(life)).parameters == 2, "what making it took in memory does not count"
    assert asked[0] is not asked[1], "in a process that has not made it"


@pytest.mark.slow
def test_where_the_run_compiles_the_probe_does(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = life.parent / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    life.write_text(life.read_text().replace("compile = false", "compile = true"))
    recipe, job, store = base_of(life)
    taken = probe.Probes().of(recipe, job, store)
    assert [p.rows for p in taken.points] == [8] and taken.start > 0, "as the run takes them"
    assert not taken.guessed and not taken.anew and any(cache.rglob("*.so"))
    assert taken.flops_per_token > 0 and taken.seconds(8, 1, 0) == taken.start
    brief = probe.Probes(brief=True).of(recipe, job, store)
    assert brief.guessed and not brief.start, "a search compiles nothing"


def test_a_probe_that_is_killed_is_a_mistake_of_its_stage(
    life: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Any, *anything: Any) -> Any:
        raise probe.Died("signal 9 (SIGKILL)")

    monkeypatch.setattr(probe.Worker, "ask", die)
    with pytest.raises(
        UserError, match=r"stage 'base': the process that tried .* was ended by signal 9 \(SIGKILL\)"
    ):
        probe.Probes().of(*base_of(life))


@pytest.mark.slow
def test_a_probe_in_a_process_of_its_own(life: Path) -> None:
    recipe, job, store = base_of(life)
    with probe.Probes(shared=True) as probes:
        taken = probes.of(recipe, job, store)
    assert taken.points[-1].rows == 8 and taken.memory_bytes(8) > taken.fixed > 2**27, (
        "a process with torch in it"
    )
    assert not store.root.exists(), "a plan writes nothing"
