"""SST: pretrain matrices as singular value decompositions: all values, and a few pairs of vectors at a time.

"Sparse Spectral Training and Inference on Euclidean and Hyperbolic Neural Networks" (arXiv 2405.15481). A
matrix W [out, in] is replaced by its m = min(in, out) triples, W = sum_i S_i u_i v_i^T. With G = dL/dW,

    all values:      dS_i = u_i^T G v_i,                  S <- max(S, 0)                       after each step
    trained pairs:   du_i = G v_i,   dv_i = G^T u_i,      u_i, v_i <- divided by their length  after each step

The true gradients of the vectors have a factor S_i, which would keep small directions from moving; it is
omitted. Every ``interval`` steps ``rank`` of the m pairs are drawn without replacement, pair i with
probability (1/m + S_i / sum S) / 2, and only these are trained until the next draw. At a draw the
optimizer's memory (moments, and the age that Adam divides by) follows the entries of S and starts over for
the vectors; steps of S, u and v then grow to full length over ``warmup_steps``. After ceil(m / rank) draws
of a layer its matrix is decomposed again, which makes the vectors orthogonal and changes the matrix only
by rounding; the memory of S then starts over too.

Before the first step the model computes what it did before, and its export is a plain model. All other
parameters train as usual. Gradients and optimizer states have rank (in + out) + m numbers per matrix
instead of in out; the factors themselves take (in + out + 1) m, twice the size of a square matrix. W is
assembled for a product, discarded, and assembled again for the gradients: about three more products of
out, in and m per layer and micro-batch. Weight decay has no effect on the vectors, whose length is fixed.

Written from the paper without its code. The paper gives rank 64 for OPT of 125 M parameters. The interval
of 200, the m / rank draws of a round and the length of the warm-up are not certain; the paper resets
optimizer states at each draw, and we do not know to what extent it resets those of S.

Do not use it where memory for the weights is short (see ``sltrain``), or for a stage of only a few draws.

Errors: ``layers`` matches no linear layer, or one that is taken or tied.
State: ``param``: before (during the warm-up).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core import sharding
from trainwright.core.context import Context, View
from trainwright.core.method import Command, Controller, Operate, ParamMap, State, Surgery, Tensors, Update
from trainwright.lm.factored import FactoredLinear
from trainwright.lm.layers import as_linear_weight, linear_layers, put
from trainwright.lm.schedules import check_parts, steps_of, warmup_factor

Map = dict[str, tuple[str, Callable[[Tensor], Tensor]]]
Factors = tuple[Tensor, Tensor, Tensor]
"""U [out, m], S [m] and V [in, m], m = min(in, out)."""
TRAINED = ("U", "S", "V")


class Sst(Surgery, Controller, Update):
    """Surgery: decomposes matrices. Controller: requests the next draw. Update: keeps vectors at length 1."""

    rank: int = 64
    """Pairs of singular vectors per matrix that train at a time."""
    interval: int | float = 200
    """Interval of draws: a number of steps (20) or a share of the stage's steps (0.2, 1.0)."""
    warmup_steps: int = 10
    """Steps after each draw over which updates of the factors grow to full length; at most the interval."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    params: ClassVar[str] = "*.[USV]"  # type: ignore[misc]
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"rank": 8, "interval": 2, "warmup_steps": 2}

    def __post_init__(self) -> None:
        check_parts(interval=self.interval)
        if self.rank < 1 or not self.interval or self.warmup_steps < 0:
            raise ValueError(
                f"rank must be 1 or more, interval above 0 and warmup_steps 0 or more, not {self.rank}, "
                f"{self.interval} and {self.warmup_steps}."
            )

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def every(self, steps: int) -> int:
        """Steps between two draws."""
        number: int = max(1, steps_of(self.interval, steps))
        return number

    def tick(self, view: View, state: State) -> Iterable[Command]:
        if view.step and view.step % self.every(view.steps) == 0:
            yield Operate(self)

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers = self.mine(model)
        for name, layer in linear_layers(model, self.layers).items() if not layers else ():
            put(model, name, SpectralLinear(layer, self, self.rank, ctx.rng(f"sst/{name}", at=0)))
        if not layers or ctx.policy is None:
            return None  # a journal is replayed before the run: its draws are loaded with the weights
        return self.draw(model, layers, ctx)

    def mine(self, model: nn.Module) -> dict[str, SpectralLinear]:
        """The layers that this instance of the method has put in."""
        return {
            n: m for n, m in model.named_modules() if isinstance(m, SpectralLinear) and m.settings == self
        }

    @torch.no_grad()
    def draw(self, model: nn.Module, layers: dict[str, SpectralLinear], ctx: Context) -> ParamMap:
        """Draw the pairs to train next; at the end of a round decompose first."""
        params: Tensors = dict(model.named_parameters())
        number, moved = ctx.step // self.every(ctx.steps), Map({n: (n, _same) for n in params})
        for name, layer in layers.items():
            (U, S, V), again = layer.factors(), number % layer.draws == 0
            if again:
                U, S, V = decompose((U * S) @ V.T)
            order = drawn(S, layer.rank, ctx.rng(f"sst/{name}"))
            parts = layer.parts((U[:, order], S[order], V[:, order]))
            new = {f"{name}.{part}": t for part, t in parts.items()}
            sharding.write(model, params, {n: sharding.like(t, params[n]) for n, t in new.items()})
            moved = {n: of for n, of in moved.items() if n not in new}
            if not again:
                moved[f"{name}.S"] = f"{name}.S", partial(_ordered, order)
        return ParamMap(moved)

    def init(self, model: nn.Module, ctx: Context) -> State:
        names = [f"{name}.{part}" for name in self.mine(model) for part in TRAINED]
        before = {
            n: {"before": model.get_parameter(n).detach().clone()} for n in names if self.warmup_steps > 1
        }
        return {"param": before, "shared": {"trained": names}}

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        every = self.every(ctx.steps)
        part = warmup_factor(ctx.step % every, min(self.warmup_steps, every))
        for name in state["shared"]["trained"]:
            p, leaf = params[name], state["param"].get(name)
            here = sharding.local(p.detach())
            if leaf:
                here.copy_(sharding.local(leaf["before"]).lerp(here, part))
            if p.ndim == 1:
                here.clamp_(min=0)
            else:
                here.div_(sharding.full(p.detach()).norm(dim=0).clamp(min=1e-30))
            if leaf and part < 1:
                sharding.local(leaf["before"]).copy_(here)
            elif leaf:
                del state["param"][name]

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            put(model, name, layer.plain())


def _same(t: Tensor) -> Tensor:
    return t


def _ordered(order: Tensor, t: Tensor) -> Tensor:
    return sharding.like(sharding.full(t)[order], t)


def decompose(weight: Tensor) -> Factors:
    """The singular value decomposition in float32, values in descending order."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    return u, s, vh.T


