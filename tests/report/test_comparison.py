from __future__ import annotations

import copy
import html
import io
import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from tests.report import sample_comparison as sample
from tests.report.test_page import EVIL, Checked
from trainwright.report import _comparison_drawn as drawn
from trainwright.report import comparison, comparison_plots, numbers, plots
from trainwright.report._compared import lead, read, shorten, story, words

PICTURES = {
    "difference.png",
    "balance.png",
    "curve-tokens.png",
    "curve-flops.png",
    "curve-seconds.png",
    "pareto.png",
    "tuning.png",
}


def plain(text: str) -> str:
    """The words of a page, without its head."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text[text.index("<body") :])))


def sentences(result: dict[str, Any]) -> list[str]:
    return [re.sub(r"<[^>]+>", "", line) for _, line in story(read(result))]


def changed(result: dict[str, Any], arm: str, metric: str, values: dict[str, Any]) -> dict[str, Any]:
    """The result with other values in one comparison."""
    told = copy.deepcopy(result)
    next(c for c in told["comparisons"] if (c["arm"], c["metric"]) == (arm, metric)).update(values)
    return told


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the sample."""
    return comparison.write(tmp_path_factory.mktemp("comparison") / "report", sample.result())


# ---- the page -------------------------------------------------------------------------------------------


def test_page_tells_the_answer(page: Path) -> None:
    text = page.read_text()
    seen = Checked(text)
    assert page.name == "index.html" and {f.name for f in page.parent.iterdir()} == PICTURES | {"index.html"}
    assert len(seen.ids) == len(set(seen.ids)) and text.count("<caption>") == text.count("<table")
    assert seen.loads == ["data:,"] and "url(http" not in text and "@import" not in text and "script" not in seen.tags
    told = plain(text)
    for said in (
        "5 arms in the stage adapt, each with 5 seeds, 200 k tokens a run, after 4 tuning trials.",
        "lora is worse than full: its loss on code is higher by 0.037 [0.032, 0.043]. It forgets less of prose: +0.057 instead",
        "dora: no difference from full at this budget in loss on code (−0.003 [−0.008, 0.001]). A true one of 0.008 would be",
        "galore failed: the loss is nan at step 41",
        "the best adamw.lr of ia3 lies at the edge",
        "peak memory ×0.63",
        "trainwright compare recipes/compare_adapters.toml",
        "(baseline over its seeds)",
        *sample.SAID.values(),
    ):
        assert said in told, said
    assert text.count('class="plot" role="img" aria-label="') == 1 + 1 + 3 + 3 + 4
    assert "nan<" not in text and "None" not in text


def test_everything_that_was_compared_is_on_the_page(page: Path) -> None:
    result, told = sample.result(), plain(page.read_text())
    for one in result["comparisons"]:
        if one["difference"] is not None:
            assert all(t in told for t in numbers.interval(one["metric"], one["difference"], one["low"], one["high"])), one
            assert words(one["metric"]) in told
    for arm in result["arms"]:
        assert arm["changes"] in told
        assert all(key in told for run in arm["runs"] for key in run["hashes"].values())


@pytest.mark.slow
def test_every_string_of_a_user_is_escaped(tmp_path: Path) -> None:
    told = sample.result()
    for arm in told["arms"]:
        arm |= {"name": f"{arm['name']} {EVIL}", "changes": EVIL, "stage": {EVIL: EVIL}, "failed": arm["failed"] and EVIL}
        for trial in arm["trials"]:
            trial["values"] = {EVIL: EVIL}
        for run in arm["runs"]:
            run |= {
                "hashes": {EVIL: EVIL},
                "metrics": {f"loss/{EVIL}" if k == "loss/code" else k: x for k, x in run["metrics"].items()},
            }
    for one in told["comparisons"]:
        one |= {"arm": f"{one['arm']} {EVIL}", "baseline": f"full {EVIL}"}
        one["metric"] = f"loss/{EVIL}" if one["metric"] == "loss/code" else one["metric"]
    keys = dict.fromkeys(("title", "recipe", "stage", "command", "hardware", "git", "date"), EVIL)
    told |= keys | {
        "baseline": f"full {EVIL}",
        "metric": f"loss/{EVIL}",
        "warnings": [EVIL],
        "said": {"verdict": EVIL},
        "versions": {EVIL: EVIL},
    }
    told["noise"] = {f"loss/{EVIL}": {"half_width": 0.01, "source": EVIL}}
    text = comparison.write(tmp_path / "report", told).read_text()
    assert "script" not in Checked(text).tags and "<script" not in text and text.count("&lt;script&gt;") > 30
    assert all(f.parent == tmp_path / "report" for f in tmp_path.rglob("*") if f.is_file())


