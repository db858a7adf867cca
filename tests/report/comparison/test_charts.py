"""Charts, looked at through Matplotlib's objects."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tests.report.comparison import sample
from trainwright.report.comparison import charts, plots
from trainwright.report.comparison.numbers import read
from trainwright.report.plots import SERIES


def row(mean: float, half: float = 0.01, verdict: str = "worse") -> charts.Row:
    return charts.Row("a", [mean - half / 2, mean + half / 2], mean, mean - half, mean + half, verdict, "")


def test_one_far_arm_does_not_squeeze_the_others() -> None:
    """Reaches 0.05, 0.06 and 1.01: the middle one is 0.06, so 1.01 is beyond and the axis ends at 1.12 times
    0.06."""
    rows = [row(0.04), row(-0.05), row(1.0)]
    assert charts.edge(rows, 0.0) == pytest.approx(1.12 * 0.06)
    assert charts.edge(rows[:2], 0.0) == pytest.approx(1.12 * 0.06)
    assert charts.edge([row(0.1), row(0.2)], 0.0) == pytest.approx(1.12 * 0.21)
    assert charts.edge(rows, 0.5) == pytest.approx(1.12 * 1.01)  # with such a noise floor it is not far
    axes = charts.differences(rows, "loss", True, None).axes[0]
    assert [line.get_marker() for line in axes.lines].count(">") == 1
    assert plots.beyond(read(sample.result())) and not plots.beyond(read(sample.single()))


def test_differences_show_every_seed_and_the_noise_floor() -> None:
    result = sample.result()
    figure = charts.differences(plots.rows(read(result)), "loss", True, 0.0145)
    axes = figure.axes[0]
    dots = [list(line.get_xdata()) for line in axes.lines if line.get_markersize() == 3.6]
    assert dots == [c["values"] for c in result["comparisons"] if c["metric"] == "loss/code" and c["values"]]
    assert axes.patches[0].get_extents().transformed(axes.transData.inverted()).bounds[::2] == pytest.approx(
        (-0.0145, 0.029)
    )
    texts = [t.get_text() for t in axes.texts]
    assert texts[:2] == ["+0.037 [0.032, 0.043]", "worse"] and texts[-1] == "failed"


def test_ticks_of_an_axis_have_the_same_decimals() -> None:
    """Of 0.4, 0.48 and 0.56 s the first is written 0.40 s; zero stays zero, other units keep their own."""
    seconds = charts.Even(lambda x: charts.cost_tick("seconds_per_step", x))
    assert seconds.format_ticks([0.0, 0.4, 0.48, 0.56]) == ["0 s", "0.40 s", "0.48 s", "0.56 s"]
    memory = charts.Even(lambda x: charts.cost_tick("peak_memory_bytes", x))
    assert memory.format_ticks([8e8, 1e9, 1.2e9]) == ["800 MB", "1.0 GB", "1.2 GB"]
    assert charts.Even(str).format_ticks([1e-7, -2.5]) == ["1e-07", "-2.5"]


def test_of_two_arms_none_is_far_off() -> None:
    """With a third arm that is near, the one at 1.0 is an arrow; alone with one it is drawn."""
    assert charts.edge([row(0.04), row(1.0)], 0.0) == pytest.approx(1.12 * 1.01)


def test_front_by_hand() -> None:
    """Of (1, 5), (2, 3), (2, 4), (3, 3) and (4, 1) the third and the fourth are beaten by the second."""
    points = [(4.0, 1.0), (3.0, 3.0), (2.0, 4.0), (2.0, 3.0), (1.0, 5.0)]
    assert charts.frontier(points, lower=True) == [(1, 5), (2, 3), (4, 1)]
    assert charts.frontier([(x, -y) for x, y in points], lower=False) == [(1, -5), (2, -3), (4, -1)]


@pytest.mark.parametrize(
    "metric", ["seconds_per_step", "peak_memory_bytes", "trainable_parameters", "forgetting/prose"]
)
def test_names_of_points_do_not_lie_on_each_other(metric: str) -> None:
    """Twelve arms in a small plot: no two names overlap, and none leaves the picture."""
    points = plots._points(read(sample.many()), metric)
    figure = charts.panels([charts.cost(points, metric, "x", "y", True)])
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    boxes = [t.get_window_extent(renderer) for t in figure.axes[0].texts]
    assert len(boxes) == 12
    assert [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)] == []
    assert all(
        figure.bbox.containsx(x) and figure.bbox.containsy(y) for b in boxes for x, y in (b.min, b.max)
    )


def test_trials_far_off_are_named_at_the_edge() -> None:
    """Best 3.0, middle 3.1: the axis holds what is within four times 0.1 of the best, and 9.0 is not."""
    result = sample.single()
    for arm, metrics in zip(result["arms"], ([3.0, 3.1, 9.0], [3.1, 3.3, None]), strict=True):
        arm["trials"] = [
            {"values": {"lr": x}, "metric": m, "failed": None, "pruned": False}
            for x, m in zip((1, 2, 3), metrics, strict=True)
        ]
        arm["chosen"] = {"lr": 1}
    limits = plots._limits(read(result))
    assert limits is not None and limits == pytest.approx((3.0 - 0.12 * 0.3, 3.0 + 1.15 * 0.3))
    tried = [
        charts.Trial(t["values"]["lr"], t["metric"], t["values"] == {"lr": 1})
        for a in result["arms"]
        for t in a["trials"]
    ]
    axes = charts.panels([charts.trials(tried, 0, "a", "lr", limits)]).axes[0]
    assert [t.get_text() for t in axes.texts] == ["9"]
    assert [line.get_marker() for line in axes.lines].count("x") == 1
    assert [line.get_markerfacecolor() == SERIES[0] for line in axes.lines].count(True) == 2
