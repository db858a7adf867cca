"""DPO and its variants: by hand, and equal to TRL's on one batch."""
from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.align.pairs import batch, context, moved, repeated
from trainwright import families
from trainwright.align._pairs import Pairs, frozen, reference_pairs, scored
from trainwright.align.dpo import FREE, Dpo
from trainwright.check import tiny
from trainwright.core import recipe
from trainwright.core.batches import cut
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.finetune.lora import Lora
from trainwright.life.jobs import jobs
from trainwright.storage.store import Store

VARIANTS = ("sigmoid", "robust", "hinge", "ipo", "normalized", "apo_zero", "apo_down", "simpo", "orpo")


def made(variant: str, **settings: Any) -> Dpo:
    return Dpo(variant=variant, **settings)


def some_pairs(seed: int) -> Pairs:
    g = torch.Generator().manual_seed(seed)
    chosen, rejected = (-20 * torch.rand(6, generator=g) - 1 for _ in range(2))
    return Pairs(chosen, rejected, torch.tensor([3., 9, 4, 7, 2, 5]), torch.tensor([6., 2, 8, 3, 5, 4]))


# ---- by hand -------------------------------------------------------------------------------------------


def test_the_first_loss_is_ln_2_where_the_model_is_its_reference() -> None:
    first = {"hinge": 1.0, "ipo": (1 / 0.2) ** 2, "apo_zero": 1.0, "apo_down": 1.0}
    pairs, model, ctx = batch(), tiny.model(), context()
    for variant in VARIANTS:
        if variant in FREE:
            continue
        values = made(variant).loss(model, pairs, {}, ctx)
        right = torch.full((8,), first.get(variant, math.log(2)))
        torch.testing.assert_close(values, right, rtol=1e-5, atol=1e-5, msg=variant)


def test_of_dpo_the_gradient_is_that_of_the_paper() -> None:
    """- beta sigmoid(- d) (grad log pi(y+) - grad log pi(y-)): its equation 7."""
    policy, reference = some_pairs(0), some_pairs(1)
    policy.chosen.requires_grad_(), policy.rejected.requires_grad_()
    values = made("sigmoid", beta=0.3).loss_of(policy, reference)
    d = 0.3 * ((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected))
    up, down = torch.autograd.grad(values.sum(), [policy.chosen, policy.rejected])
    torch.testing.assert_close(up, -0.3 * torch.sigmoid(-d))
    torch.testing.assert_close(down, -up)


def test_smoothing_is_an_expectation_over_exchanged_pairs() -> None:
    """And the robust loss is without bias: its mean over the flips is the loss of the true order."""
    policy, reference, e = some_pairs(0), some_pairs(1), 0.2
    other = [Pairs(p.rejected, p.chosen, p.rejected_tokens, p.chosen_tokens) for p in (policy, reference)]
    plain, flipped = (made("sigmoid").loss_of(*p) for p in ((policy, reference), other))
    smooth = made("sigmoid", label_smoothing=e).loss_of(policy, reference)
    torch.testing.assert_close(smooth, (1 - e) * plain + e * flipped)
    robust = [made("robust", label_smoothing=e).loss_of(*p) for p in ((policy, reference), other)]
    torch.testing.assert_close((1 - e) * robust[0] + e * robust[1], plain)


def test_the_likelihood_of_the_chosen_answer_is_added() -> None:
    policy, reference = some_pairs(0), some_pairs(1)
    more = made("sigmoid", nll=0.5).loss_of(policy, reference) - made("sigmoid").loss_of(policy, reference)
    torch.testing.assert_close(more, -0.5 * policy.chosen / policy.chosen_tokens)


