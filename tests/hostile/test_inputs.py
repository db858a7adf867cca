"""A thousand malformed inputs, drawn from a seed: no traceback, no hang, no silent wrong result.

``make hostile`` tries ten thousand more.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.hostile import outcome
from tests.hostile.drawing import drawn

SEED, INPUTS, PARTS = 0, 1000, 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return outcome.at_home(tmp_path_factory.mktemp("home"))


def test_a_seed_draws_the_same_inputs_and_all_kinds_of_them() -> None:
    first, again = (list(drawn(SEED, 300)) for _ in range(2))
    assert first == again and first != list(drawn(SEED + 1, 300))
    assert {one.words[0] for one in first} > {"plan", "run", "compare", "store"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_input_ends_in_a_sentence_or_is_carried_out(part: int, home: Path) -> None:
    mine = itertools.islice(drawn(SEED, INPUTS), part * INPUTS // PARTS, (part + 1) * INPUTS // PARTS)
    wrong = [f"{one.what} {one.words}: {why}" for one in mine if (why := outcome.problem(one, home))]
    assert not wrong, "\n".join(wrong)
