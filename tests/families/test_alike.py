"""Models are put together only where they have one function, one vocabulary and one set of special tokens."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus import bpe, chat
from trainwright.families.alike import Side, all_ends, check_alike

TINY: dict[str, Any] = {
    "type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
TEXT = ["the sea the ship the rain"] * 3


def side(name: str, folder: Path | None = None, **changes: Any) -> Side:
    return Side(name, families.from_table(TINY | changes, None, "some.toml"), folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_parameters.rope_theta (10000.0, 500000.0)",
        ),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps (1e-06, 1e-05)"),
        ({"hidden_act": "gelu"}, "hidden_act ('silu', 'gelu')"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings (False, True)"),
        ({"attention_bias": True}, "attention_bias"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, "head_dim (16, 8), num_attention_heads"),
        ({"mlp_bias": True}, "mlp_bias (False, True)"),
    ],
)
def test_configs_of_other_functions_are_refused_by_their_first_difference(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as told:
        check_alike([side("one"), side("two"), side("three", **changes)])
    assert "one and three compute different functions of their weights: " in str(told.value) and words in str(
        told.value
    )


def test_what_does_not_act_on_a_short_text_is_said() -> None:
    lines = check_alike([side("one"), side("two", attention_dropout=0.1, max_position_embeddings=128)])
    assert lines == ["one and two differ in what does not act on a short text: attention_dropout (0.0, 0.1), "
                     "max_position_embeddings (64, 128); that of one is kept"]
    assert check_alike([side("one"), side("two", eos_token_id=7), side("three")]) == []


def test_other_types_and_special_tokens_are_refused(tmp_path: Path) -> None:
    mistral = families.from_table(TINY | {"type": "mistral"}, None, "some.toml")
    with pytest.raises(UserError, match="one and two compute different functions"):
        check_alike([side("one"), Side("two", mistral, None)])
    with pytest.raises(UserError, match=r"one and two cannot be put together: bos_token_id \(1, 5\)"):
        check_alike([side("one", tmp_path), side("two", tmp_path, bos_token_id=5)])
    assert check_alike([side("one", tmp_path), side("two", bos_token_id=5)]) == [], (
        "before it is made, nobody knows its tokenizer's tokens"
    )


def test_where_no_small_model_can_be_made_every_field_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families.alike, "_small", lambda config: None)
    with pytest.raises(UserError, match=r"max_position_embeddings \(64, 128\)"):
        check_alike([side("one"), side("two", max_position_embeddings=128)])
    assert len(check_alike([side("one"), side("two", attention_dropout=0.1)])) == 1


# ---- tokenizers -----------------------------------------------------------------------------------------


def speaking(folder: Path, texts: list[str], **changes: Any) -> Side:
    folder.mkdir()
    made = bpe.train(texts, 300)
    for name, value in changes.items():
        setattr(made, name, value)
    made.save_pretrained(folder)
    return side(folder.name, folder)


def test_tokenizers_of_one_size_are_compared_by_what_they_hold(tmp_path: Path) -> None:
    one, same = speaking(tmp_path / "one", TEXT), speaking(tmp_path / "same", TEXT)
    other = speaking(tmp_path / "other", [t.upper() for t in TEXT])
    assert check_alike([one, same]) == []
    with pytest.raises(
        UserError, match=r"one and other have different tokenizers: 'HE' is no token of the one and token"
    ):
        check_alike([one, same, other])
    (tmp_path / "bare").mkdir()
    assert check_alike([one, side("bare", tmp_path / "bare"), same]) == [], (
        "a model without one has nothing to differ in"
    )


def test_tokenizers_of_one_vocabulary_may_read_texts_differently(tmp_path: Path) -> None:
    one, two = speaking(tmp_path / "one", TEXT), speaking(tmp_path / "two", TEXT)
    file = tmp_path / "two" / "tokenizer.json"
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | {"normalizer": {"type": "Lowercase"}}))
    with pytest.raises(
        UserError, match="one and two have different tokenizers: they differ in their normalizer"
    ):
        check_alike([one, two])


def test_another_chat_template_is_said_and_ends_are_put_together(tmp_path: Path) -> None:
    one, two = (
        speaking(tmp_path / "one", TEXT),
        speaking(tmp_path / "two", TEXT, chat_template="{{ messages }}"),
    )
    assert check_alike([one, two]) == ["one and two have different chat templates: that of one is kept"]
    (tmp_path / "two" / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert all_ends([one, two]) == [2, 9]
    assert chat.own_template(families.load_tokenizer(tmp_path / "two", "")) is not None


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [[2]]}'])
def test_a_damaged_generation_config_is_named(tmp_path: Path, text: str) -> None:
    one = speaking(tmp_path / "one", TEXT)
    (tmp_path / "one" / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"one/generation_config\.json"):
        all_ends([one])
