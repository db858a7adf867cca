"""FlexOlmo: the mixture by hand, what an owner trains, joining and opting out, and owners that do not fit."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.families import deltas
from trainwright.lm.layers import installed
from trainwright.merge.flexolmo import Experts, Flexolmo

METHOD = Flexolmo()


def owner(folder: Path, seed: int) -> tuple[Path, torch.Tensor]:
    """An artifact, and what its model says."""
    model = make("llama")
    METHOD.operate(model, Context())
    said = moved(model, seed, 0.3)
    deltas.write(model, [METHOD], 0, folder, None)
    return folder, said


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    place = tmp_path_factory.mktemp("owners")
    return {name: owner(place / name, seed) for name, seed in (("code", 1), ("law", 2), ("news", 3))}


def joined(owners: dict[str, Any], names: tuple[str, ...], **settings: Any) -> Any:
    method, model = Flexolmo(**settings), make("llama")
    ctx = Context(inputs={"owners": [owners[n][0] for n in names]}, names={"owners": list(names)})
    method.operate(model, ctx)
    return model.eval()


def test_an_owner_trains_a_copy_beside_the_public_layer_which_says_the_same_at_first() -> None:
    model = make("llama")
    METHOD.operate(model, Context())
    torch.testing.assert_close(model(input_ids=IDS).logits, make("llama")(input_ids=IDS).logits)
    trained = {n.removeprefix("model.layers.0.mlp.") for n, p in model.named_parameters()
               if p.requires_grad and "layers.0" in n}
    assert trained == {"rows", "lean", *(f"experts.1.{p}_proj.weight" for p in ("gate", "up", "down"))}
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".mlp." not in n)


@torch.no_grad()
def test_the_mixture_by_hand(owners: dict[str, Any]) -> None:
    model = joined(owners, ("code", "law", "news"), active=2)
    layer: Experts = model.model.layers[1].mlp
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    layer.lean.copy_(torch.tensor([0.7, -0.4, 0.0]))
    for row, y in zip(x, layer(x), strict=True):
        own = [float(r @ row) + min(float(b), 0.0) for r, b in zip(layer.rows, layer.lean, strict=True)]
        weights = torch.tensor([0.0, *own]).softmax(0)
        best = weights.topk(2).indices.tolist()
        torch.testing.assert_close(y, sum(weights[i] * layer.experts[i](row) for i in best))


@torch.no_grad()
def test_one_owner_alone_is_the_model_that_he_trained_and_who_opts_out_leaves_no_trace(
        owners: dict[str, Any]) -> None:
    torch.testing.assert_close(joined(owners, ("law",))(input_ids=IDS).logits, owners["law"][1])
    torch.testing.assert_close(families.load(owners["law"][0], "here").eval()(input_ids=IDS).logits,
                               owners["law"][1])
    without = joined(owners, ("code", "law", "news"), without=("news",))(input_ids=IDS).logits
    assert torch.equal(without, joined(owners, ("code", "law"))(input_ids=IDS).logits)


@torch.no_grad()
def test_what_was_joined_comes_back(owners: dict[str, Any], tmp_path: Path) -> None:
    model, method = joined(owners, ("code", "law")), Flexolmo()
    said = model(input_ids=IDS).logits
    deltas.write(model, [method], 0, tmp_path, None)
    again = families.load(tmp_path, "here").eval()
    torch.testing.assert_close(again(input_ids=IDS).logits, said)
    assert {len(m.experts) for m in installed(again, Experts, method).values()} == {3}


def test_owners_that_do_not_fit_are_refused(owners: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="without names 'cod', which is no owner"):
        joined(owners, ("code",), without=("cod",))
    with pytest.raises(UserError, match="leaves no owner"):
        joined(owners, ("code",), without=("code",))
    other = make("llama")
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight[0, 0] += 1e-3
    with pytest.raises(UserError, match=r"the owner code comes from another public model: .*q_proj\.weight"):
        METHOD.operate(other, Context(inputs={"owners": [owners["code"][0]]}, names={"owners": ["code"]}))
