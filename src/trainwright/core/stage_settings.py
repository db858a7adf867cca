"""The settings of each kind of stage, and which of them may be together."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from trainwright.core.errors import UserError, suggest


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
    roles: ClassVar[dict[str, str]] = {}
    """Which roles ``from`` may name: ``one`` or ``many`` artifacts, with ``?`` where it may be left out."""

    @property
    def kind(self) -> str:
        return type(self).__name__.removesuffix("Stage").lower()

    def check(self, where: str) -> None:
        """Raise a UserError for settings that cannot be together; ``where`` names the stage in it."""


@dataclass(frozen=True, kw_only=True)
class CorpusStage(Stage):
    """Documents, filtered and tokenized."""

    roles = {"data": "one?", "target": "one?", "tokenizer": "one?", "model": "one?", "models": "many?"}

    tokenizer: str | None = None
    """Whose tokenizer to use: an earlier stage, a checkpoint's path, or ``package://NAME``; default: that of ``from.data``, or of
    ``from.model``."""
    vocab_size: int | None = None
    """Train a byte-level BPE of this size on the corpus instead."""
    tune: float | None = None
    """Share of the documents (by hash of their id) kept for tuning; default: 0.01. Of an earlier corpus (``from.data``) the
    documents for training are worked on, and those kept back stay what they are."""
    test: float | None = None
    """Share of the documents kept for evaluation; default: 0.02."""
    chat_template: str | None = None
    """Template for documents with ``messages``: ``chatml``, ``by_turn`` (the tokenizer's own, the answers found by rendering turn
    by turn) or a file; default: the tokenizer's own, which must mark what the assistant says."""
    engine: Literal["native", "ray"] = "native"
    """What runs the table: this machine, or a Ray cluster."""
    seed: int | None = None
    """Seed of this stage; default: the recipe's."""

    def check(self, where: str) -> None:
        given = (self.tokenizer is not None, self.vocab_size is not None, "tokenizer" in self.inputs)
        if sum(given) > 1 or not (any(given) or {"data", "model"} & set(self.inputs)):
            raise UserError(f"{where}: say either vocab_size (train a tokenizer) or tokenizer (use one).")
        if self.vocab_size is not None and self.vocab_size < 258:
            raise UserError(f"{where}: vocab_size must be at least 258 (256 bytes and two more), not {self.vocab_size}.")
        if "data" in self.inputs and (self.tune is not None or self.test is not None):
            raise UserError(f"{where}: tune and test are those of from.data, whose documents kept back stay kept back: "
                            "leave them out.")
        tune, test = self.shares()
        if not (0 <= tune < 1 and 0 <= test < 1 and tune + test < 1):
            raise UserError(f"{where}: tune and test are shares between 0 and 1 that leave some for training, "
                            f"not {tune} and {test}.")
        check_seed(self.seed, where)
        if not self.methods and "data" not in self.inputs:
            raise UserError(f"{where}: methods names no source of documents, for example "
                            "{ use = \"text\", paths = [\"texts/\"] }.")

    def shares(self) -> tuple[float, float]:
        """``tune`` and ``test``, with their defaults."""
        return 0.01 if self.tune is None else self.tune, 0.02 if self.test is None else self.test


