"""The memory of a training step of any size, without allocating it.

The stage is built as a run builds it, of tensors that have a shape, a type and a device, and no contents
(torch's fake tensors), and takes two steps of synthetic rows: what every operation makes, and what autograd
and the optimizer keep, is written down with its bytes. So a model of 70 billion parameters is planned in
seconds on a laptop. Documents are as long as those of the corpus where it is there (attention costs by them),
else half a row.

On N ranks (FSDP2, as in ``core.sharding``) the weights, their gradients and what the optimizer remembers are
counted as a part of N, everything else whole, and on top of it what is gathered: the parameters outside of
the blocks, which stay together through the step, and those of two blocks, one in use and one on its way, with
the gradients of one. What is left out: the process itself, buffers of kernels and of the network, and
fragmentation. What looks at numbers (a singular value, a norm compared in Python) cannot be predicted.
"""
from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from trainwright import families
from trainwright.core import flops, sharding
from trainwright.core.build import build
from trainwright.core.context import ENDLESS, Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Method, Objective, Surgery, Tensors, Update, Weigh
from trainwright.corpus.tokens import open_corpus
from trainwright.families import frozen
from trainwright.life.jobs import Job
from trainwright.planning.live import Live
from trainwright.planning.synthetic import Synthetic
from trainwright.stages._training import others, stage_of
from trainwright.storage.store import Store


class Unpredictable(Exception):
    """Why memory cannot be predicted, as a sentence."""


@dataclass(frozen=True)
class Predicted:
    """Bytes of one rank, and what the prediction is made of."""

    parameters: int
    trainable: int
    weights: float
    gradients: float
    states: float
    """What the optimizer and other updates remember."""
    gathered: float
    """Parameters and gradients that are whole for a time; 0 on one rank."""
    peak: float
    """The most at once."""
    flops_per_token: float

    @property
    def activations(self) -> float:
        """The rest of the peak: activations, logits, and what is made on the way."""
        return max(0.0, self.peak - self.weights - self.gradients - self.states - self.gathered)


class Journal(Live):
    """Writes down in order which storage is made, grows and is freed, and the bytes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []

    def change(self, number: int, size: int) -> None:
        self.events.append((number, size))

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor's storage."""
        self.add(tensor)
        return self.known[id(tensor.untyped_storage())][1]

    def most(self, shared: set[int], ranks: int) -> float:
        """The most bytes at once, where each of ``ranks`` has a part of the storages in ``shared``."""
        now = most = 0.0
        for number, size in self.events:
            now += size / ranks if number in shared else size
            most = max(most, now)
        return most


def predict(job: Job, store: Store, ranks: int = 1) -> Predicted:
    """The memory of one rank of a training stage, and what it is made of.

    Raises:
        Unpredictable: the model is not on this machine, or a method looks at numbers.
        UserError: a mistake of the recipe that shows when the stage is built; rows that do not divide.
    """
    stage = stage_of(job)
    config = stage.start_config(job, store)
    if config is None:
        raise Unpredictable("the model is not on this machine yet.")
    ctx = Context(seed=job.seed, device=sharding.device(), root=job.root)
    fake, journal = FakeTensorMode(allow_non_fake_inputs=True), Journal()
    model, tokens = _bare(families.skeleton(config, job.where), fake, ctx.device), stage.row_tokens(job) or 0
    methods: list[Method] = [
        Synthetic(tokens=tokens, vocabulary=families.vocabulary_of(model) or 2,
                  document=_document(job, store, tokens)),
        *(m for m in job.methods if isinstance(m, (Surgery, Objective, Weigh, Update))),
    ]
    whole = stage.batch_rows(job)
    if whole % (ranks * stage.accumulate):
        raise UserError(f"{job.where}: a step of {whole} rows does not divide over {ranks} ranks and "
                        f"{stage.accumulate} micro-batches: take a multiple of {ranks * stage.accumulate}.")
    ctx.batch_rows = rows = whole // (ranks * stage.accumulate)
    ctx.frozen = _frozen(job, store, fake, ctx.device)
    beside = sum(_bytes(m.parameters()) for m in ctx.frozen.values())
    gc.collect()
    with journal:
        try:
            run = build(model, methods, ENDLESS, ctx, precision=stage.precision,
                        checkpointing=stage.checkpointing,
                        frozen=frozen.holding(stage.frozen, stage.frozen_tables))
            run.accumulate = 1
            parts = min(stage.accumulate, 2)
            told = _told(run, journal, ranks, rows * (stage.row_tokens(job) or 0), parts)
            return replace(told, peak=told.peak + beside)          # each rank has the others whole
        except DataDependentOutputException as error:
            raise Unpredictable(f"a method looks at numbers, which a prediction does not have ({error})."
                                ) from None


