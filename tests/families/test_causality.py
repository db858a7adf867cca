"""Causality is measured: on what the head reads, whatever the name of the architecture."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.lm.architectures import make
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.families import base, causality
from trainwright.lm.losses import way_of
from trainwright.pretrain.next_token import NextToken

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
T5: dict[str, Any] = {
    "type": "t5",
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
}


def made(table: dict[str, Any]) -> nn.Module:
    return families.create(families.from_table(table, None, "here"), 0, "here")


class Averages(nn.Module):
    """Mixes each token's embedding with the mean of the tokens up to it, or of all."""

    def __init__(self, ahead: bool) -> None:
        super().__init__()
        self.ahead, self.embed, self.head = ahead, nn.Embedding(64, 8), nn.Linear(8, 64)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        return self.head(x + (x.mean(1, keepdim=True) if self.ahead else x.cumsum(1) / count))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gpt_neox"])
def test_causal_models_are(kind: str) -> None:
    model = make(kind).train()
    assert families.is_causal(model) and model.training, "the mode is put back"
    families.check_causal(model)


def test_a_head_of_zeros_hides_nothing() -> None:
    """All logits are zero then, and do not move; what the head reads does."""
    model = made({"family": "causal_lm", "type": "bert", "tie_word_embeddings": False} | SIZES)
    model.get_output_embeddings().weight.data.zero_()
    assert not families.is_causal(model)


def test_models_that_see_ahead_are_refused() -> None:
    for model in (
        made({"family": "causal_lm", "type": "bert"} | SIZES),
        made({"type": "bert"} | SIZES),
        Averages(ahead=True),
    ):
        assert not families.is_causal(model)
        for refuse in (families.check_causal, lambda m: NextToken().init(m, Context()), way_of):
            with pytest.raises(UserError, match="depend on later tokens"):
                refuse(model)
    assert families.is_causal(made({"type": "bert", "is_decoder": True} | SIZES)) and families.is_causal(
        Averages(ahead=False)
    )


def test_of_an_encoder_and_a_decoder_the_decoder_is_measured() -> None:
    assert families.is_causal(made(T5))


def test_a_config_is_measured_on_a_small_model() -> None:
    families.check_causal_config(
        families.from_table({"type": "bert", "is_decoder": True} | SIZES, None, "here")
    )
    with pytest.raises(UserError, match="BertLMHeadModel depend on later tokens"):
        families.check_causal_config(
            families.from_table({"family": "causal_lm", "type": "bert"} | SIZES, None, "here")
        )


def test_what_is_too_large_to_make_is_measured_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causality, "create", lambda *given: pytest.fail("it was made"))
    large = SIZES | {"hidden_size": 1024, "intermediate_size": 4096}
    families.check_causal_config(
        families.from_table({"family": "causal_lm", "type": "bert"} | large, None, "here")
    )


def test_what_has_no_tokens_is_no_language_model() -> None:
    with pytest.raises(UserError, match="a Linear has no embedding of tokens"):
        families.is_causal(nn.Linear(2, 2))


@pytest.mark.slow
def test_types_taken_for_causal_are() -> None:
    """Each that can be made this small, but for those that need ``is_decoder`` or read ahead by design."""
    from transformers import CONFIG_MAPPING

    sizes = SIZES | {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    measured: dict[bool, set[str]] = {True: set(), False: set()}
    base.quiet()
    for kind in CONFIG_MAPPING:
        cls = CONFIG_MAPPING[kind]
        known = {f.name for f in dataclasses.fields(cls)} | set(getattr(cls, "attribute_map", {}))
        try:
            config = cls(**{k: v for k, v in sizes.items() if k in known})
            if base.family_of(config).name != "causal_lm":
                continue
            if sum(p.numel() for p in families.skeleton(config, "").parameters()) > causality.MOST:
                continue
            model = families.create(config, 0, "")
        except Exception:  # a type with rules of its own
            continue
        try:
            measured[families.is_causal(model)].add(kind)
        except RuntimeError:  # sizes that do not go together
            continue
    assert len(measured[True]) > 60 and measured[False] <= {"bert-generation", "cpmant", "xlnet"}, measured[
        False
    ]
