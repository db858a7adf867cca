"""The check that another package's optimizer must pass first: three small steps, bridged and by itself."""

from __future__ import annotations

import inspect
import json
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainwright.core.method import State, Tensors
from trainwright.optim._bridge import Make, seeds, step

STEPS = 3


def trial(name: str, make: Make) -> None:
    """Check that a run with this optimizer can resume exactly.

    Raises:
        ValueError: it needs the loss again or another backward pass, keeps what cannot be saved, or would not
            resume exactly.
    """
    try:
        closure = inspect.signature(type(make([_weights()])).step).parameters.get("closure")
    except (TypeError, RuntimeError, ImportError, NotImplementedError) as error:
        raise ValueError(f"{name} cannot be built: {error}") from None
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"{name} evaluates the loss several times in a step (a closure), which a training step does not "
            "offer"
        )
    try:
        alone, bridged = _alone(make), _bridged(make)
    except Exception as error:  # another package's code: whatever it raises is the reason
        raise ValueError(f"{name} cannot take a step on gradients alone: {error}") from None
    if closure is not None and not torch.equal(alone, _alone(make, closure=True)):
        raise ValueError(
            f"{name} needs the loss inside its step (a closure), which a training step does not offer"
        )
    if not torch.equal(alone, bridged):
        raise ValueError(
            f"{name} keeps something outside its state, or sets its own learning rate: no run could resume "
            "exactly"
        )


def _alone(make: Make, closure: bool = False) -> Tensor:
    """A small matrix after some steps of one optimizer that is kept."""
    p = _weights().requires_grad_()
    with seeds([p]) as plant:
        optimizer = make([p])
        for t in range(STEPS):
            p.grad = _gradient(t)
            plant(t)
            if closure:
                optimizer.step(partial(torch.tensor, 1.0 / (1 + t)))  # type: ignore[arg-type]
            else:
                optimizer.step()
    return p.detach().nan_to_num()


def _bridged(make: Make) -> Tensor:
    """The same through our state, which goes through JSON and tensor copies after every step."""
    params: Tensors = {"p": _weights()}
    state: State = {}
    for t in range(STEPS):
        step(make, {"p": _gradient(t)}, params, state, float(make([_weights()]).param_groups[0]["lr"]), t)
        state = reloaded(state)
    return params["p"].nan_to_num()


def reloaded(tree: Any) -> Any:
    """A state as it comes back from a checkpoint."""
    if isinstance(tree, Tensor):
        return tree.clone(memory_format=torch.contiguous_format)
    if isinstance(tree, dict):
        return {str(k): reloaded(v) for k, v in tree.items()}
    return [reloaded(v) for v in tree] if isinstance(tree, (list, tuple)) else json.loads(json.dumps(tree))


def _weights() -> Tensor:
    return torch.linspace(-1, 1, 16).view(4, 4)


def _gradient(t: int) -> Tensor:
    return torch.sin(torch.arange(16.0) * (t + 1)).view(4, 4)
