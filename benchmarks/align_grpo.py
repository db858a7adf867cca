"""The part of ``align.py`` that learns from rollouts: TRL's ``GRPOTrainer``, our ``rollout`` and ``grpo``.

Both are whole: prompts as text, a group of answers to each sampled from the model in training, graded by one
function of their text, one step of AdamW on all of them, again and again. Prompts, their order aside, model,
sizes and the loss (that of DAPO) are the same. Of random weights the token that ends an answer is one among
thousands, so that nearly all answers have their full length; tokens are counted as they were drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from trainwright import api, families
from trainwright.align.grpo import Grpo
from trainwright.core import ledger
from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED, Batch

LR, CLIP_HIGH = 1e-6, 0.28
SHAPE = {"type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
         "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
         "tie_word_embeddings": True}
SMALL = SHAPE | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "num_key_value_heads": 2}
TASK = '''"""The share of an answer's words whose number is even."""
from trainwright.core.method import Task


def share(answer):
    words = answer.split()
    return sum(word[-1] in "02468" for word in words) / max(1, len(words))


class Even(Task):
    def grade(self, prompt, answer):
        return share(answer)
'''
Table = dict[str, Any]


def words(given: argparse.Namespace) -> int:
    """Tokens of the vocabulary."""
    return 512 if given.quick else 16384


def tokenizer(given: argparse.Namespace) -> Any:
    """A word is a token: w0, w1 and so on, behind the one that ends a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast
    known = {"</s>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, words(given))}
    plain = Tokenizer(WordLevel(known, unk_token="<unk>"))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", pad_token="</s>",
                                   unk_token="<unk>")


def prompts(given: argparse.Namespace) -> list[str]:
    """Of between a half of the greatest length and all of it, for one pass."""
    g = torch.Generator().manual_seed(0)

    def one() -> str:
        size = int(torch.randint(given.prompt // 2, given.prompt + 1, (1,), generator=g))
        return " ".join(f"w{i}" for i in torch.randint(2, words(given), (size,), generator=g).tolist())
    return [one() for _ in range(given.rollouts * given.asked)]


def share() -> Any:
    """The function that grades."""
    space: Table = {}
    exec(TASK, space)
    return space["share"]


# ---- whole runs --------------------------------------------------------------------------------------------


def table(given: argparse.Namespace) -> Table:
    return (SMALL if given.quick else SHAPE) | {"vocab_size": words(given)}


def trainer(given: argparse.Namespace, asked: list[str], **settings: Any) -> Any:
    """TRL's, with the loss of DAPO, in float32."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    made = tokenizer(given)
    model = families.create(families.from_table(table(given), made, "align"), 0, "align")
    grade, rows = share(), given.asked * given.group
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(), report_to=[], bf16=False, use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False, disable_tqdm=True, save_strategy="no", logging_steps=1,
        num_generations=given.group, per_device_train_batch_size=rows, max_steps=given.rollouts,
        max_completion_length=given.new, temperature=1.0, loss_type="dapo", epsilon=0.2,
        epsilon_high=CLIP_HIGH, beta=0.0, learning_rate=LR, lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=1.0, shuffle_dataset=False, **settings)
    return GRPOTrainer(model=model, args=args, processing_class=made,
                       reward_funcs=lambda completions, **_: [grade(one) for one in completions],
                       train_dataset=Dataset.from_list([{"prompt": one} for one in asked]))


def theirs(given: argparse.Namespace) -> Table:
    """A run of TRL's: of each step its tokens, and the seconds of all and of sampling with grading."""
    from transformers import TrainerCallback
    made, whole, sampling = trainer(given, prompts(given)), list[float](), list[float]()

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            whole.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            whole[-1] += time.perf_counter()
    plain = made._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        began = time.perf_counter()
        out = plain(inputs)
        sampling.append(time.perf_counter() - began)
        return out
    made._generate_and_score_completions = timed
    made.add_callback(Clock())
    made.train()
    rows = [row for row in made.state.log_history if "completions/mean_length" in row]
    many = given.asked * given.group
    return {"tokens": [row["completions/mean_length"] * many for row in rows],
            "seconds": whole, "sampling": sampling}


RECIPE = """title = "GRPO"
seed = 0

[[stage]]
name = "prompts"
kind = "corpus"
tokenizer = "words"
methods = [{{ use = "text", paths = ["prompts.jsonl"] }}]

[[stage]]
name = "learned"
kind = "train"
from = {{ data = "prompts" }}
model = {model}
steps = {steps}
batch_size = {rows}
precision = "fp32"
methods = [
  {{ use = "rollout", task = {{ use = "./even.py" }}, group = {group}, prompts = {asked}, \
new_tokens = {new}, length = {length}, sample_size = {rows} }},
  {{ use = "grpo", clip_high = {clip} }},
  {{ use = "clip_gradients", norm = 1.0 }},
  {{ use = "adamw", lr = {lr}, weight_decay = 0.0 }},
]
"""


def ours(given: argparse.Namespace) -> Table:
    """The same of a run of ours."""
    folder, rows = Path(tempfile.mkdtemp()), given.asked * given.group
    tokenizer(given).save_pretrained(folder / "words")
    lines = [json.dumps({"text": one}) for one in prompts(given)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "even.py").write_text(TASK)
    model = ", ".join(f"{k} = {json.dumps(v)}" for k, v in table(given).items())
    (folder / "recipe.toml").write_text(RECIPE.format(
        model=f"{{ {model} }}", steps=given.rollouts, rows=rows, group=given.group, asked=given.asked,
        new=given.new, length=given.prompt + given.new, clip=CLIP_HIGH, lr=LR))
    made = api.run(api.load(folder / "recipe.toml"), folder / "store")["learned"]
    found = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    ends = [row["seconds"] for row in found]
    tokens = [row["rollout/tokens"] * rows for row in found]
    return {"tokens": tokens, "seconds": [b - a for a, b in zip([0.0, *ends[:-1]], ends, strict=True)],
            "sampling": [n / row["rollout/tokens_per_second"] for n, row in zip(tokens, found, strict=True)]}


def whole(side: str, given: argparse.Namespace) -> Table:
    """A run of one side in this process, without its first step."""
    import trl.trainer.grpo_trainer  # noqa: F401  # both sides have the libraries in memory
    ledger.reset_peak()
    before = ledger.memory()
    found = (theirs if side == "trl" else ours)(given)
    tokens, seconds, sampling = (found[n][1:] for n in ("tokens", "seconds", "sampling"))
    training = [a - b for a, b in zip(seconds, sampling, strict=True)]
    speeds = {"tokens_per_second": seconds, "sampled_per_second": sampling, "trained_per_second": training}
    return {"peak_bytes": ledger.peak_memory() - before, "tokens": statistics.mean(tokens)} | {
        name: statistics.median(n / s for n, s in zip(tokens, took, strict=True))
        for name, took in speeds.items()}


# ---- one batch ---------------------------------------------------------------------------------------------


def batch(given: argparse.Namespace, number: int) -> tuple[Batch, Table]:
    """Groups of answers of several lengths with rewards, as our rows and as TRL's parts."""
    g = torch.Generator().manual_seed(number)
    rows, wide = given.asked * given.group, given.prompt + given.new
    asked = torch.randint(given.prompt // 2, given.prompt + 1, (given.asked,), generator=g)
    said = torch.randint(1, given.new + 1, (rows,), generator=g)
    reward, old = torch.rand(rows, generator=g), -9 - torch.rand(rows, given.new, generator=g)
    ids, seen = torch.zeros(2, rows, wide, dtype=torch.int64)
    logp, targets = torch.zeros(rows, wide), torch.full((rows, wide), UNTRAINED)
    parts = {f"{side}_{name}": torch.zeros(rows, size, dtype=torch.int64) for name in ("ids", "mask")
             for side, size in (("prompt", given.prompt), ("completion", given.new))}
    for row, (start, size) in enumerate(zip(asked.repeat_interleave(given.group), said, strict=True)):
        end, drawn = start + size, torch.randint(2, words(given), (wide,), generator=g)
        ids[row, :end], seen[row, :end] = drawn[:end], 1
        targets[row, start - 1:end - 1], logp[row, start - 1:end - 1] = drawn[start:end], old[row, :size]
        parts["prompt_ids"][row, given.prompt - start:] = drawn[:start]
        parts["prompt_mask"][row, given.prompt - start:] = 1
        parts["completion_ids"][row, :size], parts["completion_mask"][row, :size] = drawn[start:end], 1
    group = torch.arange(rows) // given.group
    by_group = reward.view(-1, given.group)[group]
    own = {"input_ids": ids, "attention_mask": seen, "targets": targets, "logp": logp, "reward": reward,
           "group_rewards": by_group, "group_graded": torch.ones_like(by_group, dtype=torch.int64),
           "group": group, "group_tokens": said.view(-1, given.group).sum(1)[group].float(),
           "position_ids": torch.arange(wide).repeat(rows, 1), "packed": False, "fresh": False,
           "temperature": 1.0, "new_tokens": given.new}
    return own, parts | {"old_per_token_logps": old, "num_items_in_batch": said.sum()}


def losses(given: argparse.Namespace) -> Table:
    """The losses of both sides on the same batches, how far they are apart at most, and how far the gradients
    are, as a part of the greatest entry."""
    made = trainer(given, ["w2"] * given.asked * given.rollouts)
    method, ctx = Grpo(clip_high=CLIP_HIGH), Context()
    made.current_gradient_accumulation_steps = 1
    model = made.model.train()
    parameters, found, apart = list(model.parameters()), list[list[float]](), list[float]()
    for number in range(3):
        own, parts = batch(given, number)
        advantages = method.advantages(own)
        values = (method.loss(model, own, {}, ctx).sum() / method.count(own),
                  made._compute_loss(model, parts | {"advantages": advantages}))
        mine, theirs = (torch.autograd.grad(value, parameters) for value in values)
        most = max(float(t.abs().max()) for t in theirs)
        apart.append(max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True)) / most)
        found.append([float(value) for value in values])
    return {"ours": [a for a, _ in found], "trl": [b for _, b in found],
            "furthest": max(abs(a - b) for a, b in found), "gradients": max(apart)}
