"""Conversations as tokens: rendered by a chat template, with a mask of what the assistant says.

A template marks the assistant's part with ``{% generation %}``. The mask covers every token that overlaps
such a part: the answer and the token that ends its turn, in every turn, and nothing else. Where the
tokenizer's own template lacks the marks, ``chat_template = "by_turn"`` finds the parts by rendering the
conversation turn by turn, for templates that only ever append. Control tokens that stand in a message are
read as control tokens, as ``apply_chat_template`` does.

Tools that lie on the first message are handed to the template as ``tools``; a message of ``weight`` 0 is not
trained. A template that never asks for tools, or for the calls of them, is refused
where a conversation has any.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainwright.core.errors import UserError, suggest

TEMPLATES = Path(__file__).parent / "templates"
BY_TURN = "by_turn"
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
OURS = ("weight", "tools")
"""Keys of a message that are for us, and not for templates."""
WHOLE = ("tojson", "items", "dictsort", "string")
"""Filters that write everything that is in a message."""
COMPARED = 16
"""Conversations on which a chosen template is held against the tokenizer's own."""

Span = tuple[int, int]
Encoded = tuple[NDArray[np.int64], NDArray[np.bool_], int]
"""Tokens, the mask of the trained ones, and the UTF-8 bytes of the rendered text."""


class Rendered(NamedTuple):
    """A conversation as text, and the parts of it (start and end, in characters) that the assistant says."""

    text: str
    spans: list[Span]


class Survey(NamedTuple):
    """What of the conversations of a corpus a person should hear of."""

    empty: int
    """Conversations with an answer that says nothing and is learned."""
    unread: dict[str, int]
    """Keys of messages that the template does not read, and the conversations that have them."""


