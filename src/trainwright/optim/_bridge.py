"""Shared by the bridges to other packages' optimizers: find a class, and take one step with it.

For every step an optimizer is built anew, given what it remembered, stepped, and read out again
(``_remember.py``). The run therefore owns its state, and a resumed run cannot differ from an uninterrupted
one.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from trainwright.core.errors import UserError, suggest
from trainwright.core.method import State, Tensors
from trainwright.optim._remember import restore, save, scalars

Make = Callable[[list[Tensor]], Optimizer]


def find(package: ModuleType, name: str) -> type[Any]:
    """The optimizer class ``name`` of a package.

    Raises:
        ValueError: it has none; the message names the nearest.
    """
    known = {
        n: c
        for n, c in vars(package).items()
        if isinstance(c, type) and issubclass(c, Optimizer) and c is not Optimizer
    }
    if name in known:
        return known[name]
    other_case = [n for n in known if n.lower() == name.lower()]
    hint = f" (did you mean {other_case[0]!r}?)" if other_case else suggest(name, known)
    raise ValueError(f"{package.__name__} has no optimizer {name!r}{hint}")


def arguments(cls: type[Optimizer], options: dict[str, Any]) -> dict[str, Any]:
    """``options`` as arguments of ``cls``.

    Raises:
        ValueError: an option that it does not name (many take any and drop it), or one missing.
    """
    names = inspect.signature(cls).parameters
    if "params" not in names:
        raise ValueError(
            f"{cls.__name__} wraps another optimizer or the whole model; name an optimizer that takes "
            "parameters"
        )
    settable = {n: p for n, p in names.items() if p.kind is not p.VAR_KEYWORD and n not in ("params", "lr")}
    for key in options:
        if key not in settable:
            hint = ": it is a setting of its own, beside 'options'" if key == "lr" else suggest(key, settable)
            raise ValueError(f"options: {cls.__name__} has no option {key!r}{hint}")
    missing = [n for n, p in settable.items() if p.default is p.empty and n not in options]
    if missing:
        raise ValueError(f"options: {cls.__name__} needs {', '.join(missing)}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def fits(who: str, make: Make, params: list[Tensor]) -> None:
    """Check that the optimizer takes these parameters (Muon takes matrices only).

    Raises:
        UserError: with the optimizer's own words.
    """
    try:
        make(params)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{who}: {error}; limit it with 'params' to the parameters it can take and give the rest to "
            "another optimizer, for example adamw."
        ) from None


def step(make: Make, updates: Tensors, params: Tensors, state: State, lr: float, seed: int) -> None:
    """One step of the optimizer on ``params``, in place. It may overwrite ``updates``."""
    held = {n: params[n].detach().requires_grad_() for n in updates}
    for n, p in held.items():
        p.grad = updates[n]
    with seeds(list(held.values())) as plant:
        optimizer = make(list(held.values()))
        fresh = scalars(optimizer)
        restore(optimizer, held, state)
        optimizer.param_groups[0]["lr"] = lr
        plant(seed)
        optimizer.step()
    save(optimizer, held, state, fresh)


def difference(make: Make, updates: Tensors, params: Tensors, state: State, lr: float, seed: int) -> Tensors:
    """The same step as an update, of which the loop subtracts ``lr`` times; zero if the rate is zero."""
    moved = {n: params[n].detach().clone() for n in updates}
    step(make, {n: u.clone() for n, u in updates.items()}, moved, state, lr, seed)
    return {n: params[n].sub(p).div_(lr) if lr else torch.zeros_like(p) for n, p in moved.items()}


@contextmanager
def seeds(params: list[Tensor]) -> Iterator[Callable[[int], None]]:
    """Seed the global generators, from which optimizers draw projections and noise; then restore them."""
    devices = sorted({p.device.index or 0 for p in params if p.device.type == "cuda"})
    outside = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):

        def plant(seed: int) -> None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            # not torch.manual_seed, which records its caller for every absent device
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)

        try:
            plant(0)
            yield plant
        finally:
            random.setstate(outside[0])
            np.random.set_state(outside[1])
