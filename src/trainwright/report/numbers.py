"""Figures as people read them, and evaluations as rows against their baseline. Imports nothing heavy."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

NONE = "–"
"""Stands where nothing was measured."""
SIGNED = ("loss", "bits_per_byte")
"""Metrics of which less is better, and which are therefore compared with the baseline."""
FIRST = (*SIGNED, "perplexity")
ERROR = "_stderr"
"""How the name of a standard error ends."""


def count(x: float | None) -> str:
    """Three digits and a unit: ``512``, ``12.4 k``, ``1.05 M``."""
    if x is None or not math.isfinite(x):
        return NONE
    size, unit = x, ""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if abs(size) < 999.5 or unit == "E":
            break
        size /= 1000
    if not unit and (size == int(size) or abs(size) >= 100):
        return f"{size:.0f}"
    digits = 2 if abs(size) < 9.995 else 1 if abs(size) < 99.95 else 0
    return f"{size:.{digits}f} {unit}".rstrip()


def short(x: float) -> str:
    """``count`` for the ticks of an axis, without needless zeros: ``250 k``, ``1.5 M``."""
    number, space, unit = count(round(x, 6)).partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + unit


def size(x: float | None) -> str:
    """Bytes: ``912 MB``, ``1.3 GB``."""
    if x is None or not math.isfinite(x):
        return NONE
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if x < 999.5 or unit == "TB":
            break
        x /= 1000
    return f"{x:.1f} {unit}" if x < 10 and unit != "B" else f"{x:.0f} {unit}"


def share(x: float | None) -> str:
    """A share in percent: ``50.0 %``."""
    return NONE if x is None or not math.isfinite(x) else f"{100 * x:.1f} %"


def duration(seconds: float | None) -> str:
    """``40 ms``, ``0.4 s``, ``48 s``, ``2 min 12 s``, ``3 h 05 min``, ``2 d 4 h``."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if 0 < seconds < 0.0995:
        return f"{1000 * seconds:.{0 if seconds >= 0.001 else 1}f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def value(x: float | None) -> str:
    """A measured number with four digits: ``4.312``, ``74.62``, ``1,204``."""
    if x is None or not math.isfinite(x):
        return NONE
    if x and (abs(x) >= 1e6 or abs(x) < 1e-3):
        return f"{x:.2e}"
    return f"{x:,.{3 if abs(x) < 10 else 2 if abs(x) < 100 else 1 if abs(x) < 1000 else 0}f}"


def signed(x: float | None) -> str:
    """A difference with its sign, a true minus: ``+0.811``, ``−0.042``."""
    if x is None or not math.isfinite(x):
        return NONE
    text = f"{x:+.3f}"
    return "0.000" if not float(text) else text.replace("-", "−")


def p_value(p: float | None) -> str:
    """``0.032``, ``0.0041``, and ``< 0.001`` for what is smaller."""
    if p is None or not math.isfinite(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.{3 if p >= 0.01 else 4}f}"


def ratio(x: float | None, base: float | None) -> str:
    """How many times the base: ``×1.08``, ``×0.019``, ``×31``; nothing where there is no base."""
    if not x or not base or not math.isfinite(x / base):
        return ""
    found = x / base
    digits = max(0, 1 - math.floor(math.log10(found))) if found < 0.0995 else 2 if found < 9.95 else 0
    return f"×{found:.{digits}f}"


def quantity(metric: str, x: float | None) -> str:
    """A number with the unit that its metric's name implies (bytes, seconds, parameters, FLOPs), or as
    ``value`` writes it."""
    if x is None or not math.isfinite(x):
        return NONE
    kind = unit_kind(metric)
    if kind == "bytes":
        return size(x)
    if kind == "count":
        return count(x)
    if kind == "seconds" and metric.endswith("_per_step"):
        return f"{1000 * x:.3g} ms" if x < 0.0995 else f"{x:.2f} s" if x < 9.95 else f"{x:.1f} s"
    return duration(x) if kind == "seconds" else value(x)


def unit_kind(metric: str) -> str:
    """``bytes``, ``seconds``, ``count`` or nothing: what a metric's name implies about its unit."""
    name = metric.partition("/")[0]
    if name.endswith("_bytes"):
        return "bytes"
    if name.startswith("seconds"):
        return "seconds"
    return "count" if name in ("flops", "tokens", "steps") or name.endswith("parameters") else ""


