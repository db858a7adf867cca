"""GRPO and its kin: losses by hand, equal to TRL's on one batch, and the same however a step is cut."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.align.pairs import moved
from tests.align.test_rollout import SMALL, context, steps
from trainwright.align._sampled import SPREAD
from trainwright.align.grpo import Grpo
from trainwright.align.rollout import Rollout
from trainwright.check import tiny
from trainwright.core.batches import cut
from trainwright.core.context import View
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Stop

UNEVEN: dict[str, Any] = SMALL | {"new_tokens": 6}
PAPERS: dict[str, dict[str, Any]] = {
    "grpo": {"divide": "answer", "kl": 0.04},
    "corrected": {"divide": "answer", "kl": 0.5, "corrected": True},
    "dr_grpo": {"divide": "length", "scale": "none"},
    "dapo": {"divide": "token", "clip_high": 0.28},
    "gspo": {"divide": "answer", "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"divide": "token", "clip": "cispo", "clip_high": 0.1}}


def sampled(rows: int = 8) -> Batch:
    """A batch of answers of several lengths, one of them without a grade."""
    batch = steps(Rollout(**UNEVEN), context(rows), 1)[0]
    for row in range(rows):
        learned = (batch["targets"][row] != UNTRAINED).nonzero()[:, 0]
        batch["targets"][row, learned[2 + row % 4:]] = UNTRAINED
    batch["targets"][1], batch["logp"][batch["targets"] == UNTRAINED] = UNTRAINED, 0
    batch["reward"] = torch.tensor([1.0, 0, 0, 1, 0.5, 0, 0, 1])[:rows]
    batch["group_rewards"] = batch["reward"].view(-1, 4).repeat_interleave(4, 0)
    batch["group_graded"] = torch.ones(rows, 4, dtype=torch.int64)
    batch["group_graded"][:4, 1] = 0
    tokens = (batch["targets"] != UNTRAINED).sum(1).view(-1, 4).sum(1)
    batch["group_tokens"] = tokens.repeat_interleave(4).float()
    return batch


def test_advantages_leave_out_what_has_no_grade() -> None:
    batch = {"reward": torch.tensor([1.0, 0, 3, 0]), "group_rewards": torch.tensor([[1.0, 0, 3, 9]] * 4),
             "group_graded": torch.tensor([[1, 1, 1, 0]] * 4)}
    sd = math.sqrt(7 / 3)
    torch.testing.assert_close(Grpo().advantages(batch)[:3],
                               torch.tensor([-1 / 3, -4 / 3, 5 / 3]) / (sd + SPREAD))
    torch.testing.assert_close(Grpo(scale="none").advantages(batch)[:3],
                               torch.tensor([-1 / 3, -4 / 3, 5 / 3]))
    alone = batch | {"group_graded": torch.tensor([[1, 0, 0, 0]] * 4)}
    assert float(Grpo().advantages(alone)[0]) == 0


def test_clipping_by_hand() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.1]])
    logp, apart, there = torch.tensor([[-1.0, -2, -3]]), ratio.log(), torch.ones(1, 3, dtype=torch.bool)

    def loss(better: float, **settings: Any) -> list[float]:
        found: Tensor = Grpo(**settings).policy_loss(logp, apart, torch.tensor([better]), there)
        return [round(x, 5) for x in found[0].tolist()]
    assert loss(2) == [-2.4, -1.0, -2.2] and loss(-2) == [3.0, 1.6, 2.2]
    assert loss(2, clip_high=0.28) == [-2.56, -1.0, -2.2] and loss(2, clip="none") == [-3.0, -1.0, -2.2]
    assert loss(2, clip="cispo") == [2.4, 2.0, 6.6]
    whole = (1.5 * 0.5 * 1.1) ** (1 / 3)
    assert loss(2, ratio="sequence") == [round(-2 * whole, 5)] * 3


def test_estimators_of_the_divergence() -> None:
    apart = torch.tensor([0.5])
    told = {name: float(Grpo(estimator=name).divergence(apart)) for name in ("k1", "k2", "k3")}
    assert told == pytest.approx({"k1": 0.5, "k2": 0.125, "k3": math.exp(-0.5) - 0.5})


def test_every_division_by_hand() -> None:
    """Two groups of 3 (one answer without a grade) and 4 answers, of 2 to 5 tokens, each token worth 1."""
    batch = sampled()
    learned = batch["targets"] != UNTRAINED
    tokens = learned.sum(1).double()
    assert tokens[1] == 0 and len(set(tokens.tolist())) > 2
    there = tokens > 0
    right = {"token": 1.0, "answer": 1.0, "group": 1.0,
             "length": float(tokens.sum() / batch["new_tokens"] / there.sum())}
    units = {"token": float(tokens.sum()), "answer": 7.0, "group": 2.0, "length": 7.0}
    for divide, mean in right.items():
        method = Grpo(divide=divide)  # type: ignore[arg-type]
        values = method.divided(learned.float(), batch)
        assert method.count(batch) == pytest.approx(units[divide])
        assert float(values.sum()) / method.count(batch) == pytest.approx(mean)


@pytest.mark.parametrize("divide", ["token", "answer", "group", "length"])
def test_a_step_is_the_same_however_it_is_cut(divide: str, tmp_path: Path) -> None:
    run = tiny.stage(Grpo(divide=divide, kl=0.1), tmp_path)
    run.run(until=1)
    batch = sampled()
    values = [run.of(Grpo)[0][1].loss(run.model, part, {}, run.ctx) for part in cut(batch, 8)]
    assert {v.shape[1:] for v in values} == {batch["targets"].shape[1:] if divide == "token" else ()}
    whole, parts = (run.gradients(cut(batch, n)) for n in (1, 8))
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, rtol=1e-5, atol=1e-6)


def test_the_mismatch_is_measured_and_stops() -> None:
    batch, ctx, method = sampled(), context(), Grpo()
    method.loss(tiny.model(), batch, {}, ctx)
    assert float(ctx.notes["mismatch/largest"][0][0]) < 1e-4
    assert not list(method.tick(View(1, 9, {"mismatch/v2": 1e-5}, {}), {}))
    learned = batch["targets"] != UNTRAINED
    batch["logp"][learned] += torch.where(torch.arange(int(learned.sum())) == 0, 1.0, 0.2)
    ctx.notes = {}
    method.loss(tiny.model(), batch, {}, ctx)
    told = {name: float(v[0][0]) for name, v in ctx.notes.items()}
    many = int(learned.sum())
    assert told["mismatch/v1"] == pytest.approx(0.2 + 0.8 / many, abs=1e-4)
    assert told["mismatch/v2"] == pytest.approx((0.04 + 0.96 / many) / 2, abs=1e-4)
    assert told["mismatch/largest"] == pytest.approx(1.0, abs=1e-4)
    stop = next(iter(method.tick(View(1, 9, told, {}), {})))
    assert isinstance(stop, Stop) and stop.failed and "most_mismatch = 0.005" in stop.why
    ctx.notes = {}
    method.loss(tiny.model(), batch | {"fresh": False}, {}, ctx)
    assert not any(name.startswith("mismatch/") for name in ctx.notes)


def test_a_micro_batch_without_a_grade_has_no_loss() -> None:
    batch = sampled()
    batch["targets"][:] = UNTRAINED
    loss = Grpo().loss(tiny.model(), batch, {}, context())
    assert not loss.any() and 0 < Grpo().count(batch) < 1e-6
    with pytest.raises(UserError, match="the batch has no logp"):
        Grpo().count({"targets": batch["targets"]})


def theirs(trl: Any, datasets: Any, folder: Path, loss_type: str, **settings: Any) -> Any:
    args = trl.GRPOConfig(output_dir=str(folder), report_to=[], use_cpu=True, bf16=False, num_generations=4,
                          per_device_train_batch_size=8, max_completion_length=6, temperature=1.0,
                          disable_tqdm=True, loss_type=loss_type, **settings)
    return trl.GRPOTrainer(model=moved(), args=args, processing_class=tiny.tokenizer(),
                           reward_funcs=lambda completions, **_: [0.0] * len(completions),
                           train_dataset=datasets.Dataset.from_list([{"prompt": "how many"}] * 8))


@pytest.mark.parametrize("paper", PAPERS)
def test_losses_and_gradients_are_those_of_trl(paper: str, tmp_path: Path) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    method, batch, ctx = Grpo(**PAPERS[paper]), sampled(), context()
    g = torch.Generator().manual_seed(3)
    learned = batch["targets"] != UNTRAINED
    batch["logp"] += learned * 0.3 * torch.randn(learned.shape, generator=g)
    model = moved()
    values = method.loss(model, batch, {}, ctx)
    mine = values.sum() / method.count(batch)
    own = torch.autograd.grad(mine, list(model.parameters()))

    rows = [0, *range(2, 8)]                           # they have no answers without a grade
    kind = {"gspo": "grpo", "corrected": "grpo"}.get(paper, paper)
    high = method.clip_high + (paper == "cispo")       # they clamp at epsilon_high itself
    trainer = theirs(trl, datasets, tmp_path, kind, epsilon=method.clip_low,
                     epsilon_high=high, use_bias_correction_kl=method.corrected,
                     importance_sampling_level=method.ratio)
    # prompt and answer lie in one part: the mask says what is learned
    given = {"prompt_ids": batch["input_ids"][rows, :1], "prompt_mask": batch["attention_mask"][rows, :1],
             "completion_ids": batch["input_ids"][rows, 1:], "tool_mask": learned[rows, :-1].long(),
             "completion_mask": batch["attention_mask"][rows, 1:],
             "advantages": method.advantages(batch)[rows], "old_per_token_logps": batch["logp"][rows, :-1],
             "num_items_in_batch": learned.sum()}
    if method.kl:
        from trainwright.lm.logprobs import token_logprobs
        given["ref_per_token_logps"] = token_logprobs(tiny.model(), batch).logp[rows, :-1].detach()
    trainer.model.eval()
    trainer.beta = method.kl                           # from the start it would look for a reference on disk
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, given)
    right = torch.autograd.grad(loss, list(trainer.model.parameters()))
    torch.testing.assert_close(mine, loss, rtol=1e-5, atol=1e-5)
    for a, b in zip(own, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
