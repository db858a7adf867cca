"""The balance of experts is that of the model, a row at a time, divided by the loop, and no
part of what is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.lm.balanced import balance_weight
from trainwright.lm.losses import logged_losses, token_losses
from trainwright.optim.adamw import Adamw
from trainwright.pretrain.next_token import NextToken

MOE: dict[str, Any] = {
    "type": "mixtral",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "vocab_size": 99,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
}


def moe(**changes: Any) -> Any:
    return families.create(families.from_table(MOE | changes, None, "here"), 0, "here").train()


def batch(rows: int = 2, length: int = 12) -> Batch:
    """Rows of two documents each, of which the second row's first tokens and last ones are not learned."""
    ids = torch.randint(99, (rows, length), generator=torch.Generator().manual_seed(1))
    targets = torch.cat([ids[:, 1:], torch.full((rows, 1), UNTRAINED)], 1)
    targets[1:, :3] = targets[1:, -4:] = UNTRAINED
    return {"input_ids": ids, "targets": targets, "position_ids": torch.arange(length).expand(rows, length),
            "domain": torch.zeros(rows, length, dtype=torch.int64), "domains": ("a",)}


def test_of_one_row_it_is_what_transformers_computes_from_labels() -> None:
    for coefficient in (0.5, 20.0):
        model, one = moe(router_aux_loss_coef=coefficient), batch(1)
        theirs = model(input_ids=one["input_ids"], labels=one["input_ids"], use_cache=False).loss
        mine = token_losses(model, one, Context()).sum() / 11
        assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)
        grads = [torch.autograd.grad(loss, list(model.parameters())) for loss in (theirs, mine)]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def test_each_row_weighs_by_what_is_learned_of_it() -> None:
    """Tokens behind the last target count neither for the balance nor for the loss."""
    model, both = moe(), batch()
    ends, learned = (12, 9), both["targets"] != UNTRAINED
    balance = [model(input_ids=both["input_ids"][r:r + 1, :end]).aux_loss for r, end in enumerate(ends)]
    plain = token_losses(model.eval(), both, Context())
    whole = token_losses(model.train(), both, Context())
    assert torch.allclose(whole, plain + 0.5 * torch.stack(balance)[:, None] * learned, atol=1e-5)
    assert not bool(whole[~learned].any()) and bool((whole - plain)[learned].gt(0.1).all())


def test_nothing_is_added_to_what_is_measured() -> None:
    model, both = moe(), batch()
    dense = moe(output_router_logits=False, router_aux_loss_coef=0.001)
    assert balance_weight(model) == 0.5 and balance_weight(dense) == 0.0 == balance_weight(nn.Linear(1, 1))
    with torch.no_grad():
        assert torch.equal(token_losses(model, both, Context()), token_losses(dense, both, Context()))
    assert torch.allclose(
        token_losses(model.eval(), both, Context()), token_losses(dense.eval(), both, Context())
    )
    ctx = Context()
    added = logged_losses(model.train(), both, ctx) - token_losses(model.eval(), both, ctx)
    said = ctx.notes["train_loss/a"][0][0]
    plain = token_losses(dense, both, Context())
    assert said.item() == pytest.approx(
        float(plain.detach().sum() / (both["targets"] != UNTRAINED).sum())
    ) and bool(added.any())


def test_a_row_of_which_nothing_is_learned_adds_nothing() -> None:
    model, both = moe(), batch()
    both["targets"][1] = UNTRAINED
    losses = token_losses(model, both, Context())
    losses.sum().backward()
    assert not bool(losses[1].any()) and bool(losses[0, :-1].all())


def test_a_head_that_is_not_plain_gets_the_same() -> None:
    model, both = moe(), batch()
    wanted = token_losses(model, both, Context())
    model.lm_head.register_forward_hook(lambda module, given, out: out * 1.0)
    other = moe()
    other.lm_head = nn.Sequential(other.lm_head)
    assert torch.allclose(token_losses(other, both, Context()), wanted, atol=1e-5)


def test_a_prefix_that_all_see_is_refused() -> None:
    with pytest.raises(
        UserError, match="the balance of experts that the config of this MixtralForCausalLM asks for cannot"
    ):
        token_losses(moe(), batch() | {"prefix": torch.zeros(2, 12, dtype=torch.bool)}, Context())


class Rows(Data):
    """The same four rows in every step."""

    def next(self, pull: Any, state: State, ctx: Context) -> Batch:
        return batch(4)


def trained(accumulate: int, **changes: Any) -> dict[str, Tensor]:
    model = moe(**changes)
    run = Train(
        model, [Rows(), NextToken(), Adamw(lr=1e-2)], 3, accumulate=accumulate, ctx=Context(batch_rows=4)
    )
    run.run()
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.slow
def test_it_acts_and_micro_batches_change_nothing() -> None:
    whole, cut = trained(1), trained(4)
    assert all(torch.allclose(whole[n], cut[n], atol=1e-4) for n in whole)
    plain = trained(1, output_router_logits=False, router_aux_loss_coef=0.001)
    assert any((whole[n] - plain[n]).abs().max() > 1e-3 for n in whole)
