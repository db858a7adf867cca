"""The files of a checkpoint: whole shards, no pickles, and no model that its files cannot be of."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainwright import families
from trainwright.core import hardware
from trainwright.core.errors import UserError
from trainwright.families import tensors

TINY: dict[str, Any] = {"type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300}
INDEX = "model.safetensors.index.json"


def fresh(**changes: Any) -> nn.Module:
    return families.create(families.from_table(TINY | changes, None, "some.toml"), 0, "some.toml")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint of several shards with their index."""
    fresh().save_pretrained(tmp_path / "model", max_shard_size="10KB")  # type: ignore[operator]
    return tmp_path / "model"


def say(folder: Path, **changes: Any) -> Path:
    """Change a folder's config.json."""
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(held | changes))
    return folder


def test_shards_are_those_that_the_index_names(sharded: Path) -> None:
    files = families.weight_files(sharded)
    assert len(files) > 2
    shutil.copy(files[0], sharded / "model-old.safetensors")
    assert families.weight_files(sharded) == files
    wanted = fresh().state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in families.load(sharded, "some.toml").state_dict().items())
    families.save(fresh(), sharded, None)                            # beside the shards now lies one file
    assert families.weight_files(sharded) == [sharded / "model.safetensors"]
    assert tensors.Reader(sharded, "some.toml").names == sorted(wanted)


def test_shards_that_are_not_there(sharded: Path) -> None:
    files = families.weight_files(sharded)
    files[1].unlink()
    with pytest.raises(UserError, match=rf"^some.toml: .* lacks {files[1].name}, which its {INDEX} names"):
        families.load(sharded, "some.toml")
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": "../model/" + files[0].name}}))
    with pytest.raises(UserError, match=r"lacks \.\./model/model-00001.*, which its"):
        families.load(sharded, "some.toml")
    (sharded / INDEX).write_text("[]")
    with pytest.raises(UserError, match=f"{INDEX} is damaged"):
        families.load(sharded, "some.toml")
    (sharded / INDEX).unlink()
    with pytest.raises(UserError, match=f"it has model-00001-of-.*: shards need their {INDEX}"):
        families.load(sharded, "some.toml")


@pytest.mark.parametrize(("name", "words"), [
    ("pytorch_model.bin", "it has pytorch_model.bin: a pickle may run anything, and is not read"),
    ("some.gguf", "it has some.gguf: GGUF is read from packages alone"),
    ("notes.md", r"needs config.json and model.safetensors\)\.$")])
def test_weights_of_another_kind(name: str, words: str, tmp_path: Path) -> None:
    families.save(fresh(), tmp_path, None)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(UserError, match=words):
        families.load(tmp_path, "some.toml")


def test_an_adapter_of_peft_is_not_the_model_beside_it(tmp_path: Path) -> None:
    """transformers would go where the adapter says that its model lies."""
    families.save(fresh(), tmp_path, None)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/else", "peft_type": "LORA"}')
    with pytest.raises(UserError, match="holds an adapter of PEFT"):
        families.load(tmp_path, "some.toml")


@pytest.mark.parametrize(
    "change", [{"hidden_size": 10**8}, {"vocab_size": 2 * 10**9}, {"intermediate_size": 2**30}]
)
def test_a_config_of_a_far_larger_model_is_refused_before_it_is_made(
    change: dict[str, int], tmp_path: Path
) -> None:
    families.save(fresh(), tmp_path, None)
    with pytest.raises(
        UserError, match=r"has 1\d,\d+ numbers, and its config.json describes a model of .*: they are not"
    ):
        families.load(say(tmp_path, **change), "some.toml")


def test_a_model_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families.save(fresh(), tmp_path, None)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 1000.0)
    with pytest.raises(UserError, match=r"needs 0\.0 GiB of memory in float32, and 0\.0 GiB are there"):
        families.load(tmp_path, "some.toml")


def test_a_head_of_its_own_under_a_config_that_ties_it(tmp_path: Path) -> None:
    families.save(fresh(), tmp_path, None)
    with pytest.raises(
        UserError, match=r"has a lm_head.weight of its own, which its config.json ties to model.embed_tok"
    ):
        families.load(say(tmp_path, tie_word_embeddings=True), "some.toml")


def test_what_a_library_fills_in_is_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it is not reported."""
    model = fresh()
    del model.lm_head
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    monkeypatch.setattr(families.base, "check_tensors", lambda *_: None)
    one, two = (families.load(tmp_path, "some.toml").state_dict()["lm_head.weight"] for _ in range(2))
    assert one.abs().sum() > 0 and torch.equal(one, two)
