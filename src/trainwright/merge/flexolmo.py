"""FlexOlmo: experts trained apart, each on data that never leave their owner, join a model without training.

"FlexOlmo: Open Language Models for Flexible Data Use" (arXiv 2507.07024). The feed-forward layer E_0 of each
block of a public model becomes a mixture of it and of experts E_1 … E_n. Of a position's input x [d],

    w = softmax(0, r_1 x + min(b_1, 0), …, r_n x + min(b_n, 0)),    y = sum of w_i E_i(x)

over the ``active`` largest w_i, which are not scaled up to 1. In two steps:

    1. each owner   a stage of training with this method and ``from.data`` of his own: beside E_0, a copy of
                    it is trained, with its row r [d] and its bias b; everything else is frozen. Both experts
                    act at each position, so that what is learned fits to what all owners have in common.
    2. joined       a stage of kind ``transform`` with ``from.model`` the public model and ``from.owners`` the
                    stages of step 1. Nothing is trained. An owner opts out by ``without = ["NAME"]``.

Routing is informed by the domain: r starts as the direction of the mean final hidden state of the owner's
texts less that of the texts of the domains ``public``, which all owners have, so that a new owner needs to
know of no other. The public row is 0: only differences of rows act. Left out are the training of the router
afterwards on shared data, and its z-loss; the paper's embeddings of documents come from another model.

Take no weight decay on what is trained. It is not folded: the public model is in ``backbone/``, the experts
are in ``adapter/``. Joined, the mixture computes ``active`` feed-forward layers at each position.

Not for owners that train what they share (attention, embeddings): their experts then fit to another model.

Errors: a block without exactly one feed-forward layer; owners of another public model; a name in ``without``
that is no owner.
"""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import UNTRAINED, Surgery
from trainwright.core.settings import Count
from trainwright.core.stage import MODELS, Role
from trainwright.families.tensors import Reader
from trainwright.lm import deltas
from trainwright.lm.layers import LINEAR, Carrier, block_names, freeze, installed, put, roles
from trainwright.lm.losses import body_states, field, positions
from trainwright.merge._data import Sample

FILE = "flexolmo.safetensors"
BACKBONE = "backbone"


