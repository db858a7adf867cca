"""The student's hidden states are held to the teacher's, and the student is not the teacher."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lm.architectures import make as build
from trainwright.check import tiny
from trainwright.compare import reproduce
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.finetune.self_distillation_further_pretraining import SelfDistillationFurtherPretraining
from trainwright.papers import library
from trainwright.planning.synthetic import synthetic


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_the_squared_distance_of_the_final_states(kind: str) -> None:
    """|f(x) - f_teacher(x)|^2, a sum over the width, at each position, and no gradient into the teacher."""
    student, teacher, given = build(kind), build(kind), synthetic(2, 8, 64, Context())
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(1.1)
    values = SelfDistillationFurtherPretraining().loss(
        student, given, {}, Context(frozen={"teacher": teacher})
    )
    states = [m.base_model(input_ids=given["input_ids"], position_ids=given["position_ids"]).last_hidden_state
              for m in (student, teacher)]
    assert (
        torch.allclose(values, (states[0] - states[1]).norm(dim=-1) ** 2, rtol=1e-4)
        and (values > 0).all()
    )
    values.sum().backward()
    assert (
        student.get_input_embeddings().weight.grad.any()
        and teacher.get_input_embeddings().weight.grad is None
    )


def test_it_brings_the_student_to_the_teacher(tmp_path: Path) -> None:
    run = tiny.stage(SelfDistillationFurtherPretraining(), tmp_path)
    seen = []
    run.run(on_step=lambda row: seen.append(row["distillation/teacher"]))
    # at first two independent normed states
    width = run.model.config.hidden_size
    assert seen[-1] < 0.7 * seen[0] and seen[0] == pytest.approx(2.0 * width, rel=0.3)


def test_the_student_starts_anew(tmp_path: Path) -> None:
    """From the teacher's own weights it is another method; in a plan, where nobody has trained
    either, it is let be."""
    method, student = SelfDistillationFurtherPretraining(), build("llama")
    same = {"teacher": build("llama")}
    with pytest.raises(UserError, match=r"from\.model must be the start of both"):
        method.init(student, Context(frozen=same, folder=tmp_path))
    assert method.init(student, Context(frozen=same)) == {}
    with torch.no_grad():
        same["teacher"].get_input_embeddings().weight[0, 0] += 1
    assert method.init(student, Context(frozen=same, folder=tmp_path)) == {}


def test_a_stage_without_a_teacher_or_with_another_width_is_refused() -> None:
    with pytest.raises(UserError, match='teacher = "NAME"'):
        SelfDistillationFurtherPretraining().init(build("llama"), Context())
    narrow, given, wide = build("llama"), synthetic(1, 4, 64, Context()), build("llama", hidden_size=64)
    with pytest.raises(UserError, match="32 columns and 64"):
        SelfDistillationFurtherPretraining().loss(narrow, given, {}, Context(frozen={"teacher": wide}))


def test_its_claim_is_tested_at_equal_training() -> None:
    """The teacher's stage stands before both arms: one distils from it, the other goes on from it."""
    paper = library.papers()["self-distillation-further-pretraining"]
    baseline, arm = reproduce.spec_of(paper, paper.claims[0]).arms
    assert baseline.stage == arm.stage and arm.stage[0]["name"] == "teacher"
    assert baseline.set == {"from.model": "teacher"} and arm.set == {"from.teacher": "teacher"}
