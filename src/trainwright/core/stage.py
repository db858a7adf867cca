"""What every kind of stage has: its settings, the roles of ``from``, the kinds of method that
act in it, and how it runs.

A kind of stage is one file of ``stages/``, found by its name; the core knows none of them. A stage takes
artifacts and makes one. Everything that differs between kinds is a method of ``Stage``, and nothing else
tests which kind a stage is.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from trainwright.core.errors import UserError

if TYPE_CHECKING:
    from trainwright.core.method import Method
    from trainwright.core.recipe import Names
    from trainwright.life.jobs import Job
    from trainwright.life.stage_run import StageRun
    from trainwright.storage.store import Store

FOLDER = Path(__file__).parents[1] / "stages"
Made = Literal["corpus", "model", "numbers"]
"""What an artifact is."""


class Role(NamedTuple):
    """What ``from`` may name under one role."""

    wants: tuple[str, ...] = ("model",)
    """Kinds of artifact that fit: ``corpus``, ``model``, ``state`` (a snapshot of a training stage)."""
    many: bool = False
    needed: bool = False
    instead: str = ""
    """The role whose artifact it takes where ``from`` does not name it."""


MODEL, MODELS = Role(), Role(many=True)
CORPUS, CORPORA = Role(("corpus",)), Role(("corpus",), many=True)
TOKENIZER = Role(("corpus", "model"))


def check_seed(seed: int | None, where: str) -> None:
    """Refuse what no generator takes."""
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"{where}: seed must be from 0 to 2**63 - 1, not {seed}.")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What every stage has."""

    name: str
    """Name by which later stages take its artifact."""
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """``from`` in a recipe: role to names of earlier stages, or paths of checkpoints."""
    methods: tuple[dict[str, Any], ...] = ()
    """Methods in order, each ``{ use = NAME, setting = … }``."""

    roles: ClassVar[dict[str, Role]] = {}
    """Roles of ``from`` that every stage of this kind knows; its methods may ask for
    more (``Method.roles``)."""
    acting: ClassVar[tuple[str, ...]] = ()
    """Names of the kinds of method that act in it."""
    makes: ClassVar[Made] = "model"
    """What its artifact is."""
    place: ClassVar[str] = "methods"
    """What its methods do, in a word: how a plan lists them."""
    doing: ClassVar[str] = "working"
    """What a display says of it while it runs, before its first step."""
    idle: ClassVar[tuple[str, ...]] = ("name",)
    """Settings that change no result and so no hash."""
    open_ended: ClassVar[bool] = False
    """Whether what it stands for depends on what its first stages measured."""
    trains: ClassVar[bool] = False
    """Whether it is a training loop: with steps, rows of metrics, and figures that can be predicted."""

    @property
    def kind(self) -> str:
        """The name of the file that defines it."""
        return type(self).__module__.rpartition(".")[2]

    # ---- while the recipe is read ----------------------------------------------------------------------

    @classmethod
    def read(cls, settings: dict[str, Any], names: Names, file: str, where: str) -> dict[str, Any]:
        """Settings as the dataclass takes them; a kind with stages of its own within it reads those here."""
        return settings

    def check(self, where: str) -> None:
        """Raise a UserError for settings that cannot be together; ``where`` names the stage in it."""

    def children(self) -> dict[str, tuple[Made, ...]]:
        """Further names by which later stages may take what it makes, each with what that is."""
        return {}

    # ---- when it becomes a job -------------------------------------------------------------------------

    def unfold(self, done: dict[str, Job], store: Store, seed: int) -> Iterator[Stage]:
        """The stages to run for it, in order: itself, or those that it stands for.
        ``seed`` is the recipe's."""
        yield self

    def stand_ins(self, methods: Sequence[Method], where: str) -> list[Method]:
        """Methods for the kinds that the recipe leaves out."""
        return []

    def resolve(self, job: Job, store: Store) -> None:
        """Fill in what the recipe leaves open, before the hash is taken."""

    def reads(self, job: Job) -> list[Path]:
        """Files and folders outside the store that its settings name: their content is part of the hash."""
        return []

    def examine(self, job: Job, store: Store) -> None:
        """Raise a UserError for what can be known to be wrong before anything runs."""

    def afford(self, job: Job, store: Store) -> None:
        """Raise a UserError where this machine cannot hold it. Asked of each stage that is to run,
        before the first runs."""

    # ---- what it will make, as far as that is known -------------------------------------------------------

    def config(self, job: Job, store: Store) -> Any:
        """The transformers config of the model that it makes, or None while that cannot be known."""
        return None

    def vocabulary(self, job: Job) -> int | None:
        """Tokens of the tokenizer that its artifact has, as far as that is known."""
        return None

    def unfolded(self, job: Job, store: Store) -> bool:
        """Whether the model that it makes has a part that its config does not describe."""
        return False

    def closed(self, job: Job) -> bool:
        """Whether its model can be loaded only with what the recipe says of it (``families.is_closed``)."""
        return False

    def subfolder(self, label: str, where: str) -> str:
        """Where in its artifact lies what ``NAME@LABEL`` means.

        Raises:
            UserError: it keeps nothing under that label.
        """
        raise UserError(
            f"{where}: {self.name!r} is of kind {self.kind} and keeps no snapshots: leave out '@{label}'."
        )

    # ---- running -------------------------------------------------------------------------------------------

    def places(self, job: Job) -> list[tuple[str, list[Method]]]:
        """Who acts where, in order."""
        return [(self.place, list(job.methods))]

    def run(self, run: StageRun) -> dict[str, Any]:
        """Fill ``run.out``; returns the figures of the manifest."""
        raise NotImplementedError

    def numbers(self, figures: dict[str, Any]) -> dict[str, float]:
        """What was measured of the model that it ends with, by metric."""
        return {}


@cache
def stages() -> dict[str, type[Stage]]:
    """The kinds of stage by name: each file of ``stages/`` defines one."""
    found = {}
    for file in sorted(FOLDER.glob("[!_]*.py")):
        module = importlib.import_module(f"trainwright.stages.{file.stem}")
        classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Stage)]
        own = [c for c in classes if c.__module__ == module.__name__]
        if len(own) != 1:
            raise TypeError(f"{file} must define one kind of stage, and it defines {len(own)}")
        found[file.stem] = own[0]
    return found


def jsonable(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if isinstance(value, Stage):
        return plain(value)
    if isinstance(value, dict):
        return {k: jsonable(v) for k, v in value.items()}
    return [jsonable(v) for v in value] if isinstance(value, (list, tuple)) else value


def plain(stage: Stage) -> dict[str, Any]:
    """The stage's settings as JSON can hold them, defaults included."""
    return {"kind": stage.kind, **{f.name: jsonable(getattr(stage, f.name)) for f in fields(stage)}}


def label_of(name: str) -> tuple[str, str]:
    """``base@500`` is the stage ``base`` and the label ``500``; without ``@`` the label is empty."""
    stage, _, label = name.partition("@")
    return stage, label


def round_of(name: str) -> tuple[str, int, str] | None:
    """``loop.2.tune`` is the stage ``tune`` in round 2 of ``loop``; None where no repetition runs it."""
    found = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
    return (found[1], int(found[2]), found[3]) if found else None
