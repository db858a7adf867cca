"""What stands in and beside the turns of a conversation is used, or refused; none of it vanishes."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.sources.text.test_text import jsonl, rows, written
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.data.sources.text.text import Text

ASK, SAY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "arr"}
PIRATE = {"role": "system", "content": "you are a pirate"}
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}


def one(root: Path, row: dict[str, Any]) -> dict[str, Any]:
    found, = rows(written(root, {"t.jsonl": jsonl([row])}), paths=["t.jsonl"])
    return found


def talk(root: Path, row: dict[str, Any]) -> Any:
    return json.loads(one(root, row)["messages"])


def said(root: Path, *answers: dict[str, Any]) -> Any:
    """The answers of a conversation that has these."""
    return talk(root, {"messages": [ASK, *answers]})[1:]


SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "arr"}]


@pytest.mark.parametrize(("row", "asked"), [
    ({"instruction": "hi", "output": "arr"}, "hi"),
    ({"instruction": "translate", "input": "hi", "output": "arr"}, "translate\n\nhi"),
    ({"instruction": "translate", "input": "", "output": "arr"}, "translate"),
    ({"instruction": "who", "context": "a ship", "response": "arr", "category": "qa"}, "who\n\na ship"),
    ({"prompt": "hi", "response": "arr"}, "hi"),
    ({"question": "hi", "answer": "arr"}, "hi"),
    ({"query": "hi", "response": "arr"}, "hi"),
    ({"input": "hi", "output": "arr"}, "hi"),
])
def test_a_question_and_its_answer_are_a_conversation(
    tmp_path: Path, row: dict[str, Any], asked: str
) -> None:
    assert talk(tmp_path, row) == [{"role": "user", "content": asked}, SAY]
    found = talk(tmp_path, row | {"system": "you are a pirate"})
    assert found == [PIRATE, {"role": "user", "content": asked}, SAY]


def test_columns_of_a_conversation_are_named_as_the_table_has_them(tmp_path: Path) -> None:
    row = {"Frage": "hi", "reply": "arr", "text": "beside", "n": 1}
    found, = rows(written(tmp_path, {"t.jsonl": jsonl([row])}), paths=["t.jsonl"],
                  columns={"prompt": "Frage", "answer": "reply"})
    assert json.loads(found["messages"]) == [ASK, SAY]
    assert json.loads(found["metadata"]) == {"text": "beside", "n": 1}, "nothing of it is lost"
    with pytest.raises(UserError, match="row 1: the column 'reply' must hold text, not 7"):
        rows(written(tmp_path, {"t.jsonl": jsonl([row | {"reply": 7}])}), paths=["t.jsonl"],
             columns={"prompt": "Frage", "answer": "reply"})
    with pytest.raises(ValueError, match="an answer without the prompt"):
        Text(paths=["t.jsonl"], columns={"answer": "reply"})


def test_a_text_is_not_taken_for_a_conversation(tmp_path: Path) -> None:
    found = one(tmp_path, {"text": "a story", "question": "hi", "answer": "arr"})
    assert found["messages"] is None and found["text"] == "a story"
    assert json.loads(found["metadata"]) == {"question": "hi", "answer": "arr"}


@pytest.mark.parametrize(("row", "told"), [
    ({"question": "hi", "answer": "a", "response": "b"}, "response and answer may both be the answer"),
    ({"question": "hi", "prompt": "ho", "answer": "a"}, "prompt and question may both be what is asked"),
])
def test_two_columns_for_one_thing_are_told_apart_by_the_user(
    tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        one(tmp_path, row)


@pytest.mark.parametrize("row", [
    {"system": "you are a pirate", "conversations": SHAREGPT},
    {"system_prompt": "you are a pirate", "messages": [ASK, SAY], "system": None},
    {"system": "you are a pirate", "prompt": "hi", "completion": "arr"},
    {"system": "you are a pirate", "messages": [PIRATE, ASK, SAY]},
    {"system": "", "messages": [PIRATE, ASK, SAY]}])
def test_a_system_prompt_beside_the_turns_is_the_first_message(tmp_path: Path, row: dict[str, Any]) -> None:
    found = one(tmp_path, row)
    assert (
        json.loads(found["messages"]) == [PIRATE, ASK, SAY]
        and found["text"] == "you are a pirate\n\nhi\n\narr"
    )
    assert found["metadata"] == "{}"


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": [json.dumps(TOOL)]},
        {"functions": [TOOL["function"]]},
    ],
)
def test_tools_beside_the_turns_lie_on_the_first_message(tmp_path: Path, row: dict[str, Any]) -> None:
    assert talk(tmp_path, row | {"messages": [ASK, SAY]}) == [ASK | {"tools": [TOOL]}, SAY]
    assert talk(tmp_path, row | {"system": PIRATE["content"], "messages": [ASK, SAY]})[0] == PIRATE | {
        "tools": [TOOL]
    }
    assert talk(tmp_path, {"tools": [], "messages": [ASK, SAY]}) == [ASK, SAY]


def test_pairs_take_up_what_stands_beside_them(tmp_path: Path) -> None:
    other = {"role": "assistant", "content": "ahoy"}
    of_messages = {"prompt": [ASK], "chosen": [SAY], "rejected": [other]}
    of_texts = {"prompt": "hi", "chosen": "arr", "rejected": "ahoy"}
    for pair in (of_messages, of_texts):
        found = one(tmp_path, pair | {"system": PIRATE["content"], "tools": [TOOL]})
        assert json.loads(found["prompt"]) == [PIRATE | {"tools": [TOOL]}, ASK]
        assert (json.loads(found["chosen"]), json.loads(found["rejected"])) == ([SAY], [other])
    assert json.loads(one(tmp_path, of_texts)["chosen"]) == "arr", "texts without a system prompt stay texts"


@pytest.mark.parametrize("key", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": 0.0},
                                 {"weight": 1, "train": False}, {"trainable": False}, {"loss_scale": 0},
                                 {"masked": True}, {"mask": 1}, {"ignore": True, "weight": 1}])
def test_an_answer_that_is_not_to_be_learned_has_weight_0(tmp_path: Path, key: dict[str, Any]) -> None:
    assert said(tmp_path, SAY | key, SAY | {"weight": 1}, SAY | {"train": None}) == [
        SAY | {"weight": 0},
        SAY,
        SAY,
    ]
    turns = [{"from": "human", "value": "hi", "weight": 0}, {"from": "gpt", "value": "arr"} | key]
    assert talk(tmp_path, {"conversations": turns}) == [ASK, SAY | {"weight": 0}]


def test_contents_that_are_null_or_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, "r", {"text": "r", "type": "text"}]
    assert said(tmp_path, SAY | {"content": parts}) == [SAY]
    assert said(tmp_path, SAY | {"content": None}) == [SAY | {"content": ""}]
    calling = {"role": "assistant", "tool_calls": [CALL]}
    for answer in (calling, calling | {"content": None}, calling | {"content": ""}):
        assert said(tmp_path, answer) == [calling | {"content": ""}]
    assert said(tmp_path, SAY | {"tool_calls": []}) == [SAY], "templates ask whether the key is there"


@pytest.mark.parametrize("call", [
    CALL, {"function": {"name": "weather", "arguments": '{"city": "Paris"}'}},
    {"name": "weather", "arguments": {"city": "Paris"}}, json.dumps(CALL),
    {"type": "function", "function": {"name": "weather", "parameters": {"city": "Paris"}}}])
def test_calls_of_tools_have_one_form(tmp_path: Path, call: Any) -> None:
    assert said(tmp_path, SAY | {"tool_calls": [call]})[0]["tool_calls"] == [CALL]
    if isinstance(call, dict) and "name" in call:
        assert said(tmp_path, {"role": "assistant", "content": None, "function_call": call})[0][
            "tool_calls"
        ] == [CALL]


def test_a_null_argument_is_one_in_json(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": None, "b": {"c": None}}}}
    assert said(tmp_path, SAY | {"tool_calls": [call]})[0]["tool_calls"] == [call]


def test_keys_that_only_other_rows_have_are_no_arguments_in_parquet(tmp_path: Path) -> None:
    def asked(name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        return [ASK, {"role": "assistant", "content": None, "tool_calls": calls}]

    table = [
        {"messages": asked("weather", {"city": "Paris"})},
        {"messages": asked("add", {"a": {"x": 1}, "b": 2})},
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    found = [json.loads(row["messages"]) for row in rows(tmp_path, paths=["t.parquet"])]
    assert [f[1]["tool_calls"][0]["function"]["arguments"] for f in found] == [
        {"city": "Paris"},
        {"a": {"x": 1}, "b": 2},
    ]
    assert found[0][0] == ASK and found[0][1]["content"] == ""


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"system": "a", "messages": [PIRATE, SAY]}, "begins with a system message, and a column beside it"),
        ({"system": "a", "system_prompt": "b", "messages": [ASK, SAY]}, "two system prompts"),
        (
            {"system": 5, "messages": [ASK, SAY]},
            "column system beside a conversation is its system prompt, a text, not 5",
        ),
        (
            {"tools": "fork", "messages": [ASK, SAY]},
            "tools is a list of objects that describe tools.* not 'fork'",
        ),
        ({"tools": [TOOL], "functions": [{}], "messages": [ASK, SAY]}, "both name tools"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "messages": [ASK, SAY]},
            "chat_template_kwargs changes",
        ),
        (
            {"messages": [ASK, SAY | {"tools": [TOOL]}]},
            "message 2 has tools, which belong to the first message",
        ),
        ({"messages": [ASK, SAY], "weight": 0.5}, "the column 'weight' is 0.5, and no row counts more"),
        ({"messages": [ASK, SAY], "train": False}, "the column 'train' is False, and no row counts more"),
        ({"messages": [ASK, SAY | {"weight": 0.5}]}, "weight of a message is 0 or 1.* not 0.5"),
        ({"messages": [ASK, SAY | {"weight": "0"}]}, "weight of a message is 0 or 1.* not '0'"),
        (
            {"messages": [ASK | {"train": True}, SAY]},
            "train of a message from 'user' is True, but only what the assistant",
        ),
        ({"messages": [ASK | {"content": None}, SAY]}, "content of a message must be text, not 'None'"),
        ({"messages": [ASK, {"role": "assistant", "text": "arr"}]}, "content of a message must be text"),
        (
            {"messages": [ASK | {"content": [{"type": "image_url", "image_url": "x"}]}]},
            "an image or a sound stands in",
        ),
        (
            {"messages": [ASK, SAY | {"tool_calls": [{"function": {"name": "f", "arguments": "{bad"}}]}]},
            "arguments of the call of 'f' must be an object",
        ),
        (
            {"messages": [ASK, SAY | {"tool_calls": [{"function": {"arguments": {}}}]}]},
            "a tool call is {type",
        ),
        ({"messages": [ASK, SAY | {"tool_calls": {"a": 1}}]}, "tool_calls must be a list"),
        ({"conversations": [{"from": ["a"], "value": "b"}]}, "conversations are from"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=rf"^t\.jsonl, row 1: .*{told}"):
        one(tmp_path, row)


def test_columns_of_which_nothing_is_made_are_named_once(tmp_path: Path) -> None:
    written(tmp_path, {"t.jsonl": jsonl([{"messages": [ASK, SAY], "score": 1, "key": "a"}] * 2
                                        + [{"text": "b", "score": 2, "url": "u", "key": "b"}])})
    ctx = Context(root=tmp_path)
    table = Text(paths=["t.jsonl"], domain="d").apply(documents.empty(), ctx)
    assert len(list(documents.stream(table))) > 0
    assert ctx.texts == {"not understood, kept as metadata": "key, score, url"}
