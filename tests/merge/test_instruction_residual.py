"""The residual is added to a base that was pretrained further, and never twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.merge.checkpoints import context, drawn, flat, merge, tuned
from trainwright.core.errors import UserError
from trainwright.merge.instruction_residual import InstructionResidual


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_residual_is_added(scale: float, tmp_path: Path) -> None:
    (further, instruct), base = tuned(2)
    made = merge(InstructionResidual(scale=scale), context(tmp_path, [further, instruct], base))
    wanted = flat(further).double() + scale * (flat(instruct).double() - flat(base).double())
    assert torch.allclose(flat(made).double(), wanted, atol=1e-6)


def test_a_base_that_did_not_move_gives_the_instruction_model(tmp_path: Path) -> None:
    (instruct,), base = tuned(1)
    made = merge(InstructionResidual(), context(tmp_path, [base, instruct], base))
    assert torch.allclose(flat(made), flat(instruct), atol=1e-6)


def test_an_instruction_model_that_was_pretrained_further_is_refused(tmp_path: Path) -> None:
    (instruct,), base = tuned(1)
    further = drawn(7, 0.05, instruct)
    with pytest.raises(UserError, match=r"nearer to the second .* so that it has the residual already"):
        merge(InstructionResidual(), context(tmp_path, [further, instruct], base))


def test_mistakes(tmp_path: Path) -> None:
    models, base = tuned(1)
    with pytest.raises(UserError, match="must name 2, not 1"):
        merge(InstructionResidual(), context(tmp_path / "one", models, base))
    with pytest.raises(UserError, match="instruction_residual needs the model"):
        merge(InstructionResidual(), context(tmp_path / "none", [*models, base], None))
