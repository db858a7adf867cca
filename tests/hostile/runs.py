"""One step of a method on the battery's tiny stage, in the place of its kind."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from trainwright.check import documents as made_up
from trainwright.check import tiny
from trainwright.check.subject import logits
from trainwright.core.errors import UserError
from trainwright.core.method import Arithmetic, Curate, Decode, Method, ScalingLaw

KNOWN = {"parameters": 1e6, "tokens": 2e7}
"""What a scaling law is asked about."""


def attempt(method: Method) -> str:
    """Take one step with it; returns what the user is told where it is refused, nothing where it works."""
    folder = Path(tempfile.mkdtemp(dir=tiny.place()))
    try:
        _step(method, folder)
    except UserError as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ""


def _step(method: Method, folder: Path) -> None:
    if isinstance(method, Curate):
        from trainwright.corpus import documents

        for _ in documents.stream(method.apply(made_up.scored(made_up.table()), tiny.curating(folder))):
            pass
    elif isinstance(method, Arithmetic):
        ctx: Any = tiny.merging(folder)
        method.prepare(ctx)
        one, two, base = (torch.full((5, 7), float(n)) for n in range(3))
        method.combine("layer.weight", [one, two], base, ctx)
    elif isinstance(method, Decode):
        model, read = tiny.model().eval(), torch.arange(3, 51).view(2, 24)
        with torch.no_grad():
            method.processor(model, tiny.context(folder))(read, logits(model)[:, -1])
    elif isinstance(method, ScalingLaw):
        method.suggest(dict(KNOWN))
        method.doubts(dict(KNOWN))
    else:
        tiny.stage(method, folder, eval_every=1).run(until=1)
