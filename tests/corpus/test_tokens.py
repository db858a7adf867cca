"""Shards: made once for each content, cut where the documents say, and read back as they were written."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpus.corpora import ODD, build, texts
from trainwright.core.errors import UserError
from trainwright.corpus import bpe, tokens
from trainwright.corpus.chat import Chat
from trainwright.corpus.tokens import Document, Encoder

ROWS = [Document(f"{i:03d}", f"{ODD[i % len(ODD)]} {i}", None) for i in range(200)]
TALK = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 👋🏽"}])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe.train((r.content for r in ROWS), 350, ["<|im_start|>", "<|im_end|>"])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "DOCUMENTS", 20)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the documents that are tokenized from now on."""
    seen: list[str] = []
    real = Encoder.encode

    def encode(self: Encoder, batch: Any) -> Any:
        seen.extend(d.id for d in batch)
        return real(self, batch)

    monkeypatch.setattr(Encoder, "encode", encode)
    return seen


def all_tokens(out: Path, shards: list[tokens.Shard]) -> list[list[int]]:
    found = []
    for number, shard in enumerate(shards):
        whole = np.fromfile(out / f"{number:05d}.bin", np.uint16)
        assert len(whole) == shard.length.sum()
        found += [part.tolist() for part in np.split(whole, np.cumsum(shard.length)[:-1])]
    return found


def test_a_second_build_tokenizes_nothing(tmp_path: Path, tokenizer: Any,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counting(monkeypatch)
    first = list(tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "a"))
    assert len(first) > 4 and not any(s.cached for s in first) and seen == [r.id for r in ROWS]
    (tmp_path / "cache" / "half.bin.99999999999").touch()                  # of a process that was killed
    second = list(tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "b"))
    assert len(seen) == len(ROWS) and all(s.cached for s in second)
    assert all_tokens(tmp_path / "a", first) == all_tokens(tmp_path / "b", second)
    assert (tmp_path / "a" / "00000.bin").stat().st_ino == (tmp_path / "b" / "00000.bin").stat().st_ino
    suffixes = sorted(f.suffix for f in (tmp_path / "cache").iterdir())
    assert suffixes == sorted([".bin", ".json", ".sums"] * len(first))


@pytest.mark.parametrize("harm", ["bin gone", "json gone", "bin cut", "json cut"])
def test_only_what_is_missing_or_damaged_is_done_again(tmp_path: Path, tokenizer: Any,
                                                       monkeypatch: pytest.MonkeyPatch,
                                                       harm: str) -> None:
    first = list(tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "a"))
    whole = all_tokens(tmp_path / "a", first)
    ending, how = harm.split()
    batch = list(tokens.batches(ROWS))[2]
    victim = tmp_path / "cache" / f"{Encoder(tokenizer, None).key(batch)}.{ending}"
    content = victim.read_bytes()
    victim.unlink()
    if how == "cut":
        victim.write_bytes(content[: len(content) // 2])
    seen = counting(monkeypatch)
    second = list(tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "b"))
    assert seen == [d.id for d in batch] and [s.cached for s in second].count(False) == 1
    assert all_tokens(tmp_path / "b", second) == whole == all_tokens(tmp_path / "a", first)
    assert victim.read_bytes() == content


def test_a_build_that_dies_between_two_shards_goes_on(tmp_path: Path, tokenizer: Any,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "dead")
    done = sum(len(next(made).length) for _ in range(3))
    made.close()  # type: ignore[attr-defined]
    seen = counting(monkeypatch)
    list(tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "b"))
    assert seen == [r.id for r in ROWS[done:]]


def test_a_document_more_changes_its_own_batch_only(tokenizer: Any) -> None:
    key = Encoder(tokenizer, None).key
    before = {key(b) for b in tokens.batches(ROWS)}
    after = [key(b) for b in tokens.batches([*ROWS[:90], Document("new", "one more", None), *ROWS[90:]])]
    assert 1 <= sum(k not in before for k in after) <= 2


