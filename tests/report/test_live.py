"""The page of a run while it runs: what it shows at each moment, and that it stops loading itself again."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainwright.report import live


def row(step: int, **more: float) -> dict[str, float]:
    return {"step": step, "steps": 100, "loss": 5.0 - 0.01 * step, "tokens": 64.0 * step, "grad_norm": 1.25,
            "lr": 1e-3, "tokens_per_second": 1234.0, "memory_bytes": 5e8} | more


@pytest.fixture
def page(tmp_path: Path) -> Any:
    made = live.Live(tmp_path / "reports", "A <small> life", ["corpus", "base", "judge"])
    yield made
    made.close()


def text(page: live.Live) -> str:
    return page.file.read_text(encoding="utf-8")


def test_before_during_and_after(page: live.Live) -> None:
    assert "A &lt;small&gt; life" in text(page) and text(page).count(">waiting<") == 3
    page.stage("corpus", "corpus", "cached", {})
    page.stage("base", "train", "started", {})
    for step in range(1, 40):
        page.step("base", row(step))
    page.step("base", row(40, **{"eval/loss/code": 3.5}))
    page.say("base: \x1b[31mred\nand more")
    page.write()
    said = text(page)
    assert 'http-equiv="refresh" content="5"' in said and ">running<" in said and ">cached<" in said
    for fact in ("40 of 100", "4.600", "3.500", "1.250", "1.23 k", "500 MB", "<svg", "and more"):
        assert fact in said, fact
    assert "\x1b" not in said and "base: \\x1b[31mred" in said
    page.stage("base", "train", "finished", {})
    page.close()
    assert "refresh" not in text(page) and "a run, finished" in text(page) and "index.html" in text(page)


def test_the_training_before_stays_until_there_is_another(page: live.Live) -> None:
    """While models are judged, and at the end, the last curve is still there."""
    page.stage("base", "train", "started", {})
    page.step("base", row(7))
    page.stage("judge", "evaluate", "started", {})
    page.write()
    assert "7 of 100" in text(page) and '<h2 id="loss">base</h2>' in text(page)
    page.step("judge", row(1))
    page.write()
    assert "7 of 100" not in text(page) and '<h2 id="loss">judge</h2>' in text(page)


def test_a_run_that_fails_says_why(page: live.Live) -> None:
    page.stage("base", "train", "failed", {"why": "the loss is nan"})
    try:
        raise ValueError
    except ValueError:
        page.close()
    assert "a run, stopped" in text(page) and "base failed: the loss is nan" in text(page)


def test_long_runs_keep_few_rows_and_all_that_was_measured(page: live.Live, monkeypatch: pytest.MonkeyPatch
                                                           ) -> None:
    monkeypatch.setattr(live, "ROWS", 50)
    page.stage("base", "train", "started", {})
    for step in range(1, 1001):
        page.step("base", row(step, **({"eval/loss/code": 1.0} if step % 200 == 0 else {})))
    steps = [r["step"] for r in page.rows]
    assert len(steps) <= 50 and steps == sorted(steps) and steps[-1] > 950
    assert {200, 400, 600, 800, 1000} <= set(steps)
