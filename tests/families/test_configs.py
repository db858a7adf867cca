"""Configs of transformers: special tokens have one role each, sizes fit, and a
stranger's config is bounded."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus import bpe
from trainwright.families import configs

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_model": 16,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "d_ff": 32,
    "d_kv": 8,
    "num_layers": 2,
    "num_heads": 2,
    "ffn_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "word_embed_proj_dim": 16,
    "embedding_size": 16,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
ONE_ROLE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "olmo2",
    "phi3",
    "gpt2",
    "opt",
    "stablelm",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "bert",
    "albert",
    "electra",
    "modernbert",
    "t5",
    "bart",
    "cohere",
    "granite",
    "gpt_neox",
)
OWN_ROW = ("modernbert-decoder", "led", "nomic_bert")


def table(kind: str, **changes: Any) -> dict[str, Any]:
    """Small sizes, as far as a type has fields for them."""
    from transformers import CONFIG_MAPPING
    cls = CONFIG_MAPPING[kind]
    names = {n for n in dir(cls) if n in SIZES} | set(cls.__dataclass_fields__)
    return {"type": kind} | {k: v for k, v in SIZES.items() if k in names} | changes


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe.train(["the sea the ship the rain"] * 3, 300)


@pytest.fixture(scope="module")
def padded() -> Any:
    return bpe.train(["the sea the ship the rain"] * 3, 300, mask=True)


def trained_rows(model: nn.Module) -> torch.Tensor:
    """Which rows of the embeddings a loss on all tokens moves."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(embedding.num_embeddings)[None].flip(1)
    given = {"decoder_input_ids": ids[:, :8]} if model.config.is_encoder_decoder else {}  # type: ignore[union-attr, operator]
    out = [model(input_ids=part, **given).logits for part in ids.split(32, 1)]
    sum((o.float() ** 2).sum() for o in out).backward()  # type: ignore[union-attr]
    return embedding.weight.grad.abs().sum(1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ONE_ROLE)
def test_the_end_of_a_text_is_learned(kind: str, tokenizer: Any) -> None:
    """The tokenizer has one token for the beginning and the end of a text, and none for padding."""
    config = families.from_table(table(kind), tokenizer, "here")
    model = families.create(config, 0, "here")
    assert config.pad_token_id is None and config.vocab_size == len(tokenizer)
    assert bool(trained_rows(model).all())


@pytest.mark.parametrize("kind", OWN_ROW)
def test_a_type_that_needs_padding_has_a_row_for_it_behind_the_tokenizers(kind: str, tokenizer: Any) -> None:
    config = families.from_table(table(kind), tokenizer, "here")
    assert (config.pad_token_id, config.vocab_size) == (len(tokenizer), len(tokenizer) + 1)
    model = families.create(config, 0, "here")
    assert model.get_input_embeddings().weight[: len(tokenizer)].abs().sum(1).all()  # type: ignore[operator]
    assert families.from_table(table(kind, vocab_size=400), tokenizer, "here").vocab_size == 400
    with pytest.raises(
        UserError, match=r"needs a row of its own for padding: leave model.vocab_size out, or say at le"
    ):
        families.from_table(table(kind, vocab_size=len(tokenizer)), tokenizer, "here")


@pytest.mark.parametrize("kind", ("roberta", "esm", "m2m_100"))
def test_positions_do_not_begin_behind_the_vocabulary(kind: str, tokenizer: Any, padded: Any) -> None:
    with pytest.raises(
        UserError, match=f"type '{kind}' counts positions from the number of its padding token, and the"
    ):
        families.from_table(table(kind), tokenizer, "here")
    config = families.from_table(table(kind), padded, "here")
    assert config.pad_token_id == padded.pad_token_id == 1 and config.vocab_size == len(padded)
    rows = trained_rows(families.create(config, 0, "here"))
    assert not rows[1] and bool(rows[[0, *range(2, len(rows))]].all())


def test_rows_have_room_for_the_positions_that_padding_takes(padded: Any) -> None:
    for kind, most in (("roberta", 62), ("bert", 64)):
        assert families.positions_of(families.from_table(table(kind), padded, "here")) == most


@pytest.mark.parametrize("said", (0, 5))
def test_a_token_that_is_something_else_is_no_padding(said: int, tokenizer: Any, padded: Any) -> None:
    with pytest.raises(
        UserError, match=f"model.pad_token_id = {said} is a token that the tokenizer has for somethin"
    ):
        families.from_table(table("llama", pad_token_id=said), tokenizer, "here")
    assert families.from_table(table("llama", pad_token_id=1), padded, "here").pad_token_id == 1


def test_a_type_that_has_padding_at_a_fixed_place_is_refused(tokenizer: Any) -> None:
    with pytest.raises(
        UserError, match="a model of type 'mpnet' takes the token 1 for padding whatever its config says"
    ):
        families.skeleton(families.from_table(table("mpnet"), tokenizer, "here"), "here")


