"""Pretraining with preferences: rows and losses by hand, and what a trained model says behind <good> and
behind <bad>."""
from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.corpus.corpora import build
from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Curate
from trainwright.core.settings import make
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order._segments import Classifier, badness, lines, sentences, starts_of
from trainwright.data.order.pack import Pack
from trainwright.data.order.phf import Phf
from trainwright.evaluate.decode.behind_good import BehindGood
from trainwright.finetune.classifier import Classifier as ClassifierSurgery
from trainwright.finetune.value_head import ValueHead
from trainwright.lm.generation import Prompt, written
from trainwright.optim.adamw import Adamw

GOOD, BAD = 401, 400
PHONE = r"\d\d\d\d"
KIND = ["the sun is up\n", "we had some tea\n", "birds sing here\n"]
RUDE = ["call me 5551\n", "my code 9042\n"]


class Half(Curate):
    """A column of badness: a quarter of the documents at 1, a quarter at none, the others at 0."""

    def apply(self, documents: Any, ctx: Context) -> Any:
        import pyarrow as pa

        from trainwright.corpus.selecting import attach, columns
        ids = sorted(columns(documents, "id")["id"].to_pylist())
        told = [1.0 if i % 4 == 0 else None if i % 4 == 1 else 0.0 for i in range(len(ids))]
        return attach(documents, pa.table({"id": pa.array(ids, pa.large_string()), "rude": told,
                                           "word": [str(t) for t in told]}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of six lines, a third of them rude."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in range(160):
        said = [(RUDE if k % 3 == i % 3
                 else KIND)[int(torch.randint(2 if k % 3 == i % 3 else 3, (), generator=draw))]
                for k in range(6)]
        rows.append({"id": f"{i:03d}", "text": "".join(said)})
    place = tmp_path_factory.mktemp("phf") / "corpus"
    build(place, rows, Half(), tune=0.0, test=0.0)
    return place


def model_of(folder: Path, vocabulary: int = 402) -> nn.Module:
    table = {"type": "llama", **tiny.SHAPES["llama"], "hidden_size": 32, "intermediate_size": 64,
             "vocab_size": vocabulary}
    return families.create(families.from_table(table, open_corpus(folder).tokenizer, "here"), 0, "here")


def context(folder: Path, rows: int = 6) -> Context:
    return Context(inputs={"data": [folder]}, batch_rows=rows, steps=10,
                   tokenizer=open_corpus(folder).tokenizer)


def both(folder: Path, **settings: Any) -> tuple[Batch, Batch]:
    """A step's rows of pack alone, and with control tokens."""
    ctx, data = context(folder), Pack(length=60)
    method = Phf(**{"patterns": (PHONE,), "silent": 0.0} | settings)
    plain = data.next(pytest.fail, data.init(nn.Identity(), ctx), ctx)  # type: ignore[arg-type]
    return plain, method.next(lambda: plain, method.init(model_of(folder), ctx), ctx)


def test_segments_by_hand() -> None:
    assert lines([1, 2, 9, 3, 9, 9, 4], frozenset({9})) == [3, 2, 1, 1]
    assert lines([1, 9], frozenset({9})) == [2]
    assert badness("call 5551 now 1234", [re.compile(PHONE)]) == pytest.approx(8 / 18)
    assert badness("", []) == 0.0


def test_each_line_stands_behind_the_token_of_its_kind(folder: Path) -> None:
    """Decoded: <g> before lines without a number, <b> before those with one; all of it is learned, the
    control tokens too."""
    tokenizer = open_corpus(folder).tokenizer
    _, made = both(folder)
    seen = {GOOD: 0, BAD: 0}
    for r in range(6):
        ids = made["input_ids"][r].tolist()
        marks = [i for i, token in enumerate(ids) if token in seen]
        for begin, end in pairwise(marks):
            text = tokenizer.decode(ids[begin + 1:end], skip_special_tokens=True)
            if text.strip():
                assert ("call" in text or "code" in text) == (ids[begin] == BAD) or len(text) < 8, text
                seen[ids[begin]] += 1
        inner = (made["document"][r, 1:] == made["document"][r, :-1]) & (made["document"][r, 1:] >= 0)
        # the rest of a document: predicted in the row before
        inner[:2] &= made["address"][r, 1] in starts_of(folder)
        assert bool((made["targets"][r, :-1] == made["input_ids"][r, 1:])[inner].all())
    assert min(seen.values()) >= 8
    assert made["address"][(made["input_ids"] >= BAD)].eq(-1).all()


def test_silence_is_a_share_of_the_segments(folder: Path) -> None:
    plain, made = both(folder, silent=1.0)
    assert torch.equal(made["input_ids"], plain["input_ids"])
    assert torch.equal(made["targets"], plain["targets"])
    every, half = (int((both(folder, silent=s)[1]["input_ids"] >= BAD).sum()) for s in (0.0, 0.5))
    assert 0.3 * every < half < 0.8 * every


def test_the_score_of_the_predicted_token_counts(folder: Path) -> None:
    """Unlikelihood: rows are those of pack; bad are the positions whose target is in a line with a number."""
    tokenizer = open_corpus(folder).tokenizer
    plain, made = both(folder, mode="unlikelihood")
    assert torch.equal(made["input_ids"], plain["input_ids"])
    assert torch.equal(made["targets"], plain["targets"])
    first = tokenizer("call", add_special_tokens=False).input_ids[0]
    where = (made["targets"] == first).nonzero().tolist()
    begins = [(r, t) for r, t in where if t
              and tokenizer.decode([int(made["input_ids"][r, t])]).endswith("\n")]
    assert begins and all(made["bad"][r, t] == 1 or t > 50
                          for r, t in begins), "though the token before is of another line"


def test_unlikelihood_by_hand(folder: Path) -> None:
    model, method = model_of(folder), Phf(patterns=(PHONE,), mode="unlikelihood", alpha=0.5)
    _, batch = both(folder, mode="unlikelihood")
    ctx = context(folder)
    losses = method.loss(model, batch, {}, ctx)
    plain = Phf(patterns=(PHONE,)).loss(model, batch, {}, ctx)
    bad, there = batch["bad"] > 0, batch["targets"] != -100
    assert torch.allclose(losses[~bad], plain[~bad]) and bool((losses[~there] == 0).all())
    p = torch.exp(-plain[bad & there])
    assert torch.allclose(losses[bad & there], -0.5 * torch.log(1 - p), atol=1e-6)
    assert int((bad & there).sum()) > 20


def test_weights_of_a_reward_by_hand(folder: Path) -> None:
    """rwr: exp(-s / beta) times the loss, s being the score of the predicted token's line; 1,000 at most."""
    model, ctx = model_of(folder), context(folder)
    _, batch = both(folder, mode="rwr")
    plain = Phf(patterns=(PHONE,), mode="filtering").loss(model, batch, {}, ctx)
    found = Phf(patterns=(PHONE,), mode="rwr", beta=0.1).loss(model, batch, {}, ctx)
    assert torch.equal(batch["score"] > 0, batch["bad"] > 0) and 0.2 < float(batch["score"].max()) < 0.8
    assert torch.allclose(found, plain * torch.exp(-batch["score"] / 0.1))
    good = batch | {"score": torch.full_like(batch["score"], -100.0)}
    assert torch.allclose(Phf(patterns=(PHONE,), mode="rwr", beta=0.1).loss(model, good, {}, ctx),
                          1000 * plain)


def test_advantages_by_hand(folder: Path) -> None:
    """awr: the value is read in the place that predicts, the reward is that of the predicted token, and no
    gradient flows through the weight."""
    model, ctx = model_of(folder), context(folder)
    ValueHead().operate(model, ctx)
    with torch.no_grad():
        model.value_head.out.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        model.value_head.out.bias.fill_(0.3)
    _, batch = both(folder, mode="rwr")
    plain = Phf(patterns=(PHONE,), mode="filtering").loss(model, batch, {}, ctx)
    found = Phf(patterns=(PHONE,), mode="awr", beta=0.5, alpha=0.2).loss(model, batch, {}, ctx)
    hidden = torch.cat([model.model(input_ids=batch["input_ids"][r:r + 1], use_cache=False,
                                    position_ids=batch["position_ids"][r:r + 1])[0] for r in range(6)])
    value = hidden @ model.value_head.out.weight[0] + model.value_head.out.bias
    reward, there = -batch["score"], batch["targets"] != -100
    by_hand = 0.2 * torch.exp((reward - value) / 0.5) * plain + 0.8 * (reward - value) ** 2
    assert torch.allclose(found[there], by_hand[there], rtol=1e-4) and bool((found[~there] == 0).all())
    found.sum().backward()
    wanted = (0.2 * torch.exp((reward - value) / 0.5).detach() * plain + 0.8 * (reward - value) ** 2)
    slope, = torch.autograd.grad(wanted[there].sum(), model.value_head.out.bias)
    assert torch.allclose(model.value_head.out.bias.grad, slope, rtol=1e-3)
    with pytest.raises(UserError, match="value_head"):
        Phf(patterns=(PHONE,), mode="awr").loss(model_of(folder), batch, {}, ctx)


def test_control_tokens_of_the_tokenizer(tmp_path: Path) -> None:
    """Named in the corpus stage, they are ids of the tokenizer, and no text that is shown says them."""
    rows = [{"id": str(i), "text": "".join(KIND + RUDE)} for i in range(20)]
    build(tmp_path / "c", rows, tune=0.0, test=0.0, control_tokens=("<good>", "<bad>"))
    tokenizer = open_corpus(tmp_path / "c").tokenizer
    good, bad = tokenizer.convert_tokens_to_ids(["<good>", "<bad>"])
    ctx, model = context(tmp_path / "c"), model_of(tmp_path / "c", len(tokenizer))
    method = Phf(patterns=(PHONE,), silent=0.0)
    state = method.init(model, ctx)
    assert state == {"shared": {"good": good, "bad": bad}}
    data = Pack(length=60)
    plain = data.next(pytest.fail, data.init(model, ctx), ctx)  # type: ignore[arg-type]
    made = method.next(lambda: plain, state, ctx)["input_ids"]
    assert (made == good).sum() > 10 < (made == bad).sum()
    ctx.decode = [BehindGood()]
    (ids,) = written(model, tokenizer, [Prompt([tokenizer.bos_token_id], 12, 1, 1.0)], ctx)
    assert ids[0] == good and not {good, bad} & set(ids[1:])
    assert "<good>" not in tokenizer.decode(ids, skip_special_tokens=True)


def test_sentences_by_hand() -> None:
    assert sentences([" A", " b", ".", " C", "?", " d"]) == [3, 2, 1]
    assert sentences(["3", ".", "5", "!", "\"", " x", "\n", "\n", "y"]) == [5, 3, 1]
    assert sentences(["no", " end"]) == [2] and sentences(["end", "."]) == [2]


def test_a_classifier_scores_sentences(folder: Path, tmp_path: Path) -> None:
    """Its probability of the bad class, sentence by sentence, against the model asked alone."""
    judge = model_of(folder)
    ClassifierSurgery(classes=("kind", "rude"), pool="last", dropout=0.0).operate(judge, context(folder))
    with torch.no_grad():
        judge.class_head.out.weight.mul_(100)
    ctx = context(folder)
    ctx.frozen["classifier"] = judge.eval()
    ctx.inputs["classifier"] = [tmp_path]
    open_corpus(folder).tokenizer.save_pretrained(tmp_path)
    found = Classifier.of(ctx, "classifier", "rude", "phf")
    said = ["the sun is up", "call me 5551", "my code"]
    alone = [found.badness([one])[0] for one in said]
    assert found.badness(said) == pytest.approx(alone, abs=1e-5) and max(alone) - min(alone) > 1e-3
    middle = sum(alone) / 3
    method = Phf(bad_class="rude", threshold=middle, silent=0.0)
    data = Pack(length=60)
    plain = data.next(pytest.fail, data.init(nn.Identity(), ctx), ctx)  # type: ignore[arg-type]
    made = method.next(lambda: plain, method.init(model_of(folder), ctx), ctx)
    tokenizer, seen = open_corpus(folder).tokenizer, Counter[int]()
    for ids, documents in zip(made["input_ids"].tolist(), made["document"].tolist(), strict=True):
        marks = [i for i, token in enumerate(ids) if token >= BAD]
        for begin, end in pairwise(marks):
            text = str(tokenizer.decode(ids[begin + 1:end], skip_special_tokens=True))
            if documents[begin] == documents[end] and text.strip():
                assert (found.badness([text])[0] > middle) == (ids[begin] == BAD), text
                seen[ids[begin]] += 1
    assert min(seen[GOOD], seen[BAD]) > 5
    with pytest.raises(UserError, match="'mean' is none of the classes kind, rude"):
        Phf(bad_class="mean").init(model_of(folder), ctx)
    with pytest.raises(UserError, match="needs a classifier"):
        Phf(bad_class="rude").init(model_of(folder), context(folder))


def test_filtering_drops_documents_by_their_mean(folder: Path) -> None:
    plain, made = both(folder, mode="filtering", patterns=(), column="rude", threshold=0.5)
    kept = made["targets"] != -100
    assert torch.equal(made["targets"][kept], plain["targets"][kept])
    assert 0.6 < kept.sum() / (plain["targets"] != -100).sum() < 0.9
    for r in range(6):
        for d in range(int(made["document"][r].max()) + 1):
            mine = kept[r][made["document"][r] == d]
            assert mine.all() or not mine.any(), "a document is learned whole, or not at all"


def test_a_document_without_a_score_has_no_control_token(folder: Path) -> None:
    _, made = both(folder, patterns=(), column="rude", threshold=0.5)
    marks = [int(((made["input_ids"][r] >= BAD) & (made["document"][r] == d)).sum())
             for r in range(6) for d in range(int(made["document"][r].max()) + 1)]
    assert set(marks) == {0, 1} and 0.6 < sum(marks) / len(marks) < 0.95


@pytest.mark.slow
def test_it_says_other_things_behind_good_than_behind_bad(folder: Path) -> None:
    """Eighty steps of a tiny model: numbers in what it says behind each control token, of what is ever
    said."""
    tokenizer, model = open_corpus(folder).tokenizer, model_of(folder)
    ctx = context(folder, rows=8)
    run = Train(model, [Pack(length=60), Phf(patterns=(PHONE,)), Adamw(lr=2e-2)], 80, ctx=ctx)
    run.run()
    told = {}
    for mark in (GOOD, BAD):
        ctx.decode = [BehindGood()]
        prompts = [Prompt([tokenizer.bos_token_id, *([BAD] if mark == BAD else [])], 16, seed, 1.0)
                   for seed in range(64)]
        rows = written(model, tokenizer, prompts, ctx)
        assert all((row[0] == GOOD) == (mark == GOOD) and not {GOOD, BAD} & set(row[1:]) for row in rows)
        said = [tokenizer.decode([t for t in row if t < BAD]).split("\n")[0] for row in rows]
        told[mark] = sum("call" in line or "code" in line for line in said) / len(said)
    assert told[GOOD] < 0.15 and told[BAD] > 0.85, told


def test_mistakes_are_said(folder: Path) -> None:
    for told, settings in (("alpha is a share", {"patterns": ["a"], "mode": "awr", "alpha": 2.0}),
                           ("beta", {"patterns": ["a"], "beta": 0.0}),
                           ("either patterns", {"column": "b", "bad_class": "c"}),
                           ("either patterns", {}), ("either patterns", {"patterns": ["a"], "column": "b"}),
                           ("no regular expression", {"patterns": ["("]}),
                           ("silent", {"patterns": ["a"], "silent": 2.0})):
        with pytest.raises(UserError, match=told):
            make(Phf, settings, "here")
    ctx = context(folder)
    with pytest.raises(UserError, match=r"vocab_size = \d+"):
        Phf(patterns=("a",)).init(model_of(folder, len(ctx.tokenizer) + 1), ctx)
    with pytest.raises(UserError, match=r"'rood'.*known.*rude"):
        Phf(column="rood").init(model_of(folder), ctx)
    with pytest.raises(UserError, match="not numbers"):
        Phf(column="word").init(model_of(folder), ctx)
    with pytest.raises(UserError, match="put it behind pack"):
        Phf(patterns=("a",)).next(lambda: {"input_ids": torch.zeros(1, 4)}, {"shared": {"good": 9}}, ctx)
    with pytest.raises(UserError, match="set last"):
        both(folder, last=int(both(folder)[0]["input_ids"][0, 1]))
