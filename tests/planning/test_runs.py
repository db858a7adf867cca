"""Rows of finished runs: from files, and from the manifests of a store."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainwright.core.errors import UserError
from trainwright.planning import runs
from trainwright.storage.store import Store

ROWS = [
    {
        "parameters": 1e6,
        "tokens": 2e7,
        "lr": 1e-3,
        "batch_tokens": 8192.0,
        "loss": 3.25,
        "optimizer": "adamw",
    },
    {"parameters": 2e6, "tokens": 2e7, "lr": 3e-3, "batch_tokens": 4096.0, "loss": 3.5},
]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
BODY = 2 * (4 * 16 * 16 + 3 * 16 * 32)


def test_one_table_in_three_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(r) for r in ROWS) + "\n")
    heads = list(ROWS[0])
    (tmp_path / "a.csv").write_text(
        "\n".join([",".join(heads), *(",".join(str(r.get(h, "")) for h in heads) for r in ROWS)])
    )
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for ending in ("jsonl", "csv", "parquet"):
        assert runs.from_file(tmp_path / f"a.{ending}") == ROWS, ending


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "rows come as .jsonl, .csv, .parquet, not as .txt"),
        ("a.jsonl", "{}\n{", "a.jsonl, line 2: no JSON"),
        ("a.jsonl", "[1]", "line 1: a row is a table"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, "line 1: no JSON: values are nested too deeply"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: no JSON: Exceeds the limit"),
        ("a.csv", "a,a\n1,2\n", "a.csv: two columns have one name"),
        ("a.csv", "a,b\n1,2\n\n1,2,3\n", "a.csv, line 4: this row has 3 columns, and the first line names 2"),
        ("a.csv", 'a,b\n1,"2\n', "a.csv, line 2: unexpected end of data"),
        ("a.parquet", "PAR1", "a.parquet: no Parquet file"),
        ("a.parquet", "nothing", "no Parquet file"),
        ("none.csv", None, "there is no file"),
    ],
)
def test_a_file_that_is_wrong_is_told_in_a_sentence(
    name: str, text: str | None, words: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        runs.from_file(tmp_path / name)


def write(
    store: Path,
    number: int,
    *,
    stage: str = "base",
    scratch: bool = True,
    uses: tuple[str, ...] = ("adamw",),
    evaluation: dict[str, float] | None = None,
    stopped: str | None = None,
) -> None:
    """An artifact of a training stage, as far as rows are made of it."""
    folder = store / f"{stage}-{number}"
    folder.mkdir(parents=True)
    methods: list[dict[str, Any]] = [
        {"use": "cosine", "final": 0.1},
        {"use": "mixture", "weights": {"code": 0.3}},
    ]
    methods += [{"use": u, "lr": 1e-3, "params": "*"} for u in uses]
    figures = {"steps": 38, "tokens": 38 * 256, "evaluation": evaluation or {}, "stopped": stopped}
    manifest = {
        "stage": stage,
        "kind": "train",
        "finished": f"2026-01-01T00:00:{number:02d}",
        "figures": figures,
        "inputs": {"data": [{"stage": "corpus", "hash": "abc"}]},
        "settings": {"methods": methods, "model": {} if scratch else None, "tokens": 10_000},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps({"loss": 4.0 - 0.01 * i}) for i in range(200)))


def test_a_cell_may_be_long_and_a_text_may_have_any_letter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,note\n1,\"" + "x" * 200_000 + "\"\n")
    (tmp_path / "a.jsonl").write_text('{"a": 1, "note": "x\u2028y\u0085z"}\n')
    assert len(runs.from_file(tmp_path / "a.csv")[0]["note"]) == 200_000
    assert runs.from_file(tmp_path / "a.jsonl") == [{"a": 1, "note": "x\u2028y\u0085z"}]


def test_a_row_of_a_store_is_what_the_manifest_says(tmp_path: Path) -> None:
    write(tmp_path, 1, evaluation={"loss/code": 3.0, "loss/prose": 4.0, "perplexity/code": 20.0})
    (row,), notes = runs.from_store(Store(tmp_path), scratch=True)
    own = {
        "parameters": BODY,
        "tokens": 10_000,
        "batch_tokens": 256.0,
        "lr": 1e-3,
        "optimizer": "adamw",
        "data": "abc",
    }
    assert own.items() <= row.items() and row["loss"] == 3.5 and row["loss/code"] == 3.0
    assert row["cosine.final"] == 0.1 and row["mixture.weights.code"] == 0.3
    assert notes == [] and runs.from_store(Store(tmp_path), True, loss="loss/code")[0][0]["loss"] == 3.0


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    told = {"loss/code": 3.0}
    write(tmp_path, 1, evaluation=told)
    write(tmp_path, 2, evaluation=told, scratch=False)
    write(tmp_path, 3, evaluation=told, stopped="a spike")
    write(tmp_path, 4, evaluation=told, uses=("adamw", "torch_optim"))
    write(tmp_path, 5)
    write(tmp_path, 6, stage="other", evaluation=told)
    rows, notes = runs.from_store(Store(tmp_path), scratch=True)
    assert [r["run"] for r in rows] == ["base-1", "other-6"]
    assert notes == ["1 runs were stopped early and are left out",
                     "2 runs have no evaluation or several optimizers and are left out"]
    assert len(runs.from_store(Store(tmp_path), scratch=False)[0]) == 3
    assert [r["run"] for r in runs.from_store(Store(tmp_path), True, stage="other")[0]] == ["other-6"]
    for wrong, words in (
        ({"stage": "bas"}, "did you mean 'base'"),
        ({"loss": "loss/cod"}, "did you mean 'loss/code'"),
    ):
        with pytest.raises(UserError, match=words):
            runs.from_store(Store(tmp_path), True, **wrong)


def test_without_an_evaluation_the_end_of_training_is_smoothed(tmp_path: Path) -> None:
    """Never the loss of the last batch: it is noise."""
    write(tmp_path, 1)
    (row,), notes = runs.from_store(Store(tmp_path), scratch=True)
    assert 2.0 < row["loss"] < 2.05 and any("smoothed" in n for n in notes)
    quiet = [3.0 + 0.1 * (-1) ** i for i in range(1000)]
    assert runs.smoothed(quiet) == pytest.approx(3.0, abs=0.005) and abs(quiet[-1] - 3.0) > 0.09


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("metrics.jsonl", "{\n"),
        ("metrics.jsonl", "[1]\n"),
        ("config.json", None),
        ("manifest.json", "{"),
        ("manifest.json", None),
    ],
)
def test_one_damaged_run_is_named_and_the_others_count(file: str, text: str | None, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / "base-2" / file).unlink()
    if text is not None:
        (tmp_path / "base-2" / file).write_text(text)
    rows, notes = runs.from_store(Store(tmp_path), scratch=True)
    assert [row["run"] for row in rows] == ["base-1"]
    told = " ".join(notes) + capsys.readouterr().err
    assert "base-2" in told or (file, text) == ("manifest.json", None), "without a manifest it is no artifact"
