"""Conversations and preference pairs in rows of tables: turns of every convention, and
what stands beside them.

What changes the meaning of a conversation is made into its messages, or refused: a system prompt in a column
of its own becomes the first message, tools lie on the first message under ``tools``, and an answer that is
not to be learned has ``weight`` 0. Calls of tools have the form that chat templates read: ``{type, function:
{name, arguments}}`` with arguments as an object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trainwright.core.errors import UserError
from trainwright.core.shown import brief

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
         "bard": "assistant",
         "user": "user", "assistant": "assistant", "system": "system", "tool": "tool", "function": "tool",
         "observation": "tool"}
"""Who speaks in ``conversations`` (the ShareGPT convention), and the role that chat templates know."""
ANSWER = "answer"
"""The name under which a recipe names the column of the answer."""
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
"""Columns beside the turns that the first message takes up."""
REFUSED = ("chat_template_kwargs",)
"""Columns beside the turns that would change what a chat template makes of them."""
WEIGHTS = ("weight", "train", "training", "loss", "trainable", "learn", "loss_weight", "loss_scale")
"""Keys of a message that say whether it is learned, by convention of several programs."""
MASKED = ("masked", "mask", "ignore")
"""Keys that say that it is not."""
SILENT = ("assistant", "tool")
"""Roles that may say nothing: null is an empty text."""

ASKED = ("instruction", "prompt", "question", "query", "input")
"""Columns of what is asked, in the conventions of tables with one question and one answer a row."""
GIVEN = ("input", "context")
"""Columns of what a question is about, behind it (Alpaca, Dolly)."""
ANSWERED = ("output", "response", "answer", "completion", "reply")
"""Columns of the answer."""

Message = dict[str, Any]


def conversation(
    row: Mapping[str, Any], where: str, named: Mapping[str, str], field: str
) -> tuple[list[Message] | None, set[str]]:
    """Messages of a row and the columns they stood in: ``messages``, ``conversations``, or a question and its
    answer, with a system prompt and tools beside them. None where the row is no conversation: a question and
    an answer are taken for one only where the recipe names their columns, or no column ``field`` has a text.

    Raises:
        UserError: something that is no message, or that would be lost.
    """
    turns, used = _turns(row, where, named, field)
    if turns is None:
        return None, set()
    asked, beside = _beside(row, where)
    return _together(asked, messages(turns, where), where), used | beside


def _turns(
    row: Mapping[str, Any], where: str, named: Mapping[str, str], field: str
) -> tuple[list[Any] | None, set[str]]:
    if ANSWER in named:
        return _question(row, [named["prompt"]], named[ANSWER], where)
    if row.get("messages") is not None:
        return _list(row["messages"], where, "messages"), {"messages"}
    if row.get("conversations") is not None:
        turns = _list(row["conversations"], where, "conversations")
        return [_sharegpt(turn, where) for turn in turns], {"conversations"}
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return [_user(prompt), {"role": "assistant", "content": completion}], {"prompt", "completion"}
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion], {"prompt", "completion"}
    asked = [n for n in ASKED if isinstance(row.get(n), str) and row[n]]
    answered = [n for n in ANSWERED if isinstance(row.get(n), str)]
    if field in row or not asked or not answered:
        return None, set()
    if len(answered) > 1:
        raise UserError(f"{where}: the columns {' and '.join(answered)} may both be the answer: say which "
                        f"with columns = {{ prompt = {asked[0]!r}, answer = {answered[0]!r} }}.")
    about = [n for n in GIVEN if n not in asked[:1] and isinstance(row.get(n), str)]
    if others := [n for n in asked[1:] if n not in about]:
        raise UserError(f"{where}: the columns {asked[0]} and {others[0]} may both be what is asked: say "
                        f"which with columns = {{ prompt = {asked[0]!r}, answer = {answered[0]!r} }}.")
    return _question(row, [asked[0], *about], answered[0], where)


def _question(
    row: Mapping[str, Any], asked: list[str], answered: str, where: str
) -> tuple[list[Message], set[str]]:
    """A question, of several columns a paragraph each, and its answer."""
    for name in (*asked, answered):
        if not isinstance(row.get(name), str):
            raise UserError(f"{where}: the column {name!r} must hold text, not {brief(row.get(name))}.")
    question = "\n\n".join(row[name] for name in asked if row[name])
    return [_user(question), {"role": "assistant", "content": row[answered]}], {*asked, answered}


def preference(
    row: Mapping[str, Any], pair: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], set[str]]:
    """Prompt, chosen and rejected of a pair, and the columns beside it that went in. Those that are strings
    stay text, where no system prompt makes a conversation of them. Of lists of messages the prompt is what
    both answers begin with, behind the column ``prompt`` where they do not repeat that."""
    answers = [pair["chosen"], pair["rejected"]]
    added, used = _beside(row, where)
    if all(isinstance(one, str) for one in answers) and isinstance(pair.get("prompt"), str | None):
        if added == (None, None):
            return dict(pair), used
        answers = [[{"role": "assistant", "content": one}] for one in answers]
    chosen, rejected = (messages(_list(one, where, name), where)
                        for one, name in zip(answers, ("chosen", "rejected"), strict=True))
    prompt = pair.get("prompt") or []
    asked = messages([_user(prompt)] if isinstance(prompt, str) else prompt, where)
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
                min(len(chosen), len(rejected)))
    shared = chosen[:same]
    if not chosen[same:] or not rejected[same:]:
        raise UserError(f"{where}: chosen and rejected are the same, or one is the beginning of the other.")
    before = shared if shared[:len(asked)] == asked else [*asked, *shared]
    if before or added[0] is not None:
        before, added = _together(added, before, where), (None, None)
    chosen, rejected = (_together(added, one[same:], where) for one in (chosen, rejected))
    return {"prompt": before, "chosen": chosen, "rejected": rejected}, used


# ---- what stands beside the turns --------------------------------------------------------------------


def _beside(row: Mapping[str, Any], where: str) -> tuple[tuple[str | None, list[Any] | None], set[str]]:
    """The system prompt and the tools in columns of their own, and the names of those columns."""
    for name in REFUSED:
        if row.get(name):
            raise UserError(f"{where}: the column {name} changes what the chat template writes, and is not "
                            "supported: leave it out, and put what it sets into a template of your own.")
    system = [(name, row[name]) for name in SYSTEM if row.get(name) not in (None, "")]
    for name, value in system:
        if not isinstance(value, str):
            raise UserError(f"{where}: the column {name} beside a conversation is its system prompt, a text, "
                            f"not {brief(value)}.")
    if len({value for _, value in system}) > 1:
        raise UserError(f"{where}: the columns {' and '.join(SYSTEM)} are two system prompts: keep one.")
    tools = [_tools(row[name], name, where) for name in TOOLS if row.get(name) not in (None, "", [])]
    if len(tools) > 1:
        raise UserError(f"{where}: the columns {' and '.join(TOOLS)} both name tools: keep one.")
    used = {name for name in (*SYSTEM, *TOOLS) if name in row}
    return (system[0][1] if system else None, tools[0] if tools else None), used


def _together(beside: tuple[str | None, list[Any] | None], turns: list[Message], where: str) -> list[Message]:
    """The messages with a system prompt in front, and with tools on the first of them."""
    system, tools = beside
    if system is not None:
        if turns and turns[0]["role"] == "system" and turns[0]["content"] != system:
            raise UserError(f"{where}: the conversation begins with a system message, and a column beside it "
                            "has another system prompt: keep one of them.")
        if not turns or turns[0]["role"] != "system":
            turns = [{"role": "system", "content": system}, *turns]
    if tools is not None:
        if turns[0].get("tools", tools) != tools:
            raise UserError(f"{where}: tools stand in a column and, others, in the first message: keep one.")
        turns = [turns[0] | {"tools": tools}, *turns[1:]]
    return turns


def _tools(value: Any, name: str, where: str) -> list[Any]:
    """Tools as chat templates read them: a list of ``{type, function}``."""
    tools = _parsed(value)
    tools = [_parsed(tool) for tool in tools] if isinstance(tools, list) else None
    if tools is None or not all(isinstance(tool, Mapping) for tool in tools):
        raise UserError(f"{where}: {name} is a list of objects that describe tools, or that as JSON, "
                        f"not {brief(value)}.")
    return tools if name == "tools" else [{"type": "function", "function": tool} for tool in tools]


# ---- messages ----------------------------------------------------------------------------------------


def messages(turns: Sequence[Any], where: str) -> list[Message]:
    """Turns as messages of ``{role, content}`` and what else a chat template may read."""
    made = [_message(turn, where) for turn in turns]
    for number, message in enumerate(made):
        if "tools" in message and number:
            raise UserError(f"{where}: message {number + 1} has tools, which belong to the first message, or "
                            "to a column tools.")
    return made


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        raise UserError(f"{where}: a message must be {{role, content}}, not {brief(turn)}.")
    made = {key: value for key, value in turn.items() if value is not None}
    if "tools" in made and made["tools"] not in ("", []):
        made["tools"] = _tools(made["tools"], "tools", where)
    elif "tools" in made:
        del made["tools"]
    calls = _calls(made.pop("tool_calls", None), made.pop("function_call", None), where)
    made["content"] = _content(turn, bool(calls), where)
    if calls:
        made["tool_calls"] = calls
    return _weighed(made, where)


def _content(turn: Mapping[str, Any], calls: bool, where: str) -> str:
    content = turn.get("content")
    if content is None and (calls or ("content" in turn and turn["role"] in SILENT)):
        return ""
    parts = [_part(part) for part in content] if isinstance(content, list) else [content]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return "".join(texts)
    raise UserError(
        f"{where}: the content of a message must be text, not {brief(str(content))}: text, or a list "
        "of parts {type = \"text\", text}; an image or a sound stands in a column of its own."
    )


def _part(part: Any) -> Any:
    """The text of a part of a message's content; anything else where it has none."""
    return part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part


