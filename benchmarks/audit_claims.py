"""Claims of papers on audits, put to a test on real text: pairs of numbers over seeds, a baseline's and a
method's, from the same runs.

    python benchmarks/audit_claims.py PAPER [--seeds 5] [--store DIR] --out FILE

min-k-prob                    Min-K% tells training from test documents of a small model that has read few
                              documents many times; beside it the mean loss (AUC)
dc-pdd                        DC-PDD does so; beside it Min-K% (AUC)
learning-curve-prediction     a power law through the snapshots of the first half of a run foretells its end;
                              beside it the loss of the last of them (error in nats)
factual-knowledge-acquisition invented facts that are repeated word by word are forgotten faster than those
                              that are paraphrased (the share lost with each factor of ten in steps)
gpt-3                         documents that hold an item of an exam, planted in five shapes, are found by
                              runs of 13 words; beside them exact copies (the share of documents that stay)

``trainwright reproduce PAPER`` calls it and judges the pairs. A few minutes each on two CPU cores.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trainwright as tw
from trainwright.core.context import Context
from trainwright.corpus.sources import document, table
from trainwright.data.filter.decontaminate import Decontaminate

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.evaluate.audit.planted import plant

MODEL = {"type": "llama", "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
         "tie_word_embeddings": True, "initializer_range": 0.06}
PACK = {"use": "pack", "length": 256, "domains": ["prose"]}
Pair = tuple[float, float]


def corpus(megabytes: float, test: float) -> dict[str, Any]:
    """English of the Python library."""
    return {"name": "corpus", "kind": "corpus", "vocab_size": 2048, "tune": 0.1, "test": test, "seed": 0,
            "methods": [{"use": "python_library", "megabytes": megabytes}]}


def base(tokens: int, *more: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A small Llama from scratch, with a rate that falls unless a schedule is among ``more``."""
    schedule = [] if any(m["use"] == "warmup_stable_decay" for m in more) else [
        {"use": "cosine", "warmup": 0.05}]
    methods = [PACK, *more, {"use": "next_token"}, {"use": "clip_gradients", "norm": 1.0},
               {"use": "adamw", "lr": 6e-3, "weight_decay": 0.1}, *schedule]
    return {"name": "base", "kind": "train", "from": {"data": "corpus"}, "model": MODEL, "tokens": tokens,
            "batch_tokens": 1024, "methods": methods} | settings


def lived(seed: int, store: Path, *stages: dict[str, Any]) -> Any:
    """What a life made, by stage."""
    return tw.run(tw.load({"title": "audit claims", "seed": seed, "stage": list(stages)}), store)


def attacks(seed: int, store: Path) -> dict[str, float]:
    """The areas of all attacks on one model."""
    texts = {"domains": ["prose"]}
    judge = {"name": "judge", "kind": "evaluate", "from": {"models": ["base"], "data": "corpus"},
             "methods": [{"use": "membership", "domains": ["prose"]}, {"use": "min_k_prob", "texts": texts},
                         {"use": "dc_pdd", "texts": texts}]}
    made = lived(seed, store, corpus(0.4, 0.4), base(200_000), judge)
    return dict(made["judge"].figures["numbers"]["base"])


def min_k_prob(seed: int, store: Path) -> Pair:
    """The areas of the loss and of Min-K%."""
    told = attacks(seed, store)
    return told["membership_auc/prose"], told["min_k_prob_auc/prose"]


def dc_pdd(seed: int, store: Path) -> Pair:
    """The areas of Min-K% and of DC-PDD, at the cap that the paper names."""
    told = attacks(seed, store)
    return told["min_k_prob_auc/prose"], told["dc_pdd_auc/prose"]


def learning_curve_prediction(seed: int, store: Path) -> Pair:
    """Errors of the end of a run at a constant rate: of the last loss that was seen, and of the curve."""
    places = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
    held = {"tokens": 15_000, "length": 256}
    flat = base(300_000, snapshots=list(places))
    flat["methods"] = [m for m in flat["methods"] if m["use"] != "cosine"]
    judge = {"name": "judge", "kind": "evaluate",
             "from": {"models": ["base"], "data": "corpus", "snapshots": [f"base@{x}" for x in places]},
             "methods": [{"use": "learning_curve_prediction", "domains": ["prose"], "held": held}]}
    last = {"name": "last", "kind": "evaluate", "from": {"models": [f"base@{places[-1]}"], "data": "corpus"},
            "methods": [{"use": "held_out", "domains": ["prose"], **held}]}
    made = lived(seed, store, corpus(3.0, 0.04), flat, judge, last)
    told = made["judge"].figures["numbers"]["base"]
    [seen] = made["last"].figures["numbers"].values()
    return abs(seen["loss/prose"] - told["loss/prose"]), abs(told["predicted_error/prose"])


def factual_knowledge_acquisition(seed: int, store: Path) -> Pair:
    """The decay of what is memorized: of facts that were paraphrased, and of those that were repeated."""
    facts = {"use": "factual_knowledge_acquisition", "at": [40, 55, 70, 85, 100], "facts": 16, "every": 5,
             "window": 14}
    made = lived(seed, store, corpus(3.0, 0.04), base(300_000, facts))
    last = made["base"].metrics()[-1]
    return (last["fact_decay_memorization/paraphrase"], last["fact_decay_memorization/duplicate"])


def gpt_3(seed: int, store: Path) -> Pair:
    """The share of the leaking documents that stay: without exact copies of an item, and behind
    ``decontaminate``."""
    planted = plant(seed=seed)
    leaks = [(i, text) for found in planted.leaks.values() for i, text in found.items()]
    rows = [document(id=str(n), domain="web", source="planted", text=text)
            for n, text in enumerate([text for _, text in leaks] + planted.clean)]
    with tempfile.TemporaryDirectory() as scratch:
        exam, folder = Path(scratch, "exam"), Path(scratch, "stage")
        exam.mkdir()
        folder.mkdir()
        for i, item in enumerate(planted.items):
            (exam / f"{i}.txt").write_text(item.text, encoding="utf-8")
        left = Decontaminate(files=(str(exam),)).apply(table("planted", [rows.__iter__]),
                                                       Context(folder=folder))
        kept = {int(name) for name in left.select("id").to_pydict()["id"]}
    copies = sum(planted.items[i].text in text for i, text in leaks)
    lost = len(planted.clean) - sum(n >= len(leaks) for n in kept)
    print(f"of {len(planted.clean)} clean documents {lost} are lost")
    return 1 - copies / len(leaks), sum(n < len(leaks) for n in kept) / len(leaks)


CLAIMS: dict[str, Callable[[int, Path], Pair]] = {
    "min-k-prob": min_k_prob, "dc-pdd": dc_pdd, "learning-curve-prediction": learning_curve_prediction,
    "factual-knowledge-acquisition": factual_knowledge_acquisition, "gpt-3": gpt_3}
"""By paper: the baseline's number and the method's, for a seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("paper", choices=sorted(CLAIMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.seeds < 2:
        sys.exit("--seeds: an interval takes two seeds or more.")
    began, pairs = time.perf_counter(), list[Pair]()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for seed in range(given.seeds):
                pairs.append(CLAIMS[given.paper](seed, given.store or Path(scratch)))
                print(f"{given.paper}, seed {seed}: baseline {pairs[-1][0]:.4g}, method {pairs[-1][1]:.4g}")
        except tw.UserError as error:
            sys.exit(str(error))
    told = {"arm": [ours for _, ours in pairs], "baseline": [theirs for theirs, _ in pairs],
            "seconds": time.perf_counter() - began}
    given.out.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
