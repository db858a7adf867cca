"""Merging, Trainwright against mergekit: peak memory, processor and wall seconds, and how weights agree.

    python benchmarks/merge.py --mergekit VENV/bin/mergekit-yaml [--quick] [--out FILE]

Checkpoints are generated: Llamas in bfloat16 of 0.1 GB and 2 GB with random weights, the fine-tunes being the
base, a small random change that all share, and one of their own. Each merge is a whole command in a process
of its own, the two programs in turn; memory is the largest resident set of the process as the system
accounts for it. mergekit has an environment of its own: it needs other versions of what both use. ``--quick``
leaves the large ones out.

The second table compares weights on small checkpoints in float32, with mergekit's ``normalize`` and its
rescaling set to what ours does: the largest difference of any entry, and the share of entries that differ by
more than 1e-6. Random methods (DARE, DELLA) have no such number.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from trainwright.core import hardware
from trainwright.families.tensors import Entry, Reader, Writer

SIZES = {  # hidden, inner, layers, vocabulary
    "0.1 GB": (512, 1408, 8, 32_000), "2 GB": (2048, 5632, 20, 32_000)}
MODELS = ("base", "one", "two", "three")
BLOCK = 1 << 22
"""Random numbers that a generated tensor repeats, from another place in each."""
MOVE = 2e-3
"""Size of a fine-tune's change; weights are of size 0.02."""
SEED = 0


def config(size: tuple[int, int, int, int]) -> dict[str, Any]:
    hidden, inner, layers, vocabulary = size
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
            "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": hidden // 64,
            "num_key_value_heads": hidden // 64, "vocab_size": vocabulary, "max_position_embeddings": 512,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16"}


def entries(size: tuple[int, int, int, int], dtype: torch.dtype) -> list[Entry]:
    hidden, inner, layers, vocabulary = size
    words = (vocabulary, hidden)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": words, "lm_head.weight": words}
    shapes["model.norm.weight"] = (hidden,)
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        shapes |= {f"{at}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{at}.{p}_layernorm.weight": (hidden,) for p in ("input", "post_attention")}
    return [Entry(n, s, dtype) for n, s in sorted(shapes.items())]


