"""A training stage so small that a law is tried on it in a blink: a corpus of a few dozen documents, and
models of two layers."""
from __future__ import annotations

import atexit
import copy
import dataclasses
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trainwright import families
from trainwright.check import documents
from trainwright.core import registry
from trainwright.core.batches import Calibration
from trainwright.core.build import build
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import (
    Batch,
    Data,
    Evaluator,
    Method,
    Objective,
    Optimizer,
    State,
    Tensors,
    Update,
)
from trainwright.corpus.editing import BETWEEN

if TYPE_CHECKING:
    pass

WHERE = "the conformance battery"
STEPS, ROWS, VOCABULARY = 9, 8, 300
HELD = 0.1
"""Share of the documents kept for tuning, and of those kept for evaluation."""
LLAMA, GPT2, BERT, DISTILBERT, CLIP, SIGLIP = "llama", "gpt2", "bert", "distilbert", "clip", "siglip"
PICTURES = "image_text"
FAMILIES = {"causal_lm": (LLAMA, GPT2), "masked_lm": (BERT, DISTILBERT), PICTURES: (CLIP, SIGLIP)}
"""Kinds of model that methods are tried on, by family: two of each, that share as little as two can."""
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT, VISION = (
    TOWER | {"max_position_embeddings": 64},
    TOWER | {"image_size": documents.SIDE, "patch_size": 4},
)
SHAPES: dict[str, dict[str, Any]] = {
    LLAMA: {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    },
    GPT2: {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    BERT: {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    DISTILBERT: {
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 64,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    CLIP: {"projection_dim": 8, "logit_scale_init_value": 0.0, "text_config": TEXT, "vision_config": VISION},
    SIGLIP: {"text_config": TEXT | {"projection_size": 16}, "vision_config": VISION},
}
"""Own and tied embeddings, nn.Linear and Conv1D, rotary and learned positions; no dropout, which is drawn per
micro-batch."""
class Idle(Update):
    """A link of the chain that does nothing: what an update is compared with that is switched off."""

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return updates


@cache
def place() -> Path:
    """A folder of this process, removed with it."""
    folder = Path(tempfile.mkdtemp(prefix="trainwright-conformance-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def scratch() -> Path:
    """A folder in which nothing is."""
    return Path(tempfile.mkdtemp(dir=place()))


_REUSED: list[Path] = []


def reuse(corpus: Path) -> None:
    """Take the corpus that another process has built."""
    _REUSED.append(corpus)


@cache
def corpus() -> Path:
    """The corpus' folder, built once a process."""
    if _REUSED:
        return _REUSED[0]
    from trainwright.corpus import building as corpora
    folder = place() / "corpus"
    settings = corpora.CorpusSettings(tokenizer=_train_tokenizer(place() / "tokenizer"), tune=HELD, test=HELD,
                                      chat_template="chatml")
    folder.mkdir()
    corpora.build(folder, [documents.Sentences()], settings, Context(), place() / "cache", lambda line: None)
    return folder


@cache
def pictures() -> Path:
    """The folder of a corpus of pictures and texts, tokenized as that of texts is."""
    from trainwright.corpus import building as corpora
    folder = place() / "pictures"
    settings = corpora.CorpusSettings(tokenizer=str(corpus()), tune=HELD, test=HELD)
    folder.mkdir()
    ctx = Context(folder=place() / "pictures.work" / "methods")
    corpora.build(folder, [documents.Illustrated()], settings, ctx, place() / "cache", lambda line: None)
    return folder


def data_for(kind: str) -> Path:
    """The corpus that a kind of model reads."""
    return pictures() if kind in FAMILIES[PICTURES] else corpus()


def _train_tokenizer(folder: Path) -> str:
    """A tokenizer of the documents for training, what is said in each on one line."""
    from trainwright.corpus import bpe, chat, splits
    every = list(documents.rows())
    ids, domains = (np.array([row[name] for row in every], dtype=object) for name in ("id", "domain"))
    mine = splits.by_hash(ids, domains, HELD, HELD) == 0
    lines = [(row["text"] or "").replace(BETWEEN, " ") for row, use in zip(every, mine, strict=True) if use]
    bpe.train(lines, VOCABULARY, chat.control_tokens("chatml")).save_pretrained(folder)
    return str(folder)


def tokenizer() -> Any:
    from trainwright.corpus.tokens import open_corpus
    return open_corpus(corpus()).tokenizer


@cache
def _made(kind: str, seed: int) -> nn.Module:
    config = families.from_table({"type": kind} | SHAPES[kind], tokenizer(), WHERE)
    # as in many checkpoints: a row of the embeddings that no gradient reaches
    config.get_text_config().pad_token_id = tokenizer().eos_token_id
    made = families.create(config, seed, WHERE)
    for name, parameter in made.named_parameters():
        if kind in FAMILIES[PICTURES] and name.endswith("k_proj.bias"):
            parameter.requires_grad_(False)  # no output depends on it, and Adam makes a step of rounding
    return made


def model(kind: str = LLAMA, seed: int = 0) -> nn.Module:
    """A model with fresh weights; two calls give equal ones."""
    return copy.deepcopy(_made(kind, seed))


FROZEN = {"reference": 0, "teacher": 1}
"""Models that stages have beside their own, by role: a reference equal to it, and a teacher that is not."""


@cache
def _frozen(kind: str) -> dict[str, nn.Module]:
    """These models, for all stages: no method may change them."""
    return {role: model(kind, seed).eval().requires_grad_(False) for role, seed in FROZEN.items()}


def context(folder: Path, kind: str = LLAMA) -> Context:
    """What a stage of the tiny setting gives its methods."""
    data = data_for(kind)
    return Context(seed=1, batch_rows=ROWS, inputs={"data": [data]}, root=data, folder=folder,
                   frozen=dict(_frozen(kind)), tokenizer=tokenizer())


def untouched(model: nn.Module, folder: Path, kind: str = LLAMA) -> Context:
    """The same for a surgery that is performed by itself, on a model that nothing has acted on."""
    ctx = context(folder, kind)
    ctx.policy, ctx.batches = model, Calibration([default("Data")], ctx, ROWS)  # type: ignore[list-item]
    return ctx


def curating(folder: Path) -> Context:
    """What a corpus stage gives its methods that has all of ``from``: an earlier corpus, a target, and
    models."""
    corpora, trained = [corpus()], [_saved(seed) for seed in range(3)]
    return Context(
        seed=1,
        inputs={"data": corpora, "target": corpora, "model": trained[:1], "models": trained},
        root=corpus(),
        folder=folder,
    )


def merging(folder: Path) -> Context:
    """What a merge gives its methods: data, a base, and two models."""
    trained = [_saved(seed) for seed in range(3)]
    return Context(
        seed=1,
        inputs={"data": [corpus()], "base": trained[:1], "models": trained[1:]},
        root=corpus(),
        folder=folder,
        tokenizer=tokenizer(),
    )


@cache
def _saved(seed: int) -> Path:
    """A checkpoint of a fresh model."""
    folder = place() / f"model{seed}"
    folder.mkdir()
    families.save(model(seed=seed), folder, tokenizer())
    return folder


def default(kind: str, **settings: Any) -> Method:
    """The installed method that stands in for its kind, with its example's settings."""
    name = registry.default_of(kind)
    if name is None:
        raise UserError(f"no method of kind {kind} is marked as the default, so that no stage can be made.")
    return registry.create({"use": name, **registry.find(name).example, **settings}, Path(), WHERE)


def company(method: type[Method] | Method | None) -> list[Method]:
    """The methods that a method has nothing to do without."""
    return [registry.create(dict(table), Path(), WHERE) for table in (method.beside if method else ())]


def kinds_for(*methods: type[Method] | Method | None) -> tuple[str, ...]:
    """The kinds of model that methods are tried on: of the first family that all which score models are
    for."""
    scoring = (Objective, Evaluator)
    every = [m for one in methods for m in (one, *company(one))]
    asked = [
        m.families
        for m in every
        if isinstance(m, scoring) or (isinstance(m, type) and issubclass(m, scoring))
    ]
    return next(
        (kinds for family, kinds in FAMILIES.items() if all({family, "*"} & set(f) for f in asked)),
        (LLAMA, GPT2),
    )


def beside(method: Method | None, folder: Path) -> list[Method]:
    """The methods of a stage in which ``method`` takes part, as a recipe orders them. An update stands behind
    the optimizer."""
    needed = company(method)
    brought = [m for m in needed if isinstance(m, Data)]
    first = next((m for m in (*brought, method) if isinstance(m, Data)), None)
    makes = first is not None and not pulls(first, folder, kinds_for(method, *needed)[0])
    data = [*([] if makes else [default("Data")]), *brought]
    objective = next((m for m in needed if isinstance(m, Objective)), default("Objective"))
    rest = [m for m in needed if not isinstance(m, (Data, Objective))]
    if isinstance(method, Data):
        learns = [] if isinstance(method, Objective) else [objective]
        return [*data, method, *learns, default("Optimizer"), *rest]
    if isinstance(method, Objective):
        return [*data, method, default("Optimizer"), *rest]
    if isinstance(method, Optimizer):
        others = method.params[1:] if method.params.startswith("!") else f"!{method.params}"
        chosen = any(f.name == "params" for f in dataclasses.fields(method))
        alone = method.params == "*" or not chosen           # which itself freezes what it does not train
        return [*data, objective, method, *([] if alone else [default("Optimizer", params=others)]), *rest]
    return [*data, objective, default("Optimizer"), *rest, *([method] if method else [])]


class _Pulled(Exception):
    """A data method asked for the batch of the one before it."""


def pulls(method: Data, folder: Path, kind: str = LLAMA) -> bool:
    """Whether it changes batches instead of making them."""
    def pull() -> Batch:
        raise _Pulled
    ctx = context(folder, kind)
    ctx.steps, ctx.knobs, ctx.policy = STEPS, {"lr": 1.0}, model(kind)
    try:
        method.next(pull, method.init(ctx.policy, ctx), ctx)
    except _Pulled:
        return True
    return False


def stage(
    method: Method | None,
    folder: Path,
    *,
    more: Sequence[Method] = (),
    kind: str = "",
    accumulate: int = 1,
    eval_every: int = 0,
    precision: str = "fp32",
    saved: Path | None = None,
    train: type[Train] = Train,
) -> Train:
    """The tiny stage with ``method`` and what it needs beside it, and ``more``; the
    rest is as in ``built``."""
    return built(
        [*beside(method, folder), *more],
        folder,
        kind=kind,
        accumulate=accumulate,
        eval_every=eval_every,
        precision=precision,
        saved=saved,
        train=train,
    )


def built(
    methods: Sequence[Method],
    folder: Path,
    *,
    kind: str = "",
    accumulate: int = 1,
    eval_every: int = 0,
    precision: str = "fp32",
    saved: Path | None = None,
    train: type[Train] = Train,
) -> Train:
    """A tiny stage with these methods, on a kind of model that they are for; ``saved`` is a checkpoint to go
    on from."""
    kind = kind or kinds_for(*methods)[0]
    fresh = model(kind)
    families.check_objectives([m for m in methods if isinstance(m, (Objective, Evaluator))], fresh)
    run = build(fresh, methods, STEPS, context(folder, kind), accumulate=accumulate, precision=precision,
                eval_every=eval_every, saved=saved, train=train)
    run.count_flops = False  # no law is about them, and on so small a model they take longest
    return run


@contextmanager
def scrambled(seed: int) -> Iterator[None]:
    """Other global generators than usual, put back afterwards: a method that draws from one comes to another
    result."""
    outside = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(outside[0])
            np.random.set_state(outside[1])


def generators() -> dict[str, Any]:
    """Where the global generators stand."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),
    }