@pytest.mark.slow
def test_letters_that_the_font_lacks_and_mathematics(tmp_path: Path) -> None:
    told = sample.bare(sample.single())
    for where in (told["arms"][1], *told["comparisons"]):
        where["name" if "name" in where else "arm"] = "漢 $x_1$"
    assert "漢 $x_1$" in comparison.write(tmp_path, told).read_text()


def test_a_merge_has_no_curve_no_tuning_and_no_budget(tmp_path: Path) -> None:
    page = comparison.write(tmp_path, sample.plain())
    text = plain(page.read_text())
    assert {f.name for f in tmp_path.iterdir()} == {"index.html", "difference.png"}
    assert "task_arithmetic is better than slerp: its accuracy on questions is higher by" in text
    assert "as far as the recipe says" in text and "higher is better" in text and "← worse" in text and "better →" in text
    assert "Tuning" not in text and "On the way" not in text and "Grey" not in text and "time per step" not in text


@pytest.mark.slow
def test_many_arms_are_told_in_groups_and_drawn_apart(tmp_path: Path) -> None:
    result = sample.many()
    text = comparison.write(tmp_path, result).read_text()
    told = plain(text)
    assert re.search(r"2 of 11 better than full: oft \(−0.021\), dora \(−0.020\)\.", told)
    assert (
        "1 of 11 without a difference from full: spdf (+0.001)." in told and "8 of 11 worse than full: lora-rank-64-all" in told
    )
    assert text.count("over tokens") == text.count("over FLOPs") == 11
    assert all(arm["name"] in told for arm in result["arms"])  # no name is shortened in words and tables


def test_same_arm_twice() -> None:
    told = sample.again()
    assert lead(read(told)).startswith("The same arm twice in the stage adapt, each with 5 seeds")
    assert len(sentences(told)) == 1 and sentences(told)[0].startswith("full again: no difference from full at this budget")
    alarm = changed(told, "full again", "loss/code", {"verdict": "worse"})
    assert "A difference was found where there is none." in sentences(alarm)[1]


@pytest.mark.slow
def test_an_arm_without_the_main_metric_is_said_to_have_none(tmp_path: Path) -> None:
    told = sample.bare(sample.single())
    told["comparisons"] = [c for c in told["comparisons"] if c["metric"] != "loss/code"]
    assert sentences(told) == ["lora was not measured in loss on code."]
    assert "not measured" in plain(comparison.write(tmp_path, told).read_text())


@pytest.mark.parametrize(
    ("difference", "better", "verdict", "says"),
    [
        (-0.02, "lower", "better", "lora is better than full: its loss on code is lower by 0.020 [0.010, 0.030]."),
        (0.02, "lower", "worse", "lora is worse than full: its loss on code is higher by 0.020 [0.010, 0.030]."),
        (0.02, "higher", "better", "lora is better than full: its loss on code is higher by 0.020 [0.010, 0.030]."),
        (0.02, "lower", "no difference", "lora: no difference from full at this budget in loss on code (+0.020 [0.010, 0.030])."),
    ],
)
def test_the_words_follow_the_verdict(difference: float, better: str, verdict: str, says: str) -> None:
    """An interval that leaves out zero is no verdict: Holm's correction decides, and the sentence follows it."""
    values = {"difference": difference, "low": difference - 0.01, "high": difference + 0.01, "better": better, "verdict": verdict}
    assert sentences(changed(sample.single(), "lora", "loss/code", values))[0].startswith(says)


def test_gain_is_told_where_it_is_not_the_main_metric_in_other_words() -> None:
    told = sample.single() | {"metric": "perplexity/code"}
    assert not any("learns" in s for s in sentences(told))
    told = sample.single() | {"metric": "forgetting/prose"}
    assert "It learns less of code: +0.908 instead of +0.945." in sentences(told)[0]
    assert "forgets" not in sentences(told)[0] and "its forgetting of prose is lower by" in sentences(told)[0]


# ---- the table ------------------------------------------------------------------------------------------


