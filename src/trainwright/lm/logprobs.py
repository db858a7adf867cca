"""Log-probabilities of given tokens and the entropy of what might stand there instead, for objectives of
preference, reward and distillation; the logits of all positions and words are never there at once.

With hidden states h [N, H], head W [V, H] and b [V], a temperature T and targets t [N]:

    z = (h W' + b) / T,   p = softmax(z)
    logp = z[t] - logsumexp(z)                     d logp / dz = onehot(t) - p
    entropy = logsumexp(z) - sum p z               d entropy / dz = - p (log p + entropy)

both in nats and float32. As in ``cross_entropy.py``, both passes walk over tiles of z that fit into a cache;
kept between them are h, W, b, t and two numbers a position.

- ``tiled_logprobs`` does this for hidden states, ``token_logprobs`` for a model and a batch.
- ``answer_logprobs`` gives the sum over each answer, with the answers of a batch packed into rows without
  padding, or one a row.
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED, Batch
from trainwright.families import token_logits
from trainwright.lm.cross_entropy import add_product, cast, hit_of, logits_of, tiles
from trainwright.lm.losses import body_states, cross_entropies, field, positions, way_of
from trainwright.lm.rows import best_fit


class Scored(NamedTuple):
    """Of each target its log-probability and the entropy at its place: float32, of the targets' shape; 0
    where a target is -100."""

    logp: Tensor
    entropy: Tensor


class Answers(NamedTuple):
    """Of each answer the sum of its tokens' log-probabilities, and how many they are: float32 [N]."""

    logp: Tensor
    tokens: Tensor


# ---- tiles -------------------------------------------------------------------------------------------


def tiled_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                   temperature: float = 1.0) -> Scored:
    """For hidden states [N, H] and ``targets`` [N], which are words, never -100. Differentiable once."""
    kind = hidden.device.type
    dtype = (torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind)
             else torch.promote_types(hidden.dtype, weight.dtype))
    if temperature != 1.0:
        hidden, bias = hidden / temperature, None if bias is None else bias / temperature
    return Scored(*_Tiled.apply(hidden, weight, bias, targets, dtype))


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
                dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = cast(hidden, weight, bias, dtype)
            top = torch.full_like(targets, torch.finfo(torch.float32).min, dtype=torch.float32)
            norm, mean, right = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
            for rows, words in tiles(h, w):
                z = logits_of(h, w, b, rows, words).float()
                right[rows] += hit_of(z, targets[rows] - words.start)
                new = torch.maximum(top[rows], z.amax(1))
                shrink, p = torch.exp(top[rows] - new), (z - new[:, None]).exp_()
                # sums of p and p z, both relative to the largest logit so far
                norm[rows] = norm[rows] * shrink + p.sum(1)
                mean[rows] = mean[rows] * shrink + _expected(p, z)
                top[rows] = new
            whole = top + norm.log()
            entropy = whole - mean / norm
        ctx.save_for_backward(hidden, weight, bias, targets, whole, entropy)
        ctx.dtype = dtype
        return right - whole, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, up_logp: Tensor, up_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, whole, entropy = ctx.saved_tensors
        grads = [torch.zeros_like(t, dtype=torch.float32) if needed else None
                 for t, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)]
        up_logp, up_entropy = up_logp.float(), up_entropy.float()
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = cast(hidden, weight, bias, ctx.dtype)
            for rows, words in tiles(h, w):
                z = logits_of(h, w, b, rows, words).float().sub_(whole[rows][:, None])
                g = _slope(z, entropy[rows], up_logp[rows], up_entropy[rows], targets[rows] - words.start)
                g = g.to(ctx.dtype)
                if grads[0] is not None:
                    add_product(grads[0][rows], g, w[words])
                if grads[1] is not None:
                    add_product(grads[1][words], g.T, h[rows])
                if grads[2] is not None:
                    grads[2][words] += g.sum(0, dtype=torch.float32)
        made = [None if g is None else g.to(t.dtype)
                for g, t in zip(grads, (hidden, weight, bias), strict=True)]
        return (*made, None, None)


def _expected(p: Tensor, z: Tensor) -> Tensor:
    """Of each row the sum of p z, where an impossible word (-inf) counts nothing."""
    return torch.where(p > 0, p * z, 0).sum(1)


def _slope(logp: Tensor, entropy: Tensor, up_logp: Tensor, up_entropy: Tensor, place: Tensor) -> Tensor:
    """Of a tile of log-probabilities: the gradient with respect to its logits."""
    p = logp.exp()
    g = -p * up_logp[:, None]
    if up_entropy.any():
        g -= torch.where(p > 0, p * (logp + entropy[:, None]), 0) * up_entropy[:, None]
    inside = (place >= 0) & (place < logp.shape[1])
    return g.scatter_add_(1, place.clamp(0, logp.shape[1] - 1)[:, None], (inside * up_logp)[:, None])