STEPS = {"bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
         "seconds": ((1.0, "s"), (1e-3, "ms")),
         "count": ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")), "": ((1.0, ""),)}


def unit(metric: str, most: float) -> tuple[float, str]:
    """What the numbers of a metric up to ``most`` are divided by, and the unit that they then have."""
    steps = STEPS[unit_kind(metric)]
    return next((step for step in steps if abs(most) >= 0.9995 * step[0]), steps[-1])


def decimals(width: float) -> int:
    """Decimals that leave a width two digits where the first is small, else one; at most six.

    3 for 0.012 and for 0.0081, 0 for 12.
    """
    if not (width > 0 and math.isfinite(width)):
        return 3
    places = -math.floor(math.log10(width))
    return min(6, max(0, places + int(width * 10**places < 3.55)))


def interval(metric: str, difference: float | None, low: float | None, high: float | None,
             sign: bool = True) -> tuple[str, str]:
    """A difference and its interval with as many decimals as it is worth: ``+0.036`` and ``[0.031, 0.041]``.

    The unit stands behind the difference. Without an interval (an exact number) there is no second text.
    """
    if difference is None or not math.isfinite(difference):
        return NONE, ""
    ends = [] if low is None or high is None or low == high else [low, high]
    by, name = unit(metric, max(abs(x) for x in [difference, *ends]))
    width = (ends[1] - ends[0]) / 2 if ends else abs(difference) / 10
    digits = decimals(width / by) if width else 0
    while digits < 6 and any(x and not float(f"{x / by:.{digits}f}") for x in ends):
        digits += 1                        # an end that looks like zero hides on which side of it it lies

    def written(x: float, plus: bool) -> str:
        text = f"{x / by:+,.{digits}f}" if plus else f"{x / by:,.{digits}f}"
        return (text.lstrip("+-") if not float(text.replace(",", "")) else text).replace("-", "−")

    text = " ".join(part for part in (written(difference, sign), name) if part)
    return text, f"[{written(ends[0], False)}, {written(ends[1], False)}]" if ends else ""


@dataclass(frozen=True)
class Measured:
    """One model on one domain."""

    domain: str
    model: str
    role: str
    """``gain`` where the domain is new, ``forgetting`` where it is old, ``change`` where it is neither."""
    baseline: bool
    values: dict[str, float]
    """The metric's name without its domain, to what was measured."""
    errors: dict[str, float]
    """The same, to its standard error, where one was measured."""
    against: dict[str, float]
    """Differences from the baseline, signed by ``role``: a gain is how much lower, the others how much
    higher."""

    def written(self, metric: str) -> str:
        """A number with its standard error, where there is one: ``0.512 ± 0.014``."""
        text, error = value(self.values.get(metric)), self.errors.get(metric)
        return text if error is None or not math.isfinite(error) else f"{text} ± {value(error)}"

    @property
    def compared(self) -> bool:
        """Whether its loss was compared with a baseline's."""
        return math.isfinite(self.against.get("loss", math.nan))

    @property
    def lower(self) -> float:
        """How much lower its loss is than the baseline's."""
        return self.against["loss"] * (1 if self.role == "gain" else -1)

    def good(self, metric: str) -> bool | None:
        """Whether the difference is for the better; None where there is none to speak of."""
        x = self.against.get(metric)
        if x is None or not math.isfinite(x) or signed(x) == "0.000":
            return None
        return (x > 0) == (self.role == "gain")


def measured(figures: dict[str, Any]) -> list[Measured]:
    """The figures of an evaluation by domain, new ones first, then old; each model against the baseline."""
    numbers: dict[str, dict[str, float]] = figures.get("numbers") or {}
    old, new, baseline = figures.get("old") or [], figures.get("new") or [], figures.get("baseline")
    found: dict[tuple[str, str], dict[str, float]] = {}
    for model, metrics in numbers.items():
        for name, x in metrics.items():
            metric, _, domain = name.partition("/")
            found.setdefault((domain, model), {})[metric] = x
    seen = sorted({d for d, _ in found})
    first = [d for d in dict.fromkeys([*new, *old]) if d in seen]
    out = []
    for domain in [*first, *(d for d in seen if d not in first)]:
        role = "gain" if domain in new else "forgetting" if domain in old else "change"
        base = found.get((domain, baseline or ""), {})
        for model in [m for m in numbers if (domain, m) in found]:
            values = {m: x for m, x in found[domain, model].items() if not error_of(m)}
            errors = {error_of(m): x for m, x in found[domain, model].items() if error_of(m)}
            against = {m: (base[m] - values[m]) * (1 if role == "gain" else -1) for m in SIGNED
                       if m in base and m in values and model != baseline}
            out.append(Measured(domain, model, role, model == baseline, values, errors, against))
    return out


def error_of(metric: str) -> str:
    """The metric whose standard error this is: ``acc`` of ``acc_stderr``; nothing where it is no error."""
    name, comma, rest = metric.partition(",")
    return f"{name.removesuffix(ERROR)}{comma}{rest}" if name.endswith(ERROR) else ""


def metrics_of(rows: list[Measured]) -> list[str]:
    """The metrics of a table: loss and bits per byte first, then the others as they came."""
    seen = dict.fromkeys(m for row in rows for m in row.values)
    return [m for m in FIRST if m in seen] + [m for m in seen if m not in FIRST]
