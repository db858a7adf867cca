"""What is compared with what: read from TOML or from a command line, and checked before anything runs."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from trainwright.compare.sequential import FIRST
from trainwright.core import recipe as recipes
from trainwright.core import registry
from trainwright.core.card import Card, read
from trainwright.core.errors import UserError, suggest
from trainwright.core.metrics import direction
from trainwright.core.settings import Between, Positive, fit, make
from trainwright.core.stage import stages

CURRENCIES = ("tokens", "flops", "seconds")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things compared: the recipe, and what is different in it."""

    name: str
    """Its name in tables and plots."""
    add: tuple[dict[str, Any], ...] = ()
    """Methods that it adds, in place of one of the same name, or of the other optimizer or merge."""
    drop: tuple[str, ...] = ()
    """Methods of the stage that it does without."""
    at: str | None = None
    """Stage that ``add`` and ``drop`` change, such as a corpus; default: the compared one."""
    set: dict[str, Any] = field(default_factory=dict)
    """Other settings, as with ``--set``: ``{ "adapt.methods.adamw.lr" = 1e-3 }``; without the name of a
    stage, those of the compared one."""
    stage: tuple[dict[str, Any], ...] = ()
    """Whole stages: in place of the recipe's of that name, or one more before the compared stage."""
    judge: tuple[dict[str, Any], ...] = ()
    """Methods with which its models are measured beside the evaluators, such as ``behind_good``."""
    search: dict[str, Any] | None = None
    """Its own search space; default: that of ``tune``."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """One size of a ladder: the recipe, and what is larger in it."""

    name: str
    """What it is called in plots and tables, such as ``1 M``."""
    set: dict[str, Any] = field(default_factory=dict)
    """Settings of the recipe, as with ``--set``: ``{ "base.model.hidden_size" = 128 }``."""
    budget: dict[str, float] = field(default_factory=dict)
    """What every arm may spend at this size; default: the comparison's."""
    tune: dict[str, Any] = field(default_factory=dict)
    """What is tuned at this size; default: the comparison's."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The table ``[compare.ladder]``."""

    sizes: tuple[Size, ...] = ()
    """The smallest first, three at least; model and tokens grow together."""
    transfer: str | None = None
    """Method of every arm that makes rates the same at all sizes, such as ``mup``: they are tuned at the
    smallest one and kept. Default: tuned at each."""
    extrapolate: Annotated[float, Between(1, 1e6)] = 10.0
    """How many times beyond the largest size the line is drawn, which is an extrapolation."""
    holds: Annotated[float, Between(0, 1, above=True)] = 0.25
    """The effect ``holds`` where it is shown to change by less than this share of its mean over the sizes."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The table ``[compare]``."""

    stage: str
    """The stage that the arms change and that has the budget."""
    recipe: str | None = None
    """The life that is compared, beside this file; or its stages are written in this file."""
    budget: dict[str, float] = field(default_factory=dict)
    """What every arm may spend: ``{ tokens = 2e6 }``, ``{ flops = 1e15 }`` or ``{ seconds = 60 }``;
    default: as the recipe says."""
    seeds: int = 5
    """Runs of each arm; a seed gives all arms the same data order and the same starting weights."""
    metric: str
    """What decides, such as ``loss/code``: a number of an evaluator."""
    better: Literal["lower", "higher"] | None = None
    """Which way the metric is better, where its name does not say."""
    also: dict[str, Literal["lower", "higher"]] = field(default_factory=dict)
    """Other numbers to compare whose names do not say which way they are better: ``{ sums = "higher" }``;
    losses, accuracies and the like are compared anyway."""
    baseline: str | None = None
    """Arm with which the others are compared; default: the first."""
    tune: dict[str, Any] = field(default_factory=dict)
    """Settings tuned for every arm: ``{ lr = [1e-3, 3e-3] }``, ``{ lr = { low = 1e-4, high = 1e-2 } }``
    (logarithmic), or ``{ lr = "around" }`` (factors of three around the arm's own)."""
    search: Literal["all", "coordinate"] = "all"
    """How ``tune`` is gone through: all its points, or one setting after another, each with the others at
    their best, until none improves (``coordinate``)."""
    trials: int | None = None
    """Tuning trials of each arm, where ``tune`` does not determine them."""
    tune_seeds: int = 1
    """Seeds of a trial; never those of the final runs."""
    until_decided: bool = False
    """Add seeds until every verdict is decided, by intervals under which one may look after each seed; an
    arm that is decided stops. ``seeds`` then says nothing."""
    most_seeds: int = 20
    """Seeds at which ``until_decided`` ends in any case."""
    margin: Positive | None = None
    """The largest difference in the metric that does not matter, for ``until_decided``: with it an arm can
    be shown to have none that does."""
    ladder: Ladder | None = None
    """Sizes at which all of this is repeated (``--ladder``): does the difference survive scale?"""
    points: int = 6
    """Measurements of each run on the way, for its curve; with 0 there is none."""
    new: tuple[str, ...] = ()
    """Domains to learn; default: those of the recipe's evaluation."""
    old: tuple[str, ...] = ()
    """Domains not to forget; default: those of the recipe's evaluation."""
    data: str | None = None
    """Corpus on whose held-out documents all arms are measured; default: that of the recipe's evaluation,
    or of the stage."""
    reseed: tuple[str, ...] = ()
    """Stages before the compared one that run again with each seed; the others run once, for all seeds."""
    methods: tuple[dict[str, Any], ...] = ()
    """Evaluators; default: those of the recipe's evaluation, or ``held_out``."""


