"""Score first, diversity second."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.frames import frame, told
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.select import deita
from trainwright.data.select.deita import Deita, diverse


def table(score: Any, embedding: Any, **more: Any) -> Any:
    return frame([{"id": f"{i:04d}", "text": "t"} for i in range(len(score))], score=score,
                 embedding=embedding, **more)


def kept(rows: Any, folder: Path, ctx: Context | None = None, **settings: Any) -> list[int]:
    folder.mkdir()
    ctx = ctx or Context()
    ctx.folder = folder
    return sorted(int(i) for i in told(Deita(**{"scores": ("score",)} | settings).apply(rows, ctx)))


def by_hand(score: np.ndarray, units: np.ndarray, similarity: float, most: int) -> list[int]:
    """The rule as the paper writes it, one document after the other."""
    chosen: list[int] = []
    for i in sorted(range(len(score)), key=lambda i: (-score[i], i)):
        if len(chosen) < most and all(units[i] @ units[j] <= similarity for j in chosen):
            chosen.append(i)
    return chosen


def test_no_two_are_near_and_none_is_passed_over_for_a_worse_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the rule by hand, on 300 points in clusters; blocks make no difference."""
    draw = np.random.default_rng(0)
    points = draw.normal(size=(20, 8)).repeat(15, 0) + 0.15 * draw.normal(size=(300, 8))
    score = draw.integers(0, 40, 300) / 8
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    for most in (10, 300):
        wanted = by_hand(score, units, 0.9, most)
        rows = table(score, points.tolist())
        for block in (7, 1024):
            monkeypatch.setattr(deita, "BLOCK", block)
            assert kept(rows, tmp_path / f"{most}-{block}", count=most, similarity=0.9) == sorted(wanted)
    similar = units[wanted] @ units[wanted].T - 2 * np.eye(len(wanted))
    assert similar.max() <= 0.9 and 10 < len(wanted) < 100
    for i in set(range(300)) - set(wanted):
        assert any(units[i] @ units[j] > 0.9 and score[j] >= score[i]
                   for j in wanted), "passed over for a better one nearby"


def test_a_dropped_document_bars_no_other() -> None:
    """b is near a; c is near b but not a: c is kept. The similarity is a cosine, kept at the threshold and
    below."""
    angles = np.radians([0, 25, 50])
    units = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    chosen, near_to = diverse(units, 0.9, 3)
    assert chosen.tolist() == [0, 2] and near_to.tolist() == [-1, 0, -1]
    assert diverse(units, 1.0, 3)[0].tolist() == [0, 1, 2]


def test_a_common_direction_can_be_taken_off(tmp_path: Path) -> None:
    """Far from the origin all points are near by cosine; around their mean they are what they are."""
    draw = np.random.default_rng(1)
    points, score = draw.normal(size=(60, 4)), draw.random(60)
    rows = table(score, (points + 100).tolist())
    around = points - points.mean(0)
    wanted = by_hand(score, around / np.linalg.norm(around, axis=1, keepdims=True), 0.8, 60)
    assert kept(rows, tmp_path / "1", similarity=0.8, count=60) == [int(score.argmax())]
    assert kept(rows, tmp_path / "2", similarity=0.8, count=60, center=True) == sorted(wanted)
    assert 5 < len(wanted) < 60


def test_scores_are_multiplied(tmp_path: Path) -> None:
    eye = np.eye(4).tolist()
    rows = table([1.0, 2.0, 3.0, None], eye, other=[6.0, 4.0, 1.0, 9.0])
    assert kept(rows, tmp_path / "1", scores=("score", "other"), count=1) == [1], "2 times 4 is the most"
    assert kept(rows, tmp_path / "2", scores=("score", "other"), count=2) == [0, 1]
    assert kept(rows, tmp_path / "3", lowest=True, count=1) == [0]
    with pytest.raises(UserError, match="negative is no order"):
        kept(table([-1.0, 2.0], np.eye(2).tolist(), other=[1.0, 1.0]), tmp_path / "4",
             scores=("score", "other"))


def test_what_has_no_score_or_embedding_is_never_kept(tmp_path: Path) -> None:
    embedding = [[1.0, 0.0], [0.0, 0.0], None, [0.0, 1.0], [1.0, 0.1]]
    rows = table([5.0, 9.0, 8.0, None, 4.0], embedding)
    ctx = Context()
    assert kept(rows, tmp_path / "1", ctx, count=2) == [0]
    assert "1 of 2 documents kept, fewer than the 2 asked for" in ctx.texts["deita"]
    with pytest.raises(UserError, match="count = 3 is more than the 2 documents"):
        kept(rows, tmp_path / "2", count=3)


def test_mistakes_are_told(tmp_path: Path) -> None:
    rows = table([1.0, float("nan")], [[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(UserError, match="NaN"):
        kept(rows, tmp_path / "1")
    with pytest.raises(UserError, match="reads the column 'scores'"):
        kept(rows, tmp_path / "2", scores=("scores",))
    with pytest.raises(UserError, match="'vector'"):
        kept(table([1.0, 2.0], [[1.0], [0.5]]), tmp_path / "3", column="vector")
    with pytest.raises(ValueError, match="not both"):
        Deita(scores=("score",), count=1, share=0.5)
    with pytest.raises(ValueError, match="a cosine"):
        Deita(scores=("score",), similarity=1.5)
