"""The benchmark for a GPU runs from end to end as small as it gets, and a part that fails stops no other."""
from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import gpu


def test_a_part_that_fails_or_lacks_its_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(tiny: bool, precision: str) -> list[gpu.Row]:
        raise RuntimeError("out of memory\nand more")

    def lacks(tiny: bool, precision: str) -> list[gpu.Row]:
        import there_is_no_such_library  # noqa: F401
        return []

    monkeypatch.setattr(gpu, "PARTS", {"one": (fails, 1.0), "two": (lacks, 1.0)})
    assert gpu.measured("one", True) == [
        {"what": "one", "left_out": "it failed with RuntimeError: out of memory"}]
    assert gpu.measured("two", True) == [
        {"what": "two", "left_out": "there_is_no_such_library is not installed"}]
    assert gpu.ask(gpu.LEAST - 1, gpu.measured, "one", True) == [
        {"what": "one", "left_out": "no time was left for it"}]


def test_the_table_tells_figures_and_what_was_left_out() -> None:
    results = {"hardware": "a device", "torch": "2", "precision": "bf16", "date": "today",
               "loop": [gpu.row("a step", 30.0, 20.0, "ms", [1.4, 1.5, 1.7])],
               "sft": [gpu.left_out("sft", "trl is not installed.")]}
    assert gpu.table(results).splitlines()[-2:] == [
        "| a step | 30 ms | 20 ms | 1.5 [1.40, 1.70] |", "| sft | left out: trl is not installed | | |"]


@pytest.mark.slow
def test_all_parts_run_as_small_as_they_get(tmp_path: Path) -> None:
    gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    rows = [one for part in gpu.PARTS for one in found[part]]
    assert all(found[part] for part in gpu.PARTS) and not [r["left_out"] for r in rows if "left_out" in r]
    assert all(math.isfinite(r["ratio"]) and r["ratio"] > 0 for r in rows)
    assert found["fsdp"][0]["loss_difference"] < 1e-4 and found["loop"][0]["loss_difference"] < 1e-3
    assert all(abs(r["error"]) < 0.05 for r in found["plan"])
    assert abs(found["sft"][0]["loss_ours"] - found["sft"][0]["loss_theirs"]) < 0.1
