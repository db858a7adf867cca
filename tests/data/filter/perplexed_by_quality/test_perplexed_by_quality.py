"""An n-gram model of harmful text: its probabilities, its perplexities, and which side goes."""
from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.frames import frame, told
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.filter.perplexed_by_quality import _arpa, _kneser_ney
from trainwright.data.filter.perplexed_by_quality._valley import valley
from trainwright.data.filter.perplexed_by_quality.perplexed_by_quality import PerplexedByQuality

HARM = ["hate", "kill", "blood", "cruel", "strike", "burn", "wound", "enemy", "fear", "dark", "rage", "venom"]
MILD = ["garden", "tea", "letter", "window", "spring", "river", "music", "bread", "field", "morning", "lamp",
        "kind"]
BOTH = ["the", "of", "a", "to", "and", "in", "is"]


def text(kind: list[str], draw: random.Random, words: int = 60) -> str:
    """Lines in which words of one kind follow each other by a fixed rule, with common words between them."""
    out: list[str] = []
    at = draw.randrange(len(kind))
    for i in range(words):
        at = (at * 5 + draw.randrange(3)) % len(kind)
        out += [kind[at], draw.choice(BOTH)] + (["\n"] if i % 9 == 8 else [])
    return " ".join(out)


def harmful(folder: Path, n: int = 60) -> None:
    draw = random.Random(0)
    (folder / "harm.txt").write_text("\n".join(text(HARM, draw) for _ in range(n)))


def sentences(n: int, draw: random.Random) -> list[list[str]]:
    """Sentences of a skewed vocabulary, so that all counts occur; some short, one empty."""
    weights = [1 / (i + 1) for i in range(60)]
    return [draw.choices([f"w{i}" for i in range(60)], weights, k=draw.randrange(0, 12)) for _ in range(n)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, _arpa.Model]:
    file = tmp_path_factory.mktemp("model") / "m.arpa"
    _kneser_ney.write(sentences(400, random.Random(1)), 4, file)
    return file, _arpa.read(file)


def test_bigrams_by_hand(tmp_path: Path) -> None:
    """Two sentences, "a b" and "a c": the equation with the discounts of a text that is too small to
    estimate them."""
    _kneser_ney.write([["a", "b"], ["a", "c"]], 2, tmp_path / "m.arpa")
    found = _arpa.read(tmp_path / "m.arpa")
    # bigrams: <s> a (2), a b, a c, b </s>, c </s>; words before: a 1, b 1, c 1, </s> 2; V = a b c </s> <unk>
    unknown = (3 * 0.5 + 1.0) / 5 / 5
    a, end = (1 - 0.5) / 5 + unknown, (2 - 1) / 5 + unknown
    a_after_begin = (2 - 1) / 2 + 1 / 2 * a
    b_after_a = (1 - 0.5) / 2 + (0.5 + 0.5) / 2 * a
    end_after_b = (1 - 0.5) / 1 + 0.5 * end
    logs, words = found.logs([["a", "b"], ["x"]])
    assert 10 ** logs[0] == pytest.approx(a_after_begin * b_after_a * end_after_b, rel=1e-6)
    expected = 0.5 * unknown * end
    assert 10 ** logs[1] == pytest.approx(expected, rel=1e-6), "an unknown word, and the end after it"
    assert words.tolist() == [3, 2]


def test_probabilities_after_each_context_sum_to_one(model: tuple[Path, _arpa.Model]) -> None:
    """Over all words with <unk> and </s>: after contexts of every length, seen and unseen."""
    found, draw = model[1], random.Random(2)
    vocabulary = [w for w in found.words if w != "<s>"]
    for context in [[], ["w0"], ["w59", "w58"], *sentences(6, draw)]:
        before = found.logs([context])[0][0] - _ends(found, context)
        chances = [10 ** (found.logs([[*context, w]])[0][0] - _ends(found, [*context, w]) - before)
                   for w in vocabulary
                   if w not in ("</s>", "<unk>")]
        unknown = 10 ** (found.logs([[*context, "never"]])[0][0] - _ends(found, [*context, "never"]) - before)
        assert sum(chances) + unknown + 10 ** _ends(found, context) == pytest.approx(1, abs=1e-5)


def _ends(found: _arpa.Model, context: list[str]) -> float:
    """log10 p(</s> | context)."""
    begin, end = found.words["<s>"], found.words["</s>"]
    ids = np.array([begin, *(found.words.get(w, found.words["<unk>"]) for w in context), end],
                   dtype=np.uint64)
    return float(found._each(ids, np.arange(len(ids)))[-1])


