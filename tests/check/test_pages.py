"""The methods that the pages show are methods: each passes the battery as it is written."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from trainwright.check import check_method

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
SHOWN = {name: code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
         for name in re.findall(r"^class (\w+)\((?:Optimizer|Surgery|Curate)\)", code, re.M)}


def test_the_page_shows_three_methods() -> None:
    assert sorted(SHOWN) == ["ScaledRows", "SignDescent", "StripUrls"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_the_page_shows_passes_every_law(name: str, tmp_path: Path) -> None:
    file = tmp_path / (re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() + ".py")
    file.write_text(SHOWN[name], encoding="utf-8")
    found = check_method(str(file))
    assert len(found) > 5
    assert not [f"{r.law}: {r.why}" for r in found if r.status == "failed"]
