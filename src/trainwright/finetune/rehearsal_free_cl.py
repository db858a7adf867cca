"""Pulls the weights back to where the stage started, to remember without old data: L2 or EWC.

"A Closer Look at Rehearsal-Free Continual Learning" (arXiv 2203.17269). With w0 the weights at the start of
the stage, each entry that ``params`` matches has a penalty in the loss, whose gradient is added here:

    l2:   s (w - w0)^2     ->   g + 2 s (w - w0)
    ewc:  s F (w - w0)^2   ->   g + 2 s F (w - w0),     s = ``strength``.

As in the paper only the features are held: embeddings, output head and a classifier's head are not, unless
``outside`` is true. F is the diagonal of the empirical Fisher matrix, a sum over tasks: at w0 the mean, over
``fisher_rows`` rows of the domains ``old``, of the squared gradient of a row's mean loss (the authors square
the gradient of a batch and multiply by its size; a batch is a row here), plus F of the stage before. That is
in its last snapshot::

    name = "second"                                       # snapshots = [1.0] in the stage "first"
    from = { model = "first", earlier = "first@1.0", data = "corpus" }
    methods = [{ use = "rehearsal_free_cl", how = "ewc", old = ["first"] }, …]

EWC is "Overcoming catastrophic forgetting in neural networks" (arXiv 1612.00796) with a single anchor; it
reads old data once, before the first step. F is small, so that ``strength`` is on another scale there: begin
with a thousand times as much.

The paper finds that from a pretrained model plain L2 beats EWC, and does best on self-attention alone
(``params = "*self_attn*"``) together with prediction distillation (``rehearsal_free_distillation``). The
anchor is the start of this stage. It is not zero (that is weight decay), and it is not always the pretrained
weights: in a sequence of stages it moves along.

Name it before the optimizer, as a gradient; after it the pull is decoupled from the optimizer's own scaling.
It costs one copy of the weights, two with EWC. Logs ``distance``, the 2-norm of w - w0. Do not use it where
old abilities do not matter: the model learns less.

State: ``param``: start and fisher.
Errors: settings out of range; EWC without ``old``, or in a stage without a corpus; a ``from.earlier`` without
EWC; ``params`` that matches only what is outside of the features.
"""
from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core import checkpoint, parts, sharding
from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Tensors, Update
from trainwright.core.settings import Row
from trainwright.core.stage import Role
from trainwright.data.order.pack import Pack
from trainwright.lm.classes import NAME
from trainwright.lm.losses import evaluating, most_positions, output_head, token_losses, trained_tokens

FISHER = re.compile(r"state/rehearsal_free_cl\.\d+/param/(.+)/fisher")
"""How a checkpoint calls what was gathered of a parameter."""


