"""Log-probabilities of a reference as a column: those that the objective would find by itself."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.align.pairs import LENGTH, context, moved
from trainwright import families
from trainwright.align._pairs import reference_pairs
from trainwright.align.dpo import Dpo
from trainwright.align.reference_log_probs import ReferenceLogProbs
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import building
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.examples import Examples

FIELDS = ("chosen", "rejected", "reference")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus again, with what a model makes of its pairs."""
    place = tmp_path_factory.mktemp("asked")
    families.save(moved(), place / "model", tiny.tokenizer())
    settings = building.CorpusSettings(tokenizer=str(tiny.corpus()), data=tiny.corpus())
    ctx = Context(inputs={"data": [tiny.corpus()], "model": [place / "model"]}, folder=place / "work",
                  root=place)
    (place / "work").mkdir()
    (place / "corpus").mkdir()
    building.build(place / "corpus", [ReferenceLogProbs(length=LENGTH, batch_tokens=256)], settings, ctx,
                   place / "cache", lambda line: None)
    return place / "corpus"


def rows(asked: Path, length: int = LENGTH, **more: Any) -> dict[str, Any]:
    ctx = context()
    ctx.inputs = {"data": [asked]}
    data = Examples(fields=FIELDS, domains=("chat",), length=length, **more)
    return data.next(lambda: {}, data.init(ctx.policy, ctx), ctx)


def test_the_column_is_what_the_reference_says(asked: Path) -> None:
    batch, ctx = rows(asked), context()
    ctx.frozen["reference"] = moved().eval()
    on_the_way = reference_pairs("model", tiny.model(), batch, ctx, packed=True)
    from_column = reference_pairs("column", tiny.model(), batch, ctx, packed=True)
    for a, b in zip(on_the_way, from_column, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-5, atol=1e-5)
    values = [Dpo(reference=how).loss(tiny.model(), batch, {}, ctx) for how in ("model", "column")]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)


def test_only_pairs_for_training_have_one(asked: Path) -> None:
    corpus = open_corpus(asked)
    assert corpus.columns["reference"] == "text"
    found = corpus.examples("train")
    told = found.rows(range(len(found)), ["id", "chosen", "reference"])
    lacks = {(row["chosen"] is None, row["reference"] is None) for row in told}
    assert lacks == {(True, True), (False, False)}
    with pytest.raises(UserError, match="has no reference"):
        rows(asked, split="test")


def test_tokens_that_are_not_those_that_were_scored_are_refused(asked: Path) -> None:
    with pytest.raises(UserError, match=r"other tokens: reference_log_probs needs the same length \(24\)"):
        rows(asked, length=24)


def test_a_pair_needs_both_answers_beside_it(asked: Path) -> None:
    ctx = context()
    ctx.inputs = {"data": [asked]}
    with pytest.raises(UserError, match="belongs to a pair"):
        Examples(fields=("chosen", "reference"), length=LENGTH).init(ctx.policy, ctx)
    with pytest.raises(UserError, match="no chosen_reference"):
        Dpo(reference="column").loss(tiny.model(), {n: t for n, t in rows(asked).items()
                                                    if "reference" not in n}, {}, ctx)


def test_the_reference_may_read_another_prompt(tmp_path: Path) -> None:
    """What it makes of the answers behind the short prompt, beside the tokens of the long one."""
    import daft

    place = tmp_path / "model"
    families.save(moved(), place, tiny.tokenizer())
    (tmp_path / "work").mkdir()
    long, short = ([{"role": "user", "content": text}] for text in ("how many apples are left", "apples"))
    said = {name: json.dumps([{"role": "assistant", "content": text}])
            for name, text in (("chosen", "some more"), ("rejected", "today"))}
    pair = {"id": "a", "text": "t", "messages": None} | said
    table = daft.from_pylist([pair | {"prompt": json.dumps(long), "short": json.dumps(short)},
                              pair | {"id": "b", "prompt": json.dumps(short), "short": json.dumps(short)}])
    ctx = Context(inputs={"data": [tiny.corpus()], "model": [place]}, folder=tmp_path / "work")
    own, other = (ReferenceLogProbs(length=LENGTH, prompt=prompt).apply(table, ctx).to_pydict()["reference"]
                  for prompt in ("prompt", "short"))
    own, other = ([json.loads(one) for one in told] for told in (own, other))
    assert own[0]["of"] == other[0]["of"] and own[1] == other[1]
    assert other[0]["chosen"] == pytest.approx(own[1]["chosen"], abs=1e-4) != own[0]["chosen"]
    with pytest.raises(UserError, match="no column 'short'"):
        ReferenceLogProbs(length=LENGTH, prompt="short").apply(table.exclude("short"), Context(
            inputs=ctx.inputs, folder=place))
