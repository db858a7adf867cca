"""A value in each place, from the pass that gives the losses, and nothing of it in what is exported."""
from __future__ import annotations

import pytest
import torch

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.finetune.value_head import ValueHead
from trainwright.lm.losses import token_losses
from trainwright.lm.values import valued_losses


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_losses_and_values_of_one_pass(kind: str) -> None:
    model, method = tiny.model(kind).eval(), ValueHead()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    method.operate(model, Context())
    with torch.no_grad():
        model.value_head.out.weight.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.arange(12).view(2, 6)
    targets = torch.where(torch.arange(6) < 4, ids + 1, -100)
    batch = {"input_ids": ids, "targets": targets, "position_ids": torch.arange(6).expand(2, 6)}
    losses, values = valued_losses(model, batch)
    assert torch.allclose(losses, token_losses(model, batch, Context()), atol=1e-5)
    hidden = model.base_model(input_ids=ids)[0]
    assert torch.allclose(values, (hidden @ model.value_head.out.weight[0]), atol=1e-5)
    with pytest.raises(UserError, match="already"):
        method.operate(model, Context())
    method.fold(model)
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
