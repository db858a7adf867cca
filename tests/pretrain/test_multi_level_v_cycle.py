"""The V-cycle: going down undoes going up, going up in width keeps the function, and alpha weighs what comes
from below."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from tests.lm.architectures import IDS
from tests.lm.architectures import make as architecture
from tests.pretrain.small import Counting, Next, build
from trainwright import api, families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.settings import make
from trainwright.life import jobs
from trainwright.lm.resizing import shrink
from trainwright.optim.adamw import Adamw
from trainwright.pretrain.multi_level_v_cycle import MultiLevelVCycle
from trainwright.storage.store import Store

KINDS = ("llama", "qwen3", "gpt2")


@torch.no_grad()
def logits(model: tf.PreTrainedModel) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def weights(model: tf.PreTrainedModel) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def down(model: tf.PreTrainedModel, **settings: Any) -> tf.PreTrainedModel:
    small = copy.deepcopy(model)
    MultiLevelVCycle(go="down", **settings).operate(small, Context())
    return small


def up(model: tf.PreTrainedModel, small: tf.PreTrainedModel, **settings: Any) -> tf.PreTrainedModel:
    large = copy.deepcopy(model)
    MultiLevelVCycle(go="up", **settings).operate(large, Context(frozen={"reference": small}))
    return large


def trained(model: tf.PreTrainedModel) -> tf.PreTrainedModel:
    """The model with other weights, as if it had been trained."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.05)
    return model


