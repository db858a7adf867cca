"""The precision of a stage: what is computed in which type, and in which type the weights are."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from trainwright.core import hardware
from trainwright.core.loop import Train
from trainwright.core.recipe import load
from trainwright.life.run import run
from trainwright.stages import _training
from trainwright.storage.store import Store


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )


def test_weights_become_bfloat16_only_where_that_is_asked_for() -> None:
    model = llama()
    assert hardware.set_precision(model, "bf16") == "bf16" and hardware.set_precision(model, "fp32") == "fp32"
    assert hardware.set_precision(model, "auto") == hardware.best_precision() in ("bf16", "fp32")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert hardware.set_precision(model, "bf16-true") == "bf16-true"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {b.dtype for n, b in model.named_buffers() if "inv_freq" in n} == {torch.float32}


@pytest.mark.parametrize(("best", "autocast", "true"), [("bf16", "bf16", "bf16-true"), ("fp32",) * 3])
def test_what_is_left_to_the_machine_is_what_it_is_fast_at(
    best: str, autocast: str, true: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "best_precision", lambda: best)
    assert (hardware.decided("auto"), hardware.decided("auto-true")) == (autocast, true)
    assert all(hardware.decided(asked) == asked for asked in ("bf16", "bf16-true", "fp32"))
    model = llama()
    assert hardware.set_precision(model, "auto-true") == true
    wanted = torch.bfloat16 if true == "bf16-true" else torch.float32
    assert {p.dtype for p in model.parameters()} == {wanted}


def test_small_steps_that_would_be_lost_are_told() -> None:
    model = llama()
    run = cast(Train, SimpleNamespace(params=dict(model.named_parameters())))
    assert not _training._rounded(run)
    hardware.set_precision(model, "bf16-true")
    matrix = model.lm_head.weight.numel()
    model.requires_grad_(False)
    assert not _training._rounded(run), "what is frozen loses nothing"
    model.lm_head.weight.requires_grad_(True)
    assert _training._rounded(run)[0].startswith(
        f"{matrix:,} of {matrix:,} trained parameters are bfloat16, which keeps no"
    )


@pytest.mark.slow
def test_an_adapter_trains_on_weights_in_bfloat16(
    life: Path, command: Callable[..., CompletedProcess[str]]
) -> None:
    """The checkpoint is half as large, and goes on into the next stage."""
    text = life.read_text()
    old = '{ use = "next_token" }, { use = "adamw", lr = 1e-2 }]'
    assert old in text
    life.write_text(
        text.replace(old, '{ use = "next_token" }, { use = "paca", rank = 2 }, { use = "adamw", lr = 1e-2 }]')
    )
    ran = command("run", "life.toml", "--set", "adapt.precision=bf16-true", cwd=life.parent)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "trained parameters are bfloat16" not in ran.stdout
    base, adapt, merged = (load_file(next((life.parent / "store").glob(f"{s}-*")) / "model.safetensors")
                           for s in ("base", "adapt", "merged"))
    assert {t.dtype for t in adapt.values()} == {
        torch.bfloat16
    } and base.keys() == adapt.keys() == merged.keys()
    moved = {n for n, t in base.items() if not torch.equal(t.to(torch.bfloat16), adapt[n])}
    assert moved == {n for n in base if n.endswith("_proj.weight")}


@pytest.mark.slow
def test_an_evaluation_computes_in_the_precision_that_it_names(life: Path) -> None:
    def judged(precision: str) -> dict[str, float]:
        made = run(load(life, {"judge.precision": precision}), Store(life.parent / "store"))["judge"]
        return dict(made.figures["numbers"]["base"])

    exact, rounded = judged("fp32"), judged("bf16")
    assert exact == judged("fp32") and exact.keys() == rounded.keys()
    losses = [n for n in exact if n.startswith("loss/")]
    assert all(rounded[n] != exact[n] for n in losses) and [rounded[n] for n in losses] == pytest.approx(
        [exact[n] for n in losses], rel=1e-2)
    assert judged("auto") == (rounded if hardware.best_precision() == "bf16" else exact)
