"""The loop on any module: a small vision classifier, exact resume, micro-batches, claims, commands."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from trainwright.core import checkpoint
from trainwright.core.batches import cut
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.loop import Diverged, Train
from trainwright.core.method import (
    Batch,
    Command,
    Controller,
    Data,
    Evaluator,
    Objective,
    Operate,
    ParamMap,
    Set,
    State,
    Stop,
    Surgery,
    Tensors,
    Update,
    Weigh,
)
from trainwright.optim.adamw import Adamw
from trainwright.optim.ema import Ema


class Digits(Data):
    """8x8 images of digits."""

    size: int = 64
    """Images of a step."""

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {"shared": {"drawn": 0}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(1500, generator=ctx.rng(f"digits/{state['shared']['drawn']}", at=0))
        pick = order[: self.size][ctx.rows(self.size)]
        state["shared"]["drawn"] += 1
        return {"image": torch.tensor(images, dtype=torch.float32)[pick].view(-1, 1, 8, 8) / 16,
                "label": torch.tensor(labels)[pick]}


class Classify(Objective):
    """Cross-entropy of the label."""

    def count(self, batch: Batch) -> float:
        return len(batch["label"])

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        return nn.functional.cross_entropy(model(batch["image"]), batch["label"], reduction="none")


class Accuracy(Evaluator):
    """Share of held-out images that are named rightly."""

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        images, labels = load_digits(return_X_y=True)
        x = torch.tensor(images[1500:], dtype=torch.float32).view(-1, 1, 8, 8) / 16
        return {"accuracy": float((model(x).argmax(-1) == torch.tensor(labels[1500:])).float().mean())}


def convnet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(256, 10),
        )


def train(steps: int = 6, *more: Any, **settings: Any) -> Train:
    return Train(convnet(), [Digits(), Classify(), Adamw(lr=5e-3), *more], steps, **settings)


@pytest.mark.slow
def test_a_vision_classifier_learns_by_the_same_loop():
    run = train(120, Accuracy())
    run.run()
    assert run.evaluation["accuracy"] > 0.8
    assert run.row["eval/accuracy"] == run.evaluation["accuracy"]


@pytest.mark.slow
def test_resumes_bit_for_bit_twice(tmp_path: Path):
    whole = train(9)
    whole.run()
    for until in (3, 6, 9):
        run = train(9)
        path, _ = checkpoint.newest(tmp_path)
        rest = checkpoint.read(path) if path else {}
        run.build()
        if path:
            checkpoint.load_into(run, path, rest)
        run.run(until=until)
        checkpoint.save(run, tmp_path, {})
    for name, value in whole.params.items():
        assert torch.equal(value, run.params[name]), name
    assert whole.row["loss"] == run.row["loss"]


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path):
    run = train(9)
    for until in (2, 4):
        run.run(until=until)
        checkpoint.save(run, tmp_path, {})
    file = tmp_path / "step-00000004" / "rank-00000.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    (tmp_path / "step-00000006.tmp").mkdir()
    path, damaged = checkpoint.newest(tmp_path)
    assert (
        path is not None and path.name == "step-00000002" and [d.name for d in damaged] == ["step-00000004"]
    )
    assert not (tmp_path / "step-00000006.tmp").exists()


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_do_not_bend_the_loss(parts: int):
    one, many = train(1), train(1, accumulate=parts)
    for run in (one, many):
        run.build()
        run.model.eval()
        run.model.train = lambda mode=True, m=run.model: m  # no dropout: it is drawn per micro-batch
    whole, split = one.gradients(cut(one.pull(), 1)), many.gradients(cut(many.pull(), parts))
    for name in whole:
        assert torch.allclose(whole[name], split[name], atol=1e-7), name


def test_a_weigh_that_sees_the_whole_step_gives_one_answer_for_any_cut():
    class Hardest(Weigh):
        whole = True

        def weigh(self, values: Tensor, batch: Batch, state: State, ctx: Context) -> Tensor:
            assert len(values) == len(batch["label"]) == 64
            return values.softmax(0) * len(values)
    grads = []
    for parts in (1, 4):
        run = train(1, Hardest(), accumulate=parts)
        run.build()
        run.model.eval()
        run.model.train = lambda mode=True, m=run.model: m
        grads.append(run.gradients(cut(run.pull(), parts)))
    for name in grads[0]:
        assert torch.allclose(grads[0][name], grads[1][name], atol=1e-6), name


class Owner(Surgery):
    """Claims a glob."""

    glob: str = "7.*"
    """What it claims."""

    def claims(self, model: nn.Module) -> set[str]:
        return {self.glob}

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        return None


def test_two_owners_and_claims_on_nothing_are_refused():
    with pytest.raises(UserError, match="both claim 7"):
        train(1, Owner(), Owner()).build()
    with pytest.raises(UserError, match="matches nothing"):
        train(1, Owner(glob="8.*")).build()
    with pytest.raises(UserError, match="both claim"):
        train(1, Adamw()).build()
    with pytest.raises(UserError, match=r"no optimizer takes the step of 0\.weight"):
        Train(convnet(), [Digits(), Classify(), Adamw(params="7.*")], 1).build()
    with pytest.raises(UserError, match="both claim the step of the parameters 'layers"):
        train(1, Adamw(params="layers.*")).build()


class At(Controller):
    """Asks for one thing at one step."""

    step: int = 3
    """When."""
    what: Any = None
    """What."""

    def claims(self, model: nn.Module) -> set[str]:
        return {"knob:lr"}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        return [self.what] if view.step == self.step else []


@pytest.mark.slow
def test_commands_stop_set_and_fail():
    run = train(9, At(what=Stop("enough")), Accuracy())
    run.run()
    assert run.ctx.step == 3 and run.stopped == "at.1: enough" and "accuracy" in run.evaluation
    run = train(9, At(what=Set("lr", 0.0)))
    run.run(until=3)
    before = {n: p.detach().clone() for n, p in run.params.items()}
    run.run()
    assert all(torch.equal(p, before[n]) for n, p in run.params.items())
    with pytest.raises(Diverged, match="step 3: bad"):
        train(9, At(what=Stop("bad", failed=True))).run()


class Widen(Surgery):
    """Doubles the last hidden layer's dropout away (a change of modules), keeping all parameters."""

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        model[6] = nn.Identity()
        return ParamMap({n: (n, lambda t: t.clone()) for n, _ in model.named_parameters()})


