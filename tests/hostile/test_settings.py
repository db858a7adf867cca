"""No setting ends in an exception: a value is refused in one sentence that names its
key, or what takes it works.

All values are put into all settings here; of those that are accepted a sample, drawn by a seed, is run for a
step. ``make hostile`` runs them all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_texts
from tests.hostile import runs, stages
from tests.hostile.outcome import Hang, bounded
from tests.hostile.stages import StageCase
from tests.hostile.values import Case, of_methods, of_stages
from trainwright import cli_machine as machine
from trainwright.check.battery import absent
from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.core.settings import MOST

SAMPLE, STAGES = 40, 8
"""Accepted values that are run here, of methods and of stages."""


def sentence(said: str, key: str = "") -> str:
    """What is wrong with a refusal, if anything."""
    if len(said) > MOST and key:
        return f"{len(said)} characters"
    if "\n" in said or not said.endswith((".", "?", ")")):
        return f"no sentence: {said[:200]!r}"
    return "" if key.removesuffix("s") in said else f"{key} is not named in {said[:200]!r}"


@cache
def method_cases() -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """The values that methods accept, and what is wrong with the refusals of the others."""
    accepted, wrong = [], []
    for case in of_methods():
        try:
            case.make()
        except UserError as error:
            if why := sentence(str(error), case.key):
                wrong.append(f"{case}: {why}")
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}")
        else:
            accepted.append(case)
    return tuple(accepted), tuple(wrong)


@cache
def stage_cases() -> tuple[tuple[StageCase, ...], tuple[str, ...]]:
    """The same of stages."""
    accepted, wrong = [], []
    for case in map(StageCase._make, of_stages()):
        try:
            case.recipe(Path("/nowhere"))
        except UserError as error:
            if all(sentence(str(error), key) for key in (case.key, case.path.partition(".")[0])):
                wrong.append(f"{case}: {sentence(str(error), case.key)}")
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {str(error)[:100]}")
        else:
            accepted.append(case)
    return tuple(accepted), tuple(wrong)


@pytest.mark.slow
def test_every_value_in_every_setting_of_a_method_is_taken_or_refused_in_a_sentence() -> None:
    accepted, wrong = method_cases()
    assert not wrong, "\n".join(wrong[:20])
    assert len(accepted) > 1000, "the values reach the settings"


@pytest.mark.slow
def test_every_value_in_every_setting_of_a_stage_is_taken_or_refused_in_a_sentence() -> None:
    assert not stages.missing(), "a kind of stage has no example here"
    accepted, wrong = stage_cases()
    assert not wrong, "\n".join(wrong[:20])
    assert len(accepted) > 50, "the values reach the settings"


def outcome_of(attempt: Callable[[], str]) -> str:
    """What is wrong with how an attempt ends, which returns what the user is told; empty where nothing is."""
    try:
        with bounded():
            said = attempt()
        return sentence(said) if said else ""
    except (Exception, Hang) as error:
        told = machine.refused(error)
        return f"{type(error).__name__}: {str(error)[:200]}" if told is None else sentence(told)


def tried(case: Case) -> str:
    """What is wrong with a step of a method with such a value; empty where it works or is refused."""
    return outcome_of(lambda: runs.attempt(case.make()))


def runnable() -> Iterator[Case]:
    """Accepted values of methods that run here, but for the largest count, which no machine has time for."""
    return (c for c in method_cases()[0] if c.value != "2**31 - 1" and not absent(registry.find(c.method)))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_methods_accept_works_or_is_refused() -> None:
    drawn = random.Random(0).sample(list(runnable()), SAMPLE)
    wrong = [f"{case}: {why}" for case in drawn if (why := tried(case))]
    assert not wrong, "\n".join(wrong)


def tried_stage(case: StageCase, home: Path) -> str:
    """The same of a stage's setting."""
    return outcome_of(lambda: stages.attempt(case.recipe(home), home / "store"))


def runnable_stages() -> list[StageCase]:
    """Accepted values of stages that do not ask for more than any machine has time for."""
    return [c for c in stage_cases()[0] if c.value not in ("2**31 - 1", "2**63", "1e30", "1e308")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the texts of the tiny life."""
    write_texts(tmp_path / "texts")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_stages_accept_works_or_is_refused(home: Path) -> None:
    drawn = random.Random(1).sample(runnable_stages(), STAGES)
    wrong = [f"{case}: {why}" for case in drawn if (why := tried_stage(case, home))]
    assert not wrong, "\n".join(wrong)


VALUES_TOLD: list[tuple[str, dict[str, Any], str]] = [
    ("adamw", {"lr": float("inf")}, "lr must be a finite number below 3.4e38 in size, not inf."),
    (
        "adamw",
        {"lr": int("9" * 400)},
        "lr must be a finite number below 3.4e38 in size, not a number of 400 digits.",
    ),
    (
        "adamw",
        {"beta1": 10**5000},
        "beta1 must be a finite number below 3.4e38 in size, not a number of 5001 digits.",
    ),
    ("adamw", {"beta1": 1}, "beta1 must be at least 0 and below 1, not 1"),
    ("pytorch_optimizer", {"optimizer": "Lion", "lr": -1}, "lr must be 0 or more, not -1"),
    ("constant", {"warmup": float("inf")}, "warmup must be"),
    ("rehearsal_free_cl", {"old": ["x"], "length": 0}, "length must be 2 or more, not 0."),
    ("pack", {"length": "x" * 100_000}, "length must be a whole number, not 'xxx"),
    ("lora", {"rank": 2**63}, "rank must be a whole number below 2**31 in size, not 9223372036854775808."),
    ("text", {"paths": ["a\0b"]}, "paths[0] must be text without NUL"),
    ("refusals", {"ask": " "}, "ask must say something"),
    ("score_reward", {"question": "Good?"}, "question lacks {response}, for which the answer stands"),
    ("score_reward", {"column": "text"}, "column: 'text' is one that every table has"),
    (
        "d_cpt_law",
        {"domain": "a", "general": "b", "compute": 0.5},
        "compute must pay for a token of the smallest model of sizes, which takes 6e+06, not 0.5",
    ),
]


@pytest.mark.parametrize(("method", "settings", "words"), VALUES_TOLD)
def test_the_sentence_says_what_would_be_right(method: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as told:
        registry.create({"use": method} | settings, Path(), "here")
    assert words in str(told.value) and len(str(told.value)) <= MOST
