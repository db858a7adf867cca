"""MeCo: what a row holds, what is learned of it, and from when on it is plain."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.corpus.corpora import build, texts
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch
from trainwright.core.settings import make
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.meco import Meco
from trainwright.data.order.pack import Pack
from trainwright.lm.metadata import host, metadata_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two sites, and some of none."""
    rows = [r | {"metadata": {"url": f"https://{r['domain']}.org/x/{r['id']}"} if i % 5 else {}}
            for i, r in enumerate(texts(40, "a") + texts(40, "b"))]
    place = tmp_path_factory.mktemp("meco") / "corpus"
    build(place, rows, tune=0.0, test=0.0)
    return place


def both(folder: Path, step: int = 0, length: int = 40, rows: int = 8, pack: dict[str, Any] | None = None,
         **settings: Any) -> tuple[Batch, Batch]:
    """A step's rows without and with metadata."""
    ctx = Context(inputs={"data": [folder]}, batch_rows=rows, step=step, steps=10,
                  tokenizer=open_corpus(folder).tokenizer)
    data, method = Pack(length=length, **(pack or {})), Meco(**settings)
    plain = data.next(pytest.fail, data.init(nn.Identity(), ctx), ctx)  # type: ignore[arg-type]
    return plain, method.next(lambda: plain, method.init(nn.Identity(), ctx), ctx)


def pieces(batch: Batch, row: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Tokens, targets and addresses of the texts of a row."""
    found = []
    for d in range(int(batch["document"][row].max()) + 1):
        at = batch["document"][row] == d
        found.append(tuple(batch[n][row][at].tolist() for n in ("input_ids", "targets", "address")))
    return found  # type: ignore[return-value]


def test_a_text_stands_behind_its_metadata_and_nothing_of_them_is_learned(folder: Path) -> None:
    """Every text of every row, by hand: [begin] URL, an empty line, the text, whose first token is learned
    where it begins."""
    plain, made = both(folder)
    known, tokenizer = metadata_of(folder, "url"), open_corpus(folder).tokenizer
    seen = {"begun": 0, "continued": 0, "silent": 0}
    for r in range(8):
        matched = zip(pieces(made, r), pieces(plain, r), strict=False)
        for (ids, targets, _), (old_ids, old_targets, addresses) in matched:
            document = known.document(addresses[0])
            which, begins = int(known.which[document]), addresses[0] == known.starts[document]
            assert begins == (old_ids[0] == tokenizer.bos_token_id)
            front = tokenizer(f"URL: {known.said[which]}\n\n",
                              add_special_tokens=False).input_ids if which >= 0 else []
            lead = int(begins and which >= 0)
            assert ids == (old_ids[:lead] + front + old_ids[lead:])[:len(ids)]
            assert targets == ([-100] * len(front) + old_targets)[:len(targets)]
            seen["silent" if which < 0 else "begun" if begins else "continued"] += 1
    assert known.said == ("a.org", "b.org") and min(seen.values()) > 0


def test_rows_stay_as_long_and_positions_begin_with_the_metadata(folder: Path) -> None:
    plain, made = both(folder)
    assert all(made[n].shape == plain[n].shape and made[n].dtype == torch.int64
               for n in ("input_ids", "position_ids"))
    first = torch.cat([torch.ones(8, 1, dtype=torch.bool),
                       made["document"][:, 1:] != made["document"][:, :-1]], 1)
    assert torch.equal(made["position_ids"] == 0, first)


def test_padding_is_used_up_before_text_is_lost(folder: Path) -> None:
    """In rows of one document each, with room behind it, nothing is pushed out."""
    plain, made = both(folder, length=120, pack={"isolate": "rows", "whole": True})
    for r in range(8):
        (_, targets, addresses), (_, old_targets, old) = pieces(made, r)[0], pieces(plain, r)[0]
        assert [a for a in addresses if a >= 0] == old and targets[-len(old):] == old_targets
        assert made["position_ids"][r].tolist() == list(range(120))


@pytest.mark.parametrize("begin", [True, False])
def test_the_first_token_is_learned_from_the_last_of_the_metadata(begin: bool, folder: Path) -> None:
    """With a beginning-of-text token, which learns nothing then and stays in front, and where a tokenizer
    has none."""
    known = metadata_of(folder, "url")
    start = int(known.starts[int((known.which >= 0).nonzero()[0][0])])
    ctx = Context(inputs={"data": [folder]}, steps=10,
                  tokenizer=open_corpus(folder).tokenizer if begin else None)
    ids = np.array([open_corpus(folder).tokenizer.bos_token_id, 5, 6])
    text = {"input_ids": ids, "targets": np.array([5, 6, -100]), "document": np.array([2, 2, 2]),
            "address": start + np.arange(3)}
    made = {n: values.tolist() for n, values in Meco().conditioned(text, 99, ctx).items()}
    size = len(made["input_ids"]) - 3
    assert size > 4 and made["input_ids"][size + 1:] == [5, 6] and made["document"] == [2] * (size + 3)
    if begin:
        assert made["input_ids"][0] == ids[0] and made["targets"] == [-100] * size + [5, 6, -100]
        assert made["address"] == [start, *[-1] * size, start + 1, start + 2]
    else:
        assert made["input_ids"][size] == ids[0]
        assert made["targets"] == [-100] * (size - 1) + [int(ids[0]), 5, 6, -100]
        assert made["address"] == [-1] * size + [start, start + 1, start + 2]


def test_the_cool_down_is_plain(folder: Path) -> None:
    for step, conditioned in ((0, True), (6, True), (7, False), (9, False)):
        plain, made = both(folder, step=step, cooldown=0.3)
        assert (made is not plain) == conditioned
        assert bool((made["input_ids"] != plain["input_ids"]).any()) == conditioned


def test_hosts() -> None:
    told = {"https://en.wikipedia.org/wiki/Ox": "en.wikipedia.org", "http://a.b": "a.b",
            "numpy 2.4": "numpy 2.4"}
    assert [host(value) for value in told] == list(told.values())


def test_any_field_can_be_said(folder: Path) -> None:
    _, made = both(folder, field="domain", template="<{}> ")
    for r in range(8):
        said = open_corpus(folder).tokenizer.decode(made["input_ids"][r]).removeprefix("<|endoftext|>")
        assert said.startswith(f"<{made['domains'][int(made['domain'][r, 0])]}> ")


def test_mistakes_are_said(folder: Path) -> None:
    with pytest.raises(UserError, match=r"'ulr'.*they say domain, source, url"):
        both(folder, field="ulr")
    with pytest.raises(UserError, match="tokens long"):
        both(folder, length=6)
    with pytest.raises(UserError, match="put it behind pack"):
        Meco().next(lambda: {"input_ids": torch.zeros(1, 4)}, {}, Context(steps=9))
    with pytest.raises(UserError, match="template"):
        make(Meco, {"template": "URL"}, "here")
