"""Emulated fine-tuning: the log-probabilities of three models added up, on one prefix."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.align.pairs import context, moved
from trainwright import families
from trainwright.align.eft import Eft, Follower
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.generation import Prompt, written


def logp(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits[:, -1].float().log_softmax(-1)


def three() -> tuple[Any, Any, Any]:
    """A model that writes, a tuned one, and what that was before."""
    return moved(1, 0.2).eval(), moved(2, 0.2).eval(), moved(3, 0.2).eval()


def situation(tuned: Any, before: Any, *decode: Any, prompts: Any = ()) -> Context:
    ctx = context()
    ctx.frozen |= {"teacher": tuned, "reference": before}
    ctx.decode, ctx.prompts = decode, prompts
    return ctx


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_ratio_is_added_before_the_temperature_divides(temperature: float) -> None:
    (large, tuned, before), ids = three(), torch.arange(3, 15).view(2, 6)
    ctx = situation(tuned, before, prompts=[Prompt(row, 4, temperature=temperature) for row in ids.tolist()])
    with torch.no_grad():
        made = Eft(beta=0.7).processor(large, ctx)(ids, large(input_ids=ids).logits[:, -1] / temperature)
        right = (logp(large, ids) + 0.7 * (logp(tuned, ids) - logp(before, ids))) / temperature
    torch.testing.assert_close(made.log_softmax(-1), right.log_softmax(-1), rtol=1e-4, atol=1e-5)


def test_where_the_writer_is_the_model_of_before_the_tuned_one_writes() -> None:
    _, tuned, before = three()
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        made = Eft().processor(before, situation(tuned, before))(ids, before(input_ids=ids).logits[:, -1])
        torch.testing.assert_close(made.log_softmax(-1), logp(tuned, ids), rtol=1e-4, atol=1e-5)
    tokenizer, asked = tiny.tokenizer(), [Prompt([5, 9, 20], 12), Prompt([7, 8, 9, 10, 11], 12)]
    emulated = written(before, tokenizer, asked, situation(tuned, before, Eft()))
    assert emulated == written(tuned, tokenizer, asked, Context())
    assert emulated != written(before, tokenizer, asked, Context())


def test_a_row_is_read_as_if_it_were_alone_however_it_is_padded() -> None:
    model = moved(2, 0.2).eval()
    prompts = [Prompt([5, 9, 20], 4), Prompt([7, 8, 9, 10, 11], 4)]
    follow, new = Follower(model, situation(model, model, prompts=prompts)), [[30, 31, 32], [40, 41, 42]]
    rows = torch.tensor([[0, 0, 5, 9, 20], [7, 8, 9, 10, 11]])
    for step in range(3):
        with torch.no_grad():
            found = follow(rows)
            for row, prompt in enumerate(prompts):
                alone = logp(model, torch.tensor([[*prompt.ids, *new[row][:step]]]))
                torch.testing.assert_close(found[row:row + 1], alone, rtol=1e-4, atol=1e-5)
        rows = torch.cat([rows, torch.tensor(new)[:, step:step + 1]], 1)


def test_models_may_be_named_by_paths(tmp_path: Path) -> None:
    large, tuned, before = three()
    for name, model in (("tuned", tuned), ("before", before)):
        families.save(model, tmp_path / name, tiny.tokenizer())
    method = Eft(tuned=str(tmp_path / "tuned"), before=str(tmp_path / "before"))
    ids = torch.arange(3, 9)[None]
    assert method.asks() == {} and set(Eft(tuned="x").asks()) == {"reference"}
    scores = large(input_ids=ids).logits[:, -1].detach()
    made = method.processor(large, Context())(ids, scores)
    torch.testing.assert_close(made, Eft().processor(large, situation(tuned, before))(ids, scores))


def test_other_vocabularies_are_an_error(tmp_path: Path) -> None:
    large, tuned, before = three()
    tuned.resize_token_embeddings(400)
    with pytest.raises(UserError, match="400 tokens and the model that writes 300"):
        Eft().processor(large, situation(tuned, before))
    with pytest.raises(UserError, match="there is no tuned model"):
        Eft().processor(large, Context())
    from trainwright.corpus import bpe
    families.save(before, tmp_path / "other", bpe.train(["a b c d e f g h"] * 9, 265, []))
    with pytest.raises(UserError, match="another tokenizer"):
        Eft(tuned=str(tmp_path / "other")).processor(large, situation(tuned, before))
