"""Bytes of a cache: by hand for softmax attention, and of one size for a linear one."""
from __future__ import annotations

import pytest
import torch

from tests.lm.architectures import make
from trainwright.compress.liger import Liger
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate.cache_bytes import CacheBytes


@torch.no_grad()
def test_keys_and_values_grow_and_a_state_does_not() -> None:
    method, model = CacheBytes(lengths=(10, 40)), make("llama")
    plain = method.measure(model, Context())
    per_token = 2 * 2 * 2 * 8 * 4                                 # k and v, layers, heads, their size, bytes
    assert plain == {f"cache_bytes/{n}": per_token * n for n in (10, 40)}
    Liger(window=4).operate(model, Context())
    linear = method.measure(model, Context())
    state, window = 8 * 8 * 4, 3 * (2 * 8 * 4)
    assert set(linear.values()) == {2 * (4 * (state + window) + 3)}                 # 3 of which are there


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(UserError, match="65 tokens are more than the 64 positions"):
        CacheBytes(lengths=(65,)).measure(make("llama"), Context())
