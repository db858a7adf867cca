"""Distances between a model and a frozen one that reads the same tokens, for objectives that distill.

``frozen_model`` finds the other model and ``check_vocabulary`` whether it speaks of the same words;
``divergence`` compares predictions, ``distance`` the final hidden states and ``block_distance`` those behind
each block. All give one number for each position [R, L], undivided, as an objective's ``loss`` returns it.
"""
from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.lm.layers import block_names
from trainwright.lm.losses import body_states, field, positions, way_of

Kind = Literal["forward", "reverse", "jensen_shannon"]
"""A divergence, see ``compared``."""
FAR = 20.0
"""Difference of two log-probabilities above which e to it is so large that 1 does not count beside it."""
MOST = 1e4
"""Largest difference of two log-probabilities: one of a word that is ruled out is infinite."""
LEAST = 1e-12
"""Least probability of all words that are not among the likeliest."""


def frozen_model(who: str, role: str, ctx: Context) -> nn.Module:
    """The model that the stage has in a role, frozen and in evaluation mode.

    Args:
        who: the method's name, for the message.
        role: such as ``reference`` or ``teacher``.

    Raises:
        UserError: ``from`` names none.
    """
    if role not in ctx.frozen:
        raise UserError(
            f'{who}: the stage has no model to hold on to: write from = {{ {role} = "NAME", … }}, an '
            'earlier stage '
            "or the path of a checkpoint."
        )
    return ctx.frozen[role]


def divergence(model: nn.Module, other: nn.Module, batch: Batch, kind: Kind = "forward",
               temperature: float = 1.0, share: float = 0.5) -> Tensor:
    """How far the two predictions of the next token are apart [R, L], float32; 0 where nothing is learned.

    No gradient flows into the other model. Where one of the two has more rows in its vocabulary than the
    other (rows that no token uses), those are left out.

    Args:
        kind: which divergence, see ``compared``.
        temperature: by which both models' logits are divided; the numbers are those of the softer
            distributions.
        share: of the other model in the mixture of ``jensen_shannon``.
    """
    trained = (field(batch, "targets").flatten() != UNTRAINED).nonzero()[:, 0]
    words = words_of_both(model, other)
    z = _logits_of(model, batch, trained)[:, :words] / temperature
    with torch.no_grad():
        z_other = _logits_of(other, batch, trained)[:, :words] / temperature
    return _spread(compared(z, z_other, kind, share), trained, batch)


def divergence_of_known(model: nn.Module, batch: Batch, kind: Kind = "forward", temperature: float = 1.0,
                        share: float = 0.5) -> Tensor:
    """The same with the K likeliest words of another model, which a batch has as ``teacher_ids`` int64
    [R, L, K] and ``teacher_logp`` float32 [R, L, K].

    All other words count as one, in both distributions; so the number is never above that of all words. At
    a temperature both are softened after that: the lump is not taken apart.
    """
    trained = (field(batch, "targets").flatten() != UNTRAINED).nonzero()[:, 0]
    ids, known = (batch[name].flatten(0, 1)[trained] for name in ("teacher_ids", "teacher_logp"))
    z = lumped(_logits_of(model, batch, trained), ids)
    rest = torch.log((-known.logsumexp(-1).expm1()).clamp(min=LEAST))
    z_other = torch.cat([known, rest[:, None]], 1)
    return _spread(compared(z / temperature, z_other / temperature, kind, share), trained, batch)


