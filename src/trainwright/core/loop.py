"""The training loop, whole. Seven numbered places; a method can act at no other."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainwright.core import contrast, flops, hardware, masks, sharding
from trainwright.core.batches import collect, cut, join, pull
from trainwright.core.chain import Chain
from trainwright.core.claims import check_alive, check_claims, check_steps, name_all, trainable
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.held import Hold
from trainwright.core.ledger import Ledger
from trainwright.core.method import (
    Batch,
    Controller,
    Data,
    Evaluator,
    Method,
    Objective,
    Operate,
    Optimizer,
    ParamMap,
    Set,
    State,
    Stop,
    Surgery,
    Tensors,
    Update,
    Weigh,
)


class Diverged(UserError):
    """The loss is not a number."""


class Stopped(Diverged):
    """A controller stopped the stage as failed, and says why."""


class Train:
    """One training stage: a model, its methods in recipe order, and how far to go.

    Args:
        model: any module that the objectives can score; trained in place.
        methods: in recipe order; the order matters within a kind only.
        steps: optimizer steps of the whole stage.
        accumulate: micro-batches a step is cut into; the loss does not depend on it.
        precision: ``bf16`` is autocast over float32 weights; ``fp32`` and ``bf16-true`` compute in the
            weights' own type.
        eval_every: steps between evaluations; the last step is always followed by one.
        frozen: how the matrices that no method trains are held (``families/frozen.py``).
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[Method],
        steps: int,
        *,
        accumulate: int = 1,
        precision: str = "fp32",
        eval_every: int = 0,
        frozen: Hold | None = None,
        ctx: Context | None = None,
    ) -> None:
        self.model, self.methods, self.steps = model, tuple(methods), steps
        self.accumulate, self.precision, self.eval_every = accumulate, precision, eval_every
        self.frozen = frozen
        self.ctx = ctx or Context()
        self.ctx.steps, self.ctx.knobs = steps, {"lr": 1.0}
        self.named_methods = name_all(self.methods)
        self.ctx.row_tokens = next((n for _, m in reversed(self.of(Data)) if (n := m.row_tokens())), 0)
        self.journal: list[tuple[int, Surgery]] = []
        self.performed: list[Surgery] = []
        self.row: dict[str, float] = {}
        self.evaluation: dict[str, float] = {}
        self.stopped, self.built, self.count_flops = "", False, True
        self.ledger = Ledger()

    # ---- build: one order for everyone; loading comes last, and in one place ----------------------

    def build(self, journal: Sequence[tuple[int, Surgery]] = ()) -> None:
        """Surgery, journal replay, sharding, states. A checkpoint is loaded after this
        (``checkpoint.load_into``)."""
        check_claims(self.methods, self.model)
        self.owned = {k: m.claims(self.model) for k, m in self.of(Controller)}
        brought: dict[str, set[str]] = {}
        for at, surgery in [*((0, m) for _, m in self.of(Surgery)), *journal]:
            self.ctx.step, before = at, trainable(self.model)
            surgery.operate(self.model, self.ctx)                                  # 1 surgery
            self.performed.append(surgery)
            brought.setdefault(surgery.name, set()).update(trainable(self.model) - before)
        check_alive(brought, self.model)
        if self.frozen is not None:
            self.frozen(self.model)
        self.ctx.step = 0
        self.journal = list(journal)
        self.ctx.policy = self.model
        if sharding.world() > 1:
            self.model, self.ctx.device = sharding.shard(self.model), sharding.device()
        self.refresh()
        check_steps(self.methods, [n for n, p in self.params.items() if p.requires_grad])
        self.states: dict[str, State] = {k: self.begin(m) for k, m in self.named_methods}
        self.settle()
        self.built = True

    def begin(self, method: Method) -> State:
        """A method's state at the start, its leaves sharded as their parameters are."""
        state = method.init(self.model, self.ctx)
        for n, leaves in state.get("param", {}).items():
            state["param"][n] = {leaf: sharding.like(t, self.params[n]) for leaf, t in leaves.items()}
        return state

    def refresh(self) -> None:
        """What is derived from the model's modules, after they changed."""
        self.params: Tensors = dict(self.model.named_parameters())
        trained = {
            n: m for n, m in masks.of(self.model).items() if n in self.params and self.params[n].requires_grad
        }
        self.masks = {n: sharding.like(mask, self.params[n]) for n, mask in trained.items()}
        self.chain = Chain(self.of(Update))
        self.ctx.peak_lr = max((m.lr for _, m in self.of(Optimizer)), default=0.0)

    # ---- the loop -----------------------------------------------------------------------------------

    def run(
        self, until: int | None = None, on_step: Callable[[dict[str, float]], None] | None = None
    ) -> None:
        """Train to the end, or to a step. ``on_step`` hears each step's row; it may raise to
        interrupt between two steps."""
        if not self.built:
            self.build()
        while self.ctx.step < (self.steps if until is None else until) and not self.stopped:
            self.step()
            if on_step and not self.stopped:
                on_step(self.row)

    def step(self) -> None:
        ctx, began = self.ctx, time.perf_counter()
        for who, command in self.commands():                                       # 2 control
            self.obey(who, command)
        if self.stopped:
            return
        ctx.notes, ctx.texts, ctx.pictures, ctx.apart = {}, {}, {}, 0.0
        with self.counted() as count:
            batches = cut(self.pull(), self.accumulate)                            # 3 data
            ctx.again = partial(self.gradients, batches)
            grads = self.gradients(batches, note=True)                             # 4 objective
            ctx.grads = grads if any(m.reads_grads for _, m in self.of(Update)) else {}
            norm = sharding.norm(list(grads.values()))             # an update may overwrite the gradients
            with torch.no_grad():
                self.chain.step(grads, self.params, self.states, ctx)              # 5 update
            self.settle()                                                          # 6 settle
        ctx.grads, ctx.again = {}, None
        if "grad_norm" not in ctx.notes:
            ctx.note("grad_norm", norm)
        ctx.step += 1
        # waits for the device, whose time counts too
        noted = collect(ctx.notes)
        self.row = (
            self.ledger.row(ctx, batches, time.perf_counter() - began, count.flops if count else None) | noted
        )
        self.row["lr"] = ctx.peak_lr * float(ctx.knobs["lr"])
        if self.row["loss"] != self.row["loss"] or abs(self.row["loss"]) == float("inf"):
            raise Diverged(f"the loss is {self.row['loss']} at step {ctx.step}.")
        if ctx.step == self.steps or (self.eval_every and ctx.step % self.eval_every == 0):
            self.evaluation = self.measure()                                       # 7 measure
            self.row |= {f"eval/{n}": v for n, v in self.evaluation.items()}

    def counted(self) -> AbstractContextManager[flops.Count | None]:
        """Counts the FLOPs of a step where it is one of those that are counted."""
        counts = (
            self.count_flops
            and not self.ctx.compile
            and flops.counts(self.ctx.step, partial(self.ctx.rng, at=0))
        )
        return flops.counting() if counts else nullcontext()

    def gradients(self, batches: list[Batch], note: bool = False) -> Tensors:
        """Gradients of all objectives over all micro-batches; every unit in the step weighs the same."""
        model, ctx = self.model, self.ctx
        model.train()
        model.zero_grad(set_to_none=True)
        counts = {k: sharding.total(sum(m.count(b) for b in batches)) for k, m in self.of(Objective)}
        for k, n in counts.items():
            if not n:
                raise UserError(
                    f"step {ctx.step + 1}: {k} finds nothing to learn in the batch (every target is masked)."
                )
        if not counts:
            raise UserError("the stage has no objective: name one, for example { use = \"next_token\" }.")
        weights = self.whole_weights(batches)
        loss_sum: list[Tensor] = []
        notes = ctx.notes
        ctx.notes = notes if note else {}
        for k, m in self.of(Objective):
            if m.contrasts:
                loss_sum.append(contrast.backward(self, k, m, batches, counts[k]))
        for i, batch in enumerate(batches if len(loss_sum) < len(counts) else ()):
            ctx.notes = notes if note else {}
            # an update may ask for gradients again
            with torch.enable_grad(), self.randomness(i), self.autocast():
                loss = self.micro_loss(batch, counts, {k: w[i] for k, w in weights.items()})
            torch.autograd.backward(loss)
            loss_sum.append(loss.detach())
        ctx.notes = notes
        # each rank holds its part, times the ranks
        if note:
            ctx.note("loss", torch.stack(loss_sum).sum())
        grads = {n: p.grad for n, p in self.params.items() if p.grad is not None}
        sharding.average(self.params, grads)
        model.zero_grad(set_to_none=True)
        return grads

    def micro_loss(self, batch: Batch, counts: dict[str, float], whole: dict[str, Tensor]) -> Tensor:
        """One micro-batch's part of the step's loss. FSDP averages gradients over ranks, hence
        the factor ``world``."""
        loss: Tensor | float = 0.0
        for k, m in self.by_row():
            values = m.loss(self.model, batch, self.states[k], self.ctx)
            for w, weigh in self.of(Weigh):
                if not weigh.whole:
                    values = values * weigh.weigh(values.detach(), batch, self.states[w], self.ctx)
            if whole:
                values = values * whole[k]
            loss = loss + values.sum() * (m.weight * sharding.world() / counts[k])
        assert isinstance(loss, Tensor)
        return loss

    def by_row(self) -> list[tuple[str, Objective]]:
        """The objectives that score a micro-batch by itself."""
        return [(k, m) for k, m in self.of(Objective) if not m.contrasts]

    def whole_weights(self, batches: list[Batch]) -> dict[str, list[Tensor]]:
        """For weighs that must see the whole step: their weights, by objective and micro-batch; empty
        where there are none."""
        weighs = [(k, m) for k, m in self.of(Weigh) if m.whole]
        if not weighs:
            return {}
        out: dict[str, list[Tensor]] = {}
        together = join(batches)
        for k, m in self.by_row():
            with torch.no_grad(), self.autocast():
                values = []
                for i, b in enumerate(batches):
                    with self.randomness(i):
                        values.append(m.loss(self.model, b, self.states[k], self.ctx))
            mine = torch.cat(values)
            every = torch.cat([t.to(mine.device) for t in sharding.gather(mine.cpu())])
            weight = torch.ones_like(every)
            for w, weigh in weighs:
                weight = weight * weigh.weigh(every, together, self.states[w], self.ctx)
            own = weight.expand_as(every)[sharding.rank() * len(mine):][:len(mine)]
            out[k] = list(torch.split(own, [len(v) for v in values]))
        return out

    # ---- the places, one by one ------------------------------------------------------------------------

    def pull(self) -> Batch:
        batch = pull(self.of(Data), self.states, self.ctx)
        return {
            n: t.to(self.ctx.device, non_blocking=True) if isinstance(t, Tensor) else t
            for n, t in batch.items()
        }

    @torch.no_grad()
    def settle(self) -> None:
        """What must hold of the weights; then every method forgets the entries that begin anew."""
        for k, m in self.of(Update):
            m.settle(self.params, self.states[k], self.ctx)
        for n, mask in self.masks.items():
            sharding.local(self.params[n]).mul_(sharding.local(mask))
        for n, entries in self.ctx.forgotten.items():
            for leaf in (
                t for state in self.states.values() for t in state.get("param", {}).get(n, {}).values()
            ):
                if leaf.shape == entries.shape and leaf.is_floating_point():
                    sharding.local(leaf).masked_fill_(sharding.local(entries), 0)
        self.ctx.forgotten = {}

    def commands(self) -> list[tuple[str, Any]]:
        view = View(self.ctx.step, self.steps, dict(self.row), dict(self.ctx.knobs))
        controllers = self.of(Controller)
        asked = [(k, c) for k, m in controllers for c in m.tick(view, self.states[k])]
        return sharding.together(asked) if controllers else []

    def obey(self, who: str, command: Any) -> None:
        match command:
            case Set(knob, value):
                if f"knob:{knob}" not in self.owned.get(who, ()):
                    raise UserError(
                        f"{who} sets the knob {knob!r}, which it does not claim (claims must return "
                        f"'knob:{knob}')."
                    )
                self.ctx.knobs[knob] = value
            case Stop(why, failed):
                if failed:
                    raise Stopped(f"{who} stopped the stage at step {self.ctx.step}: {why}")
                self.stopped = f"{who}: {why}"
                self.evaluation = self.measure()
            case Operate(surgery):
                if self.frozen is not None:
                    raise UserError(f"{who} changes the model in training ({surgery.name}), which it cannot "
                                    'where its stage says "frozen"; leave one of the two out.')
                self.journal.append((self.ctx.step, surgery))
                self.performed.append(surgery)
                self.follow(surgery.operate(self.model, self.ctx))
            case _:
                raise TypeError(f"{who} asked for {command!r}, which the loop does not know")

    def follow(self, moved: ParamMap | None) -> None:
        """Give every per-parameter state the shape that its parameter now has; leaves of another shape (a
        counter) stay. A parameter to which nothing was carried over begins as at the start of a run."""
        before = self.params
        for state in self.states.values() if moved else ():
            old, state["param"] = state.get("param", {}), {}
            for new, (src, fn) in moved.source.items() if moved else ():
                if src in old:
                    shape = before[src].shape
                    leaves = {n: fn(t) if t.shape == shape else t.clone() for n, t in old[src].items()}
                    state["param"][new] = leaves
        self.refresh()
        for k, m in self.named_methods if moved else ():
            self.states[k]["param"] = self.begin(m).get("param", {}) | self.states[k]["param"]

    def measure(self) -> dict[str, float]:
        numbers: dict[str, float] = {}
        with self.viewed(), torch.no_grad(), self.autocast():
            for _, m in self.of(Evaluator):
                numbers |= m.measure(self.model, self.ctx)
        return numbers

    @contextmanager
    def viewed(self) -> Iterator[None]:
        """The model as it is to be measured and exported. Nothing can be saved in here."""
        shown: Tensors = {}
        for k, m in self.of(Update):
            shown |= m.view(self.params, self.states[k])
        kept = {n: self.params[n].detach().clone() for n in shown}
        self.model.eval()
        try:
            sharding.write(self.model, self.params, shown)
            yield
        finally:
            sharding.write(self.model, self.params, kept)

    # ---- small helpers -----------------------------------------------------------------------------------

    def of(self, kind: type) -> list[tuple[str, Any]]:
        """Methods of a kind, in recipe order, under names that do not move when a method of
        another name is added."""
        return [(k, m) for k, m in self.named_methods if isinstance(m, kind)]

    def autocast(self) -> Any:
        return hardware.autocast(self.ctx.device, self.precision)

    @contextmanager
    def randomness(self, micro: int) -> Iterator[None]:
        """Dropout inside modules draws from the global generator: derive it from seed, step and
        micro-batch, then put it back."""
        devices = [self.ctx.device.index or 0] if self.ctx.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = self.ctx.rng(f"modules/{micro}/{sharding.rank()}").initial_seed()
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            yield
