"""Models of a merge that look at data: loaded one at a time, each on rows of its own domain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from trainwright import families
from trainwright.core.batches import Calibration
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch
from trainwright.core.settings import Count, Row
from trainwright.data.order.pack import Pack


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a merge looks at of ``from.data``: settings that every method which looks shares."""

    rows: Count = 64
    """Rows that each model sees."""
    length: Row = 256
    """Tokens of a row."""
    batch: Count = 8
    """Rows that go through a model at once, where that makes no difference."""
    domains: tuple[str, ...] = ()
    """The domain that each model was trained for, in the order of from.models; by default all see all of
    the data."""

    def of(self, model: nn.Module, number: int, ctx: Context, batch: int = 0) -> Iterator[Batch]:
        """The rows of one of the models, in batches of ``batch`` (by default the setting's)."""
        domains = (self.domains[number],) if self.domains else ()
        mine = replace(ctx, policy=model, batch_rows=batch or self.batch, knobs={})
        yield from Calibration([Pack(length=self.length, domains=domains)], mine, self.rows)()

    def check(self, models: int, method: str) -> None:
        """Refuse another number of domains than of models."""
        if self.domains and len(self.domains) != models:
            raise UserError(
                f"{method}: sample.domains has {len(self.domains)} names for {models} models (from.models): "
                "give one each, or none."
            )


def loaded(folders: Sequence[Path], ctx: Context, method: str) -> Iterator[nn.Module]:
    """The models in these folders, one after the other, in float32 and in evaluation mode."""
    for folder in folders:
        yield families.load(folder, method).to(ctx.device).eval()