def test_a_surgery_between_steps_is_journaled(tmp_path: Path):
    run = train(8, At(what=Operate(Widen())))
    run.run(until=5)
    assert [(step, type(s).__name__) for step, s in run.journal] == [(3, "Widen")]
    assert isinstance(run.model[6], nn.Identity) and run.states["adamw.1"]["param"]


class Stamp(Surgery):
    """Writes down at which step it is performed."""

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        model.stamped = ctx.step
        return None


def test_a_replayed_surgery_sees_the_step_at_which_it_was_performed():
    run = train(8)
    run.build(journal=[(3, Stamp())])
    assert run.model.stamped == 3 and run.ctx.step == 0


class Uphill(Update):
    """Asks for the gradients again, elsewhere, in the middle of a step."""

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        assert ctx.again is not None
        same = ctx.again()
        for p in params.values():
            p.mul_(2)
        other = ctx.again()
        for p in params.values():
            p.div_(2)
        ctx.note("same", float(all(torch.equal(same[n], ctx.grads[n]) for n in updates)))
        ctx.note("other", float(all(torch.equal(other[n], ctx.grads[n]) for n in updates)))
        return other


def test_an_update_may_ask_for_gradients_at_other_weights():
    run = train(2, Uphill())
    run.run()
    assert run.row["same"] == 1 and run.row["other"] == 0


def test_a_loss_that_is_no_number_names_the_step():
    class Bad(Objective):
        def count(self, batch: Batch) -> float:
            return 1

        def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
            return model(batch["image"]).sum(1) * (math.nan if ctx.step == 2 else 1e-3)
    with pytest.raises(Diverged, match="nan at step 3"):
        Train(convnet(), [Digits(), Bad(), Adamw()], 5).run()


def test_a_batch_with_nothing_to_learn_is_an_error():
    class Nothing(Classify.__mro__[1]):
        def count(self, batch: Batch) -> float:
            return 0

        def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
            return model(batch["image"]).sum(1) * 0
    with pytest.raises(UserError, match="nothing to learn"):
        Train(convnet(), [Digits(), Nothing(), Adamw()], 5).run()


@pytest.mark.slow
def test_adding_an_evaluator_moves_no_number():
    a, b = train(6), train(6, Accuracy(), eval_every=1)
    a.run()
    b.run()
    assert all(torch.equal(p, b.params[n]) for n, p in a.params.items())


class Anew(Update):
    """At the third step half of the head begins anew."""

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        if ctx.step == 2:
            ctx.forget("7.weight", torch.arange(256).expand(10, 256) < 100)
            ctx.forget("7.weight", torch.arange(256).expand(10, 256) < 128)


def test_entries_that_begin_anew_are_forgotten_by_every_method():
    run, plain = train(9, Ema(decay=0.5), Anew()), train(9, Ema(decay=0.5))
    for one in (run, plain):
        one.run(until=3)
    for key, leaf in (("adamw.1", "exp_avg"), ("adamw.1", "exp_avg_sq"), ("ema.1", "mean")):
        kept, whole = (one.states[key]["param"]["7.weight"][leaf] for one in (run, plain))
        assert torch.equal(kept[:, 128:], whole[:, 128:]) and not kept[:, :128].any() and whole[:, :128].any()
    adam = run.states["adamw.1"]["param"]["7.weight"]
    assert adam["step"] == 3 and torch.equal(run.params["7.weight"], plain.params["7.weight"])
    run.run(until=4)
    assert adam["exp_avg"][:, :128].any(), "they begin anew once, not at every step"
