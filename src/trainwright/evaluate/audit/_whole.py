"""All that an audit measures of one model and one corpus, as a table that JSON can hold.

Contamination is looked for in three places: in the texts of the corpora that the model was trained on (as far
as they are known; else in the corpus' own training documents), for the corpus' ``test`` documents and for the
items of a file; in the model, whose loss on ``test`` documents may not be lower than on ``tune`` documents,
which are drawn from the same pool (Mann-Whitney's one-sided test, at 1 % over all domains); and in the split,
which a classifier of words alone must not tell apart. These are findings. Memorization, calibration,
forgetting and drift are measured, and are no findings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.audit._attacks import ATTACKS, Asked, question
from trainwright.evaluate.audit._calibration import calibration, curve
from trainwright.evaluate.audit._drift import drift
from trainwright.evaluate.audit._items import read as read_items
from trainwright.evaluate.audit._leaks import Leaks
from trainwright.evaluate.audit._roc import numbers
from trainwright.evaluate.audit._subject import Subject
from trainwright.evaluate.audit._texts import Texts, Told, told
from trainwright.evaluate.audit.min_k_prob import MinKProb

ALARM = 0.01
"""Probability at which a clean model is said to have seen the test documents, over all domains."""
UNFAIR = 1e-3
"""The same of a split that words alone tell apart; the scores of folds are not quite independent."""
VERBATIM = 16
"""Tokens at the end of what is read of a text that are to be continued rightly, all of them."""
SHOWN = 10
"""Leaks that are shown."""


def audit(subject: Subject, how: Texts, ctx: Context) -> dict[str, Any]:
    """Everything, with ``findings`` as sentences."""
    ctx.inputs = {"data": [subject.corpus]}
    corpus = open_corpus(subject.corpus)
    out: dict[str, Any] = {
        "model": subject.name,
        "base": subject.base_name,
        "domains": {},
        "findings": [],
        "corpus": str(subject.corpus),
        "read": [str(one) for one in subject.read],
    }
    chosen = how.domains or corpus.domains
    pooled: list[list[Told]] = []
    for domain in chosen:
        asked = question(domain, subject.model, how, ctx, "audit")
        held = asked.told(whole=True)[len(asked.sides.members) :]
        pooled.append(held)
        spare = told(subject.model, asked.spare, ctx, how.batch_size) if asked.spare else []
        out["domains"][domain] = {
            "documents": {"train": len(asked.sides.members), "test": len(held), "tune": len(spare)},
            "split": _split(asked, len(chosen), out["findings"]),
            "seen": _seen(asked, held, spare, len(chosen), out["findings"]),
            "memorization": _memorization(asked),
            "calibration": calibration(held, ctx, domain),
            "forgetting": _forgetting(subject, asked, held, ctx),
        }
    whole = [one for found in pooled for one in found]
    out["calibration"] = calibration(whole, ctx, "all") | {"curve": curve(whole)}
    out["leaks"] = [
        _leaked(name, search, subject, out["findings"]) for name, search in _searches(subject, chosen)
    ]
    out["drift"] = drift(subject.base, subject.model) if subject.base is not None else []
    return out


# ---- contamination -----------------------------------------------------------------------------------------


def _above(first: Sequence[float], second: Sequence[float]) -> float:
    """The probability that the first are so much above the second by chance."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(first, second, alternative="greater").pvalue)


def _split(asked: Asked, tests: int, findings: list[str]) -> dict[str, float]:
    """Whether words alone tell members from others."""
    scores, many = ATTACKS["words"](asked), len(asked.sides.members)
    found = _short(numbers("words", asked.domain, scores[:many], scores[many:], asked.ctx))
    p = _above(scores[:many], scores[many:])
    if p < UNFAIR / tests:
        findings.append(
            f"The split of {asked.domain} is not fair: words alone, without the model, tell "
            f"training from test documents (AUC {found['auc']:.2f}). Memorization on it means "
            "nothing."
        )
    return found | {"p": p}


def _seen(
    asked: Asked, held: Sequence[Told], spare: Sequence[Told], tests: int, findings: list[str]
) -> dict[str, float]:
    """Whether the model prefers test to tune documents, as if it had read them."""
    if len(spare) < 3 or len(held) < 3:
        return {}
    mine, theirs = ([float(one.logp.mean()) for one in side] for side in (held, spare))
    found = _short(numbers("seen", asked.domain, mine, theirs, asked.ctx))
    p = _above(mine, theirs)
    if p < ALARM / tests:
        findings.append(
            f"The model seems to have read the test documents of {asked.domain}: their loss is "
            f"lower than that of tune documents of the same pool (AUC {found['auc']:.2f}, "
            f"p = {p:.1g})."
        )
    return found | {"p": p}


