"""The card of an exported model says what its manifest says, and makes up nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainwright.core.recipe import load
from trainwright.life.run import run
from trainwright.report.model_card import OPEN, model_card
from trainwright.storage.store import Store


@pytest.mark.slow
def test_a_card_tells_the_life_of_a_model(life: Path) -> None:
    store = Store(life.parent / "store")
    made = run(load(life), store)
    text = model_card(made["merged"], store)
    assert text.startswith("---\nlibrary_name: transformers\ntags: [trainwright]\n---\n")
    order = [text.index(f"- `{name}` (") for name in ("corpus", "base", "adapt", "merged")]
    assert order == sorted(order), "the earliest first"
    assert f"{made['base'].figures['steps']:,} steps" in text and "`interpolate`" in text
    numbers = made["judge"].figures["numbers"]
    for metric, value in numbers["merged"].items():
        assert f"| {metric} | {value:.4g} | {numbers['base'][metric]:.4g} |" in text
    assert OPEN in text and "license: " not in text.split("---")[1]
    corpus = model_card(made["corpus"], store)
    assert "What was measured" not in corpus, "nothing was"
