"""The card of an exported model: where it comes from, what it was trained on, and what was measured of it.

It is Markdown with the front matter that the Hugging Face Hub reads. What nobody told Trainwright (a licence,
an intended use) is not made up: the card says that it is open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from trainwright.core.files import expected
from trainwright.core.shown import plain
from trainwright.storage.artifact import MANIFEST, Artifact, sources_of
from trainwright.storage.store import Store

MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")
"""Signs that Markdown and HTML give a meaning."""
FENCES = re.compile("`{3,}")
OPEN = ("Trainwright does not know under which licences the data and the model that it began with may be "
        "used: look them up, and add `license:` above, before you hand this model on.")


def model_card(artifact: Artifact, store: Store) -> str:
    """The text of ``README.md``. Names are shown as they are: whatever is in them, none of it is markup.

    Raises:
        Damaged: a manifest has another content than a run writes.
    """
    made = artifact.manifest
    with expected(artifact.path / MANIFEST):
        stage = _text(made["stage"])
        parts = [_front(made), f"# {_text(made['title'] or made['stage'])}: {stage}",
                 f"Made by the stage {stage} of a recipe, with Trainwright "
                 f"{_text(made['versions']['trainwright'])}, {_text(made['finished'][:10])}."]
        if measured := list(_measured(artifact, store)):
            parts += ["## What was measured", "\n".join(measured)]
        settings = plain(json.dumps(made["settings"], indent=1, ensure_ascii=False), lines=True)
        fence = "`" * max([3, *(len(one) + 1 for one in FENCES.findall(settings))])
        parts += ["## How it was made", "\n".join(_steps(artifact, store)), "## Licence", OPEN,
                  "## Settings", f"{fence}json\n{settings}\n{fence}"]
    return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
    """A text as Markdown shows it."""
    return MARKS.sub(r"\\\1", plain(text))


def _front(made: dict[str, Any]) -> str:
    outside = [i["path"].removeprefix("hf://") for i in made["inputs"].get("model", ())
               if str(i.get("path", "")).startswith("hf://")]
    lines = ["---", "library_name: transformers", "tags: [trainwright]",
             *(f"base_model: {json.dumps(name)}" for name in outside), "---"]
    return "\n".join(lines)


def _measured(artifact: Artifact, store: Store) -> Iterator[str]:
    """A table of the numbers of each evaluation of this model that the store has."""
    name, key = artifact.manifest["stage"], artifact.manifest["hash"]
    for other in store.artifacts():
        numbers = other.figures.get("numbers")
        mine = isinstance(numbers, dict) and name in numbers and key in sources_of(other.manifest)
        if not mine or not isinstance(numbers, dict):
            continue
        others = [n for n in numbers if n != name]
        yield "| " + " | ".join(["", _text(name), *map(_text, others)]) + " |"
        yield "|---" * (2 + len(others)) + "|"
        for metric, value in numbers[name].items():
            row = [value, *(numbers[o].get(metric, float("nan")) for o in others)]
            yield f"| {_text(metric)} | " + " | ".join(f"{v:.4g}" for v in row) + " |"


def _steps(artifact: Artifact, store: Store) -> Iterator[str]:
    """What it was made from, in order, a line each."""
    kept = {a.manifest["hash"]: a for a in store.artifacts()}
    for key in _before(artifact.manifest["hash"], kept):
        made = kept[key].manifest
        figures, settings = made["figures"], made["settings"]
        methods = ", ".join(_text(m["use"]) for m in settings.get("methods", ()))
        said = [f"{figures[n]:,} {n}" for n in ("documents", "tokens", "steps")
                if isinstance(figures.get(n), int)]
        outside = sorted({i["path"] for inputs in made["inputs"].values() for i in inputs
                          if not i.get("artifact") and "://" in str(i.get("path", ""))})
        begun = f"; from {', '.join(map(_text, outside))}" if outside else ""
        yield f"- {_text(made['stage'])} ({made['kind']}): {methods or 'no method'}; {', '.join(said)}{begun}"


def _before(key: str, kept: dict[str, Artifact]) -> list[str]:
    """The artifact and all that it was made from, the earliest first."""
    order, seen = list[str](), set[str]()            # a stranger's manifests may name each other
    todo = [(key, False)]
    while todo:
        one, done = todo.pop()
        if done:
            order.append(one)
        elif one in kept and one not in seen:
            seen.add(one)
            todo += [(one, True), *((k, False) for k in sorted(sources_of(kept[one].manifest), reverse=True))]
    return order
