"""What is known of a suite is told in sentences, and its search as a table."""

from __future__ import annotations

from typing import Any

import pytest

from trainwright.compare import suite
from trainwright.report import suite_pages
from trainwright.report.numbers import value

TRIALS = [{"values": {"adamw.lr": 1e-3}, "metric": 3.0}, {"values": {"adamw.lr": 1e-2}, "metric": None}]
TUNING = {"trials": TRIALS,
          "tune_seeds": 2, "seconds": 60.0, "metric": "loss/prose", "best": 3.0, "chosen": {"adamw.lr": 1e-3},
          "at_edge": ["adamw.lr"]}
AA = {"runs": 20, "arm": "plain", "metrics": {"loss/prose": {
    "mean": 3.0, "sd": 0.02, "wrong": 0.048, "deals": 5000, "seeds": 5}}}
MUON = {"arm": "Muon", "difference": -0.2, "low": -0.3, "high": -0.1, "better": "lower",
        "uses": ["torch_optim"]}
TRICKS = {"metric": "loss/prose", "failed": {"SOAP": "no memory"}, "arms": [MUON]}
PARTS = {"tuning": TUNING, "aa": AA, "tricks": TRICKS}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    def part_of(name: str, part: str, folder: Any = None) -> Any:
        return PARTS[part] if name == "pretrain" else None

    monkeypatch.setattr(suite, "part_of", part_of)


def test_parts_are_told_in_sentences(known: None) -> None:
    tuned, noise, tricks = (suite_pages.sentence("pretrain", part) for part in ("tuning", "aa", "tricks"))
    assert "2 trials of 2 seeds" in tuned and "adamw.lr 0.001" in tuned and "At the edge" in tuned
    assert "20 runs of plain" in noise and "4.8 % of 5,000 deals" in noise
    assert "Muon -0.2000 [-0.3000, -0.1000]; SOAP failed (no memory)" in tricks
    assert "was not compared with itself" in suite_pages.sentence("adapt", "aa")


def test_the_noise_and_the_doubt_stand_beside_a_verdict(known: None) -> None:
    assert suite_pages.noise("pretrain", "loss/prose") == "A/A: ±0.020 over the seeds, 4.8 % wrong"
    assert suite_pages.noise("pretrain", "loss/code") == suite_pages.noise("adapt", "loss/prose") == ""
    small = suite_pages.doubts("pretrain", "loss/prose", -0.05, "lower", {"mix_ln"})
    large = suite_pages.doubts("pretrain", "loss/prose", -0.5, "lower", {"mix_ln"})
    assert small == "in doubt: Muon gains more on this baseline" and not large
    assert not suite_pages.doubts("pretrain", "loss/prose", -0.05, "lower", {"torch_optim"})


def test_every_suite_has_its_place_and_a_search_is_a_table(known: None) -> None:
    text = suite_pages.tables()
    assert all(f"### {name}\n" in text for name in suite.names())
    assert f"    | 1 | 0.001 | **{value(3.0)}** |" in text and "    | 2 | 0.01 | failed |" in text
