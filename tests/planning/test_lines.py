"""The line of a recipe that a mistake is about."""
from __future__ import annotations

from pathlib import Path

import pytest

from trainwright.planning.lines import line_of

RECIPE = """title = "A life"
sed = 3

[[stage]]
name = "base"
kind = "train"
from = { data = "corpus" }
steps = -1
methods = [
  { use = "adamw", lr = 1e-3 },
  { use = "adamw", params = "x", lr = -1.0 },
  { use = "pakc", length = 32 },
]

[[stage]]
name = "adapt"
kind = "train"
steps = 0
from = { modl = "base" }

[[arm]]
name = "lora"
add = [{ use = "lora", rnk = 8 }]
"""


@pytest.mark.parametrize(("said", "line"), [
    ("unknown key 'sed' (did you mean 'seed'?).", 2),
    ("stage 'base': steps must be a positive number, not -1.", 8),
    ("stage 'adapt': steps must be a positive number, not 0.", 18),
    ("stage 'base' (adamw): lr must be 0 or more, not -1.0", 10),
    ("stage 'base' (pakc): length must be a number", 12),
    ("stage 'base': there is no method 'pakc' (did you mean 'pack'?)", 12),
    ("stage 'adapt': nobody here asks for from.modl", 19),
    ("stage 'adapt': something that no key is about", 15),
    ("arm 'lora' (lora): unknown setting 'rnk'", 23),
    ("a sentence about the whole file", None),
    ("stage 'gone': steps must be positive", None),
])
def test_lines(tmp_path: Path, said: str, line: int | None) -> None:
    file = tmp_path / "life.toml"
    file.write_text(RECIPE)
    assert line_of(f"{file}: {said}") == line


def test_what_names_no_recipe_has_no_line(tmp_path: Path) -> None:
    assert line_of("there is no recipe life.toml.") is None
    assert line_of(f"{tmp_path}/gone.toml: stage 'base': steps must be positive") is None
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    assert line_of(f"{tmp_path}/bad.toml: stage 'base': steps must be positive") is None
