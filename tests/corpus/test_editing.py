"""What a method edits is what is learned: text and messages never come apart."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import daft
import pytest

from tests.corpus.corpora import build, texts
from tests.data.frames import frame, told
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus import editing
from trainwright.corpus.tokens import Corpus

TALK = [{"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "x"}]},
        {"role": "assistant", "content": "Zoë, a long answer."}]
PAIR = {"prompt": [TALK[0]], "chosen": [TALK[2]], "rejected": [{"role": "assistant", "content": "Nobody."}]}
PLAIN = {"prompt": "Who? ", "chosen": "A good one", "rejected": "A bad one"}
ROWS = [{"id": "plain", "text": "A plain text."}, {"id": "talk", "messages": TALK},
        {"id": "pair", "columns": PAIR},
        {"id": "words", "columns": PLAIN}]


def chat(n: int = 12) -> list[dict[str, Any]]:
    def turns(i: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Question number {i}?"},
                {"role": "assistant", "content": f"Answer number {i}."}]

    return [{"id": f"chat{i}", "domain": "chat", "messages": turns(i)} for i in range(n)]


class ShortText(Curate):
    """Edits the column alone."""

    def apply(self, documents: Any, ctx: Any) -> Any:
        return documents.with_column("text", documents["text"].left(10))


class Short(Curate):
    """Edits documents."""

    def apply(self, documents: Any, ctx: Any) -> Any:
        return editing.edit(documents, lambda text: text[:10])


class OtherMessages(Curate):
    """Edits messages alone."""

    def apply(self, documents: Any, ctx: Any) -> Any:
        return documents.with_column("messages", documents["messages"].replace("Answer", "Reply"))


def test_the_text_is_what_is_said() -> None:
    made = told(frame(ROWS))
    assert {name: row["text"] for name, row in made.items()} == {
        "plain": "A plain text.", "talk": "Who are you?\n\nZoë, a long answer.",
        "pair": "Who are you?\n\nZoë, a long answer.", "words": "Who? A good one"}


def test_an_edit_reaches_all_that_is_learned_and_the_text_follows() -> None:
    made = told(editing.edit(frame(ROWS, score=[1.0, 2.0, 3.0, 4.0]), lambda text: text.upper()))
    assert made["plain"]["text"] == "A PLAIN TEXT." and made["plain"]["messages"] is None
    assert made["talk"]["text"] == "WHO ARE YOU?\n\nZOË, A LONG ANSWER."
    turns = json.loads(made["talk"]["messages"])
    assert [m["role"] for m in turns] == ["user", "assistant", "assistant"]
    assert turns[1]["tool_calls"] == [{"name": "x"}]
    assert editing.said(turns) == made["talk"]["text"]
    assert json.loads(made["pair"]["rejected"]) == [{"role": "assistant", "content": "NOBODY."}]
    assert made["pair"]["text"] == made["talk"]["text"] and made["words"]["text"] == "WHO? A GOOD ONE"
    assert json.loads(made["words"]["rejected"]) == "A BAD ONE" and made["words"]["score"] == 4.0


def test_an_edit_is_lazy() -> None:
    def loud(text: str) -> str:
        raise AssertionError("it ran")

    assert editing.edit(frame(ROWS), loud).column_names == frame(ROWS).column_names


def test_what_comes_behind_an_edit_is_not_seen_by_it() -> None:
    """The engine may fuse an edit of a column with one before it."""
    table = editing.edit(frame(ROWS), lambda text: text.upper())
    made = told(table.with_columns({name: daft.lit("gone") for name in ("text", "messages", "chosen")}))
    assert made["words"]["rejected"] == '"A BAD ONE"' and made["plain"]["text"] == "gone"
    made = told(editing.edit(table.with_column("text", daft.lit("new")), lambda text: text + "!"))
    assert made["plain"]["text"] == "new!"
    assert made["talk"]["text"] == "WHO ARE YOU?!\n\n!\n\nZOË, A LONG ANSWER.!"


def test_plain_documents_are_those_of_text_alone() -> None:
    assert list(told(editing.plain(frame(ROWS)))) == ["plain"]


@pytest.mark.parametrize("method", [ShortText(), OtherMessages()])
def test_an_edit_that_would_be_lost_is_refused_and_names_its_method(tmp_path: Path, method: Curate) -> None:
    with pytest.raises(UserError,
                       match=rf"the method '{method.name}' hands on 12 documents whose text is not what "
                             rf"their "
                       r"messages say, the first 'chat0'.*trainwright\.corpus\.editing\.edit"):
        build(tmp_path / "c", chat(), Short(), method, Short(), chat_template="chatml")


def test_the_same_edit_of_plain_documents_is_free(tmp_path: Path) -> None:
    build(tmp_path / "one", texts(20), ShortText())
    build(tmp_path / "two", texts(20), Short())
    one, two = (Corpus(tmp_path / name).select("train") for name in ("one", "two"))
    assert one.length.tolist() == two.length.tolist() and one.length.max() < 15


def test_what_is_edited_is_what_is_learned(tmp_path: Path) -> None:
    """A conversation cut to ten characters a message had all of its 2,228 bytes in the tokens before."""
    build(tmp_path / "c", [*chat(), *texts(12)], Short(), chat_template="chatml")
    read = Corpus(tmp_path / "c")
    found = read.select("train", ["chat"])
    for i in range(len(found)):
        said = read.tokenizer.decode(read.read(int(found.shard[i]), int(found.offset[i]),
                                               int(found.length[i])))
        assert said == "<|im_start|>user\nQuestion n<|im_end|>\n<|im_start|>assistant\nAnswer num<|im_end|>\n"


def test_rows_that_have_come_apart_are_found_by_hand() -> None:
    table = frame(ROWS).with_column("text", daft.lit("else")).to_arrow()
    assert editing.apart(table) == ["talk", "pair", "words"] and editing.apart(frame(ROWS).to_arrow()) == []