def test_pairs_that_teach_nothing_are_neither_summed_nor_counted() -> None:
    whole, model, ctx = batch(), moved(), context()
    less, method = repeated(whole, equal=2, without=5), made("ipo")
    assert method.count(whole) == 8 and method.count(less) == 6
    values, all_values = (method.loss(model, b, {}, ctx) for b in (less, whole))
    kept = torch.tensor([i not in (2, 5) for i in range(8)])
    torch.testing.assert_close(values[kept], all_values[kept])
    assert values[~kept].tolist() == [0, 0]
    grads = torch.autograd.grad(values.sum(), list(model.parameters()))
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_pairs_equal_padded_ones(variant: str) -> None:
    pairs, ctx, model = batch(), context(), moved().double()
    ctx.frozen["reference"] = tiny.model(seed=3).double().eval().requires_grad_(False)
    found = []
    for packed in (True, False):
        values = made(variant, packed=packed).loss(model, pairs, {}, ctx)
        found.append([values, *torch.autograd.grad(values.sum(), list(model.parameters()))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_numbers_that_people_look_at() -> None:
    ctx, model = context(), moved(far=0.05)
    made("sigmoid", beta=0.5).loss(model, batch(), {}, ctx)
    told = {name: float(v[0][0]) for name, v in ctx.notes.items()}
    policy = scored(model, batch(), ctx, packed=True)
    reference = reference_pairs("model", model, batch(), ctx, packed=True)
    chosen, rejected = 0.5 * (policy.chosen - reference.chosen), 0.5 * (policy.rejected - reference.rejected)
    right = {"rewards/chosen": chosen.mean(), "rewards/rejected": rejected.mean(),
             "rewards/margins": (chosen - rejected).mean(),
             "rewards/accuracies": (chosen > rejected).float().mean(),
             "logps/chosen": policy.chosen.mean(), "logps/rejected": policy.rejected.mean()}
    assert told == pytest.approx({n: float(v) for n, v in right.items()}, rel=1e-5)
    assert 0 < told["rewards/accuracies"] < 1


# ---- the reference ---------------------------------------------------------------------------------------


def adapted(settings: Lora, far: float = 0.1) -> nn.Module:
    model, g = tiny.model(), torch.Generator().manual_seed(2)
    settings.operate(model, context())
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.requires_grad):
            p += far * torch.randn(p.shape, generator=g)
    return model


def test_with_its_adapters_off_a_model_is_its_own_reference() -> None:
    model, ctx, pairs = adapted(Lora(rank=2)), context(), batch()
    off = reference_pairs("adapter_off", model, pairs, ctx, packed=True)
    torch.testing.assert_close(off, reference_pairs("model", model, pairs, ctx, packed=True))
    assert not torch.allclose(scored(model, pairs, ctx, packed=True).chosen, off.chosen, atol=1e-3)
    values = [made("sigmoid", reference=how).loss(model, pairs, {}, ctx) for how in ("model", "adapter_off")]
    torch.testing.assert_close(*values)


def test_adapters_are_switched_on_again_whatever_happens() -> None:
    model = adapted(Lora(rank=2))
    ids = torch.arange(3, 15)[None]
    before = model(input_ids=ids).logits
    with pytest.raises(ZeroDivisionError), frozen("adapter_off", model, context()):
        raise ZeroDivisionError
    assert torch.equal(model(input_ids=ids).logits, before)


def test_adapters_off_are_refused_where_that_would_be_no_reference() -> None:
    method, ctx = made("sigmoid", reference="adapter_off"), context()
    with pytest.raises(UserError, match="needs an adapter"):
        method.init(tiny.model(), ctx)
    started = adapted(Lora(rank=2), far=0.0)
    method.init(started, ctx)
    started.model.norm.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"model\.norm\.weight is trained"):
        method.init(started, ctx)
    with pytest.raises(UserError, match="starts by changing"):
        method.init(adapted(Lora(rank=2)), ctx)


def test_a_reference_has_no_dropout() -> None:
    model = tiny.model(tiny.GPT2).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    ctx, pairs = context(), batch()
    ctx.frozen["reference"] = model
    one, two = (reference_pairs("model", model, pairs, ctx, packed=False) for _ in range(2))
    assert torch.equal(one.chosen, two.chosen) and model.training


def test_a_role_is_asked_for_only_where_it_is_used() -> None:
    assert made("sigmoid").asks()["reference"].instead == "model"
    assert not made("simpo").asks() and not made("sigmoid", reference="column").asks()


def test_the_reference_of_a_stage_is_what_it_starts_from_unless_another_is_named(tmp_path: Path) -> None:
    for name in ("start", "other"):
        families.save(tiny.model(), tmp_path / name, tiny.tokenizer())

    def references(method: dict[str, Any], **more: str) -> list[str]:
        inputs = {"model": "start", "data": str(tiny.corpus())} | more
        pairs = {"use": "examples", "fields": ["chosen", "rejected"], "length": 32}
        table = {"stage": [{"name": "it", "kind": "train", "from": inputs, "steps": 1, "batch_size": 2,
                            "methods": [pairs, method]}]}
        (job,) = jobs(recipe.parse(table, tmp_path / "recipe.toml"), Store(tmp_path / "store"))
        return [source.name for source in job.inputs.get("reference", [])]
    assert references({"use": "dpo"}) == ["start"]
    assert references({"use": "dpo"}, reference="other") == ["other"]
    assert references({"use": "dpo", "variant": "simpo"}) == []
    with pytest.raises(UserError, match=r"nobody here asks for from\.reference"):
        references({"use": "dpo", "variant": "simpo"}, reference="other")


def test_settings_that_cannot_be_together() -> None:
    for settings, said in (({"variant": "hinge", "label_smoothing": 0.1}, "label_smoothing goes with"),
                           ({"margin": 1.0}, "margin goes with"),
                           ({"variant": "orpo", "reference": "column"}, "has no reference")):
        with pytest.raises(ValueError, match=said):
            Dpo(**settings)
    with pytest.raises(UserError, match=r'fields = .*"chosen", "rejected"'):
        Dpo().count({"input_ids": torch.zeros(2, 3)})
    other, ctx = tiny.model(), context()
    other.resize_token_embeddings(400)
    ctx.frozen["reference"] = other
    with pytest.raises(UserError, match="400 tokens and the model 300"):
        Dpo().init(tiny.model(), ctx)


