"""Names and metrics as tables and plots write them."""

from __future__ import annotations

from trainwright.report.comparison.numbers import shorten, words


def test_long_names_keep_their_ends_and_differ() -> None:
    assert shorten(["lora"]) == ["lora"] and shorten(["a" * 20]) == ["a" * 20]
    assert shorten(["lora-rank-64-all-linear-layers"]) == ["lora-rank…ear-layers"]
    same = shorten([f"{'a' * 15}{i}{'b' * 15}" for i in range(3)])
    assert len(set(same)) == 3 and all(len(s) <= 20 for s in same)


def test_a_metric_in_words() -> None:
    said = {
        "loss/code": "loss on code",
        "loss/mean": "mean loss",
        "forgetting/prose": "forgetting of prose",
        "bits_per_byte/x": "bits per byte on x",
        "peak_memory_bytes": "peak memory",
        "acc": "acc",
    }
    assert {metric: words(metric) for metric in said} == said
