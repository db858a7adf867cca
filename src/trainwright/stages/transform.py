"""A transformation: one model made of one, without the loop: pruned, quantized, grown,
given another vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainwright.core.errors import UserError
from trainwright.core.settings import Seed
from trainwright.core.stage import CORPORA, MODEL, TOKENIZER, Stage, check_seed

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from trainwright.core.method import Data
    from trainwright.life.jobs import Job
    from trainwright.life.stage_run import StageRun
    from trainwright.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class TransformStage(Stage):
    """One model made of one, with calibration data where its methods ask for them."""

    roles = {"model": MODEL._replace(needed=True), "data": CORPORA, "tokenizer": TOKENIZER}
    acting = ("Surgery", "Data")
    place = "transform"
    doing = "transforming"

    calibration: int = 64
    """Rows of ``from.data`` that methods may look at."""
    batch_size: int = 8
    """Rows that go through the model at once."""
    precision: Literal["fp32", "bf16-true"] = "fp32"
    """The type of the weights while the methods act."""
    stored: Literal["float", "packed"] = "float"
    """How weights that a method has rounded are stored: ``packed`` takes as many bits as they have (the
    format pack-quantized of compressed-tensors, which transformers reads); later stages make floats of
    them."""
    seed: Seed | None = None
    """Seed of this stage; default: the recipe's."""

    def check(self, where: str) -> None:
        check_seed(self.seed, where)
        if not self.methods:
            raise UserError(
                f"{where}: a transformation needs a method, for example {{ use = \"magnitude\" }}."
            )
        if self.stored == "packed" and self.precision != "fp32":
            raise UserError(f'{where}: stored = "packed" needs precision = "fp32", of which the grids are.')
        for key in ("calibration", "batch_size"):
            if not 0 < getattr(self, key) < 2**31:
                raise UserError(f"{where}: {key} must be a positive number, not {getattr(self, key)}.")

    def examine(self, job: Job, store: Store) -> None:
        from trainwright import families
        from trainwright.core.claims import check_claims
        from trainwright.core.errors import located
        from trainwright.core.method import Data, Surgery
        from trainwright.families import packed
        if not job.of(Surgery):
            raise UserError(f"{job.where}: its methods only read data, and nothing changes the model.")
        if job.of(Data) and "data" not in job.inputs:
            raise UserError(f"{job.where}: {job.of(Data)[0].name} reads data: name a corpus as from.data.")
        if self.stored == "packed":
            packed.check_library(job.where)
        config = job.inputs["model"][0].config(store, job.where)
        if config is not None:
            with located(job.where):
                check_claims(job.methods, families.skeleton(config, job.where))

    def config(self, job: Job, store: Store) -> Any:
        from trainwright.core.method import Surgery
        config = job.inputs["model"][0].config(store, job.where)
        for surgery in job.of(Surgery) if config is not None else ():
            config = surgery.resized(config)
        return config

    def vocabulary(self, job: Job) -> int | None:
        return job.vocabulary("tokenizer", "model")

    def closed(self, job: Job) -> bool:
        return job.inputs["model"][0].closed

    def unfolded(self, job: Job, store: Store) -> bool:
        from trainwright.core.method import Surgery
        return any(not s.folds for s in job.of(Surgery)) or job.inputs["model"][0].unfolded(store, job.where)

    def run(self, run: StageRun) -> dict[str, Any]:
        from functools import partial

        from trainwright.core import sharding
        run.started({})
        return sharding.led(partial(self._transform, run)) or {}

    def _transform(self, run: StageRun) -> dict[str, Any]:
        import torch

        from trainwright import families
        from trainwright.core import hardware, ledger, masks
        from trainwright.core.batches import Calibration
        from trainwright.core.method import Surgery
        from trainwright.families import packed
        job, ctx, folder = run.job, run.context(), run.inputs["model"][0]
        ledger.reset_peak()
        model = job.inputs["model"][0].load(run.store, job.where).to(ctx.device).eval()
        hardware.set_precision(model, self.precision)
        ctx.tokenizer = families.load_tokenizer(run.folder("tokenizer") or folder, job.where)
        ctx.batch_rows, ctx.policy = self.batch_size, model
        if run.folder("data"):
            ctx.batches = Calibration(self._readers(job), ctx, self.calibration)
        for surgery in job.of(Surgery):
            with torch.no_grad():
                surgery.operate(model, ctx)
        masks.enforce(model)
        if self.stored == "packed":
            packed.ask(model, job.where)
        peak = ledger.peak_memory()
        counts = _counts(model)
        for name in families.write(model, job.of(Surgery), job.seed, run.out, ctx.tokenizer):
            run.listener.say(
                f"{self.name}: {name} cannot be folded into the weights: the model is backbone/ and adapter/ "
                "together, which only trainwright loads as one"
            )
        run.keep(ctx)
        if self.stored == "packed":
            counts["bits_a_packed_weight"] = round(packed.bits_a_weight(run.out), 4)
        return counts | {"peak_memory_bytes": int(peak), "stored_bytes": _bytes(run.out)}

    @staticmethod
    def _readers(job: Job) -> list[Data]:
        """The methods that make the rows of its data."""
        from pathlib import Path

        from trainwright.core import registry
        from trainwright.core.method import Data
        default = registry.default_of("Data")
        return job.of(Data) or [registry.create({"use": default}, Path(), job.where)]  # type: ignore[list-item]


def _counts(model: nn.Module) -> dict[str, Any]:
    """Parameters, and the share of zeros among the entries of matrices."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    zeros, all_of_them = sum(int((p == 0).sum()) for p in matrices), sum(p.numel() for p in matrices)
    return {"parameters": sum(p.numel() for p in model.parameters()), "zeros": zeros,
            "sparsity": round(zeros / max(1, all_of_them), 6)}


def _bytes(out: Path) -> int:
    return sum(f.stat().st_size for f in out.rglob("*.safetensors"))
