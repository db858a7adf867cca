"""What objectives and evaluators share that score a causal language model of transformers."""
from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

import trainwright.lm.document_attention  # noqa: F401  (which rows of several documents are attended to by)
from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.families import evaluating, takes_positions, token_logits
from trainwright.families.causality import LEAK, measurable
from trainwright.lm.balanced import balance_weight, balanced_losses
from trainwright.lm.cross_entropy import tiled_cross_entropy
from trainwright.lm.encoder_decoder import encoded_losses, has_encoder
from trainwright.lm.prefix import prefix_mask

JOINT_BYTES = 256 << 20
"""Float32 logits up to which compiled code makes them all at once instead of in tiles."""


def token_losses(model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
    """Cross-entropy [R, L], float32, of each position's target; 0 where the target is -100, whose logits are
    never computed.

    ``position_ids`` restart at 0 at each document of a row, and attention does not cross where they do. A
    batch whose ``packed`` is False promises one document a row: then no mask is needed. The positions of a
    batch's ``prefix`` are seen by all of their document (see ``prefix_mask``). The body is compiled where
    ``ctx.compile`` says so and gradients are wanted. Where the model has an encoder, that reads what is given
    of each document (see ``encoder_decoder.py``). In training, the balance of experts that a model's config
    asks for is added (see ``balanced.py``).
    """
    if has_encoder(model):
        return sharding.within(model, encoded_losses, batch)
    losses, balance = _scored(model, batch, ctx)
    return losses if balance is None else losses + balance


def _scored(model: nn.Module, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """The cross-entropies, and what the balance of experts adds to them, if anything."""
    way, targets = way_of(model), field(batch, "targets")
    ids, places = batch["input_ids"], positions(model, batch)
    if model.training and torch.is_grad_enabled() and (weight := balance_weight(model)):
        return balanced_losses(model, batch, places, weight, way.plain_head)
    seen = prefix_mask(model, batch)
    trained = (targets.flatten() != UNTRAINED).nonzero()[:, 0]     # before the body: a GPU waits for it
    fast = ctx.compile and torch.is_grad_enabled()
    with _one_document_a_row() if fast and not batch.get("packed", True) else _as_it_is():
        if way.plain_head:
            return sharding.within(model, _score, ids, places, seen, targets, trained, fast), None
        logits = token_logits(model, ids, places, seen)
    logits = logits.float().flatten(0, 1)
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=UNTRAINED, reduction="none")
    return losses.view_as(targets), None


def cross_entropies(model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
    """``token_losses`` of a model that is a decoder alone, without what the balance of experts adds."""
    return _scored(model, batch, ctx)[0]


def positions(model: nn.Module, batch: Batch) -> Tensor | None:
    """The position of each token in its document as the model counts (RoBERTa from behind its padding token
    on), or None where it takes none."""
    way = way_of(model)
    return batch["position_ids"] + way.first if way.takes_places else None


def most_positions(model: nn.Module) -> int | None:
    """Positions that a model was made for, or None where it has no such limit."""
    return families.positions_of(families.made_from(model))


def logged_losses(model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
    """``token_losses``, with ``train_loss/DOMAIN`` logged, which is the cross-entropy alone."""
    counts = tokens_by_domain(batch)
    losses, balance = (
        (token_losses(model, batch, ctx), None) if has_encoder(model) else _scored(model, batch, ctx)
    )
    note_domains(losses, batch, counts, ctx)
    return losses if balance is None else losses + balance


def field(batch: Batch, name: str) -> Tensor:
    """The tokens (``input_ids``) or targets of a batch of texts.

    Raises:
        UserError: it has none; a batch of pairs or pictures was given to something that reads texts.
    """
    if name not in batch:
        raise UserError(f"the batch has no {name}, but {', '.join(sorted(batch))}: what learns or looks at "
                        "tokens needs a data method that makes rows of them, such as pack.")
    found: Tensor = batch[name]
    return found


def trained_tokens(batch: Batch) -> float:
    """Targets that are learned."""
    return float((field(batch, "targets") != UNTRAINED).sum())


def tokens_by_domain(batch: Batch) -> list[int]:
    """Trained tokens of each of the batch's domains. Waits for the device: ask before the forward pass."""
    trained = field(batch, "targets") != UNTRAINED
    weights, most = trained.flatten().float(), len(batch["domains"])
    return torch.bincount(batch["domain"].flatten(), weights=weights, minlength=most).tolist()


def note_domains(losses: Tensor, batch: Batch, counts: list[int], ctx: Context) -> None:
    """Log ``train_loss/DOMAIN`` for the domains of the batch, without waiting for the device."""
    sums = losses.new_zeros(len(counts)).index_add_(0, batch["domain"].flatten(), losses.detach().flatten())
    for i, (name, count) in enumerate(zip(batch["domains"], counts, strict=True)):
        if count:
            ctx.note(f"train_loss/{name}", sums[i] / count, weight=count)


# ---- isolation ---------------------------------------------------------------------------------------------


def isolation_error(model: nn.Module, vocab: int, ctx: Context) -> float:
    """How much a document's outputs move when the document before it in its row changes, as a part of the
    largest output.

    It is exactly 0 where documents are kept apart. Looked at are the final hidden states where the head is a
    plain linear layer (they move whatever the head's weights are), else the logits.

    Raises:
        UserError: it is above ``LEAK``: this architecture does not keep packed documents apart; or the model
            reads in both directions.
    """
    if has_encoder(model):
        return 0.0                                                  # there each document has a row of its own
    if not families.family_of(model).causal and not families.is_causal(model):
        raise UserError(f"a {type(model).__name__} reads its whole row: set isolate = \"rows\" on pack, "
                        "which gives each document a row of its own.")
    g, half, way = ctx.rng("isolation", at=0), 16, way_of(model)
    first, second = torch.randint(vocab, (2, half), generator=g), torch.randint(vocab, (1, half), generator=g)
    ids = torch.cat([first, second.expand(2, half)], 1).to(ctx.device)
    places = positions(model, {"position_ids": torch.arange(half).repeat(2, 2).to(ctx.device)})
    with torch.no_grad(), evaluating(model), torch.autocast(ctx.device.type, enabled=False):
        out = (sharding.within(model, body_states, ids, places) if way.plain_head
               else token_logits(model, ids, places))
    seen = out[:, half:].float()
    error = float((seen[0] - seen[1]).abs().max() / seen.abs().max())
    if not error <= LEAK:
        raise UserError(f"{type(model).__name__} lets a document see the one before it in its row (its "
                        f"outputs move by {error:.1%}): set isolate = \"rows\" on pack, which gives each "
                        "document a row of its own.")
    return error


def padded(rows: Sequence[tuple[Any, Any]], ctx: Context) -> Batch:
    """Rows of (ids, targets), each of a text alone, as one batch; behind a shorter row stands nothing that is
    learned."""
    width = max(len(ids) for ids, _ in rows)
    ids, targets = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), UNTRAINED)
    for row, (one, told) in enumerate(rows):
        ids[row, :len(one)], targets[row, :len(told)] = torch.as_tensor(one), torch.as_tensor(told)
    places = torch.arange(width).expand(len(rows), width)
    batch = {"input_ids": ids, "targets": targets, "position_ids": places}
    return {n: t.to(ctx.device) for n, t in batch.items()} | {"packed": False}


# ---- the body and the head ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How to get logits from a model: its body and a plain linear head on top, or its own forward."""

    plain_head: bool
    takes_places: bool
    head: Any
    """A weak reference: another head (a surgery's) is looked at anew."""
    first: int
    """The position of a document's first token."""


_ways: weakref.WeakKeyDictionary[nn.Module, Way] = weakref.WeakKeyDictionary()


def way_of(model: nn.Module) -> Way:
    """Found out once for each model and head.

    Raises:
        UserError: a model with an encoder, whose decoder alone says nothing, or one whose outputs depend on
            later tokens.
    """
    if has_encoder(model):
        raise UserError(f"a {type(model).__name__} has an encoder; this method needs a model that is a "
                        "decoder alone.")
    head, way = output_head(model), _ways.get(model)
    if way is None or (head is not None and way.head() is not head):
        if way is None:
            families.check_causal(model)
        with torch.no_grad(), evaluating(model), torch.autocast(sharding.device().type, enabled=False):
            real = measurable(model)
            way = _look(real, head if real is model else output_head(real))
            if real is not model and head is not None:
                way = replace(way, head=weakref.ref(head))
            _ways[model] = way
    return way


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that makes logits of a model's last states, where it is known."""
    return model.get_output_embeddings() if families.is_pretrained(model) else None  # type: ignore[operator]


def _look(model: nn.Module, head: nn.Module | None) -> Way:
    """Run the model on a few tokens and exchange what its head says for other numbers.

    The head is plain if it reads what the body gives, is linear in it, and the model hands on exactly what it
    says: no cap, no scale. This holds for all weights, while comparing logits alone would take a cap of small
    logits for none.
    """
    first = families.first_position(model.config) if families.is_pretrained(model) else 0
    if type(head) is not nn.Linear:  # an adapter on it may be zero now and not later
        return Way(
            False, takes_positions(model), weakref.ref(head) if head is not None else lambda: None, first
        )
    body, seen = model.get_decoder(), {}

    def at_body(module: nn.Module, given: Any, out: Any) -> None:
        seen["body"] = out[0]

    def at_head(module: nn.Linear, given: Any, out: Tensor) -> Tensor:
        seen["linear"] = torch.equal(out, F.linear(given[0], module.weight, module.bias))
        seen["read"] = given[0]
        seen["said"] = torch.linspace(-99, 99, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
        return seen["said"]

    hooks = [body.register_forward_hook(at_body), head.register_forward_hook(at_head)]
    try:
        ids = torch.arange(4, device=next(model.parameters()).device)[None]
        told = model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    plain = (bool(seen.get("linear")) and "body" in seen
             and torch.equal(seen["body"], seen["read"]) and torch.equal(told, seen["said"]))
    return Way(plain, takes_positions(body if plain else model), weakref.ref(head), first)


def _score(model: nn.Module, ids: Tensor, places: Tensor | None, seen: Tensor | None, targets: Tensor,
           trained: Tensor, fast: bool) -> Tensor:
    body, head = model.get_decoder(), model.get_output_embeddings()
    if fast and targets.numel() * head.weight.shape[0] * 4 <= JOINT_BYTES:
        with torch.compiler.config.patch(recompile_limit=64):
            return _compiled_joint()(body, head, ids, places, seen, targets)
    hidden = (_compiled_hidden if fast else _hidden)(body, ids, places, seen).flatten(0, 1)
    flat = targets.flatten()
    if len(trained) == len(flat):
        return tiled_cross_entropy(hidden, head.weight, head.bias, flat, fast).view_as(targets)
    losses = tiled_cross_entropy(hidden[trained], head.weight, head.bias, flat[trained], fast)
    return losses.new_zeros(len(flat)).index_copy(0, trained, losses).view_as(targets)


def _given(places: Tensor | None, seen: Tensor | None) -> dict[str, Tensor]:
    return {n: t for n, t in (("position_ids", places), ("attention_mask", seen)) if t is not None}


def _hidden(body: nn.Module, ids: Tensor, places: Tensor | None, seen: Tensor | None = None) -> Tensor:
    given = _given(places, seen)
    return body(input_ids=ids, use_cache=False, **given)[0]


def body_states(model: nn.Module, ids: Tensor, places: Tensor | None) -> Tensor:
    return _hidden(model.get_decoder(), ids, places)


def _compiled_hidden(body: nn.Module, ids: Tensor, places: Tensor | None, seen: Tensor | None) -> Tensor:
    """Code is shared by models of one configuration. A process with many of them (a comparison) would pass
    torch's limit of 8 variants, and go on uncompiled."""
    with torch.compiler.config.patch(recompile_limit=64):
        return _compiled()(body, ids, places, seen)


def _joint(body: nn.Module, head: nn.Linear, ids: Tensor, places: Tensor | None, seen: Tensor | None,
           targets: Tensor) -> Tensor:
    """Body, head and loss as one graph, for logits that are small: the compiler then fuses the loss into the
    head."""
    logits = head(_hidden(body, ids, places, seen)).flatten(0, 1)
    losses = F.cross_entropy(logits, targets.flatten(), ignore_index=UNTRAINED, reduction="none")
    return losses.view_as(targets)


@cache
def _compiled_joint() -> Any:
    return torch.compile(_joint, dynamic=False)


@cache
def _compiled() -> Any:
    return torch.compile(_hidden, dynamic=False)


# ---- attention ---------------------------------------------------------------------------------------------


@contextmanager
def _one_document_a_row() -> Iterator[None]:
    """Let SDPA use its causal kernel in compiled code too, where transformers would build a mask: it cannot
    look at the values.

    Only where the mask would be the causal one: a window shorter than the row still gets its mask.
    """
    before = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = _mask_unless_causal
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]          # ours; a user's own, if there was one, goes back
        if ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] is not before:
            ALL_MASK_ATTENTION_FUNCTIONS["sdpa"] = before


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def _mask_unless_causal(
        batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
        mask_function: Any = None, attention_mask: Tensor | None = None, local_size: int | None = None,
        use_vmap: bool = False, allow_is_bidirectional_skip: bool = False, device: Any = "cpu",
        **unused: Any) -> Tensor | None:
    """As ``sdpa_mask``, called by transformers, but none where the kernel's own causal mask is the one that
    is meant."""
    whole = local_size is None or kv_length < local_size
    plain = attention_mask is None and not use_vmap and not allow_is_bidirectional_skip
    if whole and plain and q_length == kv_length:
        return None
    return sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, local_size,
        allow_is_causal_skip=False, allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        use_vmap=use_vmap, device=device)
