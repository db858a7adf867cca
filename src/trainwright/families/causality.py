"""Whether a model's outputs depend on later tokens: measured, so that no list of architectures is needed."""
from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.families.base import create, family_of, has_family, is_pretrained, made_from, skeleton
from trainwright.families.configs import shrunk
from trainwright.families.libraries import first_line, left_open

LEAK = 1e-4
"""Relative difference that rounding does not explain."""
HALF = 8
"""Tokens that stay, and as many behind them that change."""
NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
"""What makes a model small of which nothing but its architecture matters."""
MOST = 4_000_000
"""Parameters up to which a model is made only to be measured."""


def is_causal(model: nn.Module) -> bool:
    """Whether no output moves when tokens behind it change (the decoder's, where there is an encoder).

    Looked at is what the head reads, where there is a head (it moves whatever the head's weights are), else
    the output.
    """
    model = measurable(model)
    device = next(model.parameters()).device
    embedding = _token_embedding(model)
    draw = Context(seed=0).rng("causal")
    most = family_of(model).most_positions(made_from(model)) if has_family(model) else None
    half = HALF if most is None else max(1, min(HALF, most // 2))
    kept = torch.randint(embedding.num_embeddings, (1, half), generator=draw)
    changed = torch.randint(embedding.num_embeddings, (2, half), generator=draw)
    ids = torch.cat([kept.expand(2, half), changed], 1).to(device)
    with torch.no_grad(), evaluating(model), torch.autocast(device.type, enabled=False):
        seen = _outputs(model, ids)[:, :half].float()
    return bool((seen[0] - seen[1]).abs().max() <= LEAK * seen.abs().max())


def measurable(model: nn.Module) -> nn.Module:
    """The model itself, or a small one of its architecture where its tensors have no contents (a plan's)."""
    if not isinstance(next(model.parameters()), FakeTensor):
        return model
    return _small(_Key(made_from(model)))


def check_causal(model: nn.Module) -> None:
    """Refuse a model that sees what it is to predict.

    Raises:
        UserError: earlier outputs of the model move when later tokens change.
    """
    if not is_causal(model):
        raise UserError(f"the outputs of {type(model).__name__} depend on later tokens, so that it would "
                        "learn to copy the token that it is to predict: take a causal model (some types are "
                        "one with is_decoder = true), or an objective that masks what it asks for, such as "
                        "masked_token.")


def check_causal_config(config: Any) -> None:
    """The same of a config, on a small model of that architecture, where one is quick to make.

    Raises:
        UserError: also where a model of this config cannot be run at all.
    """
    small = family_of(config).smaller(config)
    if small is not None and not _check_small(_Key(small)):
        _check_runs(_Key(config))


class _Key:
    """A config as the key of a cache."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.text = json.dumps(config.to_dict(), sort_keys=True, default=str)

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.text == self.text


@cache
def _small(key: _Key) -> nn.Module:
    """A model of few parameters of a config's architecture; as wide as that where it cannot be narrow."""
    family = family_of(key.config)
    for changes in NARROW, NARROW | {"head_dim": 8}, {}:
        config = shrunk(key.config, **changes) if changes else family.smaller(key.config)
        try:
            model = create(config, 0, "")
            with torch.no_grad(), evaluating(model):
                _outputs(model, torch.zeros(1, 2, dtype=torch.int64))
            return model
        except Exception:                                    # a type with rules of its own
            continue
    return create(key.config, 0, "")


@cache
def _check_small(key: _Key) -> bool:
    """Check a small model; returns whether it could be run."""
    try:
        size = sum(p.numel() for p in skeleton(key.config, "").parameters())
        model = create(key.config, 0, "") if size <= MOST else None
    except UserError:                                # sizes that do not fit: measured when the run is built
        return True
    try:
        if model is None:
            _tried(key.config)
        else:
            check_causal(model)
    except UserError:
        raise
    except Exception:
        return False
    return True


@cache
def _check_runs(key: _Key) -> None:
    """Refuse a config whose model cannot be run, as far as shapes tell."""
    config = key.config
    try:
        _tried(config)
    except UserError:  # which is told where the model is made
        return
    except Exception as error:
        if "meta tensors" in str(error) and not _misfit(config):  # it looks at numbers: nothing is known
            return
        raise UserError(
            _misfit(config)
            or f"a model of type {config.model_type!r} with these sizes cannot be run: "
            f"{first_line(error).rstrip('.')}{left_open(error, config)}."
        ) from None


def _tried(config: Any) -> None:
    """Run a model without weights."""
    model = skeleton(config, "")
    with torch.device("meta"), torch.no_grad(), evaluating(model):
        _outputs(model, torch.zeros(1, 2, dtype=torch.int64))


def _misfit(config: Any) -> str:
    """What is wrong with the heads of a config, if anything is."""
    heads, shared = (getattr(config, n, None) for n in ("num_attention_heads", "num_key_value_heads"))
    if not isinstance(heads, int) or not isinstance(shared, int) or (shared and heads % shared == 0):
        return ""
    return (
        f"model.num_attention_heads = {heads} is no multiple of num_key_value_heads = {shared}, which the "
        f"type "
        "sets where a table does not: say model.num_key_value_heads."
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; each of its modules is put back as it was."""
    before = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def token_logits(model: nn.Module, ids: Tensor, places: Tensor | None = None,
                 seen: Tensor | None = None) -> Tensor:
    """Logits [rows, length, vocabulary] of a model's own forward pass.

    A module that is not of transformers may return them bare.
    """
    given = {n: t for n, t in (("position_ids", places), ("attention_mask", seen)) if t is not None}
    if not is_pretrained(model):
        out = model(input_ids=ids, **given)
        return out if isinstance(out, Tensor) else out.logits
    return model(input_ids=ids, use_cache=False, **given).logits


def takes_positions(module: nn.Module) -> bool:
    """Whether it can be told each token's position in its document."""
    return "position_ids" in inspect.signature(module.forward).parameters


def _outputs(model: nn.Module, ids: Tensor) -> Tensor:
    head = model.get_output_embeddings() if is_pretrained(model) else None
    read: list[Tensor] = []
    hook = None
    if head is not None:
        hook = head.register_forward_pre_hook(lambda module, given: read.append(given[0]))
    try:
        if is_pretrained(model) and model.config.is_encoder_decoder:
            logits = model(input_ids=ids[:1].expand(2, -1), decoder_input_ids=ids, use_cache=False).logits
        else:
            logits = token_logits(model, ids)
    finally:
        if hook is not None:
            hook.remove()
    return read[-1] if read and read[-1].shape[:2] == ids.shape else logits


def _token_embedding(model: nn.Module) -> nn.Embedding:
    found = [model.get_input_embeddings()] if is_pretrained(model) else []
    found = [m for m in (*found, *model.modules()) if isinstance(m, nn.Embedding)]
    if not found:
        raise UserError(f"a {type(model).__name__} has no embedding of tokens: it is no language model.")
    return found[0]