def _frozen(job: Job, store: Store, fake: FakeTensorMode, device: torch.device) -> dict[str, nn.Module]:
    """The models that stay as they are (a reference, a teacher), by role, without contents."""
    out = {}
    for role, source in others(job).items():
        config = source.config(store, job.where)
        if config is None:
            raise Unpredictable(f"the {role} is not on this machine yet.")
        other = _bare(families.skeleton(config, job.where), fake, device)
        out[role] = other.eval().requires_grad_(False)
    return out


def _document(job: Job, store: Store, tokens: int) -> int:
    """Tokens of a document of such a length that attention within documents costs what it does in the corpus,
    whose documents are cut where a row ends; 0 where the corpus is not there."""
    source = job.source("data")
    if source is None or not tokens or not source.ready(store):
        return 0
    try:
        sizes = np.minimum(open_corpus(source.path(store, job.where)).select("train").length, tokens)
    except UserError:                                            # no corpus of texts, or nothing to train on
        return 0
    return round(float((sizes**2).sum() / sizes.sum()))


def _told(run: Train, journal: Journal, ranks: int, tokens: int, parts: int) -> Predicted:
    """A step behind an update of nothing, which leaves the states of the optimizer behind."""
    before = journal.made
    _update(run, {n: torch.empty_like(p) for n, p in run.params.items() if p.requires_grad})
    shared = {journal.number(t) for t in run.params.values()} | set(range(before, journal.made))
    with flops.counting() as count:
        grads = run.gradients([run.pull() for _ in range(parts)])
    shared |= {journal.number(t) for t in grads.values()}
    before = journal.made
    _update(run, grads)                                         # entry by entry: it works on shards alone
    shared |= set(range(before, journal.made))
    trained = [p for p in run.params.values() if p.requires_grad]
    return Predicted(
        sum(p.numel() for p in run.params.values()), sum(p.numel() for p in trained),
        _bytes(run.params.values()) / ranks, _bytes(trained) / ranks, _bytes(_states(run)) / ranks,
        gathered := _gathered(run.model) if ranks > 1 else 0.0,
        journal.most(shared, ranks) + gathered, count.flops / (tokens * parts) if tokens else 0.0)


def _update(run: Train, grads: Tensors) -> None:
    with torch.no_grad():
        run.chain.step(dict(grads), run.params, run.states, run.ctx)
        run.settle()
    run.ctx.step += 1


def _bare(model: nn.Module, fake: FakeTensorMode, device: torch.device) -> nn.Module:
    """The model with parameters and buffers that have no contents; what is tied stays tied."""
    made: dict[int, Tensor] = {}

    def bare(t: Tensor) -> Tensor:
        if id(t) not in made:
            with fake:
                empty = torch.empty(t.shape, dtype=t.dtype, device=device)
            made[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
        return made[id(t)]

    for module in model.modules():
        for held in (module._parameters, module._buffers):
            held.update({n: bare(t) for n, t in held.items() if t is not None})
    return model


def _states(run: Train) -> list[Tensor]:
    return [t for s in run.states.values() for named in s.get("param", {}).values() for t in named.values()]


def _bytes(tensors: Iterable[Tensor]) -> float:
    return float(sum({id(t): t.numel() * t.element_size() for t in tensors}.values()))


def _gathered(model: nn.Module) -> float:
    """Bytes of parameters and gradients that FSDP2 holds whole, as ``sharding.shard`` asks it to: those
    outside of the blocks all along, two blocks, and one block's gradients."""
    blocks = [list(b.parameters()) for b in sharding.blocks(model)]
    inside = {id(p) for b in blocks for p in b}
    rest = [p for p in model.parameters() if id(p) not in inside]
    block = max((_bytes(b) for b in blocks), default=0.0)
    trained = max((_bytes(p for p in b if p.requires_grad) for b in blocks), default=0.0)
    return _bytes(rest) + _bytes(p for p in rest if p.requires_grad) + 2 * block + trained
