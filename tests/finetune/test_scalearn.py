"""ScaLearn: scaled outputs of frozen adapters by hand, the fold, what is trained; sources that do not fit."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lm.architectures import IDS, make
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.finetune.lora import Lora
from trainwright.finetune.scalearn import Scalearn
from trainwright.lm.layers import as_linear_weight

LAYERS = "*.o_proj"


def source(folder: Path, seed: int, rank: int, layers: str = LAYERS) -> Path:
    method, model, draw = Lora(rank=rank, layers=layers), make("llama"), torch.Generator().manual_seed(seed)
    method.operate(model, Context(seed=seed))
    with torch.no_grad():
        for layer in method.mine(model).values():
            layer.lora_B.normal_(generator=draw)
    method.save_delta(model, folder / "adapter")
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    return [source(tmp_path / "one", 1, 2), source(tmp_path / "two", 2, 3)]


def scaled(sources: list[Path], **settings: Any) -> tuple[Any, Scalearn]:
    model, method = make("llama"), Scalearn(**settings)
    method.operate(model, Context(inputs={"sources": sources}))
    return model.eval(), method


@pytest.mark.parametrize(("variant", "shared", "numbers"), [
    ("vector", False, 2 * 2 * 32), ("uniform", False, 4), ("vector", True, 2 * 32), ("uniform", True, 2)])
def test_only_scales_are_trained_and_they_scale_what_adapters_add(
        sources: list[Path], variant: str, shared: bool, numbers: int) -> None:
    model, method = scaled(sources, variant=variant, shared=shared)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == numbers
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in trained.values():
            torch.testing.assert_close(p, torch.full_like(p, 1.0), atol=5e-3, rtol=0)          # 2 / n
            p.copy_(torch.randn(p.shape, generator=draw))
    found, expected = model(input_ids=IDS).logits, make("llama")
    for name in ("model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"):
        omega = model.scalearn.omega if shared else model.get_submodule(name).own.omega
        for t in range(2):
            plain, lora = make("llama"), Lora(rank=t + 2, layers=LAYERS)
            lora.operate(plain, Context(seed=t + 1))
            with torch.no_grad():
                draw = torch.Generator().manual_seed(t + 1)
                for layer in lora.mine(plain).values():
                    layer.lora_B.normal_(generator=draw)
                lora.fold(plain)
                delta = plain.get_submodule(name).weight - make("llama").get_submodule(name).weight
                expected.get_submodule(name).weight.add_(omega[t].expand(32)[:, None] * delta)
    torch.testing.assert_close(found, expected(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
    method.fold(model)
    torch.testing.assert_close(model(input_ids=IDS).logits, found, atol=1e-4, rtol=1e-4)
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in make("llama").named_parameters()}


def test_scales_are_dropped_in_training_and_get_a_gradient(sources: list[Path]) -> None:
    model, _ = scaled(sources, shared=True, variant="uniform")
    told = [copy.deepcopy(model).train()(input_ids=IDS).logits for _ in range(8)]
    assert not all(torch.equal(told[0], one) for one in told)
    model(input_ids=IDS).logits.sum().backward()
    assert model.scalearn.omega.grad.all()
    assert as_linear_weight(model.model.layers[0].self_attn.o_proj).grad is None


def test_sources_that_do_not_fit_are_refused(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="the source bare has no LoRA"):
        scaled([tmp_path / "bare"])
    with pytest.raises(UserError, match="has other layers than the first"):
        scaled([sources[0], source(tmp_path / "wide", 3, 2, "attention")])
    with pytest.raises(UserError, match="need layers of one width, and the sources have layers of 16, 32"):
        scaled([source(tmp_path / "all", 3, 2, "attention")], shared=True)
