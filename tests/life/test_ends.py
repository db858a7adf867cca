"""Every end of a run is one sentence and an exit code that says why; what was done is kept, what was begun is
not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks into /proc"),
]
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
RESUME = "; run the same command to go on"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, forked: Forked) -> dict[str, Any]:
    told: dict[str, Any] = forked("tests.life.ends", tmp_path_factory.mktemp("ends"))
    return told


def sentence(end: dict[str, Any]) -> str:
    """The one line of a failed run that is an error."""
    (line,) = [x for x in end["said"].splitlines() if x.startswith("error: ")]
    assert end["code"] == 2 and "Traceback" not in end["said"], end["said"]
    return str(line)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_in_training_saves_and_says_what_will_happen(name: str, found: dict[str, Any]) -> None:
    end, word = found[f"train {name}"], "interrupted" if name == "SIGINT" else f"ended by {name}"
    assert end["code"] == CODES[name] and "Traceback" not in end["said"], end["said"]
    assert end["said"].count(f"{word}: finishing the step, then saving; once more ends it at once\n") == 1
    assert end["said"].count(f" of 60{RESUME}\n") == 1 and any("checkpoints/step-" in f for f in end["left"])
    assert not any("artifact.tmp" in f or f.endswith(".tmp") for f in end["left"])


def test_it_goes_on_from_there(found: dict[str, Any]) -> None:
    end = found["again"]
    assert end["code"] == 0 and "resumed" in end["said"] and not end["left"], end["said"]


@pytest.mark.parametrize("name", CODES)
def test_a_signal_in_another_stage_ends_it_at_once(name: str, found: dict[str, Any]) -> None:
    """What its methods had in their scratch is there for the next attempt; the unfinished artifact is not."""
    end, word = found[f"corpus {name}"], "interrupted" if name == "SIGINT" else f"ended by {name}"
    assert end["code"] == CODES[name] and "Traceback" not in end["said"], end["said"]
    assert end["said"].count(f"{word}{RESUME}\n") == 1
    assert sorted(Path(f).name for f in end["left"]) == ["begun", "lock"]


def test_a_stage_that_fails_leaves_nothing(found: dict[str, Any]) -> None:
    assert "no such luck" in sentence(found["fails"]) and not found["fails"]["left"]


def test_a_closed_pipe_ends_it_like_a_signal(found: dict[str, Any]) -> None:
    end = found["head"]
    assert end["code"] == 141 and end["said"].count(RESUME) == 1 and "Traceback" not in end["said"], end[
        "said"
    ]
    assert "nobody reads the output any more" in end["said"] and not any(
        "artifact.tmp" in f for f in end["left"]
    )


def test_with_its_output_closed_it_runs_to_the_end(found: dict[str, Any]) -> None:
    end = found["closed"]
    assert end["code"] == 0 and not end["said"] and not end["left"]


@pytest.mark.parametrize("name", ["size", "corpus size"])
def test_files_that_may_not_grow(name: str, found: dict[str, Any]) -> None:
    assert "File too large" in sentence(found[name]) and "ulimit -f" in sentence(found[name])
    assert not any("artifact.tmp" in f for f in found[name]["left"])


def test_too_few_open_files(found: dict[str, Any]) -> None:
    """A library that notices it first does not say what was wanting: all limits are named then."""
    assert "Too many open files" in sentence(found["files"]) and "(ulimit -n)" in sentence(found["files"])
    assert "too few open files" in sentence(found["few files"]) and "-n)" in sentence(found["few files"])


@pytest.mark.parametrize("name", ["store", "work", "corpus"])
def test_what_is_removed_while_it_trains_is_named(name: str, found: dict[str, Any]) -> None:
    said = sentence(found[f"no {name}"])
    assert "was removed" in said and "run the same command again" in said, said
    assert f"no {name}" in said
