"""Compression, Trainwright against llm-compressor and torchao: seconds, memory, bytes on disk, and error.

    python benchmarks/compress.py [--quick] [--peers FOLDER] [--note WORDS] [--out FILE]

``--peers`` is a folder into which the peers were put, as by ``pip install --no-deps --target FOLDER
llmcompressor compressed-tensors loguru torchao``; those that are not there are said to be absent.

The first table is about whole models: a generated Llama with random weights in float32, each method in a
process of its own (memory is the largest resident set as the system accounts for it, seconds are those of the
method). The error is that of the logits, as a share of their length: with random weights it compares formats
and methods, not what a model would lose; torchao's row is followed by what it takes beside ours of as many
bits. The second table gives the same layers and the same inputs to our
solvers and to llm-compressor's: seconds, how much each changes what the layer computes, and how many entries
differ.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
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
from trainwright.compress.gptq import GPTQ
from trainwright.compress.magnitude import Magnitude
from trainwright.compress.round_nearest import RoundNearest
from trainwright.compress.sparsegpt import Sparsegpt
from trainwright.compress.wanda import Wanda
from trainwright.core import ledger
from trainwright.core.context import Context
from trainwright.families import frozen, gguf_file, packed
from trainwright.lm import quantized

SIZES = {"6 M": (256, 704, 4, 4000), "1 M": (64, 192, 2, 1000)}  # hidden, inner, layers, vocabulary
GROUP, SEED = 32, 0
OURS: dict[str, Callable[[], Any]] = {
    "round_nearest, 4 bits": lambda: RoundNearest(bits=4, group_size=GROUP),
    "round_nearest, 8 bits": lambda: RoundNearest(bits=8, group_size=GROUP),
    "gptq, 4 bits": lambda: GPTQ(bits=4, group_size=GROUP),
    "magnitude, 2:4": lambda: Magnitude(pattern="2:4"),
    "wanda, 2:4": lambda: Wanda(pattern="2:4"),
    "sparsegpt, 2:4": lambda: Sparsegpt(pattern="2:4"),
}
FILES = {f"GGUF {kind}": kind for kind in gguf_file.TYPES}
HELD = {f"frozen = {table}": table for table in frozen.TABLES}
PEERS = {"torchao, int8 weights": "torchao"}
BESIDE = {"torchao, int8 weights": "round_nearest, 8 bits"}
SOLVERS = "llmcompressor"


def model(size: str) -> Any:
    hidden, inner, layers, vocabulary = SIZES[size]
    table = {"type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
             "num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 32,
             "vocab_size": vocabulary, "max_position_embeddings": 256}
    made = families.create(families.from_table(table, None, "benchmark"), SEED, "benchmark").eval()
    made.config.use_cache = False                                                        # type: ignore[union-attr]
    return made


def rows(size: str, many: int = 16) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.randint(SIZES[size][3], (many, 128), generator=draw)
    places = torch.arange(128).expand_as(ids)
    return [{"input_ids": i, "position_ids": p} for i, p in zip(ids.split(4), places.split(4), strict=True)]


# ---- whole models, one in a process ------------------------------------------------------------------------


def one(name: str, size: str) -> dict[str, Any]:
    """A row of the first table."""
    made, data = model(size), rows(size)
    ids = data[0]["input_ids"]
    with torch.no_grad():
        before = made(ids).logits
    plain = sum(p.numel() * p.element_size() for p in made.parameters()) // 2
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        after, stored, seconds = _made(name, made, data, Path(folder), began)
    error = float((after - before).norm() / before.norm())
    return {"method": name, "seconds": seconds, "peak_bytes": ledger.peak_memory(), "stored_bytes": stored,
            "of_bf16": stored / plain, "error": error}


@torch.no_grad()
def _made(name: str, made: Any, data: list[dict[str, Tensor]], out: Path, began: float
          ) -> tuple[Tensor, int, float]:
    ids = data[0]["input_ids"]
    if name in FILES:
        from transformers import AutoModelForCausalLM
        gguf_file.write(made, out / "model.gguf", FILES[name], None)
        seconds = time.perf_counter() - began
        read = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
        return read(ids).logits, (out / "model.gguf").stat().st_size, seconds
    if name in HELD:
        made.to(torch.bfloat16).requires_grad_(False)           # as precision = "bf16-true" has it
        frozen.freeze(made, HELD[name])
        return made(ids).logits.float(), frozen.weight_bytes(made), time.perf_counter() - began
    if name in PEERS:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
        quantize_(made, Int8WeightOnlyConfig(version=2))
        seconds = time.perf_counter() - began
        torch.save(made.state_dict(), out / "model.pt")
        return made(ids).logits, (out / "model.pt").stat().st_size, seconds
    OURS[name]().operate(made, Context(batches=lambda: iter(data), policy=made))
    seconds = time.perf_counter() - began
    if packed.KEPT in made.__dict__ and importlib.util.find_spec("compressed_tensors"):
        packed.ask(made, "benchmark")
    logits = made(ids).logits
    families.save(made, out / "saved", None)
    return logits, sum(f.stat().st_size for f in (out / "saved").glob("*.safetensors")), seconds


# ---- one layer, two solvers -------------------------------------------------------------------------------


def layer(size: str) -> tuple[Tensor, Tensor]:
    """A matrix [out, in] and inputs [positions, in] that share much."""
    draw = torch.Generator().manual_seed(SEED)
    hidden, inner, _, _ = SIZES[size]
    mix = torch.randn(hidden, hidden, generator=draw) * torch.logspace(-1, 1, hidden)
    return torch.randn(inner, hidden, generator=draw), torch.randn(4096, hidden, generator=draw) @ mix


def solvers(size: str) -> list[dict[str, Any]]:
    """The second table; empty without llm-compressor."""
    if importlib.util.find_spec(SOLVERS) is None:
        return []
    w, x = layer(size)
    gram, every = x.T @ x, torch.ones_like(w, dtype=torch.bool)
    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "gptq, 4 bits": (lambda: GPTQ(bits=4).solve(w, gram, every)[0], lambda: their_gptq(w, gram)),
        "sparsegpt, 50 %": (lambda: Sparsegpt().solve(w, gram, every)[0],
                            lambda: their_sparsegpt(w, gram, 0, 0)),
        "sparsegpt, 2:4": (lambda: Sparsegpt(pattern="2:4").solve(w, gram, every)[0],
                           lambda: their_sparsegpt(w, gram, 2, 4)),
    }
    out = []
    for name, (ours, theirs) in pairs.items():
        (a, mine), (b, other) = _timed(ours), _timed(theirs)
        wrong = [float((x @ (w - found).T).norm() / (x @ w.T).norm()) for found in (a, b)]
        out.append({"method": name, "seconds": mine, "their_seconds": other, "error": wrong[0],
                    "their_error": wrong[1], "differ": float(((a - b).abs() > 1e-3).float().mean())})
    return out


def _timed(solve: Callable[[], Tensor]) -> tuple[Tensor, float]:
    began = time.perf_counter()
    return solve(), time.perf_counter() - began


def their_gptq(w: Tensor, gram: Tensor) -> Tensor:
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    args = QuantizationArgs(num_bits=4, symmetric=True, strategy="channel")
    grid = quantized.grid(w, 4, True, 0)
    given = w[None].clone(), gram[None].clone(), grid.scale[None], grid.zero[None]
    return quantize_weight(*given, None, args)[0][0]                                     # type: ignore[no-any-return]


def their_sparsegpt(w: Tensor, gram: Tensor, n: int, m: int) -> Tensor:
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False).requires_grad_(False)
    linear.weight.copy_(w)
    found = sparsify_weight(linear, {linear: gram.clone()}, 0.5, n, m, 128, 0.01, False)
    return found[1] if isinstance(found, tuple) else found


# ---- the command -------------------------------------------------------------------------------------------


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--quick", action="store_true", help="a model of 1 M parameters")
    asked.add_argument("--peers", type=Path, help="folder of llm-compressor and torchao")
    asked.add_argument("--note", default="", help="what a reader should know of the machine")
    asked.add_argument("--out", type=Path, help="where to write the numbers as JSON")
    asked.add_argument("--row", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.peers is not None:
        sys.path.append(str(given.peers))
    size = "1 M" if given.quick else "6 M"
    if given.row:
        print(json.dumps(one(given.row, size)))
        return
    there = [name for name, package in PEERS.items() if importlib.util.find_spec(package) is not None]
    absent = [p for p in (*PEERS.values(), SOLVERS) if importlib.util.find_spec(p) is None]
    print(f"{'method':<24} {'seconds':>8} {'peak MiB':>9} {'bytes':>11} {'of bf16':>8} {'error':>7}")
    found = dict[str, dict[str, Any]]()
    for name in (*OURS, *HELD, *FILES, *there):
        r = found[name] = _apart(name, sys.argv[1:])
        print(f"{r['method']:<24} {r['seconds']:8.2f} {r['peak_bytes'] / 2**20:9.0f} {r['stored_bytes']:11,} "
              f"{r['of_bf16']:8.2f} {r['error']:7.4f}", flush=True)
    for name in there:
        mine, other = found[BESIDE[name]], found[name]
        told = ", ".join(f"{of} {mine[of] / other[of]:.2f}" for of in ("seconds", "peak_bytes",
                                                                      "stored_bytes", "error"))
        print(f"{BESIDE[name]} / {name}: {told}")
    for package in absent:
        print(f"{package} is absent: nothing is measured beside it")
    beside = solvers(size)
    for r in beside:
        print(f"{r['method']:<24} ours {r['seconds']:.2f} s, error {r['error']:.5f}; llm-compressor "
              f"{r['their_seconds']:.2f} s, error {r['their_error']:.5f}; {100 * r['differ']:.2f} % of them "
              "differ")
    if given.out is not None:
        facts = {"date": datetime.date.today().isoformat(), "note": given.note, "absent": absent,
                 "hardware": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
                 "threads": torch.get_num_threads(),
                 "versions": {"torch": torch.__version__}, "models": [*found.values()], "layers": beside}
        given.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _apart(name: str, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments, "--row", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])                                      # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
