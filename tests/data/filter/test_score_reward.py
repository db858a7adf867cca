"""Rewards are those of the model by itself, turn by turn."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
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


def test_a_reward_model_is_loaded_as_all_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No code of its folder is run or offered to be, and tensors that are missing are not made up."""
    reward_model(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    file = tmp_path / "m" / "config.json"
    auto = {"auto_map": {"AutoModelForSequenceClassification": "mine.Model"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | auto))
    rows, ctx = frame([{"id": "0", "messages": talk("a", "b")}]), context(tmp_path / "s", m=tmp_path / "m")
    assert told(ScoreReward().apply(rows, ctx))["0"]["reward"] is not None
    assert not (tmp_path / "ran").exists() and "y/N" not in capsys.readouterr().out
    weights = load_file(tmp_path / "m" / "model.safetensors")
    save_file({n: t for n, t in weights.items() if n != "score.weight"}, tmp_path / "m" / "model.safetensors",
              {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the tensors score\.weight"):
        ScoreReward().apply(rows, context(tmp_path / "t", m=tmp_path / "m"))
    file.write_text("{")
    with pytest.raises(UserError, match=r"config\.json holds no JSON"):
        ScoreReward().apply(rows, context(tmp_path / "u", m=tmp_path / "m"))
