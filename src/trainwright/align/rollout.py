"""Answers that the model in training samples itself, with their rewards: what reinforcement learns from.

A rollout takes the next ``prompts`` prompts of the corpus and samples a ``group`` of answers to each from the
model as it is, at ``temperature``. Its answers are then trained on for some steps, ``batch_size`` of them a
step and whole groups always, in ``epochs`` passes, each in an order of its own; then comes the next rollout.
The prompts of each pass over the corpus are in an order that follows from the seed alone.

    input_ids, targets, position_ids, attention_mask    int64 [R, L]: prompt and answer; -100 but for that
    logp             float32 [R, L]: log-probability of each target when it was sampled, 0 elsewhere
    reward           float32 [R]
    group_rewards    float32 [R, G], group_graded int64 [R, G]: of the group that the row is from
    group_tokens     float32 [R]: tokens of the group's graded answers
    group, member    int64 [R]: number of the group in the rollout, and of the answer in its group
    asked            int64 [R]: number of the document that asks, among those of ``split`` and ``domains``
    domain, document                  int64 [R, L], as those of ``examples``
    temperature, new_tokens, fresh    not of rows: the settings, and whether the model has not moved since

The tokens are those that were sampled: no text is tokenized a second time. Only the temperature shapes what
is drawn, as in "Group Sequence Policy Optimization" (arXiv 2507.18071) and its kin: with top-p or top-k the
log-probabilities would be those of another distribution than the one in training, and the mean of their
ratio would be the probability mass that is kept, not 1. Each answer has a generator of its own, of seed,
step, prompt and number; so neither the number of ranks nor an interruption changes it.

Rewards are the grades of a ``task`` (its ``grade(prompt, answer)``), or those of a reward model,
``from.reward``. An answer without a grade (NaN, or the grader failed) is no wrong answer: it has no targets,
so it is neither summed nor counted, nor part of its group's mean. Logs, in the first step of a rollout,
``rollout/reward`` (mean of the graded), ``rollout/ungraded`` (how many), ``rollout/tokens`` (mean length),
``rollout/finished`` (share that ended by itself), ``rollout/alike`` (share of groups whose rewards are all
equal, from which nothing is learned) and ``rollout/tokens_per_second`` (of sampling and grading; the stage's
own ``tokens_per_second`` has all of a step in it).

Not with a model that has dropout: it samples without, and is trained with. Where the stage computes in
bfloat16 beside float32 weights, sampling does not; ``grpo`` measures the difference. With ``sampler =
"vllm"`` an interruption may change what is drawn (``lm/vllm_sampling.py``). Left out: several turns, tools.

Errors: a decoding method in the stage; neither a task nor ``from.reward``, or both; no tokenizer; a prompt
that leaves no room for ``new_tokens``; sizes that do not divide; a rollout of which nothing was graded.
"""
from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.align._rewards import head_of, rewards
from trainwright.align._sampled import parted
from trainwright.core import registry, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, State, Task
from trainwright.core.settings import Between, Count, Row
from trainwright.core.stage import Role
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.examples import documents_of, order
from trainwright.lm.asking import COLUMNS, Asked, asked
from trainwright.lm.generation import COLDEST, Prompt, Sampled, end_tokens, sampled, writes
from trainwright.lm.losses import most_positions
from trainwright.lm.vllm_sampling import check_vllm, sampled_by_vllm


class Try(NamedTuple):
    """A question, and what its answer is drawn from."""

    question: Asked
    seed: int


class Answer(NamedTuple):
    """An answer, its grade (NaN: none), and why it has none."""

    said: Sampled
    grade: float
    why: str


