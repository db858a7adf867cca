"""UL2 hides what its table says, gives all of it back as targets, and lets the inputs alone look both
ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.corpus.corpora import build as build_corpus
from tests.corpus.corpora import texts
from tests.lm.architectures import make as architecture
from tests.pretrain.small import FAMILIES, VOCABULARY, build
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.core.settings import make
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.pack import Pack
from trainwright.evaluate.held_out import HeldOut
from trainwright.lm.losses import token_losses
from trainwright.lm.prefix import prefix_mask
from trainwright.optim.adamw import Adamw
from trainwright.pretrain.next_token import NextToken
from trainwright.pretrain.ul2 import Ul2, counts, ending, longest, mode, parts

LAST, SENTINELS, END = VOCABULARY - 1, 8, 45
R, X, S = MODES = (46, 47, 48)
SMALL = Ul2(spans=((3.0, 0.15), (4.0, 0.5)), sentinels=SENTINELS)


class Tokenizer:
    """As much of one as is asked for: it has the modes, and may put a token in front of each text."""

    eos_token_id = END

    def __init__(self, *front: int) -> None:
        self.front = list(front)

    def __len__(self) -> int:
        return S + 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        named = dict(zip(("[R]", "[X]", "[S]"), MODES, strict=True))
        ids = [named[text]] if text in named else [ord(c) % END for c in text]
        return {"input_ids": [*(self.front if add_special_tokens else []), *ids]}


class Rising(Data):
    """Rows of two documents, 30 and 18 positions long; each rises by one from token to token, so that none
    comes twice."""

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        places = torch.cat([torch.arange(30), torch.arange(18)]).repeat(8, 1)
        first = torch.randint(0, 10, (8, 2), generator=ctx.rng("rising")).repeat_interleave(
            torch.tensor([30, 18]), 1
        )
        document = (torch.arange(48) >= 30).long().repeat(8, 1)
        batch = {
            "input_ids": places + first,
            "targets": places + first + 1,
            "position_ids": places,
            "document": document,
            "domain": torch.zeros_like(places),
        }
        return {n: t[ctx.rows(8)] for n, t in batch.items()} | {"domains": ("any",), "packed": True}


def context(step: int = 0) -> Context:
    return Context(seed=3, step=step, batch_rows=8, tokenizer=Tokenizer())


def batches(method: Ul2, steps: int = 1) -> list[tuple[Batch, Batch]]:
    """Batches before and after."""
    state, out = method.init(build(), context()), []
    for step in range(steps):
        ctx = context(step)
        before = Rising().next(dict, {}, ctx)
        out.append((before, method.next(lambda before=before: before, state, ctx)))
    return out


def examples(method: Ul2, steps: int = 1) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each document its text, the example's input, and its targets."""
    out = []
    for before, after in batches(method, steps):
        for r in range(8):
            for number, at, size in ((0, 0, 30), (1, 30, 18)):
                text = [
                    *before["input_ids"][r, at : at + size].tolist(),
                    int(before["targets"][r, at + size - 1]),
                ]
                kept = (after["document"][r, at : at + size] == number).nonzero()[:, 0] + at
                ids, targets = after["input_ids"][r, kept].tolist(), after["targets"][r, kept].tolist()
                given = next(i for i, t in enumerate(targets) if t != UNTRAINED) + 1
                assert (
                    ids[given:] == targets[given - 1 : -1]
                    and (after["targets"][r, kept[-1] + 1 : at + size] == UNTRAINED).all()
                )
                out.append((text, ids[:given], targets[given - 1 :]))
    return out


def restored(given: list[int], wanted: list[int]) -> tuple[list[int], list[list[int]]]:
    """An example's text put together again, and its hidden spans."""
    if given[0] == S:
        return given[1:] + wanted, [wanted]
    assert wanted.pop() == END
    spans: list[list[int]] = []
    for token in wanted:
        if token == LAST - len(spans):
            spans.append([])
        else:
            spans[-1].append(token)
    inside = [[t] if t < R else spans[LAST - t] for t in given[1:]]
    return [t for part in inside for t in part], spans


