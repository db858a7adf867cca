"""What a model adds to the loss of its tokens is measured: a setting that speaks of a
loss acts, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.pretrain.next_token import NextToken

MIXTRAL: dict[str, Any] = {
    "type": "mixtral",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "vocab_size": 300,
}
QWEN: dict[str, Any] = {
    "type": "qwen2_moe",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 300,
}
SWITCH: dict[str, Any] = {
    "type": "switch_transformers",
    "d_model": 16,
    "d_ff": 16,
    "d_kv": 8,
    "num_heads": 2,
    "num_layers": 2,
    "expert_capacity": 64,
    "num_sparse_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_sparse_decoder_layers": 1,
    "num_experts": 2,
    "vocab_size": 300,
}
BAMBA: dict[str, Any] = {
    "type": "bamba",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "vocab_size": 300,
}


def weight(table: dict[str, Any], **changes: Any) -> float:
    return families.own_weight(families.from_table(table | changes, None, "some.toml"))


@pytest.mark.parametrize(
    ("table", "changes", "wanted"),
    [
        (MIXTRAL, {}, 0.0),
        (MIXTRAL, {"output_router_logits": True}, 0.001),
        (MIXTRAL, {"output_router_logits": True, "router_aux_loss_coef": 100.0}, 100.0),
        (QWEN, {"output_router_logits": True, "router_aux_loss_coef": 0.25}, 0.25),
        (BAMBA, {}, 0.0),
        ({"type": "llama", "hidden_size": 16, "num_attention_heads": 2}, {}, 0.0),
    ],
)
def test_the_weight_is_that_of_the_config(
    table: dict[str, Any], changes: dict[str, Any], wanted: float
) -> None:
    assert weight(table, **changes) == wanted


@pytest.mark.parametrize(
    ("table", "changes", "words"),
    [
        (
            MIXTRAL,
            {"router_aux_loss_coef": 100.0},
            "router_aux_loss_coef = 100.0 changes nothing without model.output_router_l",
        ),
        (
            MIXTRAL,
            {"router_aux_loss_coef": 0.0, "output_router_logits": True},
            "output_router_logits = True changes nothing in a",
        ),
        (MIXTRAL, {"output_attentions": True}, "model.output_attentions is no field of MixtralConfig"),
        (
            BAMBA,
            {"z_loss_coefficient": 0.5},
            "of type 'bamba' with z_loss_coefficient = 0.5 adds to the loss of its tokens what",
        ),
    ],
)
def test_a_setting_that_changes_no_loss_is_refused(
    table: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as told:
        families.from_table(table | changes, None, "some.toml")
    assert str(told.value).startswith("some.toml: ") and words in str(told.value)


def test_what_is_not_known_is_refused_before_training() -> None:
    """As in a checkpoint, whose config no table says."""
    config = families.from_table(BAMBA, None, "some.toml")
    families.check_objectives([NextToken()], config)
    config.z_loss_coefficient = 0.5
    with pytest.raises(
        UserError, match=r"z_loss_coefficient = 0\.5 adds to the loss of its tokens what is not known here"
    ):
        families.check_objectives([NextToken()], config)
    assert weight(SWITCH) == 0.0, "its own loss is that of its tokens unless it is asked for more"
