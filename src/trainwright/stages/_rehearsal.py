"""Before the first step: what is shown and counted on rows of which the run then knows nothing."""
from __future__ import annotations

import copy
from collections.abc import Callable

from trainwright.core import flops
from trainwright.core.batches import cut
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Data, Objective, Weigh

COUNTED = 512
"""Tokens whose FLOPs are counted where steps are compiled, about: the memory of a whole micro-batch, not
compiled, would be the most that the run takes."""


def rehearse(run: Train, say: Callable[[str], None]) -> None:
    """Before the first step: show an example; where steps are compiled, count the FLOPs of some rows that
    are not. It leaves no trace in the run."""
    ctx, data = run.ctx, run.of(Data)
    asked = [*data, *run.of(Objective), *run.of(Weigh)]
    kept, compiled = {k: copy.deepcopy(run.states[k]) for k, _ in asked}, ctx.compile
    ctx.compile = False
    batch = run.pull()
    for _, m in data:
        if text := m.preview(batch, ctx):
            say(text)
    if compiled:
        parts = cut(batch, run.accumulate)
        micro = next((b for b in parts if all(m.count(b) for _, m in run.of(Objective))), parts[0])
        run.ledger.flops_per_token = _flops_per_token(run, micro)
    run.states |= kept
    ctx.compile = compiled


def _flops_per_token(run: Train, micro: Batch) -> float:
    """Counted on some rows of a micro-batch, or on all where an objective looks at several at once; 0 where
    what is read are no tokens."""
    tokens = rows = 0
    if "input_ids" in micro:
        tokens, rows = micro["input_ids"].numel(), len(micro["input_ids"])
    if not tokens:
        return 0.0
    parts = 1
    while rows % (2 * parts) == 0 and tokens > parts * COUNTED:
        parts *= 2
    few = next((b for b in cut(micro, parts) if all(m.count(b) for _, m in run.of(Objective))), micro)
    try:
        return _counted(run, few)
    except (UserError, KeyError):
        return _counted(run, micro)


def _counted(run: Train, batch: Batch) -> float:
    """FLOPs of a token of a batch."""
    with flops.counting() as count:
        run.gradients([batch])
    return count.flops / batch["input_ids"].numel()
