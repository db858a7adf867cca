"""The page of a comparison: what it says, and that every string of a user is escaped."""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.report.comparison import sample
from tests.report.comparison.test_sentences import sentences
from tests.report.test_page import EVIL, Checked
from trainwright.report import numbers
from trainwright.report.comparison import page
from trainwright.report.comparison.numbers import words

PLOTS = ("difference", "balance", "curve-tokens", "curve-flops", "curve-seconds", "pareto", "tuning")
TABLES = {"comparisons.csv", "runs.csv", "table.tex", "papers.bib"}


def files(*plots: str) -> set[str]:
    """The pictures of these plots."""
    return {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg", "pdf")}


def plain(text: str) -> str:
    """The words of a page, without its head."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text[text.index("<body") :])))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the sample."""
    return page.write(tmp_path_factory.mktemp("comparison") / "report", sample.result())


@pytest.fixture(autouse=True)
def _quick(written: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """The page of the sample has all its pictures, and so has one whose letters a font lacks."""
    drawn = request.function is test_letters_that_the_font_lacks_and_mathematics
    with nullcontext() if drawn else sample.without_pictures():
        yield


@pytest.mark.slow
def test_page_tells_the_answer(written: Path) -> None:
    text = written.read_text()
    found = Checked(text)
    assert written.name == "index.html"
    assert {f.name for f in written.parent.iterdir()} == files(*PLOTS) | TABLES | {"index.html"}
    assert len(found.ids) == len(set(found.ids)) and text.count("<caption>") == text.count("<table")
    assert found.loads == ["data:,"] and "script" not in found.tags
    assert "url(http" not in text and "@import" not in text
    seen = plain(text)
    for said in (
        "5 arms in the stage adapt, each with 5 seeds, 200 k tokens a run, after 4 tuning trials.",
        "lora is worse than full: its loss on code is higher by 0.037 [0.032, 0.043]. It forgets less of "
        "prose: +0.057 instead",
        "dora: no difference from full at this budget in loss on code (−0.003 [−0.008, 0.001]). A true one "
        "of 0.008 would be",
        "galore failed: the loss is nan at step 41",
        "the best adamw.lr of ia3 lies at the edge",
        "peak memory ×0.63",
        "trainwright compare recipes/compare_adapters.toml",
        "(baseline over its seeds)",
        *sample.SAID.values(),
    ):
        assert said in seen, said
    assert text.count('class="plot" role="img" aria-label="') == 1 + 1 + 3 + 4 + 4
    assert "nan<" not in text and "None" not in text


@pytest.mark.slow
def test_caveats_stand_beside_the_verdict_in_the_table_and_in_words(written: Path) -> None:
    text = written.read_text()
    said = "tuned to the edge of what was tried: adamw.lr 0.01"
    row = re.search(r"<tr[^>]*><th[^>]*>[^\n]*ia3</th>.*?</tr>", text, re.DOTALL)
    assert row is not None and re.search(rf"worse</span><ul class=\"caveats\"><li>{said}</li>", row[0])
    assert f"({said})" in plain(text) and text.count(said) == 2
    assert "caveats\"><li" not in page.write(written.parent / "none", sample.single()).read_text()


@pytest.mark.slow
def test_a_race_says_what_it_took_and_what_is_open(tmp_path: Path) -> None:
    text = page.write(tmp_path, sample.raced()).read_text()
    seen = plain(text)
    assert "each with at most 5 seeds" in seen
    assert "After 5 seeds not decided: dora. 14 runs, where 5 seeds of each arm take 15: 1 saved." in seen
    assert "dora: not decided against full with 5 seeds in loss on code (" in seen
    assert '<span class="tag not-decided">not decided</span>' in text and "4 seeds, fewer than five" in seen


@pytest.mark.slow
def test_everything_that_was_compared_is_on_the_page(written: Path) -> None:
    result, seen = sample.result(), plain(written.read_text())
    for one in result["comparisons"]:
        if one["difference"] is not None:
            assert all(
                t in seen
                for t in numbers.interval(one["metric"], one["difference"], one["low"], one["high"])
            ), one
            assert words(one["metric"]) in seen
    for arm in result["arms"]:
        assert arm["changes"] in seen
        assert all(key in seen for run in arm["runs"] for key in run["hashes"].values())


@pytest.mark.slow
def test_every_string_of_a_user_is_escaped(tmp_path: Path) -> None:
    result = sample.result()
    for arm in result["arms"]:
        arm |= {
            "name": f"{arm['name']} {EVIL}",
            "changes": EVIL,
            "stage": {EVIL: EVIL},
            "failed": arm["failed"] and EVIL,
        }
        for trial in arm["trials"]:
            trial["values"] = {EVIL: EVIL}
        for run in arm["runs"]:
            run |= {
                "hashes": {EVIL: EVIL},
                "metrics": {f"loss/{EVIL}" if k == "loss/code" else k: x for k, x in run["metrics"].items()},
            }
    for one in result["comparisons"]:
        one |= {"arm": f"{one['arm']} {EVIL}", "baseline": f"full {EVIL}"}
        one["metric"] = f"loss/{EVIL}" if one["metric"] == "loss/code" else one["metric"]
    keys = dict.fromkeys(("title", "recipe", "stage", "command", "hardware", "git", "date"), EVIL)
    result |= keys | {
        "baseline": f"full {EVIL}",
        "metric": f"loss/{EVIL}",
        "warnings": [EVIL],
        "said": {"verdict": EVIL},
        "versions": {EVIL: EVIL},
    }
    result["noise"] = {f"loss/{EVIL}": {"half_width": 0.01, "source": EVIL}}
    text = page.write(tmp_path / "report", result).read_text()
    assert "script" not in Checked(text).tags and "<script" not in text and text.count("&lt;script&gt;") > 30
    assert all(f.parent == tmp_path / "report" for f in tmp_path.rglob("*") if f.is_file())


@pytest.mark.slow
def test_letters_that_the_font_lacks_and_mathematics(tmp_path: Path) -> None:
    result = sample.bare(sample.single())
    for where in (result["arms"][1], *result["comparisons"]):
        where["name" if "name" in where else "arm"] = "漢 $x_1$"
    assert "漢 $x_1$" in page.write(tmp_path, result).read_text()


@pytest.mark.slow
def test_a_merge_has_no_curve_no_tuning_and_no_budget(tmp_path: Path) -> None:
    text = plain(page.write(tmp_path, sample.plain()).read_text())
    there = {f.name for f in tmp_path.iterdir()}
    assert there == files("difference") | TABLES - {"papers.bib"} | {"index.html"}
    assert "task_arithmetic is better than slerp: its accuracy on questions is higher by" in text
    assert (
        "as far as the recipe says" in text
        and "higher is better" in text
        and "← worse" in text
        and "better →" in text
    )
    assert (
        "Tuning" not in text
        and "On the way" not in text
        and "Grey" not in text
        and "time per step" not in text
    )


@pytest.mark.slow
def test_many_arms_are_answered_in_groups_and_drawn_apart(tmp_path: Path) -> None:
    result = sample.many()
    text = page.write(tmp_path, result).read_text()
    seen = plain(text)
    assert re.search(r"2 of 11 better than full: oft \(−0.021\), dora \(−0.020\)\.", seen)
    assert (
        "1 of 11 without a difference from full: spdf (+0.001)." in seen
        and "8 of 11 worse than full: lora-rank-64-all" in seen
    )
    assert text.count("over tokens") == text.count("over FLOPs") == 11
    assert all(arm["name"] in seen for arm in result["arms"])  # no name is shortened in words and tables


@pytest.mark.slow
def test_an_arm_without_the_main_metric_is_said_to_have_none(tmp_path: Path) -> None:
    result = sample.bare(sample.single())
    result["comparisons"] = [c for c in result["comparisons"] if c["metric"] != "loss/code"]
    assert sentences(result) == ["lora was not measured in loss on code."]
    assert "not measured" in plain(page.write(tmp_path, result).read_text())


@pytest.mark.slow
def test_nothing_to_draw_but_failures(tmp_path: Path) -> None:
    result = sample.result()
    result["comparisons"] = [c for c in result["comparisons"] if c["verdict"] == "failed"]
    result["arms"] = [a for a in result["arms"] if a["name"] in ("full", "galore")]
    text = plain(page.write(tmp_path, result).read_text())
    assert "galore failed" in text and "better than" not in text


@pytest.mark.slow
def test_what_arms_selected_is_drawn_where_they_differ(tmp_path: Path) -> None:
    def kept(n: int) -> dict[str, Any]:
        return {
            "curated": [{"method": "best", "in": 9, "written": 0, "dropped": 9 - n, "out": n}],
            "kept": {
                "domains": {"code": [9, n]},
                "lengths": {"edges": [1.0, 10.0, 100.0], "all": [4, 5], "kept": [0, n]},
            },
        }

    result = copy.deepcopy(sample.result())
    for i, arm in enumerate(result["arms"]):
        arm["selected"] = {"raw": kept(3), "chosen": kept(4 + i % 2)}
    text = page.write(tmp_path, result).read_text()
    assert "What was selected" in text and "4 of 9 documents were kept" in text and "5 of 9" in text
    assert "3 of 9" not in text, "what is the same for all is no matter of the comparison"
    assert "What was selected" not in page.write(tmp_path / "plain", sample.result()).read_text()
