"""Rewards are those of the model by itself, turn by turn."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.data.filter.test_score_evol import context, talk
from tests.data.frames import frame, told
from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.data.filter.score_reward import ScoreReward

SAID = (["the farmer sows", "rain falls"], ["apples", "two", "of wheat", "none"], ["apples", "ten"])


def reward_model(folder: Path, labels: int = 1, **more: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(LlamaConfig(
            **tiny.SHAPES[tiny.LLAMA], vocab_size=len(tiny.tokenizer()), num_labels=labels, **more)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("template", [True, False])
def test_against_the_model_alone(tmp_path: Path, template: bool) -> None:
    tokenizer = tiny.tokenizer()
    model = reward_model(tmp_path / "m", pad_token_id=None if template else tokenizer.eos_token_id)
    tokenizer.save_pretrained(tmp_path / "m")
    if not template:
        (tmp_path / "m" / "chat_template.jinja").unlink()
    rows = frame([*({"id": str(i), "messages": talk(*one)} for i, one in enumerate(SAID)),
                  {"id": "plain", "text": "rain"}])
    made = told(ScoreReward().apply(rows, context(tmp_path / "s", m=tmp_path / "m")))
    for i, one in enumerate(SAID):
        wanted = []
        for end in range(2, len(one) + 1, 2):
            text = tokenizer.apply_chat_template(talk(*one[:end]), tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] if template \
                else tokenizer(*one[end - 2:end])["input_ids"]
            with torch.no_grad():
                wanted.append(float(model(input_ids=torch.tensor([ids])).logits[0, 0]))
        assert made[str(i)]["reward"] == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    assert made["plain"]["reward"] is None


def test_a_classifier_of_several_classes_is_no_reward_model(tmp_path: Path) -> None:
    reward_model(tmp_path / "m", labels=2)
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="has 2 outputs"):
        ScoreReward().apply(frame([{"id": "0"}]), context(tmp_path / "s", m=tmp_path / "m"))