@dataclass(frozen=True)
class Spec:
    """A comparison: the settings, the arms, and the recipe as a table."""

    settings: Settings
    arms: tuple[Arm, ...]
    table: dict[str, Any]
    file: Path
    life: Path
    """The file that holds the stages: its folder is where relative paths begin."""
    title: str
    seed: int
    text: str
    aa: bool = False

    @property
    def baseline(self) -> str:
        return self.settings.baseline or self.arms[0].name

    @property
    def currency(self) -> str:
        return next(iter(self.settings.budget), "recipe")

    @property
    def amount(self) -> float | None:
        return next(iter(self.settings.budget.values()), None)

    @property
    def most(self) -> int:
        """Seeds of an arm, at most."""
        return self.settings.most_seeds if self.settings.until_decided else self.settings.seeds

    @property
    def better(self) -> Literal["lower", "higher"]:
        return self.way(self.settings.metric) or "lower"

    def way(self, metric: str) -> Literal["lower", "higher"] | None:
        """Which way a number is better, as far as one knows."""
        said = self.settings.better if metric == self.settings.metric else None
        return said or self.settings.also.get(metric) or direction(metric)

    def stage_table(self, name: str) -> dict[str, Any]:
        """A stage of the recipe as it is written."""
        found = next((s for s in self.table["stage"] if s.get("name") == name), None)
        if found is None:
            names = [str(s.get("name")) for s in self.table["stage"]]
            raise UserError(f"{self.file}: there is no stage {name!r}{suggest(name, names)}.")
        return found  # type: ignore[no-any-return]


def load(file: Path, changes: dict[str, Any] | None = None, arms: Sequence[Arm] = (),
         recipe_changes: dict[str, Any] | None = None, aa: bool = False, own: bool = True) -> Spec:
    """A comparison from a file with ``[compare]`` and ``[[arm]]``, or from a recipe and the command line.

    Args:
        changes: keys of ``[compare]`` with new values.
        arms: more arms, or all of them.
        recipe_changes: settings of the recipe, as with ``--set``.
        aa: compare one arm (the baseline) with itself.
        own: with the arms of the file.

    Raises:
        UserError: any mistake that can be found without the methods and the data.
    """
    table, text = recipes.read(file)
    given = fit(table.pop("compare", {}), dict[str, Any], f"{file}: compare") | (changes or {})
    listed = table.pop("arm", [])
    if not isinstance(listed, list):
        raise UserError(f"{file}: arms are a list: write [[arm]], not [arm].")
    life = file
    if "recipe" in given:
        if "stage" in table:
            raise UserError(f"{file}: the stages are in this file: compare.recipe = {given['recipe']!r} "
                            "would be a second life.")
        life, rest = file.parent / str(given["recipe"]), table
        table = {k: v for k, v in recipes.read(life)[0].items() if k not in ("compare", "arm")} | rest
    for name in ("stage", "metric"):
        if name not in given:
            raise UserError(f"{file}: say which {name} is compared: --{name}, or {name} in the table "
                            "[compare].")
    settings: Settings = make(Settings, given, f"{file}: compare")
    every = [make(Arm, one if isinstance(one, dict) else {"name": one}, f"{file}: arm {i}")
             for i, one in enumerate(listed if own else (), 1)]
    if aa and not every and not arms:                      # the recipe as it is, against itself
        every = [Arm(name=settings.baseline or "recipe")]
    spec = Spec(settings, (*every, *arms), table, file, life, "", 0, text, aa)
    parsed = recipes.parse(table, life, text, recipe_changes)      # finds what is wrong with the recipe
    for key, value in (recipe_changes or {}).items():
        recipes.change(table, key, value, file)
    spec = replace(spec, title=table.get("title", file.stem), seed=parsed.seed)
    return _checked(spec)


