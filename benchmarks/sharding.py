"""The memory of one rank, on one rank and on two: a model of 362 M parameters, made, trained and exported.

    python benchmarks/sharding.py [--tiny] [--out benchmarks/results/sharding.json]

The first stage draws a model of the shape of SmolLM2-360M and trains all of it with AdamW for two steps, in
float32; the second goes on from the checkpoint that the first has left. Each stage runs in processes of its
own, on one rank and on two (gloo, on this machine). What counts are a process's own pages (``RssAnon`` in
``/proc``: neither files that are mapped nor libraries), read every few milliseconds, and of two ranks the
larger figure. The C library is told to give large blocks back at once, on one rank and on two alike, since
what it keeps for later would count too. The weights of both runs are compared. About three minutes on two
quiet CPU cores; two ranks need 8 GiB of memory. A stage's figures are written as soon as they are there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# hidden, intermediate, layers, heads, heads of keys and values, vocabulary
LARGE, TINY = (960, 2560, 32, 15, 5, 49152), (128, 256, 2, 4, 2, 2000)
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
"""How the C library is told to."""
STEPS, ROWS, LENGTH = 2, 2, 32
LOOK = 0.004
"""Seconds between two looks at the processes."""
BOUND = 0.65
"""Of one rank's memory that a rank of two may take."""
RECIPE = """
[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 500
methods = [{{ use = "python_library", megabytes = 0.2 }}]

[[stage]]
name = "made"
kind = "train"
from = {{ data = "corpus" }}
model = {{ type = "llama", hidden_size = {0}, intermediate_size = {1}, num_hidden_layers = {2}, \
num_attention_heads = {3}, num_key_value_heads = {4}, vocab_size = {5}, max_position_embeddings = 256, \
tie_word_embeddings = true }}
{settings}
[[stage]]
name = "loaded"
kind = "train"
from = {{ data = "corpus", model = "made" }}
{settings}
"""
SETTINGS = f"""steps = {STEPS}
batch_size = {ROWS}
precision = "fp32"
compile = false
save_every = 1000
methods = [{{{{ use = "pack", length = {LENGTH} }}}}, {{{{ use = "next_token" }}}},
           {{{{ use = "adamw", lr = 1e-4, eps = 1e-6 }}}}]
"""
STAGES = ("made", "loaded")


def recipe(size: tuple[int, ...], until: str) -> str:
    """The recipe up to a stage."""
    text = RECIPE.format(*size, settings=SETTINGS.format())
    parts = text.split("[[stage]]")
    return "[[stage]]".join(parts[:2 + ("corpus", *STAGES).index(until)])


def start(folder: Path, store: str, ranks: int) -> list[subprocess.Popen[bytes]]:
    """The program in so many processes, told what torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        around = os.environ | GIVES_BACK | {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}
    line = [sys.executable, "-m", "trainwright", "run", "life.toml", "--store", store]
    with (folder / "said").open("ab") as said:
        return [subprocess.Popen(line, cwd=folder, stdout=said, stderr=said,
                                 env=around | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(ranks)]


def own_pages(process: int) -> int:
    """Bytes of a process's own pages; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def watched(folder: Path, store: str, ranks: int) -> dict[str, Any]:
    """Run the recipe to its end; the most pages that each process had of its own, and seconds."""
    began, processes = time.perf_counter(), start(folder, store, ranks)
    peaks = [0] * ranks
    while any(p.poll() is None for p in processes):
        peaks = [max(peak, own_pages(p.pid)) for peak, p in zip(peaks, processes, strict=True)]
        time.sleep(LOOK)
        if any(p.returncode for p in processes):
            for p in processes:
                p.terminate()
            sys.exit((folder / "said").read_text()[-2000:])
    return {"ranks": ranks, "peak_bytes": peaks, "seconds": round(time.perf_counter() - began, 1)}


def weights(folder: Path, store: str, stage: str) -> Path:
    (found,) = (folder / store).glob(f"{stage}-*/model.safetensors")
    return found


def compare(one: Path, two: Path) -> dict[str, Any]:
    """How far the tensors of two checkpoints are from each other, one tensor at a time."""
    most, numbers, equal = 0.0, 0, 0
    with safe_open(one, "pt") as a, safe_open(two, "pt") as b:
        assert sorted(a.keys()) == sorted(b.keys())
        for name in a.keys():  # noqa: SIM118  (safe_open is no mapping)
            x, y = a.get_tensor(name), b.get_tensor(name)
            most = max(most, float((x - y).abs().max()))
            numbers, equal = numbers + x.numel(), equal + int((x == y).sum())
    return {"parameters": numbers, "farthest": most, "equal_share": equal / numbers}


def measure(size: tuple[int, ...], folder: Path, out: Path | None) -> None:
    """A row for each stage, printed and written down."""
    rows: list[dict[str, Any]] = []
    (folder / "life.toml").write_text(recipe(size, "corpus"))
    watched(folder, "one", 1)
    shutil.copytree(folder / "one", folder / "two")
    for stage in STAGES:
        (folder / "life.toml").write_text(recipe(size, stage))
        one, two = watched(folder, "one", 1), watched(folder, "two", 2)
        share = max(two["peak_bytes"]) / one["peak_bytes"][0]
        row = {"stage": stage, "share": share, "runs": [one, two]}
        rows.append(row | compare(weights(folder, "one", stage), weights(folder, "two", stage)))
        print(f"{stage:7} {rows[-1]['parameters'] / 1e6:6.1f} M  one rank {one['peak_bytes'][0] / 2**30:.2f} "
              f"GiB in {one['seconds']} s, a rank of two {max(two['peak_bytes']) / 2**30:.2f} GiB in "
              f"{two['seconds']} s: {share:.3f}; farthest weight {rows[-1]['farthest']:.1e}", flush=True)
        if out:
            write(out, rows)


def write(out: Path, rows: list[dict[str, Any]]) -> None:
    told = {"date": datetime.date.today().isoformat(), "hardware": f"{platform.machine()} CPU, "
            f"{os.cpu_count()} threads", "python": platform.python_version(), "torch": torch.__version__,
            "precision": "fp32", "command": "python benchmarks/sharding.py --out FILE", "bound": BOUND,
            "within": all(r["share"] <= BOUND for r in rows), "rows": rows}
    out.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a model of 0.8 M, to see that it runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where it works; default: a temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        measure(TINY if asked.tiny else LARGE, Path(folder), asked.out)


if __name__ == "__main__":
    main()
