"""What a packed row costs: attention by documents against a mask over the whole row, in turn, in one run.

    python benchmarks/packing.py [--lengths 512,1024,2048,4096,8192,16384] [--pairs 5] [--precision fp32]
                                 [--out benchmarks/results/packing.json]

One row of each length, of documents of about 300 tokens, goes through the loss and its gradients of a small
Llama (hidden 64, two layers, four heads, two of keys and values). Seconds are medians of pairs, fewer of long
rows, where a pair is slow enough to say something; bytes are all tensors alive at once at most, counted. That
both give the same losses and gradients is measured, too. Rows of any length are taken apart here; in training
only those of ``document_attention.LONG`` positions and more are. About two minutes on two quiet CPU cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import facts, paired, say, spread
from trainwright import families
from trainwright.core import flops, hardware, sharding
from trainwright.core.context import Context
from trainwright.core.method import Batch
from trainwright.lm import document_attention
from trainwright.lm.losses import token_losses
from trainwright.planning.live import counting

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
DOCUMENT, VOCABULARY = 300, 2048
NEVER = 1 << 40
"""A length from which on no row is taken apart."""


def llama() -> nn.Module:
    table = {"type": "llama", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 176,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": max(LENGTHS), "tie_word_embeddings": True}
    model = families.create(families.from_table(table, None, "benchmark"), 0, "benchmark")
    return model.to(sharding.device()).train()


def batch_of(length: int, ctx: Context) -> Batch:
    """A row of documents of 150 to 450 tokens."""
    draw = ctx.rng(f"packing/{length}", at=0)
    sizes = torch.randint(DOCUMENT // 2, 3 * DOCUMENT // 2 + 1, (length,), generator=draw).tolist()
    places = torch.cat([torch.arange(n) for n in sizes])[None, :length]
    ids = torch.randint(VOCABULARY, places.shape, generator=draw)
    batch = {"input_ids": ids, "targets": ids.roll(-1, 1), "position_ids": places}
    return {n: t.to(ctx.device) for n, t in batch.items()}


def row(model: nn.Module, length: int, pairs: int, precision: str) -> dict[str, Any]:
    ctx = Context(device=sharding.device())
    batch = batch_of(length, ctx)

    def step(long: int) -> Callable[[], tuple[Tensor, Tensor]]:
        def go() -> tuple[Tensor, Tensor]:
            document_attention.LONG = long
            model.zero_grad()
            with hardware.autocast(ctx.device, precision):
                losses = token_losses(model, batch, ctx)
            losses.mean().backward()
            return losses.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])
        return go

    def bytes_and_flops(go: Callable[[], Any]) -> tuple[int, float]:
        with counting() as peak, flops.counting() as count:
            go()
        return peak.bytes, count.flops

    ours, dense = step(0), step(NEVER)
    (mine, my_grads), (theirs, grads) = ours(), dense()
    blocks, mask, ratios = paired(ours, dense, pairs)
    (my_bytes, my_flops), (bytes_, flops_) = bytes_and_flops(ours), bytes_and_flops(dense)
    return {"length": length, "documents": int((batch["position_ids"] == 0).sum()), "pairs": pairs,
            "seconds": {"documents": blocks, "mask": mask} | spread(ratios),
            "bytes": {"documents": my_bytes, "mask": bytes_, "ratio": my_bytes / bytes_},
            "flops": {"documents": my_flops, "mask": flops_, "ratio": my_flops / flops_},
            "loss_difference": float((mine - theirs).abs().max()),
            "gradient_difference": float((my_grads - grads).abs().max() / grads.abs().max())}


def told(one: dict[str, Any]) -> str:
    seconds, held = one["seconds"], one["bytes"]
    return (f"{one['length']:6,} positions, {one['documents']:3} documents: "
            f"{seconds['documents'] * 1e3:8.1f} ms against {seconds['mask'] * 1e3:9.1f} "
            f"({seconds['ratio']:.3f} [{seconds['low']:.3f}, {seconds['high']:.3f}]), "
            f"{held['documents'] / 2**20:7.1f} MiB against {held['mask'] / 2**20:8.1f} "
            f"({held['ratio']:.3f}); "
            f"FLOPs {one['flops']['ratio']:.3f}; losses differ by {one['loss_difference']:.0e}, gradients by "
            f"{one['gradient_difference']:.0e} of the largest")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="of the rows")
    parser.add_argument("--pairs", type=int, default=5, help="of rows up to 4,096; of longer ones three")
    parser.add_argument("--precision", default="fp32", help="auto: what the machine is fast at")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    families.quiet()
    results = facts(given.precision)
    say(f"{results['hardware']}, {results['precision']}")
    model, long = llama(), document_attention.LONG
    results["rows"] = []
    for length in map(int, given.lengths.split(",")):
        pairs = given.pairs if length <= 4096 else min(3, given.pairs)
        document_attention.LONG = long
        results["rows"].append(row(model, length, pairs, results["precision"]))
        say(told(results["rows"][-1]))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
