"""The conformance battery, for everybody's methods: one call holds a method to all laws of its kinds.

In a test of your own, with pytest or without:

>>> from trainwright.check import check_method, checks
>>> found = check_method("./mine.py", expected_failures={"it_starts_neutral": "it starts from noise"})
>>> assert all(one.ok for one in found)

>>> CHECKS = checks("./mine.py")
>>> @pytest.mark.parametrize(("law", "check"), CHECKS, ids=[law for law, _ in CHECKS])
>>> def test_mine(law, check):
>>>     check()

A class may also name the laws that it breaks on purpose itself, each with the reason: ``expected_failures``.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainwright.check.battery import Result, check_method, checks

__all__ = ["Result", "check_method", "checks"]


def __getattr__(name: str) -> Any:
    """Names are imported when they are asked for: the scaffold next door needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'trainwright.check' has no attribute {name!r}")
    from trainwright.check import battery
    return getattr(battery, name)
