"""A yes is a share of yes and no."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.filter.test_score_evol import context, saved, talk
from tests.data.frames import frame, told
from trainwright.check import tiny
from trainwright.data.filter.score_answers import ScoreAnswers
from trainwright.data.filter.score_reward import ScoreReward


def test_a_model_with_known_answers(tmp_path: Path) -> None:
    """That says yes with 3/10 and no with 1/10 of the probability gives every question three quarters."""
    (tmp_path / "m").mkdir()
    yes, no = (tiny.tokenizer()(one)["input_ids"][1] for one in ("yes", "no"))     # behind the first, <s>
    model = saved(tmp_path / "m", {tiny.tokenizer().decode([yes]): 0.3, tiny.tokenizer().decode([no]): 0.1})
    rows = frame([{"id": "talk", "messages": talk("Why?", "So.")}, {"id": "plain", "text": "rain"},
                  {"id": "empty", "text": " "}])
    made = told(ScoreAnswers().apply(rows, context(tmp_path / "s", m=model)))
    for name in ("naturalness", "coherence", "understandability"):
        assert made["talk"][name] == made["plain"][name] == pytest.approx(0.75, rel=1e-5)
        assert made["empty"][name] is None


def test_each_question_is_its_own_column(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    model = saved(tmp_path / "m")
    rows = frame([{"id": "a", "messages": talk("apples", "two", "and", "rain")},
                  {"id": "b", "messages": talk("apples", "two")},
                  {"id": "c", "messages": talk("and", "rain")}])
    made = told(ScoreAnswers(questions={"kind": "{response}", "true": "{instruction} {response}"}).apply(
        rows, context(tmp_path / "s", m=model)))
    for name in ("kind", "true"):
        assert made["a"][name] == pytest.approx((made["b"][name] + made["c"][name]) / 2, rel=1e-5)
    assert made["b"]["kind"] != made["b"]["true"] != made["c"]["true"]
    with pytest.raises(ValueError, match="lacks"):
        ScoreAnswers(questions={"kind": "really?"})
    with pytest.raises(ValueError, match="every table has"):
        ScoreAnswers(questions={"label": "{response}"})
    assert ScoreReward(question="{response}").apply(rows, context(tmp_path / "r", m=model)).select(
        "reward").to_pydict()["reward"][1] == pytest.approx(made["b"]["kind"], rel=1e-5)
