"""Building a corpus: what goes in comes out, in the same splits, whatever the order."""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.corpus.corpora import ODD, Chosen, KeepLong, build, texts
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus import building as corpus
from trainwright.corpus import documents, tokens
from trainwright.corpus.columns import SCHEMA

CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Zoë 👋🏽"}]


def selected(folder: Path) -> dict[str, tuple[str, str, list[int]]]:
    """Every document: its domain, split and tokens."""
    read = tokens.Corpus(folder)
    found = {}
    for split in tokens.SPLITS:
        d = read.select(split)
        for i in range(len(d)):
            found[d.id[i]] = (read.domains[d.domain[i]], split,
                              read.read(d.shard[i], d.offset[i], d.length[i]).tolist())
    return found


def test_every_text_comes_back_from_its_tokens(tmp_path: Path) -> None:
    rows = texts(60, "a") + texts(40, "b")
    figures = build(tmp_path / "c", rows)
    read = tokens.open_corpus(tmp_path / "c")
    found = selected(tmp_path / "c")
    end = read.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert set(found) == {r["id"] for r in rows}
    for row in rows:
        domain, _, ids = found[row["id"]]
        assert domain == row["domain"]
        assert ids[0] == ids[-1] == end and end not in ids[1:-1]
        assert read.tokenizer.decode(ids[1:-1]) == row["text"]
    assert figures["documents"] == 100 and figures["tokens"] == sum(len(ids) for *_, ids in found.values())
    assert figures["trained_tokens"] == figures["tokens"] - 100
    assert figures["bytes"] == sum(len(r["text"].encode()) for r in rows)
    assert sum(s["documents"] for d in figures["domains"].values() for s in d.values()) == 100


def test_the_order_of_the_documents_does_not_matter(tmp_path: Path) -> None:
    rows = texts(80, "a") + texts(80, "b")
    build(tmp_path / "one", rows)
    random.Random(0).shuffle(rows)
    build(tmp_path / "two", rows)
    assert selected(tmp_path / "one") == selected(tmp_path / "two")
    same = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two")]
    assert same[0] == same[1]
    one, two = (tokens.Corpus(tmp_path / n).select("train") for n in ("one", "two"))
    assert one.id.tolist() == two.id.tolist() == sorted(one.id)


def test_transformers_reloads_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer
    build(tmp_path / "c", texts(30))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "c")
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>" and tokenizer.pad_token is None
    for text in ODD:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[1:]) == text


def test_a_tokenizer_is_taken_from_a_folder(tmp_path: Path) -> None:
    build(tmp_path / "first", texts(30))
    build(tmp_path / "second", texts(30), tokenizer=str(tmp_path / "first"))
    assert selected(tmp_path / "first") == selected(tmp_path / "second")


def test_parquet_holds_the_standard_columns_and_those_that_methods_add(tmp_path: Path) -> None:
    class Scored(Curate):
        def apply(self, documents: Any, ctx: Any) -> Any:
            return documents.with_column("characters", documents["text"].length())

    build(tmp_path / "c", texts(5), Scored())
    table = pq.read_table(tmp_path / "c" / "documents")
    assert table.column_names[: len(SCHEMA)] == list(SCHEMA) and table.num_rows == 5
    assert table["characters"].to_pylist() == [len(t) for t in table["text"].to_pylist()]


def test_blank_documents_are_dropped_and_every_method_counted(tmp_path: Path) -> None:
    said: list[str] = []
    rows = [*texts(20), {"id": "blank", "text": " \n\t "}, {"id": "none", "text": ""}]
    figures = build(tmp_path / "c", rows, KeepLong(least=1), said=said)
    assert figures["documents"] == 20 and figures["empty_documents"] == 1
    assert figures["curated"] == [{"method": "given", "in": 0, "written": 22, "dropped": 0, "out": 22},
                                  {"method": "keep_long", "in": 22, "written": 0, "dropped": 1, "out": 21}]
    assert "blank" not in selected(tmp_path / "c") and any("1 empty ones dropped" in line for line in said)


def test_many_files_hold_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "one", texts(50))
    monkeypatch.setattr(documents, "FILE_BYTES", 1000)
    build(tmp_path / "many", texts(50))
    files = sorted((tmp_path / "many" / "documents").iterdir())
    assert [f.name for f in files] == [f"{i:05d}.parquet" for i in range(len(files))]
    assert selected(tmp_path / "one") == selected(tmp_path / "many")


def test_an_empty_corpus_names_what_was_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the corpus is empty: .*1 were blank.*Given\(rows="):
        build(tmp_path / "c", [{"id": "a", "text": "  "}])


def test_two_documents_of_one_id_are_refused(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "one", "source": "x.txt"}, {"id": "b", "text": "two"},
            {"id": "a", "text": "three", "source": "y.txt"}]
    with pytest.raises(UserError, match=r"the first 'a' \(from x\.txt and y\.txt\)"):
        build(tmp_path / "c", rows)