class Chat:
    """One tokenizer with one template.

    Args:
        tokenizer: a transformers ``PreTrainedTokenizerFast``.
        chosen: the setting ``chat_template``: None (the tokenizer's own, which must carry the marks),
            ``by_turn``, the name of a built-in template, or a file.

    Raises:
        UserError: there is no such template, or none that marks what the assistant says.
    """

    def __init__(self, tokenizer: Any, chosen: str | None) -> None:
        self.tokenizer = tokenizer
        self.own = own_template(tokenizer)
        self.by_turn = chosen == BY_TURN
        self.template = _resolve(self.own, chosen)
        foreign = chosen is not None and not self.by_turn
        self.compare = foreign and self.own is not None and not MARKS.search(self.own)
        self.backend = _exact_offsets(tokenizer.backend_tokenizer)
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ends = special | {tokenizer.eos_token_id}
        self.variables, self.reads = _read_by(self.template)

    @property
    def fingerprint(self) -> str:
        """What the tokens of a conversation depend on, beside the tokenizer."""
        return f"{self.by_turn}\n{self.template}"

    def encode(self, names: Sequence[str], conversations: Sequence[str],
               given: Sequence[int] = ()) -> list[Encoded]:
        """The tokens of conversations given as JSON. ``given`` says of each how many of its messages are a
        prompt: nothing is trained that the assistant says there.

        Raises:
            UserError: the template refuses one (named by ``names``), or leaves the end of a turn unmarked.
        """
        rendered = [self.render(name, json.loads(one))
                    for name, one in zip(names, conversations, strict=True)]
        encodings = self.backend.encode_batch([one.text for one in rendered], add_special_tokens=False)
        found = []
        for i, (name, (text, spans), encoding) in enumerate(zip(names, rendered, encodings, strict=True)):
            spans = self._learned(name, json.loads(conversations[i]), spans, given[i] if given else 0)
            ids = np.array(encoding.ids, dtype=np.int64)
            mask = self._mask(name, ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), spans)
            found.append((ids, mask, len(text.encode())))
        return found

    def _learned(
        self, name: str, messages: list[dict[str, Any]], spans: list[Span], given: int
    ) -> list[Span]:
        """The parts that are neither of the ``given`` messages nor of one of weight 0."""
        silent = [i for i, m in enumerate(messages) if m.get("weight") == 0 and i >= given]
        if not silent and not given:
            return spans
        left_out = set(range(self._said(name, messages[:given])))
        for i in silent:
            left_out.update(range(self._said(name, messages[:i]), self._said(name, messages[:i + 1])))
        return [span for number, span in enumerate(spans) if number not in left_out]

    def _said(self, name: str, prompt: list[dict[str, Any]]) -> int:
        """How many parts of a prompt the assistant says."""
        return len(self.render(name, prompt).spans) if any(m["role"] == "assistant" for m in prompt) else 0

    def _mask(self, name: str, ids: NDArray[np.int64], offsets: NDArray[np.int64],
              spans: list[Span]) -> NDArray[np.bool_]:
        mask = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            said = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            if said.any() and int(ids[said.nonzero()[0][-1]]) not in self.ends:
                raise UserError("the chat template leaves the end of the assistant's turn out of "
                                f"{{% generation %}} (document {name!r}): the model would never learn to "
                                "stop; put the end-of-turn token inside.")
            mask |= said
        return mask

    def render(self, name: str, messages: list[dict[str, Any]]) -> Rendered:
        """One conversation as text with the parts that the assistant says."""
        tools = tools_of(messages)
        self._refuse_loss(name, messages, tools)
        if self.by_turn:
            return self._render_by_turn(name, messages, tools)
        text, spans = self._apply(name, messages, self.template, tools, marked=True)
        return Rendered(text, spans)

    def _refuse_loss(self, name: str, messages: list[dict[str, Any]], tools: list[Any] | None) -> None:
        calls = self.reads is not None and "tool_calls" not in self.reads
        lost = ["tools"] if tools and "tools" not in self.variables else []
        lost += ["tool_calls"] if calls and any(m.get("tool_calls") for m in messages) else []
        if lost:
            raise UserError(f"the document {name!r} has {lost[0]}, which the chat template never writes: set "
                            'chat_template = "chatml", or to a file that does.')

    def _render_by_turn(self, name: str, messages: list[dict[str, Any]], tools: list[Any] | None) -> Rendered:
        whole, _ = self._apply(name, messages, self.template, tools)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, _ = self._apply(name, messages[:turn], self.template, tools, prompt=True)
            after, _ = self._apply(name, messages[: turn + 1], self.template, tools)
            if not after.startswith(before) or not whole.startswith(after):
                raise UserError("the tokenizer's chat template renders a turn differently once others follow "
                                f"(document {name!r}, message {turn + 1}), so that {BY_TURN!r} cannot find "
                                "the answers: set chat_template "
                                "to a copy of it with {% generation %} marks.")
            spans.append((len(before), len(before) + len(after[len(before):].rstrip())))
        return Rendered(whole, spans)

    def _apply(self, name: str, messages: list[dict[str, Any]], template: str, tools: list[Any] | None,
               marked: bool = False, prompt: bool = False) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template
        plain = [{key: value for key, value in message.items() if value is not None and key not in OURS}
                 for message in messages]
        try:
            texts, spans = render_jinja_template([plain], tools=tools, chat_template=template,
                                                 return_assistant_tokens_mask=marked,
                                                 add_generation_prompt=prompt,
                                                 **self.tokenizer.special_tokens_map)
        except Exception as error:  # a template is a program of its own, which may fail in any way
            raise UserError(f"the chat template cannot render the document {name!r}: {error}.") from None
        return texts[0], [tuple(span) for span in spans[0]] if marked else []

    def check(self, names: Sequence[str], conversations: Sequence[str]) -> None:
        """Hold a chosen template against the tokenizer's own on the first examples: both must render the same
        text.

        Raises:
            UserError: they differ, so that the model would be trained on another format than it knows.
        """
        if not self.compare:
            return
        assert self.own is not None
        for name, one in list(zip(names, conversations, strict=True))[:COMPARED]:
            messages = json.loads(one)
            ours, _ = self._apply(name, messages, self.template, tools_of(messages))
            own, _ = self._apply(name, messages, self.own, tools_of(messages))
            if ours != own:
                at = next((i for i, (a, b) in enumerate(zip(ours, own, strict=False)) if a != b),
                          min(len(ours), len(own)))
                raise UserError("the chosen chat template and the tokenizer's own differ on document "
                                f"{name!r} at character {at}: {ours[at:at + 40]!r} instead of "
                                f"{own[at:at + 40]!r}; set chat_template = {BY_TURN!r} to keep the "
                                "tokenizer's own, or to a copy of it with {% generation %} marks.")


    def survey(self, conversations: Iterable[str]) -> Survey:
        """What of conversations given as JSON a person should hear of."""
        empty, unread = 0, Counter[str]()
        for one in conversations:
            messages = json.loads(one)
            empty += any(m["role"] == "assistant" and m.get("weight") != 0 and not m.get("tool_calls")
                         and not (m.get("content") or "").strip() for m in messages)
            if self.reads is not None:
                unread.update({key for m in messages for key in m if key not in self.reads} - set(OURS))
        return Survey(empty, dict(sorted(unread.items())))


