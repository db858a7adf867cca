"""Trainwright: one recipe file holds a model's whole training life; any published method drops into it.

>>> import trainwright as tw
>>> recipe = tw.load("recipes/quickstart.toml")
>>> print(tw.plan(recipe))
>>> life = tw.run(recipe)
>>> model = life["adapt"].model()
"""
from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainwright.api import (
        Artifact,
        Plan,
        Recipe,
        Result,
        Store,
        Train,
        UserError,
        comparison,
        load,
        methods,
        plan,
        run,
    )

__version__ = "0.1.0"
__all__ = ["Artifact", "Plan", "Recipe", "Result", "Store", "Train", "UserError", "comparison", "load",
           "methods", "plan", "run"]

SILENCE = {
    "DO_NOT_TRACK": "1",                # Daft, huggingface_hub, MLflow
    "DAFT_ANALYTICS_ENABLED": "0",
    "SCARF_NO_ANALYTICS": "true",       # where Daft's reports go
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GRADIO_ANALYTICS_ENABLED": "False",  # Trackio's pages
}
"""What keeps our dependencies from reporting anybody's use of them, whatever the environment says. It stands
here because they read it when they are imported, and this package is imported before any method, an
outsider's too."""

os.environ.update(SILENCE)
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
os.environ.setdefault("USE_HUB_KERNELS", "NO")  # transformers would fetch programs for some types of models


def __getattr__(name: str) -> Any:
    """Names are imported when they are asked for, so that ``import trainwright`` does not import torch."""
    if name not in __all__:
        raise AttributeError(f"module 'trainwright' has no attribute {name!r}")
    from trainwright import api
    return getattr(api, name)


def __dir__() -> list[str]:
    """What there is, before any of it was asked for: what an editor or a notebook completes."""
    return sorted({*globals(), *__all__})
