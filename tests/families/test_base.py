"""Models: from a table, from a seed, in and out of folders, and out of packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus import bpe
from trainwright.evaluate.held_out import HeldOut
from trainwright.families import base
from trainwright.pretrain.next_token import NextToken

TINY: dict[str, Any] = {
    "type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe.train(["the sea the ship the rain"] * 3, 300)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def test_the_vocabulary_and_its_special_tokens_come_from_the_tokenizer(tokenizer: Any) -> None:
    config = families.from_table({k: v for k, v in TINY.items() if k != "vocab_size"}, tokenizer, "here")
    assert config.vocab_size == len(tokenizer) and config.eos_token_id == tokenizer.eos_token_id
    assert families.from_table(TINY | {"vocab_size": 512}, tokenizer, "here").vocab_size == 512


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"type": "lama"}, "model.type 'lama' is no model of transformers (did you mean 'llama'?)"),
        ({"hiden_size": 8}, "model.hiden_size is no field of LlamaConfig (did you mean 'hidden_size'?)"),
        ({"vocab_size": 100}, "model.vocab_size 100 does not fit the tokenizer"),
        ({"hidden_size": "big"}, "here: model: "),
    ],
)
def test_a_table_that_is_wrong(change: dict[str, Any], words: str, tokenizer: Any) -> None:
    with pytest.raises(UserError) as told:
        families.from_table(TINY | change, tokenizer, "here")
    assert str(told.value).startswith("here: ") and words in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"type": "clip_text_model"},
            "a model of type 'clip_text_model' is of none of the families causal_lm, ",
        ),
        (TINY | {"num_attention_heads": 3}, ""),
    ],
)
def test_a_model_that_cannot_be_made_is_a_sentence(table: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"^here: {words}"):
        families.skeleton(families.from_table(table, None, "here"), "here")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"type": "gpt2", "n_layer": 10**18},
            "model.n_layer = 1000000000000000000 is too many: a model has at most 2,048 layers",
        ),
        ({"type": "llama", "num_hidden_layers": 2049}, "model.num_hidden_layers = 2049 is too many"),
    ],
)
def test_a_slip_in_the_number_of_layers_is_a_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        families.from_table(config, None, "here")


def test_a_config_of_others_does_not_put_modules_together_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MOST_MODULES", 50)
    config = families.from_table(TINY, None, "here")
    config.num_hidden_layers = 10**18
    with pytest.raises(
        UserError,
        match=r"^here: the model would have more than 50 modules: look at the sizes in its config\.$",
    ):
        families.skeleton(config, "here")
    config.num_hidden_layers = 2
    assert sum(p.numel() for p in families.skeleton(config, "here").parameters()) > 0, "the count begins anew"


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    config = families.from_table(TINY, None, "here")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (weights(families.create(config, seed, "here")) for seed in (0, 0, 1))
    assert all(torch.equal(v, two[n]) for n, v in one.items()) and not torch.equal(
        one["lm_head.weight"], other["lm_head.weight"]
    )
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is as it was"
    assert all(p.is_meta for p in families.skeleton(config, "here").parameters())


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ({"type": "llama"}, "causal_lm"),
        ({"type": "gpt2"}, "causal_lm"),
        ({"type": "t5"}, "seq2seq"),
        ({"type": "bart"}, "seq2seq"),
        ({"type": "bert"}, "masked_lm"),
        ({"type": "bert", "is_decoder": True}, "causal_lm"),
        ({"type": "modernbert"}, "masked_lm"),
        ({"family": "causal_lm", "type": "bert"}, "causal_lm"),
        ({"type": "clip"}, "image_text"),
        ({"type": "siglip"}, "image_text"),
    ],
)
def test_the_family_of_a_table(table: dict[str, Any], name: str) -> None:
    assert families.family_of(families.from_table(table, None, "here")).name == name


def test_the_family_of_a_checkpoint_is_that_of_its_architecture(tmp_path: Path) -> None:
    """A BERT that was saved with a causal head is causal, though its type fills gaps."""
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
    }
    for family, cls in (("causal_lm", "BertLMHeadModel"), ("masked_lm", "BertForMaskedLM")):
        config = families.from_table({"family": family, "type": "bert"} | sizes, None, "here")
        model = families.create(config, 0, "here")
        families.save(model, tmp_path / family, None)
        loaded = families.load(tmp_path / family, "here")
        assert type(model).__name__ == type(loaded).__name__ == cls
        assert families.family_of(model).name == families.family_of(loaded).name == family


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"family": "masked", "type": "bert"},
            "there is no family of models 'masked' (did you mean 'masked_lm'?)",
        ),
        (
            {"family": "masked_lm", "type": "llama"},
            "transformers has no model of type 'llama' in the family masked_lm",
        ),
        ({"hidden_size": 8}, "model needs a type"),
        ({"type": "bert", "factory": "./net.py:build"}, "model needs a type"),
        ({"family": "factory", "type": "bert"}, "a model of the family factory needs model.factory"),
    ],
)
def test_a_table_that_means_no_model(table: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as told:
        families.from_table(table, None, "here")
    assert str(told.value).startswith("here: ") and words in str(told.value)


def test_a_file_of_the_folder_is_a_family() -> None:
    """No list names them: each file defines one class, whose name in snake case is the file's."""
    found = base.families()
    assert {"causal_lm", "seq2seq", "masked_lm", "image_text", "factory"} <= set(found)
    assert all(Path(sys.modules[type(f).__module__].__file__ or "").stem == name for name, f in found.items())


@pytest.mark.slow
def test_every_type_of_transformers_is_of_the_family_of_its_kind() -> None:
    """A causal type is taken for another only where it fills gaps too, or has an encoder."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    causal, masked, both = (
        a._model_mapping for a in (AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM)
    )
    seen = dict.fromkeys(base.families(), 0)
    for kind in CONFIG_MAPPING:
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception:  # a type without defaults
            continue
        claims = {n: f.claims(config, ()) for n, f in base.families().items()}
        claimed = [n for n, how in claims.items() if how]
        assert len(claimed) <= 1, f"{kind}: {claims}"
        seen[claimed[0] if claimed else "factory"] += 1
        if type(config) in causal and claimed != ["causal_lm"]:
            assert config.is_encoder_decoder or type(config) in masked, kind
            assert claimed == (
                ["seq2seq"] if type(config) in both else ["masked_lm"] if type(config) in masked else []
            ), kind
    assert (
        seen["causal_lm"] > 100 and seen["masked_lm"] > 30 and seen["seq2seq"] > 15 and seen["image_text"] > 8
    )


def test_methods_say_which_families_they_score() -> None:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
    }
    bert = families.skeleton(families.from_table({"type": "bert"} | sizes, None, "here"), "here")
    llama = families.skeleton(families.from_table(TINY, None, "here"), "here")
    families.check_objectives([NextToken(), HeldOut()], llama)
    for method in (NextToken(), HeldOut()):
        with pytest.raises(
            UserError,
            match=f"{method.name} scores models of the families causal_lm, .* BertForMaskedLM is of the",
        ):
            families.check_objectives([method], bert)