def test_coalescing_by_hand() -> None:
    """F = (1/2 1/2) for each group, channels 0 and 2, 1 and 3: outputs are averaged, inputs summed, vectors
    averaged."""
    g = {"residual": torch.tensor([0, 1, 0, 1]), "inner": torch.tensor([0, 1, 0, 1])}
    weight = torch.arange(16.0).view(4, 4)
    f = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]])
    assert torch.equal(shrink(weight, ("inner", "<residual"), g), f @ weight @ (2 * f).T)
    assert torch.equal(shrink(weight, ("<residual", "inner"), g), (2 * f) @ weight @ f.T)
    assert torch.equal(shrink(weight[1], ("residual",), g), f @ weight[1])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_going_down_undoes_going_up(kind: str, tied: bool) -> None:
    large = architecture(kind, tie_word_embeddings=tied, num_hidden_layers=4)
    small = trained(down(large))
    assert (small.config.num_hidden_layers, small.config.hidden_size, small.config.num_attention_heads) == (
        2,
        16,
        2,
    )
    again = down(up(large, small, alpha=1.0))
    for name, weight in weights(small).items():
        torch.testing.assert_close(again.get_parameter(name), weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_up_in_width_alone_it_computes_what_the_small_one_does(kind: str, tied: bool) -> None:
    large = architecture(kind, tie_word_embeddings=tied)
    small = trained(down(large, depth=1))
    torch.testing.assert_close(
        logits(up(large, small, depth=1, alpha=1.0)), logits(small), rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(logits(small), logits(large), atol=1e-2)


def test_layers_are_averaged_with_their_neighbours_and_copied_back() -> None:
    large = architecture("qwen2", num_hidden_layers=4)
    before, small = weights(large), weights(down(large, width=1))
    for name, weight in small.items():
        if ".layers." not in name:
            assert torch.equal(weight, before[name])
    for i, name in ((i, f"model.layers.{i}.self_attn.q_proj.weight") for i in range(2)):
        pair = [before[f"model.layers.{2 * i + j}.self_attn.q_proj.weight"] for j in range(2)]
        torch.testing.assert_close(small[name], (pair[0] + pair[1]) / 2)
    back = weights(up(large, down(large, width=1), width=1, alpha=1.0))
    assert torch.equal(back["model.layers.2.mlp.up_proj.weight"], back["model.layers.3.mlp.up_proj.weight"])


def test_alpha_weighs_the_model_from_below() -> None:
    large = architecture("llama")
    small = trained(down(large, depth=1))
    before, whole = weights(large), weights(up(large, small, depth=1, alpha=1.0))
    quarter, none = (
        weights(up(large, small, depth=1, alpha=0.25)),
        weights(up(large, small, depth=1, alpha=0.0)),
    )
    for name, weight in quarter.items():
        torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * whole[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(none[name], before[name])
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(whole[name][:24], whole[name][24:]) and not torch.equal(
        quarter[name][:24], quarter[name][24:]
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_three_phases_train(family: str) -> None:
    def phase(model: tf.PreTrainedModel, *methods: Any, steps: int) -> Train:
        run = Train(
            model,
            [Counting(), Next(), *methods, Adamw(lr=1e-2)],
            steps,
            ctx=Context(seed=0, frozen={"reference": copy.deepcopy(small)} if small is not None else {}),
        )
        run.run()
        return run

    small = None
    large = phase(build(family), steps=4)
    small = phase(copy.deepcopy(large.model), MultiLevelVCycle(), steps=12).model
    assert small.config.hidden_size == 16 and small.config.num_hidden_layers == 1
    final = phase(large.model, MultiLevelVCycle(go="up"), steps=8)
    assert final.model.config.hidden_size == 32 and final.row["loss"] < large.row["loss"]


RECIPE = """
[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
methods = [{ use = "text", paths = ["text.jsonl"] }]

[[stage]]
name = "large"
kind = "train"
from = { data = "corpus" }
model = { type = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 4, \
          num_attention_heads = 4, num_key_value_heads = 2, max_position_embeddings = 64, \
          tie_word_embeddings = true }
steps = 2
batch_tokens = 128
methods = [{ use = "pack", length = 32 }]

[[stage]]
name = "small"
kind = "train"
from = { model = "large", data = "corpus" }
steps = 4
batch_tokens = 128
methods = [{ use = "multi_level_v_cycle" }, { use = "pack", length = 32 }]

[[stage]]
name = "final"
kind = "train"
from = { model = "large", reference = "small", data = "corpus" }
steps = 2
batch_tokens = 128
methods = [{ use = "multi_level_v_cycle", go = "up" }, { use = "pack", length = 32 }]
"""


@pytest.mark.slow
def test_a_recipe_is_foretold_and_run_and_tells_its_flops(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": f"the farmer sows {i} rows of wheat in the valley"}) + "\n" for i in range(60)
    ]
    (tmp_path / "text.jsonl").write_text("".join(lines))
    (tmp_path / "life.toml").write_text(RECIPE)
    recipe = api.load(tmp_path / "life.toml")
    reference = jobs.jobs(recipe, Store(tmp_path / "store"))[-1].inputs["reference"][0]
    foretold = reference.config(Store(tmp_path / "store"), "here")
    made = api.run(recipe, tmp_path / "store")
    figures = {n: made[n].figures for n in ("large", "small", "final")}
    assert (
        figures["final"]["parameters"] == figures["large"]["parameters"] > 2 * figures["small"]["parameters"]
    )
    assert figures["small"]["flops"] / 4 < 0.5 * figures["large"]["flops"] / 2, (
        "a step of the small one costs less than half"
    )
    config = families.load_config(made["small"].path, "here")
    for told in (config, foretold):
        assert (told.hidden_size, told.num_hidden_layers, told.num_key_value_heads) == (16, 2, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, "1 or more"),
        ({"depth": 0}, "1 or more"),
        ({"alpha": 1.5}, "from 0 to 1"),
        ({"go": "on"}, "must be one of"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(MultiLevelVCycle, settings, "here")


def test_mistakes_are_told() -> None:
    model = build()
    with pytest.raises(UserError, match="2 layers cannot be coalesced by 3 into one"):
        down(model, depth=3)
    with pytest.raises(UserError, match="2 groups of heads cannot be coalesced by 4 into one"):
        down(model, width=4, depth=1)
    with pytest.raises(UserError, match=r"from\.reference is not of the size"):
        up(model, build())
    with pytest.raises(UserError, match="'reference'"):
        MultiLevelVCycle(go="up").operate(model, Context())
    with pytest.raises(UserError, match="known are the models"):
        down(architecture("gpt_neox"))
