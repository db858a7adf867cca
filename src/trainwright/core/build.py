"""The one order in which a run is built: by those that run it, plan it, pair methods and check them."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from trainwright.core import checkpoint, hardware, sharding
from trainwright.core.batches import Calibration
from trainwright.core.context import Context
from trainwright.core.held import Hold
from trainwright.core.loop import Train
from trainwright.core.method import Data, Method

CALIBRATION = 64
"""Rows that a surgery may look at (``ctx.batches``) before training."""


def build(
    model: nn.Module,
    methods: Sequence[Method],
    steps: int,
    ctx: Context,
    *,
    accumulate: int = 1,
    precision: str = "fp32",
    eval_every: int = 0,
    checkpointing: bool = False,
    frozen: Hold | None = None,
    saved: Path | None = None,
    same: bool = True,
    train: type[Train] = Train,
) -> Train:
    """Precision, activation checkpointing, surgery, the journal, frozen weights in bits, sharding, states;
    a checkpoint is loaded last.

    Args:
        model: with its starting weights, untouched.
        precision: as a recipe says it, ``auto`` included.
        saved: a checkpoint to go on from.
        frozen: puts the matrices that no method trains into another form.
        same: whether its methods must be these (``checkpoint.load_into``).

    Raises:
        UserError: claims that collide or match nothing, parameters without an optimizer, a checkpoint of
            other methods.
    """
    rest = checkpoint.read(saved) if saved else {}
    readers = [m for m in methods if isinstance(m, Data)]
    ctx.policy, ctx.batches = model, Calibration(readers, ctx, CALIBRATION) if readers else None
    computed = hardware.set_precision(model, precision)
    if checkpointing:
        sharding.checkpoint_blocks(model)
    run = train(model, methods, steps, accumulate=accumulate, precision=computed, eval_every=eval_every,
                frozen=frozen, ctx=ctx)
    run.build(checkpoint.journal_of(rest) if rest else ())
    if saved:
        checkpoint.load_into(run, saved, rest, same)
    return run
