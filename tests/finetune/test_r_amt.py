"""R-AMT by hand: the estimator, which gradients are dropped, what the second pass is of, and
masks stored as bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.lm.architectures import IDS, make
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import UNTRAINED
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.r_amt import Masked, RAmt, agreement, general_losses, packed, unpacked
from trainwright.optim.adamw import Adamw
from trainwright.planning.synthetic import Synthetic
from trainwright.pretrain.next_token import NextToken

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])


def operated(kind: str, method: RAmt) -> nn.Module:
    model = make(kind)
    method.operate(model, Context(seed=1))
    return model


def drawn(model: nn.Module, share: float = 0.2) -> Tensor:
    """Mask a random part of the weights; the logits of then."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.where(torch.rand(parameter.shape, generator=rng) < share, 0.001, 0.02))
        return model.eval()(input_ids=IDS).logits


def stage(*methods, steps: int = 6, seed: int = 0) -> Train:
    run = Train(
        make("llama"),
        [Synthetic(tokens=12, vocabulary=64), *methods],
        steps,
        ctx=Context(seed=seed, batch_rows=4),
    )
    run.build()
    return run


# ---- the mask ----------------------------------------------------------------------------------------------


def test_the_threshold_is_strict_and_the_gradient_goes_straight_through() -> None:
    weight, x = (
        torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]),
        torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]]),
    )
    scores = torch.tensor([[0.01, 0.005, 0.0051], [0.004, 0.01, -1.0]], requires_grad=True)
    y = x @ Masked.apply(weight, scores, 0.005).T
    # at the threshold itself a weight is off
    mask = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    assert torch.equal(y, x @ (weight * mask).T)
    up = torch.tensor([[1.0, -1.0], [2.0, 0.5]])
    y.backward(up)
    assert torch.equal(scores.grad, (up.T @ x) * weight)                      # also of weights that are off


def test_only_scores_of_attention_are_trained_and_all_weights_are_kept_at_first() -> None:
    model, before = operated("llama", RAmt()), make("llama")
    assert torch.equal(model(input_ids=IDS).logits, before(input_ids=IDS).logits)
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(found) == 2 * 4 and all(".self_attn." in n and n.endswith(".scores") for n in found)
    assert all(bool((p == 1e-2).all()) for p in found.values())


# ---- gradient dropout --------------------------------------------------------------------------------------


def test_probability_by_hand() -> None:
    a = torch.tensor([1.0, -2.0, 1.0, 1.0, -1.0, 3.0])
    b = torch.tensor([5.0, -0.1, -1.0, -3.0, 3.0, 0.0])
    assert torch.allclose(agreement(a, b), torch.tensor([1.0, 1.0, 0.5, 0.25, 0.25, 1.0]), atol=1e-6)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_what_speaks_against_is_dropped_in_part_and_never_applied(strength: float) -> None:
    method, name = RAmt(gradient_dropout=strength, penalty=0.0), "layer.scores"
    a, b = torch.ones(200, 200), torch.full((200, 200), -3.0)
    b[:, :100] = 7.0
    ctx = Context(seed=5, step=4, grads={name: a}, again=lambda: {name: b})
    out = method.update(
        {name: a.clone()}, {name: torch.full_like(a, 0.01)}, method.init(nn.Module(), ctx), ctx
    )[name]
    # the two agree: all of it is kept
    assert torch.equal(out[:, :100], a[:, :100])
    low = 1 - strength
    assert torch.isclose(out[:, 100:], torch.tensor(low)).logical_or(out[:, 100:] == 1).all()
    share = float((out[:, 100:] == 1).float().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5


def test_penalty_is_the_norm_and_not_its_square() -> None:
    method, name = RAmt(gradient_dropout=0.0, penalty=0.5), "layer.scores"
    a, scores = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.3, 0.4]])
    ctx = Context(step=1, grads={name: a})
    out = method.update({name: a.clone()}, {name: scores}, method.init(nn.Module(), ctx), ctx)[name]
    assert torch.allclose(out, a + 0.5 * torch.tensor([[0.6, 0.8]]))


