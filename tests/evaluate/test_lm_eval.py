"""The harness' tasks on a live model: an own task on local data, its number checked by hand."""

from __future__ import annotations

import builtins
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.evaluate.lm_eval import LmEval, gains, index, items_of, numbers_of, quiet

WORDS = ["<unk>", "<eos>", "the", "cat", "dog", "sat", "ran", "on", "mat", "hill", "a", "red", "big", "fox"]
ITEMS = [
    {"question": "the cat", "choices": ["sat", "ran"], "answer": 0},
    {"question": "a big dog", "choices": ["ran", "mat"], "answer": 1},
    {"question": "the red fox", "choices": ["on", "hill"], "answer": 0},
    {"question": "a mat", "choices": ["red", "big"], "answer": 1},
]
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
metadata: {{version: 1}}
"""


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(i) + "\n" for i in ITEMS))
    (tmp_path / "tasks" / "tiny_choice.yaml").write_text(TASK.format(file=data))
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return Context(
        root=tmp_path,
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>"),
    )


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32,
            initializer_range=0.5,
        )
    )


def right(model: nn.Module, tokenizer: Any) -> list[bool]:
    """By hand: whether the right choice has the higher log-likelihood (each is one token)."""
    answers = []
    for item in ITEMS:
        ids = torch.tensor([tokenizer(item["question"])["input_ids"]])
        last = model(ids).logits[0, -1].log_softmax(-1)
        scores = [last[WORDS.index(c)].item() for c in item["choices"]]
        answers.append(scores.index(max(scores)) == item["answer"])
    return answers


def test_an_own_task_equals_the_count_by_hand(ctx: Context, capfd: pytest.CaptureFixture[str]) -> None:
    model = llama().train()
    expected = right(model, ctx.tokenizer)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    before, level = torch.get_rng_state(), logging.getLogger("lm_eval").level
    method = LmEval(tasks=("tiny_choice",), include_path="tasks", batch_size=3)
    share = sum(expected) / 4
    assert method.measure(model, ctx) == {
        "acc/tiny_choice": pytest.approx(share),
        "acc_stderr/tiny_choice": pytest.approx((share * (1 - share) / 3) ** 0.5),
    }
    first = LmEval(tasks=("tiny_choice",), include_path="tasks", limit=1).measure(model, ctx)
    assert first == {"acc/tiny_choice": float(expected[0])}, "one item has no error"
    assert model.training and ctx.tokenizer.pad_token is None and torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert logging.getLogger("lm_eval").level == level and capfd.readouterr() == ("", "")


def test_the_precision_of_the_run_is_kept(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    model = llama()
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    method = LmEval(tasks=("tiny_choice",), include_path="tasks", limit=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        method.measure(model, ctx)
    method.measure(model, ctx)
    assert (seen[0], seen[-1]) == (torch.bfloat16, torch.float32)


def test_two_models_are_paired_over_items(ctx: Context, tmp_path: Path) -> None:
    """The interval is that of the differences on an item, and the other model is asked once."""
    model, other = llama(), llama(1)
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "work").mkdir()
    ctx.inputs, ctx.folder = {"reference": [tmp_path / "other"]}, tmp_path / "work"
    method = LmEval(tasks=("tiny_choice",), include_path="tasks")
    answers = zip(right(model, ctx.tokenizer), right(other, ctx.tokenizer), strict=True)
    apart = [float(a) - float(b) for a, b in answers]
    told = method.measure(model, ctx)
    assert told["acc_gain/tiny_choice"] == pytest.approx(sum(apart) / 4) and len(set(apart)) > 1
    half = 3.182446 * statistics.stdev(apart) / 2
    assert told["acc_gain_high/tiny_choice"] - told["acc_gain_low/tiny_choice"] == pytest.approx(2 * half)
    ctx.inputs = {"reference": [tmp_path / "nowhere"]}
    assert method.measure(other, ctx)["acc_gain/tiny_choice"] == 0.0
    assert gains({"m/a": {1: 1.0, 2: 0.0}}, {"m/a": {2: 1.0, 3: 1.0}}) == {}, "one item alone is no pair"


def test_a_generation_task_of_a_local_file(ctx: Context) -> None:
    """What a model writes greedily, against the file; by hand one token at a time."""
    text = TASK.format(file=ctx.root / "items.jsonl").replace("tiny_choice", "tiny_words")
    head = text[: text.index("doc_to_choice")].replace("multiple_choice", "generate_until")
    tail = (
        'doc_to_target: "{{choices[answer]}}"\ngeneration_kwargs: {max_gen_toks: 1, until: ["zzz"]}\n'
        "metric_list:\n  - metric: exact_match\n    ignore_case: true\n"
    )
    (ctx.root / "tasks" / "tiny_words.yaml").write_text(head + tail)
    model, hits = llama(), []
    for item in ITEMS:
        ids = torch.tensor([ctx.tokenizer(item["question"])["input_ids"]])
        hits.append(WORDS[int(model(ids).logits[0, -1].argmax())] == item["choices"][item["answer"]])
    told = LmEval(tasks=("tiny_words",), include_path="tasks").measure(model, ctx)
    assert told["exact_match/tiny_words"] == sum(hits) / 4 and "exact_match_stderr/tiny_words" in told


def test_names_of_metrics() -> None:
    samples = {"a": [{"doc_id": 3, "filter": "strict", "metrics": ["f1", "x"], "f1": True, "x": (0, 1)}]}
    assert items_of(samples) == {"f1,strict/a": {3: 1.0}}
    found = {
        "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_len": 3},
        "b": {"exact_match,strict": 1, "f1,none": "N/A"},
    }
    assert numbers_of(found) == {"acc/a": 0.5, "acc_stderr/a": 0.1, "exact_match,strict/b": 1.0}


def test_errors(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trainwright.evaluate.lm_eval.index", lambda folder, defaults: index.__wrapped__(folder, False)
    )
    with pytest.raises(UserError, match="did you mean 'tiny_choice'"):
        LmEval(tasks=("tiny_choise",), include_path="tasks").measure(llama(), ctx)
    with pytest.raises(UserError, match="there is no folder"):
        LmEval(tasks=("tiny_choice",), include_path="nowhere").measure(llama(), ctx)
    (ctx.root / "items.jsonl").unlink()
    with pytest.raises(UserError, match="tiny_choice could not be loaded"):
        LmEval(tasks=("tiny_choice",), include_path="tasks").measure(llama(), ctx)
    with pytest.raises(UserError, match="its tokenizer"):
        LmEval(tasks=("tiny_choice",)).measure(llama(), Context())
    for settings, words in (
        ({"tasks": []}, "at least one"),
        ({"tasks": ["a"], "limit": 0}, "1 or more"),
        ({}, "is needed"),
    ):
        with pytest.raises(UserError, match=words):
            make(LmEval, settings, "judge")


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name.partition(".")[0] == "lm_eval":
            raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install trainwright\[lm-eval\]"), quiet():
        index.__wrapped__(None, True)
