"""bert2BERT: the wider model computes what the small one did, or has new neurons of the layer above, and
layers are stacked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from tests.lm.architectures import IDS
from tests.lm.architectures import make as architecture
from tests.pretrain.small import Counting, Next, build
from trainwright import families
from trainwright.core import checkpoint, sharding
from trainwright.core.context import ENDLESS, Context, View
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Command, Controller, Operate, State
from trainwright.core.settings import make
from trainwright.families import deltas
from trainwright.finetune.lora import Lora
from trainwright.lm.resizing import dims_of, expand
from trainwright.optim.adamw import Adamw
from trainwright.optim.ema import Ema
from trainwright.pretrain._sub_models import ranges
from trainwright.pretrain.bert2bert import Bert2bert, drawn, repeats

KINDS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")


@torch.no_grad()
def logits(model: tf.PreTrainedModel) -> Tensor:
    return model.eval()(input_ids=IDS).logits


def grown(model: tf.PreTrainedModel, **settings: Any) -> tf.PreTrainedModel:
    Bert2bert(**settings).operate(model, Context(seed=1))
    return model


@pytest.mark.parametrize("width", [2.0, 3.0])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_wider_it_computes_the_same(kind: str, tied: bool, width: float) -> None:
    model = architecture(kind, tie_word_embeddings=tied)
    before, shapes = logits(model), {n: p.shape for n, p in model.named_parameters()}
    large = grown(model, width=width, start="fpi")
    torch.testing.assert_close(logits(large), before, rtol=1e-5, atol=1e-5)
    assert all(
        ("q_norm" in n or "k_norm" in n) == (p.shape == shapes[n]) for n, p in large.named_parameters()
    )
    assert large.config.hidden_size == 32 * width and large.config.num_attention_heads == 4 * width
    assert (large.get_output_embeddings().weight is large.get_input_embeddings().weight) == tied


def test_one_matrix_by_hand() -> None:
    """W [out, in], g = (0, 1, 0) on both sides: inputs of channel 0 share its weight, outputs of neuron 0
    are two."""
    g = torch.tensor([0, 1, 0])
    weight = torch.tensor([[2.0, 4.0], [6.0, 8.0]])
    large = expand(weight, ("inner", "<residual"), {"inner": g, "residual": g})
    assert torch.equal(large, torch.tensor([[1.0, 4.0, 1.0], [3.0, 8.0, 3.0], [1.0, 4.0, 1.0]]))
    assert torch.equal(expand(weight.T, ("<residual", "inner"), {"inner": g, "residual": g}), large.T)
    assert torch.equal(expand(weight[0], ("residual",), {"residual": g}), torch.tensor([2.0, 4.0, 2.0]))


def test_entries_are_drawn_evenly() -> None:
    rng = torch.Generator().manual_seed(0)
    for old, new in ((5, 5), (5, 8), (4, 12), (3, 7)):
        g = drawn(old, new, rng)
        uses = Counter(g.tolist())
        assert (
            len(g) == new
            and g[:old].tolist() == list(range(old))
            and max(uses.values()) - min(uses.values()) <= 1
        )
        assert repeats(g).tolist() == [False] * old + [True] * (new - old)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_aki_takes_new_neurons_from_the_layer_above(kind: str) -> None:
    own, mixed = (dict(grown(architecture(kind), start=start).named_parameters()) for start in ("fpi", "aki"))
    dims, checked = dims_of(architecture(kind)), set()
    for name, weight in own.items():
        rest = name.split(".0.", 1)
        above = own.get(".1.".join(rest)) if len(rest) == 2 else None
        written = [d for d, dim in enumerate(dims[name]) if dim in ("query", "key", "inner", "residual")]
        if above is None or "norm" in name or "ln_" in name or not written:
            if "c_attn" not in name:
                assert torch.equal(mixed[name], weight), (
                    "outside of the layers, in the topmost, and in norms all is its own"
                )
            continue
        half = weight.shape[written[0]] // 2
        old, new = (slice(None, half), slice(half, None))
        assert torch.equal(mixed[name].movedim(written[0], 0)[old], weight.movedim(written[0], 0)[old])
        assert torch.equal(mixed[name].movedim(written[0], 0)[new], above.movedim(written[0], 0)[new])
        checked.add(name.split(".0.")[1])
    assert len(checked) >= 5 and any("bias" in n for n in checked) == (kind == "gpt2")
    if kind == "gpt2":
        weight, above = own["transformer.h.0.attn.c_attn.weight"], own["transformer.h.1.attn.c_attn.weight"]
        for third in range(3):  # 32 old and 32 new of each
            part = slice(64 * third + 32, 64 * third + 64)
            assert torch.equal(mixed["transformer.h.0.attn.c_attn.weight"][:, part], above[:, part])
            assert torch.equal(
                mixed["transformer.h.0.attn.c_attn.weight"][:, 64 * third : 64 * third + 32],
                weight[:, 64 * third : 64 * third + 32],
            )


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_layers_are_stacked_and_the_topmost_come_once_more(kind: str) -> None:
    small = dict(architecture(kind, num_hidden_layers=3).named_parameters())
    large = grown(architecture(kind, num_hidden_layers=3), width=1.0, depth=8 / 3)
    parent = "transformer.h" if kind == "gpt2" else "model.layers"
    weights = dict(large.named_parameters())
    for new, old in enumerate([0, 1, 2, 0, 1, 2, 1, 2]):
        mine = {
            n.removeprefix(f"{parent}.{new}."): p
            for n, p in weights.items()
            if n.startswith(f"{parent}.{new}.")
        }
        assert mine and all(torch.equal(p, small[f"{parent}.{old}.{n}"]) for n, p in mine.items())
    assert large.config.num_hidden_layers == 8 and len(sharding.blocks(large)) == 8
    assert len({p.data_ptr() for p in weights.values()}) == len(weights), "the copies train apart"
    assert logits(large).isfinite().all()


def test_a_width_that_is_no_whole_number() -> None:
    model = architecture("llama", hidden_size=64)
    before = logits(model)
    large = grown(model, width=1.5, start="fpi")
    assert (large.config.num_attention_heads, large.config.num_key_value_heads, large.config.head_dim) == (
        6,
        3,
        16,
    )
    now = logits(large)
    assert 1e-3 < float((now - before).norm() / before.norm()) < 0.6, (
        "nearly the same function: norms weigh channels otherwise"
    )


def test_the_checkpoint_is_a_plain_one_of_the_larger_size(tmp_path: Path) -> None:
    run = Train(build(), [Counting(), Next(), Bert2bert(depth=2.0), Adamw(lr=1e-2)], 12, ctx=Context(seed=0))
    run.run(until=1)
    first = run.row["loss"]
    run.run()
    assert run.row["loss"] < 0.9 * first
    live, ids = run.model.eval(), torch.arange(20)[None]
    deltas.write(live, run.performed, 0, tmp_path, None)
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (plain.config.hidden_size, plain.config.num_hidden_layers, plain.config.intermediate_size) == (
        64,
        4,
        96,
    )
    torch.testing.assert_close(plain(ids).logits, live(ids).logits, rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob("adapter*"))
    foretold = Bert2bert(depth=2.0).resized(build().config)
    assert {n: p.shape for n, p in families.skeleton(foretold, "here").named_parameters()} == {
        n: p.shape for n, p in live.named_parameters()
    }


class Grow(Controller):
    """Asks for it before the sixth step."""

    def tick(self, view: View, state: State) -> Iterable[Command]:
        return [Operate(Bert2bert(start="fpi"))] if view.step == 5 else []


def stage(journal: Any = ()) -> Train:
    run = Train(
        build("gpt2"), [Counting(), Next(), Grow(), Adamw(lr=1e-2), Ema(decay=0.5)], 9, ctx=Context(seed=0)
    )
    run.build(journal)
    return run


def test_between_two_steps_state_follows_and_a_resume_is_exact(tmp_path: Path) -> None:
    run, ids = stage(), torch.arange(16)[None]
    run.run(until=5)
    before, old = logits_of(run, ids), {n: p.detach().clone() for n, p in run.params.items()}
    leaves = {
        k: {n: dict(leaf) for n, leaf in s["param"].items()} for k, s in run.states.items() if "param" in s
    }
    source = Bert2bert(start="fpi").operate(build("gpt2"), Context(seed=0)).source
    for who, command in run.commands():
        run.obey(who, command)
    torch.testing.assert_close(logits_of(run, ids), before, rtol=1e-4, atol=1e-5)
    seen = set()
    for key, state in run.states.items():
        for name, now in state.get("param", {}).items():
            for leaf, t in now.items():
                was, (came, how) = leaves[key][source[name][0]][leaf], source[name]
                if was.shape == old[came].shape:
                    assert t.shape == run.params[name].shape and torch.equal(t, how(was))
                    seen.add(leaf)
    assert len(seen) >= 3, "two moments and an average"
    run = stage()
    run.run(until=7)
    checkpoint.save(run, tmp_path, {})
    run.run()
    path, _ = checkpoint.newest(tmp_path)
    rest = checkpoint.read(path)
    again = stage(checkpoint.journal_of(rest))
    checkpoint.load_into(again, path, rest)
    again.run()
    assert all(torch.equal(p, again.params[n]) for n, p in run.params.items())
    assert run.params["transformer.wte.weight"].shape[1] == 64


@torch.no_grad()
def logits_of(run: Train, ids: Tensor) -> Tensor:
    return run.model.eval()(ids).logits.clone()


def test_it_stays_the_same_object_with_checkpointed_blocks() -> None:
    model = build()
    sharding.checkpoint_blocks(model)
    grown(model)
    assert (
        all("forward" in vars(b) for b in sharding.blocks(model))
        and model.get_decoder().config is model.config
    )
    same, plain = grown(build(), width=1.0, depth=1.0), dict(build().named_parameters())
    assert all(torch.equal(p, plain[n]) for n, p in same.named_parameters())
    skeleton = families.skeleton(build().config, "here")
    grown(skeleton, depth=2.0)
    assert all(p.is_meta for p in skeleton.parameters()) and len(skeleton.model.layers) == 4


@pytest.mark.parametrize("settings", [{"width": 0.5}, {"depth": 0}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="width and depth must be 1 or more"):
        make(Bert2bert, settings, "here")


def test_mistakes_are_told() -> None:
    with pytest.raises(
        UserError, match="the width of a Gemma2ForCausalLM cannot be changed; known are the models llama"
    ):
        grown(architecture("gemma2"))
    with pytest.raises(
        UserError, match=r"num_attention_heads = 4 times 1\.3 is no whole number|hidden_size = 32 times 1\.3"
    ):
        grown(build(), width=1.3)
    with pytest.raises(UserError, match=r"2 layers times 1\.3 is no whole number"):
        grown(build(), depth=1.3)
    adapted = build()
    Lora().operate(adapted, Context())
    with pytest.raises(UserError, match="is none of a plain llama"):
        grown(adapted)


# ---- the first of two stages ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "layers", "expected"),
    [(12, 3, [(0, 3), (3, 6), (6, 9), (9, 12)]), (4, 3, [(0, 3), (3, 4)]), (2, 3, [(0, 2)])],
)
def test_sub_models_are_the_bottom_layers_up_to_a_multiple(depth: int, layers: int, expected: list) -> None:
    assert ranges(depth, layers) == expected


def two_stages(kind: str, part: float = 0.75) -> Train:
    """Four layers, two of which each sub-model trains; six steps of eight are of the first stage."""
    growth = Bert2bert(depth=2.0, width=1.0, sub_models=part, sub_model_layers=2)
    run = Train(build(kind), [Counting(), Next(), growth, Adamw(lr=1e-2)], 8, ctx=Context(seed=0))
    run.build()
    return run


def moved(run: Train) -> set[str]:
    """Parameters that the next step changes."""
    before = {n: p.detach().clone() for n, p in run.params.items()}
    run.run(until=run.ctx.step + 1)
    return {n for n, p in run.params.items() if not torch.equal(p, before[n])}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_each_step_trains_the_top_layers_of_a_sub_model_as_a_model_of_its_own(kind: str) -> None:
    """The step's loss and gradients are those of a plain model of two or four layers; the head is shared, and
    the lowest sub-model has the embeddings. After the stage all layers train."""
    run, parent = two_stages(kind), "transformer.h" if kind == "gpt2" else "model.layers"
    drawn = set()
    for step in range(8):
        weights = {n: p.detach().clone() for n, p in run.params.items()}
        changed = moved(run)
        layers = {int(n.removeprefix(f"{parent}.").split(".")[0]) for n in changed if n.startswith(parent)}
        top, low = max(layers) + 1, min(layers)
        assert layers == set(range(low, top)) and (low, top) in ([(0, 2), (2, 4)] if step < 6 else [(0, 4)])
        alone = build(kind, layers=top)
        alone.load_state_dict({n: weights[n] for n in dict(alone.named_parameters())}, strict=False)
        alone.tie_weights()
        batch = Counting().next(dict, {}, Context(seed=0, step=step))
        loss = Next().loss(alone, batch, {}, Context()).mean()
        assert run.row["loss"] == pytest.approx(loss.item(), rel=1e-5)
        outside = {n for n in changed if not n.startswith(parent)}
        tops = {n for n in run.params if n.split(".")[-2] in ("norm", "ln_f", "lm_head")}
        below = {n for n in run.params if n.split(".")[-2] in ("embed_tokens", "wte", "wpe")}
        tied = {"transformer.wte.weight"} & below
        assert outside == (tops | below if low == 0 else tops | tied)
        drawn.add((low, top))
    assert drawn == {(0, 2), (2, 4), (0, 4)}


def test_in_the_first_stage_the_whole_model_is_measured_and_left_whole() -> None:
    run = two_stages("llama", part=1.0)
    run.run(until=4)
    plain = build("llama", layers=4)
    plain.load_state_dict({n: p.detach() for n, p in run.params.items()})
    with run.viewed(), torch.no_grad():
        torch.testing.assert_close(run.model(IDS).logits, plain.eval()(IDS).logits)
    run.model.train()
    with pytest.raises(ValueError, match="input_ids"):
        run.model()
    assert len(run.model.model.layers) == 4, "a step that fails leaves all layers"
    Bert2bert(sub_model_layers=2).fold(run.model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.model.modules())


def test_gradients_below_are_not_computed() -> None:
    """A step of the upper sub-model costs the FLOPs of two layers' backward less than one of the whole."""
    run, cost = two_stages("llama"), {}
    for step in range(8):
        changed = moved(run)
        upper = not any("layers.0." in n for n in changed)
        cost["upper" if upper else "whole" if step >= 6 else "lower"] = run.row["flops"] - cost.get("all", 0)
        cost["all"] = run.row["flops"]
    assert cost["lower"] < cost["upper"] < cost["whole"]
    layer = (cost["whole"] - cost["lower"]) / 2            # forward and backward of one layer
    assert cost["whole"] - cost["upper"] == pytest.approx(2 * layer * 2 / 3, rel=0.1)


def test_a_probe_is_of_the_whole_model() -> None:
    model = build()
    Bert2bert().operate(model, Context(steps=ENDLESS))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
