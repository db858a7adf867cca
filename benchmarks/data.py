"""What documents cost on their way to a model: rates against peers in one run, and memory while a
large table goes through.

    python benchmarks/data.py [rates|memory ...] [--megabytes 200] [--gigabytes 10] [--pairs 3] [--quick]
                              [--folder DIR] [--out benchmarks/results/data.json]

rates     documents per second: filter, dedup, score, select against datasets' map, filter and sort (with
          datasketch for dedup, transformers for score), from files to a file; pack against a map that joins
          and cuts. Paired, in turn; each run has a process of its own, and the peers all cores. What comes
          out is told beside it
memory    peak memory and seconds while a generated table of so many gigabytes goes through filter, minhash
          and decontaminate

Text is made up: words of syllables, frequent and rare; a tenth of the documents are near-duplicates. Each
process first does the same on a small table, so that imports do not count. datasets turns files into its own
format when it opens them for the first time; that counts, since ours reads them each time, and the ratio
without it ("opened") is told beside. A peer that is not installed is left out, and told: pip install
datasketch. Disk: about 1.5 times
--gigabytes, in --folder.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LIMIT = 3e9
"""Bytes that a table of any size may take on its way through filters."""
LENGTH = 512
MODEL = {
    "type": "llama",
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "tie_word_embeddings": True,
}
METHODS: dict[str, list[dict[str, Any]]] = {
    "filter": [{"use": "filter", "where": "characters >= 3000 AND text LIKE '%ba%'"}],
    "dedup": [{"use": "minhash", "threshold": 0.7, "ngram": 3, "hashes": 128}],
    "score": [{"use": "score_loss", "length": LENGTH}],
    "select": [{"use": "best", "column": "score", "share": 0.1}],
    "pack": []}
TABLES = {"score": "short", "pack": "tenth"}
"""Smaller tables of what takes longer: a hundredth, of documents that a model sees at once,
and a tenth of the text."""
PEERS = {"filter": ("datasets",), "dedup": ("datasets", "datasketch"), "score": ("datasets", "transformers"),
         "select": ("datasets",), "pack": ("datasets",)}
THROUGH = {"filter": METHODS["filter"][0], "minhash": {"use": "minhash"},
           "decontaminate": {"use": "decontaminate", "files": ["benchmark.jsonl"]}}


# ---- a table -----------------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    draw, syllables = random.Random(0), [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    return sorted(
        {"".join(draw.choices(syllables, k=draw.randrange(1, 5))) for _ in range(30_000)},
        key=lambda w: (len(w), w),
    )


def rows(size: float, words: int) -> Iterator[dict[str, Any]]:
    """Documents of about so many words up to ``size`` bytes; one in ten repeats one of the last
    hundred, a little changed."""
    draw, known = np.random.default_rng(0), vocabulary()
    total, number = 0, 0
    recent: list[list[str]] = []
    while total < size:
        if recent and draw.random() < 0.1:
            said = list(recent[draw.integers(len(recent))])
            for at in draw.integers(len(said), size=max(1, len(said) // 30)):
                said[at] = "changed"
        else:
            many = max(20, int(draw.lognormal(np.log(words), 0.6)))
            said = list(itemgetter(*(len(known) * draw.random(many) ** 3).astype(int).tolist())(known))
            recent = [*recent[-99:], said]
        text = " ".join(said)
        yield {
            "id": f"d/{number:09d}",
            "text": text,
            "domain": "d",
            "source": "made up",
            "metadata": "{}",
            "messages": None,
            "score": float(draw.random()),
        }
        total, number = total + len(text), number + 1


def make_table(folder: Path, size: float, words: int = 500, most: int | None = None) -> int:
    """Parquet files of about 256 MB of text; gives the documents."""
    from trainwright.corpus.documents import ARROW
    schema = ARROW.append(pa.field("score", pa.float64()))
    folder.mkdir(parents=True)
    held: list[dict[str, Any]] = []
    count = in_file = 0
    file: pq.ParquetWriter | None = None
    for row in rows(size, words):
        held.append(row)
        count, in_file = count + 1, in_file + len(row["text"])
        if len(held) == 2048 or count == most:
            file = file or pq.ParquetWriter(folder / f"{count:09d}.parquet", schema, compression="zstd")
            file.write_table(pa.Table.from_pylist(held, schema))
            held = []
            if in_file > 256e6:
                file.close()
                file, in_file = None, 0
        if count == most:
            break
    if held:
        file = file or pq.ParquetWriter(folder / f"{count:09d}.parquet", schema, compression="zstd")
        file.write_table(pa.Table.from_pylist(held, schema))
    if file:
        file.close()
    return count


def prepare(place: Path, megabytes: float) -> dict[str, int]:
    """All that the rates need; documents of each table."""
    sizes = {"table": (1e6, 500), "tenth": (1e5, 500), "short": (1e4, 120)}
    counts = {
        name: make_table(place / name, megabytes * size, words) for name, (size, words) in sizes.items()
    }
    make_model(place, place / "tenth")
    return counts


def make_model(place: Path, table: Path) -> None:
    """A corpus of the table's documents, and a fresh model with its tokenizer."""
    from trainwright import families
    from trainwright.core.context import Context
    from trainwright.corpus import building
    (place / "corpus").mkdir()
    texts = {"use": "text", "paths": [str(table)], "id": "id"}
    settings = building.CorpusSettings(vocab_size=2048, tune=0.0, test=0.0)
    ctx = Context(folder=place / "scratch")
    building.build(place / "corpus", [create(texts)], settings, ctx, place / "cache", lambda line: None)
    tokenizer = families.load_tokenizer(place / "corpus", "benchmark")
    families.save(
        families.create(families.from_table(MODEL, tokenizer, "benchmark"), 0, "benchmark"),
        place / "model",
        tokenizer,
    )