def test_the_second_pass_is_of_the_original_models_predictions() -> None:
    method = RAmt(layers="all-linear")
    run = stage(method, Adamw(lr=1e-3, weight_decay=0.0))
    drawn(run.model)
    batch, state = run.pull(), run.states["r_amt.1"]
    run.ctx.again = lambda: run.gradients([batch])
    general = method.gradients("general", state, run.ctx)
    assert state == {"shared": {"part": "task"}}
    given = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    logits = run.model(**given).logits.log_softmax(-1)
    with torch.no_grad():
        before = make("llama")(**given).logits.softmax(-1)
    assert (before - logits.exp()).abs().max() > 1e-3
    by_hand = -(before * logits).sum(-1) * (batch["targets"] != UNTRAINED)
    assert torch.allclose(general_losses(run.model, batch), by_hand, atol=1e-5)
    mean = by_hand.sum() / (batch["targets"] != UNTRAINED).sum()
    wanted = torch.autograd.grad(mean, [run.params[n] for n in general], retain_graph=True)
    assert len(general) == 14 and all(
        torch.allclose(g, w, atol=1e-7) for g, w in zip(general.values(), wanted, strict=True)
    )
    task = run.gradients([batch])
    values = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    wanted = torch.autograd.grad(values, [run.params[n] for n in task])
    assert all(torch.allclose(g, w, atol=1e-6) for g, w in zip(task.values(), wanted, strict=True))


def test_before_anything_is_masked_nothing_is_dropped() -> None:
    """There the original model's predictions are the masked one's: b is zero, to rounding."""
    run = stage(RAmt(), Adamw(lr=1e-4, weight_decay=0.0))
    batch = run.pull()
    run.ctx.again = lambda: run.gradients([batch])
    general = RAmt().gradients("general", run.states["r_amt.1"], run.ctx)
    task = run.gradients([batch])
    assert all(general[n].norm() < 1e-3 * task[n].norm() for n in task)


def test_scores_cross_the_threshold_and_the_share_is_logged() -> None:
    run, rows = stage(RAmt(layers="all-linear"), Adamw(lr=2e-3, weight_decay=0.0)), []
    before = {n: p.clone() for n, p in run.params.items() if not p.requires_grad}
    run.run(on_step=lambda row: rows.append(dict(row)))
    assert rows[0]["masked"] == 0 < rows[-1]["masked"] < 0.9
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(torch.equal(run.params[n], p) for n, p in before.items())


def test_another_objective_is_refused() -> None:
    run = stage(NextToken(), RAmt(), Adamw())
    with pytest.raises(UserError, match="leave the other objectives out"):
        run.run()


# ---- bits --------------------------------------------------------------------------------------------------


def test_bits_come_back() -> None:
    for shape in ((3, 3), (8, 8), (5, 7)):
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
        bits = packed(mask)
        assert bits.dtype == torch.uint8 and len(bits) == -(-mask.numel() // 8)
        assert torch.equal(unpacked(bits, mask.shape), mask)
    assert packed(torch.tensor([True, False, False, True])).tolist() == [1 + 8]


@KINDS
def test_folds_to_masked_weights_and_a_bit_a_weight_rebuilds_them(kind: str, tmp_path: Path) -> None:
    method, plain = RAmt(layers="all-linear"), make(kind)
    model = operated(kind, method)
    logits = drawn(model)
    masks = {n: m.mask() for n, m in method.masked(model).items()}
    deltas.write(model, [method], 1, tmp_path, None)
    saved = families.load(tmp_path, "test").eval()
    assert torch.allclose(saved(input_ids=IDS).logits, logits, atol=1e-6)
    for name, mask in masks.items():
        old, new = (m.get_submodule(name).weight for m in (plain, saved))
        assert (
            torch.equal(new, old * (mask.T if kind == "gpt2" else mask))
            and 0.7 < float(mask.float().mean()) < 0.9
        )
    stored = load_file(tmp_path / "adapter" / "r_amt.safetensors")
    assert sum(t.nbytes for t in stored.values()) == sum(-(-m.numel() // 8) for m in masks.values())
    again = make(kind)
    deltas.put(again, tmp_path / "adapter")
    assert torch.equal(again.eval()(input_ids=IDS).logits, logits)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"gradient_dropout": 1.5}, "gradient_dropout must be"),
        ({"start": 1e-3}, "start must be above threshold"),
        ({"penalty": -1.0}, "penalty must be 0 or more"),
    ],
)
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(RAmt, given, "adapt")
