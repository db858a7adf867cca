"""What was measured against the claims of papers, as ``trainwright reproduce`` wrote it: one JSON file a
paper. Reading it needs no library."""
from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainwright.core import registry
from trainwright.core.source import ROOT
from trainwright.papers import library
from trainwright.papers.paper import Claim, Paper
from trainwright.storage import identity

OPEN = "open"
"""The word of a claim that can be tested here and has no measurement yet."""
WORDS = ("reproduced", "weaker", "no difference", "contradicted", "not tested", OPEN)
"""What can be said of a claim, in the order in which it is told."""
STATES = ("measured", "in part", "open", "here", "listed")
"""Of a paper: all claims that can be tested have a verdict, some have, none has; it has methods here, but no
claim that can be tested; or it is only listed."""
SUITES = ROOT / "compare" / "suites"


@dataclass(frozen=True)
class Told:
    """A claim and what was measured of it."""

    claim: Claim
    entry: dict[str, Any] | None
    """As in the file, or nothing."""

    @property
    def verdict(self) -> dict[str, Any] | None:
        """The verdict with its numbers, where something was measured."""
        return self.entry and self.entry.get("verdict")

    @property
    def word(self) -> str:
        """One of WORDS."""
        if self.verdict is not None:
            return str(self.verdict["word"])
        return "not tested" if self.claim.not_tested else OPEN

    @property
    def worse(self) -> list[dict[str, Any]]:
        """Other metrics that got worse: the price."""
        return [r for r in (self.entry or {}).get("also", ()) if r["verdict"] == "worse"]


def folder() -> Path:
    """Where evidence lies: packed with an installed package, in the checkout otherwise."""
    packed = ROOT / "evidence"
    return packed if packed.is_dir() else ROOT.parents[1] / "evidence"


def read(paper: Paper, at: Path | None = None) -> dict[str, dict[str, Any]]:
    """The measurements of a paper's claims, by the sentence of the claim."""
    file = (at or folder()) / f"{paper.id}.json"
    if not file.is_file():
        return {}
    return {e["says"]: e for e in json.loads(file.read_text(encoding="utf-8"))["claims"]}


def told(paper: Paper, at: Path | None = None) -> list[Told]:
    """Every claim of a paper with its measurement."""
    found = read(paper, at) if paper.claims else {}
    return [Told(claim, found.get(claim.says)) for claim in paper.claims]


def words(paper: Paper) -> Counter[str]:
    """How many claims of a paper have which word."""
    return Counter(one.word for one in told(paper))


def state(paper: Paper) -> str:
    """One of STATES."""
    counted = words(paper)
    if counted.total() == counted["not tested"]:
        return "here" if library.methods(paper) or library.recipes(paper) else "listed"
    still = counted[OPEN]
    return "measured" if not still else "open" if still == counted.total() else "in part"


# ---- is it still true? -----------------------------------------------------------------------------------


def code_of(claim: Claim) -> dict[str, str]:
    """What a measurement of a claim rests on: hashes of the suite, the recipe or the program that tests it,
    and of the methods of both arms. An installed package has neither recipes nor programs."""
    files = {f"suite {claim.suite}": SUITES / f"{claim.suite}.toml",
             f"recipe {claim.recipe}": library.RECIPES / claim.recipe,
             f"script {claim.script}": library.RECIPES.parent / claim.script}
    found = {name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for name, file in files.items()
             if file.is_file()}
    for name in sorted(set(_uses([claim.arms.get(claim.arm), claim.arms.get(claim.baseline)]))):
        if name in registry.cards():
            found[name] = _code(name)
    return found


@cache
def _code(method: str) -> str:
    return identity.code(registry.cards()[method].file)


def _uses(value: Any) -> list[str]:
    """The methods that are named anywhere in an arm."""
    if isinstance(value, dict):
        own = [str(value["use"])] if "use" in value else []
        return own + [u for v in value.values() for u in _uses(v)]
    if isinstance(value, (list, tuple)):
        return [u for v in value for u in _uses(v)]
    return []


def old(one: Told) -> str:
    """Why a measurement is older than what it measured, in a few words; empty where it is not."""
    if one.verdict is None or one.entry is None:
        return ""
    if one.entry["carried"]:
        return "measured before the code was kept beside the numbers"
    now, then = code_of(one.claim), one.entry["code"]
    there = library.RECIPES.is_dir()
    changed = [name for name in {**now, **then} if now.get(name) != then.get(name)
               and (there or not name.startswith(("recipe ", "script ")))]
    return f"measured before {', '.join(changed)} changed" if changed else ""