def create(table: dict[str, Any]) -> Any:
    from trainwright.core import registry
    return registry.create(table, Path(), "benchmark")


# ---- one run of one side, in a process of its own ----------------------------------------------------------


def ours(what: str, place: Path, out: Path) -> dict[str, Any]:
    if what == "pack":
        return our_rows(place)
    return through(METHODS[what], place / TABLES.get(what, "table"), out, {"model": [place / "model"]})


def through(
    methods: list[dict[str, Any]], table: Path, out: Path, inputs: dict[str, list[Path]]
) -> dict[str, Any]:
    """A table through methods as a corpus stage sends it, into files."""
    from trainwright.core import ledger
    from trainwright.core.context import Context
    from trainwright.corpus import documents

    made, losses = [create(told) for told in methods], []
    began = time.perf_counter()
    frame = documents.parquet(sorted(table.glob("*.parquet")))
    for number, method in enumerate(made):
        scratch = out / f"scratch{number}"
        scratch.mkdir(parents=True)
        frame = method.apply(frame, Context(folder=scratch, root=table.parent, inputs=inputs))
    writer = documents.Writer(out / "documents")
    for batch in documents.stream(frame):
        if "loss" in batch.schema.names:
            losses += batch["loss"].to_pylist()
        writer.add(pa.Table.from_batches([batch]))
    writer.close()
    mean = statistics.mean(losses) if losses else None
    return {
        "seconds": time.perf_counter() - began,
        "kept": writer.rows,
        "loss": mean,
        "peak_bytes": ledger.peak_memory(),
    }


