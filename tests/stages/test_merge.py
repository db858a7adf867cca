"""Merging: what must agree is checked before anything is written, and what lies
beside the weights is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainwright import families
from trainwright.core import masks
from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.corpus import bpe
from trainwright.families import tensors
from trainwright.life.jobs import jobs
from trainwright.life.listener import Listener
from trainwright.life.run import run
from trainwright.planning.plan import plan
from trainwright.storage.store import Store

TINY: dict[str, Any] = {"type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                        "num_attention_heads": 2, "num_key_value_heads": 1}
RECIPE = """[[stage]]
name = "merged"
kind = "merge"
from = { models = ["one", "two"] }
methods = [{ use = "interpolate" }]
"""


class Heard(Listener):
    """What was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models of one tokenizer, beside a recipe that merges them."""
    tokenizer = bpe.train(["the sea the ship the rain"] * 3, 300)
    for seed, name in enumerate(("one", "two")):
        families.save(
            families.create(families.from_table(TINY, tokenizer, "here"), seed, "here"),
            tmp_path / name,
            tokenizer,
        )
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path


def merged(folder: Path, listener: Listener | None = None) -> Path:
    return run(load(folder / "r.toml"), Store(folder / "store"), listener)["merged"].path


def changed(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        (
            "config.json",
            {"rms_norm_eps": 1e-3},
            r"one and two compute different functions of their weights: rms_norm_eps",
        ),
        ("config.json", {"tie_word_embeddings": True}, r"tie_word_embeddings \(False, True\)"),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Lowercase"}},
            r"different tokenizers: they differ in their normalizer",
        ),
    ],
)
def test_models_that_differ_are_refused_by_the_plan(
    file: str, changes: dict[str, Any], words: str, folder: Path
) -> None:
    changed(folder / "two" / file, **changes)
    with pytest.raises(UserError, match=rf"r\.toml: stage 'merged': .*{words}"):
        plan(load(folder / "r.toml"), Store(folder / "store"), estimate=False)


def test_a_base_of_another_vocabulary_is_refused(folder: Path) -> None:
    other = bpe.train(["THE SEA THE SHIP THE RAIN"] * 3, 300)
    families.save(
        families.create(families.from_table(TINY, other, "here"), 9, "here"), folder / "base", other
    )
    text = RECIPE.replace('"two"] }', '"two"], base = "base" }').replace("interpolate", "task_arithmetic")
    (folder / "r.toml").write_text(text)
    with pytest.raises(UserError, match="one and base have different tokenizers"):
        jobs(load(folder / "r.toml"), Store(folder / "store"))


def test_every_file_of_a_tokenizer_is_kept(folder: Path) -> None:
    """Old ones have a vocabulary and merges in two files."""
    for name in ("one", "two"):
        held = json.loads((folder / name / "tokenizer.json").read_text())["model"]
        (folder / name / "tokenizer.json").unlink()
        (folder / name / "vocab.json").write_text(json.dumps(held["vocab"]))
        (folder / name / "merges.txt").write_text(
            "#version: 0.2\n" + "\n".join(" ".join(m) for m in held["merges"])
        )
        end = "<|endoftext|>"
        (folder / name / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "GPT2Tokenizer", "eos_token": end, "bos_token": end, "unk_token": end}))
        (folder / name / "additional_chat_templates").mkdir()
        (folder / name / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    out = merged(folder)
    assert (
        AutoTokenizer.from_pretrained(out).get_vocab()
        == AutoTokenizer.from_pretrained(folder / "one").get_vocab()
    )
    assert (out / "additional_chat_templates" / "tool.jinja").is_file()
    assert not (out / "model.safetensors.index.json").exists()


def test_it_stops_where_any_of_the_models_does(folder: Path) -> None:
    changed(folder / "two" / "generation_config.json", eos_token_id=[0, 7])
    heard = Heard()
    out = merged(folder, heard)
    for file in ("config.json", "generation_config.json"):
        assert json.loads((out / file).read_text())["eos_token_id"] == [0, 7], file
    assert AutoModelForCausalLM.from_pretrained(out).generation_config.eos_token_id == [0, 7]


def test_bfloat16_loses_a_small_move_and_a_setting_keeps_it(folder: Path) -> None:
    for name in ("one", "two"):
        families.export(folder / name, folder / "half", "bfloat16")
        shutil.rmtree(folder / name)
        (folder / "half").rename(folder / name)
    found = plan(load(folder / "r.toml"), Store(folder / "store"), estimate=False).stages[0]
    heard = Heard()
    half = load_file(merged(folder, heard) / "model.safetensors")
    said = (
        'one is bf16, in which about a fifth of a small move of its weights is lost; dtype = "float32" '
        'keeps it'
    )
    assert said in str(found.places) and f"merged: {said}" in heard.lines
    (folder / "r.toml").write_text(RECIPE + 'dtype = "float32"\n')
    out, heard = merged(folder, quiet := Heard()), quiet
    whole = load_file(out / "model.safetensors")
    assert not any("bf16" in line for line in heard.lines)
    one, two = (load_file(folder / n / "model.safetensors") for n in ("one", "two"))
    for name, tensor in whole.items():
        assert tensor.dtype == torch.float32 and half[name].dtype == torch.bfloat16
        assert torch.equal(tensor, (one[name].float() + two[name].float()) / 2)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert any(not torch.equal(t, half[n].float()) for n, t in whole.items())


def test_shapes_that_differ_are_refused_by_name(folder: Path) -> None:
    """The configs are alike, and a tensor of one is not what its config says."""
    held = load_file(folder / "two" / "model.safetensors")
    held["model.norm.weight"] = torch.ones(8)
    save_file(held, folder / "two" / "model.safetensors")
    words = r"one and two are not of one architecture: model\.norm\.weight has the shapes \[16\] and \[8\]"
    with pytest.raises(UserError, match=words):
        merged(folder)
    del held["model.norm.weight"]
    save_file(held, folder / "two" / "model.safetensors")
    with pytest.raises(UserError, match=r"only one of them has the tensor model\.norm\.weight"):
        merged(folder)
    assert not list((folder / "store").rglob("*.safetensors"))


def test_pieces_of_tensors_make_the_merge_of_whole_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(merged(folder) / "model.safetensors")
    monkeypatch.setattr("trainwright.stages.merge.PIECE", 100)
    shutil.rmtree(folder / "store")
    pieces = load_file(merged(folder) / "model.safetensors")
    assert pieces.keys() == whole.keys() and all(torch.equal(t, whole[n]) for n, t in pieces.items())


def test_twins_are_merged_without_loading_a_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that differ in nothing but their weights need neither config nor tokenizer to be understood."""
    def never(*_: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr("trainwright.families.alike.check_alike", never)
    assert (merged(folder) / "model.safetensors").is_file()
    changed(folder / "two" / "generation_config.json", eos_token_id=[0, 7])
    with pytest.raises(AssertionError, match="asked"):
        merged(folder)


def test_a_mask_that_all_models_have_is_that_of_their_merge(folder: Path) -> None:
    for name in ("one", "two"):
        model = families.load(folder / name, "here")
        odd = torch.arange(512).view(32, 16) % 2 > 0
        masks.keep(model, "model.layers.0.mlp.up_proj.weight", odd)
        families.save(model, folder / name, families.load_tokenizer(folder / name, "here"))
    made = families.load(merged(folder), "here")
    assert masks.of(made).keys() == {"model.layers.0.mlp.up_proj.weight"} and masks.enforce(made) == 0
    (folder / "two" / masks.FILE).unlink()
    out = merged(folder, heard := Heard())
    assert not (out / masks.FILE).exists()
    assert "merged: not all models were pruned alike, and their merge has no mask" in heard.lines


def test_what_a_method_leaves_lies_beside_the_weights(folder: Path) -> None:
    text = RECIPE.replace('"two"] }', '"two"], base = "one" }')
    text = text.replace('"interpolate"', '"compeft", density = 0.1')
    (folder / "r.toml").write_text(text)
    out = merged(folder)
    assert (out / "compeft-0.bin").is_file() and (out / "compeft-1.bin").is_file()
    made, one = (load_file(f / "model.safetensors") for f in (out, folder / "one"))
    total, changed_ones = sum(map(torch.numel, one.values())), sum(
        int((t != one[n]).sum()) for n, t in made.items()
    )
    assert 0 < changed_ones < 0.11 * total


def test_tensors_of_a_checkpoint_say_whether_they_are_coarse(folder: Path) -> None:
    assert tensors.Reader(folder / "one", "here").coarse() == ""
    families.export(folder / "one", folder / "half", "float16")
    assert tensors.Reader(folder / "half", "here").coarse() == "F16"
