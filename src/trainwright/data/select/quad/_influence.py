"""Influence of a document on a model's loss on a target: gradients of attention layers, an inverse Hessian.

For a linear layer that reads a_t and returns y_t at position t, the gradient of a loss with respect to its
weight [out, in] is sum_t g_t a_t' with g_t = dloss/dy_t. The layer's Hessian H is the empirical Fisher
matrix over pieces of the target, approximated in the Kronecker-factored eigenbasis ("Fast Approximate
Natural Gradient Descent in a Kronecker-factored Eigenbasis", EK-FAC, arXiv 1806.03884; for influence:
"Studying Large Language Model Generalization with Influence Functions", 2308.03296). With G a piece's
gradient,

    A = E[a a'] = Q_A D_A Q_A',    S = E[g g'] = Q_S D_S Q_S',    lambda = E[(Q_S' G Q_A)^2]  by entry,
    (H + d I) V    = Q_S [(Q_S' V Q_A) (lambda + d)] Q_A',
    (H + d I)^-1 V = Q_S [(Q_S' V Q_A) / (lambda + d)] Q_A'.

Layers are treated as independent. The damping d is a share of the layer's mean lambda, since gradients have
no scale of their own. The influence of a piece of text is the mean over the target's pieces v of the cosine
of its gradient G and (H + d I)^-1 G_v, all layers together. That is one product with the mean of the
normalized (H + d I)^-1 G_v, so nothing needs to be projected to keep it. Statistics are float64: small
eigenvalues matter. """
from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED
from trainwright.corpus.tokens import Document
from trainwright.lm.layers import in_out, linear_layers
from trainwright.lm.losses import evaluating, token_losses
from trainwright.lm.scoring import Piece, Reader, read_blocks

if TYPE_CHECKING:
    from daft import DataFrame

Gradient = dict[str, Tensor]
"""[out, in], float64, by layer."""


@dataclass(frozen=True)
class Curvature:
    """H of one layer in its Kronecker-factored eigenbasis."""

    inputs: Tensor
    """Q_A, [in, in], an eigenvector a column."""
    outputs: Tensor
    """Q_S, [out, out]."""
    eigenvalues: Tensor
    """lambda, [out, in]."""
    damping: float

    def rotated(self, v: Tensor) -> Tensor:
        return self.outputs.T @ v @ self.inputs

    def product(self, v: Tensor) -> Tensor:
        """(H + damping I) v, of a matrix [out, in]."""
        return self.outputs @ (self.rotated(v) * (self.eigenvalues + self.damping)) @ self.inputs.T

    def inverse(self, v: Tensor) -> Tensor:
        """(H + damping I)^-1 v."""
        return self.outputs @ (self.rotated(v) / (self.eigenvalues + self.damping)) @ self.inputs.T


class Gradients:
    """A model that is asked for the gradients of its attention layers, piece by piece."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.layers = linear_layers(reader.model, "attention")
        for layer in self.layers.values():
            # so that there is a graph; weights get no gradient
            layer.weight.requires_grad_(True)

    def batches(self,
                pieces: Sequence[Piece]) -> Iterator[tuple[list[int], dict[str, tuple[Tensor, Tensor]]]]:
        """For each batch the documents of its pieces, and of each layer the inputs [R, L, in] and the
        gradients [R, L, out] of each piece's mean loss with respect to its outputs."""
        for numbers, batch in self.reader.batches(pieces):
            with evaluating(self.reader.model), _recorded(self.layers) as seen, torch.enable_grad():
                losses = token_losses(self.reader.model, batch, self.reader.ctx)
                counts = (batch["targets"] != UNTRAINED).sum(1).clamp(min=1)
                slopes = torch.autograd.grad((losses.sum(1) / counts).sum(),
                                             [out for _, out in seen.values()])
            both = zip(seen.items(), slopes, strict=True)
            yield numbers.tolist(), {name: (a.double(), g.double()) for (name, (a, _)), g in both}

    def each(self, pieces: Sequence[Piece]) -> Iterator[tuple[int, Gradient]]:
        """The document and the gradient of each piece."""
        for numbers, seen in self.batches(pieces):
            for row, number in enumerate(numbers):
                yield number, {name: g[row].T @ a[row] for name, (a, g) in seen.items()}

    def curvature(self, pieces: Sequence[Piece], damping: float) -> dict[str, Curvature]:
        """H of each layer.

        Args:
            damping: as a share of a layer's mean eigenvalue.
        """
        bases = self._bases(pieces)
        total = {name: torch.zeros(len(s), len(a), dtype=torch.float64, device=a.device)
                 for name, (a, s) in bases.items()}
        for _, gradient in self.each(pieces):
            for name, (a, s) in bases.items():
                total[name] += (s.T @ gradient[name] @ a).square()
        found = {}
        for name, (a, s) in bases.items():
            eigenvalues = total[name] / len(pieces)
            found[name] = Curvature(a, s, eigenvalues,
                                    max(damping * float(eigenvalues.mean()), torch.finfo(torch.float64).tiny))
        return found

    def _bases(self, pieces: Sequence[Piece]) -> dict[str, tuple[Tensor, Tensor]]:
        sums = {}
        for name, layer in self.layers.items():
            n_in, n_out = in_out(layer)
            sums[name] = tuple(torch.zeros(n, n, dtype=torch.float64, device=layer.weight.device)
                               for n in (n_in, n_out))
        for _, seen in self.batches(pieces):
            for name, (a, g) in seen.items():
                used = g.abs().sum(-1) > 0                               # padding has no gradient
                sums[name][0].addmm_(a[used].T, a[used])
                sums[name][1].addmm_(g[used].T, g[used])
        if not all(bool(s.isfinite().all()) for both in sums.values() for s in both):
            raise UserError("the gradients of from.model on from.target are no numbers: the model went wrong "
                            "in training.")
        return {name: (torch.linalg.eigh(a).eigenvectors, torch.linalg.eigh(s).eigenvectors)
                for name, (a, s) in sums.items()}