class Rollout(Data):
    """Samples groups of answers, has them graded, and makes rows of them."""

    task: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The task that grades answers, such as { use = "sums" }; without one, from.reward does."""
    group: Annotated[int, Between(2, 2**31 - 1)] = 8
    """Answers to each prompt."""
    prompts: Count = 16
    """Prompts of a rollout."""
    epochs: Count = 1
    """Passes over the answers of a rollout."""
    temperature: Annotated[float, Between(COLDEST, 1 / COLDEST)] = 1.0
    """By which the scores are divided before a token is drawn."""
    new_tokens: Count = 64
    """Tokens of an answer at most."""
    length: Row = 256
    """Tokens of prompt and answer at most."""
    finished: bool = False
    """Whether an answer that was cut at new_tokens is left out, as if it had no grade."""
    split: Literal["train", "tune", "test"] = "train"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains to take; all of them by default."""
    sample_size: Count = 64
    """Answers that are sampled at once."""
    sampler: Literal["model", "vllm"] = "model"
    """What draws answers: the model in training, or vLLM with its weights (the extra ``vllm``)."""
    columns: ClassVar[tuple[str, ...]] = COLUMNS
    """What is read of documents."""
    roles: ClassVar[dict[str, Role]] = {"reward": Role(needed=True)}
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "grpo"},)
    example: ClassVar[dict[str, Any]] = {
        "task": {"use": "matches", "pattern": "[aeiou]", "whole": False}, "group": 4, "prompts": 4,
        "epochs": 2, "new_tokens": 4, "length": 32, "domains": ["chat"]}

    def __post_init__(self) -> None:
        if self.new_tokens >= self.length:
            raise ValueError(f"new_tokens = {self.new_tokens} leaves no room for a prompt in length = "
                             f"{self.length}")

    def asks(self) -> dict[str, Role]:
        return {} if self.task else self.roles

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.decode:
            raise UserError(f"rollout: {ctx.decode[0].name} changes what is sampled, and not what is "
                            "trained: the ratio of the two would not be 1 on average; leave it out, and "
                            "choose the temperature of the rollout.")
        if ctx.tokenizer is None or not writes(model) or families.family_of(model).name != "causal_lm":
            raise UserError("rollout: it needs a causal language model that writes text, and a tokenizer.")
        if self.sampler == "vllm":
            check_vllm(model, self.name)
        most = most_positions(model)
        if most is not None and self.length > most:
            raise UserError(f"rollout: length = {self.length} is more than the {most} positions of the "
                            "model.")
        if self.task:
            self._grader(ctx)
        elif "reward" in ctx.frozen:
            head_of(ctx.frozen["reward"])
        else:
            raise UserError("rollout: nothing grades the answers: name a task, such as task = { use = "
                            "\"sums\" }, or a reward model, from = { reward = \"NAME\", … }.")
        return {"shared": {"prompts": 0, "left": 0, "step": 0}}

    def epoch(self, ctx: Context) -> int:
        return len(self._documents(ctx)) * self.group * self.epochs

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        held, parts = state["shared"], self._parts(ctx)
        if not held["left"]:
            self._roll(held, ctx)
            held["left"] = self.epochs * parts
        done = self.epochs * parts - held["left"]
        held["left"] -= 1
        epoch, part = divmod(done, parts)
        each = ctx.batch_rows // self.group
        mixed = torch.randperm(self.prompts, generator=ctx.rng(f"rollout/{epoch}", at=held["step"]))
        groups = mixed[part * each:(part + 1) * each]
        rows = (groups[:, None] * self.group + torch.arange(self.group)).flatten()
        rows = rows[ctx.rows(ctx.batch_rows)]
        domain = held["domain"][rows][:, None].expand(-1, self.length).contiguous()
        return self._batch(held, rows, done == 0) | {
            "asked": held["asked"][rows], "split": self.split, "selected": self.domains,
            "domain": domain, "domains": open_corpus(ctx.path("data")).domains}

    def preview(self, batch: Batch, ctx: Context) -> str:
        learned = batch["targets"][0] != UNTRAINED
        first = int(learned.int().argmax()) + 1
        seen = int(batch["attention_mask"][0].sum())
        parts = [ctx.tokenizer.decode(ids).replace("\n", "⏎") for ids in
                 (batch["input_ids"][0, :first].tolist(), batch["input_ids"][0, first:seen].tolist())]
        return f"an answer, between ⟦ ⟧: {parts[0]}⟦{parts[1]}⟧ with the reward {batch['reward'][0]:g}"

    # ---- a rollout ---------------------------------------------------------------------------------------

    def _parts(self, ctx: Context) -> int:
        """Steps of one pass over a rollout."""
        rows, whole = ctx.batch_rows, self.prompts * self.group
        if not rows or rows % self.group or whole % rows:
            raise UserError(f"rollout: a step of batch_size = {rows} answers must be whole groups of "
                            f"{self.group}, and a rollout of {self.prompts} x {self.group} answers whole "
                            "steps.")
        return whole // rows

    def _roll(self, held: dict[str, Any], ctx: Context) -> None:
        """Sample and grade; every rank its part, and all of them keep all of it."""
        numbers, rows = self._documents_of(held["prompts"], ctx)
        questions = [self._question(row, ctx) for row in rows]
        tries = [Try(questions[i // self.group], self._seed(held["prompts"], i, ctx))
                 for i in range(self.prompts * self.group)]
        began = time.perf_counter()
        every = self._answers(tries, ctx)
        if all(math.isnan(one.grade) for one in every):
            raise UserError(f"rollout: none of the {len(every)} answers has a grade: {every[0].why}.")
        self._note(every, time.perf_counter() - began, ctx)
        kept = self._kept(questions, rows, every, held["prompts"], ctx)
        by_answer = torch.tensor(numbers).repeat_interleave(self.group)
        held |= {"step": ctx.step, "prompts": held["prompts"] + self.prompts, "asked": by_answer} | kept
        held["domain"] = torch.from_numpy(self._documents(ctx).domains[by_answer.numpy()])

    def _answers(self, tries: Sequence[Try], ctx: Context) -> list[Answer]:
        """An answer to each try, graded."""
        def work(mine: Sequence[Try]) -> list[Answer]:
            prompts = [Prompt(one.question.ids, self.new_tokens, one.seed, self.temperature) for one in mine]
            said = self._said(prompts, ctx)
            return self._graded([one.question for one in mine], said, ctx)
        return parted(tries, work, ctx)

    def _said(self, prompts: Sequence[Prompt], ctx: Context) -> list[Sampled]:
        if self.sampler == "vllm":
            assert ctx.folder is not None
            return sampled_by_vllm(ctx.policy, ctx.tokenizer, prompts, ctx.folder / "vllm")
        return sampled(ctx.policy, ctx.tokenizer, prompts, ctx, batch_size=self.sample_size,
                       together=sharding.world() > 1)

    def _seed(self, first: int, i: int, ctx: Context) -> int:
        """What an answer is drawn from."""
        return ctx.rng(f"rollout/{first + i // self.group}/{i % self.group}").initial_seed()

    def _documents(self, ctx: Context) -> Any:
        return documents_of(ctx.path("data"), self.split, self.domains)

    def _documents_of(self, first: int, ctx: Context) -> tuple[list[int], list[dict[str, Any]]]:
        """The numbers of the next documents, and what they ask."""
        found = self._documents(ctx)
        numbers = [int(order(len(found), ctx.seed, n // len(found))[n % len(found)])
                   for n in range(first, first + self.prompts)]
        return numbers, found.rows(numbers, self.columns)

    def _question(self, row: dict[str, Any], ctx: Context) -> Asked:
        assert ctx.policy is not None
        question, room = asked(row, ctx.policy, ctx.tokenizer, self.name), self.length - self.new_tokens
        if len(question.ids) > room:
            raise UserError(f"rollout: a prompt of {len(question.ids)} tokens leaves no room for new_tokens "
                            f"= {self.new_tokens} in length = {self.length}: {question.text[:60]!r}.")
        return question

    def _grader(self, ctx: Context) -> Task:
        task = registry.create(self.task, ctx.root, "rollout: task")
        if not isinstance(task, Task):
            raise UserError(f"rollout: {task.name} grades no answers: task names a method of kind Task.")
        return task

    def _graded(self, questions: Sequence[Asked], said: Sequence[Sampled], ctx: Context) -> list[Answer]:
        if not self.task:
            return self._rewarded(questions, said, ctx)
        task = self._grader(ctx)
        grader = task.grader(ctx)
        ends, out = end_tokens(ctx.policy, ctx.tokenizer), []
        for question, one in zip(questions, said, strict=True):
            grade, why = math.nan, "it was cut at new_tokens"
            if not self.finished or one.ids[-1] in ends:
                text = ctx.tokenizer.decode(one.ids, skip_special_tokens=True)
                grade, why = _grade(task.name, grader, question.text, text)
            out.append(Answer(one, grade, why))
        return out

    def _rewarded(self, questions: Sequence[Asked], said: Sequence[Sampled], ctx: Context) -> list[Answer]:
        ends, given = end_tokens(ctx.policy, ctx.tokenizer), []
        for at in range(0, len(said), self.sample_size):
            part = slice(at, at + self.sample_size)
            rows = _rows(questions[part], [one.ids for one in said[part]], self.length)
            there = {name: t.to(ctx.device) for name, t in rows.items()}
            with torch.no_grad():
                given += rewards(ctx.frozen["reward"], there).tolist()
        cut = [self.finished and one.ids[-1] not in ends for one in said]
        return [Answer(one, math.nan if c else grade, "all were cut at new_tokens, or are no number")
                for one, c, grade in zip(said, cut, given, strict=True)]

    # ---- its rows ----------------------------------------------------------------------------------------

    def _kept(self, questions: Sequence[Asked], rows: Sequence[dict[str, Any]], every: Sequence[Answer],
              first: int, ctx: Context) -> dict[str, Tensor]:
        """What is held of a rollout, given its questions, their documents and all answers; ``first`` is the
        number of its first prompt."""
        return self._rows(questions, every)

    def _rows(self, questions: Sequence[Asked], every: Sequence[Answer]) -> dict[str, Tensor]:
        """All of a rollout, a row for each answer."""
        asked_ = [q for q in questions for _ in range(self.group)]
        rows = _rows(asked_, [one.said.ids for one in every], self.length)
        logp = torch.zeros(rows["targets"].shape)
        for row, (question, one) in enumerate(zip(asked_, every, strict=True)):
            start = len(question.ids) - 1
            logp[row, start:start + len(one.said.logp)] = torch.tensor(one.said.logp)
        grades = torch.tensor([one.grade for one in every], dtype=torch.float32)
        graded = ~grades.isnan()
        rows["targets"][~graded] = UNTRAINED
        return rows | {"logp": logp, "reward": grades.nan_to_num(0.0), "graded": graded.long()}

    def _batch(self, held: dict[str, Any], rows: Tensor, fresh: bool) -> Batch:
        learned = held["targets"] != UNTRAINED
        by_group = {"group_rewards": held["reward"].view(-1, self.group),
                    "group_graded": held["graded"].view(-1, self.group),
                    "group_tokens": learned.sum(1).view(-1, self.group).sum(1).float()}
        own = ("input_ids", "attention_mask", "targets", "logp", "reward")
        batch: Batch = {name: held[name][rows] for name in own}
        batch |= {name: t[rows // self.group] for name, t in by_group.items()}
        batch |= {"group": rows // self.group, "member": rows % self.group}
        places = torch.arange(self.length, device=rows.device).expand(len(rows), -1).contiguous()
        return batch | {"position_ids": places, "packed": False, "fresh": fresh,
                        "document": batch["attention_mask"] - 1,
                        "temperature": self.temperature, "new_tokens": self.new_tokens}

    def _note(self, every: Sequence[Answer], seconds: float, ctx: Context) -> None:
        grades = torch.tensor([one.grade for one in every])
        ends, many = end_tokens(ctx.policy, ctx.tokenizer), [len(one.said.ids) for one in every]
        alike = [float(row[~row.isnan()].unique().numel() < 2) for row in grades.view(-1, self.group)]
        ctx.note("rollout/reward", grades[~grades.isnan()].mean())
        ctx.note("rollout/ungraded", float(grades.isnan().sum()))
        ctx.note("rollout/tokens", sum(many) / len(every))
        ctx.note("rollout/finished", sum(one.said.ids[-1] in ends for one in every) / len(every))
        ctx.note("rollout/alike", sum(alike) / len(alike))
        ctx.note("rollout/tokens_per_second", sum(many) / max(seconds, 1e-9))


def _grade(who: str, grader: Callable[[str, str], float], prompt: str, answer: str) -> tuple[float, str]:
    """The grade; NaN where there is none, and why."""
    try:
        grade = float(grader(prompt, answer))
    except UserError:
        raise
    except Exception as error:          # whatever a grader stumbles over is no fault of the answer
        return math.nan, f"{who} failed: {type(error).__name__}: {error}"[:200]
    return (grade, "") if math.isfinite(grade) else (math.nan, f"{who} gives none for {prompt[:60]!r}")


def _rows(questions: Sequence[Asked], answers: Sequence[list[int]], length: int) -> dict[str, Tensor]:
    """Prompts with their answers as rows: ``input_ids``, ``attention_mask``, ``targets`` [N, L]."""
    ids = torch.zeros(len(answers), length, dtype=torch.int64)
    seen, targets = torch.zeros_like(ids), torch.full_like(ids, UNTRAINED)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        start, end = len(question.ids), len(question.ids) + len(answer)
        ids[row, :end] = torch.tensor([*question.ids, *answer])
        seen[row, :end] = 1
        targets[row, start - 1:end - 1] = torch.tensor(answer)
    return {"input_ids": ids, "attention_mask": seen, "targets": targets}
