"""A comparison that takes seconds: a tiny Llama from prose to code."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainwright.compare import costs as costing
from trainwright.compare import spec as specs
from trainwright.compare.compare import Comparison
from trainwright.compare.execute import Watch
from trainwright.compare.spec import Arm, Spec
from trainwright.core.recipe import Recipe
from trainwright.storage.store import Store

STAGES = """
[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
tune = 0.2
test = 0.2
methods = [{ use = "text", paths = ["prose.jsonl", "code.jsonl"] }]

[[stage]]
name = "base"
kind = "train"
from = { data = "corpus" }
model = { type = "llama", hidden_size = 16, intermediate_size = 32, num_hidden_layers = 1, \
    num_attention_heads = 2, \
          max_position_embeddings = 64, tie_word_embeddings = true }
steps = 4
batch_tokens = 128
precision = "fp32"
methods = [
  { use = "pack", length = 32, domains = ["prose"] },
  { use = "next_token" },
  { use = "adamw", lr = 1e-2 },
]

[[stage]]
name = "adapt"
kind = "train"
from = { model = "base", data = "corpus" }
steps = 8
batch_tokens = 128
precision = "fp32"
methods = [
  { use = "pack", length = 32, domains = ["code"] }, { use = "next_token" }, { use = "adamw", lr = 1e-2 },
  { use = "held_out", domains = ["code"], length = 32 },
]

[[stage]]
name = "merged"
kind = "merge"
from = { models = ["base", "adapt"] }
methods = [{ use = "interpolate", weights = [0.5, 0.5] }]

[[stage]]
name = "judge"
kind = "evaluate"
from = { models = ["base", "adapt"], data = "corpus" }
new = ["code"]
old = ["prose"]
methods = [{ use = "held_out", tokens = 400, length = 32 }]
"""


def recipe(folder: Path, head: str = "") -> Path:
    """The recipe with its texts; ``head`` may hold ``[compare]`` and arms."""
    file = folder / "life.toml"
    file.write_text(head + STAGES)
    if (folder / "prose.jsonl").is_file():
        return file
    made = random.Random(0)
    words = {
        "prose": "the a river house walks slowly over under green day night",
        "code": "def return x y if else for in self",
    }
    for domain, known in words.items():
        rows = [{"text": " ".join(made.choices(known.split(), k=40))} for _ in range(30)]
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def spec(folder: Path, arms: tuple[Arm, ...] = (), aa: bool = False, **changes: Any) -> Spec:
    arms = arms or (Arm(name="full"), Arm(name="slow", set={"methods.adamw.lr": 1e-4}))
    settings = {"stage": "adapt", "metric": "loss/code", "seeds": 3, **changes}
    return specs.load(recipe(folder), settings, arms, None, aa)


class Count(Watch):
    """Counts the runs that were really begun."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.begun: list[str] = []
        self.failed: list[str] = []
        self.under: list[tuple[str, float]] = []
        self.stop_after = stop_after

    def begin(self, label: str) -> None:
        if self.stop_after is not None and len(self.begun) == self.stop_after:
            raise KeyboardInterrupt
        self.begun.append(label)

    def under_way(self, label: str, row: dict[str, float]) -> None:
        self.under.append((label, row["step"]))

    def done(self, label: str, record: dict[str, Any]) -> None:
        if record.get("failed"):
            self.failed.append(label)


def fixed_costs(
    recipes: dict[str, Recipe],
    baseline: str,
    stage: str,
    store: Store,
    keys: dict[str, str],
    done: Callable[[str], None],
) -> tuple[dict[str, costing.Costs], dict[str, str]]:
    """Instead of ``costs.measure``, which starts processes."""
    one = costing.Costs(
        tokens=128,
        flops=1e6,
        seconds=0.5,
        peak_memory_bytes=1e8,
        trainable_parameters=10,
        parameters=10,
        state_bytes=80,
        compiled=False,
        rounds=(0.5, 0.51, 0.5),
        baseline_rounds=(0.5, 0.5, 0.5),
    )
    return dict.fromkeys(recipes, one), {}


def comparison(folder: Path, watch: Watch | None = None, **changes: Any) -> Comparison:
    return Comparison(spec(folder, **changes), Store(folder / "store"), watch or Count())
