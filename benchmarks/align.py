"""DPO beside TRL's: the same pairs, the same losses; tokens a second and the most memory.

    python benchmarks/align.py [--model PATH] [--pairs 8] [--steps 8] [--rounds 3] [--length 256] [--quick]
        [--out benchmarks/results/align.json]

Both train all weights of one model in float32 with torch's AdamW on the same token ids, against a second,
frozen model. TRL is its ``DPOTrainer``'s own loss on batches that are padded to their longest answer, as its
collator makes them, without the rest of its trainer; ours is the objective ``dpo``, with its answers packed
into rows and padded. Lengths of prompts and answers are drawn evenly, so that a half of a padded batch is
padding at worst. Each side runs in a process of its own, in turn, ``rounds`` times.

tokens_per_second  tokens of prompts and answers, without padding, by the seconds of a step; the median over
                   steps and rounds, the first step of each left out
ratio              of those to TRL's, the median over the rounds
peak_bytes         the most memory in use, less what was before the models were there
losses             of each step; ``furthest`` is how far ours are from TRL's at most

Without ``--model`` a Llama of 30 million parameters with a vocabulary of 49,152 is made. ``--quick`` is for
trying it: a tiny one. Needs trl and datasets, and a machine on which nothing else runs.
"""
from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.align.dpo import Dpo
from trainwright.core import ledger
from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED, Batch
from trainwright.storage.versions import describe

SIDES = ("trl", "packed", "padded")
BETA, LR = 0.1, 1e-5
SHAPE = {"type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
         "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 1024,
         "tie_word_embeddings": True, "vocab_size": 49152}
SMALL = SHAPE | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 512}
Inputs = dict[str, Tensor]


def models(given: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """The model to train and its reference, equal at first."""
    if given.model:
        both = [families.load(Path(given.model), "align") for _ in range(2)]
    else:
        config = families.from_table(SMALL if given.quick else SHAPE, None, "align", Path(), None)
        both = [families.create(config, 0, "align") for _ in range(2)]
    return both[0].train(), both[1].eval().requires_grad_(False)


def batches(given: argparse.Namespace, words: int) -> list[Inputs]:
    """Batches as TRL's collator makes them: chosen rows, then rejected ones, padded to the longest."""
    g = torch.Generator().manual_seed(0)

    def drawn(low: int, high: int) -> list[int]:
        size = int(torch.randint(low, high, (1,), generator=g))
        return torch.randint(3, words, (size,), generator=g).tolist()
    half, made = given.length // 2, []
    for _ in range(given.steps):
        prompts = [drawn(8, half) for _ in range(given.pairs)]
        rows = [(prompt, drawn(8, half)) for prompt in [*prompts, *prompts]]
        width = max(len(p) + len(a) for p, a in rows)
        ids = torch.tensor([[*p, *a] + [0] * (width - len(p) - len(a)) for p, a in rows])
        there = torch.tensor([[1] * (len(p) + len(a)) + [0] * (width - len(p) - len(a)) for p, a in rows])
        answer = there * (torch.arange(width) >= torch.tensor([len(p) for p, _ in rows])[:, None])
        made.append({"input_ids": ids, "attention_mask": there, "completion_mask": answer})
    return made


def as_ours(given: Inputs) -> Batch:
    """The same batch as ``examples`` would make it."""
    targets = torch.full_like(given["input_ids"], UNTRAINED)
    inside = given["completion_mask"][:, 1:] > 0
    targets[:, :-1] = torch.where(inside, given["input_ids"][:, 1:], UNTRAINED)
    parts = {"ids": given["input_ids"], "attention_mask": given["attention_mask"], "targets": targets}
    return {f"{side}_{name}": t for name, both in parts.items()
            for side, t in zip(("chosen", "rejected"), both.chunk(2), strict=True)}


def loss_of(side: str, model: nn.Module, reference: nn.Module) -> Callable[[Inputs], Tensor]:
    """The mean loss of the pairs of a batch, as one side computes it."""
    if side == "trl":
        from datasets import Dataset
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast
        from trl import DPOConfig, DPOTrainer
        plain = Tokenizer(WordLevel({"a": 0, "b": 1, "</s>": 2}, unk_token="a"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", pad_token="</s>")
        settings = DPOConfig(output_dir=tempfile.mkdtemp(), report_to=[], bf16=False, beta=BETA,
                             use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False,
                             disable_tqdm=True)
        rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "a"}] * 2)
        trainer = DPOTrainer(model=model, ref_model=reference, args=settings, processing_class=tokenizer,
                             train_dataset=rows)
        return lambda batch: trainer.compute_loss(trainer.model, dict(batch))
    method = Dpo(beta=BETA, packed=side == "packed")
    ctx = Context(device=next(model.parameters()).device, frozen={"reference": reference})
    method.init(model, ctx)

    def ours(given: Inputs) -> Tensor:
        batch, ctx.notes = as_ours(given), {}
        return method.loss(model, batch, {}, ctx).sum() / method.count(batch)
    return ours


def worker(side: str, given: argparse.Namespace) -> dict[str, Any]:
    """One side's run in this process."""
    import trainwright.lm.logprobs  # noqa: F401  # both sides have the libraries in memory
    ledger.reset_peak()
    before = ledger.memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, reference = (m.to(device) for m in models(given))
    made = batches(given, families.vocabulary_of(model) or 3)
    data = [{n: t.to(device) for n, t in b.items()} for b in made]
    loss, seconds, losses = loss_of(side, model, reference), [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    for batch in data:
        began = time.perf_counter()
        value = loss(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(value))
        seconds.append(time.perf_counter() - began)
    tokens = [int(b["attention_mask"].sum()) for b in data]
    return {"losses": losses, "peak_bytes": ledger.peak_memory() - before,
            "tokens_per_second": [n / s for n, s in zip(tokens, seconds, strict=True)][1:]}


def compared(given: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn, each in a process of its own."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(given.rounds):
        for side in SIDES:
            out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--worker", side],
                                 capture_output=True, text=True, check=False)
            if out.returncode:
                raise SystemExit(f"{side}: {out.stderr[-2000:]}")
            runs[side].append(json.loads(out.stdout.splitlines()[-1]))
    speeds = {side: [statistics.median(r["tokens_per_second"]) for r in mine] for side, mine in runs.items()}
    return {side: {
        "tokens_per_second": statistics.median(speeds[side]),
        "ratio": statistics.median(a / b for a, b in zip(speeds[side], speeds["trl"], strict=True)),
        "peak_bytes": min(r["peak_bytes"] for r in mine), "losses": mine[0]["losses"],
        "furthest": max(abs(a - b) for a, b in zip(mine[0]["losses"], runs["trl"][0]["losses"], strict=True))}
        for side, mine in runs.items()}


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--model")
    for name, usual in (("pairs", 8), ("steps", 8), ("rounds", 3), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(worker(given.worker, given)))
        return
    found = compared(given)
    for side, one in found.items():
        print(f"{side:7} {one['tokens_per_second']:9,.0f} tokens/s   {one['ratio']:5.2f} x TRL   "
              f"{one['peak_bytes'] / 2**20:7,.0f} MiB   losses off by {one['furthest']:.1e} at most")
    if given.out:
        import trl
        given.out.write_text(json.dumps({
            "date": datetime.date.today().isoformat(), "hardware": describe(),
            "trl": trl.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "command": " ".join(sys.argv),
            "dpo": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
