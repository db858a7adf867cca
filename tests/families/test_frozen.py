"""Frozen weights in four bits: the numbers of the table, the size, and a run that resumes and is exported."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainwright import families
from trainwright.check import tiny
from trainwright.core import checkpoint
from trainwright.core.build import build
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Surgery
from trainwright.data.order.pack import Pack
from trainwright.families import frozen
from trainwright.families.bits import dense
from trainwright.families.frozen import FourBits, pack
from trainwright.finetune.lora import Lora
from trainwright.finetune.loram import Loram
from trainwright.finetune.paca import Paca
from trainwright.lm import quantized
from trainwright.optim.adamw import Adamw
from trainwright.pretrain.next_token import NextToken

QLORA, QPACA, QLORAM = Lora(rank=2), Paca(rank=2), Loram(rank=2, ratio=0.5, first=0, last=0)
BLOCK = [-2.0, -1.4, -1.0, -0.1, -0.08, 0.0, 0.07, 0.09, 0.3, 0.6, 1.0, 1.3, 1.7, 2.0] + [0.0] * 50
NEAREST = [-1.0, -0.6961928, -0.52507305, -0.09105004, 0.0, 0.0, 0.0, 0.0795803, 0.1609302, 0.33791524,
           0.44070983, 0.7229568, 0.7229568, 1.0] + [0.0] * 50
"""Read off the table of QLoRA's appendix E, as bitsandbytes 0.50 has it: the nearest entry of each over 2."""


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_block_has_the_numbers_of_the_paper() -> None:
    found = dense(pack(torch.tensor([BLOCK]), "nf4"))
    assert torch.allclose(found, 2 * torch.tensor([NEAREST]))


def test_int4_with_groups_is_what_compressed_tensors_has() -> None:
    """But for the sizes, which lie in 8 bits: a float of 8 bits is right to a 16th."""
    w = draw(8, 128)
    grid, found = quantized.grid(w, 4, True, 64), pack(w, "int4")
    largest = w.view(-1, 64).abs().amax(1)
    held = (found.sizes.codes.float() * found.sizes.scales + found.sizes.mean)
    assert ((held - largest).abs() <= (largest - largest.mean()).abs() / 16 + 1e-6).all()
    rescaled = dense(found).view(-1, 64) * (largest / held)[:, None]
    assert torch.allclose(rescaled.view_as(w), grid.nearest(w), atol=1e-6)


def test_a_weight_takes_four_and_an_eighth_bits() -> None:
    w = draw(512, 512)
    held = pack(w, "nf4").held().values()
    bits = 8 * sum(t.numel() * t.element_size() for t in held) / w.numel()
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-3)
    assert bits / 16 <= 0.4
    assert float((dense(pack(w, "nf4")) - w).norm() / w.norm()) < float(
        (dense(pack(w, "int4")) - w).norm() / w.norm()), "normal weights are what nf4 is made for"


def test_it_computes_as_the_weights_and_backward_keeps_the_bits() -> None:
    held = nn.Parameter(pack(draw(30, 50), "nf4"), requires_grad=False)
    whole, kept = dense(held), []
    for weight in (held, whole):
        x = draw(3, 5, 50).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y = F.linear(x, weight) @ weight
        y.square().sum().backward()
        kept.append((y.detach(), x.grad))
    (y, grad), (expected, by_hand) = (k for k in kept if isinstance(k, tuple))
    assert torch.equal(y, expected) and torch.equal(grad, by_hand)
    saved = kept[:next(i for i, k in enumerate(kept) if isinstance(k, tuple))]
    assert sum(isinstance(t, FourBits) for t in saved) == 2
    assert not any(type(t) is Tensor and t.shape[-2:] in ((30, 50), (50, 30)) for t in saved)
    assert torch.equal(dense(held.T), whole.T) and held.T.bfloat16().dtype == torch.bfloat16
    with pytest.raises(UserError, match="writes into weights that are frozen in four bits"):
        held.data.mul_(2)


def run_with(adapter: Surgery, kind: str, table: frozen.Frozen, saved: Path | None = None,
             tables: frozen.Tables = "whole") -> Train:
    methods = [Pack(length=32), adapter, NextToken(), Adamw(lr=1e-2)]
    ctx = tiny.context(tiny.scratch(), kind)
    return build(tiny.model(kind), methods, 3, ctx, frozen=frozen.holding(table, tables), saved=saved)


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "kind", "table"), [
    (QLORA, tiny.LLAMA, "nf4"), (QLORA, tiny.GPT2, "int4"), (QPACA, tiny.GPT2, "nf4"),
    (QLORAM, tiny.LLAMA, "nf4")],
    ids=["qlora", "int4", "qpaca", "qloram"])
def test_a_run_resumes_to_the_bit_and_leaves_what_it_computed(adapter: Surgery, kind: str,
                                                              table: frozen.Frozen, tmp_path: Path) -> None:
    run = run_with(adapter, kind, table)
    begun = {n: p.detach().clone() for n, p in run.params.items()}
    assert sum(isinstance(p, FourBits) for p in begun.values()) == (14 if kind == tiny.LLAMA else 8)
    run.run(2)
    saved = checkpoint.save(run, tmp_path / "saved", {})
    run.run()
    again = run_with(adapter, kind, table, saved)
    again.run()
    for name, p in run.params.items():
        assert torch.equal(dense(p), dense(again.params[name])), name
        assert p.requires_grad or torch.equal(dense(p), dense(begun[name])), name
    ids = torch.arange(30)[None]
    run.model.eval()
    with torch.no_grad():
        before = run.model(ids).logits
        families.write(run.model, run.performed, 0, tmp_path / "out", None)
        after = families.load(tmp_path / "out", "a test").eval()(ids).logits
    assert torch.allclose(before, after, atol=2e-6)


def test_nothing_frozen_is_refused() -> None:
    with pytest.raises(UserError, match="name an adapter, such as lora"):
        frozen.freeze(tiny.model(), "nf4")


def test_zeros_of_a_pruned_model_stay() -> None:
    w = draw(16, 64).masked_fill(draw(16, 64) < 0, 0)
    for table in frozen.TABLES:
        assert (dense(pack(w, table))[w == 0] == 0).all()
