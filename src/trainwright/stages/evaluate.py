"""An evaluation: models measured side by side."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainwright.core.errors import UserError, located, suggest
from trainwright.core.settings import Seed
from trainwright.core.stage import CORPORA, MODELS, Stage, check_seed

if TYPE_CHECKING:
    from trainwright.life.jobs import Job
    from trainwright.life.stage_run import StageRun
    from trainwright.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Models measured side by side."""

    roles = {"models": MODELS._replace(needed=True), "data": CORPORA}
    acting = ("Evaluator", "Decode")
    makes = "numbers"
    place = "measure"
    doing = "measuring"

    baseline: str | None = None
    """Model (one of ``from.models``) against which gain and forgetting are told; default: the first."""
    old: tuple[str, ...] = ()
    """Domains on which a rise of the loss is forgetting."""
    new: tuple[str, ...] = ()
    """Domains on which a fall of the loss is gain."""
    precision: Literal["auto", "bf16", "fp32"] = "fp32"
    """``bf16`` measures under autocast: faster where the hardware is fast at it, which is where
    ``auto`` takes it. Losses then differ in the third digit, and from machine to machine; ``fp32``
    computes in the weights' own type."""
    seed: Seed | None = None
    """Seed of this stage; default: the recipe's."""

    def check(self, where: str) -> None:
        models = self.inputs.get("models", ())
        if self.baseline is not None and self.baseline not in models:
            raise UserError(
                f"{where}: baseline {self.baseline!r} is not one of "
                f"from.models{suggest(self.baseline, models)}."
            )
        check_seed(self.seed, where)
        if not self.methods:
            raise UserError(f"{where}: methods names no evaluator, for example {{ use = \"held_out\" }}.")

    def examine(self, job: Job, store: Store) -> None:
        from trainwright import families
        from trainwright.core.method import Evaluator
        for source in job.inputs["models"]:
            if (config := source.config(store, job.where)) is not None:
                with located(f"{job.where}: {source.name}"):
                    families.check_objectives(job.of(Evaluator), config)

    def run(self, run: StageRun) -> dict[str, Any]:
        import torch

        from trainwright import families
        from trainwright.core import hardware
        from trainwright.core.method import Decode, Evaluator
        run.started({})
        found: dict[str, dict[str, float]] = {}
        for source, folder in zip(run.job.inputs["models"], run.inputs["models"], strict=True):
            ctx = run.context()
            model = source.load(run.store, run.job.where).to(ctx.device).eval()
            ctx.tokenizer, ctx.policy = families.load_tokenizer(folder, run.job.where), model
            ctx.decode = run.job.of(Decode)
            found[source.name] = {}
            with (
                torch.no_grad(),
                hardware.autocast(ctx.device, hardware.set_precision(model, self.precision)),
            ):
                for m in run.job.of(Evaluator):
                    found[source.name] |= m.measure(model, ctx)
            run.keep(ctx, f"{source.name}/")
            run.listener.say(f"{self.name}: measured {source.name}")
        self._check_domains(found, run.job.where)
        return {
            "numbers": found,
            "baseline": self.baseline or next(iter(found)),
            "old": list(self.old),
            "new": list(self.new),
        }

    def _check_domains(self, numbers: dict[str, dict[str, float]], where: str) -> None:
        measured = {
            name.partition("/")[2]
            for values in numbers.values()
            for name in values
            if name.startswith("loss/")
        }
        for domain in (*self.old, *self.new):
            if measured and domain not in measured:
                raise UserError(
                    f"{where}: old and new name the domain {domain!r}, which no evaluator measured"
                    f"{suggest(domain, measured)}."
                )

    def numbers(self, figures: dict[str, Any]) -> dict[str, float]:
        return dict(list(figures["numbers"].values())[-1])