def _checked(spec: Spec) -> Spec:
    """Refuse whatever is wrong with a comparison beyond its recipe."""
    s, where = spec.settings, f"{spec.file}: compare"
    kind = spec.stage_table(s.stage).get("kind")
    comparable = [name for name, stage in stages().items() if stage.makes == "model"]
    if kind not in comparable:
        raise UserError(f"{where}: stage {s.stage!r} is of kind {kind}, and only stages of the kinds "
                        f"{', '.join(comparable)} can be compared: those that make a model.")
    names = [a.name for a in spec.arms]
    for name in {n for n in names if names.count(n) > 1}:
        raise UserError(f"{where}: two arms are called {name!r}.")
    if s.baseline is not None and s.baseline not in names:
        raise UserError(f"{where}: baseline {s.baseline!r} is no arm{suggest(s.baseline, names)}.")
    if len(spec.arms) < (1 if spec.aa else 2):
        raise UserError(f"{where}: a comparison needs two arms ([[arm]] or --arm); to compare one with "
                        "itself, say --aa.")
    if s.seeds < 2:
        raise UserError(f"{where}: seeds = {s.seeds}: an interval needs two runs at least; five are a good "
                        "start.")
    if s.until_decided and s.most_seeds < FIRST:
        raise UserError(f"{where}: most_seeds = {s.most_seeds}: nothing can be decided with fewer than "
                        f"{FIRST}.")
    if s.tune_seeds < 1 or (s.trials is not None and s.trials < 1):
        raise UserError(f"{where}: trials and tune_seeds must be positive.")
    if s.points < 0:
        raise UserError(f"{where}: points = {s.points}: say how often a run is measured on the way; 0 is "
                        "never.")
    if spec.way(s.metric) is None:
        raise UserError(f"{where}: say better = \"lower\" or \"higher\": the name {s.metric!r} does not "
                        "say which it is.")
    _check_budget(spec, where)
    for name in s.reseed:
        spec.stage_table(name)
    if spec.aa:
        one = next(a for a in spec.arms if a.name == spec.baseline)
        again = replace(one, name=f"{one.name} again")
        return replace(spec, arms=(one, again), settings=replace(s, baseline=one.name))
    return spec


def _check_budget(spec: Spec, where: str) -> None:
    s, kind = spec.settings, stages()[spec.stage_table(spec.settings.stage)["kind"]]
    if len(s.budget) > 1 or any(c not in CURRENCIES for c in s.budget):
        raise UserError(f"{where}: budget is one of {', '.join(CURRENCIES)}, such as {{ tokens = 2e6 }}, "
                        f"not {s.budget}.")
    if spec.amount is not None and not 0 < spec.amount < float("inf"):
        raise UserError(f"{where}: the budget must be a positive number, not {spec.amount}.")
    if s.budget and not kind.trains:
        raise UserError(f"{where}: the stage {s.stage!r} does not train: it has no budget.")