def lumped(z: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities [N, K + 1] of some words [N, K] and of all others together, of logits z [N, V]."""
    logp = z.log_softmax(-1)
    rest = logp.scatter(1, ids, -torch.inf).logsumexp(-1)
    return torch.cat([logp.gather(1, ids), rest[:, None]], 1)


def compared(z: Tensor, z_other: Tensor, kind: Kind, share: float = 0.5) -> Tensor:
    """A divergence [N] of two softmaxes of logits [N, V], q of ``z`` and p of ``z_other``:

        forward          KL(p || q) = sum p log(p / q)
        reverse          KL(q || p)
        jensen_shannon   share KL(p || m) + (1 - share) KL(q || m),   m = share p + (1 - share) q

    The gradient with respect to z is written down, not derived: where the two are equal, it and the value are
    exactly 0, and an optimizer that divides by the size of gradients makes no steps of rounding errors.
    """
    with torch.no_grad():
        log_q, log_p = z.log_softmax(-1), z_other.log_softmax(-1)
        q, p, apart = log_q.exp(), log_p.exp(), (log_p - log_q).clamp(-MOST, MOST)
        match kind:
            case "forward":
                value, slope = _sum(p, apart), q - p
            case "reverse":
                value = -_sum(q, apart)
                slope = -q * (apart + value[:, None])
            case "jensen_shannon":                       # log(m / q), which is exactly 0 where apart is
                mixed = torch.where(apart < FAR, torch.log1p(share * apart.clamp(max=FAR).expm1()),
                                    apart + math.log(share))
                of_q = _sum(q, -mixed)
                value = share * _sum(p, apart - mixed) + (1 - share) * of_q
                slope = -(1 - share) * q * (mixed + of_q[:, None])
    return value + ((z - z.detach()) * slope).sum(-1)


def _sum(weights: Tensor, values: Tensor) -> Tensor:
    """Of each row the sum of products, where an impossible word counts nothing."""
    return torch.where(weights > 0, weights * values, 0).sum(-1)


def words_of_both(model: nn.Module, other: nn.Module) -> int:
    """How many rows the smaller of the two vocabularies has."""
    return min(m.get_input_embeddings().num_embeddings for m in (model, other))  # type: ignore[operator]


def check_vocabulary(who: str, role: str, model: nn.Module, ctx: Context) -> None:
    """Refuse a frozen model that speaks of other words than the model in training.

    Raises:
        UserError: the tokenizers differ; or the numbers of tokens, where a tokenizer is not known.
    """
    other, folders = frozen_model(who, role, ctx), ctx.inputs.get(role, [])
    theirs = families.load_tokenizer(folders[0], who) if folders else None
    if theirs is not None and ctx.tokenizer is not None:
        if theirs.get_vocab() != ctx.tokenizer.get_vocab():
            raise UserError(f"{who}: the {role} has another vocabulary than the model, and word by word the "
                            f"two cannot be compared: take a {role} of the same tokenizer, or train on what "
                            "it writes.")
        return
    sizes = [m.get_input_embeddings().num_embeddings for m in (other, model)]  # type: ignore[operator]
    if sizes[0] != sizes[1]:
        raise UserError(f"{who}: the {role} has {sizes[0]} tokens and the model {sizes[1]}: take a {role} of "
                        "the same vocabulary.")


def distance(model: nn.Module, other: nn.Module, batch: Batch, summed: bool = False) -> Tensor:
    """Squared difference of the final hidden states [R, L], float32; 0 where nothing is learned.

    It is the mean over a state's entries, or their sum (``summed``), the square of the 2-norm. No gradient
    flows into the other model.

    Raises:
        UserError: the two models have hidden states of different widths.
    """
    trained = (field(batch, "targets").flatten() != UNTRAINED).nonzero()[:, 0]
    mine = _states(model, batch)[trained]
    with torch.no_grad():
        theirs = _states(other, batch)[trained]
    if mine.shape != theirs.shape:
        raise UserError(
            f"the hidden states of the two models cannot be compared: {mine.shape[-1]} columns and "
            f"{theirs.shape[-1]}."
        )
    squares = (mine.float() - theirs.float()).square()
    return _spread(squares.sum(-1) if summed else squares.mean(-1), trained, batch)


def block_distance(model: nn.Module, other: nn.Module, batch: Batch) -> Tensor:
    """Mean squared difference of the hidden states behind the blocks [R, L], float32; 0 where nothing is
    learned. It is averaged over the blocks of ``model``.

    Block i of n is held to block (i + 1) m / n - 1 of the other model's m. No gradient flows into that.

    Raises:
        UserError: the widths differ, or m is no multiple of n.
    """
    trained = (field(batch, "targets").flatten() != UNTRAINED).nonzero()[:, 0]
    mine = _behind_blocks(model, batch, trained)
    with torch.no_grad():
        theirs = _behind_blocks(other, batch, trained)
    n, m = len(mine), len(theirs)
    if m % n or mine[0].shape != theirs[0].shape:
        raise UserError(f"the hidden states of the two models cannot be compared block by block: {n} blocks "
                        f"of {mine[0].shape[-1]} columns, and {m} of {theirs[0].shape[-1]}.")
    squares = [(a.float() - theirs[(i + 1) * m // n - 1].float()).square().mean(-1)
               for i, a in enumerate(mine)]
    return _spread(torch.stack(squares).mean(0), trained, batch)


def _behind_blocks(model: nn.Module, batch: Batch, trained: Tensor) -> list[Tensor]:
    """What each block hands on at the trained positions: [N, H] each."""
    way_of(model)                                              # runs the model, before it is listened to
    seen: list[Tensor] = []

    def keep(block: nn.Module, given: object, out: Tensor | tuple[Tensor, ...]) -> None:
        seen.append((out if isinstance(out, Tensor) else out[0]).flatten(0, 1)[trained])

    hooks = [model.get_submodule(name).register_forward_hook(keep) for name in block_names(model)]
    try:
        _states(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def trained_logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits at the positions that are learned, row by row: [N, V], float32."""
    trained = (field(batch, "targets").flatten() != UNTRAINED).nonzero()[:, 0]
    return _logits_of(model, batch, trained)


def _states(model: nn.Module, batch: Batch) -> Tensor:
    """What the body gives to the head: [R L, H]."""
    return sharding.within(model, body_states, batch["input_ids"], positions(model, batch)).flatten(0, 1)


def _logits_of(model: nn.Module, batch: Batch, trained: Tensor) -> Tensor:
    """Of the next token at the trained positions: [N, V], float32."""
    ids, places = batch["input_ids"], positions(model, batch)
    if way_of(model).plain_head:
        logits: Tensor = sharding.within(model, _logits, ids, places, trained)
    else:  # a head with a cap or a scale: the model's own forward
        given = {} if places is None else {"position_ids": places}
        logits = model(input_ids=ids, use_cache=False, **given).logits.flatten(0, 1)[trained]
    return logits.float()


def _logits(model: nn.Module, ids: Tensor, places: Tensor | None, trained: Tensor) -> Tensor:
    return model.get_output_embeddings()(body_states(model, ids, places).flatten(0, 1)[trained])


def _spread(values: Tensor, trained: Tensor, batch: Batch) -> Tensor:
    """Numbers of the trained positions at their places, 0 elsewhere."""
    targets = field(batch, "targets")
    return values.new_zeros(targets.numel()).index_copy(0, trained, values).view_as(targets)