def generate(
    folder: Path, size: tuple[int, int, int, int], dtype: torch.dtype, models: tuple[str, ...]
) -> None:
    """The base and models that were made from it."""
    draw = torch.Generator().manual_seed(SEED)
    around, shared = 0.02 * torch.randn(BLOCK, generator=draw), MOVE * torch.randn(BLOCK, generator=draw)
    for model in models:
        own = around + shared + MOVE * torch.randn(BLOCK, generator=draw)
        block = around if model == "base" else own
        block = torch.cat([block, block]).to(dtype)
        out = folder / model
        out.mkdir(parents=True)
        (out / "config.json").write_text(json.dumps(config(size)))
        writer = Writer(out, entries(size, dtype))
        kinds = {e.name: e.numel for shard in writer.shards for e in shard}
        for number, name in enumerate(writer.order):
            start, left = number * 104_729 % BLOCK, kinds[name]
            pieces = [BLOCK] * (left // BLOCK) + ([left % BLOCK] if left % BLOCK else [])
            writer.add(name, (block[start:start + n] for n in pieces))
        writer.close()


METHODS: dict[str, tuple[str, dict[str, Any], bool, int]] = {
    # ours in TOML, mergekit's configuration, whether it has a base, how many models
    "linear": ('{ use = "interpolate" }', {"merge_method": "linear", "each": {"weight": 0.5}}, False, 2),
    "slerp": ('{ use = "slerp", t = 0.3 }', {"merge_method": "slerp", "parameters": {"t": 0.3}}, False, 2),
    "task_arithmetic": ('{ use = "task_arithmetic", weights = [0.4, 0.3, 0.2] }',
                        {"merge_method": "task_arithmetic", "weights": [0.4, 0.3, 0.2]}, True, 3),
    "ties": ('{ use = "ties", over = "tensor", density = 0.5 }',
             {"merge_method": "ties", "parameters": {"normalize": True},
              "each": {"weight": 1.0, "density": 0.5}}, True, 3),
    "breadcrumbs": ('{ use = "breadcrumbs", density = 0.5, outliers = 0.1, weights = [0.4, 0.4, 0.4] }',
                    {"merge_method": "breadcrumbs", "each": {"weight": 0.4, "density": 0.5, "gamma": 0.1}},
                    True, 3),
    "model_stock": ('{ use = "model_stock" }', {"merge_method": "model_stock"}, True, 3),
}


LAUNCHER = """
import json, os, subprocess, sys, time
with open("log.txt", "wb") as out:
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdout=out, stderr=out)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
print(json.dumps([status, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""
"""What starts a command and waits for it: a process of few megabytes, since Linux counts the memory of the
process that starts another as the other's."""


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds and memory of a command, as the system accounts for its process."""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, *command], cwd=folder, env=environment,
                          capture_output=True, text=True, check=True)
    status, seconds, cpu, kib = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'log.txt').read_text()[-2000:]}")
    return {"wall_seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mib": round(kib / 1024, 1)}


def ours(method: str, folder: Path) -> tuple[dict[str, float], Path]:
    text, _, based, n = METHODS[method]
    models = ", ".join(f'"{m}"' for m in MODELS[1:n + 1])
    (folder / "merge.toml").write_text(
        f'[[stage]]\nname = "merged"\nkind = "merge"\nmethods = [{text}]\n'
        f'from = {{ models = [{models}]{", base = " + chr(34) + "base" + chr(34) if based else ""} }}\n'
    )
    store = folder / f"ours-{method}-{time.time_ns()}"
    command = [sys.executable, "-m", "trainwright", "run", "merge.toml", "--store", str(store)]
    return measured(command, folder), next(store.rglob("model*.safetensors")).parent


def theirs(method: str, folder: Path, program: str) -> tuple[dict[str, float], Path]:
    _, table, based, n = METHODS[method]
    models = []
    for i, name in enumerate(MODELS[1:n + 1]):
        own = dict(table.get("each", {}))
        if "weights" in table:
            own["weight"] = table["weights"][i]
        models.append({"model": str(folder / name), "parameters": own})
    told = {k: v for k, v in table.items() if k not in ("each", "weights")} | {"models": models}
    kind = json.loads((folder / "one" / "config.json").read_text())["torch_dtype"]
    told |= {"dtype": "float32", "out_dtype": kind}
    if based or method == "slerp":
        told["base_model"] = str(folder / ("base" if based else "one"))
    (folder / "merge.yml").write_text(json.dumps(told))          # YAML reads JSON
    out = folder / f"theirs-{method}-{time.time_ns()}"
    return measured([program, "merge.yml", str(out), "--no-copy-tokenizer"], folder), out


def costs(size: str, program: str, rounds: int, methods: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        most = max(METHODS[m][3] for m in methods)
        based = any(METHODS[m][2] for m in methods)
        generate(folder, SIZES[size], torch.bfloat16, MODELS[0 if based else 1:most + 1])
        for method in methods:
            for _ in range(rounds):
                mine, place = ours(method, folder)
                others, other = theirs(method, folder, program)
                rows.append({"size": size, "method": method, "ours": mine, "mergekit": others,
                             "memory_ratio": round(mine["peak_mib"] / others["peak_mib"], 3),
                             "cpu_ratio": round(mine["cpu_seconds"] / others["cpu_seconds"], 3),
                             "wall_ratio": round(mine["wall_seconds"] / others["wall_seconds"], 3),
                             "differing": difference(place, other)["differing"]})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def difference(one: Path, two: Path) -> dict[str, float]:
    """The largest difference of any entry of two checkpoints, and the share that differ."""
    a, b = Reader(one, "ours"), Reader(two, "mergekit")
    assert a.names == b.names, set(a.names) ^ set(b.names)
    largest, count, total = 0.0, 0, 0
    for name in a.names:
        gap = (a.get(name).float() - b.get(name).float()).abs()
        largest, total = max(largest, float(gap.max())), total + gap.numel()
        count += int((gap > 1e-6).sum())
    return {"largest": largest, "differing": count / total}


def agreement(program: str) -> dict[str, dict[str, float]]:
    """How far the two programs' weights are apart, on small checkpoints in float32."""
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        generate(folder, (128, 256, 2, 500), torch.float32, MODELS)
        for model in MODELS:
            file = folder / model / "config.json"
            file.write_text(file.read_text().replace("bfloat16", "float32"))
        found = {m: difference(ours(m, folder)[1], theirs(m, folder, program)[1]) for m in METHODS}
    for method, row in found.items():
        print(f"{method:16} largest {row['largest']:.2e}, differing {row['differing']:.2e}", flush=True)
    return found


def version(program: str) -> str:
    code = "from importlib.metadata import version; print(version('mergekit'))"
    python = str(Path(program).with_name("python"))
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", required=True, help="mergekit-yaml of an environment of its own")
    parser.add_argument("--quick", action="store_true", help="leave the large checkpoints out")
    parser.add_argument("--rounds", type=int, default=3, help="how often each pair is measured")
    parser.add_argument("--note", default="", help="what a reader should know of the machine")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    table: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]).replace(given.mergekit, "VENV/bin/mergekit-yaml"),
        "hardware": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                     "memory_gib": round(hardware.memory_bytes() / 2**30, 1)},
        "versions": {"torch": torch.__version__, "mergekit": version(given.mergekit)},
        "note": given.note, "costs": []}

    def keep() -> None:
        if given.out:
            given.out.write_text(json.dumps(table, indent=1) + "\n")

    for size, methods in (("0.1 GB", ("linear", "ties")), ("2 GB", ("linear",)))[:1 if given.quick else 2]:
        table["costs"] += costs(size, given.mergekit, given.rounds, methods)
        keep()
    table["agreement"] = agreement(given.mergekit)
    keep()


if __name__ == "__main__":
    main()
