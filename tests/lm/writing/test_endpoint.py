"""The pace at which an endpoint is asked."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from trainwright.lm.writing import endpoint


def test_a_pace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], list[float]()

    def wait(seconds: float) -> bool:
        slept.append(seconds)
        now[0] += seconds
        return False

    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: now[0]))
    over = SimpleNamespace(wait=wait, is_set=lambda: False)
    pace = endpoint.Pace(1200)
    assert all(pace.wait(over) for _ in range(4)) and slept == pytest.approx([0.05] * 3)
    assert endpoint.Pace(0).wait(over) and len(slept) == 3                     # no limit
    called_off = SimpleNamespace(wait=lambda seconds: True, is_set=lambda: True)
    assert not pace.wait(called_off) and not endpoint.Pace(0).wait(called_off)
