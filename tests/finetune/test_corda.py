"""CorDA equals PEFT's on the same covariance, takes the terms apart along what samples use, and
starts as the model was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import nn

from tests.lm.architectures import IDS, make, moved
from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.corpus.tokens import open_corpus
from trainwright.families import deltas
from trainwright.finetune import corda
from trainwright.finetune.corda import Corda, decompose
from trainwright.lm.layers import as_linear_weight, linear_layers

SAMPLES = list(torch.randint(0, 64, (12, 40), generator=torch.Generator().manual_seed(3)))
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
MODES = pytest.mark.parametrize("mode", ["knowledge_preserved", "instruction_previewed"])
PEFTS = {"knowledge_preserved": "kpm", "instruction_previewed": "ipm"}


def operated(kind: str, method: Corda, patch: pytest.MonkeyPatch, covariances: Any = None):
    """A model on which the method was performed with ``SAMPLES``, or with the covariances given."""
    model = make(kind)
    patch.setattr(corda, "rows", lambda *args: SAMPLES)
    if covariances is not None:
        patch.setattr(corda, "covariances", lambda *args: dict(covariances))
    method.operate(model, Context(seed=1, inputs={"data": [Path()]}))
    return model


# ---- the same as PEFT's ------------------------------------------------------------------------------------


@KINDS
@MODES
def test_equals_peft_on_the_same_covariance(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make(kind)
    names = list(linear_layers(plain, "all-linear"))
    config = peft.LoraConfig(
        r=4,
        lora_alpha=4,
        init_lora_weights="corda",
        target_modules=names,
        fan_in_fan_out=kind == "gpt2",
        corda_config=CordaConfig(corda_method=PEFTS[mode], prune_temporary_fields=False),
    )

    def run() -> None:
        for row in SAMPLES:
            plain(input_ids=row[None])
    preprocess_corda(plain, config, run_model=run)
    theirs = {n: plain.get_submodule(n).covariance_matrix for n in names}
    ours = corda.covariances(make(kind), names, SAMPLES)
    assert all(torch.allclose(ours[n], theirs[n], rtol=1e-4, atol=1e-5) for n in names)
    adapted = peft.get_peft_model(plain, config)
    method = Corda(mode=mode, rank=4)
    layers = method.mine(operated(kind, method, monkeypatch, theirs))
    assert list(layers) == names
    for name, layer in layers.items():
        other = adapted.base_model.model.get_submodule(name)
        assert torch.allclose(layer.corda_A, other.lora_A["default"].weight, atol=1e-5)
        assert torch.allclose(layer.corda_B, other.lora_B["default"].weight, atol=1e-5)
        assert torch.allclose(layer.weight, other.base_layer.weight, atol=1e-5)


# ---- the decomposition -------------------------------------------------------------------------------------


def test_terms_by_hand() -> None:
    """W = diag(1, 2), C = diag(9, 1): D = diag(9.05, 1.05), so that the smaller weight has the larger
    term, unlike in W alone."""
    U, S, V = decompose(torch.diag(torch.tensor([1., 2])), torch.diag(torch.tensor([9., 1])), "one")
    assert torch.allclose(S, torch.tensor([9.05, 2.1]))
    assert torch.allclose(S[0] * U[:, :1] @ V[:1], torch.tensor([[1., 0], [0, 0]]), atol=1e-6)
    assert torch.allclose(S[1] * U[:, 1:] @ V[1:], torch.tensor([[0., 0], [0, 2]]), atol=1e-6)
    _, S, V = decompose(torch.diag(torch.tensor([1., 2])), None, "one")
    assert torch.allclose(S, torch.tensor([2., 1])) and abs(V[0, 1]) == 1


def test_the_smallest_terms_matter_less_for_the_samples_than_those_of_the_weight_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, x = (
        torch.randn(12, 16, generator=draw),
        torch.randn(200, 16, generator=draw) * torch.logspace(-2, 1, 16),
    )
    C = x.T @ x / 200
    parts = [
        (U[:, -4:] * S[-4:]) @ V[-4:]
        for U, S, V in (decompose(weight, C, "one"), decompose(weight, None, "one"))
    ]
    ours, plain = (float((part @ C).norm()) for part in parts)
    assert ours < 0.2 * plain


def test_damping_grows_until_the_inverse_is_one() -> None:
    """A covariance of rank 1, ten million times the identity's size, cannot be inverted with
    little damping in float32."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    U, S, V = decompose(weight, x.T @ x * 1e7, "one")
    assert torch.allclose(U * S @ V, weight, atol=0.05)
    with pytest.raises(UserError, match="one has read nothing but zeros"):
        decompose(weight, torch.zeros(64, 64), "one")


