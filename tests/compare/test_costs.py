from __future__ import annotations

from dataclasses import replace

from trainwright.compare import costs
from trainwright.compare.costs import Costs, one_clock
from trainwright.storage.store import Store

BASE = Costs(
    tokens=128,
    flops=1e6,
    seconds=0.5,
    peak_memory_bytes=1e8,
    trainable_parameters=10,
    parameters=10,
    state_bytes=80,
    compiled=False,
    rounds=(0.5, 0.5, 0.6),
    baseline_rounds=(0.5, 0.5, 0.6),
)


def test_an_arm_keeps_its_ratio_to_the_baseline_beside_which_it_was_measured() -> None:
    """Measured while everything took twice as long, and 20 % slower than the baseline: 0.6 s by the
    baseline's clock."""
    slow = replace(BASE, seconds=1.2, rounds=(1.2, 1.2, 1.3), baseline_rounds=(1.0, 1.0, 1.1))
    found = one_clock(slow, BASE)
    assert (
        found.seconds == 0.6
        and found.rounds == (0.6, 0.6, 0.65)
        and found.baseline_rounds == (0.5, 0.5, 0.55)
    )
    assert one_clock(BASE, BASE) == BASE and one_clock(slow, None) == slow


def test_costs_that_were_never_measured_are_no_damage(tmp_path, capsys) -> None:
    assert costs._read(tmp_path / "none.json", Store(tmp_path)) is None
    (tmp_path / "bad.json").write_text('{"tokens": "many"}')
    assert costs._read(tmp_path / "bad.json", Store(tmp_path)) is None
    said = capsys.readouterr()
    assert "none.json" not in said.out + said.err and "bad.json" in said.out + said.err