# ---- a model and a batch -------------------------------------------------------------------------------


def token_logprobs(model: nn.Module, batch: Batch, temperature: float = 1.0) -> Scored:
    """Of each position of a batch (``input_ids``, ``targets``, ``position_ids``, all [R, L]) whose target is
    not -100.

    Documents of a row do not see each other, as in ``token_losses``. Where the model changes what its head
    says (a cap, a scale), or its head is an adapter, the logits of all positions are made at once.
    """
    targets, places = field(batch, "targets"), positions(model, batch)
    trained = (targets.flatten() != UNTRAINED).nonzero()[:, 0]
    words = targets.flatten()[trained]
    if way_of(model).plain_head:
        found = sharding.within(model, _scored, batch["input_ids"], places, words, trained, temperature)
    else:
        z = token_logits(model, batch["input_ids"], places).flatten(0, 1)[trained].float() / temperature
        logp = z.log_softmax(-1)
        found = Scored(logp.gather(1, words[:, None])[:, 0], -_expected(logp.exp(), logp))
    return Scored(*(t.new_zeros(targets.numel()).index_copy(0, trained, t).view_as(targets) for t in found))


def _scored(model: nn.Module, ids: Tensor, places: Tensor | None, words: Tensor, trained: Tensor,
            temperature: float) -> Scored:
    hidden = body_states(model, ids, places).flatten(0, 1)[trained]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return tiled_logprobs(hidden, head.weight, head.bias, words, temperature)


def answer_logprobs(model: nn.Module, batch: Batch, ctx: Context, packed: bool) -> Answers:
    """Of answers, each with its prompt before it in a row of a batch: ``input_ids``, ``attention_mask`` and
    ``targets`` int64 [N, L], padded behind.

    Args:
        packed: put several rows into one, so that no padding is computed; the sums are the same, as the model
            keeps documents apart (``isolation_error`` checks that). Rows then have no fixed shape, and are
            not compiled.
    """
    targets = batch["targets"]
    rows, owner = _packed(batch) if packed else _padded(batch, ctx.compile)
    values = -cross_entropies(model, rows, replace(ctx, compile=False) if packed else ctx)
    sums = values.new_zeros(len(targets)).index_add(0, owner.flatten(), values.flatten())
    return Answers(sums, (targets != UNTRAINED).sum(1).to(sums.dtype))


def _padded(batch: Batch, whole: bool) -> tuple[Batch, Tensor]:
    """The rows as they are, as long as the longest of them unless they must be ``whole``; and of each
    position the row that it is from."""
    ids, seen = batch["input_ids"], batch["attention_mask"]
    width = ids.shape[1] if whole else max(1, int(seen.sum(1).max()) - 1)
    places = torch.arange(width, device=ids.device).expand(len(ids), width)
    owner = torch.arange(len(ids), device=ids.device)[:, None].expand(len(ids), width)
    return {"input_ids": ids[:, :width], "targets": batch["targets"][:, :width], "position_ids": places,
            "packed": False}, owner


def _packed(batch: Batch) -> tuple[Batch, Tensor]:
    """The rows put together into fewer, of the length of the longest; their last tokens predict nothing and
    are left out. What is left of a row is padding that goes on with the document before it."""
    ids, targets = batch["input_ids"], batch["targets"]
    sizes = (batch["attention_mask"].sum(1) - 1).clamp(min=1)
    order = sizes.argsort(descending=True, stable=True).tolist()
    width = int(sizes.max())
    bins = best_fit(sizes[order].cpu().numpy(), width)
    shape = int(bins.max()) + 1, width
    made = {"input_ids": ids.new_zeros(shape), "targets": torch.full(shape, UNTRAINED, device=ids.device),
            "position_ids": torch.arange(width, device=ids.device).repeat(shape[0], 1)}
    owner, filled = torch.zeros(shape, dtype=torch.int64, device=ids.device), [0] * shape[0]
    for one, row, size in zip(order, bins.tolist(), sizes[order].tolist(), strict=True):
        at, end = filled[row], filled[row] + size
        made["input_ids"][row, at:end], made["targets"][row, at:end] = ids[one, :size], targets[one, :size]
        made["position_ids"][row, at:] = torch.arange(width - at, device=ids.device)
        owner[row, at:end], filled[row] = one, end
    return made | {"packed": len(order) > shape[0]}, owner