def our_rows(place: Path) -> dict[str, Any]:
    from trainwright.core import ledger
    from trainwright.core.context import Context

    ctx, pack = (
        Context(inputs={"data": [place / "corpus"]}, batch_rows=64),
        create({"use": "pack", "length": LENGTH}),
    )
    began = time.perf_counter()
    state, tokens = pack.init(None, ctx), 0
    for _ in range(pack.epoch(ctx) // 64):
        tokens += pack.next(lambda: {}, state, ctx)["input_ids"].numel()
    return {
        "seconds": time.perf_counter() - began,
        "kept": tokens,
        "loss": None,
        "peak_bytes": ledger.peak_memory(),
    }


def theirs(what: str, place: Path, out: Path) -> dict[str, Any]:
    import datasets

    from trainwright.core import ledger
    datasets.disable_caching()
    datasets.disable_progress_bars()
    table = place / TABLES.get(what, "table")
    began = time.perf_counter()
    data = datasets.Dataset.from_parquet(
        [str(f) for f in sorted(table.glob("*.parquet"))], cache_dir=str(out / "cache")
    )
    opening = time.perf_counter() - began
    if what == "pack":
        data = tokenized(data, place)
    began = time.perf_counter()
    made, loss = {"filter": their_filter, "dedup": their_dedup, "score": their_score, "select": their_select,
                  "pack": their_rows}[what](data, place)
    if what != "pack":
        made.to_parquet(str(out / "out.parquet"))
    kept = made if what == "pack" else len(made)
    return {"seconds": time.perf_counter() - began, "opening": opening, "kept": kept, "loss": loss,
            "peak_bytes": ledger.peak_memory()}


def cores() -> int:
    return len(os.sched_getaffinity(0))


def their_filter(data: Any, place: Path) -> tuple[Any, None]:
    return data.filter(
        lambda b: [len(t) >= 3000 and "ba" in t for t in b["text"]], batched=True, num_proc=cores()
    ), None


def their_dedup(data: Any, place: Path) -> tuple[Any, None]:
    """The usual script: signatures by datasets.map, an index of datasketch, and what is near an
    earlier document goes."""
    from datasketch import MinHash, MinHashLSH

    def signatures(batch: dict[str, Any]) -> dict[str, Any]:
        split = [t.split() for t in batch["text"]]
        runs = [[" ".join(w[i:i + 3]).encode() for i in range(max(1, len(w) - 2))] for w in split]
        return {"hashes": [m.hashvalues for m in MinHash.bulk(runs, num_perm=128)]}

    hashed = data.map(
        signatures, batched=True, batch_size=256, num_proc=cores(), remove_columns=data.column_names
    )
    index, keep = MinHashLSH(threshold=0.7, num_perm=128), []
    for number, row in enumerate(hashed):
        one = MinHash(num_perm=128, hashvalues=np.array(row["hashes"], dtype=np.uint32), scheme="affine32")
        if not index.query(one):
            keep.append(number)
            index.insert(str(number), one)
    return data.select(keep), None


def their_score(data: Any, place: Path) -> tuple[Any, float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(place / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    end = tokenizer.eos_token_id

    @torch.no_grad()
    def losses(batch: dict[str, Any]) -> dict[str, Any]:
        ids = [[*i, end][:LENGTH] for i in tokenizer(batch["text"])["input_ids"]]
        width = max(map(len, ids))
        inputs = torch.tensor([i + [end] * (width - len(i)) for i in ids])
        mask = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i in ids])
        logits = model(input_ids=inputs, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), inputs[:, 1:].flatten(), reduction="none"
        )
        loss = each.view(len(ids), -1)
        return {"loss": ((loss * mask[:, 1:]).sum(1) / mask[:, 1:].sum(1)).tolist()}

    made = data.map(losses, batched=True, batch_size=16)
    return made, statistics.mean(made["loss"])


def their_select(data: Any, place: Path) -> tuple[Any, None]:
    return data.sort("score", reverse=True).select(range(int(0.1 * len(data) + 0.5))), None


def tokenized(data: Any, place: Path) -> Any:
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    end = [tokenizer.eos_token_id]
    return data.map(
        lambda b: {"input_ids": [[*i, *end] for i in tokenizer(b["text"])["input_ids"]]},
        batched=True,
        remove_columns=data.column_names,
    )