def test_a_document_without_a_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a document from z\.txt has no domain"):
        build(tmp_path / "c", [{"id": "a", "text": "one", "source": "z.txt", "domain": ""}])


def test_a_method_that_loses_a_column_is_named(tmp_path: Path) -> None:
    class Loses(Curate):
        def apply(self, documents: Any, ctx: Any) -> Any:
            return documents.exclude("domain")

    with pytest.raises(UserError, match=r"'loses' returned a table without domain"):
        build(tmp_path / "c", texts(3), Loses())


def test_a_readers_mistake_keeps_its_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(Curate):
        def apply(self, documents: Any, ctx: Any) -> Any:
            from trainwright.corpus.sources import table, union

            def rows() -> Any:
                raise UserError("x.jsonl, line 3: this is no JSON object (it's 'bad').")
                yield

            return union(documents, table("broken", [rows]))

    with pytest.raises(UserError) as told:
        build(tmp_path / "c", texts(3), Broken())
    assert str(told.value) == "x.jsonl, line 3: this is no JSON object (it's 'bad')."
    assert capfd.readouterr().err == "", "the engine adds no line of its own"


def test_a_vocabulary_too_small_or_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocab_size = 200 is too small"):
        build(tmp_path / "c", texts(3), vocab_size=200)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        build(tmp_path / "c", texts(3), tokenizer=str(tmp_path / "nothing"))


@pytest.mark.slow
def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    from transformers import AutoTokenizer
    build(tmp_path / "small", texts(20))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "small")
    tokenizer.add_tokens([f"[word{i}]" for i in range(65536)])
    tokenizer.save_pretrained(tmp_path / "large")
    rows = [*texts(20), {"id": "far", "text": "a [word65535] b"}]
    figures = build(tmp_path / "c", rows, tokenizer=str(tmp_path / "large"))
    found = selected(tmp_path / "c")["far"][2]
    assert figures["vocab_size"] == len(tokenizer) > 65536 and max(found) == len(tokenizer) - 1
    assert tokens.open_corpus(tmp_path / "c").tokenizer.decode(found[1:-1]) == "a [word65535] b"


def test_conversations_carry_a_mask_and_their_template(tmp_path: Path) -> None:
    rows = [*texts(10),
            *({"id": f"chat{i}", "text": "Who? Zoë", "domain": "chat", "messages": CHAT} for i in range(10)),
            {"id": "silent", "text": "Hello", "domain": "chat", "messages": CHAT[:1]}]
    figures = build(tmp_path / "c", rows, chat_template="chatml")
    read = tokens.open_corpus(tmp_path / "c")
    train = read.select("train", ["chat"])
    i = next(i for i, name in enumerate(train.id) if name.startswith("chat"))
    at = (int(train.shard[i]), int(train.offset[i]), int(train.length[i]))
    ids, mask = read.read(*at), read.read_mask(*at)
    whole = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nZoë 👋🏽<|im_end|>\n"
    assert read.chat and read.tokenizer.decode(ids) == whole
    assert read.tokenizer.decode(ids[mask]) == "Zoë 👋🏽<|im_end|>" and train.trained[i] == mask.sum()
    assert figures["untrained_documents"] == 1 and figures["conversations"] == 11
    assert read.tokenizer.apply_chat_template(CHAT, tokenize=False) == read.tokenizer.decode(ids)
    plain = read.select("train", ["d"])
    assert read.read_mask(int(plain.shard[0]), int(plain.offset[0]), int(plain.length[0])).all()
    assert (plain.trained == plain.length - 1).all()


def test_conversations_with_nothing_to_learn_are_an_error(tmp_path: Path) -> None:
    rows = [{"id": str(i), "text": "Who?", "messages": CHAT[:1]} for i in range(4)]
    with pytest.raises(UserError, match="none of the 4 conversations has a token to learn"):
        build(tmp_path / "c", rows, chat_template="chatml")
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        build(tmp_path / "c", rows)


def test_settings_are_those_of_the_stage() -> None:
    from dataclasses import fields

    from trainwright.core.settings import docs_of
    from trainwright.stages.corpus import CorpusStage
    stage = {f.name: f.default for f in fields(CorpusStage)}
    shares = dict(zip(("tune", "test"), CorpusStage(name="c", methods=({"use": "text"},)).shares(),
                      strict=True))
    for field in fields(corpus.CorpusSettings):
        assert docs_of(corpus.CorpusSettings)[field.name]
        assert field.name == "data" or shares.get(field.name, stage[field.name]) == field.default


