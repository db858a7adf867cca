"""What a method says of its paper's claim. ``trainwright bench`` puts it to the test."""
from __future__ import annotations

from typing import Any, NamedTuple


class Bench(NamedTuple):
    """What a paper claims of its method, and the shared suite that can show it at small scale
    (``trainwright bench``)."""

    suite: str
    """One of ``compare/suites/``: the data, the budget and the metrics are the suite's."""
    claim: str
    """What the paper says that the method does better, with its figures."""
    metric: str = ""
    """Metric of the suite that the claim is about; empty: the one that decides in the suite."""
    add: tuple[dict[str, Any], ...] = ()
    """Methods of its arm; empty: the method alone, with its defaults."""
    drop: tuple[str, ...] = ()
    """Methods of the suite that its arm does without."""
    at: str = ""
    """Stage of the suite that its arm changes; empty: the one that is compared."""
    baseline: tuple[dict[str, Any], ...] = ()
    """Methods of the baseline's arm; empty: the suite as it is."""
    baseline_drop: tuple[str, ...] = ()
    """Methods of the suite that the baseline's arm does without."""
    versus: str = ""
    """What the baseline is called; empty: the suite's own name for it."""
    stages: tuple[dict[str, Any], ...] = ()
    """Whole stages that both arms have before the one that is compared (a teacher, say)."""
    set: dict[str, Any] | None = None
    """Other settings of its arm, of the compared stage where they name none:
    ``{"from.reference": "base"}``."""
    baseline_set: dict[str, Any] | None = None
    """Other settings of the baseline's arm."""
    search: dict[str, Any] | None = None
    """The arm's own search space, of as many trials as the suite's."""
    paper: str = ""
    """``Title (arXiv 1234.56789)``; empty: the first that the docstring names."""
    scale: str = ""
    """Why the claim may need more than the suite's scale, where it may."""
