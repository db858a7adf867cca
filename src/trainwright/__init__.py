"""Trainwright: one recipe file describes a model's whole training life; any published method drops into any stage.

>>> import trainwright as tw
>>> recipe = tw.load("recipes/quickstart.toml")
>>> print(tw.plan(recipe))
>>> life = tw.run(recipe)
>>> model = life["adapt"].model()
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainwright.api import Artifact, Recipe, Store, Train, UserError, comparison, load, methods, plan, run

__version__ = "0.1.0"
__all__ = ["Artifact", "Recipe", "Store", "Train", "UserError", "comparison", "load", "methods", "plan", "run"]


def __getattr__(name: str) -> Any:
    """Names are imported when they are asked for, so that ``import trainwright`` does not import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'trainwright' has no attribute {name!r}")
    from trainwright import api
    return getattr(api, name)
