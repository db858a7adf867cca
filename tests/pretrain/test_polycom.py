"""PolyCom: both polynomials by hand, as many parameters without a gate as with one, and nothing kept but the
input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.lm.architectures import make
from tests.pretrain.small import FAMILIES, build, train
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.optim.adamw import Adamw
from trainwright.pretrain.polycom import Polycom, Polynomial

IDS = torch.arange(40).reshape(2, 20) * 7 % 64
W, B = (0.5, -0.25, 2.0), 0.1


def activation(variant: str, w: tuple[float, ...] = W, b: float = B) -> Polynomial:
    act = Polynomial(Polycom(variant=variant, order=len(w)), nn.SiLU(), torch.device("cpu"))
    with torch.no_grad():
        act.weight.copy_(torch.tensor(w))
        act.bias.fill_(b)
    return act


def operated(family: str, method: Polycom | None = None) -> tf.PreTrainedModel:
    model = build(family)
    (method or Polycom()).operate(model, Context())
    return model


def mlps(model: nn.Module) -> list[nn.Module]:
    return [block.mlp for block in sharding.blocks(model)]


# ---- the polynomials -----------------------------------------------------------------------------


def test_polyrelu_by_hand() -> None:
    z = [1.0, -2.0, 0.5, 3.0]
    expected = [0.5 * max(x, 0) ** 3 - 0.25 * max(x, 0) ** 2 + 2 * max(x, 0) + 0.1 for x in z]
    assert activation("polyrelu")(torch.tensor(z)).tolist() == pytest.approx(expected, rel=1e-6)


def test_polynorm_by_hand() -> None:
    """Each power divided by its own root mean square, the cube first."""
    z = [1.0, -2.0, 0.5, 3.0]
    size = [math.sqrt(sum(x ** (2 * k) for x in z) / 4 + 1e-6) for k in (3, 2, 1)]
    expected = [0.5 * x**3 / size[0] - 0.25 * x**2 / size[1] + 2 * x / size[2] + 0.1 for x in z]
    assert activation("polynorm")(torch.tensor(z)).tolist() == pytest.approx(expected, rel=1e-6)


def test_each_token_is_normalized_by_itself_over_its_hidden_dimension() -> None:
    act, z = activation("polynorm"), torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([act(z[i, j]) for i in range(2) for j in range(3)]).view(2, 3, 8)
    torch.testing.assert_close(act(z), alone)
    torch.testing.assert_close(
        activation("polynorm", b=0.0)(1e3 * z), activation("polynorm", b=0.0)(z), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("variant", ["polynorm", "polyrelu"])
def test_gradients_are_those_of_the_formula_and_only_the_input_is_kept(variant: str) -> None:
    act, z = (
        activation(variant),
        torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(),
    )
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = act(z)
    assert sum(n for n in kept if n > 8) <= z.numel(), "one tensor of the size of the input"
    given = [z, act.weight, act.bias]
    ours = torch.autograd.grad(out.square().sum(), given)
    for one, other in zip(ours, torch.autograd.grad(act.value(z).square().sum(), given), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_large_numbers_of_half_precision_do_not_overflow(kind: torch.dtype) -> None:
    z = (1e3 * torch.randn(4, 16, generator=torch.Generator().manual_seed(2))).to(kind)
    out = activation("polynorm")(z)
    assert out.dtype == kind
    torch.testing.assert_close(
        out.double(), activation("polynorm").double()(z.double()).double(), rtol=1e-2, atol=1e-2
    )


# ---- in a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [2, 3])
def test_as_many_parameters_and_four_more_a_layer(family: str, order: int) -> None:
    model, before = operated(family, Polycom(order=order)), build(family)
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in before.parameters())
    assert count == 2 * (order + 1)
    acts = [m for m in model.modules() if isinstance(m, Polynomial)]
    assert len(acts) == 2 and all(
        a.weight.tolist() == pytest.approx([1 / order] * order) and a.bias.item() == 0 for a in acts
    )
    assert all(p.requires_grad for p in model.parameters())
    assert {Adamw(weight_decay=0.1).decay_of(p) for a in acts for p in a.parameters()} == {0.0}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_gated_feed_forward_becomes_a_plain_one_of_the_same_numbers(family: str) -> None:
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    for new, old in zip(mlps(operated(family)), mlps(build(family)), strict=True):
        assert new.up_proj.weight.shape == (72, 32) and new.down_proj.weight.shape == (32, 72)
        gate = old.gate_proj.weight
        up, down = (
            torch.cat([old.up_proj.weight, gate[:24]]),
            torch.cat([old.down_proj.weight, gate[24:].T], dim=1),
        )
        z = F.linear(x, up)
        third = [z**k / (z**k).square().mean(-1, keepdim=True).add(1e-6).sqrt() for k in (3, 2, 1)]
        torch.testing.assert_close(new(x), F.linear(sum(third) / 3, down))
        assert {n for n, _ in new.named_parameters()} == {
            "up_proj.weight",
            "down_proj.weight",
            "act_fn.weight",
            "act_fn.bias",
        }


def test_in_gpt2_the_activation_changes_and_no_matrix_does() -> None:
    model, before = operated("gpt2"), build("gpt2")
    assert Polycom().claims(before) == set()
    assert all(
        torch.equal(p, before.get_parameter(n)) for n, p in model.named_parameters() if ".act." not in n
    )
    mlp, x = mlps(model)[0], torch.randn(3, 32)
    torch.testing.assert_close(mlp(x), mlp.c_proj(mlp.act.value(mlp.c_fc(x))))


@pytest.mark.parametrize("family", FAMILIES)
def test_taken_out_again_the_plain_model_has_every_number_it_had(family: str) -> None:
    method, model, before = Polycom(), operated(family), build(family)
    method.fold(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(torch.equal(t, before.state_dict()[n]) for n, t in model.state_dict().items())
    assert torch.equal(model(IDS).logits, before(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_its_delta_is_the_coefficients(family: str, tmp_path: Path) -> None:
    method = Polycom()
    run = train(build(family), method, Adamw(lr=1e-2))
    run.run(until=1)
    first = run.row["loss"]
    run.run()
    assert run.row["loss"] < 0.9 * first
    method.save_delta(run.model, tmp_path)
    saved: dict[str, Tensor] = load_file(tmp_path / "polycom.safetensors")
    assert saved.keys() == method.coefficients(run.model).keys() and len(saved) == 4
    assert {tuple(t.shape) for t in saved.values()} == {(3,), (1,)}
    assert all((t - (1 / 3 if len(t) == 3 else 0)).abs().min() > 0 for t in saved.values()), (
        "all of them train"
    )


def test_two_variants_do_not_meet() -> None:
    model = operated("llama")
    with pytest.raises(UserError, match="no feed-forward of two linear layers"):
        Polycom(variant="polyrelu").operate(model, Context())


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("mixtral", {"num_local_experts": 2}),
        ("phi3", {}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"intermediate_size": 49}),
    ],
    ids=["experts", "fused gate", "gate with biases", "odd width"],
)
def test_other_feed_forwards_are_refused(kind: str, given: dict) -> None:
    with pytest.raises(
        UserError, match=r"layers\.0 has no feed-forward of two linear layers and an activation, nor"
    ):
        Polycom().claims(make(kind, **given))


def test_bad_settings() -> None:
    with pytest.raises(UserError, match="order must be 1 or more"):
        settings(Polycom, {"order": 0}, "here")
    with pytest.raises(UserError, match="must be one of"):
        settings(Polycom, {"variant": "polygelu"}, "here")
