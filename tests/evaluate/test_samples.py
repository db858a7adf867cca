"""Samples depend on the seed alone and are kept for the report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.corpus.corpora import build, texts
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.recipe import parse, read
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.samples import Samples
from trainwright.life.run import run
from trainwright.planning.plan import plan
from trainwright.storage.store import Store


def test_the_same_seed_writes_the_same_text_whatever_was_drawn_before(tmp_path: Path):
    build(tmp_path / "c", texts(20))
    tokenizer = open_corpus(tmp_path / "c").tokenizer
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    shown = []
    for seed in (0, 0, 1):
        torch.rand(3)
        state, ctx = torch.get_rng_state(), Context(tokenizer=tokenizer, seed=seed)
        numbers = Samples(prompts=("number", "x"), new_tokens=12).measure(model, ctx)
        assert (
            torch.equal(state, torch.get_rng_state())
            and 0 < numbers["sample_tokens"] <= 12
            and 0 < numbers["distinct_2"] <= 1
        )
        shown.append(ctx.texts)
    assert shown[0] == shown[1] != shown[2] and set(shown[0]) == {"sample/0", "sample/1"}
    assert shown[0]["sample/0"].startswith("number")


def test_what_is_missing_is_said(tmp_path: Path):
    build(tmp_path / "c", texts(20))
    with pytest.raises(ValueError, match="prompt"):
        Samples(prompts=())
    with pytest.raises(UserError, match="tokenizer"):
        Samples(prompts=("a",)).measure(torch.nn.Identity(), Context())
    with pytest.raises(UserError, match="template"):
        Samples(prompts=("a",), chat=True).measure(
            torch.nn.Identity(), Context(tokenizer=open_corpus(tmp_path / "c").tokenizer)
        )


def test_a_sample_ends_where_the_positions_do(tmp_path: Path):
    build(tmp_path / "c", texts(20))
    ctx = Context(tokenizer=open_corpus(tmp_path / "c").tokenizer)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    numbers = Samples(prompts=("x",), new_tokens=50, temperature=0).measure(model, ctx)
    assert 1 <= numbers["sample_tokens"] < 8
    with pytest.raises(UserError, match="8 positions"):
        Samples(prompts=("many words " * 9,)).measure(model, ctx)


@pytest.mark.slow
def test_the_decoding_methods_of_a_stage_shape_them(life: Path) -> None:
    """In a training stage, and in an evaluation: there the likeliest token alone is left."""
    said = {}
    for name, decode in (("plain", []), ("likeliest", [{"use": "min_p", "p": 1.0}])):
        samples = [{"use": "samples", "prompts": ["the sea", "def"], "new_tokens": 12}, *decode]
        table, _ = read(life)
        corpus, base, *_ = table["stage"]
        base |= {"steps": 2, "methods": [*base["methods"], *samples]}
        judge = {"name": "judge", "kind": "evaluate", "from": {"models": ["base"]}, "methods": samples}
        table["stage"] = [corpus, base, judge]
        made = run(parse(table, life), Store(life.parent / name))
        said[name] = [made["base"].manifest["texts"], made["judge"].manifest["texts"]]
        planned = str(plan(parse(table, life), Store(life.parent / name), estimate=False))
        assert planned.count("min_p") == 2 * len(decode)
    texts, judged = said["likeliest"]
    assert {f"base/{n}": text for n, text in texts.items()} == judged, "one seed, one text"
    assert judged != said["plain"][1]
