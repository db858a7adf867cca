"""Malformed inputs, drawn from a seed: recipes, commands, manifests, data files, chats.

Each is something that a disk, an editor or another program has written once.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from typer.main import get_command

from tests.conftest import LIFE
from tests.hostile.values import VALUES
from trainwright import cli

Draw = random.Random


@dataclass(frozen=True)
class Input:
    """A command with the files that it finds."""

    what: str
    """What is wrong with it, for people."""
    words: tuple[str, ...]
    files: dict[str, bytes] = field(default_factory=dict)
    refused: bool = False
    """Whether it must be refused; others may be carried out, or refused."""


# ---- recipes -----------------------------------------------------------------------------------------

TOKENS = [
    "[", "]", "[[", "{", "}", "=", '"', '"""', "'", "#", ",", "\\", "\\u12", "\\ud800", "\x00", "\x1b[31m",
    "\x7f", "\ufeff", "\u202e", "\r", "é", "🙂", "nan", "-inf", "1e999", "0x", "1__0", "9" * 400, "9" * 5000,
    "[" * 3000, "{a=" * 500, "1979-99-99", "true false", ".", "..", "~", "stage", "[[stage]]", '"\\"',
]
"""What editors, programs and hands leave in a file."""


def edited_text(draw: Draw) -> Input:
    """A recipe whose text was damaged."""
    text = LIFE
    edits = [_insert, _drop, _twice, _swap, _end, _requote]
    for edit in draw.choices(edits, k=draw.randrange(1, 3)):
        text = edit(text, draw)
    encode = draw.choice([_utf8] * 6 + [_bom, _utf16, _latin, _crlf, _noise])
    return Input(
        f"recipe: {encode.__name__} of an edited text", ("plan", "r.toml"), {"r.toml": encode(text, draw)}
    )


def _insert(text: str, draw: Draw) -> str:
    at = draw.randrange(max(1, len(text)))
    return text[:at] + draw.choice(TOKENS) + text[at:]


def _drop(text: str, draw: Draw) -> str:
    at = draw.randrange(max(1, len(text)))
    return text[:at] + text[at + draw.randrange(1, 60) :]


def _twice(text: str, draw: Draw) -> str:
    lines = text.split("\n")
    at = draw.randrange(len(lines))
    return "\n".join([*lines[:at], lines[at], *lines[at:]])


def _swap(text: str, draw: Draw) -> str:
    lines = text.split("\n")
    if len(lines) < 2:
        return text
    one, two = draw.sample(range(len(lines)), 2)
    lines[one], lines[two] = lines[two], lines[one]
    return "\n".join(lines)


def _end(text: str, draw: Draw) -> str:
    return text[: draw.randrange(max(1, len(text)))]


def _requote(text: str, draw: Draw) -> str:
    old, new = draw.choice(
        [('"', "'"), ("[[", "["), ("=", ":"), ("{", "("), ("\n", "\r"), (", ", " "), ("[", "")]
    )
    return text.replace(old, new, draw.randrange(1, 6))


def _utf8(text: str, draw: Draw) -> bytes:
    return text.encode()


def _bom(text: str, draw: Draw) -> bytes:
    return text.encode("utf-8-sig")


def _utf16(text: str, draw: Draw) -> bytes:
    return text.encode("utf-16")


def _latin(text: str, draw: Draw) -> bytes:
    return text.replace("tiny", "gr\u00f6\u00dfer").encode("latin-1", "replace")


def _crlf(text: str, draw: Draw) -> bytes:
    return text.replace("\n", "\r\n").encode()


def _noise(text: str, draw: Draw) -> bytes:
    return text.encode()[: draw.randrange(200)] + draw.randbytes(40)


def edited_table(draw: Draw) -> Input:
    """A recipe with a value that its author did not mean."""
    table = tomllib.loads(LIFE)
    what, refused = draw.choice([_value, _value, _value, _rename, _remove, _add])(table, draw)
    return Input(f"recipe: {what}", ("plan", "r.toml"), {"r.toml": toml(table).encode()}, refused)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in a table, as what holds it and its key there."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from places(value[key])


