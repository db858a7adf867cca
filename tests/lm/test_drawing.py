"""What is drawn token by token is what the whole text, read anew for each token, would give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.drawing import Draw, Drawing
from trainwright.lm.generation import Prompt, sampled

TEXTS = ("the old farmer", "def walk", "x", "rain falls")
ENDS = set(range(5, 300, 12))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny model whose logits are far apart, and which ends some of its answers."""
    made = tiny.model(request.param, 3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)
    made.generation_config.eos_token_id = sorted(ENDS)
    return made.eval()


def prompts() -> list[Prompt]:
    """Two answers to each text, one text in two places."""
    texts = [tiny.tokenizer()(text)["input_ids"] for text in (*TEXTS, TEXTS[0], *TEXTS)]
    return [Prompt(ids, 12, seed, 1.0 if seed % 2 else 1.3) for seed, ids in enumerate(texts)]


def by_hand(model: Any, prompt: Prompt) -> tuple[list[int], list[float]]:
    """Without a cache or a batch, in NumPy."""
    numbers = torch.rand(prompt.new_tokens, dtype=torch.float64,
                         generator=torch.Generator().manual_seed(prompt.seed)).numpy()
    said, told = list[int](), list[float]()
    while len(said) < prompt.new_tokens and not set(said) & ENDS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt.ids, *said]])).logits[0, -1]
        p = np.exp((logits.double().numpy() - float(logits.max())) / prompt.temperature)
        p /= p.sum()
        token = int((p.cumsum() <= numbers[len(said)]).sum())
        said.append(token)
        told.append(float(np.log(p[token])))
    return said, told


def test_it_draws_what_the_model_says_of_the_whole_text(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ctx = prompts(), Context()
    found = sampled(model, tiny.tokenizer(), asked, ctx)
    for prompt, one in zip(asked, found, strict=True):
        ids, logp = by_hand(model, prompt)
        assert one.ids == ids
        assert one.logp == pytest.approx(logp, abs=1e-4)
    assert 2 < sum(len(one.ids) < 12 for one in found) < len(asked), "some have ended, and left the batch"
    monkeypatch.setattr(Drawing, "of", lambda model: None)
    by_transformers = sampled(model, tiny.tokenizer(), asked, ctx)
    assert [one.ids for one in by_transformers] == [one.ids for one in found]


def test_a_prompt_is_read_once_for_all_its_answers_and_a_token_once(model: Any) -> None:
    read = list[tuple[int, ...]]()
    hook = model.register_forward_pre_hook(lambda module, given, named: read.append(named["input_ids"].shape),
                                           with_kwargs=True)
    try:
        drawing = Drawing.of(model)
        assert drawing is not None
        with torch.no_grad():
            told = drawing.answers(prompts(), ())
    finally:
        hook.remove()
    assert told is not None and all(len(one.ids) == 12 for one in told)
    width = max(len(p.ids) for p in prompts())
    assert read == [(len(TEXTS), width), *[(len(prompts()), 1)] * 11]


def test_draws_follow_the_softmax_at_their_temperature() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, 0.5]])
    draw = Draw([Prompt([1], 4000, 5, 0.7)], torch.device("cpu"))
    found: list[tuple[Tensor, Tensor]] = [draw(scores) for _ in range(4000)]
    tokens = torch.cat([token for token, _ in found])
    p = (scores[0] / 0.7).softmax(0)
    assert (tokens.bincount(minlength=5) / 4000 - p).abs().max() < 0.03, "about four standard errors"
    torch.testing.assert_close(torch.cat([logp for _, logp in found]), p.log()[tokens])


def test_what_keeps_more_or_less_than_keys_and_values_has_another_way() -> None:
    table = {"type": "mistral", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
             "vocab_size": 300}
    for window, quick in ((None, True), (8, False)):
        config = families.from_table(table | {"sliding_window": window}, None, "here")
        assert (Drawing.of(families.create(config, 0, "here")) is not None) is quick


def test_scores_that_are_no_numbers_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no numbers \(NaN\) as scores"):
        Draw([Prompt([1], 4, 0, 1.0)], torch.device("cpu"))(torch.full((1, 5), torch.nan))
