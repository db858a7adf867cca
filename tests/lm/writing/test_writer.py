"""Letting a model write: nothing is asked twice, no answer is lost, and no key is kept."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lm.writing.stub_writer import Stub, serving
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.evaluate.decode.min_p import MinP
from trainwright.lm.writing import endpoint
from trainwright.lm.writing.writer import Request, Writer

ASKED = [Request(f"r{i}", f"say {i}") for i in range(70)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "WAIT", 0.001)


def asking(**settings: Any) -> Writer:
    return make(Writer, {"at_once": 2, "temperature": 0.5, "max_tokens": 4} | settings,
                "asking")  # type: ignore[no-any-return]


def ask(stub: Stub, folder: Path, requests: list[Request] = ASKED, **more: object) -> list[str]:
    return written(asking(**stub.table(**more)), Context(folder=folder), requests)


def written(writer: Writer, ctx: Context, requests: list[Request]) -> list[str]:
    with writer.start("asking", ctx) as writing:
        return [answer for _, answer in writing.write(requests)]


def test_answers_come_in_order_and_are_asked_for_once(tmp_path: Path) -> None:
    with serving(lambda prompt, body: f" {prompt}! ") as stub:
        first = ask(stub, tmp_path)
        assert first == [f"say {i}!" for i in range(70)] and len(stub.bodies) == 70
        assert ask(stub, tmp_path) == first and len(stub.bodies) == 70
        assert len({b["seed"] for b in stub.bodies}) == 70 and "top_k" not in stub.bodies[0]
        # other sampling is another request
        ask(stub, tmp_path, ASKED[:1], temperature=0.9)
        seed = next(b["seed"] for b in stub.bodies if b["messages"][0]["content"] == "say 0")
        assert stub.bodies[70:] == [{"model": "stub", "messages": [{"role": "user", "content": "say 0"}],
                                     "max_tokens": 4,
                                     "temperature": 0.9, "seed": seed}] and set(stub.keys) == {None}


def test_a_failure_that_passes_is_not_noticed(tmp_path: Path) -> None:
    with serving(lambda prompt, body: prompt) as stub:
        stub.failing = lambda turn: (503, 429, 200)[turn % 3]
        assert ask(stub, tmp_path, ASKED[:4], at_once=1) == [f"say {i}" for i in range(4)]
        assert len(stub.bodies) == 12


@pytest.mark.slow
def test_a_dead_endpoint_loses_nothing_and_the_next_run_goes_on(tmp_path: Path) -> None:
    with serving(lambda prompt, body: prompt) as stub:
        stub.failing = lambda turn: 200 if turn < 40 else 500
        with pytest.raises(
            UserError, match=r"asking: the endpoint .* in 5 tries \(status 500\)\. 40 answers are written"
        ):
            ask(stub, tmp_path)
        stub.failing, before = lambda turn: 200, len(stub.bodies)
        assert ask(stub, tmp_path) == [f"say {i}" for i in range(70)] and len(stub.bodies) - before == 30
    with pytest.raises(UserError, match=r"no answer in 5 tries \(ConnectError.*0 answers are written"):
        ask(stub, tmp_path / "..")                                             # nobody listens there any more


def test_what_no_second_try_mends_is_told_at_once(tmp_path: Path) -> None:
    with serving(lambda prompt, body: prompt) as stub:
        stub.failing = lambda turn: 404
        with pytest.raises(UserError, match=r"refuses the request 'r0' for the model 'stub' \(status 404"):
            ask(stub, tmp_path, at_once=1)
        assert len(stub.bodies) == 1


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda prompt, body: prompt) as stub:
        with pytest.raises(UserError, match="environment variable TRAINWRIGHT_KEY, which is not set"):
            ask(stub, tmp_path, key_variable="TRAINWRIGHT_KEY")
        monkeypatch.setenv("TRAINWRIGHT_KEY", "sesame-4711\n")
        ask(stub, tmp_path, ASKED[:1], key_variable="TRAINWRIGHT_KEY")
        assert stub.keys == ["Bearer sesame-4711"]
        monkeypatch.setenv("TRAINWRIGHT_KEY", "sesame\n4711")                          # no header can hold it
        with pytest.raises(UserError, match="TRAINWRIGHT_KEY has characters that no header") as broken:
            ask(stub, tmp_path, key_variable="TRAINWRIGHT_KEY")
        monkeypatch.setenv("TRAINWRIGHT_KEY", "sesame-4711")
        stub.failing = lambda turn: 401
        with pytest.raises(UserError, match=r"another key \(the one in TRAINWRIGHT_KEY") as told:
            ask(stub, tmp_path, key_variable="TRAINWRIGHT_KEY")
    assert "sesame" not in f"{told.value}{broken.value}"
    assert not [f for f in tmp_path.iterdir() if b"sesame" in f.read_bytes()]


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    asking(endpoint="https://host:1/v1", model="m")
    for wrong in ({"endpoint": "host/v1", "model": "m"},
                  {"endpoint": "http://me:secret@host/v1", "model": "m"},
                  {"endpoint": "http://host/v1"}, {"model": "m"}, {"at_once": 0}, {"max_tokens": 0},
                  {"temperature": -1.0}):
        with pytest.raises(UserError) as told:
            asking(**wrong)
        assert "secret" not in str(told.value)
    with pytest.raises(UserError, match="is no address"):
        asking(endpoint="http://host:port/v1", model="m").start("asking", Context(folder=tmp_path))


@pytest.mark.slow
def test_a_local_answer_depends_on_its_own_request_alone(tmp_path: Path) -> None:
    requests = [Request(name, name * length) for name, length in (("a", 1), ("b", 7), ("c", 20))]
    found = []
    for number, (block, asked) in enumerate(((3, requests), (1, requests[::-1]), (2, requests[1:]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        answers = written(asking(at_once=block), tiny.curating(folder), asked)
        found.append({r.name: answer for r, answer in zip(asked, answers, strict=True)})
    assert found[0] == found[1] and found[2] == {n: found[0][n] for n in "bc"} and all(found[0].values())
    ctx = tiny.curating(tmp_path)
    ctx.decode = (MinP(p=1.0),)
    likeliest = [r._replace(temperature=0.0) for r in requests]
    assert written(asking(), ctx, requests) == written(asking(), tiny.curating(tmp_path), likeliest)
    assert written(asking(), tiny.curating(tmp_path), requests) == list(found[0].values()), (
        "none of it was kept"
    )
    with pytest.raises(UserError, match=r"'long' has \d+ tokens, which with max_tokens = 4 .* 64 positions"):
        written(asking(), tiny.curating(tmp_path), [Request("long", "a b c " * 40)])
    with pytest.raises(UserError, match="asking has nobody to write"):
        asking().start("asking", Context(folder=tmp_path))
    with pytest.raises(UserError, match="asking: min_p shapes what a local model writes"):
        asking(endpoint="http://host:80/v1", model="m").start("asking", ctx)