def test_an_encoder_and_decoder_begins_with_a_token_that_begins_texts(tokenizer: Any) -> None:
    """BART's own are 2 to begin with and 2 forced at the end, which are bytes of this vocabulary."""
    config = families.from_table(table("bart"), tokenizer, "here")
    assert config.decoder_start_token_id == 0 and config.forced_eos_token_id is None
    assert (
        families.from_table(table("bart", decoder_start_token_id=7), tokenizer, "here").decoder_start_token_id
        == 7
    )


def test_what_a_type_reads_without_a_field_for_it_may_be_said() -> None:
    config = families.from_table(table("qwen3_moe", head_dim=12), None, "here")
    assert families.skeleton(config, "here").model.layers[0].self_attn.head_dim == 12  # type: ignore[union-attr, index]
    with pytest.raises(UserError, match=r"model.head_dimm is no field of Qwen3MoeConfig"):
        families.from_table(table("qwen3_moe", head_dimm=12), None, "here")


@pytest.mark.parametrize("kind", ("qwen2_moe", "stablelm", "exaone4"))
def test_heads_that_a_type_sets_and_that_do_not_fit(kind: str) -> None:
    small = {k: v for k, v in table(kind).items() if k != "num_key_value_heads"}
    with pytest.raises(
        UserError, match=r"num_attention_heads = 2 is no multiple of num_key_value_heads = \d+, which the t"
    ):
        families.check_causal_config(families.from_table(small, None, "here"))
    families.check_causal_config(families.from_table(table(kind), None, "here"))


def test_a_field_that_a_type_leaves_open_is_named() -> None:
    small = {k: v for k, v in table("nemotron").items() if k not in ("num_key_value_heads", "head_dim")}
    with pytest.raises(UserError, match=r"\(model.num_key_value_heads is left open: say it\)\.$"):
        families.skeleton(families.from_table(small, None, "here"), "here")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers = 1000000000 is too many: a model has at most 2,048 layers",
        ),
        ({"text_config": {"n_layer": 10**400}}, "n_layer = a number of 401 digits is too many"),
        ({"num_labels": 10**9}, "num_labels = 1000000000 is no number of labels: a model has at most"),
        ({"num_labels": -1}, "num_labels = -1 is no number"),
        ({"num_labels": 1e300}, "num_labels = 1e"),
        (
            {"max_position_embeddings": 2**62},
            r"max_position_embeddings must be a whole number below 2\*\*31 in size, not 4611686018427387904",
        ),
        ({"vision_config": {"depths": [2, 2**40]}}, r"depths must be a whole number below 2\*\*31 in size"),
        ({"eos_token_id": -(2**63)}, "eos_token_id must be a whole number"),
        ({"model_type": 7}, "is no config of transformers: it has no model_type"),
        ({"model_type": "qwen9"}, "model type `qwen9`"),
    ],
)
def test_a_config_of_a_stranger_ends_in_a_sentence(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Qwen2 makes a list of its layers while the config is made: it must not come to that."""
    held = {"model_type": "qwen2", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(held | change))
    with pytest.raises(UserError, match=words):
        families.load_config(tmp_path, "here")


def test_a_size_of_something_in_a_layer_is_no_number_of_layers(tmp_path: Path) -> None:
    """As Gemma 3n has it."""
    held = {"model_type": "gemma3n_text", "vocab_size_per_layer_input": 262_144}
    (tmp_path / "config.json").write_text(json.dumps(held))
    assert families.load_config(tmp_path, "here").vocab_size_per_layer_input == 262_144


@pytest.mark.parametrize("content", (b"[1]", b"{", b"\xff", b"[" * 10**5, None))
def test_what_is_no_config(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    os.mkfifo(file) if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        families.load_config(tmp_path, "here")


@pytest.mark.slow
def test_no_type_leaves_a_token_of_the_tokenizer_untrained(tokenizer: Any) -> None:
    """Of the types of transformers that can be made small, a third each day, since each imports a module: no
    row of the tokenizer's is one of padding."""
    from transformers import CONFIG_MAPPING
    made = 0
    for kind in sorted(CONFIG_MAPPING)[datetime.date.today().toordinal() % 3::3]:
        try:
            config = families.from_table(table(kind), tokenizer, "here")
            if families.family_of(config).name not in ("causal_lm", "masked_lm", "seq2seq"):
                continue
            model = families.skeleton(config, "here")
        except UserError:                                  # a type with rules of its own
            continue
        made += 1
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.num_embeddings >= len(tokenizer):
                assert module.padding_idx is None or module.padding_idx >= len(tokenizer), kind
    assert made > 30


def test_what_counts_positions_from_padding_is_found_out_by_looking() -> None:
    from transformers import CONFIG_MAPPING
    for kind, begins in (("roberta", 2), ("xlm-roberta", 2), ("bert", 0), ("gpt2", 0), ("opt", 0)):
        config = CONFIG_MAPPING[kind]()
        config.pad_token_id = 1
        assert configs.first_position(config) == begins, kind


def test_a_size_of_nothing_is_named() -> None:
    table = {"type": "llama", "hidden_size": 16, "num_attention_heads": 0}
    with pytest.raises(UserError, match=r"^here: model.num_attention_heads must not be 0\.$"):
        families.from_table(table, None, "here")