def _value(table: dict[str, Any], draw: Draw) -> tuple[str, bool]:
    holder, key = draw.choice(list(places(table)))
    what = draw.choice(WRITTEN)
    holder[key] = copy.deepcopy(VALUES[what])
    return f"{key} is {what}", False


def _rename(table: dict[str, Any], draw: Draw) -> tuple[str, bool]:
    holder, key = draw.choice(
        [(h, k) for h, k in places(table) if isinstance(h, dict) and k not in ("models",)]
    )
    new = draw.choice([key + "s", key.upper(), key[:-1], f"{key}.x", "", "\x1b[31m", "[/red]", "k" * 5000])
    holder[new] = holder.pop(key)
    return f"{key} is called {new[:20]!r}", True


def _remove(table: dict[str, Any], draw: Draw) -> tuple[str, bool]:
    holder, key = draw.choice(list(places(table)))
    del holder[key]
    return f"{key} is missing", False


def _add(table: dict[str, Any], draw: Draw) -> tuple[str, bool]:
    holder = draw.choice(
        [table, *table["stage"], table["stage"][1]["model"], table["stage"][0]["methods"][0]]
    )
    holder[draw.choice(["zzz", "nope", "~", "..", "\u202e", "use2", "__class__"])] = 1
    return "an unknown key", True


WRITTEN = [
    name
    for name in VALUES
    if name
    not in (
        "half a character", "deep lists", "deep tables", "deep in a table", "deep in a list",
        "5,000 digits", "a long list",
    )
]
"""Values that a text in TOML can hold, and that Python writes without recursion."""


def toml(value: Any, top: bool = True) -> str:
    """A table as TOML. Strings are written with every escape that they need."""
    if isinstance(value, dict) and top:
        return "".join(f"{toml(k, False)} = {toml(v, False)}\n" for k, v in value.items())
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(k, False)} = {toml(v, False)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(v, False) for v in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, float) and value == int(value if abs(value) < 1e300 else 0):
        return f"{value:.1f}"
    return str(value)


# ---- commands ----------------------------------------------------------------------------------------

PROGRAM: Any = get_command(cli.app)
COMMANDS = tuple(PROGRAM.commands)
OPTIONS = sorted({
    name for one in PROGRAM.commands.values() for p in one.params for name in p.opts if name[:2] == "--"
} | {"--help", "--nope"})  # fmt: skip
STRANGE = [
    "", " ", "~", "..", "a/b", "../x", "/", ".", "-", "--", "-1", "class", "x" * 5000, "\x1b[31mx",
    "[/red]", "[bold", "é", "\udcff", "\u202eabc", "C:\\data", "hf://", "hf://x/y", "package://a.b",
    "package://.x", "package://../x", "a\nb", "%s", "{0}", "$HOME", "`id`", "None", "nan", "1e999", "*",
    "**", "?", "'", '"', "a: 'lora", "=", "a=", "=1", "a.b=", "stage=1", "a..b=1", "9" * 5000, "[" * 2000,
]


def command(draw: Draw) -> Input:
    """A command line of words that it does not expect."""
    words = [draw.choice(COMMANDS) if draw.random() < 0.95 else draw.choice(STRANGE)]
    if words[0] == "store":
        words.append(draw.choice(["ls", "show", "rm", "verify", "x"]))
    for _ in range(draw.randrange(0, 4)):
        words += [draw.choice(OPTIONS)] if draw.random() < 0.4 else []
        words.append(draw.choice([*STRANGE, "r.toml", "c.toml"]))
    if words[0] in ("check", "reproduce") and not any(w for w in words[1:] if not w.startswith("-")):
        words.append("no such method")  # alone they take hours
    if words[0] == "run" and "r.toml" in words:
        words[0] = "plan"  # that recipe is right
    return Input(
        f"command: {' '.join(words)[:60]!r}", tuple(words), {"r.toml": LIFE.encode(), "c.toml": COMPARED}
    )