def parse_arm(text: str) -> Arm:
    """``NAME: METHOD key=value, METHOD …`` from a command line.

    A word without ``=`` behind a method is its first setting, ``-METHOD`` drops one, and ``key=value`` in
    front of any method is a setting of the stage. A key that the method does not have goes into its
    ``options``: ``lora: peft LoraConfig r=8``; a setting within a table is named with a dot, and a value may
    be a list or a table: ``lora: peft LoraConfig target_modules=["q_proj", "v_proj"]``.
    """
    name, colon, rest = text.partition(":")
    if not colon or not name.strip():
        raise UserError(f"--arm {text!r}: write NAME: METHOD key=value, for example \"lora: lora rank=8\".")
    add: list[dict[str, Any]] = []
    drop: list[str] = []
    changes: dict[str, Any] = {}
    for words in _parts(rest, f"--arm {text!r}"):
        while words and "=" in words[0]:
            key, value = recipes.parse_change(words.pop(0))
            changes[key] = value
        if words and words[0].startswith("-"):
            drop += [w.removeprefix("-") for w in words]
        elif words:
            add.append(_method(words, f"--arm {text!r}"))
    return Arm(name=name.strip(), add=tuple(add), drop=tuple(drop), set=changes)


def _parts(text: str, where: str) -> list[list[str]]:
    """An option split at its commas, and each part at its blanks; neither within quotation marks or brackets,
    where a value goes on."""
    parts, depth, quote = [[""]], 0, ""
    for letter in text:
        if quote or letter in "\"'":
            quote = "" if letter == quote else quote or letter
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        if quote or depth > 0 or not (letter == "," or letter.isspace()):
            parts[-1][-1] += letter
        elif letter == ",":
            parts.append([""])
        else:
            parts[-1].append("")
    if quote or depth:
        what = "no closing quotation: quotation marks" if quote else "brackets"
        raise UserError(f"{where}: {what} come in pairs.")
    return [[_bare(word) for word in part if word] for part in parts]


def _bare(word: str) -> str:
    """A word without the quotation marks that are all around it."""
    whole = len(word) > 1 and word[0] in "\"'" and word[-1] == word[0]
    return word[1:-1] if whole else word


def parse_methods(text: str, option: str) -> list[dict[str, Any]]:
    """``METHOD key=value, METHOD …`` from a command line, as a recipe writes them; errors name ``option``."""
    named = _parts(text, f"{option} {text!r}")
    if not all(named):
        raise UserError(f"{option} {text!r}: write METHOD key=value, for example \"nucleus p=0.9\".")
    return [_method(words, f"{option} {text!r}") for words in named]


def _method(words: list[str], where: str) -> dict[str, Any]:
    use, *rest = words
    if use.endswith(".py") and Path(use).is_file():
        card: Card | None = read(Path(use), Path(use).stem, "")
    else:
        card = registry.cards().get(use)
    if card is None:
        raise UserError(f"{where}: there is no method {use!r}{suggest(use, registry.cards())}.")
    fields = [f[0] for f in card.settings]
    out: dict[str, Any] = {"use": use}
    for i, word in enumerate(rest):
        if "=" not in word:
            if i or not fields:
                raise UserError(f"{where}: {word!r}: write key=value.")
            out[fields[0]] = recipes.parse_change(f"{fields[0]}={word}")[1]
            continue
        key, value = recipes.parse_change(word)
        *tables, last = key.split(".")
        if (tables or [last])[0] not in fields and "options" in fields:
            tables = ["options", *tables]
        at = out
        for name in tables:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                raise UserError(f"{where}: {word!r}: {name} has a value already, and is no table.")
        at[last] = value
    return out


def parse_budget(text: str) -> dict[str, float]:
    """``tokens=2e6``, ``flops=1e15`` or ``seconds=60``."""
    currency, _, amount = text.partition("=")
    try:
        return {currency.strip(): float(amount.replace("_", ""))}
    except ValueError:
        raise UserError(f"--budget {text}: write tokens=2e6, flops=1e15 or seconds=60.") from None


def parse_tune(texts: Sequence[str]) -> dict[str, Any]:
    """``lr`` (around the arm's own), ``lr=1e-4,1e-3,1e-2`` or ``adamw.lr=1e-4..1e-2``."""
    out: dict[str, Any] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            if not equals:
                out[key] = "around"
            elif ".." in values:
                low, _, high = values.partition("..")
                out[key] = {"low": float(low), "high": float(high)}
            else:
                out[key] = [recipes.parse_change(f"x={v}")[1] for v in values.split(",")]
        except ValueError:
            raise UserError(f"--tune {text}: write lr, lr=1e-4,1e-3 or lr=1e-4..1e-2.") from None
    return out
