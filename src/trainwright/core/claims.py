"""Who owns what: two methods may not change one thing. Decided before any work."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from trainwright.core.errors import UserError
from trainwright.core.method import Method, Optimizer, Update


def name_all(methods: Sequence[Method]) -> list[tuple[str, Method]]:
    """``adamw.1``, ``adamw.2`` …: keys of states, counted by name, so that adding
    another method moves none."""
    seen: dict[str, int] = {}
    out = []
    for m in methods:
        seen[m.name] = seen.get(m.name, 0) + 1
        out.append((f"{m.name}.{seen[m.name]}", m))
    return out


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that are trained."""
    return {n for n, p in model.named_parameters() if p.requires_grad}


def check_alive(brought: dict[str, set[str]], model: nn.Module) -> None:
    """Refuse a surgery whose own parameters a later one has frozen: it would do nothing, unnoticed.

    Args:
        brought: for each surgery the trained parameters that it brought in.
    """
    now, there = trainable(model), {n for n, _ in model.named_parameters()}
    for name, own in brought.items():
        if own & there and not own & now:
            raise UserError(
                f"{name} would train nothing: another surgery behind it freezes all that it brings in. Leave "
                f"one "
                f"out, or name {name} last."
            )


def match(glob: str, names: Iterable[str]) -> list[str]:
    """Names that a glob meets; ``!`` in front takes all the others."""
    if glob.startswith("!"):
        return [n for n in names if not fnmatchcase(n, glob[1:])]
    return [n for n in names if fnmatchcase(n, glob)]


def check_claims(methods: Sequence[Method], model: nn.Module) -> None:
    """Claims on parameters and knobs, on the untouched model, so that the order of
    methods cannot hide a conflict.

    Raises:
        UserError: a claim that matches nothing, a thing that two methods claim, or two optimizers of one
            parameter.
    """
    names = [n for n, _ in model.named_parameters()]
    owner: dict[str, str] = {}
    for key, m in name_all(methods):
        for claim in sorted(m.claims(model)):
            if claim.startswith("step:"):
                continue
            hit = [claim] if claim.startswith("knob:") else match(claim, names)
            if not hit:
                raise UserError(f"{key} claims the parameters {claim!r}, which matches nothing; "
                                f"the model has {_some(names)}.")
            _own(owner, hit, key)
    _check_alone([(key, m) for key, m in name_all(methods) if isinstance(m, Optimizer)])


def _check_alone(optimizers: Sequence[tuple[str, Optimizer]]) -> None:
    """No two optimizers that are bound to share a parameter, whichever the surgeries will leave to train."""
    for i, (key, m) in enumerate(optimizers):
        for other, one in optimizers[:i]:
            if m.params == one.params or "*" in (m.params, one.params):
                raise UserError(
                    f"{key} and {other} both claim the step of the parameters {m.params!r}; keep one of "
                    f"them, "
                    "or limit them with 'params'."
                )


def check_steps(methods: Sequence[Method], trainable: list[str]) -> None:
    """Every trainable parameter has exactly one optimizer, and every optimizer at least one parameter.

    Raises:
        UserError: none, two, an optimizer whose ``params`` matches nothing, or an update that must come after
            the optimizer and comes before it.
    """
    owner: dict[str, str] = {}
    for key, m in name_all(methods):
        if isinstance(m, Optimizer):
            hit = match(m.params, trainable)
            if not hit:
                raise UserError(f"{key}: params = {m.params!r} matches no trainable parameter; "
                                f"there are {_some(trainable)}.")
            _own(owner, hit, key)
        elif isinstance(m, Update) and m.after:
            early = [n for n in match(m.params, trainable) if n not in owner]
            if early:
                raise UserError(f"{key} changes the step of {_some(early)}, which no optimizer before it "
                                f"takes: name {m.name} after the optimizer.")
    without = [n for n in trainable if n not in owner]
    if without:
        raise UserError(f"no optimizer takes the step of {_some(without)}: add one, for example "
                        "{ use = \"adamw\", lr = 1e-3 }, or widen its 'params'.")


def _own(owner: dict[str, str], things: list[str], key: str) -> None:
    for thing in things:
        if thing in owner:
            raise UserError(
                f"{key} and {owner[thing]} both claim {thing}; keep one of them, or limit them with "
                "'params' or 'layers'."
            )
        owner[thing] = key


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "none"
