"""Hints come where all answers failed, stay out of what is learned, and are in what was drawn."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.align.test_rollout import SMALL, context, steps
from trainwright.align.hinted_rollout import HintedRollout
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED
from trainwright.corpus.columns import CHOSEN, ID, MESSAGES, METADATA, PROMPT, TEXT
from trainwright.lm.asking import Asked
from trainwright.lm.logprobs import token_logprobs

GRADER = '''from trainwright.core.method import Task

GRADES = {grades}


class Script(Task):
    def grade(self, prompt, answer):
        assert "Hint" not in prompt
        return GRADES.pop(0)
'''


def scripted(tmp_path: Path, grades: list[float]) -> Any:
    (tmp_path / "script.py").write_text(GRADER.replace("{grades}", repr(grades)))
    ctx = context(16)
    ctx.root = tmp_path
    return steps(HintedRollout(**SMALL | {"task": {"use": "./script.py"}}), ctx, 1)[0], ctx


def test_only_prompts_that_failed_get_a_hint_and_it_is_not_learned(tmp_path: Path) -> None:
    """Of four prompts: all wrong, some right, all right, all wrong; with hints: some right, all wrong."""
    tries = [0.0] * 4 + [0.0, 1.0, 0.0, 0.0] + [1.0] * 4 + [0.0] * 4
    batch, ctx = scripted(tmp_path, tries + [0.0, 0.0, 1.0, 0.0] + [0.0] * 4)
    hinted = {int(g): bool(h) for g, h in zip(batch["group"], batch["hinted"], strict=True)}
    assert hinted == {0: True, 1: False, 2: False, 3: True}
    learned = (batch["targets"] != UNTRAINED).any(1)
    assert {int(g) for g in batch["group"][learned]} == {0, 1}
    assert batch["reward"][batch["group"] == 0].sum() == 1 and not batch["group_graded"][~learned].any()
    told = {name: float(v[0][0]) for name, v in ctx.notes.items()}
    assert (told["guide/failed"], told["guide/helped"], told["guide/dropped"]) == (0.5, 0.5, 0.5)
    assert told["rollout/reward"] == 5 / 16
    assert ctx.policy is not None
    plain = token_logprobs(ctx.policy, batch).logp.detach()
    for row in learned.nonzero()[:, 0].tolist():
        text = ctx.tokenizer.decode(batch["input_ids"][row])
        own = batch["targets"][row] != UNTRAINED
        near = float((plain[row] - batch["logp"][row])[own].abs().max())
        assert "Hint" not in text and (near > 1e-3) == bool(batch["hinted"][row])


def test_what_a_hint_is() -> None:
    talk = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "first, then"}]
    row = {ID: "a", TEXT: "", MESSAGES: json.dumps(talk), PROMPT: None, CHOSEN: None,
           METADATA: json.dumps({"clue": "think"})}
    assert HintedRollout(**SMALL)._hint(row) == "first,…"
    assert HintedRollout(**SMALL, part=1.0)._hint(row) == "first, then…"
    method, ctx = HintedRollout(**SMALL, hint="clue", template="{hint} / {prompt}"), context()
    assert method._hint(row) == "think"
    found = method._with_hint(Asked("one?", [1]), row, ctx)
    assert found.text == "one?" and "user\nthink / one?<" in ctx.tokenizer.decode(found.ids)
    with pytest.raises(UserError, match="the document 'a' has no hint: its metadata has no 'other'"):
        HintedRollout(**SMALL, hint="other")._question(row, ctx)
    with pytest.raises(ValueError, match="template must have"):
        HintedRollout(**SMALL, template="{prompt}")


def test_an_answer_with_a_hint_is_drawn_as_on_its_own(tmp_path: Path) -> None:
    """Its log-probabilities are the model's behind the hinted prompt."""
    batch, ctx = scripted(tmp_path, [0.0] * 4 + [0.5] * 12 + [1.0, 0.0, 0.0, 0.0])
    row = int((batch["group"] == 0).nonzero()[0])
    method = HintedRollout(**SMALL)
    numbers, rows = method._documents_of(0, ctx)
    assert int(batch["asked"][row]) == numbers[0] and ctx.policy is not None
    ids = method._with_hint(method._question(rows[0], ctx), rows[0], ctx).ids
    own = batch["targets"][row][batch["targets"][row] != UNTRAINED]
    whole = torch.tensor([[*ids, *own.tolist()]])
    with torch.no_grad():
        logp = ctx.policy.eval()(input_ids=whole).logits[0, :-1].log_softmax(-1)
    right = logp.gather(1, whole[0, 1:, None])[-len(own):, 0]
    torch.testing.assert_close(batch["logp"][row][batch["targets"][row] != UNTRAINED], right, atol=1e-5,
                               rtol=1e-5)
