from __future__ import annotations

import html
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from tests.report import sample
from trainwright.core.shown import plain
from trainwright.report import plots


def test_smoothing_by_hand() -> None:
    """Window 2 halves the weight with each place: the middle of (1, 0, 4) is (1/2 + 0 + 4/2) / (1/2 + 1 +
    1/2) = 1.25."""
    assert plots.smooth(np.array([1.0, 0.0, 4.0]), 2)[1] == 1.25
    assert np.allclose(plots.smooth(np.full(50, 3.0), 9), 3.0)
    line = np.arange(200.0)
    assert np.allclose(plots.smooth(line, 5)[60:140], line[60:140])  # no lag on a slope
    assert np.allclose(plots.smooth(line, 0.1), line)  # nothing to smooth


@pytest.mark.slow
def test_thinning_keeps_spikes_and_the_page_small() -> None:
    rows = sample.rows(50_000, 8.0, 3.0, {"prose": (8.0, 3.1)}, 1000)
    rows[33_333]["loss"] = 40.0
    loss = np.array([r["loss"] for r in rows])
    kept = np.linspace(0, len(rows) - 1, plots.MOST).round().astype(int)
    shown = [plots.extremes(loss, kept), plots.extremes(loss, kept + (kept < len(rows) - 1))]
    assert max(map(np.max, shown)) > 8.5  # the spike is seen, or its neighbourhood's low is
    figure = plots.training(rows, {"prose": 1})
    assert figure is not None and len(plots.svg(figure, "loss", "loss")) < 120_000


def test_nothing_to_draw() -> None:
    assert plots.training([], {}) is None
    assert plots.training([{"step": 1, "loss": float("nan")}], {}) is None


def test_one_step_without_tokens_and_with_odd_names(tmp_path: Path) -> None:
    figure = plots.training([{"step": 1, "steps": 1, "loss": 2.0, "eval/loss/$x_1$ <&> 漢": 1.0}], {})
    assert figure is not None
    text = plots.svg(figure, "loss-a b", 'say "loss" <now>')
    assert "$x_1$ &lt;&amp;&gt; 漢" in text and 'aria-label="say &quot;loss&quot; &lt;now&gt;"' in text
    assert plots.png(figure, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_svg_ids_are_its_own_and_colours_the_page_s() -> None:
    rows = sample.rows(40, 8.0, 3.0, {"prose": (8.0, 3.1)}, 10)
    # type: ignore[arg-type]
    texts = [plots.svg(plots.training(rows, {"prose": 1}), name, "x") for name in ("one", "two")]
    ids = [set(__import__("re").findall(r' id="([^"]+)"', t)) for t in texts]
    assert ids[0] and not ids[0] & ids[1]
    assert all(f"#{n}" in t or n in t for t, names in zip(texts, ids, strict=True) for n in names)
    assert "var(--plot-1, #2563a8)" in texts[0] and "<metadata" not in texts[0]


def test_bands_and_intervals_can_be_drawn() -> None:
    x = np.arange(10.0)
    figure = plots.curves(
        [plots.Line("lora", x, x, low=x - 1, high=x + 1), plots.Line("full", x, x + 0.01, colour=1)],
        "seconds",
        "loss",
    )
    names = [a for a in figure.axes[0].texts if a.get_text() in ("lora", "full")]
    heights = sorted(a.xy[1] for a in names)
    assert heights[1] - heights[0] > 0.5  # names of lines that end together are pushed apart
    drawn = plots.effects(
        [plots.Effect("code", "lora", 0.2, 0.1, 0.3), plots.Effect("prose", "lora", -0.1, -0.2, 0.0)],
        "worse",
        "better",
    )
    assert len(drawn.axes[0].patches) == 2


def test_nothing_global_is_changed() -> None:
    before = dict(matplotlib.rcParams)
    plots.svg(plots.curves([plots.Line("a", [0, 1], [1, 0])], "x", "y"), "a", "a")
    assert dict(matplotlib.rcParams) == before


NAMES = ["C:\\data", "\\1\\g<0>", "[/red]", "$x$", "<b>&\"'", "#1c2530", ' id="x', "\x1b[31m\x07", "a\nb"]
NAMES += ["\u202eabc"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_as_they_are(name: str, tmp_path: Path) -> None:
    rows = [{"step": s, "steps": 2, "loss": 2.0, f"eval/loss/{name}": 1.0} for s in (1, 2)]
    figure = plots.training(rows, {name: 1})
    assert figure is not None
    drawn = plots.svg(figure, name, f"What {name} lost")
    assert f'aria-label="{html.escape(plain(f"What {name} lost", lines=True))}"' in drawn
    assert not any(c in drawn for c in "\x1b\x07\u202e")
    if name == "#1c2530":
        assert ">#1c2530<" in drawn, "a name that is a colour stays"
    plots.png(figure, tmp_path / "plot.png")