class Flexolmo(Surgery):
    """Experts beside the feed-forward layers of a public model."""

    public: tuple[str, ...] = ()
    """Domains of from.data that all owners have; none: the rows start at 0."""
    sample: Sample = Sample()
    """What is read for the rows."""
    active: Count = 2
    """Experts that act at a position, the public one among them if it is likely enough."""
    without: tuple[str, ...] = ()
    """Owners that opt out, by their names in from.owners."""
    folds: ClassVar[bool] = False
    roles: ClassVar[dict[str, Role]] = {"owners": MODELS}
    example: ClassVar[dict[str, Any]] = {"sample": {"rows": 4, "length": 32, "batch": 4}, "public": ["prose"]}
    expected_failures: ClassVar[dict[str, str]] = {
        "two_ranks_make_one_run": "while experts are equal Adam makes steps of what rounding leaves"}

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.*" for name in feed_forwards(model)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        found, owners = feed_forwards(model), self._owners(model, ctx)
        row = torch.zeros(0) if owners else self.direction(model, ctx)
        freeze(model)
        for name, mlp in found.items():
            put(model, name, Experts(mlp, self, max(1, len(owners)), row.to(next(mlp.parameters()).device)))
        for number, tensors in enumerate(owners):
            for name, mixture in installed(model, Experts, self).items():
                mixture.take(number, {n.removeprefix(f"{name}."): t for n, t in tensors.items()
                                      if n.startswith(f"{name}.")})

    def _owners(self, model: nn.Module, ctx: Context) -> list[dict[str, Tensor]]:
        """What each owner who takes part has learned."""
        folders, names = ctx.inputs.get("owners", []), ctx.names.get("owners", [])
        for name in self.without:
            if name not in names:
                raise UserError(f"flexolmo: without names {name!r}, which is no owner{suggest(name, names)}.")
        found = []
        for folder, name in zip(folders, names, strict=True):
            if name in self.without:
                continue
            if not (folder / "adapter" / FILE).is_file():
                raise UserError(f"flexolmo: {name} is no owner: it was not trained with flexolmo.")
            check_public(model, folder / BACKBONE, name)
            found.append(load_file(folder / "adapter" / FILE))
        if folders and not found:
            raise UserError("flexolmo: without leaves no owner.")
        return found

    @torch.no_grad()
    def direction(self, model: nn.Module, ctx: Context) -> Tensor:
        """r at the start [d]: of length 1, or 0 where there is nothing to go by."""
        width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        if not self.public or ctx.batches is None or next(model.parameters()).is_meta:
            return torch.zeros(width)
        shared = Sample(rows=self.sample.rows, length=self.sample.length, batch=self.sample.batch,
                        domains=self.public)
        others = [b for i in range(len(self.public)) for b in shared.of(model, i, ctx)]
        mine = mean_state(model, list(ctx.batches())) - mean_state(model, others)
        return F.normalize(mine, dim=0)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Takes the experts out: what is left is the public model."""
        for name, mixture in installed(model, Experts, self).items():
            put(model, name, mixture.experts[0])

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{name}.{part}": t for name, mixture in installed(model, Experts, self).items()
                for part, t in mixture.state_dict().items() if not part.startswith("experts.0.")}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``flexolmo.safetensors``: of each block ``rows`` [n, d], ``lean`` [n] and ``experts.1`` to n."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        if (folder / FILE).is_file():                                # joined ones have more experts than one
            held = load_file(folder / FILE)
            for name, mixture in installed(model, Experts, self).items():
                mixture.grow(len(held.get(f"{name}.lean", [0])))
        deltas.read(self.learned(model), folder / FILE)


class Experts(Carrier):
    """A public feed-forward layer and n others."""

    def __init__(self, public: nn.Module, settings: Flexolmo, many: int, row: Tensor) -> None:
        super().__init__()
        self.settings = settings
        width = next(m for m in public.modules() if type(m) in LINEAR)
        like = next(public.parameters())
        size = row if len(row) else torch.zeros(_inputs(width), device=like.device)
        self.experts = nn.ModuleList([public, *(copy.deepcopy(public) for _ in range(many))])
        self.experts[0].requires_grad_(False)
        self.experts[1:].requires_grad_(True)
        self.rows = nn.Parameter(size.to(like).expand(many, -1).clone())
        self.lean = nn.Parameter(torch.zeros(many, dtype=like.dtype, device=like.device))
        self.train(public.training)

    def grow(self, many: int) -> None:
        """As many experts beside the public one, as copies of it."""
        more = Experts(self.experts[0], self.settings, many, self.rows.detach()[0])
        trained = self.rows.requires_grad
        self.experts, self.rows, self.lean = more.experts, more.rows, more.lean
        self.experts[1:].requires_grad_(trained)

    @torch.no_grad()
    def take(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Give the expert of this number, from 0, what an owner has learned."""
        self.rows[number].copy_(tensors["rows"][0])
        self.lean[number].copy_(tensors["lean"][0])
        own = {n.removeprefix("experts.1."): t for n, t in tensors.items() if n.startswith("experts.1.")}
        self.experts[number + 1].load_state_dict(own)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        scores = flat.float() @ self.rows.float().T + self.lean.float().clamp(max=0)
        weights = F.pad(scores, (1, 0)).softmax(-1)
        if self.settings.active < weights.shape[1]:
            least = weights.topk(self.settings.active).values[:, -1:]
            weights = torch.where(weights >= least, weights, 0)
        out = torch.zeros_like(flat)
        for expert, weight in zip(self.experts, weights.unbind(1), strict=True):
            chosen = weight.detach().nonzero()[:, 0]
            out = out.index_add(0, chosen, (expert(flat[chosen]) * weight[chosen, None]).to(out.dtype))
        return out.view_as(x)


def _inputs(layer: Any) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.nx)


def feed_forwards(model: nn.Module) -> dict[str, nn.Module]:
    """The feed-forward layer of each block, by name.

    Raises:
        UserError: a block has none, or several.
    """
    layers = [n for n, m in model.named_modules() if type(m) in LINEAR]
    role, found = roles(model, layers), {}
    for block in block_names(model):
        own = [n for n in layers if n.startswith(f"{block}.") and role.get(n) == "mlp"]
        inside = {n.rpartition(".")[0] for n in own}
        if len(inside) != 1 or block in inside:
            raise UserError(f"flexolmo: {block} has no feed-forward layer that is one module of linear "
                            "layers.")
        name = next(iter(inside))
        found[name] = model.get_submodule(name)
    if not found:
        raise UserError(f"flexolmo: a {type(model).__name__} has no repeated blocks.")
    return found


@torch.no_grad()
def mean_state(model: nn.Module, batches: list[Any]) -> Tensor:
    """The mean final hidden state [d] over the positions that are learned, on all ranks; float32, on
    the CPU."""
    total, many = torch.zeros(()), torch.zeros(())
    for batch in batches:
        there = field(batch, "targets") != UNTRAINED
        states = body_states(model, batch["input_ids"], positions(model, batch))[there]
        total, many = total.to(states.device) + states.float().sum(0), many.to(states.device) + len(states)
    return (sharding.summed(total) / sharding.summed(many).clamp(min=1)).cpu()


def check_public(model: nn.Module, folder: Path, name: str) -> None:
    """Refuse an owner whose shared weights are not those of the public model, to the bit."""
    reader, tied = Reader(folder, f"flexolmo: {name}"), dict(model.named_parameters(remove_duplicate=False))
    for one in reader.names:
        if one not in tied or not torch.equal(reader.get(one), tied[one].detach().cpu()):
            raise UserError(f"flexolmo: the owner {name} comes from another public model: {one} differs.")