def test_the_key_depends_on_all_that_tokens_depend_on(tokenizer: Any) -> None:
    plain, talk = [Document("a", TALK, None)], [Document("a", "", TALK)]
    marked = Chat(tokenizer, "chatml")
    other = bpe.train((r.content for r in ROWS), 340)
    keys = [Encoder(tokenizer, None).key(plain), Encoder(tokenizer, marked).key(talk),
            Encoder(other, None).key(plain),
            Encoder(tokenizer, None).key([Document("a", TALK + " ", None)])]
    assert len(set(keys)) == 4
    same = Encoder(tokenizer, marked).key([Document("b", TALK, None)])
    assert keys[0] == same, "of a plain text, neither id nor template"
    marked.template += " "
    assert Encoder(tokenizer, marked).key(talk) != keys[1]


def test_batches_hold_every_document_once_and_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [d for b in tokens.batches(ROWS) for d in b] == ROWS
    monkeypatch.setattr(tokens, "uniform", lambda *_: 1.0)
    assert [len(b) for b in tokens.batches(ROWS)] == [80, 80, 40]
    monkeypatch.setattr(tokens, "BYTES", 100)
    assert max(sum(len(d.content) for d in b[:-1]) for b in tokens.batches(ROWS)) < 400


def test_a_text_is_framed_and_its_control_tokens_are_text(tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast
    end = tokenizer.eos_token_id
    (ids, mask, size), = Encoder(tokenizer, None).encode([Document("a", "say <|endoftext|> é", None)])
    assert ids[0] == ids[-1] == end and end not in ids[1:-1] and mask is None
    assert size == len("say <|endoftext|> é".encode())
    assert tokenizer.decode(ids[1:-1]) == "say <|endoftext|> é"
    bare = PreTrainedTokenizerFast(tokenizer_object=Chat(tokenizer, "chatml").backend, eos_token="<|im_end|>",
                                   model_max_length=4)
    (ids, *_), = Encoder(bare, None).encode([Document("a", "a much longer text than that", None)])
    assert bare.decode(ids) == "a much longer text than that<|im_end|>", "nothing in front, never truncated"


def test_a_shard_of_both_kinds_has_a_mask(tmp_path: Path, tokenizer: Any) -> None:
    rows = [Document("a", "plain", None), Document("b", "", TALK), Document("c", "plain too", None)]
    shard, = tokens.write(rows, Encoder(tokenizer, Chat(tokenizer, "chatml")), tmp_path / "cache",
                          tmp_path / "a")
    again, = tokens.write(rows, Encoder(tokenizer, Chat(tokenizer, "chatml")), tmp_path / "cache",
                          tmp_path / "b")
    mask = np.split(np.fromfile(tmp_path / "b" / "00000.mask", np.uint8), np.cumsum(shard.length)[:-1])
    assert shard.masked and again.masked and again.cached
    assert mask[0].all() and mask[2].all() and 0 < mask[1].sum() < len(mask[1])
    assert shard.trained.tolist() == again.trained.tolist() == [shard.length[0] - 1, mask[1].sum(),
                                                                shard.length[2] - 1]


def test_long_texts_are_tokenized_in_portions_of_the_same_tokens(tokenizer: Any,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [Document(r.id, r.content, TALK if i % 3 == 0 else None) for i, r in enumerate(ROWS)]
    encoder = Encoder(tokenizer, Chat(tokenizer, "chatml"))
    whole = encoder.encode(mixed)
    monkeypatch.setattr(tokens, "AT_ONCE", 10)
    parts = encoder.encode(mixed)
    assert all((a[0] == b[0]).all() for a, b in zip(whole, parts, strict=True))


def test_the_reader_selects_by_split_and_domain(tmp_path: Path) -> None:
    build(tmp_path / "c", texts(40, "a") + texts(30, "b"), test=0.2, tune=0.1)
    read = tokens.open_corpus(tmp_path / "c")
    assert read is tokens.open_corpus(tmp_path / "c") and read.domains == ("a", "b")
    assert read.vocab_size == 400 and not read.chat
    parts = {split: read.select(split) for split in tokens.SPLITS}
    assert sum(map(len, parts.values())) == 70
    only = read.select("test", ["b"])
    assert len(only) and set(only.domain.tolist()) == {1} and all(name.startswith("b/") for name in only.id)
    assert only.length.dtype == only.domain.dtype == np.int64 and only.id.dtype == object
    ids = read.read(int(only.shard[0]), int(only.offset[0]), int(only.length[0]))
    assert ids.dtype == np.int64 and len(ids) == only.length[0]
    assert read.read_mask(0, 0, 5).tolist() == [True] * 5


def test_the_reader_names_what_there_is(tmp_path: Path) -> None:
    build(tmp_path / "c", texts(40, "prose"), test=0.0)
    read = tokens.Corpus(tmp_path / "c")
    with pytest.raises(UserError, match=r"no domain 'prise' \(did you mean 'prose'"):
        read.select("train", ["prise"])
    with pytest.raises(UserError, match=r"no split 'tests'"):
        read.select("tests")
    with pytest.raises(UserError, match=r"no 'test' document in prose"):
        read.select("test")
    with pytest.raises(UserError, match="is no corpus"):
        tokens.Corpus(tmp_path)


def test_where_no_link_can_be_made_files_are_copied(tmp_path: Path, tokenizer: Any,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(tokens.os, "link", refuse)
    first = list(tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "a"))
    second = list(tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "b"))
    assert all(s.cached for s in second)
    assert all_tokens(tmp_path / "a", first) == all_tokens(tmp_path / "b", second)


@pytest.mark.parametrize("ending", ["bin", "json"])
def test_a_flipped_bit_in_the_cache_is_found(ending: str, tmp_path: Path, tokenizer: Any) -> None:
    """Of the right size, and still not what was written: the shard is made again, and says so."""
    cache = tmp_path / "cache"
    first = list(tokens.write(ROWS, Encoder(tokenizer, None), cache, tmp_path / "a"))
    right = all_tokens(tmp_path / "a", first)
    victim = sorted(cache.glob(f"*.{ending}"))[0]
    data = victim.read_bytes()
    victim.unlink()                                                        # the corpus has the same file
    victim.write_bytes(data.replace(b"1", b"2", 1) if ending == "json" else bytes([data[0] ^ 1]) + data[1:])
    second = list(tokens.write(ROWS, Encoder(tokenizer, None), cache, tmp_path / "b"))
    assert [s.damaged for s in second].count(True) == 1 == [s.cached for s in second].count(False)
    assert all_tokens(tmp_path / "b", second) == right
    third = list(tokens.write(ROWS, Encoder(tokenizer, None), cache, tmp_path / "c"))
    assert all(s.cached and not s.damaged for s in third)


def test_a_cache_that_is_a_link_is_not_written_to(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="cache is a link: a store writes within itself only"):
        list(tokens.write(ROWS, Encoder(tokenizer, None), tmp_path / "cache", tmp_path / "a"))
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_a_corpus_of_many_shards_needs_few_descriptors(tmp_path: Path) -> None:
    """5,000 shards in three corpora, one after the other: far less than the 1,024 that a process may open."""
    for name in "abc":
        build(tmp_path / name, texts(20))
        folder = tmp_path / name / "tokens"
        for shard in range(1700):
            (folder / f"{shard:05d}.bin").write_bytes(np.array([shard], dtype=np.uint16).tobytes())
        corpus = tokens.open_corpus(tmp_path / name)
        for shard in range(1700):
            assert corpus.read(shard, 0, 1).tolist() == [shard]
        assert len(os.listdir("/proc/self/fd")) < 200
    (folder / "00003.bin").unlink()
    with pytest.raises(UserError, match="lacks its shard 3: it was removed"):
        corpus.read(3, 0, 1)
