"""A worker that hangs is killed and starts anew; one that dies has failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainwright.lm.apart import Apart, Failed

WORKER = """
import json, os, sys, time
print(json.dumps({"answer": None}), flush=True)
for line in sys.stdin:
    told = json.loads(line)
    if told["do"] == "hang": time.sleep(100)
    if told["do"] == "die": os._exit(1)
    if told["do"] == "talk": print("Warning: deprecated", flush=True)
    said = {"failed": "cannot"} if told["do"] == "fail" else {"answer": [os.getpid(), told["do"]]}
    print(json.dumps(said), flush=True)
"""


def test_a_worker_stays_until_it_hangs_or_dies(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with Apart(script, 0.3) as apart:
        first, said = apart.ask({"do": "ä\n"})
        assert said == "ä\n" and apart.ask({"do": "x"})[0] == first
        with pytest.raises(Failed, match="cannot"):
            apart.ask({"do": "fail"})
        assert apart.ask({"do": "x"})[0] == first
        with pytest.raises(TimeoutError):
            apart.ask({"do": "hang"})
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        second = apart.ask({"do": "x"})[0]
        with pytest.raises(Failed, match="it ended"):
            apart.ask({"do": "die"})
        assert apart.ask({"do": "x"})[0] not in (first, second)
        with pytest.raises(Failed, match="something else than an answer"):
            apart.ask({"do": "talk"})
        assert apart.ask({"do": "x"})[1] == "x", "what it said later is no answer to this"
    assert apart.process is None
