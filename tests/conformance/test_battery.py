"""Every installed method, held to every law of its kind: the registry is the list."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainwright.check import battery
from trainwright.check.laws import Law
from trainwright.core import registry
from trainwright.core.method import KINDS

pytestmark = pytest.mark.slow                               # `trainwright check METHOD` is the quick way to one method's
CASES = [(name, law) for name, card in registry.cards().items() for law in battery.laws_of(card.kind)]


@pytest.fixture(autouse=True)
def one_thread():
    """Matrices of 16 columns: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_kind_is_under_laws() -> None:
    for kind in KINDS:
        assert {law.name for law in battery.laws_of(kind)} > {"settings_come_back"}, kind


@pytest.mark.parametrize(("method", "law"), CASES, ids=[f"{name}-{law.name}" for name, law in CASES])
def test_law(method: str, law: Law, tmp_path: Path) -> None:
    cls = battery.load(method)
    if missing := battery.absent(cls):
        pytest.skip(f"needs {missing}")
    if not law.applies(cls):
        pytest.skip(f"the class does not say {law.where}")
    assert battery.problem(law, method, tmp_path) == ""
