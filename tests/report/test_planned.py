"""What a plan and its proposals look like in a terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainwright.core.recipe import load
from trainwright.planning.fit import Proposal
from trainwright.planning.plan import plan
from trainwright.report import planned
from trainwright.storage.store import Store


def shown(thing: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=200, no_color=True).print(thing)
    return out.getvalue()


def test_figures_are_written_as_everywhere(life: Path) -> None:
    planned_life = plan(load(life), Store(life.parent / "store"), estimate=False)
    planned_life.stages[1].figures = {
        "parameters": 999_999,
        "trainable": 12_400,
        "steps": 6,
        "tokens": 1536,
        "flops": 2.5e12,
        "memory_bytes": 3 * 2**29,
        "seconds": 132,
    }
    planned_life.stages[2].note = "the model is not on this machine yet [at all]"
    text = shown(planned.render(planned_life))
    costs = (
        "1.00 M parameters, 12.4 k of them trained · 6 steps · 1.54 k tokens · 2.50 T FLOPs · about 1.50 "
        "GiB at the peak · "
        "about 2 min 12 s"
    )
    assert costs in text and "not on this machine yet [at all]" in text
    assert text.rstrip().endswith("5 of 5 stages to run, training takes about 2 min 12 s on this machine")
    assert [line.split()[0] for line in text.splitlines() if line and not line[0].isspace()][:2] == [
        "A",
        "corpus",
    ]


FITS = Proposal(
    "base", True, {"accumulate": 4, "checkpointing": True}, {"memory_bytes": 2**30, "seconds": 48.0}
)


def test_proposals_end_with_the_words_of_the_command() -> None:
    text = shown(planned.proposals([FITS, Proposal("adapt", True, {}, {"memory_bytes": 2**29})], "1.5 GiB"))
    assert (
        "base     fits into 1.5 GiB with accumulate = 4, checkpointing = true: about 1.00 GiB at the peak · "
        "about 48 s"
        in text
    )
    assert "adapt    fits into 1.5 GiB as it is: about 0.50 GiB at the peak" in text
    assert text.rstrip().endswith("--set base.accumulate=4 --set base.checkpointing=true")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            [Proposal("base", False, note="it needs 3.00 GiB at the least")],
            "base     nothing fits into 1 GiB: it needs 3.00 GiB at",
        ),
        (
            [Proposal("base", None, note="its model is not here")],
            "base     is not known to fit into 1 GiB: its model is not here",
        ),
        ([], "no training stage is to run"),
        (
            [Proposal("base", True, {"batch_tokens": 32}, {})],
            "A smaller batch changes what is learned; the other settings do not.",
        ),
    ],
)
def test_what_else_can_come_out(found: list[Proposal], words: str) -> None:
    text = shown(planned.proposals(found, "1 GiB"))
    assert words in text and ("changes what is learned" in text) == ("batch" in words)
