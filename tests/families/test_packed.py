"""Weights in bits: the same model from disk, here and in transformers, as many bits as were asked for, and an
ordinary checkpoint in what follows."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.stages.test_repeat import BASE, CORPUS, TRAIN
from trainwright import families
from trainwright.check import tiny
from trainwright.compress.round_nearest import RoundNearest
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.recipe import parse
from trainwright.families import packed
from trainwright.families.tensors import Reader
from trainwright.life.run import run
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store

pytest.importorskip("compressed_tensors")

WIDE: dict[str, Any] = BASE | {"model": BASE["model"] | {"hidden_size": 32, "intermediate_size": 64}}
FEW: dict[str, Any] = {"name": "few", "kind": "transform", "from": {"model": "base", "data": "corpus"},
                       "calibration": 16, "stored": "packed",
                       "methods": [{"use": "gptq", "group_size": 16}, {"use": "pack", "length": 32}]}


def made(life: Path, *stages: dict[str, Any]) -> dict[str, Artifact]:
    return run(parse({"seed": 3, "stage": [CORPUS, WIDE, *stages]}, life), Store(life.parent / "store"))


@pytest.mark.parametrize(("bits", "group_size"), [
    *((bits, size) for size in (0, 8) for bits in (2, 3, 4, 5, 8)),
    pytest.param(4, 16, id="a layer as wide as a group"),
])
def test_the_same_weights_come_back(tmp_path: Path, bits: int, group_size: int) -> None:
    from transformers import AutoModelForCausalLM
    model, ids = tiny.model().eval(), torch.arange(20)[None]
    RoundNearest(bits=bits, group_size=group_size).operate(model, Context())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    logits = model(input_ids=ids).logits
    packed.ask(model, "a test")
    families.write(model, [], 0, tmp_path, None)
    held = load_file(tmp_path / "model.safetensors")
    assert held["model.layers.0.mlp.down_proj.weight_packed"].dtype == torch.int32
    again = families.load(tmp_path, "a test")
    assert all(torch.equal(p, before[n]) for n, p in again.named_parameters())
    assert torch.equal(again(input_ids=ids).logits, logits)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(theirs(input_ids=ids).logits, logits), "packed as it is, decompressed by transformers"


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_life_goes_on_behind_bits(life: Path, tmp_path: Path, symmetric: bool) -> None:
    few = FEW | {"methods": [FEW["methods"][0] | {"symmetric": symmetric}, FEW["methods"][1]]}
    on = TRAIN | {"name": "on", "from": {"model": "few", "data": "corpus"}}
    done = made(life, few, few | {"name": "floats", "stored": "float"}, on)
    bits, floats = (dict(families.load(done[n].path, "a test").named_parameters()) for n in ("few", "floats"))
    assert all(torch.equal(p, floats[n]) for n, p in bits.items())
    figures = done["few"].figures
    scale_and_zero = (32 + (0 if symmetric else 4)) / 16
    assert figures["bits_a_packed_weight"] == pytest.approx(4 + scale_and_zero, abs=0.2), "and 128 a shape"
    assert figures["stored_bytes"] < 0.75 * done["floats"].figures["stored_bytes"]
    assert packed.table_of(done["few"].path) and packed.table_of(done["on"].path) is None
    families.export(done["few"].path, tmp_path / "plain", "float32")
    assert packed.table_of(tmp_path / "plain") is None
    with pytest.raises(UserError, match="holds weights packed in bits"):
        Reader(done["few"].path, "merge")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "bf16-true"}, r'stored = "packed" needs precision = "fp32"'),
        ({"methods": [{"use": "magnitude"}]}, 'stored = "packed" needs a method that rounds weights'),
        ({"methods": [{"use": "round_nearest", "layers": "*.k_proj", "symmetric": False}]},
         "holds asymmetric grids of layers with a multiple of 32 outputs, and .* has 16: write symmetric"),
    ],
)
def test_what_cannot_be_is_one_sentence(life: Path, changes: dict[str, Any], sentence: str) -> None:
    base = WIDE | {"model": WIDE["model"] | {"num_key_value_heads": 1}}
    with pytest.raises(UserError, match=sentence):
        run(parse({"seed": 3, "stage": [CORPUS, base, FEW | {"from": {"model": "base"}} | changes]}, life),
            Store(life.parent / "store"))


def test_weights_off_their_grid_and_other_layers_are_refused() -> None:
    model = tiny.model()
    RoundNearest().operate(model, Context())
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.down_proj.weight").add_(0.01)
    with pytest.raises(UserError, match=r"the weights of .*down_proj are not on their grid any more"):
        packed.ask(model, "a stage")
    other = tiny.model(tiny.GPT2)
    RoundNearest().operate(other, Context())
    with pytest.raises(UserError, match=r'holds nn\.Linear alone, and .* is Conv1D: write stored = "float"'):
        packed.ask(other, "a stage")


def test_two_kinds_of_grids_are_refused() -> None:
    model = tiny.model()
    for bits, layers in ((4, "attention"), (8, "mlp")):
        RoundNearest(bits=bits, layers=layers).operate(model, Context())
    with pytest.raises(UserError, match=r"holds grids of one kind, .* differ in bits or group_size"):
        packed.ask(model, "a stage")
