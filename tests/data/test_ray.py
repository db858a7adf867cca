"""A life whose corpora are filtered, deduplicated, scored and selected on a local Ray of two workers has
the same rows."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Warm

LIFE = """title = "a selection"
[[stage]]
name = "raw"
kind = "corpus"
vocab_size = 400
tune = 0.05
test = 0.05
engine = "ENGINE"
methods = [{ use = "python_library", megabytes = 0.1 }, { use = "filter", where = "length(text) > 250" }]

[[stage]]
name = "base"
kind = "train"
from = { data = "raw" }
model = { type = "llama", hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2, \
          num_attention_heads = 2 }
steps = 2
methods = [{ use = "pack", length = 128 }, { use = "next_token" }, { use = "adamw", lr = 1e-3 }]

[[stage]]
name = "chosen"
kind = "corpus"
from = { data = "raw", model = "base" }
engine = "ENGINE"
methods = [
  { use = "spoil", duplicates = 0.5, noise = 0.3 },
  { use = "minhash" },
  { use = "score_loss", length = 128 },
  { use = "best", column = "loss", lowest = true, share = 0.5 },
]
"""
CARRY_OUT = """
import logging, os
import trainwright as tw
engine = "ENGINE"
if engine == "ray":
    import ray
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
tw.run(tw.load(engine + ".toml"), engine)
"""
MIXED = """
from trainwright.corpus import documents
from trainwright.core.errors import UserError
documents.start("native")
list(documents.stream(documents.empty()))
try:
    documents.start("ray")
except UserError as error:
    print(error)
"""


def carried_out(warm: Warm, folder: Path, code: str) -> str:
    """In a process of its own: one has one engine."""
    program = warm.start("-c", code, cwd=folder)
    said, errors = program.communicate(300)
    assert program.poll() == 0, errors[-3000:]
    return said


def documents(store: Path, stage: str) -> list[dict[str, Any]]:
    (folder,) = store.glob(f"{stage}-*/documents")
    rows = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))]).to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


@pytest.mark.slow
def test_the_same_rows_on_ray(tmp_path: Path, warm: Warm) -> None:
    pytest.importorskip("ray")
    for engine in ("native", "ray"):
        (tmp_path / f"{engine}.toml").write_text(LIFE.replace("ENGINE", engine))
        carried_out(warm, tmp_path, CARRY_OUT.replace("ENGINE", engine))
    for stage in ("raw", "chosen"):
        here, there = (documents(tmp_path / engine, stage) for engine in ("native", "ray"))
        names = [[(r["id"], r["text"], r["domain"], r["source"]) for r in rows] for rows in (here, there)]
        assert len(here) > 30 and names[0] == names[1]
    assert sum(r["loss"] is not None for r in here) > 20
    assert all(a["loss"] == pytest.approx(b["loss"], abs=1e-5)
               for a, b in zip(here, there, strict=True) if a["loss"] is not None)


@pytest.mark.slow
def test_a_process_has_one_engine(tmp_path: Path, warm: Warm) -> None:
    pytest.importorskip("ray")
    assert 'this process has already run a table on engine = "native"' in carried_out(warm, tmp_path, MIXED)
