"""A paper and its claims, as its TOML file has them; unknown keys and loose ends are errors."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from trainwright.core.errors import UserError, suggest
from trainwright.core.settings import make

Kind = Literal["method", "study", "model", "dataset", "benchmark", "survey"]
STAGES = ("data", "pretraining", "continued pretraining", "optimization", "fine-tuning", "alignment",
          "compression", "merging", "use", "evaluation", "search", "systems", "theory", "application",
          "survey")
"""Stages of a model's life, in its order, and what stands beside it."""
AGAINST = " against "
REASONS = ("needs scale", "needs data", "needs hardware", "needs a method")
"""Why a claim may stand without a measurement; never a name for a number that was measured."""
WHERE = ("suite", "recipe", "script")
"""Where a claim is tested: one of the shared suites, a comparison of ``recipes/``, or a program."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper that can be measured."""

    says: str
    """The sentence, in our words and with the paper's figures."""
    compares: str
    """``"ARM against BASELINE"``, both of them arms of the claim or of the paper."""
    metric: str = ""
    """What is measured, such as ``loss/prose``; default: what decides in the suite."""
    better: Literal["lower", "higher"] | None = None
    """Which way the metric is better, where its name does not say."""
    expects: Any = ""
    """``"lower"``, ``"higher"``, or a table: ``at_most`` or ``at_least`` a factor, ``as_good`` within a
    margin."""
    suite: str = ""
    """The shared suite that tests it."""
    recipe: str = ""
    """Or a comparison below ``recipes/``."""
    script: str = ""
    """Or a program, which is called with the paper's id and prints the pairs of numbers."""
    arms: dict[str, Any] = field(default_factory=dict)
    """Arms by name: methods that are added, or a table as of an ``[[arm]]`` of a comparison. An empty list is
    the suite as it is."""
    not_tested: str = ""
    """Why nothing was measured: needs scale, needs data, needs hardware, or needs a method."""
    why: str = ""
    """The same in a sentence."""

    @property
    def arm(self) -> str:
        """What the claim is about."""
        return self.compares.partition(AGAINST)[0].strip()

    @property
    def baseline(self) -> str:
        """What that is compared with."""
        return self.compares.partition(AGAINST)[2].strip()

    @property
    def gains(self) -> bool:
        """Whether it says that something is gained, not that nothing is lost."""
        return not (isinstance(self.expects, dict) and "as_good" in self.expects)

    @property
    def place(self) -> str:
        """The suite, the recipe or the program that tests it; empty where none does."""
        return self.suite or self.recipe or self.script


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper of the field."""

    id: str
    """The name of its file."""
    title: str
    """As published."""
    year: int
    """Of the first version."""
    about: str
    """One line on what it does, in our words."""
    kind: Kind
    """What it offers."""
    stage: str
    """The stage of a model's life that it is about: one of STAGES."""
    modality: str
    """What the model reads: text, vision, audio/speech …"""
    topic: str = ""
    """Its topic within the stage."""
    arxiv: str = ""
    """Its number on arXiv; empty where there is none that is known."""
    place: dict[str, str] = field(default_factory=dict)
    """Its class in the taxonomy of each survey that has a place for it."""
    companion: bool = False
    """Not one of the papers that are surveyed: a method of it is here, as a baseline or a tool."""
    methods: tuple[str, ...] = ()
    """Methods that belong to it beside those whose docstring names its number on arXiv."""
    arm: dict[str, Any] = field(default_factory=dict)
    """Arms that several claims share, by name."""
    claim: tuple[dict[str, Any], ...] = ()
    """Its claims as written; ``claims`` has them read."""
    claims: tuple[Claim, ...] = ()
    """Its claims, each with all arms that it may name."""

    @property
    def link(self) -> str:
        """Where it can be read."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


def parse(table: dict[str, Any], name: str, where: str) -> Paper:
    """A paper from its table.

    Raises:
        UserError: an unknown key, a claim without its arms, a claim that is tested in two places or in none.
    """
    for key in ("id", "claims"):
        if key in table:
            raise UserError(f"{where}: {key!r} is no key of a paper: the file's name is its id, and its "
                            "claims are [[claim]].")
    found: Paper = make(Paper, table | {"id": name}, where)
    if found.stage not in STAGES:
        raise UserError(f"{where}: there is no stage {found.stage!r}{suggest(found.stage, STAGES)}.")
    claims = tuple(_claim(one, found, f"{where}: claim {i}") for i, one in enumerate(found.claim, 1))
    seen = [c.says for c in claims]
    for i, says in enumerate(seen):
        if says in seen[:i]:
            raise UserError(f"{where}: claim {i + 1} says what claim {seen.index(says) + 1} says.")
    return replace(found, claims=claims)


def _claim(given: dict[str, Any], paper: Paper, where: str) -> Claim:
    claim: Claim = make(Claim, given, where)
    places = [name for name in WHERE if getattr(claim, name)]
    if claim.not_tested:
        if places or claim.metric:
            raise UserError(f"{where}: it is not tested, so it has no {places[0] if places else 'metric'}.")
        if claim.not_tested not in REASONS:
            raise UserError(f"{where}: not_tested = {claim.not_tested!r} is none of {', '.join(REASONS)}"
                            f"{suggest(claim.not_tested, REASONS)}.")
    elif len(places) != 1:
        raise UserError(f"{where}: say one of suite, recipe and script, or why it is not_tested.")
    if bool(claim.why) != bool(claim.not_tested):
        raise UserError(f"{where}: not_tested and why go together: a reason, and the reason in a sentence.")
    if not claim.arm or not claim.baseline:
        raise UserError(f'{where}: compares = {claim.compares!r}: write "ARM against BASELINE".')
    if not claim.not_tested and not claim.expects:
        raise UserError(f"{where}: say what it expects, such as expects = \"lower\".")
    arms = paper.arm | claim.arms
    if claim.suite or claim.recipe:
        for name in (claim.arm, claim.baseline):
            if name not in arms:
                raise UserError(f"{where}: {name!r} is no arm{suggest(name, arms)}.")
    return replace(claim, arms=arms)
