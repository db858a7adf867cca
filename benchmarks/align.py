"""DPO and GRPO beside TRL's: the same losses; tokens a second and the most memory.

    python benchmarks/align.py [dpo] [grpo] [--rounds 3] [--quick] [--out benchmarks/results/align.json]
        dpo:  [--model PATH] [--pairs 8] [--steps 8] [--length 256]
        grpo: [--asked 8] [--group 8] [--prompt 96] [--new 64] [--rollouts 5]

Both train all weights of one model in float32 with torch's AdamW. Each side runs in a process of its own, in
turn, ``rounds`` times.

dpo   The same token ids, against a second, frozen model. TRL is its ``DPOTrainer``'s own loss on batches that
      are padded to their longest answer, as its collator makes them, without the rest of its trainer; ours is
      the objective ``dpo``, with its answers packed into rows and padded. Lengths of prompts and answers are
      drawn evenly, so that a half of a padded batch is padding at worst. Without ``--model`` a Llama of 30
      million parameters with a vocabulary of 49,152 is made.
grpo  Whole runs, from prompts to weights: sampling ``group`` answers of ``new`` tokens to each of ``asked``
      prompts of up to ``prompt`` tokens, grading, and a step on all of them, ``rollouts`` times
      (``align_grpo.py``). Losses and gradients are compared on batches that are the same. A Llama of 7
      million parameters with a vocabulary of 16,384.

tokens_per_second  the median over steps and rounds, the first step of each left out: for dpo tokens of
                   prompts and answers, without padding; for grpo tokens of answers, by the seconds of a whole
                   step; ``sampled_per_second`` by those of sampling and grading alone, ``trained_per_second``
                   by the rest
ratio              of those to TRL's, the median over the rounds
peak_bytes         the most memory in use, less what was before the models were there
losses             of each step; ``furthest`` is how far ours are from TRL's at most

``--quick`` is for trying it: tiny models. Needs trl and datasets, and a machine on which nothing else runs.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import align_grpo
from trainwright import families
from trainwright.align.dpo import Dpo
from trainwright.core import ledger
from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED, Batch
from trainwright.storage.versions import describe

SIDES = ("trl", "packed", "padded")
DPO = {"pairs": 8, "steps": 8, "length": 256}
GRPO = {"asked": 8, "group": 8, "prompt": 96, "new": 64, "rollouts": 5}
"""Sizes, by option."""
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


def work(worker: str, given: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own measures."""
    what, side = worker.split(":")
    if what == "dpo":
        return steps(side, given)
    return align_grpo.losses(given) if side == "losses" else align_grpo.whole(side, given)


def steps(side: str, given: argparse.Namespace) -> dict[str, Any]:
    """One side's steps of DPO in this process."""
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
    speeds = [n / s for n, s in zip(tokens, seconds, strict=True)]
    return {"losses": losses, "peak_bytes": ledger.peak_memory() - before,
            "tokens_per_second": statistics.median(speeds[1:])}


def told(worker: str) -> dict[str, Any]:
    """What a process of its own says."""
    out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--worker", worker],
                         capture_output=True, text=True, check=False)
    if out.returncode:
        raise SystemExit(f"{worker}: {out.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def in_turn(given: argparse.Namespace, what: str, sides: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The runs of all sides."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side in sides:
            runs[side].append(told(f"{what}:{side}"))
    return runs


def ratios(runs: dict[str, list[dict[str, Any]]], side: str, name: str) -> float:
    """The median of the rounds of a figure by TRL's."""
    figures = zip(runs[side], runs["trl"], strict=True)
    return statistics.median(a[name] / b[name] for a, b in figures)


def dpo(given: argparse.Namespace) -> dict[str, Any]:
    runs = in_turn(given, "dpo", SIDES)
    found = {}
    for side, mine in runs.items():
        apart = zip(mine[0]["losses"], runs["trl"][0]["losses"], strict=True)
        found[side] = {
            "tokens_per_second": statistics.median(r["tokens_per_second"] for r in mine),
            "ratio": ratios(runs, side, "tokens_per_second"), "losses": mine[0]["losses"],
            "peak_bytes": min(r["peak_bytes"] for r in mine),
            "furthest": max(abs(a - b) for a, b in apart)}
    return found


def grpo(given: argparse.Namespace) -> dict[str, Any]:
    runs = in_turn(given, "grpo", ("trl", "ours"))
    speeds = ("tokens_per_second", "sampled_per_second", "trained_per_second")
    found: dict[str, Any] = {"sizes": {n: getattr(given, n) for n in GRPO}}
    for side, mine in runs.items():
        found[side] = {name: statistics.median(r[name] for r in mine) for name in speeds} | {
            "tokens": statistics.mean(r["tokens"] for r in mine),
            "peak_bytes": min(r["peak_bytes"] for r in mine),
            "ratio": {name: ratios(runs, side, name) for name in speeds}}
    return found | {"losses": told("grpo:losses")}


def say(what: str, found: dict[str, Any]) -> None:
    if what == "dpo":
        for side, one in found.items():
            print(f"dpo   {side:7} {one['tokens_per_second']:9,.0f} tokens/s   {one['ratio']:5.2f} x TRL   "
                  f"{one['peak_bytes'] / 2**20:7,.0f} MiB   losses off by {one['furthest']:.1e} at most")
        return
    for side in ("trl", "ours"):
        one = found[side]
        parts = "   ".join(f"{name.split('_')[0]} {one[name]:7,.0f}/s {ratio:5.2f} x"
                           for name, ratio in one["ratio"].items())
        print(f"grpo  {side:7} {parts}   {one['peak_bytes'] / 2**20:7,.0f} MiB")
    print(f"grpo  losses off by {found['losses']['furthest']:.1e} at most, gradients by "
          f"{found['losses']['gradients']:.1e} of the greatest")


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("what", nargs="*", choices=[*PARTS, []], metavar="{dpo,grpo}")
    parser.add_argument("--model")
    for name, usual in (DPO | GRPO | {"rounds": 3}).items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(given.worker, given)))
        return
    found = {}
    for what in given.what or PARTS:
        found[what] = PARTS[what](given)
        say(what, found[what])
    if given.out:
        import trl
        given.out.write_text(json.dumps({
            "date": datetime.date.today().isoformat(), "hardware": describe(),
            "trl": trl.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "command": " ".join(sys.argv)} | found, indent=1) + "\n")


PARTS = {"dpo": dpo, "grpo": grpo}

if __name__ == "__main__":
    main()
