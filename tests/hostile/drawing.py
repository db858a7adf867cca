"""So many inputs of all kinds, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile import inputs, models
from tests.hostile.inputs import Draw, Input

SHARES = [
    (inputs.edited_text, 28), (inputs.edited_table, 32), (inputs.command, 18), (inputs.manifest, 5),
    (inputs.changes, 7), (inputs.data, 2), (inputs.chat, 2), (models.edited, 4), (models.broken, 1),
    (models.begun, 1),
]  # fmt: skip


def drawn(seed: int, number: int) -> Iterator[Input]:
    """The same ones for the same seed."""
    draw = Draw(seed)
    for kind in draw.choices([k for k, _ in SHARES], [n for _, n in SHARES], k=number):
        yield kind(draw)