def test_a_corpus_made_of_another_works_on_its_training_documents_alone(tmp_path: Path) -> None:
    class Scored(Curate):
        def apply(self, documents: Any, ctx: Any) -> Any:
            assert documents.count_rows() == train, "those kept back are not seen"
            return documents.with_column("characters", documents["text"].length())

    build(tmp_path / "raw", texts(40), tune=0.2, test=0.2)
    raw = {split: set(tokens.Corpus(tmp_path / "raw").select(split).id) for split in tokens.SPLITS}
    train = len(raw["train"])
    assert train < 40 and raw["tune"] and raw["test"]
    chosen = sorted(raw["train"])[:5]
    figures = build(tmp_path / "chosen", None, Scored(), Chosen(ids=tuple(chosen)), data=tmp_path / "raw",
                    tokenizer=str(tmp_path / "raw"), vocab_size=None)
    made = tokens.Corpus(tmp_path / "chosen")
    assert set(made.select("train").id) == set(chosen)
    assert all(set(made.select(split).id) == raw[split] for split in ("tune", "test"))
    assert [(r["method"], r["in"], r["dropped"], r["out"]) for r in figures["curated"]] == [
        ("from.data", 0, 0, train), ("scored", train, 0, train), ("chosen", train, train - 5, 5)]
    rows = pq.read_table(tmp_path / "chosen" / "documents").to_pylist()
    assert all((r["characters"] is None) == (r["id"] not in chosen)
               for r in rows), "a score is null where none was made"


def test_provenance_names_the_method_that_dropped_each_document(tmp_path: Path) -> None:
    build(tmp_path / "c", [*texts(6), {"id": "short", "text": "x"}], KeepLong(least=2),
          Chosen(ids=("d/0001", "d/0002")))
    found = {r["id"]: r for r in pq.read_table(tmp_path / "c" / "provenance.parquet").to_pylist()}
    assert len(found) == 7 and all(r["written"] == "given" and r["domain"] == "d" for r in found.values())
    assert found["short"]["dropped"] == "keep_long" and found["short"]["characters"] == 1
    assert found["d/0000"]["dropped"] == "chosen" and found["d/0001"]["dropped"] is None


def test_an_empty_selection_says_where_the_documents_went(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the corpus is empty: .*20 out of given, 0 out of keep_long"):
        build(tmp_path / "c", texts(20), KeepLong(least=10_000))
    build(tmp_path / "raw", texts(40), tune=0.2, test=0.2)
    with pytest.raises(UserError, match=r"\d+ out of from.data, 0 out of chosen"):
        build(tmp_path / "chosen", None, Chosen(), data=tmp_path / "raw", tokenizer=str(tmp_path / "raw"),
              vocab_size=None)


def test_a_corpus_may_have_no_tokenizer(tmp_path: Path) -> None:
    """Documents, splits and the index are those of one that has, with nothing to read in the index."""
    rows = [*texts(40), {"id": "talk", "domain": "chat", "messages": CHAT}]
    build(tmp_path / "with", rows, chat_template="chatml", tune=0.1, test=0.1)
    figures = build(tmp_path / "without", rows, tokenizer=None, tune=0.1, test=0.1)
    assert figures["documents"] == 41
    assert figures["tokens"] == figures["vocab_size"] == figures["tokenized_now"] == 0
    one, two = (tokens.Corpus(tmp_path / name) for name in ("with", "without"))
    assert two.tokenizer is None and two.columns == one.columns and two.vocab_size == 0
    for split in tokens.SPLITS:
        a, b = one.select(split), two.select(split)
        assert a.id.tolist() == b.id.tolist() and not b.length.any() and not b.trained.any()
    assert b.bytes.tolist() == a.bytes.tolist() and b.bytes.all()
    build(tmp_path / "later", None, Chosen(ids=tuple(two.select("train").id[:5])), data=tmp_path / "without",
          tokenizer=str(tmp_path / "without"))
    later = tokens.Corpus(tmp_path / "later")
    assert later.tokenizer is None and len(later.select("train")) == 5


def test_a_pair_of_conversations_is_learned_by_its_chosen_answer(tmp_path: Path) -> None:
    pair = {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [{"role": "assistant", "content": "Nobody."}]}
    rows = [*texts(5), *({"id": f"pair{i}", "domain": "pairs", "columns": pair} for i in range(3))]
    figures = build(tmp_path / "c", rows, chat_template="chatml", tune=0.0, test=0.0)
    read = tokens.open_corpus(tmp_path / "c")
    found = read.select("train", ["pairs"])
    at = int(found.shard[0]), int(found.offset[0]), int(found.length[0])
    assert read.tokenizer.decode(read.read(*at)[read.read_mask(*at)]) == "Zoë 👋🏽<|im_end|>" and read.speaks
    assert figures["conversations"] == 3 and figures["untrained_documents"] == 0


def test_answers_that_say_nothing_are_counted_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    talks = [[{"role": "user", "content": "hi", "name": "Zoë"}, {"role": "assistant", "content": text}]
             for text in ("", "arr", "")]
    found = build(tmp_path / "c", [{"messages": talk} for talk in talks], chat_template="chatml", said=said)
    assert found["empty_answers"] == 2
    assert "conversations: 2 have an answer that says nothing, of which the end is learned" in said
    assert "conversations: the chat template does not read name of their messages" in said
