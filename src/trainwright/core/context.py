"""What a method may use beside its own state, what a controller sees, and the random numbers of both."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.errors import UserError, suggest

if TYPE_CHECKING:
    from trainwright.core.method import Batch, Decode

ENDLESS = 2**62
"""Steps of a stage that is only probed: a plan takes a few of them, of the kind that costs the most."""


@dataclass
class Context:
    """Everything a method may use beside its own state. It holds no hidden randomness."""

    seed: int = 0
    step: int = 0
    steps: int = 0
    """Steps that the stage will take in all (0 where it does not train)."""
    batch_rows: int = 0
    """Rows of one step over all ranks, 0 where the data method decides."""
    row_tokens: int = 0
    """Tokens of a row, 0 where rows have no fixed number of them."""
    peak_lr: float = 0.0
    """The largest of the optimizers' learning rates, before a schedule."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compile: bool = False
    inputs: dict[str, list[Path]] = field(default_factory=dict)
    """Artifact folders by the role that the recipe's ``from`` gives them (``data``, ``reference`` …)."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """What the recipe calls those artifacts, in the same order."""
    root: Path = field(default_factory=Path)
    """Folder against which relative paths of the recipe are read."""
    folder: Path | None = None
    """The stage's work folder: scratch that survives an interruption, removed when the stage is done."""
    kept: list[Path] = field(default_factory=list)
    """Files of ``folder`` that a stage which fails leaves for the next attempt
    (answers that were paid for)."""
    cache: Path | None = None
    """Where all stages of a store find what is slow to make and follows from its file's name alone;
    None without a store."""
    frozen: dict[str, nn.Module] = field(default_factory=dict)
    """Other models of ``from`` (a reference, a teacher), by role, in evaluation mode."""
    policy: nn.Module | None = None
    """The model in training, for data methods that sample from it."""
    tokenizer: Any = None
    """The model's (or corpus') tokenizer: a transformers ``PreTrainedTokenizerFast``, or None."""
    decode: Sequence[Decode] = ()
    """The stage's decoding methods, in recipe order: what generates text here puts
    its scores through them."""
    prompts: Sequence[Any] = ()
    """Of a decoding method: the prompts (``lm/generation.py: Prompt``) behind which text is written, a row
    each; where rows have other lengths, they are padded in front."""
    batches: Callable[[], Iterator[Batch]] | None = None
    """Rows of the stage's data to look at before anything is changed, the same each time: ``for batch in
    ctx.batches()``; None where a stage has no data."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the methods of a merge found out before its first tensor, each under its own name."""
    knobs: dict[str, Any] = field(default_factory=dict)
    grads: dict[str, Tensor] = field(default_factory=dict)
    """The step's gradients by parameter, before any update touched them; empty where no
    update ``reads_grads``."""
    again: Callable[[], dict[str, Tensor]] | None = None
    """The same batches' gradients at the weights of now."""
    forgotten: dict[str, Tensor] = field(default_factory=dict)
    """What ``forget`` was told in this step, by parameter."""
    apart: float = 0.0
    """FLOPs of this step's passes that not every step has (``core/flops.py: apart``), counted exactly."""
    notes: dict[str, list[tuple[Any, float]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    def rng(self, key: str, at: int | None = None) -> torch.Generator:
        """A CPU generator that depends on seed, step and key alone: nothing to save, nothing to restore.

        ``at`` replaces the step: ``at=0`` for what must not change from step to step.
        """
        parts = (self.seed, self.step if at is None else at, key)
        digest = hashlib.sha256(repr(parts).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def note(self, name: str, value: float | Tensor, weight: float = 1.0) -> None:
        """Log a number of this step. Notes of micro-batches and ranks are averaged by ``weight``."""
        self.notes.setdefault(name, []).append((value, weight))

    def show(self, name: str, text: str) -> None:
        """Keep a text (a generated sample) for the report."""
        self.texts[name] = text

    def picture(self, name: str, png: bytes, words: str) -> None:
        """Keep a picture (a PNG) for the report, and in words what it shows, for those who do not see it."""
        self.pictures[name] = png, words

    def forget(self, parameter: str, entries: Tensor) -> None:
        """These entries of a parameter (bool, of its shape and sharding) begin anew: once all methods
        have settled, what any of them remembers entry by entry (moments, averages) is zero there. To be
        called from ``settle``."""
        known = self.forgotten.get(parameter)
        self.forgotten[parameter] = entries if known is None else known | entries

    def rows(self, n: int) -> slice:
        """This rank's part of ``n`` rows. Draw by row and slice: the run then does not depend
        on the number of ranks."""
        each = n // sharding.world()
        return slice(sharding.rank() * each, (sharding.rank() + 1) * each)

    def path(self, role: str, name: str = "") -> Path:
        """The artifact folder that ``from`` names for ``role``: the only one, or that of this ``name``.

        Raises:
            UserError: there is none, or several and no name that tells which.
        """
        found, names = self.inputs.get(role, []), self.names.get(role, [])
        if name and name not in names:
            raise UserError(f"from.{role} does not name {name!r}{suggest(name, names)}.")
        if name:
            return found[names.index(name)]
        if len(found) != 1:
            which = f"it has {', '.join(names)}: say which of them" if found else "it has none"
            raise UserError(
                f"the stage needs one artifact as {role!r}: write from = {{ {role} = \"NAME\" }}; {which}."
            )
        return found[0]


@dataclass(frozen=True)
class View:
    """What a controller sees: numbers only, so that it cannot change the run by hand."""

    step: int
    steps: int
    notes: dict[str, float]
    """Numbers of the last step (``loss``, ``grad_norm``, ``loss/DOMAIN`` …); empty before the first."""
    knobs: dict[str, Any]
