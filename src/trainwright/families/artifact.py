"""The whole model of an artifact: its plain checkpoint, and on it what could not be folded in."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from trainwright.families import deltas
from trainwright.families.checkpoints import BACKBONE, load_plain


def load(location: str | Path, where: str, config: Any = None) -> nn.Module:
    """A model in float32 from an artifact, a checkpoint folder, or a Hub name as ``hf://NAME``.

    Args:
        where: what the model is wanted for, in front of every mistake.
        config: what the recipe says of the model; only families that are ``closed`` need it.

    Raises:
        UserError: it cannot be read, or its weights are not those that its config describes.
    """
    if isinstance(location, Path) and (location / BACKBONE).is_dir():
        model = load_plain(location / BACKBONE, where, config)
        deltas.put_back(model, location)
        return model
    return load_plain(location, where, config)
