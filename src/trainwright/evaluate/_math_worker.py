"""Compares answers by ``math_verify``: a script that ``math_answers`` starts; it knows nothing of the
rest."""

from __future__ import annotations

import json
import logging
import sys


def main() -> None:
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    print(json.dumps({"answer": None}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        try:
            gold, given = (parse(told[name], parsing_timeout=None) for name in ("gold", "answer"))
            said = {"answer": bool(verify(gold, given, timeout_seconds=None)) if gold else None}
        except Exception as error:
            said = {"failed": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
