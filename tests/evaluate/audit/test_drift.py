"""The move of each block by hand; models that have no parameters in common have no drift."""
from __future__ import annotations

import torch

from tests.evaluate.audit.audits import small
from trainwright.evaluate.audit._drift import drift


def test_a_move_by_hand() -> None:
    before, after = small(num_hidden_layers=2), small(num_hidden_layers=2)
    with torch.no_grad():
        for parameter in after.model.layers[1].parameters():
            parameter.mul_(1.5)
        after.lm_head.weight[0] += 1
    told = {one["where"]: one for one in drift(before, after)}
    assert list(told) == ["embed_tokens", "block 0", "block 1", "norm", "lm_head"]
    assert abs(told["block 1"]["move"] - 0.5) < 1e-6 and told["block 0"]["move"] == told["norm"]["move"] == 0
    assert told["lm_head"]["moved"] == 1 / 400 and told["block 1"]["moved"] == 1.0
    assert drift(before, small(num_hidden_layers=1)) == [] == drift(before, small(hidden_size=32))
