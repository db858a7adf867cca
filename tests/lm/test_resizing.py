"""Maps of entries: what is written is copied, what is read is shared out, and shrinking undoes expanding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.lm.architectures import make as architecture
from trainwright.core.errors import UserError
from trainwright.lm.resizing import (
    become,
    dims_of,
    expand,
    groups_of,
    inner_size,
    layer_of,
    resized,
    shrink,
    spaces,
)

G = torch.tensor([0, 1, 0])
"""Three entries, the first and the last of which are one."""


def test_expand_by_hand() -> None:
    weight = torch.tensor([[2.0, 4.0], [6.0, 8.0]])
    large = expand(weight, ("inner", "<residual"), {"inner": G, "residual": G})
    assert torch.equal(large, torch.tensor([[1.0, 4.0, 1.0], [3.0, 8.0, 3.0], [1.0, 4.0, 1.0]]))
    assert torch.equal(expand(weight.T, ("<residual", "inner"), {"inner": G, "residual": G}), large.T)
    assert torch.equal(expand(weight[0], ("residual",), {"residual": G}), torch.tensor([2.0, 4.0, 2.0]))
    assert torch.equal(expand(weight, ("words", "residual"), {}), weight), "a space without a map stays"


def test_shrink_by_hand() -> None:
    large = torch.tensor([[1.0, 4.0, 3.0], [3.0, 8.0, 5.0], [3.0, 0.0, 1.0]])
    small = shrink(large, ("inner", "<residual"), {"inner": G, "residual": G})
    assert torch.equal(small, torch.tensor([[4.0, 2.0], [8.0, 8.0]])), "mean over rows, sum over columns"


def test_shrinking_undoes_expanding() -> None:
    weight, maps = (
        torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
        {
            "inner": torch.tensor([0, 1, 2, 3, 3, 1]),
            "residual": torch.tensor([0, 1, 2, 3, 4, 5, 2, 2]),
        },
    )
    for dims in (("inner", "<residual"), ("inner", "residual")):
        assert torch.allclose(shrink(expand(weight, dims, maps), dims, maps), weight)


def test_heads_move_with_their_group() -> None:
    config = architecture("llama").config  # 4 heads of 8, in 2 groups
    maps = spaces(config, torch.arange(32), torch.tensor([0, 1, 1]), torch.arange(48))
    assert maps["query"].tolist() == [*range(32), *range(16, 32)]
    assert maps["key"].tolist() == [*range(16), *range(8, 16)]
    config = architecture("gpt2").config  # queries, keys and values in one matrix
    maps = spaces(config, torch.arange(32), torch.tensor([0, 1, 2, 3, 2]), torch.arange(128))
    head = [*range(32), *range(16, 24)]
    assert maps["fused"].tolist() == head + [32 + i for i in head] + [64 + i for i in head]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gpt2"])
def test_every_parameter_of_a_known_model_has_its_spaces(kind: str) -> None:
    model = architecture(kind)
    dims, config = dims_of(model), model.config
    sizes = {"residual": config.hidden_size, "inner": inner_size(config)}
    for name, parameter in model.named_parameters():
        assert len(dims[name]) == parameter.ndim
        for size, dim in zip(parameter.shape, dims[name], strict=True):
            assert sizes.setdefault(dim.lstrip("<"), size) == size, (name, dim)
    if kind != "gpt2":
        assert sizes["key"] * config.num_attention_heads == sizes["query"] * groups_of(config)


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be changed; known are the models llama"):
        dims_of(architecture("gpt_neox"))
    model = architecture("llama")
    model.model.layers[0].mlp.extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(UserError, match=r"mlp\.extra is none of a plain llama"):
        dims_of(model)
    with pytest.raises(UserError, match="is no whole number; take another width"):
        resized(model.config, 1.01, [0, 1], "mine")


def test_names_inside_and_outside_of_the_blocks() -> None:
    assert layer_of("model.layers.11.mlp.up_proj.weight", "model.layers") == (11, "mlp.up_proj.weight")
    assert layer_of("model.norm.weight", "model.layers") is None


def test_a_model_becomes_another_in_place() -> None:
    model = architecture("llama")
    config, weights = resized(model.config, 1, [1, 0, 1], "mine"), dict(model.named_parameters())
    parent = "model.layers"
    made = {n: p for n, p in weights.items() if layer_of(n, parent) is None}
    for new, old in enumerate([1, 0, 1]):
        block = {n: p for n, p in weights.items() if n.startswith(f"{parent}.{old}.")}
        made |= {n.replace(f"{parent}.{old}.", f"{parent}.{new}.", 1): p for n, p in block.items()}
    held = model
    become(model, config, made)
    assert held is model and model.config.num_hidden_layers == 3
    now = dict(model.named_parameters())
    assert now.keys() == made.keys() and all(torch.equal(now[n], made[n]) for n in made)
