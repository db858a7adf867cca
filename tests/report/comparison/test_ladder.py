"""The page of a ladder: effects against scale, the words, and an extrapolation that is called one."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.comparison.test_page import plain
from tests.report.sample import VERSIONS
from tests.report.test_page import EVIL, Checked
from trainwright.compare.ladder import SAID
from trainwright.compare.statistics import paired
from trainwright.compare.trend import table, trend
from trainwright.report.comparison import ladder

SCALES = (2e10, 3e11, 5e12)


def one(arm: str, metric: str, means: tuple[float, ...], relative: bool = False) -> dict[str, Any]:
    """What becomes of an effect with these means, five seeds each."""
    draw = np.random.default_rng(len(arm))
    effects = [m + draw.normal(0, 0.004, 5) for m in means]
    points = [{"scale": x, "mean": p.difference, "low": p.low, "high": p.high, "values": list(e)}
              for x, e in zip(SCALES, effects, strict=True) for p in [paired(list(e))]]
    head = {"arm": arm, "metric": metric, "better": "lower", "relative": relative, "points": points}
    return head | table(trend(SCALES, effects))


def result() -> dict[str, Any]:
    """Three arms: one grows, one shrinks past zero, one failed at the largest size."""
    failed = {"arm": "galore", "metric": "loss/code", "better": "lower", "relative": False, "points": [],
              "word": "failed", "reason": "L: it has no memory left"}
    caveats = {"muon": ["untuned: settings as written"], "lora": []}
    named = zip(("S", "M", "L"), SCALES, (1e5, 4e5, 1.6e6), (3e4, 1.2e5, 5e5), strict=True)
    sizes = [{"name": n, "scale": x, "parameters": p, "tokens": t, "flops": x, "warnings": [],
              "caveats": caveats} for n, x, p, t in named]
    return {"title": "Optimizers by size", "recipe": "sizes.toml", "stage": "base", "metric": "loss/code",
            "better": "lower", "baseline": "adamw", "arms": ["muon", "lora", "galore"], "seeds": [*range(5)],
            "unit": "flops", "sizes": sizes, "said": SAID, "command": "trainwright compare s.toml --ladder",
            "trends": [one("muon", "loss/code", (-0.05, -0.08, -0.11)),
                       one("muon", "seconds_per_step", (0.3, 0.2, 0.1), relative=True),
                       one("lora", "loss/code", (0.04, 0.01, -0.02)), failed],
            "seconds": 812.0, "date": "2026-11-22T10:31:07+00:00", "hardware": "2 CPU cores",
            "versions": VERSIONS, "git": "3f9c2ab41d7e5508c6a1", "seed": 0}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ladder.write(tmp_path_factory.mktemp("ladder"), result())


@pytest.mark.slow
def test_the_page_says_what_becomes_of_each_effect(written: Path) -> None:
    text = written.read_text()
    found, seen = Checked(text), plain(text)
    assert len(found.ids) == len(set(found.ids)) and "script" not in found.tags
    for said in (
        "muon: its difference from adamw in loss on code grows with scale, from −0.0",
        "lora: its difference from adamw in loss on code shrinks with scale, and changes its sign, from +0.0",
        "galore failed at the size L: it has no memory left",
        "muon: untuned: settings as written.",
        "3 sizes, from S to L, each compared with 5 seeds",
        *SAID.values(),
    ):
        assert said in seen, said
    assert text.count('class="plot" role="img"') == 3 and "None" not in text and "nan<" not in text


@pytest.mark.slow
def test_nothing_beyond_the_largest_size_is_called_measured(written: Path) -> None:
    seen = plain(written.read_text())
    assert seen.count("Extrapolated to 50 T FLOPs:") == 2 and "if it goes on along its line" in seen
    assert "hollow: extrapolation" in seen and "they are an extrapolation" in seen
    rows = list(csv.DictReader((written.parent / "ladder.csv").open()))
    assert [r["size"] for r in rows] == ["S", "M", "L", "extrapolation"] * 3
    assert float(rows[3]["flops"]) == pytest.approx(5e13)


def test_costs_are_shares_in_percent(written: Path) -> None:
    assert "Costs against scale" in plain(written.read_text())
    t = result()["trends"][1]
    assert ladder.number(t, {"mean": -0.123, "low": -0.13, "high": -0.116}) == "−12.3 % [−13.0, −11.6]"


@pytest.mark.slow
def test_every_string_of_a_user_is_escaped(tmp_path: Path) -> None:
    evil = result()
    for t in evil["trends"]:
        t["arm"] += EVIL
    evil |= {"title": EVIL, "arms": [a + EVIL for a in evil["arms"]], "baseline": EVIL, "command": EVIL}
    for s in evil["sizes"]:
        s |= {"name": s["name"] + EVIL, "caveats": {EVIL: [EVIL]}}
    text = ladder.write(tmp_path, evil).read_text()
    assert "script" not in Checked(text).tags and text.count("&lt;script&gt;") > 10


def test_sentences_for_a_terminal_are_plain() -> None:
    first, *_ = ladder.sentences(result())
    assert first.startswith("muon: its difference from adamw") and "<" not in first