def _calls(calls: Any, call: Any, where: str) -> list[Any]:
    """Calls of tools with their arguments as objects; ``call`` is the single one of an older convention."""
    calls = _parsed(calls)
    if calls is None or calls == []:
        calls = [] if call is None else [call]
    if not isinstance(calls, list):
        raise UserError(f"{where}: tool_calls must be a list, not {brief(calls)}.")
    return [_call(_parsed(one), where) for one in calls]


def _call(call: Any, where: str) -> Any:
    rest = {k: v for k, v in call.items() if v is not None} if isinstance(call, Mapping) else {}
    function = rest.pop("function", None)
    if function is None:
        function, rest = rest, {"id": rest["id"]} if "id" in rest else {}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(
            f"{where}: a tool call is {{type, function: {{name, arguments}}}}, not {brief(call)}."
        )
    given = function.get("arguments", function.get("parameters"))
    arguments = {} if given in (None, "") else _parsed(given)
    if not isinstance(arguments, Mapping):
        raise UserError(f"{where}: the arguments of the call of {brief(function['name'])} must be an object, "
                        f"or one as JSON, not {brief(given)}.")
    return {"type": "function"} | rest | {"function": {"name": function["name"], "arguments": arguments}}


def _weighed(message: Message, where: str) -> Message:
    """The message with ``weight`` 0 where the assistant's words are not learned, and without it elsewhere."""
    said = {name: message.pop(name) for name in (*WEIGHTS, *MASKED) if name in message}
    for name, value in said.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UserError(
                f"{where}: {name} of a message is 0 or 1, or false or true, not {brief(value)}: a "
                "message is learned or not."
            )
        if value and name in WEIGHTS[1:] and message["role"] != "assistant":
            raise UserError(
                f"{where}: {name} of a message from {brief(message['role'])} is {brief(value)}, but "
                "only what the assistant says is learned."
            )
    unlearned = message["role"] == "assistant" and any(bool(v) == (n in MASKED) for n, v in said.items())
    return message | ({"weight": 0} if unlearned else {})


def _user(prompt: str) -> Message:
    return {"role": "user", "content": prompt}


def _sharegpt(turn: Any, where: str) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    if not isinstance(turn["from"], str) or turn["from"] not in ROLES:
        raise UserError(
            f"{where}: conversations are from {', '.join(sorted(ROLES))}, not {brief(turn['from'])}."
        )
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    return {"role": ROLES[turn["from"]], "content": turn.get("value")} | rest


def _list(value: Any, where: str, column: str) -> list[Any]:
    found = _parsed(value)
    if not isinstance(found, list) or not found:
        raise UserError(f"{where}: {column} must be a list of at least one message.")
    return found


def _parsed(value: Any) -> Any:
    """What a text that is JSON says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