@dataclass(frozen=True, kw_only=True)
class TrainStage(Stage):
    """One training loop."""

    roles = {"model": "one?", "data": "one?", "reference": "one?", "teacher": "one?", "tokenizer": "one?"}

    model: dict[str, Any] | None = None
    """A model from scratch: ``type`` and the fields of its transformers config."""
    tokens: int | None = None
    """How far to train, in tokens; or ``steps``, or ``epochs``."""
    steps: int | None = None
    """How far to train, in steps."""
    epochs: float | None = None
    """How far to train, in passes over the data."""
    batch_tokens: int | None = None
    """Tokens of one step, over all ranks and micro-batches (if nothing is said: what a law suggests, else 8192)."""
    batch_size: int | None = None
    """Rows of one step, over all ranks and micro-batches, instead of ``batch_tokens``."""
    accumulate: int = 1
    """Micro-batches that a step is cut into on each rank; it never changes the loss."""
    precision: Literal["auto", "bf16", "bf16-true", "fp32"] = "auto"
    """``bf16`` is autocast with float32 weights; ``auto`` takes it where the hardware is fast at it. ``bf16-true``: the weights
    are bfloat16, half as large, for adapters on a model that is frozen; what an adapter adds stays float32."""
    compile: bool | Literal["auto"] = "auto"
    """torch.compile; ``auto`` where the stage is long enough to earn it back."""
    checkpointing: bool = False
    """Activation checkpointing: less memory, about a third more time."""
    eval_every: int = 0
    """Steps between evaluations; 0: only at the end."""
    save_every: int = 0
    """Steps between checkpoints; 0: about one a minute."""
    seed: int | None = None
    """Seed of this stage; default: the recipe's."""

    def check(self, where: str) -> None:
        far = {k: v for k in ("tokens", "steps", "epochs") if (v := getattr(self, k)) is not None}
        if len(far) != 1:
            raise UserError(f"{where}: say how far to train with one of tokens, steps, epochs; "
                            f"it has {', '.join(far) or 'none'}.")
        sizes = {k: getattr(self, k) for k in ("batch_tokens", "batch_size") if getattr(self, k) is not None}
        if len(sizes) > 1:
            raise UserError(f"{where}: say batch_tokens or batch_size, not both.")
        for key, value in {**far, **sizes, "accumulate": self.accumulate}.items():
            if not 0 < value < 2**63:
                raise UserError(f"{where}: {key} must be a positive number, not {value}.")
        for key in ("eval_every", "save_every"):
            if getattr(self, key) < 0:
                raise UserError(f"{where}: {key} must not be negative, not {getattr(self, key)}.")
        check_seed(self.seed, where)
        if ("model" in self.inputs) == (self.model is not None):
            raise UserError(f"{where}: say either from.model (go on with a model) or model (make one from scratch).")
        if self.model is not None and not isinstance(self.model.get("type"), str):
            raise UserError(f"{where}: model needs a type, for example {{ type = \"llama\", hidden_size = 128 }}.")


@dataclass(frozen=True, kw_only=True)
class MergeStage(Stage):
    """One model made of several."""

    roles = {"models": "many", "base": "one?"}

    def check(self, where: str) -> None:
        if len(self.methods) != 1:
            raise UserError(f"{where}: a merge takes exactly one method, for example {{ use = \"interpolate\" }}; "
                            f"it has {len(self.methods)}.")


@dataclass(frozen=True, kw_only=True)
class EvaluateStage(Stage):
    """Models measured side by side."""

    roles = {"models": "many", "data": "one?"}

    baseline: str | None = None
    """Model (one of ``from.models``) against which gain and forgetting are told; default: the first."""
    old: tuple[str, ...] = ()
    """Domains on which a rise of the loss is forgetting."""
    new: tuple[str, ...] = ()
    """Domains on which a fall of the loss is gain."""
    precision: Literal["auto", "bf16", "fp32"] = "fp32"
    """``bf16`` measures under autocast: faster where the hardware is fast at it, which is where ``auto`` takes it. Losses then
    differ in the third digit, and from machine to machine; ``fp32`` computes in the weights' own type."""
    seed: int | None = None
    """Seed of this stage; default: the recipe's."""

    def check(self, where: str) -> None:
        if self.baseline is not None and self.baseline not in self.inputs["models"]:
            raise UserError(f"{where}: baseline {self.baseline!r} is not one of from.models"
                            f"{suggest(self.baseline, self.inputs['models'])}.")
        check_seed(self.seed, where)
        if not self.methods:
            raise UserError(f"{where}: methods names no evaluator, for example {{ use = \"held_out\" }}.")


STAGES: dict[str, type[Stage]] = {"corpus": CorpusStage, "train": TrainStage, "merge": MergeStage, "evaluate": EvaluateStage}