@pytest.mark.parametrize(
    ("size", "mean", "rate", "hidden", "spans"),
    [
        (100, 3, 0.15, 15, 5),
        (100, 8, 0.15, 15, 2),
        (96, 3, 0.5, 48, 16),
        (512, 64, 0.15, 77, 1),
        (512, 64, 0.5, 256, 4),
        (64, 64, 0.5, 32, 1),
        (2, 3, 0.15, 1, 1),
        (10, 1, 0.9, 9, 1),
    ],
)
def test_counts_are_those_of_the_table(size: int, mean: float, rate: float, hidden: int, spans: int) -> None:
    assert counts(size, mean, rate) == (hidden, spans)


def test_the_seven_denoisers_and_their_modes() -> None:
    assert [(m, r, mode(m, r)) for m, r in Ul2().spans] == [
        (3, 0.15, "R"),
        (8, 0.15, "R"),
        (3, 0.5, "X"),
        (8, 0.5, "X"),
        (64, 0.15, "X"),
        (64, 0.5, "X"),
    ]
    assert Ul2().sequential == 0.25


def test_all_ways_to_cut_are_equally_likely() -> None:
    draw = torch.Generator().manual_seed(0)
    seen = Counter(tuple(parts(5, 3, draw)) for _ in range(1200))
    assert len(seen) == 6 and all(sum(way) == 5 and min(way) == 1 for way in seen)
    assert sum((n - 200) ** 2 / 200 for n in seen.values()) < 20.5  # chi square, 5 degrees, one in a thousand
    ends = Counter(ending(40, 0.25, draw) for _ in range(1900))
    assert sorted(ends) == list(range(1, 20)) and abs(sum(k * n for k, n in ends.items()) / 1900 - 10) < 0.5


def test_an_example_fills_its_place_as_far_as_it_goes() -> None:
    for room in (5, 16, 100, 511):
        for mean, rate in Ul2().spans:
            size = longest(10**6, room, mean, rate)
            needs = [n + 2 * counts(n, mean, rate)[1] + 2 for n in (size, size + 1)]
            assert needs[0] <= room + 1 < needs[1], "of a sequence the last token is not read"
    assert longest(7, 100, 3, 0.15) == 7 and longest(100, 4, 3, 0.15) == 0


def test_every_text_comes_back_and_nothing_hidden_is_given() -> None:
    rates: dict[int, list[tuple[int, int, int]]] = {R: [], X: [], S: []}
    for text, given, wanted in examples(SMALL, steps=25):
        whole, spans = restored(given, list(wanted))
        hidden = {t for span in spans for t in span}
        assert whole == text[text.index(whole[0]) :][: len(whole)] and len(whole) > 10
        assert not hidden & set(given) and all(spans)
        if given[0] == S:
            assert len(whole) == min(len(text), 18 if len(text) < 20 else 30)
        else:
            pair = SMALL.spans[given[0] == X]
            assert (len(hidden), len(spans)) == counts(len(whole), *pair)
            assert given[1] < R and given[-1] == LAST + 1 - len(spans), "kept first, hidden last"
        rates[given[0]].append((len(hidden), len(whole), len(spans)))
    total = sum(map(len, rates.values()))
    assert total == 400 and all(abs(len(found) / total - 1 / 3) < 0.09 for found in rates.values())
    share = {m: sum(h for h, _, _ in found) / sum(w for _, w, _ in found) for m, found in rates.items()}
    assert share[R] == pytest.approx(0.15, abs=0.02) and share[X] == pytest.approx(0.5, abs=0.02)
    assert share[S] == pytest.approx(0.25, abs=0.03)


def test_an_input_follows_its_target_where_the_row_goes_on() -> None:
    for _, after in batches(SMALL, 6):
        ids, targets, places = after["input_ids"], after["targets"], after["position_ids"]
        assert (targets[:, :-1] == ids[:, 1:])[(places[:, 1:] != 0) & (targets[:, :-1] != UNTRAINED)].all()
        assert not (targets[:, :-1] != UNTRAINED)[after["document"][:, :-1] < 0].any(), (
            "padding teaches nothing"
        )