def _searches(subject: Subject, chosen: Sequence[str]) -> Iterator[tuple[str, Leaks]]:
    """What is looked for: the test documents of each domain, and the items."""
    known = list(_rows(subject.corpus, "test"))
    for domain in chosen:
        found = [text for _, of, text in known if of == domain]
        if found:
            yield f"test documents of {domain}", Leaks(found)
    if subject.items:
        yield (
            f"items of {subject.items}",
            Leaks([one.text for one in read_items(subject.items, Path(), "audit")]),
        )


def _leaked(name: str, search: Leaks, subject: Subject, findings: list[str]) -> dict[str, Any]:
    """What training documents have of the texts of a search."""
    documents = 0
    for folder in subject.read or (subject.corpus,):
        documents += search.search((i, text) for i, _, text in _rows(folder, "train"))
    found, many = search.found(), int(search.searched.sum())
    if found:
        findings.append(
            f"{len(found)} of {many} {name} stand in the training documents, the first in "
            f"{found[0].document} ({found[0].share:.0%} of it)."
        )
    return {
        "name": name,
        "texts": len(search.sizes),
        "searched": many,
        "documents": documents,
        "leaked": len(found),
        "shown": [leak._asdict() for leak in found[:SHOWN]],
    }


def _rows(folder: Path, split: str) -> Iterator[tuple[str, str, str]]:
    """Id, domain and text of a corpus' documents of a split, a few at a time in memory."""
    index = pq.read_table(folder / "tokens" / "index.parquet", columns=["id", "split"]).to_pydict()
    mine = {i for i, s in zip(index["id"], index["split"], strict=True) if s == split}
    files = sorted((folder / "documents").glob("*.parquet"))
    if not files:
        raise UserError(f"{folder} is no corpus: it has no documents.")
    for file in files:
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(batch_size=256, columns=["id", "domain", "text"]):
                for row in batch.to_pylist():
                    if row["id"] in mine:
                        yield row["id"], row["domain"], row["text"] or ""


# ---- what is measured --------------------------------------------------------------------------------------


def _short(found: dict[str, float]) -> dict[str, float]:
    """``words_auc_low/DOMAIN`` as ``auc_low``."""
    return {name.partition("/")[0].partition("_")[2]: value for name, value in found.items()}


def _memorization(asked: Asked) -> dict[str, Any]:
    """How well members are told from others, and how many texts are known to their end by heart."""
    attacks = {
        "loss": ATTACKS["loss"],
        "min-k": MinKProb().scores,
        "min-k++": MinKProb(normalized=True).scores,
    }
    if asked.tokenizer is not None:
        attacks["zlib"] = ATTACKS["zlib"]
    many, out = len(asked.sides.members), dict[str, Any]()
    for name, attack in attacks.items():
        scores = attack(asked)
        out[name] = _short(numbers("x", f"{asked.domain}/{name}", scores[:many], scores[many:], asked.ctx))
    right = [
        bool((one.logp >= one.top)[-VERBATIM:].all()) and len(one.logp) >= VERBATIM
        for one in asked.told(whole=True)
    ]
    out["verbatim"] = {"train": float(np.mean(right[:many])), "test": float(np.mean(right[many:]))}
    return out


def _forgetting(subject: Subject, asked: Asked, held: Sequence[Told], ctx: Context) -> dict[str, float]:
    """The loss on test documents, and how much higher it is than that of the base, paired over documents."""
    loss = {"loss": -float(np.concatenate([one.logp for one in held]).mean())}
    if subject.base is None:
        return loss
    before = told(subject.base, asked.sides.others, ctx, asked.how.batch_size, whole=False)
    nats = np.array([float(b.logp.sum() - a.logp.sum()) for a, b in zip(held, before, strict=True)])
    sizes = np.array([len(one.logp) for one in held])
    draws = torch.randint(
        len(nats), (1000, len(nats)), generator=ctx.rng(f"forgetting/{asked.domain}", at=0)
    ).numpy()
    spread = nats[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(spread, [0.025, 0.975])
    change = float(nats.sum() / sizes.sum())
    return loss | {
        "change": change,
        "low": float(low),
        "high": float(high),
        "perplexity": math.exp(min(loss["loss"], 700.0)),
    }
