"""The kinds of method and the one law of composition of each. Read this file first, then ``loop.py``."""
from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, dataclass_transform

from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.core.settings import Rate
from trainwright.core.stage import Role

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context, View

Batch = dict[str, Any]
"""Tensors whose first dimension is rows (the loop cuts them into micro-batches), and
values that go along uncut."""
UNTRAINED = -100
"""The target, in a batch's ``targets``, of a position where nothing is learned (what PyTorch's
cross-entropy ignores)."""
Tensors = dict[str, Tensor]
State = dict[str, Any]
"""What a method remembers. Where a leaf sits says how it is sharded and saved: ``param`` (``{parameter:
{leaf: tensor}}``, sharded like the parameter it is named after), ``shared`` (the same on every rank),
``rank`` (this rank's own; a run that resumes on another number of ranks refuses it). Leaves are tensors,
numbers, strings, lists, dicts."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Method:
    """A method is its settings: frozen, printable, comparable. The run keeps its state."""

    example: ClassVar[dict[str, Any]] = {}
    """Settings small enough for the battery, whose corpus has the domains ``code``, ``prose`` and ``chat``.
    Tables of documents have the columns ``score`` and ``embedding`` there; ``from`` names a corpus and
    models in every role."""
    beside: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Methods without which it has nothing to do in a stage, each as a recipe names it: the
    battery puts them beside it."""
    default: ClassVar[bool] = False
    """Whether a stage uses it when its recipe names no method of this kind."""
    off: ClassVar[dict[str, Any] | None] = None
    """Settings under which it changes no trained weight, where there are such: the battery holds it
    to that, bit for bit."""
    roles: ClassVar[dict[str, Role]] = {}
    """Roles of ``from`` that it asks for beside those of the stage, such as ``{"teacher":
    Role(needed=True)}``. In a training stage the models among them are ``ctx.frozen``; the folders of
    all are ``ctx.inputs``."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Packages that its example imports, and ``network`` where it downloads: without them the
    battery leaves it out."""
    expected_failures: ClassVar[dict[str, str]] = {}
    """Laws of the battery that it breaks on purpose, by name, each with the reason; one that holds
    nevertheless is a failure."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    @property
    def name(self) -> str:
        """The name a recipe uses: the class name in snake case, which is also the file's."""
        return snake(type(self).__name__)

    def asks(self) -> dict[str, Role]:
        """The roles that it asks for with these settings: those of ``roles`` that they have a use for."""
        return self.roles

    def claims(self, model: nn.Module) -> set[str]:
        """What it alone may change: parameter globs, or knobs such as ``knob:mixture``."""
        return set()

    def init(self, model: nn.Module, ctx: Context) -> State:
        """The state at the start of a run. Called after surgery and sharding, in recipe order."""
        return {}


class Curate(Method):
    """Adds columns to a table of documents; edits, drops or adds rows. Composes as a pipe, in recipe order.

    What it edits is what is learned (``corpus/editing.py: edit``); what it writes from a document names that
    as its ``origin`` and is in its split; why it drops one it may say (``corpus/provenance.py: because``).
    """

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        """Lazily; the columns that every table has are those of ``corpus/columns.py``."""
        raise NotImplementedError

    def depends(self, root: Path) -> str:
        """What the rows depend on beside the settings, as a string: files with sizes and times,
        versions of packages."""
        return ""


class Data(Method):
    """Makes or changes batches. Composes by pulling: each pulls from the one before it."""

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        """This rank's rows of one whole step (``ctx.rows(n)``). The first of a chain never pulls."""
        raise NotImplementedError

    def epoch(self, ctx: Context) -> int | None:
        """Rows in one pass over the data, or None where the word has no meaning."""
        return None

    def row_tokens(self) -> int | None:
        """Tokens in one row, or None where rows are not counted in tokens."""
        return None

    def preview(self, batch: Batch, ctx: Context) -> str:
        """One example of a batch as a person would read it, what is trained marked; printed first."""
        return ""


class ParamMap(NamedTuple):
    """How each new parameter came from an old one, so that state can follow it."""

    source: dict[str, tuple[str, Callable[[Tensor], Tensor]]]


