"""Every installed method, held to every law of its kind: the registry is the list."""
from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from trainwright.check import battery
from trainwright.check.laws import LAWS, Law
from trainwright.check.subject import Subject, load
from trainwright.core import registry
from trainwright.core.method import KINDS

pytestmark = pytest.mark.slow  # `trainwright check METHOD` is the quick way to one method's
CASES = [(name, law) for name, card in registry.cards().items() for law in battery.laws_of(card.kinds)]


@lru_cache(maxsize=1)
def subject(method: str) -> tuple[Subject, tempfile.TemporaryDirectory[str]]:
    """The runs that the laws of a method look at, kept while they are its turn."""
    folder = tempfile.TemporaryDirectory()
    return Subject(method, Path(folder.name)), folder


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices of 16 columns: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_kind_is_under_laws() -> None:
    of_all = {law.name for law in LAWS if KINDS["Curate"].__base__ in law.kinds}
    for kind in KINDS:
        assert {law.name for law in battery.laws_of((kind,))} > of_all, kind


def test_no_law_of_any_of_its_kinds_is_left_out() -> None:
    for name in registry.cards():
        applied = {law.name for law in LAWS if law.applies(load(name))}
        assert applied <= {law.name for method, law in CASES if method == name}, name
    assert {m for m, law in CASES if law.name == "params_limit_it"} >= {
        "spiel",
        "sara",
        "sst",
        "increlora",
        "r_amt",
    }


@pytest.mark.parametrize(("method", "law"), CASES, ids=[f"{name}-{law.name}" for name, law in CASES])
def test_law(method: str, law: Law) -> None:
    cls = load(method)
    if missing := battery.absent(cls):
        pytest.skip(f"needs {missing}")
    if not law.applies(cls):
        pytest.skip(f"the class does not say {law.where}")
    why = battery.problem(law, subject(method)[0])
    result = battery.judged(method, law.name, why, battery.expected_of(cls))
    assert result.ok, result.why