def test_discounts_are_chen_and_goodmans() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 10, 5, 3])
    y = 40 / 80
    assert _kneser_ney.discounts(counts).tolist() == pytest.approx(
        [0, 1 - 2 * y * 20 / 40, 2 - 3 * y * 10 / 20, 3 - 4 * y * 5 / 10])
    assert _kneser_ney.discounts(np.array([1, 1, 2])).tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.skipif(importlib.util.find_spec("kenlm") is None, reason="needs kenlm")
def test_perplexities_are_kenlms(model: tuple[Path, _arpa.Model]) -> None:
    """On the same file, sentence by sentence: words, unknown words, nothing at all."""
    import kenlm
    theirs, draw = kenlm.Model(str(model[0])), random.Random(3)
    for words in [[], ["never"], ["w0", "never", "w1", "w2"], *sentences(200, draw)]:
        assert model[1].perplexity([words]) == pytest.approx(theirs.perplexity(" ".join(words)), rel=2e-5)


def test_what_is_likely_under_harmful_text_goes(tmp_path: Path) -> None:
    """The polarity: low perplexity is dropped. Without a threshold it is the valley, which parts the two
    kinds."""
    harmful(tmp_path)
    draw = random.Random(7)
    rows = [{"id": f"harm{i}", "text": text(HARM, draw)} for i in range(25)]
    rows += [{"id": f"mild{i}", "text": text(MILD, draw)} for i in range(60)]
    rows += [{"id": "empty", "text": " \n "}, {"id": "short", "text": "Zzz"}]
    ctx = Context(folder=tmp_path / "scratch", root=tmp_path)
    (tmp_path / "scratch").mkdir()
    found = told(PerplexedByQuality(harmful=("harm.txt",), order=3).apply(frame(rows), ctx))
    assert {i.rstrip("0123456789") for i in found} == {"mild", "empty", "short"} and len(found) == 62
    assert found["empty"]["harmful_perplexity"] is None
    assert ctx.notes["perplexed_by_quality/short"] == [(2, 1.0)]
    [(threshold, _)] = ctx.notes["perplexed_by_quality/threshold"]
    assert all(row["harmful_perplexity"] > threshold for i, row in found.items() if i.startswith("mild"))
    again = Context(folder=tmp_path / "scratch", root=tmp_path)
    marked = told(PerplexedByQuality(harmful=("harm.txt",), order=3, drop=False).apply(frame(rows), again))
    assert len(marked) == 87 and max(marked[f"harm{i}"]["harmful_perplexity"] for i in range(25)) < threshold


def test_a_model_of_somebody_else(model: tuple[Path, _arpa.Model], tmp_path: Path) -> None:
    """The perplexity of a document is that of its lines together; a threshold divides, itself on the lower
    side."""
    one, two = [["w0", "w1"], ["w2"]], [["w3", "w50"]]
    value = model[1].perplexity(one)
    logs, words = model[1].logs(one)
    assert value == pytest.approx(10 ** (-logs.sum() / 5)) and words.sum() == 5
    rows = [{"id": "one", "text": "W0, w1!\n\nw2"}, {"id": "two", "text": "w3 w50"}]
    low, high = sorted([value, model[1].perplexity(two)])
    for threshold, left in ((low * 0.999, 2), (low * 1.001, 1), (high * 1.001, 0)):
        folder = tmp_path / f"{threshold}"
        folder.mkdir()
        method = PerplexedByQuality(model=str(model[0]), threshold=threshold)
        assert len(told(method.apply(frame(rows), Context(folder=folder, root=tmp_path)))) == left


def test_valley() -> None:
    draw = np.random.default_rng(0)
    two = 10 ** np.concatenate([draw.normal(1, 0.2, 300), draw.normal(3, 0.3, 2000)])
    assert 10 ** 1.5 < valley(two, "x") < 10 ** 2.3
    for one in (10 ** draw.normal(2, 0.3, 2000), np.full(50, 7.0), np.empty(0)):
        with pytest.raises(UserError, match="no valley"):
            valley(one, "x")


def check_refused(message: str, folder: Path, **settings: Any) -> None:
    with pytest.raises(UserError, match=message):
        PerplexedByQuality(**settings).apply(frame([{"text": "a"}]), Context(folder=folder, root=folder))


def test_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" ... ")
    (tmp_path / "wrong.arpa").write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n-1\ta\n")
    (tmp_path / "poor.arpa").write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1\ta\n\n\\end\\\n")
    check_refused("no word in blank.txt", tmp_path, harmful=("blank.txt",))
    check_refused("no model", tmp_path, model="none.arpa")
    check_refused("ARPA format: 1-gram 2 of 2", tmp_path, model="wrong.arpa")
    check_refused("lacks one of <unk>", tmp_path, model="poor.arpa")
    for settings in ({}, {"harmful": ("a",), "model": "b"}):
        with pytest.raises(ValueError, match="either harmful"):
            PerplexedByQuality(**settings)
