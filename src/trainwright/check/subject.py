"""A method under test, and the runs that several laws look at: each is made once."""
from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.check import documents, tiny
from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Method

T = TypeVar("T")
TRAINED = 2
"""Steps of a run that is looked at afterwards."""


class Scrambled(NamedTuple):
    """Three steps under other global generators than usual."""

    run: Train
    method: Method
    drew: list[str]
    """Global generators that were drawn from."""


class Trained(NamedTuple):
    """A run after some steps, and the weights that it began with."""

    run: Train
    start: dict[str, Tensor]


class Exported(NamedTuple):
    """A trained model, folded and written."""

    live: Tensor
    """What it computed before."""
    folder: Path
    unfolded: list[str]
    """Surgeries that could not be folded into its weights."""


class Subject:
    """A method under test. ``make`` makes it anew; what is made ``once`` is shared by all laws, and so is its
    failure."""

    def __init__(self, use: str, folder: Path) -> None:
        self.use, self.folder = use, folder
        self.cls: Any = load(use)
        self.shapes = tiny.kinds_for(self.cls)
        """Kinds of model to try it on."""
        self.kept: dict[Any, Any] = {}

    def make(self) -> Any:
        """The method with the settings of its example."""
        return registry.create({"use": self.use, **self.cls.example}, Path(), tiny.WHERE)

    def place(self) -> Path:
        """A folder in which nothing is."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def stage(
        self,
        *,
        kind: str = "",
        accumulate: int = 1,
        eval_every: int = 0,
        precision: str = "fp32",
        saved: Path | None = None,
        train: type[Train] = Train,
    ) -> Train:
        """The tiny stage with the method in it, anew."""
        return tiny.stage(self.make(), self.place(), kind=kind, accumulate=accumulate, eval_every=eval_every,
                          precision=precision, saved=saved, train=train)

    def scrambled(self, seed: int) -> Scrambled:
        """A run that whatever it draws from the global generators gives away."""
        return self.once(("scrambled", seed), lambda: self._scrambled(seed))

    def _scrambled(self, seed: int) -> Scrambled:
        place, _ = self.place(), tiny.data_for(self.shapes[0])  # built before what is drawn is counted
        with tiny.scrambled(seed):
            before, method = tiny.generators(), self.make()
            run = tiny.stage(method, place, eval_every=2)
            run.run(until=3)
            drew = [name for name, state in tiny.generators().items() if state != before[name]]
        return Scrambled(run, method, drew)

    def refused(self, kind: str) -> bool:
        """Whether the method says, before the first step, that it does not go with a kind of model."""
        return self.once(("refused", kind), lambda: self._refused(kind))

    def _refused(self, kind: str) -> bool:
        try:
            self.kept["built", kind] = self.stage(kind=kind)
        except UserError:
            return True
        return False

    def trained(self, kind: str) -> Trained:
        """A run after two steps, of a method that was not refused. Its weights may not be changed."""
        return self.once(("trained", kind), lambda: self._trained(kind))

    def _trained(self, kind: str) -> Trained:
        run = self.kept.pop(("built", kind), None) or self.stage(kind=kind)
        start = weights(run)
        run.run(until=TRAINED)
        return Trained(run, start)

    def exported(self, kind: str) -> Exported:
        """What is left of such a run when it has been written: to fold a model ends it."""
        return self.once(("exported", kind), lambda: self._exported(kind))

    def _exported(self, kind: str) -> Exported:
        run = self.trained(kind).run
        del self.kept["trained", kind]
        folder = self.place() / kind
        with run.viewed(), torch.no_grad():
            live = logits(run.model)
            unfolded = families.write(run.model, run.performed, run.ctx.seed, folder, run.ctx.tokenizer)
        return Exported(live, folder, unfolded)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make`` makes, or raises, the first time."""
        if key not in self.kept:
            try:
                self.kept[key] = make()
            except Exception as error:
                self.kept[key] = error
        if isinstance(self.kept[key], Exception):
            raise self.kept[key]
        return self.kept[key]  # type: ignore[no-any-return]


def load(use: str) -> type[Method]:
    """The class of a method that is named, or lies in a file."""
    return registry.load(registry.locate(use, Path(), "check"))


def reported(error: Exception) -> str:
    """An unforeseen error, with the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {said} ({Path(last.filename).name}:{last.lineno})"


def weights(run: Train) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in run.model.state_dict().items()}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """What a model makes of something that it can read."""
    ids = torch.arange(3, 51).view(2, 24)
    if families.family_of(model).name == tiny.PICTURES:
        pixels = torch.linspace(-1, 1, 2 * 3 * documents.SIDE**2).view(2, 3, documents.SIDE, documents.SIDE)
        return model(input_ids=ids, pixel_values=pixels).logits_per_image  # type: ignore[no-any-return]
    return model(input_ids=ids).logits  # type: ignore[no-any-return]
