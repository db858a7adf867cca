"""How updates compose: a chain per parameter, run as a fused optimizer where nothing stands behind it."""
from __future__ import annotations

from trainwright.core import sharding
from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Optimizer, State, Tensors, Update


class Chain:
    """The updates of a stage in recipe order.

    Neighbours that one method can do in one go are absorbed (AdamW takes in weight decay). An optimizer
    behind which no other update changes the same parameters takes its step in place (a fused kernel); for all
    others the loop subtracts.
    """

    def __init__(self, updates: list[tuple[str, Update]]) -> None:
        self.links: list[tuple[str, Update]] = []
        for key, method in updates:
            merged = self.links[-1][1].absorb(method) if self.links else None
            if merged is not None:
                self.links[-1] = (self.links[-1][0], merged)
            elif type(method).update is not Update.update or isinstance(method, Optimizer):
                self.links.append((key, method))
        self._matched: dict[tuple[str, int], list[str]] = {}

    def step(self, grads: Tensors, params: Tensors, states: dict[str, State], ctx: Context) -> None:
        """Turn gradients into a step on ``params``, in place."""
        updates = dict(grads)
        rates: dict[str, float] = {}
        for i, (key, method) in enumerate(self.links):
            mine = self.matched(method.params, updates)
            if not mine:
                continue
            whole = method.whole and sharding.world() > 1
            if isinstance(method, Optimizer):
                rate = method.lr * float(ctx.knobs["lr"])
                if not whole and not self.followed(i, mine):
                    own = {n: updates.pop(n) for n in mine}
                    method.apply(own, {n: params[n] for n in mine}, states[key], ctx, rate)
                    continue
                rates |= dict.fromkeys(mine, rate)
            given = {n: updates[n] for n in mine}
            run = self.run_whole if whole else self.run
            made = run(method, given, {n: params[n] for n in mine}, states[key], ctx)
            check(key, method, made, given)
            updates |= made
        for n, u in updates.items():
            params[n].sub_(u, alpha=rates[n])

    def matched(self, glob: str, names: Tensors) -> list[str]:
        """Names that a glob meets; remembered, since the same parameters come step after step."""
        if glob == "*":
            return list(names)
        key = (glob, hash(tuple(names)))
        if key not in self._matched:
            self._matched[key] = match(glob, names)
        return [n for n in self._matched[key] if n in names]

    def followed(self, i: int, mine: list[str]) -> bool:
        """Whether a later link changes one of these updates."""
        return any(method.params == "*" or match(method.params, mine) for _, method in self.links[i + 1:])

    @staticmethod
    def run(method: Update, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return method.update(updates, params, state, ctx)

    @staticmethod
    def run_whole(method: Update, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        """The same on unsharded tensors; its per-parameter state is sharded again afterwards."""
        sharded, ctx.grads = ctx.grads, {n: sharding.full(ctx.grads[n]) for n in updates if n in ctx.grads}
        around = state | {"param": each(state.get("param", {}), lambda _, t: sharding.full(t))}
        out = method.update({n: sharding.full(u) for n, u in updates.items()},
                            {n: sharding.full(p) for n, p in params.items()}, around, ctx)
        cut = each(around["param"], lambda n, t: sharding.like(t, params[n]) if n in params else t)
        state.update(around | {"param": cut})
        ctx.grads = sharded
        return {n: sharding.like(u, params[n]) for n, u in out.items()}


def check(key: str, method: Update, made: Tensors, given: Tensors) -> None:
    """Refuse updates that would be broadcast, or that are none of those asked for."""
    for name, update in made.items():
        if name not in given:
            raise UserError(f"{key} returns an update of {name}, which it was not given.")
        if update.shape != given[name].shape:
            raise UserError(f"{key} returns an update of {name} of the shape {tuple(update.shape)}, not "
                            f"{tuple(given[name].shape)}.")
    left = next((n for n in given if n not in made), None) if isinstance(method, Optimizer) else None
    if left is not None:
        raise UserError(f"{key} returns no update of {left}, whose step it owns.")


def each(leaves: dict[str, Tensors], fn: object) -> dict[str, Tensors]:
    return {n: {leaf: fn(n, t) for leaf, t in named.items()}  # type: ignore[operator]
            for n, named in leaves.items()}