COMPARED = b"""[compare]
recipe = "r.toml"
stage = "adapt"
metric = "loss/code"
seeds = 1
[[arm]]
name = "[/red]"
[[arm]]
name = "loss/[draft]"
add = [{ use = "lora" }]
"""


def changes(draw: Draw) -> Input:
    """A recipe changed on the command line, or a comparison of it."""
    key = draw.choice(
        [
            "base.steps", "base.methods.adamw.lr", "corpus.test", "adapt.methods.pack.length", "seed",
            "base.model", "base.model.hidden_size", "base", "nope.x", "base.methods.nope.lr",
            "base.methods", "judge.old", "", "base.from", "base.from.data", "stage", "title", "..",
            "base.methods.text.x", "\x1b.x", "base.name",
        ]
    )
    value = draw.choice(
        [
            *STRANGE, "0", "-1", "inf", "nan", "1e308", "true", "[]", "{}", "[1, 2", '"x', "1\nseed = 2",
            "2020-01-01",
        ]
    )
    if draw.random() < 0.6:
        return Input(f"--set {key}", ("plan", "r.toml", "--set", f"{key}={value}"), {"r.toml": LIFE.encode()})
    arm = draw.choice(
        [
            f"a: lora rank={value}", f"{value}: lora", f"a: {value}", f"a: -{value}", f"a: x={value}",
            f"a: {value}=1", "a", ":", "a:", "a: lora, lora", "a: lora rank", "a: ./r.toml",
            "a: ./none.py x=1",
        ]
    )
    words = (
        "compare", "r.toml", "--stage", "adapt", "--metric", "loss/code", "--arm", "base:", "--arm", arm,
        "--seeds", "-1",
    )
    return Input(f"--arm {arm[:40]!r}", words, {"r.toml": LIFE.encode()}, refused=True)


# ---- files -------------------------------------------------------------------------------------------


def manifest(draw: Draw) -> Input:
    """A store in which a manifest is not what it was."""
    good = {
        "stage": "base", "kind": "train", "hash": "0" * 16, "title": "x", "settings": {"methods": []},
        "seed": 0, "inputs": {}, "versions": {}, "git": None, "command": "trainwright run x",
        "started": "2025-01-01T00:00:00+00:00", "finished": "2025-01-01T00:00:00.000+00:00", "seconds": 1.0,
        "ranks": 1, "figures": {}, "texts": {}, "pictures": {},
    }
    how = draw.choice(["value", "drop", "cut", "noise", "list", "empty", "deep", "digits"])
    made = dict(good)
    if how in ("value", "drop"):
        key = draw.choice(list(made))
        made |= {key: draw.choice([None, 3, -1, "", [], {}, [None], "\x1b[31m", {"a": None}, "x" * 5000])}
        if how == "drop":
            del made[key]
    text = json.dumps(made).encode()
    raw = {
        "cut": text[: draw.randrange(len(text))], "noise": draw.randbytes(50), "list": b"[]", "empty": b"",
        "deep": b"[" * 100_000, "digits": b'{"seconds": ' + b"9" * 5000 + b"}",
    }.get(how, text)
    words = draw.choice(
        [
            ("store", "ls"), ("show", "base"), ("store", "show", "base"), ("store", "verify"),
            ("generate", "base", "-p", "x"), ("store", "rm", "base-0000000000000000"),
            ("fit-law", "step_law"), ("export", "base", "out"),
            ("audit", "base", "--corpus", "base"),
        ]
    )
    return Input(f"manifest: {how}", words, {f"store/base-{'0' * 16}/manifest.json": raw})


CORPUS = """[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
chat_template = "chatml"
methods = [{{ use = "text", paths = ["{}"] }}]
"""
TEXT = "the sea a ship rain over cold islands and wind from grey hills. "