# ---- beside TRL ------------------------------------------------------------------------------------------

THEIRS = {"sigmoid": "sigmoid", "robust": "robust", "hinge": "hinge", "ipo": "ipo", "apo_zero": "apo_zero",
          "apo_down": "apo_down", "normalized": "sigmoid_norm"}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's trainer on the small model, with the reference that the battery has."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = [{"prompt": "how many", "chosen": " apples are left" * (1 + i % 3),
             "rejected": " pick some" * (i + 1)} for i in range(4)]
    settings = trl.DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), report_to=[], use_cpu=True, bf16=False,
        per_device_train_batch_size=4, max_length=64, beta=0.3, label_smoothing=0.0, disable_tqdm=True)
    return trl.DPOTrainer(model=moved(), ref_model=tiny.model(), args=settings,
                          processing_class=tiny.tokenizer(), train_dataset=datasets.Dataset.from_list(rows))


def as_ours(given: dict[str, Tensor]) -> Batch:
    """A batch of TRL's as ours: the chosen rows, then the rejected ones."""
    targets = torch.full_like(given["input_ids"], UNTRAINED)
    inside = given["completion_mask"][:, 1:] > 0
    targets[:, :-1] = torch.where(inside, given["input_ids"][:, 1:], UNTRAINED)
    parts = {"ids": given["input_ids"], "attention_mask": given["attention_mask"], "targets": targets}
    return {f"{side}_{n}": t for n, both in parts.items()
            for side, t in zip(("chosen", "rejected"), both.chunk(2), strict=True)}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("variant", THEIRS)
def test_losses_and_gradients_are_those_of_trl(trainer: Any, variant: str, packed: bool) -> None:
    smoothing = 0.1 if variant == "robust" else 0.0
    trainer.loss_types, trainer.loss_weights = [THEIRS[variant]], [1.0]
    trainer.label_smoothing = smoothing
    given = next(iter(trainer.get_train_dataloader()))
    theirs_model = trainer.model
    theirs_model.eval()
    theirs = trainer._compute_loss(theirs_model, dict(given), False)
    right = torch.autograd.grad(theirs, list(theirs_model.parameters()))
    model, ctx = moved(), context()
    method = made(variant, beta=0.3, label_smoothing=smoothing, packed=packed)
    ours = method.loss(model, as_ours(given), {}, ctx).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(ours, list(model.parameters()))
    for a, b in zip(grads, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_simpo_and_conservative_losses_are_those_of_trl() -> None:
    cpo = pytest.importorskip("trl.experimental.cpo").CPOTrainer.cpo_loss
    pairs = some_pairs(0)
    means = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    for smoothing in (0.0, 0.2):
        its = SimpleNamespace(alpha=0.0, accelerator=SimpleNamespace(device="cpu"), loss_type="simpo",
                              simpo_gamma=0.6, beta=2.0, label_smoothing=smoothing)
        ours = made("simpo", beta=2.0, margin=0.6, label_smoothing=smoothing).loss_of(pairs, None)
        torch.testing.assert_close(ours, cpo(its, *means)[0])
        its.loss_type, zero = "sigmoid", pairs._replace(chosen=torch.zeros(6), rejected=torch.zeros(6))
        ours = made("sigmoid", beta=2.0, label_smoothing=smoothing).loss_of(pairs, zero)
        torch.testing.assert_close(ours, cpo(its, pairs.chosen, pairs.rejected)[0])


def test_the_odds_ratio_is_that_of_trl() -> None:
    orpo = pytest.importorskip("trl.experimental.orpo").ORPOTrainer.odds_ratio_loss
    pairs = some_pairs(0)
    chosen, rejected = pairs.chosen / pairs.chosen_tokens, pairs.rejected / pairs.rejected_tokens
    its = SimpleNamespace(beta=0.4, accelerator=SimpleNamespace(device="cpu"))
    theirs = -chosen - orpo(its, chosen, rejected)[0]
    torch.testing.assert_close(made("orpo", beta=0.4).loss_of(pairs, None), theirs)


# ---- in a stage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["normalized", "simpo", "orpo"])
def test_micro_batches_bend_no_variant(variant: str, tmp_path: Path) -> None:
    run = tiny.stage(made(variant), tmp_path)
    pairs = repeated(run.pull(), equal=1, without=6)
    whole, parts = (run.gradients(cut(pairs, n)) for n in (1, 4))
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, rtol=1e-5, atol=1e-6)


def test_it_learns_to_prefer(tmp_path: Path) -> None:
    run, rows = tiny.stage(made("sigmoid", beta=0.5), tmp_path), []
    run.run(on_step=rows.append)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["loss"] < 0.5 and rows[-1]["rewards/accuracies"] > 0.8
    assert rows[-1]["tokens"] > 0
