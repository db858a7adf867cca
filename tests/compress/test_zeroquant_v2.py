"""LoRC: the correction is the best of its rank, by the singular values of the error, on either quantizer."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compress.test_wanda import context
from trainwright.check import tiny
from trainwright.compress.gptq import GPTQ
from trainwright.compress.magnitude import Magnitude
from trainwright.compress.round_nearest import RoundNearest
from trainwright.compress.zeroquant_v2 import ZeroquantV2
from trainwright.core.context import Context
from trainwright.core.errors import UserError

NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_what_is_left_are_the_smaller_singular_values(rank: int) -> None:
    was, near, model = tiny.model(), tiny.model(), tiny.model()
    RoundNearest(bits=2).operate(near, Context())
    ZeroquantV2(bits=2, rank=rank).operate(model, Context())
    for name, p in was.named_parameters():
        if "proj" not in name:
            assert torch.equal(model.get_parameter(name), p)
            continue
        q, w = (m.get_parameter(name).detach().double().numpy() for m in (near, was))
        found = model.get_parameter(name).detach().double().numpy()
        values = np.linalg.svd(w - q, compute_uv=False)
        left, coarse = np.sqrt((values[rank:] ** 2).sum()), np.linalg.norm(w - q) / 1024      # float16
        assert np.linalg.norm(w - found) == pytest.approx(left, rel=2e-3, abs=coarse)
        assert np.linalg.matrix_rank(found - q, tol=1e-5) <= rank


def test_a_whole_rank_brings_the_weights_back() -> None:
    was, model = tiny.model(), tiny.model()
    ZeroquantV2(bits=2, rank=64).operate(model, Context())
    for name, p in was.named_parameters():
        assert torch.allclose(model.get_parameter(name), p, atol=1e-4)


def test_behind_gptq_and_its_errors(tmp_path: Path) -> None:
    was, plain, model = tiny.model().eval(), tiny.model().eval(), tiny.model().eval()
    GPTQ(bits=2).operate(plain, context(tmp_path, plain))
    ctx = context(tmp_path, model)
    ZeroquantV2(bits=2, rank=4, quantizer="gptq").operate(model, ctx)
    w, q, found = (m.get_parameter(NAME).detach().double().numpy() for m in (was, plain, model))
    values = np.linalg.svd(w - q, compute_uv=False)        # of the first block, which has the same inputs
    assert np.linalg.norm(w - found) == pytest.approx(np.sqrt((values[4:] ** 2).sum()), rel=2e-3)
    with pytest.raises(UserError, match=r"zeroquant_v2 looks at data: name a corpus as from\.data"):
        ZeroquantV2(quantizer="gptq").operate(model, Context())


def test_bits_are_counted_and_masks_kept() -> None:
    model, ctx = tiny.model(), Context()
    Magnitude(sparsity=0.5).operate(model, ctx)
    gone = model.get_parameter(NAME) == 0
    ZeroquantV2(rank=2, group_size=8, layers="*.q_proj").operate(model, ctx)
    assert (model.get_parameter(NAME)[gone] == 0).all()
    out, wide = model.get_parameter(NAME).shape
    bits = 4 + 32 / 8 + 16 * 2 * (out + wide) / (out * wide)
    assert ctx.texts["zeroquant_v2/bits"].startswith(f"{bits:.2f} bits a weight")
