"""Loss-based reweighting: in each step, texts of low loss, which teach little, count less.

"Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining" (arXiv 2502.06733).
Let l_i be the mean loss of the i-th of M samples of a step, over all micro-batches and ranks, n_i its
trained tokens, and max, min those of the l_i:

    h_i = (2 l_i - (max + min)) / (max - min)      from -1 to 1
    f_i = min(h_i + 1, 1)    linupper: weakens the easy half, and treats all samples above mid-range alike
          1 - h_i^2          quadratic: weakens both ends
          |h_i|              extremes: weakens the middle
          (h_i + 1) / 2      upper: linear throughout
    w_i = exp(f_i / temperature) / sum_j exp(f_j / temperature),      loss = M sum_i w_i (n_i / sum_j n_j) l_i

With all w_i = 1 / M that is plain training. No gradient flows through w.

A sample is a row: the authors cut their token stream into windows of 512 tokens and weigh those, whatever
documents they come from. ``unit = "document"`` makes it each document's part of a row, for rows that hold
many short ones; parts of a few tokens then influence max and min. If an objective gives one number a row
(pairs, answers), that is the sample. The loss gives samples of more tokens more weight, as plain training
and the authors' trainer do; for samples of one length it is the sum of w_i l_i.

For the first ``burn_in`` steps all weights are equal, while losses say more about the model than about the
text; the paper uses 1000 of 20,000 steps. It costs one more forward pass a step, since the weights of a
micro-batch need the losses of the whole step. The logged loss is the weighted one (``train_loss/DOMAIN`` is
not): compare runs on held-out text.

Not where high losses are noise (wrong labels, broken text), on which it would train; ``quadratic`` is for
those. Of no use if a step has few samples.

Errors: an objective whose numbers are neither one a row nor one a position; a burn-in longer than the
stage. State: none. """
from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, State, Weigh
from trainwright.core.settings import Endless
from trainwright.lm.losses import field
from trainwright.lm.schedules import check_parts, check_room, steps_of

SMALLEST = 1e-6
"""Range of the losses below which they count as equal."""


class LossReweighting(Weigh):
    """Weighs each text of a step by where its loss lies among those of the others."""

    mapping: Literal["linupper", "quadratic", "extremes", "upper"] = "linupper"
    """Which losses gain weight."""
    unit: Literal["row", "document"] = "row"
    """What has one weight: a row, or a document's part of it."""
    temperature: Endless = 0.4
    """Of the softmax: the weights of two samples differ by a factor of exp(1 / temperature) at most."""
    burn_in: int | float = 0.05
    """Steps before the first weights: a share of the stage's (0.2, 1.0) or a number of steps (20)."""
    whole: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"burn_in": 0.0}
    off: ClassVar[dict[str, Any] | None] = {"temperature": float("inf")}

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")
        check_parts(burn_in=self.burn_in)

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_room(self.name, ctx, burn_in=self.burn_in)
        return {}

    @torch.no_grad()
    def weigh(self, values: Tensor, batch: Batch, state: State, ctx: Context) -> Tensor:
        if ctx.step < steps_of(self.burn_in, ctx.steps):
            return torch.ones_like(values)
        # on the CPU, where sums are the same on every rank
        number = samples(values, batch, self.unit)
        there = number >= 0
        of = number[there]
        loss = torch.zeros(int(of.max()) + 1, dtype=torch.float64)
        loss.index_add_(0, of, values.cpu()[there].double())
        weight = self.weights(loss / of.bincount())
        return torch.ones(values.shape, dtype=torch.float64).masked_scatter_(there, weight[of]).to(values)

    def weights(self, loss: Tensor) -> Tensor:
        """M w_i of samples with these losses [M]: they are 1 in the mean."""
        low, high = loss.min(), loss.max()
        h = (2 * loss - (high + low)) / (high - low).clamp(min=SMALLEST)
        match self.mapping:
            case "linupper":
                f = (h + 1).clamp(max=1)
            case "quadratic":
                f = 1 - h**2
            case "extremes":
                f = h.abs()
            case "upper":
                f = (h + 1) / 2
        raw = torch.exp((f - f.max()) / self.temperature)
        return raw / raw.mean()


def samples(values: Tensor, batch: Batch, unit: str) -> Tensor:
    """The number of the sample that each of an objective's numbers belongs to, int64 of their shape; -1
    where nothing is learned.

    Raises:
        UserError: they are neither one a row nor one a position.
    """
    rows = torch.arange(len(values))
    if values.ndim == 1:
        return rows
    needed = ("targets", "document") if unit == "document" else ("targets",)
    if any(n not in batch or batch[n].shape != values.shape for n in needed):
        raise UserError(f"loss_reweighting: an objective gives numbers of shape {tuple(values.shape)}; it "
                        "weighs those that are one a row, or one for each position that "
                        f"{' and '.join(needed)} of the batch have.")
    there = field(batch, "targets").cpu() != UNTRAINED
    number = rows[:, None].expand(values.shape)
    if unit == "document":
        document = batch["document"].cpu()
        number = number * (document.max() + 1) + document
    return torch.full(values.shape, -1).masked_scatter_(there, number[there].unique(return_inverse=True)[1])