def shown(result: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(comparison.table(result))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_table_has_a_line_an_arm() -> None:
    lines = shown(sample.result(), 160).splitlines()
    rows = [line.split() for line in lines if line.split() and line.split()[0] in ("full", "lora", "dora", "ia3", "galore")]
    assert [r[0] for r in rows] == ["full", "lora", "dora", "ia3", "galore", "galore"]  # the last one is the note why it failed
    assert rows[1][1:6] == ["3.142", "+0.037", "[0.032,", "0.043]", "worse"]
    assert rows[1][6:] == [
        "0.010",
        "+0.908",
        "+0.057",
        "0.44",
        "s",
        "×1.08",
        "825",
        "MB",
        "×0.63",
        "197",
        "k",
        "×0.019",
        "788",
        "kB",
        "×0.019",
    ]
    assert rows[4][1:4] == ["–", "–", "failed"]
    assert any("the best adamw.lr of ia3 lies at the edge" in line for line in lines)
    assert sample.SAID["verdict"] in " ".join(lines)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("make", [sample.result, sample.many, sample.plain, sample.again])
def test_table_fits_the_terminal_and_loses_nothing(make: Any, width: int) -> None:
    result = make()
    text = shown(result, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text.replace("…", "", 400 if make is sample.many else 0)
    told = " ".join(text.split())
    for one in read(result).others:
        assert all(part in told for part in one.difference(result["metric"]))
    assert all(word in told for word in ("verdict", "detectable", "stored"))


def test_colours_of_a_table_follow_verdicts() -> None:
    console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system="standard", legacy_windows=False)
    console.print(comparison.table(sample.result()))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[31mworse" in text and re.search(r"\x1b\[32m *\+0\.057", text) and "\x1b[32mno difference" not in text


# ---- plots ----------------------------------------------------------------------------------------------


def row(mean: float, half: float = 0.01, verdict: str = "worse") -> comparison_plots.Row:
    return comparison_plots.Row("a", [mean - half / 2, mean + half / 2], mean, mean - half, mean + half, verdict, "")


def test_one_far_arm_does_not_squeeze_the_others() -> None:
    """Reaches 0.05, 0.06 and 1.01: the middle one is 0.06, so 1.01 is beyond and the axis ends at 1.12 times 0.06."""
    rows = [row(0.04), row(-0.05), row(1.0)]
    assert comparison_plots.edge(rows, 0.0) == pytest.approx(1.12 * 0.06)
    assert comparison_plots.edge(rows[:2], 0.0) == pytest.approx(1.12 * 0.06)
    assert comparison_plots.edge([row(0.1), row(0.2)], 0.0) == pytest.approx(1.12 * 0.21)
    assert comparison_plots.edge(rows, 0.5) == pytest.approx(1.12 * 1.01)  # with such a noise floor it is not far
    axes = comparison_plots.differences(rows, "loss", True, None).axes[0]
    assert [line.get_marker() for line in axes.lines].count(">") == 1
    assert drawn.beyond(read(sample.result())) and not drawn.beyond(read(sample.single()))


def test_differences_show_every_seed_and_the_noise_floor() -> None:
    result = sample.result()
    figure = comparison_plots.differences(drawn.rows(read(result)), "loss", True, 0.0145)
    axes = figure.axes[0]
    dots = [list(line.get_xdata()) for line in axes.lines if line.get_markersize() == 3.6]
    assert dots == [c["values"] for c in result["comparisons"] if c["metric"] == "loss/code" and c["values"]]
    assert axes.patches[0].get_extents().transformed(axes.transData.inverted()).bounds[::2] == pytest.approx((-0.0145, 0.029))
    texts = [t.get_text() for t in axes.texts]
    assert texts[:2] == ["+0.037 [0.032, 0.043]", "worse"] and texts[-1] == "failed"


def test_nothing_to_draw_but_failures(tmp_path: Path) -> None:
    told = sample.result()
    told["comparisons"] = [c for c in told["comparisons"] if c["verdict"] == "failed"]
    told["arms"] = [a for a in told["arms"] if a["name"] in ("full", "galore")]
    text = plain(comparison.write(tmp_path, told).read_text())
    assert "galore failed" in text and "better than" not in text


def test_band_reaches_from_the_lowest_seed_to_the_highest() -> None:
    told = sample.single()
    told["arms"][1]["curve"] = {"name": "loss/code", "split": "tune", "tokens": [0, 10, 20], "flops": None, "seconds": [0, 1, 2],
                                "values": [[4.0, 3.0, 2.0], [4.0, 3.4, None], [4.0, 3.5, 2.5]]}  # fmt: skip
    line = drawn._line(read(told).arms[1], "tokens")
    assert line is not None and list(line.x) == [0, 10]  # what one seed has not measured is left out for all
    assert np.allclose(line.y, [4.0, 3.3]) and np.allclose(line.low, [4.0, 3.0]) and np.allclose(line.high, [4.0, 3.5])
    assert drawn._line(read(told).arms[1], "flops") is None


def test_curves_without_any_seed_or_any_arm(tmp_path: Path) -> None:
    told = sample.single()
    for arm in told["arms"]:
        arm["curve"] = None
    assert drawn.curves(read(told), tmp_path) == []
    told["arms"][0]["curve"] = {
        "name": "loss/code",
        "split": "tune",
        "tokens": [1],
        "flops": [1],
        "seconds": [1],
        "values": [[None]],
    }
    assert drawn.curves(read(told), tmp_path) == []


def test_the_budget_s_currency_comes_first(tmp_path: Path) -> None:
    told = sample.single() | {"budget": {"currency": "seconds", "amount": 60}}
    assert [p.picture for p in drawn.curves(read(told), tmp_path)] == ["curve-seconds.png", "curve-tokens.png", "curve-flops.png"]
    assert "1 min 00 s of training a run" in lead(
        read(told | {"budget": {"currency": "seconds", "amount": 60.0}})
    ) or "60 s" in lead(read(told))


def test_front_by_hand() -> None:
    """Of (1, 5), (2, 3), (2, 4), (3, 3) and (4, 1) the third and the fourth are beaten by the second."""
    points = [(4.0, 1.0), (3.0, 3.0), (2.0, 4.0), (2.0, 3.0), (1.0, 5.0)]
    assert comparison_plots.frontier(points, lower=True) == [(1, 5), (2, 3), (4, 1)]
    assert comparison_plots.frontier([(x, -y) for x, y in points], lower=False) == [(1, -5), (2, -3), (4, -1)]


def test_bars_of_quality_are_those_of_the_difference() -> None:
    told = sample.single()
    one = next(c for c in told["comparisons"] if c["metric"] == "loss/code")
    base, lora = drawn._points(read(told), "peak_memory_bytes")
    assert base.low == base.y == base.high == pytest.approx(one["baseline_mean"])
    assert (lora.low, lora.high) == pytest.approx((one["baseline_mean"] + one["low"], one["baseline_mean"] + one["high"]))


def test_a_cost_that_is_the_same_for_all_is_not_drawn(tmp_path: Path) -> None:
    found = drawn.pareto(read(sample.again()), tmp_path)
    text = "".join(found.drawings) if found else ""
    assert "over trained parameters" not in text and "over peak memory" not in text


@pytest.mark.parametrize("metric", ["seconds_per_step", "peak_memory_bytes", "trainable_parameters", "forgetting/prose"])
def test_names_of_points_do_not_lie_on_each_other(metric: str) -> None:
    """Twelve arms in a small plot: no two names overlap, and none leaves the picture."""
    points = drawn._points(read(sample.many()), metric)
    figure = comparison_plots.panels([comparison_plots.cost(points, metric, "x", "y", True)])
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    boxes = [t.get_window_extent(renderer) for t in figure.axes[0].texts]
    assert len(boxes) == 12
    assert [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)] == []
    assert all(figure.bbox.containsx(x) and figure.bbox.containsy(y) for b in boxes for x, y in (b.min, b.max))


def test_long_names_keep_their_ends_and_differ() -> None:
    assert shorten(["lora"]) == ["lora"] and shorten(["a" * 20]) == ["a" * 20]
    assert shorten(["lora-rank-64-all-linear-layers"]) == ["lora-rank…ear-layers"]
    same = shorten([f"{'a' * 15}{i}{'b' * 15}" for i in range(3)])
    assert len(set(same)) == 3 and all(len(s) <= 20 for s in same)


def test_trials_far_off_are_named_at_the_edge() -> None:
    """Best 3.0, middle 3.1: the axis holds what is within four times 0.1 of the best, and 9.0 is not."""
    told = sample.single()
    for arm, metrics in zip(told["arms"], ([3.0, 3.1, 9.0], [3.1, 3.3, None]), strict=True):
        arm["trials"] = [
            {"values": {"lr": x}, "metric": m, "failed": None, "pruned": False} for x, m in zip((1, 2, 3), metrics, strict=True)
        ]
        arm["chosen"] = {"lr": 1}
    limits = drawn._limits(read(told))
    assert limits is not None and limits == pytest.approx((3.0 - 0.12 * 0.3, 3.0 + 1.15 * 0.3))
    tried = [
        comparison_plots.Trial(t["values"]["lr"], t["metric"], t["values"] == {"lr": 1})
        for a in told["arms"]
        for t in a["trials"]
    ]
    axes = comparison_plots.panels([comparison_plots.trials(tried, 0, "a", "lr", limits)]).axes[0]
    assert [t.get_text() for t in axes.texts] == ["9"]
    assert [line.get_marker() for line in axes.lines].count("x") == 1
    assert [line.get_markerfacecolor() == plots.SERIES[0] for line in axes.lines].count(True) == 2


def test_where_more_is_better_trials_far_below_are_off_the_axis() -> None:
    told = sample.plain()
    told["arms"][0]["trials"] = [
        {"values": {"t": str(m)}, "metric": m, "failed": None, "pruned": False} for m in (0.1, 0.6, 0.62)
    ]
    assert drawn._limits(read(told)) == pytest.approx((0.62 - 1.15 * 0.02, 0.62 + 0.12 * 0.02))


def test_values_in_words_and_a_single_value_can_be_drawn(tmp_path: Path) -> None:
    told = sample.single()
    told["arms"][0]["trials"] = [{"values": {"kind": k}, "metric": 3.0, "failed": None, "pruned": k == "b"} for k in ("a", "b")]
    told["arms"][1]["trials"] = [{"values": {"lr": 0.0}, "metric": None, "failed": "nan", "pruned": False}]
    found = drawn.tuning(read(told), tmp_path)
    assert found is not None and len(found.drawings) == 2


# ---- figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "numbers_of", "says"),
    [
        ("loss/code", (0.0362644, 0.03133, 0.0412), ("+0.036", "[0.031, 0.041]")),
        ("loss/code", (-0.0004, -0.0016, 0.0008), ("−0.0004", "[−0.0016, 0.0008]")),
        ("loss/code", (0.04, -0.0012, 0.0812), ("+0.040", "[−0.001, 0.081]")),
        ("loss/code", (0.0, -0.01, 0.01), ("0.000", "[−0.010, 0.010]")),
        ("perplexity/code", (12.1, -80.0, 104.0), ("+12", "[−80, 104]")),
        ("peak_memory_bytes", (-481_346_772.0, -486_020_604.0, -476_672_940.0), ("−481 MB", "[−486, −477]")),
        ("stored_bytes", (-39e6, -39e6, -39e6), ("−39 MB", "")),
        ("trainable_parameters", (0, 0, 0), ("0", "")),
        ("seconds_per_step", (0.033, 0.02, 0.046), ("+33 ms", "[20, 46]")),
        ("loss/code", (None, None, None), ("–", "")),
        ("loss/code", (math.nan, math.nan, math.nan), ("–", "")),
    ],
)
def test_interval_has_the_decimals_it_is_worth(metric: str, numbers_of: tuple[Any, Any, Any], says: tuple[str, str]) -> None:
    assert numbers.interval(metric, *numbers_of) == says


def test_small_figures() -> None:
    assert [numbers.ratio(x, 1.0) for x in (1.084, 0.63, 0.0194, 0.00059, 30.2, 0.0, None)] == [
        "×1.08",
        "×0.63",
        "×0.019",
        "×0.00059",
        "×30",
        "",
        "",
    ]
    assert [numbers.p_value(p) for p in (0.0, 0.0041, 0.0321, 1.0, None)] == ["< 0.001", "0.0041", "0.032", "1.000", "–"]
    assert [numbers.decimals(w) for w in (0.0123, 0.0081, 0.0035, 1.3, 8.0, 250.0, 0.0)] == [3, 3, 4, 1, 0, 0, 3]
    assert [numbers.quantity("seconds_per_step", s) for s in (0.0412, 0.412, 41.2)] == ["41.2 ms", "0.41 s", "41.2 s"]
    assert [words(m) for m in ("loss/code", "loss/mean", "forgetting/prose", "bits_per_byte/x", "peak_memory_bytes", "acc")] == [
        "loss on code", "mean loss", "forgetting of prose", "bits per byte on x", "peak memory", "acc"]  # fmt: skip


def test_what_arms_selected_is_drawn_where_they_differ(tmp_path: Path) -> None:
    def kept(n: int) -> dict[str, Any]:
        return {"curated": [{"method": "best", "in": 9, "written": 0, "dropped": 9 - n, "out": n}],
                "kept": {"domains": {"code": [9, n]}, "lengths": {"edges": [1.0, 10.0, 100.0], "all": [4, 5], "kept": [0, n]}}}

    told = copy.deepcopy(sample.result())
    for i, arm in enumerate(told["arms"]):
        arm["selected"] = {"raw": kept(3), "chosen": kept(4 + i % 2)}
    text = comparison.write(tmp_path, told).read_text()
    assert "What was selected" in text and "4 of 9 documents were kept" in text and "5 of 9" in text
    assert "3 of 9" not in text, "what is the same for all is no matter of the comparison"
    assert "What was selected" not in comparison.write(tmp_path / "plain", sample.result()).read_text()
