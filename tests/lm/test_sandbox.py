"""Programs that mean harm do none, here and on a system that has no namespaces."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from trainwright.lm.sandbox import Limits, Ran, run, warning

QUICK = Limits(seconds=0.5, megabytes=256, file_megabytes=1, processes=8)
BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1234)
    os._exit(0)
"""
both = pytest.mark.parametrize("apart", [True, False], ids=["apart", "limits alone"])


def running(word: str) -> list[str]:
    """Processes whose command or memory of arguments names this; those of a program have the jail's."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            told = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if place.name.isdecimal() and word in told:
            found.append(told)
    return found


def test_a_program_passes_where_its_tests_do() -> None:
    double = "import collections.abc, json, re\ndef double(x): return 2 * x"
    assert run(double, "assert double(3) == 6", QUICK).how == "passed"
    assert run(double, "assert double(3) == 7, 'seven'", QUICK)[:2] == ("failed", "AssertionError: seven")
    assert run("def double(x) return", "", QUICK).why.startswith("SyntaxError")
    for way_out in ("import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"):
        assert run(way_out, "assert False", QUICK).how == "failed"


@both
@pytest.mark.parametrize("program", ["while True: pass", BOMB], ids=["endless", "fork bomb"])
def test_what_never_ends_is_ended_with_all_that_it_started(program: str, apart: bool) -> None:
    assert run(program, "", QUICK, apart).how == "timeout"
    assert running("_jail.py") == []


@both
def test_what_leaves_its_session_is_ended_too(apart: bool) -> None:
    assert run(DAEMON, "", QUICK, apart).how == "passed"
    assert running("_jail.py") == []


@both
def test_memory_and_files_have_an_end(apart: bool) -> None:
    assert run("x = 'a' * 10_000_000_000", "", QUICK, apart).why.startswith("MemoryError")
    large = run("f = open('x', 'w')\nfor _ in range(4000): f.write('a' * 1024)", "", QUICK, apart)
    assert large.how == "failed" and ("too large" in large.why or "No space" in large.why)
    assert run("open('x', 'w').write('ab')", "assert open('x').read() == 'ab'", QUICK, apart).how == "passed"


def test_it_inherits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINWRIGHT_KEY", "secret")
    assert run("import os", "assert 'secret' not in os.environ.values()", QUICK).how == "passed"
    assert run("import numpy", "", QUICK).why.startswith("ModuleNotFoundError")


def test_what_the_system_lets_go_is_out_of_reach(tmp_path: Path) -> None:
    """Where it does not, the warning says so."""
    mine = tmp_path / "mine"
    mine.write_text("here")
    tmp_path.chmod(0o777)
    mine.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server:
        dial = f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 1)"
        tried = {
            "network": run(dial, "", QUICK),
            "files": run(f"open({str(mine)!r}, 'w')", "", QUICK),
            "processes": run("import os", f"os.kill({os.getpid()}, 0)", QUICK),
        }
    for part, ran in tried.items():
        if part == "processes" and os.geteuid() == 0:  # another user may signal none in any case
            assert ran.how == "failed"
        else:
            assert (ran.how == "passed") == (part in ran.open), (part, ran)
    assert all(ran.open == tried["network"].open for ran in tried.values())
    if "files" not in tried["files"].open:
        assert mine.read_text() == "here"


def test_what_stays_open_is_said() -> None:
    open_to = run("", "", QUICK, apart=False)
    assert {"network", "processes", "files"} <= set(open_to.open)
    assert "the network" in warning(open_to.open) and warning(()) == ""


def test_a_jail_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck.py"
    stuck.write_text("import time; time.sleep(1000)")
    monkeypatch.setattr("trainwright.lm.sandbox.JAIL", stuck)
    monkeypatch.setattr("trainwright.lm.sandbox.LATE", 0.1)
    began = time.monotonic()
    assert run("", "", Limits(seconds=0.1)) == Ran("timeout", "", ("network", "processes", "files", "user"))
    assert time.monotonic() - began < 30
