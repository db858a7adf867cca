"""The three files of a new method, written so that they run and say what to fill in."""
from __future__ import annotations

import json
import re
from pathlib import Path

from trainwright.core import registry
from trainwright.core.errors import UserError, suggest

FOLDER = {"Curate": "data", "Data": "data", "Surgery": "finetune", "Objective": "pretrain", "Weigh": "data", "Update": "optim",
          "Optimizer": "optim", "Controller": "optim", "Arithmetic": "merge", "Evaluator": "evaluate", "ScalingLaw": "search"}
STANDARD = {"Controller": "from collections.abc import Iterable\n", "Data": "from collections.abc import Callable\n",
            "ScalingLaw": "from collections.abc import Sequence\n"}
BODY = {
    "Curate": ("Context, Curate", "def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:\n        return documents"),
    "Data": ("Batch, Context, Data, State",
             "def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:\n        return pull()"),
    "Surgery": ("Context, ParamMap, Surgery",
                "def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:\n        return None"),
    "Objective": ("Batch, Context, Objective, State",
                  "def count(self, batch: Batch) -> float:\n        return trained_tokens(batch)\n\n"
                  "    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:\n"
                  "        return token_losses(model, batch, ctx)"),
    "Weigh": ("Batch, Context, State, Weigh",
              "def weigh(self, values: Tensor, batch: Batch, state: State, ctx: Context) -> Tensor:\n"
              "        return torch.ones_like(values)"),
    "Update": ("Context, State, Tensors, Update",
               "def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:\n"
               "        return updates"),
    "Optimizer": ("Context, Optimizer, State, Tensors",
                  "def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:\n"
                  "        return updates"),
    "Controller": ("Command, Controller, State, View",
                   "def tick(self, view: View, state: State) -> Iterable[Command]:\n        return ()"),
    "Arithmetic": ("Arithmetic",
                   "def combine(self, tensors: list[Tensor], base: Tensor | None) -> Tensor:\n        return tensors[0]"),
    "Evaluator": ("Context, Evaluator",
                  "def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:\n        return {}"),
    "ScalingLaw": ("Context, Fit, ScalingLaw",
            "def suggest(self, known: dict[str, float]) -> dict[str, object]:\n        return {\"batch_tokens\": 8192}\n\n"
            "    def fit(self, rows: Sequence[dict[str, object]], ctx: Context) -> Fit:\n        return Fit(self, [], {}, [])\n\n"
            "    def made_up(self, ctx: Context) -> list[dict[str, object]]:\n        return []"),
}


def write(name: str, kind: str, folder: str | None, root: Path) -> list[Path]:
    """Write ``<folder>/<name>.py``, its test and its evidence; refuses to overwrite anything.

    Raises:
        UserError: no snake_case name, an unknown kind or folder, a name that is taken, or no checkout at ``root``.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise UserError(f"{name!r} is no name in snake_case, such as half_fine_tuning.")
    if kind not in BODY:
        raise UserError(f"there is no kind {kind!r}{suggest(kind, BODY)}.")
    folder = folder or FOLDER[kind]
    if folder not in registry.FOLDERS:
        raise UserError(f"there is no folder {folder!r}{suggest(folder, registry.FOLDERS)}.")
    if name in registry.cards():
        raise UserError(f"there is a method {name!r} already: {registry.cards()[name].file}.")
    package = root / "src" / "trainwright"
    if not package.is_dir():
        raise UserError(f"{root.resolve()} is no checkout of Trainwright: name it with --root. A method of your own needs no "
                        "checkout: write ./mine.py and name it in a recipe as use = \"./mine.py\".")
    files = {package / folder / f"{name}.py": method_text(name, kind),
             root / "tests" / folder / f"test_{name}.py": test_text(name, folder),
             root / "evidence" / f"{name}.json": evidence_text(name)}
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists already.")
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return list(files)


def method_text(name: str, kind: str) -> str:
    title = "".join(w.capitalize() for w in name.split("_"))
    uses, body = BODY[kind]
    core = [u for u in uses.split(", ") if u not in ("Context", "View")]
    needs = [u for u in uses.split(", ") if u in ("Context", "View")]
    of_torch = ", ".join(w for w in ("Tensor", "nn") if re.search(rf"\b{w}\b", body))
    others = [("from daft import DataFrame", kind == "Curate"), ("import torch", "torch." in body),
              (f"from torch import {of_torch}", bool(of_torch))]
    ours = [(f"from trainwright.core.context import {', '.join(needs)}", bool(needs)),
            (f"from trainwright.core.method import {', '.join(core)}", True),
            ("from trainwright.lm.losses import token_losses, trained_tokens", "token_losses" in body)]
    imports = "\n\n".join(block for part in (others, ours) if (block := "\n".join(line for line, wanted in part if wanted)))
    return f'''"""{title}: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors it raises.
"""
from __future__ import annotations

{STANDARD.get(kind, "")}from typing import ClassVar

{imports}


class {title}({kind}):
    """What it does, in one line."""

    strength: float = 1.0
    """What the setting means, with its unit."""
    example: ClassVar[dict[str, object]] = {{"strength": 0.5}}

    {body}
'''


def test_text(name: str, folder: str) -> str:
    title = "".join(w.capitalize() for w in name.split("_"))
    return f'''"""One fact of the paper, by hand."""
from trainwright.{folder}.{name} import {title}


def test_the_fact_of_the_paper():
    """Replace this by a formula on a 3x3 case, an invariant, a limit, or equality with a kept library."""
    assert {title}().strength == 0.0, "write the fact that makes the paper work"
'''


def evidence_text(name: str) -> str:
    return json.dumps({"method": name, "paper": "", "claim": "", "suite": "", "verdict": "not measured"}, indent=1) + "\n"
