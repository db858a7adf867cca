"""Models as graders: which tokens are compared, and a model of encoder and decoder."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from tests.data.filter.test_score_evol import context, saved
from trainwright import families
from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.data.filter.score_evol import GRADES
from trainwright.lm.grading import Grader, answer_tokens


class Letters:
    """A tokenizer that makes a token of each character."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": list(map(ord, text))}


def test_answers_are_told_apart_by_their_first_other_token() -> None:
    assert answer_tokens(Letters(), ["1", "2"], False, "test") == ((), (49, 50))
    assert answer_tokens(Letters(), ["1", "2"], True, "test") == ((32,), (49, 50))
    assert answer_tokens(Letters(), ["no", "nay"], False, "test") == ((110,), (111, 97))
    for answers in (["yes", "yes!"], ["ab", "ac", "b", "bb"]):
        with pytest.raises(UserError, match="with the same token"):
            answer_tokens(Letters(), answers, False, "test")


def test_a_long_prompt_loses_the_end_of_its_longest_part(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    model = saved(tmp_path / "m")
    grader = Grader.of(model, GRADES, context(tmp_path / "s", m=model), "test", 40, 512)
    ids = grader.ids("Judge {instruction}: {response} now", {"instruction": "the", "response": "wheat " * 99})
    text = tiny.tokenizer().decode(ids)
    assert 30 < len(ids) <= 40 and "Judge the: wheat" in text and text.split("<|im_end|>")[0].endswith("now")


def test_an_encoder_reads_the_prompt_and_the_decoder_begins_the_answer(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(
            vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=tokenizer.eos_token_id)).eval()
    (tmp_path / "m").mkdir()
    families.save(model, tmp_path / "m", tokenizer)
    grader = Grader.of(tmp_path / "m", {"yes": 1.0, "no": 0.0}, context(tmp_path / "s", m=tmp_path / "m"),
                       "test", 64, 128)
    prompts = [grader.ids("Is it {text}?", {"text": text}) for text in ("rain", "a quiet valley", "4")]
    for ids, found in zip(prompts, grader.grades(prompts), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
        yes, no = (tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in ("yes", "no"))
        assert found == pytest.approx(float(torch.sigmoid(logits[yes] - logits[no])), rel=1e-4)
