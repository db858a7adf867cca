"""Pairs made of conversations: what is rejected is worse in the way that was asked for."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainwright.align.worse_answers import WorseAnswers
from trainwright.check import documents
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.editing import BETWEEN
from trainwright.corpus.selecting import columns


def long_talks() -> list[dict[str, str | None]]:
    """Conversations with answers of eight words."""
    turns = [[{"role": "user", "content": f"what is {i}"},
              {"role": "assistant", "content": " ".join(f"w{i}.{j}" for j in range(8))}] for i in range(20)]
    return [{"id": f"long/{i}", "text": BETWEEN.join(m["content"] for m in one), "domain": "chat",
             "source": "made up", "metadata": "{}", "messages": json.dumps(one)}
            for i, one in enumerate(turns)]


def pairs(folder: Path, *how: str, seed: int = 0) -> list[dict[str, Any]]:
    ctx = Context(folder=folder, seed=seed)
    table = WorseAnswers(how=how).apply(documents.table(long_talks()), ctx)
    names = ("id", "messages", "prompt", "chosen", "rejected")
    return [{n: json.loads(v) if n != "id" and v else v for n, v in row.items()}
            for row in columns(table, *names).sort_by("id").to_pylist()]


@pytest.mark.parametrize("how", ["other", "shuffled", "cut", "repeated"])
def test_each_fault(how: str, tmp_path: Path) -> None:
    every = pairs(tmp_path, how)
    assert len(every) == 140 and all(row["rejected"] is None for row in every if not row["messages"])
    answers = {row["messages"][-1]["content"] for row in every if row["messages"]}
    made = [row for row in every if row["id"].startswith("long")]
    assert len(made) == 20
    for row in made:
        assert row["prompt"] == row["messages"][:-1] and row["chosen"] == row["messages"][-1:]
        assert row["rejected"][0]["role"] == "assistant"
        better, worse = (row[side][0]["content"] for side in ("chosen", "rejected"))
        assert worse != better
        match how:
            case "other":
                assert worse in answers
            case "shuffled":
                assert sorted(worse.split()) == sorted(better.split())
            case "cut":
                assert better.startswith(worse) and len(worse.split()) == 4
            case "repeated":
                assert worse == f"{better} {better}"


def test_of_what_nothing_worse_can_be_made_a_pair_stays(tmp_path: Path) -> None:
    """Answers of the small corpus are too short to be cut; they have pairs already."""
    before = {row["id"]: row["rejected"] for row in documents.rows() if row["messages"]}
    after = {row["id"]: row["rejected"] for row in pairs(tmp_path, "cut")}
    assert {name: after[name] for name in before} == {n: json.loads(v) for n, v in before.items()}


def test_faults_are_drawn_by_seed_and_id(tmp_path: Path) -> None:
    made = [pairs(tmp_path / str(i), "other", "repeated", seed=seed) for i, seed in enumerate((0, 0, 1))]
    assert made[0] == made[1] != made[2]
    said = [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in made[0]
            if row["rejected"]]
    doubled = sum(worse == f"{better} {better}" for better, worse in said)
    assert len(said) == 60 and 15 < doubled < 45


def test_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="how names"):
        WorseAnswers(how=())
    plain = documents.table().where(documents.table()["messages"].is_null())
    with pytest.raises(UserError, match="no document that came in is a conversation"):
        WorseAnswers().apply(plain, Context(folder=tmp_path))