def data(draw: Draw) -> Input:
    """A file of documents in which something is wrong."""
    rows = [{"text": TEXT * draw.randrange(1, 4), "domain": "a"} for _ in range(20)]
    lines = "".join(json.dumps(r) + "\n" for r in rows).encode()
    bad: list[tuple[str, bytes]] = [
        ("a.jsonl", lines[: -draw.randrange(2, 60)]), ("a.jsonl", lines + b'{"text": ' + b"[" * 50_000),
        ("a.jsonl", lines + b'{"text": ' + b"9" * 5000 + b"}\n"), ("a.jsonl", b"\xef\xbb\xbf" + lines),
        ("a.jsonl", lines.decode().encode("utf-16")), ("a.jsonl", lines + b'{"text": "a", "text": "b"}\n'),
        ("a.jsonl", lines + b'{"text": null}\n'), ("a.jsonl", lines + b'{"text": "\\ud800"}\n'),
        ("a.jsonl", lines + b"[]\n"),
        ("a.jsonl", lines + b'{"text": "x", "domain": "\\u001b[31m[/red]"}\n'),
        ("a.jsonl.gz", gzip.compress(lines)[: -draw.randrange(1, 40)]), ("a.jsonl.gz", draw.randbytes(80)),
        ("a.json", lines), ("a.json", b"[" + lines.replace(b"\n", b",")), ("a.csv", b"text,text\na,b\n"),
        ("a.csv", b'text\n"never closed\n' + TEXT.encode()), ("a.csv", b"text\n" + b"x" * 200_000 + b"\n"),
        ("a.csv", b"\x00\x01,\x02\n"), ("a.parquet", b"PAR1" + draw.randbytes(60) + b"PAR1"),
        ("a.txt", b""), ("a.txt", b"\x00" * 100), ("a.txt", draw.randbytes(200)),
        ("a.md", b"# " + TEXT.encode() * 9), ("a.xyz", lines), ("a", lines), ("a.pdf", b"%PDF-1.4"),
    ]
    name, content = draw.choice(bad)
    path = draw.choice([name, "d", "d/*", "./d"]) if draw.random() < 0.3 else f"d/{name}"
    return Input(
        f"data: {name}", ("run", "r.toml"), {"r.toml": CORPUS.format(path).encode(), f"d/{name}": content}
    )


def chat(draw: Draw) -> Input:
    """Conversations that other programs write."""
    good = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]

    def said(content: Any) -> dict[str, Any]:
        return {"role": "assistant", "content": content}

    last = draw.choice(
        [
            said(None), said(""), said([{"type": "text", "text": "x"}]), said(3), said({"a": 1}),
            {"role": "assistant"}, {"content": "x"}, {"role": "nobody", "content": "x"},
            {"role": 3, "content": "x"}, None, "x", [], said("<|im_end|>"), said("\x1b[31m"),
            said("\ud800"), said("x") | {"tool_calls": [{"function": None}]},
            said(None) | {"tool_calls": "x"}, said("x") | {"weight": 0}, said("x") | {"weight": -1},
            said("x") | {"train": "no"},
        ]
    )
    turns = draw.choice(
        [[*good, last], [last], [], [good[1], good[0]], [good[0], good[0], last], "x", {"role": "user"}, None]
    )
    more = draw.choice(
        [
            {}, {"tools": "x"}, {"tools": [1]}, {"system": 3}, {"system": "Be brief."},
            {"prompt": "x", "chosen": 3}, {"label": []},
        ]
    )
    rows = [{"messages": good}] * 12 + [{"messages": turns} | more]
    lines = "".join(json.dumps(r) + "\n" for r in rows).encode()
    return Input(
        "chat", ("run", "r.toml"), {"r.toml": CORPUS.format("d/a.jsonl").encode(), "d/a.jsonl": lines}
    )
