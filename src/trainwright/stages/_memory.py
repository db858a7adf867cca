"""Memory that a training stage cannot do without, and the sentence that refuses what does not fit."""
from __future__ import annotations

import os

import torch
from torch import nn

from trainwright import families
from trainwright.core import hardware, sharding
from trainwright.core.chain import Chain
from trainwright.core.claims import name_all
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Surgery, Tensors, Update
from trainwright.life.jobs import Job
from trainwright.stages._training import stage_of
from trainwright.storage.store import Store

SMALL = 0.1
"""Part of the memory there is up to which 32 bytes a parameter need no closer look."""


def refuse(needed: float, where: str) -> None:
    """Raise a UserError where a stage needs more memory than there is."""
    available = hardware.memory_bytes()
    if needed > available:
        sizes = (
            f"about {needed / 2**30:.1f} GiB of memory are needed and {available / 2**30:.1f} GiB are there"
        )
        raise UserError(
            f"{where}: {sizes}: raise accumulate, set checkpointing = true, lower batch_tokens, or train "
            f"fewer "
            "parameters (trainwright plan --fit proposes settings)."
        )


def check(job: Job, store: Store) -> None:
    """Refuse a training stage whose ``floor`` is above the memory there is, before anything of it is made.

    A model that 32 bytes a parameter would fit many times over is not looked at more closely.
    """
    stage = stage_of(job)
    config = stage.start_config(job, store)
    if config is None:
        return
    model = families.skeleton(config, job.where)
    if 32 * _count(model) + kept(job, config) > SMALL * hardware.memory_bytes():
        refuse(floor(job, model, store), job.where)


def floor(job: Job, model: nn.Module, store: Store) -> float:
    """Bytes on this machine (on one GPU of it, where there are any) that the stage needs at the least.

    They are the float32 weights, gradients and what the updates remember, found by letting surgeries and
    updates act on tensors without data (``model`` is used up), the weights of reference and teacher, and
    ``kept``. Left out are all other activations, the logits, copies, and the process itself. What cannot act
    without data counts as nothing. Ranks share the model in training.
    """
    config = families.made_from(model)
    asked = [s for role, sources in job.inputs.items() if role not in job.stage.roles for s in sources]
    others = [s.config(store, job.where) for s in asked if s.job is None or s.job.stage.makes == "model"]
    frozen = sum(4.0 * _count(families.skeleton(c, job.where)) for c in others if c is not None)
    share = _in_training(job, model) / sharding.world() + frozen + kept(job, config)
    return share if torch.cuda.is_available() else share * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def kept(job: Job, config: object) -> float:
    """Bytes of the blocks' inputs that a micro-batch keeps for the backward pass, with and without
    checkpointing: two for each number of a hidden state. 0 where a surgery may freeze blocks, or
    where the config does not
    tell how many there are."""
    stage = stage_of(job)
    tokens, (width, depth) = stage.row_tokens(job), families.blocks_of(config)
    if tokens is None or job.of(Surgery):
        return 0.0
    rows = stage.batch_rows(job) // (sharding.world() * stage.accumulate)
    return 2.0 * rows * tokens * width * depth


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _in_training(job: Job, model: nn.Module) -> float:
    """Bytes of weights, gradients and the updates' states after a step of tensors without data."""
    ctx = Context(seed=job.seed, device=torch.device("meta"), root=job.root, knobs={"lr": 1.0})
    updates = [(k, m) for k, m in name_all(job.methods) if isinstance(m, Update)]
    states: dict[str, State] = {}
    grads: Tensors = {}
    try:
        for surgery in job.of(Surgery):
            surgery.operate(model, ctx)
        params: Tensors = dict(model.named_parameters())
        grads |= {n: torch.empty_like(p) for n, p in params.items() if p.requires_grad}
        states |= {k: m.init(model, ctx) for k, m in updates}
        with torch.no_grad():
            Chain(updates).step(dict(grads), params, states, ctx)
    # it looked at numbers, which are not there: what is known counts
    except Exception:
        pass
    return 4.0 * (_count(model) + sum(g.numel() for g in grads.values())) + _bytes_of(states)


def _bytes_of(states: dict[str, State]) -> int:
    leaves = [t for s in states.values() for named in s.get("param", {}).values() for t in named.values()]
    return sum(t.numel() * t.element_size() for t in leaves)
