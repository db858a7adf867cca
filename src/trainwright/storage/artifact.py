"""What a stage made: a folder with a manifest, which is read as data that may be anything."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwright.core import files
from trainwright.core.files import Damaged, expected

MANIFEST = "manifest.json"
NEEDED = {"stage": str, "inputs": dict, "figures": dict}
"""What every manifest says; without it, it is none of ours."""
USUAL: dict[str, Any] = {"hash": "", "finished": "", "kind": "", "title": "", "settings": {"methods": []},
                         "seed": 0, "versions": {}, "git": None, "command": "", "started": "", "seconds": 0.0,
                         "ranks": 1, "texts": {}}
"""What else it says, and what is taken for it where it does not."""


@dataclass(frozen=True)
class Artifact:
    """What a stage made: a folder with ``manifest.json``."""

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """Settings, inputs, versions, figures.

        Raises:
            Damaged: there is none, or one that no stage has written.
        """
        file = self.path / MANIFEST
        try:
            told = files.read_json(file)
        except FileNotFoundError:
            raise Damaged(f"{file} is not there") from None
        with expected(file):
            return checked(told)

    @property
    def figures(self) -> dict[str, Any]:
        """What was measured."""
        out: dict[str, Any] = self.manifest["figures"]
        return out

    def metrics(self) -> list[dict[str, float]]:
        """The rows of ``metrics.jsonl``, one a step."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        with expected(file):
            lines = files.read_bytes(file, files.ANY).splitlines()
            rows: list[dict[str, float]] = [json.loads(line) for line in lines]
            if not all(isinstance(row, dict) for row in rows):
                raise TypeError("a row is no table")
            return rows


def checked(told: Any) -> dict[str, Any]:
    """A manifest in which everything is of the kind that its readers take it for."""
    kinds = NEEDED | {k: type(v) for k, v in USUAL.items() if k not in ("git", "seconds")}
    out: dict[str, Any] = USUAL | told
    for key, kind in kinds.items():
        if not isinstance(out[key], kind):
            raise TypeError(f"{key} is no {kind.__name__}")
    if not isinstance(out["seconds"], int | float) or not isinstance(out["git"], str | None):
        raise TypeError("seconds or git is of another type")
    for inputs in out["inputs"].values():
        for one in inputs:
            if not isinstance(one["stage"], str) or not isinstance(one["hash"], str):
                raise TypeError("an input has no name")
            if not isinstance(one.get("artifact"), str | None):
                raise TypeError("an input is of no artifact")
    out["settings"] = USUAL["settings"] | out["settings"]
    methods = out["settings"]["methods"]
    if not isinstance(methods, list) or not all(isinstance(m["use"], str) for m in methods):
        raise TypeError("a method has no name")
    return out


def sources_of(manifest: dict[str, Any]) -> set[str]:
    """Hashes of the artifacts that one was made from; of a snapshot, that of the artifact which holds it."""
    return {i.get("artifact") or i["hash"] for inputs in manifest["inputs"].values() for i in inputs}