def test_a_share_for_each_denoiser_and_another_draw_at_each_step() -> None:
    only = Ul2(spans=SMALL.spans, sentinels=SENTINELS, weights=(1.0, 0.0, 3.0))
    modes = Counter(given[0] for _, given, _ in examples(only, steps=12))
    assert set(modes) == {R, S} and abs(modes[S] / modes.total() - 0.75) < 0.1
    (_, first), (_, second) = batches(SMALL, 2)
    assert not torch.equal(first["prefix"], second["prefix"])


def test_the_mode_takes_the_place_of_what_a_tokenizer_puts_in_front() -> None:
    """Of a text that begins with it; the part of a text that goes on in another row has nothing in front."""
    ctx = context()
    ctx.tokenizer = Tokenizer(S)
    before = Rising().next(dict, {}, ctx)
    before["input_ids"][:, 0] = S  # the first document of each row, not the second
    state = SMALL.init(build(), ctx)
    after = SMALL.next(lambda: before, state, ctx)
    for r in range(8):
        for at, size in ((0, 30), (30, 18)):
            ids = after["input_ids"][r, at : at + size].tolist()
            assert ids[0] in MODES and not set(ids[1:]) & set(MODES)
            if ids[0] == S and at == 0:
                assert ids[1:30] == before["input_ids"][r, 1:30].tolist(), "as long as it was"
    assert not torch.isin(after["targets"], torch.tensor(MODES)).any(), "modes are read, never learned"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_inputs_see_each_other_and_no_target_is_seen_before_its_time(family: str, attention: str) -> None:
    model = build(family).eval()
    model.set_attn_implementation(attention)
    ((_, batch),) = batches(SMALL)
    changed = {n: t.clone() if isinstance(t, torch.Tensor) else t for n, t in batch.items()}
    row = next(r for r in range(8) if int(batch["input_ids"][r, 0]) != S)
    end = int((batch["prefix"][row, :30]).sum())
    late = end + 1  # reads a target, and is no input
    changed["input_ids"][row, late] = (changed["input_ids"][row, late] + 1) % 40
    with torch.no_grad():
        before, after = (token_losses(model, b, context()) for b in (batch, changed))
        assert torch.equal(before[row, :late], after[row, :late]) and torch.equal(
            before[row, 30:], after[row, 30:]
        )
        assert not torch.equal(before[row, late], after[row, late])
        probe = {n: t[row : row + 1, :end].clone() for n, t in batch.items() if isinstance(t, torch.Tensor)}
        probe["targets"].fill_(UNTRAINED)[0, 0] = 7
        other = {n: t.clone() for n, t in probe.items()}
        other["input_ids"][0, end - 1] = 2
        moved = [
            float(token_losses(model, p, context())[0, 0] - token_losses(model, o, context())[0, 0])
            for p, o in (
                (probe, other),
                (
                    {n: t for n, t in probe.items() if n != "prefix"},
                    {n: t for n, t in other.items() if n != "prefix"},
                ),
            )
        ]
    assert abs(moved[0]) > 1e-5 and moved[1] == 0, (
        "the first input sees the last one; without a prefix it does not"
    )


@pytest.mark.slow
def test_documents_of_a_row_stay_apart_and_attention_kinds_agree() -> None:
    ((_, batch),) = batches(SMALL)
    found = {}
    for attention in ("sdpa", "eager"):
        model = build().eval()
        model.set_attn_implementation(attention)
        with torch.no_grad():
            found[attention] = token_losses(model, batch, context())
            alone = {n: t[:, 30:] for n, t in batch.items() if isinstance(t, torch.Tensor)}
            torch.testing.assert_close(
                token_losses(model, alone, context()), found[attention][:, 30:], rtol=1e-5, atol=1e-5
            )
    torch.testing.assert_close(found["sdpa"], found["eager"], rtol=1e-5, atol=1e-5)


def test_causal_batches_have_no_prefix() -> None:
    method = Ul2(spans=SMALL.spans, sentinels=SENTINELS, bidirectional=False)
    (_, plain), (_, open_) = (*batches(method), *batches(SMALL))
    assert "prefix" not in plain and torch.equal(plain["input_ids"], open_["input_ids"])


