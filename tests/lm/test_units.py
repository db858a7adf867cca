"""What of a block goes together when a neuron or a group of heads is left out."""

from __future__ import annotations

import pytest
import torch

from tests.lm.architectures import make
from trainwright.lm.layers import linear_layers
from trainwright.lm.units import Part, alive, parts, places, sizes


def test_places_by_hand() -> None:
    kept = torch.tensor([1, 3])
    assert places(kept, 4, 4).tolist() == [1, 3]
    assert places(kept, 4, 12).tolist() == [3, 4, 5, 9, 10, 11]               # units of three rows
    assert places(kept, 4, 8, layers=2).tolist() == [1, 3, 5, 7]              # a gate and its layer in one


def test_the_size_of_a_unit_is_that_of_its_weights_in_all_layers() -> None:
    block = make("llama").model.layers[0]
    mlp = Part(48, {"g": 1, "u": 1}, "d")
    layers = {"g": block.mlp.gate_proj, "u": block.mlp.up_proj, "d": block.mlp.down_proj}
    by_hand = sum((w**2).sum(1) for w in (layers["g"].weight, layers["u"].weight)) + (
        layers["d"].weight ** 2
    ).sum(0)
    assert torch.allclose(sizes(mlp, layers), by_hand.detach(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_units_are_alive_where_the_layer_that_writes_has_any_weight_left(kind: str) -> None:
    model = make(kind)
    layers = linear_layers(model, "all-linear")
    part = parts(model, layers, "model.layers.0" if kind == "llama" else "transformer.h.0")[-1]
    weight = layers[part.writer].weight
    mask = torch.zeros_like(weight, dtype=torch.bool)
    kept = torch.tensor([3, 7, 40])
    if kind == "llama":
        mask[5, kept] = True
    else:
        mask[kept, 5] = True
    assert alive(part, layers, {f"{part.writer}.weight": mask}).tolist() == [3, 7, 40]
    assert len(alive(part, layers, {})) == part.units == max(weight.shape)
