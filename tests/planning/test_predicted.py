"""Memory that is predicted is what is counted when the step is taken."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainwright.core import recipe
from trainwright.core.errors import UserError
from trainwright.life.jobs import Job, jobs
from trainwright.planning import live, plan, predicted, probe
from trainwright.planning.fit import propose
from trainwright.planning.predicted import Unpredictable, predict
from trainwright.planning.worker import Worker
from trainwright.storage.store import Store

TEXT = """title = "Sizes"

[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
methods = [{{ use = "text", paths = ["texts"] }}]

[[stage]]
name = "base"
kind = "train"
from = {{ data = "corpus" }}
model = {{ type = "llama", hidden_size = {wide}, intermediate_size = {inner}, num_hidden_layers = {deep}, \
num_attention_heads = 4, num_key_value_heads = 2, max_position_embeddings = 4096, vocab_size = {words} }}
steps = 4
batch_size = {rows}
accumulate = {parts}
checkpointing = {again}
precision = "{precision}"
compile = false
methods = [{{ use = "pack", length = {length} }}, {{ use = "next_token" }}, {more} \
{{ use = "clip_gradients" }}, \
{{ use = "{optimizer}", lr = 1e-3 }}]
"""
SMALL = {"wide": 64, "inner": 128, "deep": 3, "words": 2000, "rows": 4, "parts": 1, "again": "false",
         "precision": "fp32", "length": 64, "more": "", "optimizer": "adamw"}
LARGE = SMALL | {"wide": 4096, "inner": 14336, "deep": 8, "words": 128256, "rows": 64, "precision": "bf16",
                 "length": 2048, "again": "true"}


def job(folder: Path, **changes: Any) -> tuple[recipe.Recipe, Job, Store]:
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts" / "one.txt").write_text("a text\n")
    (folder / "sizes.toml").write_text(TEXT.format(**SMALL | changes))
    loaded, store = recipe.load(folder / "sizes.toml"), Store(folder / "store")
    return loaded, next(j for j in jobs(loaded, store) if j.stage.trains), store


def counted(loaded: recipe.Recipe, store: Store) -> int:
    """The bytes of the second step, taken; in a process without other tensors."""
    one = next(j for j in jobs(loaded, store) if j.stage.trains)
    run, _ = probe.build(one, store)
    stage: Any = one.stage
    run.ctx.batch_rows, parts = stage.batch_rows(one) // stage.accumulate, min(stage.accumulate, 2)
    gc.collect()
    with live.counting() as peak:
        for _ in range(2):
            grads = run.gradients([run.pull() for _ in range(parts)])
            predicted._update(run, grads)
            del grads
    return peak.bytes


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {},
    {"rows": 8, "parts": 2, "again": "true"},
    {"precision": "bf16", "again": "true"},
    {"precision": "bf16-true"},
    {"more": '{ use = "lora", rank = 4 },'},
    {"rows": 1, "length": 512, "again": "true"},
])
def test_it_is_what_a_step_takes(changes: dict[str, Any], tmp_path: Path) -> None:
    loaded, one, store = job(tmp_path, **changes)
    with Worker(1) as worker:
        assert predict(one, store).peak == pytest.approx(worker.ask(counted, loaded, store), rel=0.01)


def test_documents_cost_what_those_of_the_corpus_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the lengths 1, 3 and 8 (what a row has room for) a token has (1 + 9 + 64) / 12 in its document."""
    sizes = SimpleNamespace(length=np.array([1, 3, 100]))
    monkeypatch.setattr(predicted, "open_corpus", lambda at: SimpleNamespace(select=lambda split: sizes))
    source = SimpleNamespace(ready=lambda store: True, path=lambda store, where: Path())
    one: Any = SimpleNamespace(source=lambda role: source, where="")
    assert predicted._document(one, Store(Path()), 8) == 6


@pytest.mark.slow
def test_billions_of_parameters_on_eight_ranks_of_another_machine(tmp_path: Path) -> None:
    """By hand: weights, as many gradients, two states, all float32, an eighth of each."""
    block, table = 4096 * (2 * 4096 + 2 * 2048 + 3 * 14336 + 2), 4096 * 128256
    loaded, one, store = job(tmp_path, **LARGE)
    found = predict(one, store, 8)
    assert found.parameters == 8 * block + 2 * table + 4096
    assert found.weights == found.gradients == found.parameters * 4 / 8
    assert found.states == pytest.approx(2 * found.weights, rel=1e-6), "and a few counters"
    assert found.gathered == 4 * (2 * (2 * table + 4096) + 3 * block), "the rest of the model, and blocks"
    kept = 8 * 2048 * 4096 * 4 * 8                            # the inputs of the blocks
    assert kept < found.activations < 4 * kept, "a copy of all weights in bfloat16 would be 5 GiB more"
    planned = plan.plan(loaded, store, machine=plan.Machine(8, 80 * 2**30))
    assert planned.stages[-1].figures["memory_bytes"] == pytest.approx(found.peak, rel=1e-6)
    with pytest.raises(UserError, match=r"each of 8 ranks needs about \d+\.\d GiB of memory and has 10\.0"):
        plan.plan(loaded, store, machine=plan.Machine(8, 10 * 2**30))


def test_rows_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    _, one, store = job(tmp_path)
    with pytest.raises(UserError, match="a step of 4 rows does not divide over 3 ranks and 1 micro-batches"):
        predict(one, store, 3)


@pytest.mark.slow
def test_what_looks_at_numbers_is_not_predicted(tmp_path: Path) -> None:
    loaded, one, store = job(tmp_path, optimizer="sgd_sai")
    with pytest.raises(Unpredictable, match="looks at numbers"):
        predict(one, store)
    planned = plan.plan(loaded, store, machine=plan.Machine(2))
    assert "looks at numbers" in planned.stages[-1].note
    assert "memory_bytes" not in planned.stages[-1].figures


@pytest.mark.slow
def test_settings_are_found_that_fit_a_rank_of_another_machine(tmp_path: Path) -> None:
    loaded, one, store = job(tmp_path, rows=16, length=512)
    (found,) = propose(loaded, store, 0.6 * predict(one, store, 2).peak, ranks=2)
    assert found.fits and found.changes["accumulate"] in (2, 4, 8)
    (none,) = propose(loaded, store, 1000.0, ranks=2)
    assert none.fits is False


@pytest.mark.slow
def test_a_teacher_counts_before_it_is_made(tmp_path: Path) -> None:
    """A student of one row of 16 tokens: hardly anything but weights is there."""
    _, teacher, _ = job(tmp_path)
    text = (tmp_path / "sizes.toml").read_text()
    student = text[text.index('[[stage]]\nname = "base"'):]
    for old, new in (('"base"', '"student"'), ('data = "corpus" }', 'data = "corpus", teacher = "base" }'),
                     ("next_token", "distill"), ("size = 4", "size = 1"), ("length = 64", "length = 16")):
        student = student.replace(old, new)
    (tmp_path / "sizes.toml").write_text(text + "\n" + student)
    store = Store(tmp_path / "store")
    found = predict(jobs(recipe.load(tmp_path / "sizes.toml"), store)[-1], store)
    whole = predict(teacher, store).weights
    assert whole < found.peak - found.weights - found.gradients - found.states < 2 * whole
