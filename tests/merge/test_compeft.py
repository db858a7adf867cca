"""ComPEFT: the largest entries of a model become one number, and the file beside the merge says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.merge.checkpoints import context, flat, merge, tuned
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge import _ternary
from trainwright.merge.compeft import Compeft


def test_against_the_equations(tmp_path: Path) -> None:
    models, base = tuned(2)
    made = merge(Compeft(density=0.25, alpha=1.5, weights=(1.0, 0.5)), context(tmp_path, models, base))
    wanted = flat(base).double()
    for model, weight in zip(models, (1.0, 0.5), strict=True):
        tau = (flat(model) - flat(base)).double()
        kept = tau.abs() >= tau.abs().sort(descending=True).values[int(0.25 * len(tau)) - 1]
        wanted += weight * 1.5 * tau.std() * tau.sign() * kept
    assert torch.allclose(flat(made).double(), wanted, atol=1e-6)


def test_the_file_is_the_task_vector_that_was_added(tmp_path: Path) -> None:
    models, base = tuned(1)
    ctx = context(tmp_path, models, base)
    method = Compeft(density=0.1)
    made = merge(method, ctx)
    method.leave(tmp_path, ctx)
    number, total, pieces = _ternary.read(tmp_path / "compeft-0.bin")
    signs = torch.cat(list(pieces))
    assert total == len(flat(base)) and int(signs.count_nonzero()) == int(0.1 * total)
    assert torch.allclose(flat(made), flat(base) + number * signs, atol=1e-7)
    shown = ctx.texts["compressed task vectors"]
    assert f"{(tmp_path / 'compeft-0.bin').stat().st_size:,} bytes; bfloat16 {2 * total:,}" in shown


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"alpha = 0\.0 above 0"):
        make(Compeft, {"alpha": 0.0}, "merged")
    models, _ = tuned(1)
    with pytest.raises(UserError, match="compeft needs the model"):
        merge(Compeft(), context(tmp_path, models, None))
