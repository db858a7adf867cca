from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from tests.report import sample
from trainwright.report import numbers, progress
from trainwright.report.progress import Progress, evaluation_table

INFO = {"steps": 512, "tokens": 1_048_576, "parameters": 1_312_256, "trainable": 1_312_256}
DONE = {
    "steps": 512,
    "tokens": 1_048_576,
    "loss": 4.312,
    "seconds": 48.2,
    "peak_memory_bytes": 912e6,
    "path": "store/base-41d0",
}


def console(terminal: bool, width: int = 80) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width,
        height=20,
        color_system=None,
        legacy_windows=False,
    )


def said(one: Progress) -> str:
    return one.console.file.getvalue()  # type: ignore[attr-defined]


def row(step: int, steps: int = 512) -> dict[str, float]:
    return {
        "step": step,
        "steps": steps,
        "tokens": step * 2048,
        "loss": 5.0,
        "lr": 3e-4,
        "tokens_per_second": 21_900.0,
        "memory_bytes": 8.7e8,
    }


def test_plain_lines_show_each_stage_in_a_line() -> None:
    shown = Progress(console(False))
    shown.stage("corpus", "corpus", "cached", {"path": "store/corpus-9b2f"})
    shown.stage("base", "train", "started", INFO)
    for step in range(1, 513):
        shown.step("base", row(step))
    shown.stage("base", "train", "finished", DONE)
    shown.stage("judge", "evaluate", "started", {})
    shown.stage("judge", "evaluate", "finished", sample.evaluation())
    shown.close()
    lines = said(shown).splitlines()
    assert lines[0] == "corpus   cached  store/corpus-9b2f"
    assert lines[1] == "base     started · 512 steps · 1.05 M tokens · 1.31 M parameters"
    assert lines[2] == "base     trained 512 steps · 1.05 M tokens · loss 4.312 · 48 s · peak 912 MB"
    assert lines[4].startswith("judge    measured base, adapt, merged · ")
    assert len(lines) == 5 and "\x1b" not in said(shown)


def test_what_a_stage_did_follows_from_its_figures() -> None:
    pruned = {"parameters": 1_312_256, "zeros": 524_288, "sparsity": 0.5, "peak_memory_bytes": 64e7}
    outcomes = {
        "transform": (pruned, "1.31 M parameters · 50.0 % zeros · 2.1 s · peak 640 MB"),
        "merge": ({"models": ["base", "adapt"]}, "merged base + adapt · 2.1 s"),
        "corpus": ({"documents": 6690, "tokens": 4_030_000}, "6,690 documents · 4.03 M tokens · 2.1 s"),
    }
    for kind, (figures, text) in outcomes.items():
        assert progress.outcome(kind, figures, 2.1) == text


def test_plain_lines_grow_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten hours of a step a second take fewer than 150 lines, and the first comes after five
    seconds."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress(console(False))
    shown.stage("base", "train", "started", INFO)
    for step in range(1, 36_001):
        clock[0] += 1.0
        shown.step(
            "base",
            row(step, 36_000)
            | ({"eval/loss/prose": 4.4, "eval/perplexity/prose": 81.0} if step == 6 else {}),
        )
    lines = said(shown).splitlines()
    assert 100 < len(lines) < 150
    assert (
        lines[1]
        == "base     step 6/36,000 · loss 5.000 · lr 0.0003 · 21.9 k tokens/s · 870 MB · 9 h 59 min left · "
           "loss/prose 4.400"
    )


def test_live_display_fits_80_columns_and_goes_away() -> None:
    shown = Progress(console(True))
    shown.stage("a_stage_with_a_long_name", "train", "started", INFO)
    assert "getting ready" in shown._render().plain
    shown.step(
        "a_stage_with_a_long_name",
        row(1)
        | {
            "eval/loss/prose": 4.4,
            "eval/bits_per_byte/prose": 2.0,
            "eval/loss/code": 5.1,
            "eval/bits_per_byte/code": 2.6,
        },
    )
    shown.step("a_stage_with_a_long_name", row(211))
    lines = shown._render().plain.splitlines()
    assert len(lines) == 3 and all(len(line) < 80 for line in lines)
    assert "211/512" in lines[0] and "41%" in lines[0] and lines[0].endswith("left")
    assert "loss 5.000 · lr 0.0003 · 21.9 k tokens/s · 870 MB" in lines[1]
    assert "loss/prose 4.400" in lines[2]
    shown.say("[red] is no markup here")
    shown.stage("a_stage_with_a_long_name", "train", "finished", DONE)
    assert shown.live is None
    out = said(shown)
    assert (
        "[red] is no markup here" in out and "trained 512 steps" in out and "\x1b[?25h" in out
    )  # the cursor is shown again


def test_failed_stage_frees_the_terminal_and_is_remembered() -> None:
    shown = Progress(console(True))
    shown.stage("adapt", "train", "started", INFO)
    shown.step("adapt", row(41))
    shown.stage("adapt", "train", "failed", {"why": "the loss is nan"})
    assert shown.live is None and "stopped after 41 of 512 steps" in said(shown)
    assert shown.states["adapt"] == {"state": "failed", "kind": "train", "why": "the loss is nan"}


def test_resumed_stage_stays_resumed_when_finished() -> None:
    shown = Progress(console(False))
    shown.stage("adapt", "train", "resumed", INFO)
    shown.stage("adapt", "train", "finished", DONE)
    assert shown.states["adapt"]["state"] == "resumed"


def test_a_step_costs_little() -> None:
    shown = Progress(console(True))
    shown.stage("base", "train", "started", INFO)
    one, began = row(5), time.perf_counter()
    for _ in range(2000):
        shown.step("base", one)
    spent = (time.perf_counter() - began) / 2000
    shown.close()
    assert spent < 0.3e-3


def test_evaluation_table_signs_gain_and_forgetting() -> None:
    figures = {
        "numbers": {
            "base": {
                "loss/code": 5.0,
                "bits_per_byte/code": 2.5,
                "loss/prose": 4.0,
                "perplexity/prose": 54.6,
                "loss/mail": 3.0,
            },
            "adapt": {
                "loss/code": 3.0,
                "bits_per_byte/code": 1.5,
                "loss/prose": 4.5,
                "loss/mail": 3.25,
                "accuracy/quiz": 0.75,
            },
        },
        "baseline": "base",
        "old": ["prose"],
        "new": ["code"],
    }
    show = console(False)
    show.print(evaluation_table(figures))
    out = show.file.getvalue()  # type: ignore[attr-defined]
    assert "gain +2.000" in out and "gain +1.000" in out  # how much lower on the new domain
    assert "forgetting +0.500" in out  # how much higher on the old one
    assert "change +0.250" in out and "0.750" in out  # a domain that is neither; a metric that is no loss
    assert max(len(line) for line in out.splitlines()) <= 80
    rows = {(r.domain, r.model): r for r in numbers.measured(figures)}
    assert rows["code", "adapt"].good("loss") is True and rows["prose", "adapt"].good("loss") is False
    assert rows["code", "base"].against == {} and rows["quiz", "adapt"].good("accuracy") is None
    assert [r.domain for r in numbers.measured(figures)][:4] == ["code", "code", "prose", "prose"]


def test_evaluation_table_without_baseline() -> None:
    show = console(False)
    show.print(
        evaluation_table({"numbers": {"only": {"loss/prose": 4.0}}, "baseline": None, "old": [], "new": []})
    )
    assert "against" not in show.file.getvalue()  # type: ignore[attr-defined]
