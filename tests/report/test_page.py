from __future__ import annotations

import html.parser
import re
from pathlib import Path

import pytest

from tests.report import sample
from trainwright.report import page

EVIL = "<script>alert('x')</script>\"&"


class Checked(html.parser.HTMLParser):
    """Tags that close in order, ids that are unique, and what a browser would load."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.ids += [str(value)] if name == "id" else []
            self.loads += (
                [str(value)]
                if name in ("src", "srcset", "action") or (name == "href" and tag == "link")
                else []
            )

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def whole(root: Path) -> str:
    manifests, folders = sample.run(root / "store")
    out = page.write(
        root / "report", sample.RECIPE, "A first life: prose, then code", manifests, folders, sample.PLAN
    )
    return out.read_text()


@pytest.mark.slow
def test_the_page_of_a_run(tmp_path: Path) -> None:
    text = whole(tmp_path)
    seen = Checked(text)
    assert len(seen.ids) == len(set(seen.ids))
    assert (
        seen.loads == ["data:,"]
        and "url(http" not in text
        and "@import" not in text
        and "script" not in seen.tags
    )
    assert {p.name for p in (tmp_path / "report").glob("*.png")} == {
        "loss-base.png",
        "loss-adapt.png",
        "effect-judge.png",
    }
    assert text.count('class="plot" role="img" aria-label="') == 3
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text[text.index("<body") :]))
    assert "adapt learned code (loss 3.187, −1.725) and forgot some of prose (loss 4.861, +0.557)." in plain
    for said in (
        "1.60 M",
        "11.3 T",
        "912 MB",
        "from the store",
        "run now",
        "5,210",
        "9b2f61c07a3e",
        "models = base + adapt",
        "transformers 5.23.0",
        "trainwright run recipes/quickstart.toml",
        "3 data",
        "&lt;b&gt;encoding&lt;/b&gt;",
    ):
        assert said in plain, said
    assert (
        '<span class="t-head">[[stage]]</span>' in text
        and '<span class="t-comment"># or steps, or epochs</span>' in text
    )
    assert text.count("<caption>") == text.count("<table")


@pytest.mark.slow
def test_rounds_stand_under_their_headings_and_a_transformation_shows_its_zeros(tmp_path: Path) -> None:
    manifests, folders = sample.repeated(tmp_path / "store")
    text = page.write(tmp_path / "report", "", "t", manifests, folders, "").read_text()
    seen = Checked(text)
    assert len(seen.ids) == len(set(seen.ids)) and text.count("<caption>") == text.count("<table")
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text[text.index("<body") :]))
    starts = ("Loss of every step", "Models that a merge", "What each stage cost")
    first, second, third = map(plain.index, starts)
    training, made = plain[first:second], plain[second:third]
    cards = ["base", "loop, round 1: tune", "loop, round 2: tune"]
    assert re.findall(r"(?:loop, round \d: tune|base)(?= run now)", training) == cards
    assert [f"loop, round {n} tune train" in plain[third:] for n in (1, 2)] == [True, True]
    row = "sparse transform model = loop, round 2: tune wanda 1.31 M 524 k 50.0 % 640 MB 5.2 MB"
    assert row in made and "base" not in made
    assert "loop, round 2: tune learned code (loss 3.200, −1.700)" in plain.replace(" )", ")")
    assert {f.name for f in (tmp_path / "report").glob("*.png")} == {
        "loss-base.png",
        "loss-loop.1.tune.png",
        "loss-loop.2.tune.png",
        "effect-loop.1.judge.png",
        "effect-loop.2.judge.png",
    }


def test_kinds_of_stage_are_asked_of_their_classes(tmp_path: Path) -> None:
    """What is of a kind that this version lacks is shown by what its figures hold."""
    strange = {"stage": "x", "kind": "of another version", "figures": {"parameters": 10, "sparsity": 0.25}}
    text = page.write(tmp_path / "r", "", "t", [strange], [tmp_path], "").read_text()
    assert "25.0 %" in text and "Made without training" in text and "No step was recorded" not in text


def test_every_string_of_a_user_is_escaped(tmp_path: Path) -> None:
    numbers = {EVIL: {f"loss/{EVIL}": 3.0}, "b": {f"loss/{EVIL}": 2.0}}
    manifests = [
        {
            "stage": EVIL,
            "kind": "train",
            "hash": EVIL,
            "git": EVIL,
            "command": EVIL,
            "finished": EVIL,
            "settings": {EVIL: EVIL},
            "seconds": 1.0,
            "inputs": {EVIL: [{"stage": EVIL}]},
            "versions": {EVIL: EVIL},
            "texts": {EVIL: EVIL},
            "state": "finished",
            "figures": {"steps": 3, "loss": 1.0, "stopped": EVIL, "evaluation": {f"{EVIL}/{EVIL}": 1.0}},
        },
        {"stage": "c", "kind": "train", "state": "failed", "why": EVIL},
        {
            "stage": "judge",
            "kind": "evaluate",
            "figures": {"numbers": numbers, "baseline": EVIL, "old": [], "new": [EVIL]},
        },
    ]
    folders = [tmp_path / n for n in "abc"]
    folders[0].mkdir()
    (folders[0] / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0, "eval/loss/<script>alert": 1.0}\n{"step": 2, "lo'
    )
    out = page.write(tmp_path / "report", EVIL, EVIL, manifests, folders, EVIL)
    text = out.read_text()
    assert "script" not in Checked(text).tags and "<script" not in text
    assert text.count("&lt;script&gt;") > 15
    assert all(f.parent == out.parent for f in out.parent.rglob("*"))  # a stage's name makes no path


def test_what_was_not_measured_on_a_domain_has_no_column_there(tmp_path: Path) -> None:
    """Losses of prose and the accuracy on questions are two tables, losses first, and no dash fills them."""
    numbers = {m: {"accuracy/asked": 0.5, "loss/prose": 2.0, "perplexity/prose": 7.4} for m in ("a", "b")}
    figures = {"numbers": numbers, "baseline": "a", "old": ["prose"], "new": []}
    manifest = {"stage": "judge", "kind": "evaluate", "figures": figures}
    text = page.write(tmp_path / "r", "", "t", [manifest], [tmp_path], "").read_text()
    found = [plain for plain in re.findall(r"<table>.*?</table>", text, re.DOTALL) if "Evaluation" in plain]
    assert [re.findall(r'scope="col"[^>]*>([^<]+)<', one) for one in found] == [
        ["model", "loss", "perplexity"], ["model", "accuracy"]]
    assert "old: Δ is the forgetting" in found[0] and "Δ" not in found[1] and "–" not in "".join(found)


def test_what_is_of_no_domain_stands_below_the_table(tmp_path: Path) -> None:
    """Samples are measured as a whole, losses by domain: no row of dashes."""
    evaluation = {"loss/code": 2.5, "sample_tokens": 40.0, "distinct_2": 0.949}
    manifest = {"stage": "base", "kind": "train", "figures": {"steps": 3, "evaluation": evaluation}}
    text = page.write(tmp_path / "r", "", "t", [manifest], [tmp_path], "").read_text()
    assert "sample tokens 40 · distinct 2 0.949" in text
    assert text.count('class="left">all</th>') == 1                              # that of the ledger
    whole = page.StageView(manifest | {"figures": {"evaluation": {"accuracy": 0.5}}}, tmp_path)
    assert [row.values for row in whole.ends] == [{"accuracy": 0.5}] and whole.beside == []


def test_a_failed_stage_shows_its_reason_and_nothing_is_needed(tmp_path: Path) -> None:
    manifests = [
        {"stage": "corpus", "kind": "corpus"},
        {"stage": "base", "kind": "train", "state": "failed", "why": "the loss is nan at step 41"},
        {"stage": "judge", "kind": "evaluate", "figures": {}},
    ]
    text = page.write(tmp_path / "r", "", "t", manifests, [tmp_path / "x"] * 3, "").read_text()
    seen = Checked(text)
    assert "svg" not in seen.tags and "No step was recorded" in text
    assert "<strong>base</strong> failed: the loss is nan at step 41" in text and 'class="tag failed"' in text
    assert ">–<" in text and "None" not in text and "nan<" not in text and 'id="plan"' not in text


@pytest.mark.slow
def test_without_evaluation_the_story_is_the_training(tmp_path: Path) -> None:
    manifests, folders = sample.run(tmp_path / "store")
    text = page.write(tmp_path / "r", "", "t", manifests[:2], folders[:2], "").read_text()
    assert "trained on 999 k tokens in 46 s; its loss ended at" in text


def test_unchanged_and_improved_are_said(tmp_path: Path) -> None:
    numbers = {
        "a": {"loss/new": 3.0, "loss/old": 2.0},
        "b": {"loss/new": 3.0, "loss/old": 1.5},
        "c": {"loss/new": 3.5, "loss/old": 2.5},
    }
    manifest = {
        "stage": "judge",
        "kind": "evaluate",
        "figures": {"numbers": numbers, "baseline": "a", "old": ["old"], "new": ["new"]},
    }
    text = re.sub(r"<[^>]+>", "", page.write(tmp_path / "r", "", "t", [manifest], [tmp_path], "").read_text())
    assert "b did not change on new (loss 3.000, 0.000) and got better on old (loss 1.500, −0.500)." in text
    assert "c got worse on new (loss 3.500, +0.500) and forgot some of old (loss 2.500, +0.500)." in text


def test_versions_that_differ_are_all_named(tmp_path: Path) -> None:
    stages = [
        page.StageView({"stage": n, "versions": {"torch": v}}, tmp_path)
        for n, v in (("a", "2.12.0"), ("b", "2.13.0"), ("c", "2.13.0"))
    ]
    assert page.versions(stages) == {"torch": "2.12.0, 2.13.0"}


def test_data_table_adds_up(tmp_path: Path) -> None:
    sample.index(tmp_path)
    rows = page.data_table(tmp_path)
    assert [r[0] for r in rows] == ["code", "prose", "all"] and rows[2][2] == 6690 == rows[0][2] + rows[1][2]
    assert rows[2][3] == sum(t for _, t in rows[2][1].values()) == rows[0][3] + rows[1][3]
    assert list(rows[0][1]) == ["train", "tune", "test"]
