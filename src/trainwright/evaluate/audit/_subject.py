"""What is audited: a model, a corpus, and what the store knows of the model's life."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.storage.artifact import MANIFEST, Artifact
from trainwright.storage.store import Store


@dataclass
class Subject:
    """What is audited: a model, the corpus, and what is known of where the model comes from."""

    name: str
    model: nn.Module
    corpus: Path
    base: nn.Module | None = None
    base_name: str = ""
    read: tuple[Path, ...] = ()
    """Corpora that the model was trained on; empty where that is not known."""
    items: str = ""
    """A file of multiple-choice items."""


def found(model: str, corpus: str, base: str | None, items: str, store: Store, ctx: Context) -> Subject:
    """What the names of a command mean: artifacts of a store, or paths.

    Raises:
        UserError: there is no such artifact; a model is of another family, or has another vocabulary than the
            corpus.
    """
    where, artifact = _place(model, "config.json", store)
    read, start = _life(artifact, store) if artifact is not None else ((), None)
    tokens, _ = _place(corpus, "tokens/tokens.json", store)
    begun = _place(base, "config.json", store)[0] if base is not None else start
    loaded = _load(where, ctx)
    most, known = open_corpus(tokens).vocab_size, families.vocabulary_of(loaded)
    if known is not None and most > known:
        raise UserError(
            f"audit: the corpus {corpus} has {most} tokens and the model {model} {known}: build "
            f'the corpus with from = {{ tokenizer = "{model}" }}.'
        )
    return Subject(
        model,
        loaded,
        tokens,
        _load(begun, ctx) if begun is not None else None,
        base or (begun.name.rpartition("-")[0] or begun.name if begun is not None else ""),
        read,
        items,
    )


def _place(name: str, has: str, store: Store) -> tuple[Path, Artifact | None]:
    """The folder of a path or of an artifact."""
    if (Path(name) / has).is_file():
        path = Path(name)
        return path, Artifact(path) if (path / MANIFEST).is_file() else None
    artifact = store.named(name)
    return store.opened(artifact), artifact


def _life(artifact: Artifact, store: Store) -> tuple[tuple[Path, ...], Path | None]:
    """The corpora that the stages of a model were trained on, as far as the store has them, and the model
    that it was trained from."""
    corpora, start, at, seen = dict[Path, None](), None, artifact, set[Path]()
    while at.path not in seen:                       # a stranger's manifests may name each other
        seen.add(at.path)
        inputs = at.manifest["inputs"]
        before = inputs.get("model") or []
        for one in inputs.get("data") or []:
            folder = store.find(one["stage"], one["artifact"]) if one.get("artifact") else None
            if folder is not None:
                corpora[store.opened(folder)] = None
        if not before:
            return tuple(corpora), start
        one = before[0]
        made = store.find(one["stage"].partition("@")[0], one["artifact"]) if one.get("artifact") else None
        path = Path(str(one.get("path", "")))
        if start is None and (path / "config.json").is_file():
            start = path
        if made is None:
            return tuple(corpora), start
        at = made
    return tuple(corpora), start


def _load(folder: Path, ctx: Context) -> nn.Module:
    """A model that audits can read: a causal one."""
    model = families.load(folder, "audit").to(ctx.device).eval()
    if families.family_of(model).name != "causal_lm":
        raise UserError(
            f"audit: it reads causal language models, and {folder.name} is a {type(model).__name__}."
        )
    return model
