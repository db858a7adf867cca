"""Commands in one process, with a note of all that Python is asked for: files, code, programs, addresses.

``python -P watched.py LOG COMMANDS`` runs the commands (a list of lists of words, as JSON) one after the
other and leaves what each did, said and ended with in LOG.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
noted: dict[str, list[Any]] = {}


def hear(event: str, given: tuple[Any, ...]) -> None:
    """Note what matters of an event."""
    if event == "open" and isinstance(given[0], (str, bytes)):
        kind = "write" if (given[2] or 0) & WRITING else "read"
        noted.setdefault(kind, []).append(os.path.abspath(os.fsdecode(given[0])))
    elif event in ("exec", "compile"):
        named = given[0].co_filename if event == "exec" else given[1]
        noted.setdefault("ran", []).append(os.fsdecode(named) if isinstance(named, (str, bytes)) else "")
    elif event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.system"):
        noted.setdefault("started", []).append(
            [str(a) for a in (given[1] if event != "os.system" else given)]
        )
    elif event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        noted.setdefault("asked", []).append(repr(given[-1] if event == "socket.connect" else given[0]))
    elif event == "pickle.find_class":
        noted.setdefault("unpickled", []).append(".".join(given))


def main() -> None:
    log, commands = sys.argv[1], json.loads(sys.argv[2])
    sys.addaudithook(hear)
    from trainwright import cli

    done = []
    for words in commands:
        noted.clear()
        out, err, code = io.StringIO(), io.StringIO(), 0
        sys.argv = ["trainwright", *words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as ended:
                code = ended.code or 0  # type: ignore[assignment]
        found = {k: sorted(set(map(json.dumps, v))) for k, v in dict(noted).items()}
        done.append(
            {"code": code, "out": out.getvalue(), "err": err.getvalue()}
            | {k: [json.loads(x) for x in v] for k, v in found.items()}
        )
    with open(log, "w") as file:
        json.dump(done, file)


if __name__ == "__main__":
    main()