@pytest.mark.slow
def test_it_learns_to_restore_what_is_hidden() -> None:
    run = Train(build(), [Rising(), SMALL, NextToken(), Adamw(lr=1e-2)], 25, ctx=context())
    run.run(until=1)
    first = run.row["loss"]
    run.run()
    assert run.row["loss"] < 0.8 * first
    assert run.states["ul2.1"] == {"shared": {"last": LAST, "modes": [R, X, S], "front": []}}


def test_the_preview_tells_the_counts() -> None:
    ((_, batch),) = batches(SMALL)
    told = SMALL.preview(batch, context())
    size = longest(48, 48, 3, 0.15)
    hidden, n = counts(size, 3, 0.15)
    assert f"R (3, 0.15) has {size} tokens of text, {hidden} of them hidden in {n}" in told


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spans": [[3.0]]}, "pairs"),
        ({"spans": [[0.5, 0.1]]}, "pairs"),
        ({"spans": [[3, 1]]}, "pairs"),
        ({"sequential": 1}, "between 0 and 1"),
        ({"sentinels": 0}, "1 or more"),
        ({"weights": [1.0]}, "for each of the 6 spans"),
        ({"weights": [0.0] * 7}, "for each of the 6 spans"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(Ul2, settings, "here")


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="no room for 20 sentinels: make the model with vocab_size = 69"):
        batches(Ul2(sentinels=20))
    with pytest.raises(UserError, match="do not fit the model's 64 ids"):
        batches(Ul2())
    with pytest.raises(UserError, match="do not fit the model's 64 ids"):
        batches(Ul2(sentinels=4, last=64))
    with pytest.raises(UserError, match="a sentinel, as all of 27 to 30: set last to what no text has"):
        batches(Ul2(sentinels=4, last=30))
    with pytest.raises(UserError, match="'a mode' is no token of the tokenizer: give the corpus"):
        batches(Ul2(sentinels=4, modes=("a mode", "[X]", "[S]")))
    with pytest.raises(UserError, match="which is a mode: set modes"):
        batches(Ul2(sentinels=4, modes=("[R]", "[X]", chr(20))))
    with pytest.raises(UserError, match="has no tokenizer, and so no tokens of the modes"):
        Ul2(sentinels=4, last=63).init(build(), Context(seed=3))
    with pytest.raises(UserError, match=r"set sentinels to \d or more, not 1"):
        batches(Ul2(sentinels=1))
    model = build()
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="takes no mask of a prefix language model"):
        prefix_mask(model, batches(SMALL)[0][1])


def test_with_a_corpus_whose_texts_begin_in_a_mode(tmp_path: Path) -> None:
    """Documents begin with [S] there; training puts each example's own mode in its place, and evaluation
    reads [S], which is no target."""
    corpus = tmp_path / "corpus"
    given = {"control_tokens": ("[R]", "[X]", "[S]"), "prefix": "[S]", "tune": 0.0, "test": 0.3}
    build_corpus(corpus, texts(40), **given)
    tokenizer = open_corpus(corpus).tokenizer
    modes = tokenizer.convert_tokens_to_ids(["[R]", "[X]", "[S]"])
    model = architecture("llama", vocab_size=len(tokenizer) + SENTINELS)
    ctx = Context(seed=3, batch_rows=8, inputs={"data": [corpus]}, tokenizer=tokenizer)
    run = Train(model, [Pack(length=32), SMALL, NextToken(), Adamw(lr=1e-2)], 4, ctx=ctx)
    run.build()
    batch = run.pull()
    first = batch["input_ids"][batch["document"].diff(dim=1, prepend=torch.full((8, 1), -1)) > 0]
    assert torch.isin(first, torch.tensor(modes)).all() and len(first.unique()) > 1
    assert int(torch.isin(batch["input_ids"], torch.tensor(modes)).sum()) == len(first), "no text has two"
    run.run()
    read = HeldOut(length=32, batch_size=4)
    found = open_corpus(corpus).select("test")
    for rows in read.batches(open_corpus(corpus), found, "d", 32, ctx):
        begins = rows["position_ids"][:, 0] == 0
        assert (rows["input_ids"][begins, 0] == modes[2]).any()
        assert not torch.isin(rows["targets"], torch.tensor(modes)).any()
    with torch.no_grad():
        assert read.measure(run.model, ctx)["loss/d"] > 0