def their_rows(data: Any, place: Path) -> tuple[int, None]:
    """Documents joined and cut in blocks, as transformers' example of language modeling does it,
    then read in batches."""

    def joined(batch: dict[str, Any]) -> dict[str, Any]:
        flat = [t for ids in batch["input_ids"] for t in ids]
        whole = [flat[i:i + LENGTH] for i in range(0, len(flat) // LENGTH * LENGTH, LENGTH)]
        return {"input_ids": whole, "labels": whole}

    made = data.map(joined, batched=True, num_proc=cores()).with_format("torch")
    return sum(batch["input_ids"].numel() for batch in made.iter(64)), None


# ---- the comparison ----------------------------------------------------------------------------------------


def child(side: str, what: str, place: Path) -> dict[str, Any]:
    """One run in a process of its own."""
    out = Path(tempfile.mkdtemp(dir=place))
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--what",
        what,
        "--folder",
        str(place),
        "--out",
        str(out),
    ]
    ran = subprocess.run(command, capture_output=True, text=True)
    shutil.rmtree(out)
    if ran.returncode:
        raise SystemExit(f"{side} {what}: {ran.stderr[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def rates(given: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    prepare(place / "small", 0.5)
    counts, out = prepare(place, given.megabytes), []
    for what, peers in PEERS.items():
        missing = [p for p in peers if importlib.util.find_spec(p) is None]
        many = counts[TABLES.get(what, "table")]
        got: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        for pair in range(given.pairs):
            for side in (("ours", "theirs"), ("theirs", "ours"))[pair % 2]:
                if side == "ours" or not missing:
                    got[side].append(child(side, what, place))
        out.append(compared(what, many, got, missing))
    return out


def compared(
    what: str, many: int, got: dict[str, list[dict[str, Any]]], missing: list[str]
) -> dict[str, Any]:
    row: dict[str, Any] = {"what": what, "documents": many, "missing": missing}
    for side, runs in ((s, r) for s, r in got.items() if r):
        row[side] = many / statistics.median(r["seconds"] + r.get("opening", 0.0) for r in runs)
        row[f"{side}_peak_bytes"] = max(r["peak_bytes"] for r in runs)
        row |= {f"{side}_{n}": runs[0].get(n) for n in ("kept", "loss", "opening")}
    line = (
        f"{what:8} {many:9,} documents  ours {row['ours']:10,.0f}/s {row['ours_peak_bytes'] / 1e6:6,.0f} MB"
    )
    if missing:
        say(f"{line}  no peer: {', '.join(missing)} not installed")
        return row
    both = list(zip(got["ours"], got["theirs"], strict=True))
    ratios = [(t["seconds"] + t["opening"]) / o["seconds"] for o, t in both]
    row |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
            "ratio_opened": statistics.median(t["seconds"] / o["seconds"] for o, t in both)}
    say(
        f"{line}  theirs {row['theirs']:10,.0f}/s {row['theirs_peak_bytes'] / 1e6:6,.0f} MB  ratio "
        f"{row['ratio']:.2f} "
        f"[{row['low']:.2f}, {row['high']:.2f}], opened {row['ratio_opened']:.2f}  "
        f"kept {row['ours_kept']:,} and {row['theirs_kept']:,}"
        + (f"  loss {row['ours_loss']:.4f} and {row['theirs_loss']:.4f}" if row["ours_loss"] else "")
    )
    return row


def memory(given: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    documents = make_table(place / "large", given.gigabytes * 1e9)
    known = vocabulary()
    exam = [" ".join(random.Random(i).choices(known, k=40)) for i in range(1000)]
    (place / "benchmark.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in exam))
    out = []
    for what in THROUGH:
        row = {"what": what, "gigabytes": given.gigabytes, "documents": documents} | child(
            "through", what, place
        )
        row["within"] = row["peak_bytes"] < LIMIT
        say(
            f"{what:14} {given.gigabytes:g} GB, {documents:,} documents: peak {row['peak_bytes'] / 1e9:.2f} "
            f"GB "
            f"({'below' if row['within'] else 'ABOVE'} {LIMIT / 1e9:g}), {row['seconds']:,.0f} s, "
            f"{documents / row['seconds']:,.0f} documents/s, {row['kept']:,} kept"
        )
        out.append(row)
    shutil.rmtree(place / "large")
    return out


def say(line: str) -> None:
    print(line, flush=True)


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
    "rates": rates,
    "memory": memory,
}


def one_side(given: argparse.Namespace) -> None:
    if given.side == "through":
        found = through([THROUGH[given.what]], given.folder / "large", given.out, {})
    else:
        side = {"ours": ours, "theirs": theirs}[given.side]
        side(given.what, given.folder / "small", given.out / "small")
        found = side(given.what, given.folder, given.out / "whole")
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them; default: all")
    parser.add_argument(
        "--megabytes",
        type=float,
        default=200.0,
        help="text for rates; a tenth for pack, a hundredth for score",
    )
    parser.add_argument("--gigabytes", type=float, default=10.0, help="text of the table of memory")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--folder", type=Path, help="where the tables are made; default: a temporary folder")
    parser.add_argument("--quick", action="store_true", help="small and few: to see that it runs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        return one_side(given)
    if given.quick:
        given.megabytes, given.gigabytes, given.pairs = 5.0, 0.02, 1
    from trainwright.core import hardware
    results: dict[str, Any] = {"date": datetime.date.today().isoformat(), "hardware": hardware.describe(),
                               "python": platform.python_version(), "command": " ".join(sys.argv)}
    say(results["hardware"])
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for part in given.parts or PARTS:
            results[part] = PARTS[part](given, Path(place).resolve())
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
