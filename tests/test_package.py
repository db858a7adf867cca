"""What importing the package promises: nothing that it depends on reports anything to anybody."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment, write_texts
from trainwright import SILENCE

LOUD = {"DO_NOT_TRACK": "0", "DAFT_ANALYTICS_ENABLED": "1", "SCARF_NO_ANALYTICS": "false",
        "HF_HUB_DISABLE_TELEMETRY": "0",
        "RAY_USAGE_STATS_ENABLED": "1", "MLFLOW_DISABLE_TELEMETRY": "false",
        "GRADIO_ANALYTICS_ENABLED": "True"}
"""An environment that asks for every report there is."""

WATCHED = """import json, socket, sys, threading
seen = []

def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        family = None if event.startswith("socket.get") else args[0].family
        if family in (None, socket.AF_INET, socket.AF_INET6):
            seen.append([event, repr(args)])
            raise PermissionError("the network is cut off")

sys.addaudithook(watch)
{body}
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(10)
print("SEEN", json.dumps(seen))
"""

OUTSIDER = '''import daft
from trainwright.core.method import Curate


class Mine(Curate):
    """Keeps documents of some length."""

    def apply(self, documents, ctx):
        return documents.where(daft.col("text").length() > 10)
'''

RECIPE = """[[stage]]
name = "corpus"
kind = "corpus"
vocab_size = 300
methods = [{ use = "text", paths = ["texts/prose"] }, { use = "./mine.py" }]
"""


def attempts(body: str, folder: Path) -> list[list[str]]:
    """What a process that runs ``body`` would have connected to, or asked the address of, in Python; none of
    it is done."""
    env = {k: v for k, v in environment().items() if k != "HF_HUB_OFFLINE"} | LOUD
    done = subprocess.run([sys.executable, "-c", WATCHED.replace("{body}", body)], cwd=folder, env=env,
                          text=True,
                          capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("SEEN ")[2])  # type: ignore[no-any-return]


@pytest.mark.slow
def test_an_outsiders_method_that_imports_daft_makes_no_attempt_to_connect(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    (tmp_path / "mine.py").write_text(OUTSIDER)
    (tmp_path / "life.toml").write_text(RECIPE)
    assert attempts("import trainwright\n"
                    "life = trainwright.run(trainwright.load('life.toml'))\n"
                    "assert life['corpus'].path.is_dir()", tmp_path) == []


@pytest.mark.slow
def test_the_watch_sees_what_daft_does_by_itself(tmp_path: Path) -> None:
    found = attempts("import daft\ndaft.from_pydict({'a': [1]}).collect()", tmp_path)
    assert any("scarf" in args for _, args in found)


def test_the_environment_is_overruled_and_only_where_reports_are_meant() -> None:
    assert LOUD.keys() == SILENCE.keys() and not LOUD.items() & SILENCE.items()
    assert {name: os.environ[name] for name in SILENCE} == SILENCE