def tools_of(messages: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """The tools of a conversation, which lie on its first message."""
    return (messages[0].get("tools") or None) if messages else None


def _read_by(template: str) -> tuple[set[str], set[str] | None]:
    """The variables that a template reads, and the keys of messages: None where it writes whole messages, and
    so all of them.

    Raises:
        UserError: it is no template.
    """
    from jinja2 import Environment, TemplateSyntaxError, nodes
    plain = re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{%\1 set _ = 0 \2%}", template)
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(plain)
    except TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is no Jinja template (line {error.lineno}: {error.message})."
        ) from None
    variables = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    turns = {"messages", *(loop.target.name for loop in tree.find_all(nodes.For)
                           if isinstance(loop.target, nodes.Name) and _of_messages(loop.iter))}
    whole = any(isinstance(f.node, nodes.Name) and f.node.name in turns and f.name in WHOLE
                for f in tree.find_all(nodes.Filter))
    keys = {get.attr for get in tree.find_all(nodes.Getattr)}
    keys |= {one.value for one in tree.find_all(nodes.Const) if isinstance(one.value, str)}
    return variables, None if whole else keys


def _of_messages(iterated: Any) -> bool:
    """Whether a loop goes over messages, whatever part of them."""
    from jinja2 import nodes
    names = [*iterated.find_all(nodes.Name), *([iterated] if isinstance(iterated, nodes.Name) else [])]
    return any("messages" in name.name for name in names)


def own_template(tokenizer: Any) -> str | None:
    """The tokenizer's template for plain chat, where it has one."""
    own = tokenizer.chat_template
    return own.get("default") if isinstance(own, dict) else own


@cache
def built_in() -> dict[str, Path]:
    """The templates that come with the package, by name."""
    return {file.stem: file for file in sorted(TEMPLATES.glob("*.jinja"))}


def _resolve(own: str | None, chosen: str | None) -> str:
    ready = " or ".join(f'"{name}"' for name in built_in())
    if chosen is None or chosen == BY_TURN:
        if own is None:
            raise UserError("the corpus has conversations but the tokenizer has no chat template; set "
                            f"chat_template = {ready}, or to a file of your own.")
        if chosen is None and not MARKS.search(own):
            raise UserError("the tokenizer's chat template does not mark what the assistant says with "
                            f'{{% generation %}}; set chat_template = {ready}, "{BY_TURN}" (its own, '
                            "rendered turn by turn), or to a file of your own.")
        return own
    file = built_in().get(chosen, Path(chosen))
    if not file.is_file():
        known = suggest(chosen, [BY_TURN, *built_in()])
        raise UserError(f"chat_template = {chosen!r} is no file and no built-in template{known}.")
    template = file.read_text(encoding="utf-8")
    if not MARKS.search(template):
        raise UserError(f"the chat template {chosen!r} does not mark what the assistant says: put the answer "
                        "and the token that "
                        "ends the turn between {% generation %} and {% endgeneration %}.")
    return template


def _exact_offsets(backend: Any) -> Any:
    """A copy that neither truncates nor pads nor trims spaces off offsets, so that every character has its
    token."""
    from tokenizers import Tokenizer
    content = json.loads(backend.to_str())
    content |= {"truncation": None, "padding": None, "post_processor": None}
    return Tokenizer.from_str(json.dumps(content))


def control_tokens(chosen: str | None) -> list[str]:
    """The control tokens that a chosen template writes, for a tokenizer that is trained to go with it."""
    if chosen is None or chosen == BY_TURN:
        return []
    return sorted(set(re.findall(r"<\|\w+\|>", _resolve(None, chosen))))
