"""The steps of Adam and SM3 on the deltas of a layer, where each entry has an age of its own."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from trainwright.core.method import Tensors
from trainwright.finetune.spiel._layer import SpielLinear


def stepped(grad: Tensor, layer: SpielLinear, leaf: Tensors) -> Tensor:
    """What the loop subtracts, times the learning rate."""
    settings = layer.settings
    if settings.by_gradient:
        return adam(grad, leaf["adam"], settings.beta1, settings.beta2, settings.eps)
    return sm3(grad, layer.places, leaf["rows"], leaf["columns"], settings.eps)


def adam(grad: Tensor, leaf: Tensor, beta1: float, beta2: float, eps: float) -> Tensor:
    """Adam's step where each entry has an age of its own; ``leaf`` [3, k] holds both moments and the ages."""
    m, v, age = leaf
    age.add_(1)
    m.lerp_(grad, 1 - beta1)
    v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    return (m / unbias(beta1, age)) / ((v / unbias(beta2, age)).sqrt_() + eps)


def unbias(beta: float, age: Tensor) -> Tensor:
    """1 - beta^age, without the digits that the plain difference loses."""
    return -torch.expm1(age * math.log(beta)) if beta else torch.ones_like(age)


def sm3(grad: Tensor, places: Tensor, rows: Tensor, columns: Tensor, eps: float) -> Tensor:
    """SM3's step at ``places``; ``rows`` [out, 1] and ``columns`` [in, 1] keep the largest sums."""
    i, j = (places // len(columns)).long(), (places % len(columns)).long()
    total = torch.minimum(rows[i, 0], columns[j, 0]).addcmul_(grad, grad)
    rows[:, 0].scatter_reduce_(0, i, total, "amax")
    columns[:, 0].scatter_reduce_(0, j, total, "amax")
    return grad / (total + eps).sqrt_()
