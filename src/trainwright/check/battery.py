"""The conformance battery: every method, ours or anybody's, held to the laws of its kinds on a tiny stage.

``trainwright check ./mine.py`` runs it, and so do our own tests. It knows no method by name. In tests of your
own, call ``check_method`` or ``checks``.
"""
from __future__ import annotations

import importlib.util
import tempfile
import unittest
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import trainwright.check.laws_of_curate
import trainwright.check.laws_of_kinds
import trainwright.check.laws_without_loop  # noqa: F401  (each of the three adds to LAWS)
from trainwright.check.laws import LAWS, TRAINS, Broken, Law
from trainwright.check.ranks import RANKS, check_ranks
from trainwright.check.subject import Subject, load, reported
from trainwright.core import registry
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import KINDS, Method

Status = Literal["passed", "failed", "expected", "skipped"]


@dataclass(frozen=True)
class Result:
    """One law and one method. ``expected`` is a failure that was foreseen; one that was and did not come is
    ``failed``."""

    method: str
    law: str
    status: Status
    why: str = ""
    """What breaks the law, in a sentence; or why the failure was expected, or the law skipped."""

    @property
    def ok(self) -> bool:
        return self.status != "failed"


def check_method(
    method: type[Method] | str | Path, expected_failures: dict[str, str] | None = None
) -> list[Result]:
    """Hold a method to every law of its kinds, on one process and on two.

    Args:
        method: its class, its name, or the file that it lies in. A file defines one method.
        expected_failures: laws by name that it breaks on purpose, each with the reason; beside those of its
            class. One that holds nevertheless is a failure.

    Raises:
        UserError: there is no such method, or no such law.
    """
    return list(check_all([_use(method)], expected_failures))


def checks(method: type[Method] | str | Path,
           expected_failures: dict[str, str] | None = None) -> list[tuple[str, Callable[[], None]]]:
    """The same as pairs of a law's name and a function that raises ``AssertionError`` where it is broken: for
    a test that is run once for each. Where the method needs a package that is not there, the function raises
    ``unittest.SkipTest``."""
    use = _use(method)
    cls, expected = load(use), expected_of(load(use), expected_failures)
    place = tempfile.TemporaryDirectory(prefix="trainwright-check-")
    subject = Subject(use, Path(place.name))

    def check(law: Law | None) -> None:
        _ = place                                            # kept as long as one of the checks is
        if missing := absent(cls):
            raise unittest.SkipTest(f"needs {missing}")
        why = problem(law, subject) if law is not None else check_ranks([use])[use]
        result = judged(use, law.name if law is not None else RANKS, why, expected)
        if not result.ok:
            raise AssertionError(result.why)
    return [(law.name if law is not None else RANKS, partial(check, law)) for law in laws_for(cls)]


def check_all(methods: list[str] | None, expected_failures: dict[str, str] | None = None) -> Iterator[Result]:
    """Hold methods (default: all that are installed) to every law, one after the other; the ranks come last,
    for all."""
    ranked: dict[str, dict[str, str]] = {}
    for name in registry.cards() if methods is None else methods:
        cls = load(name)
        expected = expected_of(cls, expected_failures)
        if missing := absent(cls):
            yield Result(name, "all laws", "skipped", f"needs {missing}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            subject = Subject(name, Path(folder))
            for law in (law for law in laws_for(cls) if law is not None):
                result = judged(name, law.name, problem(law, subject), expected)
                yield result
                if law.first and not result.ok:
                    break
            else:
                ranked |= {name: expected} if issubclass(cls, TRAINS) else {}
    for name, why in check_ranks(list(ranked)).items():
        yield judged(name, RANKS, why, ranked[name])


def summary(results: Iterable[Result]) -> str:
    """How many checks there were, in a line."""
    done = list(results)
    of = Counter(r.status for r in done)
    words = {"passed": "passed", "failed": "failed", "expected": "failed as expected", "skipped": "skipped"}
    counts = ", ".join(f"{of[s]:,} {word}" for s, word in words.items() if of[s] or s in ("passed", "failed"))
    many, methods = len(done) - of["skipped"], len({r.method for r in done})
    return f"{many:,} check{'s' * (many != 1)} of {methods:,} method{'s' * (methods != 1)}: {counts}"


# ---- pieces ------------------------------------------------------------------------------------------


def laws_of(kinds: Iterable[str]) -> list[Law]:
    """The laws that may apply to a method of these kinds, but for that of the ranks."""
    return [law for law in LAWS if any(issubclass(KINDS[kind], law.kinds) for kind in kinds)]


def laws_for(cls: type[Method]) -> list[Law | None]:
    """The laws that a class is under; None stands for that of the ranks."""
    return [*(law for law in LAWS if law.applies(cls)), *([None] if issubclass(cls, TRAINS) else [])]


def problem(law: Law, subject: Subject) -> str:
    """What breaks the law, in a sentence; empty where it holds."""
    try:
        law.check(subject)
    except (Broken, UserError) as error:
        return str(error)
    except Exception as error:
        return reported(error)
    return ""


def absent(cls: type[Method]) -> str:
    """What the method's example needs and this machine (or any test) has not; empty where nothing is
    missing."""
    return next((n for n in cls.needs if n == "network" or importlib.util.find_spec(n) is None), "")


def _use(method: type[Method] | str | Path) -> str:
    if isinstance(method, type):
        return registry.use_of(method)
    return str(Path(method).resolve()) if str(method).endswith(".py") else str(method)


def expected_of(cls: type[Method], more: dict[str, str] | None = None) -> dict[str, str]:
    """The failures that are expected of a method, each with its reason: those of its class, and ``more``."""
    expected, known = cls.expected_failures | (more or {}), {*(law.name for law in LAWS), RANKS}
    for name, reason in expected.items():
        if name not in known:
            raise UserError(f"expected_failures: there is no law {name!r}{suggest(name, known)}.")
        if not reason.strip():
            raise UserError(f"expected_failures: say why the law {name!r} is broken.")
    return expected


def judged(method: str, law: str, why: str, expected: dict[str, str]) -> Result:
    """What a problem (or none) amounts to, given the failures that are expected."""
    result = Result(method, law, "failed" if why else "passed", why)
    if law not in expected:
        return result
    if why:
        return replace(result, status="expected", why=f"{expected[law]} ({why})")
    return replace(result, status="failed", why=f"it holds, and was expected to be broken: {expected[law]}")