def towards(gradients: Gradients, target: Sequence[Document], damping: float, method: str) -> Gradient:
    """The mean over the target's pieces of (H + d I)^-1 G, each of length 1 over all layers; from the
    scratch where it was made before.

    Raises:
        UserError: the target has nothing to predict, or gradients that are no numbers.
    """
    assert gradients.reader.ctx.folder is not None
    file = gradients.reader.ctx.folder / f"towards-{gradients.reader.key}.safetensors"
    if not file.is_file():
        pieces = gradients.reader.encode(target)
        made = mean_direction(gradients, pieces, gradients.curvature(pieces, damping)) if pieces else {}
        if not norm(made) > 0:
            raise UserError(f"{method}: the {len(target):,} documents of from.target have no gradient: there "
                            "is nothing to learn in them.")
        new = file.with_suffix(f".{os.getpid()}")
        save_file({name: t.contiguous() for name, t in made.items()}, new)
        os.replace(new, file)
    found: Gradient = load_file(file, str(gradients.reader.ctx.device))
    return found


def mean_direction(gradients: Gradients, pieces: Sequence[Piece],
                   curvature: dict[str, Curvature]) -> Gradient:
    """The mean over the pieces of (H + d I)^-1 G, each of length 1 over all layers together."""
    mean: Gradient = {name: torch.zeros_like(one.eigenvalues) for name, one in curvature.items()}
    for _, gradient in gradients.each(pieces):
        turned = {name: one.inverse(gradient[name]) for name, one in curvature.items()}
        length = norm(turned)
        for name, one in turned.items():
            mean[name] += one / (length * len(pieces)) if length else 0
    return mean


def influences(documents: DataFrame, gradients: Gradients, aim: Gradient, method: str) -> dict[str, float]:
    """The influence of each document by its id: the mean over its pieces, 0 for one with nothing to predict.

    Raises:
        UserError: one that is no number.
    """
    table = read_blocks(documents, gradients.reader, "influence", partial(_influence, gradients, aim))
    found = dict(zip(table["id"].to_pylist(), table["influence"].to_pylist(), strict=True))
    if wrong := sorted(name for name, value in found.items() if not math.isfinite(value)):
        raise UserError(f"{method}: the gradients of {len(wrong):,} documents are no numbers, the first "
                        f"{wrong[0]!r}: the model went wrong in training.")
    return found


def _influence(gradients: Gradients, aim: Gradient, block: Sequence[Document]) -> dict[str, Any]:
    sums, pieces = np.zeros(len(block)), np.zeros(len(block))
    for number, gradient in gradients.each(gradients.reader.encode(block)):
        length = norm(gradient)
        sums[number] += sum(float((gradient[n] * t).sum()) for n, t in aim.items()) / length if length else 0
        pieces[number] += 1
    return {"influence": sums / np.maximum(pieces, 1)}


def norm(gradient: Gradient) -> float:
    """Length over all layers."""
    return math.sqrt(sum(float(one.square().sum()) for one in gradient.values()))


@contextmanager
def _recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """While it lasts, each forward pass leaves the inputs and the outputs of the layers."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def at(name: str) -> Any:
        def record(module: nn.Module, given: Any, out: Tensor) -> None:
            seen[name] = given[0].detach(), out
        return record

    hooks = [layer.register_forward_hook(at(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
