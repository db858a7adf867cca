"""Random crops: a picture is seen somewhere else each time that it comes by.

Each side of a picture is extended by ``pad`` pixels, which repeat its edge, and a part as large as the
picture was is cut out anywhere, as in "Deep Residual Learning for Image Recognition" (arXiv
1512.03385). A crop is all the augmentation of "Learning Transferable Visual Models From Natural
Language Supervision" (arXiv 2103.00020).

It pulls batches with ``pixel_values`` (float [R, channels, height, width]) and changes these alone. Where a
picture is cut depends on the seed, the step and the row, not on ranks or micro-batches.

Not for pictures in which the place says something, such as a page of text.

Errors: a batch without pictures; pad that is not positive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Data, State


class RandomCrop(Data):
    """Shows each picture of the batches that it pulls at another place."""

    pad: int = 4
    """Pixels that a picture may move by, in each direction."""
    example: ClassVar[dict[str, Any]] = {"pad": 1}
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["image", "text"], "length": 24}, {"use": "clip"})

    def __post_init__(self) -> None:
        if self.pad < 1:
            raise ValueError(f"pad must be positive, not {self.pad}")

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch = pull()
        if "pixel_values" not in batch:
            raise UserError("random_crop: the batch has no pictures (pixel_values): put it behind "
                            "{ use = \"examples\", fields = [\"image\", …] }.")
        pixels = batch["pixel_values"]
        height, width = pixels.shape[-2:]
        wide = F.pad(pixels, [self.pad] * 4, mode="replicate")
        places = torch.randint(2 * self.pad + 1, (ctx.batch_rows, 2), generator=ctx.rng("random_crop"))
        own = places[ctx.rows(ctx.batch_rows)].tolist()
        cut = [one[:, y:y + height, x:x + width] for one, (y, x) in zip(wide, own, strict=True)]
        return batch | {"pixel_values": torch.stack(cut)}