def probabilities(s: Tensor) -> Tensor:
    """The probability that each pair is drawn first: half uniform, half by singular value."""
    s = s.detach().double().cpu()
    return 0.5 / len(s) + 0.5 * s / s.sum().clamp(min=1e-300)


def drawn(s: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """All indices of ``s``: first ``count`` drawn without replacement, then the others, each part sorted."""
    every = torch.arange(len(s))
    if count >= len(s) or s.device.type == "meta":
        return every
    chosen = torch.multinomial(probabilities(s), count, replacement=False, generator=rng)
    active = torch.zeros(len(s), dtype=torch.bool).index_fill(0, chosen, True)
    return torch.cat([every[active], every[~active]]).to(s.device)


class SpectralLinear(FactoredLinear):
    """y = U diag(S) V^T x + bias. The first ``rank`` columns, ``U`` and ``V``, train; the others, ``U_rest``
    and ``V_rest``, do not; S has the order of both. All are float32: bfloat16 vectors are not orthogonal."""

    U: nn.Parameter
    S: nn.Parameter
    V: nn.Parameter
    U_rest: nn.Parameter | None
    V_rest: nn.Parameter | None

    @torch.no_grad()
    def __init__(self, layer: nn.Module, settings: Any, rank: int, rng: torch.Generator) -> None:
        super().__init__(layer, settings)
        U, S, V = decompose(as_linear_weight(layer))
        self.rank, order = min(rank, len(S)), drawn(S, rank, rng)
        parts = self.parts((U[:, order], S[order], V[:, order]))
        for name in ("U", "S", "V", "U_rest", "V_rest"):
            kept = nn.Parameter(parts[name], requires_grad="rest" not in name) if name in parts else None
            self.register_parameter(name, kept)

    def parts(self, factors: Factors) -> dict[str, Tensor]:
        """The parameters for these factors, whose first columns will be trained."""
        (U, S, V), r = factors, self.rank
        rest = {"U_rest": U[:, r:], "V_rest": V[:, r:]} if r < len(S) else {}
        return {n: t.contiguous() for n, t in ({"U": U[:, :r], "S": S, "V": V[:, :r]} | rest).items()}

    def factors(self) -> Factors:
        """U, S and V, unsharded, in the order of the parameters."""
        u, v = (
            [sharding.full(p.detach()) for p in parts if p is not None]
            for parts in ((self.U, self.U_rest), (self.V, self.V_rest))
        )
        return torch.cat(u, dim=1), sharding.full(self.S.detach()), torch.cat(v, dim=1)

    @property
    def draws(self) -> int:
        """How many draws cover as many pairs as there are."""
        return math.ceil(len(self.S) / self.rank)

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        factors = self.U, self.S, self.V, self.U_rest, self.V_rest
        y: Tensor = Product.apply(rows, *factors, bias)  # type: ignore[no-untyped-call]
        return y

    def matrix(self) -> Tensor:
        return together(self.U, self.S, self.V, self.U_rest, self.V_rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, trained pairs={self.rank} of {len(self.S)}"


def together(U: Tensor, S: Tensor, V: Tensor, U_rest: Tensor | None, V_rest: Tensor | None) -> Tensor:
    """W = U diag(S) V^T, [out, in]."""
    rank = U.shape[1]
    w = (U * S[:rank]) @ V.T
    return w if U_rest is None or V_rest is None else w.addmm_(U_rest * S[rank:], V_rest.T)


class Product(torch.autograd.Function):
    """y = W x + bias for rows x, with W assembled when needed and never kept.

    With G = dL/dW the gradient of S is the true one, u_i^T G v_i; the gradients of the trained vectors are
    G v_i and G^T u_i, without the factor S_i of the true ones.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        U: Tensor,
        S: Tensor,
        V: Tensor,
        U_rest: Tensor | None,
        V_rest: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, U, S, V, U_rest, V_rest)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, together(U, S, V, U_rest, V_rest).to(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, U, S, V, U_rest, V_rest = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            dx = grad @ together(U, S, V, U_rest, V_rest).to(grad.dtype) if ctx.needs_input_grad[0] else None
            G = (grad.T @ x).to(U.dtype)
            dU, dV = G @ V, G.T @ U
            dS = (U * dU).sum(0)
            if U_rest is not None:
                dS = torch.cat([dS, (U_rest * (G @ V_rest)).sum(0)])
        return dx, dU, dS, dV, None, None, grad.sum(0) if ctx.needs_input_grad[6] else None