class Surgery(Method):
    """Changes the modules of a model. Composes in recipe order, on disjoint claims."""

    neutral: ClassVar[bool] = True
    """Whether the model computes right after the operation what it computed before; the
    battery holds it to that."""
    folds: ClassVar[bool] = True
    """Whether the plain architecture can compute the same. Where not, ``fold`` takes out what was put in, and
    ``families.load`` puts the delta, which there must be, back on it."""

    stands_alone: ClassVar[bool] = False
    """Of one that does not fold: whether the plain model is one by itself without it, the frozen model that a
    network stands beside. Where not, no other reader takes what is left for a checkpoint."""

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        raise NotImplementedError

    def resized(self, config: Any) -> Any:
        """The transformers config after the operation, given that of before: a copy, where sizes change."""
        return config

    def fold(self, model: nn.Module) -> None:
        """Undo the operation for export, in place: the plain architecture, computing the same function."""

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """Write the small file that turns the original model into this one, where there is
        one. Before ``fold``."""

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        """Read that file, on a model on which this surgery was performed with the seed of then (see
        ``families/deltas.py``)."""
        raise UserError(f"{self.name} reads no deltas.")


class Objective(Method):
    """Scores a batch, one number for each unit (token, pair, answer). Losses add up, each
    times its ``weight``."""

    weight: float = 1.0
    """Factor of this loss in the sum."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq")
    """Which families of models it scores (files of ``families/``); ``*`` is all of them."""
    contrasts: ClassVar[bool] = False
    """Whether a unit's number depends on the other rows of the step. ``loss`` is then called once a step, on
    every rank alike, with what ``represent`` made of the rows of all micro-batches and ranks (see
    ``core/contrast.py``)."""

    def represent(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Batch:
        """What ``loss`` reads: the batch itself; of an objective that ``contrasts``, tensors made of each row
        alone (its embeddings), rows first."""
        return batch

    def count(self, batch: Batch) -> float:
        """Units in the batch. The loop divides by their number in the whole step, on all ranks."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        """One number per unit, rows first; entries that are no unit are 0. Only the loop divides."""
        raise NotImplementedError


class Weigh(Method):
    """Scales the numbers of the objectives. Several multiply. No gradient flows through the weights."""

    whole: ClassVar[bool] = False
    """Whether it must see the values of the whole step (all micro-batches, all ranks)
    before it weighs any."""

    def weigh(self, values: Tensor, batch: Batch, state: State, ctx: Context) -> Tensor:
        """Weights that broadcast over ``values`` (an objective's numbers, rows first, detached)."""
        raise NotImplementedError


class Update(Method):
    """Turns gradients into a step. Composes as a chain; ``params`` limits it to some parameters."""

    params: str = "*"
    """Glob of the parameters it acts on; ``!GLOB`` is all the others."""
    whole: ClassVar[bool] = False
    """Whether it must see unsharded tensors (a matrix norm, a top-k, a QR)."""
    after: ClassVar[bool] = False
    """Whether it changes the step that an optimizer has made, and so is named after that optimizer."""
    reads_grads: ClassVar[bool] = True
    """Whether it reads ``ctx.grads`` or hands on a tensor that it keeps. Where no update of a stage
    does, ``ctx.grads`` is empty and the gradients may be overwritten (a clip in place, without a
    second copy of them all)."""

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        """New updates for the names given; the loop subtracts ``lr`` times the last of the chain."""
        return updates

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        """After the step, and once before the first: restore what must hold of weights (a mask, a norm)."""

    def view(self, params: Tensors, state: State) -> Tensors:
        """Weights to measure and export with instead of the trained ones (an average)."""
        return {}

    def absorb(self, after: Update) -> Update | None:
        """One method that equals this one followed by ``after`` (so that a fused kernel
        can run both), or None."""
        return None


class Optimizer(Update):
    """The update that owns the step of its parameters: its ``lr`` times the knob ``lr``
    scales what is subtracted."""

    lr: Rate = 1e-3
    """Peak learning rate; a schedule multiplies it."""

    def claims(self, model: nn.Module) -> set[str]:
        return {f"step:{self.params}"}

    def apply(self, updates: Tensors, params: Tensors, state: State, ctx: Context, lr: float) -> None:
        """Take the step in place. Called instead of ``update`` where nothing follows in the chain: a
        fused kernel goes here."""
        for name, update in self.update(updates, params, state, ctx).items():
            params[name].sub_(update, alpha=lr)


class Controller(Method):
    """Watches the run and answers with commands, before each step. All see one view;
    rank 0's answer counts."""

    def tick(self, view: View, state: State) -> Iterable[Command]:
        raise NotImplementedError


class Arithmetic(Method):
    """Makes one tensor of several of the same name, one name at a time, in float32. Composes as a
    chain, in recipe order: the first makes one tensor of those of all models, each further one is
    given that tensor alone."""

    entrywise: ClassVar[bool] = False
    """Whether an entry of what it makes depends on the entries at its place alone, and on what ``prepare``
    found out: large tensors then come in pieces, as vectors."""

    def prepare(self, ctx: Context) -> None:
        """Called once before the first tensor, where it needs data, whole models or figures of all tensors.
        What it finds out it keeps in ``ctx.memory``."""

    def leave(self, folder: Path, ctx: Context) -> None:
        """Called once after the last tensor: write what belongs beside the merged weights, where there is
        something."""

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        """Floating-point tensors of one shape, as float32, in the order of ``from.models``;
        never change them in place.

        Tensors of other types are the first model's (the base's where there is one) and never come here.
        """
        raise NotImplementedError


class Decode(Method):
    """Shapes what a model says next. Composes as a chain, in recipe order; used alike where text is
    generated: by the command ``generate``, by samples, tasks and rollouts."""

    def processor(self, model: nn.Module, ctx: Context) -> Callable[[Tensor, Tensor], Tensor]:
        """A transformers logits processor: from the tokens so far [rows, length] and the scores of the next
        [rows, vocabulary] to the scores that are used."""
        raise NotImplementedError


class Evaluator(Method):
    """Measures. May read everything, may change nothing."""

    families: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq")
    """Which families of models it measures (files of ``families/``); ``*`` is all of them."""
    makes: ClassVar[tuple[str, ...]] = ("*",)
    """Globs of the numbers that it makes, as far as that is known before it has measured."""

    def may_make(self, metric: str) -> bool:
        """Whether it may measure this, as far as its settings tell."""
        return any(fnmatch.fnmatchcase(metric, one) for one in self.makes)

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        raise NotImplementedError


class Task(Evaluator):
    """An evaluator whose answers can be graded one by one: evaluation and reward share ``grade``."""

    def grade(self, prompt: str, answer: str) -> float:
        raise NotImplementedError

    def grader(self, ctx: Context) -> Callable[[str, str], float]:
        """``grade``, knowing what it must of the run: the right answers that stand in the documents."""
        return self.grade


class Fit(NamedTuple):
    """A scaling law fitted on finished runs."""

    law: ScalingLaw
    """The same law, its constants those of the fit."""
    draws: Sequence[ScalingLaw]
    """The law fitted on bootstrap samples of the rows: how sure its constants and predictions are."""
    errors: dict[str, float]
    """What was measured on rows that the fit had not seen, in words; empty where there were
    too few to hold any out."""
    notes: list[str]
    """What the user should know of the rows."""


class ScalingLaw(Method):
    """Predicts settings from what is known before training. Laws fill in what a stage's recipe leaves out,
    each other settings; what the recipe says is never overwritten."""

    scratch: ClassVar[bool] = False
    """Whether it speaks only of models that a stage makes from scratch."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Numbers that every row of ``fit`` must have."""

    def suggest(self, known: dict[str, float]) -> dict[str, Any]:
        """Settings by their names in a recipe (``batch_tokens``, ``METHOD.SETTING``). Known are
        ``parameters`` (matrices, without embeddings and head), ``tokens``, and the numbers that the recipe
        says, by the same names."""
        raise NotImplementedError

    def needs_a_place(self) -> bool:
        """Whether it must know parameters and tokens before it suggests anything."""
        return True

    def doubts(self, known: dict[str, float]) -> str:
        """Why the suggestion may be wrong there (far from what was fitted), in words; empty where
        nothing speaks against it."""
        return ""

    def fit(self, rows: Sequence[dict[str, Any]], ctx: Context) -> Fit:
        """New constants from finished runs, a row each (see ``planning/runs.py``)."""
        raise NotImplementedError

    def made_up(self, ctx: Context) -> list[dict[str, Any]]:
        """Rows of runs that follow this law, with the scatter of real ones: the battery fits them."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Set:
    """Set a knob that the method has claimed (``lr``, ``mixture``)."""

    knob: str
    value: Any


@dataclasses.dataclass(frozen=True)
class Operate:
    """Perform a surgery between two steps; it is journaled and replayed on resume."""

    surgery: Surgery


@dataclasses.dataclass(frozen=True)
class Stop:
    """End the stage early, as planned or (``failed``) as an error that keeps the last good checkpoint."""

    why: str
    failed: bool = False


Command = Set | Operate | Stop

_KINDS: tuple[type[Method], ...] = (
    Curate, Data, Surgery, Objective, Weigh, Update, Optimizer, Controller, Arithmetic, Decode, Evaluator,
    Task, ScalingLaw)
KINDS = {k.__name__: k for k in _KINDS}


def snake(word: str) -> str:
    """``NextToken`` to ``next_token``; capitals that stand together stay together (``EMA`` to ``ema``)."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", word).lower()
