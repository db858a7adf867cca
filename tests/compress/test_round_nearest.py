"""Rounding to nearest: a grid by hand, and equality with compressed-tensors."""
from __future__ import annotations

import pytest
import torch

from trainwright.check import tiny
from trainwright.compress.round_nearest import RoundNearest
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm import quantized


def test_two_bits_by_hand() -> None:
    w = torch.tensor([[-1.5, -0.4, 0.6, 3.0]])
    symmetric = quantized.grid(w, 2, True, 0)                        # -4, -2, 0, 2
    assert symmetric.scale.item() == 2.0
    assert symmetric.nearest(w).tolist() == [[-2.0, 0.0, 0.0, 2.0]]
    reaching = quantized.grid(w, 2, False, 0)                        # -1.5, 0, 1.5, 3
    assert (reaching.scale.item(), reaching.zero.item()) == (1.5, -1.0)
    assert reaching.nearest(w).tolist() == [[-1.5, 0.0, 0.0, 3.0]]
    assert quantized.grid(torch.zeros(1, 4), 4, False, 2).nearest(torch.zeros(1, 4)).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_is_what_compressed_tensors_makes(bits: int, group: int, symmetric: bool) -> None:
    library = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.utils import calculate_qparams
    w = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    args = library.QuantizationArgs(num_bits=bits, symmetric=symmetric, group_size=group or None,
                                    strategy="group" if group else "channel")
    groups = w.unflatten(1, (-1, group or 32))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    ours = quantized.grid(w, bits, symmetric, group)
    assert torch.equal(ours.scale, scale) and torch.equal(ours.zero, zero.float())
    assert torch.equal(ours.nearest(w), library.fake_quantize(w, scale, zero, args))


def test_a_model_keeps_few_values_in_a_group() -> None:
    model, before = tiny.model(), dict(tiny.model().named_parameters())
    RoundNearest(bits=3, group_size=8).operate(model, Context())
    for name, p in model.named_parameters():
        if "proj" in name:
            assert all(len(group.unique()) <= 8 for group in p.reshape(-1, 8))
            assert not torch.equal(p, before[name])
            size = before[name].reshape(-1, 8).abs().amax(1, keepdim=True)
            away = (p - before[name]).reshape(-1, 8).abs()
            assert (away <= size / 7 * 1.001).all(), "half a step of 2 max / 7 at most"
        else:
            assert torch.equal(p, before[name])
    with pytest.raises(UserError, match=r"group_size = 7 does not divide the 16 inputs of .*q_proj"):
        RoundNearest(group_size=7).operate(model, Context())
