"""C + I - B, whole and not halved, with the angle between the two changes shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.merge.checkpoints import context, flat, merge, tuned
from trainwright.core.errors import UserError
from trainwright.merge.task_vector_cpt_merge import TaskVectorCptMerge


def test_both_changes_arrive_whole(tmp_path: Path) -> None:
    (domain, instruct), base = tuned(2)
    ctx = context(tmp_path, [domain, instruct], base)
    made = merge(TaskVectorCptMerge(), ctx)
    wanted = flat(domain).double() + flat(instruct).double() - flat(base).double()
    assert torch.allclose(flat(made).double(), wanted, atol=1e-6)
    a, b = flat(domain) - flat(base), flat(instruct) - flat(base)
    cosine, noise = torch.cosine_similarity(a, b, dim=0), len(a) ** -0.5
    shown = ctx.texts["angle between the two changes"]
    assert f"cosine {cosine:.4f};" in shown and f"give or take {noise:.1e}" in shown
    assert abs(cosine) < 4 * noise                                  # these two are independent


def test_weights(tmp_path: Path) -> None:
    (domain, instruct), base = tuned(2)
    made = merge(TaskVectorCptMerge(weights=(0.0, 1.0)), context(tmp_path, [domain, instruct], base))
    assert torch.allclose(flat(made), flat(instruct), atol=1e-6)


def test_mistakes(tmp_path: Path) -> None:
    models, base = tuned(3)
    with pytest.raises(UserError, match="must name 2, not 3"):
        merge(TaskVectorCptMerge(), context(tmp_path / "three", models, base))
    with pytest.raises(UserError, match="task_vector_cpt_merge needs the model"):
        merge(TaskVectorCptMerge(), context(tmp_path / "none", models[:2], None))