def test_covariance_by_hand() -> None:
    """Each sample over the size of its largest entry (3, and 1), X' X not centred, the mean over samples."""
    model = nn.ModuleDict({"layer": nn.Linear(2, 1)})
    seen = iter([torch.tensor([[[3., -6], [0, 3]]]), torch.tensor([[[1., 1]]])])
    model.forward = lambda input_ids, use_cache: model["layer"](next(seen))
    found = corda.covariances(model, ["layer"], [torch.zeros(2), torch.zeros(1)])["layer"]
    first = torch.tensor([[1., -2], [-2, 5]])
    assert torch.allclose(found, (first + 1) / 2) and not model["layer"]._forward_pre_hooks


# ---- in a model --------------------------------------------------------------------------------------------


@KINDS
@MODES
def test_it_starts_as_the_model_was_and_trains_its_terms_alone(
    kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, before = Corda(mode=mode, rank=4), make(kind)
    model = operated(kind, method, monkeypatch)
    assert torch.allclose(model(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-5)
    assert {n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad} == {
        "corda_A",
        "corda_B",
    }
    for name, layer in method.mine(model).items():
        plain = as_linear_weight(before.get_submodule(name))
        assert torch.allclose(as_linear_weight(layer) + layer.corda_B @ layer.corda_A, plain, atol=1e-5)
        assert layer.corda_A.shape == (4, layer.in_features) and layer.corda_B.shape == (
            layer.out_features,
            4,
        )
    logits = moved(model, size=0.05)
    method.fold(model)
    assert torch.allclose(model(input_ids=IDS).logits, logits, atol=1e-4)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]


def test_the_modes_train_opposite_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for mode in PEFTS:
        method = Corda(mode=mode, rank=4)
        layers = method.mine(operated("llama", method, monkeypatch)).values()
        sizes[mode] = [float((m.start_B @ m.start_A).norm()) for m in layers]
    assert all(
        a < b for a, b in zip(sizes["knowledge_preserved"], sizes["instruction_previewed"], strict=True)
    )


@KINDS
def test_the_delta_needs_no_corpus(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    method = Corda(rank=4)
    model = operated(kind, method, monkeypatch)
    logits = moved(model, size=0.05)
    deltas.write(model, [method], 1, tmp_path, None)
    again = make(kind)
    assert deltas.put(again, tmp_path / "adapter") == method
    for one in (model, again, families.load(tmp_path, "test").eval()):
        assert torch.allclose(one(input_ids=IDS).logits, logits, atol=1e-4)


# ---- the samples -------------------------------------------------------------------------------------------


def test_samples_are_training_rows_of_the_domains(tmp_path: Path) -> None:
    ctx, model = tiny.context(tmp_path), tiny.model()
    rows = corda.rows(model, ["prose"], 3, 16, ctx)
    assert [len(r) for r in rows] == [16, 16, 16]
    corpus = open_corpus(ctx.path("data"))
    prose = corpus.select("train", ["prose"])
    texts = [
        tuple(corpus.read(*where)) for where in zip(prose.shard, prose.offset, prose.length, strict=True)
    ]
    assert tuple(rows[0].tolist()) in {t[:16] for t in texts} or any(
        tuple(rows[0][: len(t)].tolist()) == t for t in texts
    )
    assert sum(map(len, corda.rows(model, [], 10**6, 48, ctx))) == corpus.select("train").length.sum()
    # the model has 64 positions
    assert all(len(r) <= 64 for r in corda.rows(model, [], 4, 10**6, ctx))
    assert any(
        not torch.equal(a, b) for a, b in zip(rows, corda.rows(model, ["code"], 3, 16, ctx), strict=True)
    )


def test_what_is_looked_at_decides(tmp_path: Path) -> None:
    starts = []
    for domain in ("prose", "code"):
        model, method = (
            tiny.model(),
            Corda(rank=2, samples=8, length=32, domains=(domain,), layers="*.0.*.q_proj"),
        )
        method.operate(model, tiny.context(tmp_path))
        starts.append(next(iter(method.mine(model).values())).corda_A)
    assert not torch.allclose(*starts, atol=1e-3)


# ---- mistakes ----------------------------------------------------------------------------------------------


def test_mistakes_are_told_before_anything_changes(tmp_path: Path) -> None:
    model, ctx = tiny.model(), tiny.context(tmp_path)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    for method, words in (
        (Corda(rank=17), "rank = 17 is more than the width of"),
        (Corda(mode="knowledge_preserved", rank=2, samples=1, length=8), "8 tokens of samples do not show"),
        (Corda(rank=2, domains=("pros",)), "did you mean 'prose'"),
    ):
        with pytest.raises(UserError, match=words):
            method.operate(model, ctx)
    ctx.inputs = {}
    with pytest.raises(UserError, match=r"write from = \{ data"):
        Corda(rank=2).operate(model, ctx)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rank": 0}, "rank must be 1"),
        ({"samples": 0}, "samples must be 1"),
        ({"mode": "kpm"}, "must be one of"),
    ],
)
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Corda, given, "adapt")