class RehearsalFreeCl(Update):
    """Pulls the weights back to where the stage started."""

    how: Literal["l2", "ewc"] = "l2"
    """All entries alike, or each by its Fisher information on the old domains."""
    strength: float = 0.01
    """Factor of the penalty."""
    old: tuple[str, ...] = ()
    """For EWC: the domains of the stage's corpus that are not to be forgotten."""
    fisher_rows: int = 32
    """For EWC: rows of training documents that measure the Fisher information, a backward pass each."""
    length: Row = 256
    """For EWC: tokens of such a row; fewer where the model has fewer positions."""
    outside: bool = False
    """Whether embeddings, output head and a classifier's head are held too."""
    roles: ClassVar[dict[str, Role]] = {"earlier": Role(("state",))}
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {
        "how": "ewc",
        "strength": 10.0,
        "old": ["prose"],
        "fisher_rows": 3,
        "length": 32,
    }
    off: ClassVar[dict[str, Any] | None] = {"strength": 0.0}

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError(f"strength must be 0 or more, not {self.strength}")
        if self.fisher_rows < 1:
            raise ValueError(f"fisher_rows must be 1 or more, not {self.fisher_rows}")
        if (self.how == "ewc") != bool(self.old):
            raise ValueError(
                'old names the domains that EWC measures the Fisher information on: give it with how = '
                '"ewc", '
                "and only then"
            )

    def init(self, model: nn.Module, ctx: Context) -> State:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        mine = {n: trained[n] for n in match(self.params, trained)}
        if not self.outside:
            apart = outside(model)
            mine, all_of_it = {n: p for n, p in mine.items() if id(p) not in apart}, mine
            if all_of_it and not mine:
                raise UserError(
                    f"rehearsal_free_cl: params = {self.params!r} matches only embeddings or heads, which are"
                    " not held: say outside = true."
                )
        ctx.frozen.pop("earlier", None)                  # of the snapshot only its state is asked for
        if self.how == "l2" and ctx.inputs.get("earlier"):
            raise UserError('rehearsal_free_cl: from.earlier is the Fisher information of how = "ewc" alone.')
        leaves = {n: {"start": p.detach().clone()} for n, p in mine.items()}
        if self.how == "ewc":
            for n, f in self.fisher(model, mine, ctx).items():
                leaves[n]["fisher"] = f
            for n, f in earlier(mine, ctx).items():
                sharding.local(leaves[n]["fisher"]).add_(sharding.local(f))
        return {"param": leaves}

    def fisher(self, model: nn.Module, params: Tensors, ctx: Context) -> Tensors:
        """The diagonal of the empirical Fisher matrix, shaped and sharded like the parameters."""
        out = {n: torch.zeros_like(p) for n, p in params.items()}
        if not ctx.inputs.get("data"):
            if ctx.folder is None:  # a plan, before there is a corpus: only the size counts
                return out
            raise UserError(
                "rehearsal_free_cl: EWC measures the Fisher information on a corpus: give the stage one with "
                'from = { data = "CORPUS" }, or take how = "l2".'
            )
        plain, taken = replace(ctx, compile=False), Counter[str]()
        rows = Pack(length=min(self.length, most_positions(model) or self.length), domains=self.old).rows(ctx)
        many = min(self.fisher_rows, rows.total)
        for number in range(many):
            domain = rows.natural(number)
            batch = rows.batch([(domain, taken[domain])])
            taken[domain] += 1
            batch = {k: v.to(ctx.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            model.zero_grad(set_to_none=True)
            with evaluating(model), torch.enable_grad():
                (token_losses(model, batch, plain).sum() / trained_tokens(batch)).backward()
            for n, p in params.items():
                if p.grad is not None:
                    grad = sharding.local(p.grad)
                    sharding.local(out[n]).addcmul_(grad, grad, value=1 / many)
        model.zero_grad(set_to_none=True)
        return out

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        leaves = state["param"]
        names = [n for n in updates if n in leaves]
        if not names or not self.strength:
            return updates
        away = [params[n].detach() - leaves[n]["start"] for n in names]
        ctx.note("distance", sharding.norm(away))
        for n, d in zip(names, away, strict=True):
            if self.how == "ewc":
                d.mul_(leaves[n]["fisher"])
            d.mul_(2 * self.strength).add_(updates[n])
        return updates | dict(zip(names, away, strict=True))


def outside(model: nn.Module) -> set[int]:
    """The parameters, by identity, of embeddings and heads."""
    modules = [m for n, m in model.named_modules() if isinstance(m, nn.Embedding) or n == NAME]
    return {id(p) for m in (*modules, output_head(model)) if m is not None for p in m.parameters()}


def earlier(params: Tensors, ctx: Context) -> Tensors:
    """The Fisher information that the stage before has gathered, for as many of the parameters as it has."""
    if not ctx.inputs.get("earlier"):
        return {}
    folder = ctx.path("earlier") / checkpoint.STATE
    plan = parts.plan_in(folder)
    saved = {m[1]: n for n in plan if (m := FISHER.fullmatch(n))}
    found = {n: saved[n] for n in params if n in saved and plan[saved[n]].shape == tuple(params[n].shape)}
    if not found:
        raise UserError(
            f"rehearsal_free_cl: from.earlier = {ctx.names.get('earlier', [folder])[0]} has gathered no "
            "Fisher information of these parameters: it must be a snapshot of a stage with how = \"ewc\"."
        )
    tensors = {
        saved_as: sharding.empty(plan[saved_as].shape, params[n].dtype, params[n].device, params[n])
        for n, saved_as in found.items()
    }
    parts.fill(folder, plan, tensors)
    return {n: tensors[saved_as] for n, saved_as in found.items()}
