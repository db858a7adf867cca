"""What documents cost on their way to a model: rates against peers in one run, and memory while a
large table goes through.

    python benchmarks/data.py [rates|memory ...] [--megabytes 200] [--gigabytes 10] [--pairs 3] [--quick]
                              [--folder DIR] [--out benchmarks/results/data.json]

rates     documents per second: filter, dedup, score, select against datasets' map, filter and sort (with
          datasketch for dedup, transformers for score), and against datatrove's filter and MinHash, from
          files to a file; pack against a map that joins and cuts. In turn; each run has a process of its own,
          and the peers all cores. What comes out is told beside it
memory    peak memory and seconds while a generated table of so many gigabytes goes through filter, minhash
          and decontaminate

Text is made up: words of syllables, frequent and rare; a tenth of the documents are near-duplicates. Each
process first does the same on a small table, so that imports do not count. datasets turns files into its own
format when it opens them for the first time; that counts, since ours reads them each time. Selection from a
table that it has opened before has a line of its own. datatrove is given words cut at blanks, as we are, and
not spaCy's. Peak memory is that of the largest process. A peer that is not installed is left out, and told:
pip install datasketch datatrove. Disk: about 1.5 times --gigabytes, in --folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import facts, say, spread

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
NEEDS = {"datasets": {"filter": (), "dedup": ("datasketch",), "score": ("transformers",), "select": (),
                      "pack": ()},
         "datatrove": {"filter": (), "dedup": ()}}
"""What each peer is measured with, and what it needs there beside itself."""
OPENED = "datasets, opened"
WHY = {OPENED: "it maps an uncompressed copy that it made when it opened the files; ours reads the files"}
"""Why we may be behind."""
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


def make_table(
    folder: Path, size: float, words: int = 500, most: int | None = None, per_file: float = 256e6
) -> int:
    """Parquet files of about so many bytes of text; gives the documents."""
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
            if in_file > per_file:
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
        name: make_table(place / name, megabytes * size, words, per_file=megabytes * size / 2 / cores())
        for name, (size, words) in sizes.items()
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
        "peak_bytes": largest(),
    }


def our_rows(place: Path) -> dict[str, Any]:
    from torch import nn

    from trainwright.core.context import Context

    ctx, pack = (
        Context(inputs={"data": [place / "corpus"]}, batch_rows=64),
        create({"use": "pack", "length": LENGTH}),
    )
    began = time.perf_counter()
    state, tokens = pack.init(nn.Identity(), ctx), 0
    for _ in range(pack.epoch(ctx) // 64):
        tokens += pack.next(lambda: {}, state, ctx)["input_ids"].numel()
    return {
        "seconds": time.perf_counter() - began,
        "kept": tokens,
        "loss": None,
        "peak_bytes": largest(),
    }


def largest() -> float:
    """Peak memory of this process, or of the largest that it started."""
    from trainwright.core import ledger

    return max(ledger.peak_memory(), 1024.0 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def theirs(what: str, place: Path, out: Path) -> dict[str, Any]:
    import datasets

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
            "peak_bytes": largest()}


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


def datatrove(what: str, place: Path, out: Path) -> dict[str, Any]:
    """The same as a pipeline of datatrove, from files to files, a task for each core."""
    from loguru import logger
    logger.remove()
    table, began = str(place / TABLES.get(what, "table")), time.perf_counter()
    {"filter": trove_filter, "dedup": trove_dedup}[what](table, out)
    seconds = time.perf_counter() - began
    kept = sum(pq.read_metadata(f).num_rows for f in (out / "out").glob("*.parquet"))
    return {"seconds": seconds, "opening": 0.0, "kept": kept, "loss": None, "peak_bytes": largest()}


def execute(steps: list[Any], out: Path, tasks: int) -> None:
    from datatrove.executor import LocalPipelineExecutor

    LocalPipelineExecutor(steps, tasks=tasks, workers=min(tasks, cores()), start_method="fork",
                          logging_dir=str(out / f"log{len(list(out.glob('log*')))}")).run()


def trove_filter(table: str, out: Path) -> None:
    from datatrove.pipeline.filters import LambdaFilter
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    execute([ParquetReader(table), LambdaFilter(lambda d: len(d.text) >= 3000 and "ba" in d.text),
             ParquetWriter(str(out / "out"))], out, cores())


def trove_dedup(table: str, out: Path) -> None:
    """Signatures, buckets, clusters, filter: 16 bands of 8 hashes, which is a threshold of 0.71."""
    import xxhash
    from datatrove.pipeline.dedup import minhash
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter

    class Words:
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

    minhash.load_word_tokenizer = lambda language: Words()
    # xxhash takes no text any more
    minhash.create_hash_func = lambda config: lambda text: xxhash.xxh64_intdigest(text.encode())
    config = minhash.MinhashConfig(n_grams=3, num_buckets=16, hashes_per_bucket=8)
    places = [str(out / name) for name in ("signatures", "buckets", "removed")]
    execute([ParquetReader(table), minhash.MinhashDedupSignature(places[0], config)], out, cores())
    execute([minhash.MinhashDedupBuckets(places[0], places[1], config=config)], out, config.num_buckets)
    execute([minhash.MinhashDedupCluster(places[1], places[2], config=config)], out, 1)
    last = [ParquetReader(table), minhash.MinhashDedupFilter(places[2]), ParquetWriter(str(out / "out"))]
    execute(last, out, cores())


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
    for what in METHODS:
        missing = {peer: [n for n in (peer, *needs[what]) if importlib.util.find_spec(n) is None]
                   for peer, needs in NEEDS.items() if what in needs}
        sides = ["ours", *(peer for peer, lacks in missing.items() if not lacks)]
        got: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for turn in range(given.pairs):
            for i in range(len(sides)):
                side = sides[(i + turn) % len(sides)]
                got[side].append(child(side, what, place))
        many = counts[TABLES.get(what, "table")]
        for peer, lacks in missing.items():
            out.append(compared(what, many, peer, got["ours"], got.get(peer, []), lacks))
        if what == "select" and "datasets" in got:
            opened = [run | {"opening": 0.0} for run in got["datasets"]]
            out.append(compared(what, many, OPENED, got["ours"], opened, []))
    return out


def compared(
    what: str, many: int, peer: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]],
    missing: list[str],
) -> dict[str, Any]:
    """One line of the table: what we do in a second beside a peer, in pairs."""
    row: dict[str, Any] = {"what": what, "peer": peer, "documents": many, "missing": missing}
    for side, runs in (("ours", ours), ("theirs", theirs)):
        if runs:
            row[side] = many / statistics.median(r["seconds"] + r.get("opening", 0.0) for r in runs)
            row[f"{side}_peak_bytes"] = max(r["peak_bytes"] for r in runs)
            row |= {f"{side}_{n}": runs[0].get(n) for n in ("kept", "loss", "opening")}
    line = (
        f"{what:8} {many:9,} documents  ours {row['ours']:10,.0f}/s {row['ours_peak_bytes'] / 1e6:6,.0f} MB"
    )
    if missing:
        say(f"{line}  {peer}: {', '.join(missing)} not installed")
        return row
    row |= spread([(t["seconds"] + t["opening"]) / o["seconds"] for o, t in zip(ours, theirs, strict=True)])
    if row["ratio"] < 1 and peer in WHY:
        row["why"] = WHY[peer]
    say(
        f"{line}  theirs {row['theirs']:10,.0f}/s {row['theirs_peak_bytes'] / 1e6:6,.0f} MB  "
        f"ratio {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]  "
        f"kept {row['ours_kept']:,} and {row['theirs_kept']:,}  "
        + (f"loss {row['ours_loss']:.4f} and {row['theirs_loss']:.4f}  " if row["ours_loss"] else "")
        + peer + (f": {row['why']}" if "why" in row else "")
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


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
    "rates": rates,
    "memory": memory,
}


def one_side(given: argparse.Namespace) -> None:
    if given.side == "through":
        found = through([THROUGH[given.what]], given.folder / "large", given.out, {})
    else:
        side = {"ours": ours, "datasets": theirs, "datatrove": datatrove}[given.side]
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
    results = facts()
    say(results["hardware"])
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for part in given.parts or PARTS:
            results[part] = PARTS[part](given, Path(place).resolve())
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
