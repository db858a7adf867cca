"""The memory of another package's optimizer as our state: read out after a step, restored before the next.

Tensors that belong to a parameter go to ``param``; everything else (counters, numbers of the parameter
group, tensors on the CPU whose parameter is elsewhere) goes to ``shared`` as plain lists and tables.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainwright.core.method import State, Tensors

INNER = ("state", "param_groups", "defaults")
Scalars = tuple[dict[str, Any], dict[str, Any]]


def restore(optimizer: Optimizer, held: Tensors, state: State) -> None:
    """Restore an optimizer's memory."""
    shared = state.get("shared", {})
    trees, tensors = shared.get("params", {}), shared.get("tensors", {})
    for n, p in held.items():
        leaves = state.get("param", {}).get(n)
        if n in trees or leaves is not None:
            optimizer.state[p] = decode(trees[n], leaves or {}) if n in trees else dict(leaves)
    for key, value in decode(shared["keys"], tensors).items() if "keys" in shared else ():
        optimizer.state[key] = value
    for key, value in decode(shared["group"], tensors).items() if "group" in shared else ():
        optimizer.param_groups[0][key] = value
    for key, value in decode(shared["own"], tensors).items() if "own" in shared else ():
        setattr(optimizer, key, value)


def save(optimizer: Optimizer, held: Tensors, state: State, fresh: Scalars) -> None:
    """Save an optimizer's memory: only what differs from a new one."""
    shared, leaves = state.setdefault("shared", {}), state.setdefault("param", {})
    trees = shared.setdefault("params", {})
    for n, p in held.items():
        if p not in optimizer.state:
            continue
        value = optimizer.state[p]
        leaves[n] = {}
        tree = encode(value, leaves[n], "")
        trees.pop(n, None)
        if not (isinstance(value, dict) and all(_plain(t, p) for t in value.values())):
            trees[n] = tree
    sink: Tensors = {}
    shared["tensors"] = sink
    shared["keys"] = encode(
        {k: v for k, v in optimizer.state.items() if not isinstance(k, Tensor)}, sink, "keys"
    )
    for name, now, before in zip(("group", "own"), scalars(optimizer), fresh, strict=True):
        changed = {k: v for k, v in now.items() if k not in before or not same(v, before[k])}
        shared[name] = encode(changed, sink, name)


def encode(value: Any, sink: Tensors, path: str) -> Any:
    """``value`` as plain lists and tables; its tensors go to ``sink``, keyed by their path.

    Raises:
        ValueError: it holds something that is neither a tensor nor plain.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        sink[path] = value
        return {
            "is": "tensor",
            "of": path,
            "cpu": value.device.type == "cpu",
            "strides": list(value.stride()),
        }
    if type(value) is dict:
        places = [k if isinstance(k, str) and not path else f"{path}.{i}" for i, k in enumerate(value)]
        return {
            "is": "dict",
            "of": [[k, encode(v, sink, at)] for (k, v), at in zip(value.items(), places, strict=True)],
        }
    if type(value) in (list, tuple, deque):
        of = [encode(v, sink, f"{path}.{i}") for i, v in enumerate(value)]
        return {
            "is": type(value).__name__,
            "of": of,
            "most": value.maxlen if isinstance(value, deque) else None,
        }
    raise ValueError(f"it remembers a {type(value).__name__}, which cannot be saved without pickling")


def decode(tree: Any, sink: Tensors) -> Any:
    """What ``encode`` was given."""
    if not isinstance(tree, dict):
        return tree
    kind, of = tree["is"], tree["of"]
    if kind == "tensor":
        return laid(sink[of].cpu() if tree["cpu"] else sink[of], tree["strides"])
    if kind == "dict":
        return {k: decode(v, sink) for k, v in of}
    made = [decode(v, sink) for v in of]
    return deque(made, tree["most"]) if kind == "deque" else tuple(made) if kind == "tuple" else made


def laid(t: Tensor, strides: list[int]) -> Tensor:
    """``t`` with these strides: a checkpoint stores it contiguously, and products then round differently."""
    if list(t.stride()) == strides or 0 in strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)


def _plain(leaf: Any, p: Tensor) -> bool:
    """Whether a leaf is restored exactly by its tensor alone."""
    return isinstance(leaf, Tensor) and leaf.device == p.device and leaf.is_contiguous()


def same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, Tensor):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) if isinstance(a, (bool, int, float, str)) else False


def scalars(optimizer: Optimizer) -> Scalars:
    """What an optimizer keeps outside the state of its parameters: in its group, and on itself."""
    group = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "lr")}
    return group, {
        k: v for k, v in vars(optimizer).items() if k not in INNER and not k.startswith("_optimizer_")
    }
