"""The page of an audit says what was found, or that nothing was, and needs nothing from elsewhere."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trainwright.report import audit

AREA = {f"{name}{end}": 0.6 for name in ("auc", "tpr1", "tpr5") for end in ("", "_low", "_high")}


def told(**more: Any) -> dict[str, Any]:
    """An audit of one domain."""
    gap = {"gap": 0.03, "low": 0.02, "high": 0.04, "ece": 0.03, "tokens": 100}
    domain = {
        "documents": {"train": 9, "test": 5, "tune": 4}, "split": AREA | {"p": 0.4},
        "seen": AREA | {"p": 0.2},
        "memorization": {"min-k++": AREA, "verbatim": {"train": 0.25, "test": 0.0}}, "calibration": gap,
        "forgetting": {"loss": 3.2, "change": 0.12, "low": 0.1, "high": 0.14}}
    curve = [{"confidence": 0.2, "right": 0.1, "tokens": 5.0},
             {"confidence": 0.9, "right": 0.8, "tokens": 5.0}]
    search = {"name": "test documents of <d>", "texts": 5, "searched": 4, "documents": 9, "leaked": 0,
              "shown": []}
    return {"model": "tuned", "base": "base", "corpus": "c", "read": [], "domains": {"<d>": domain},
            "findings": [], "calibration": gap | {"curve": curve}, "leaks": [search],
            "drift": [{"where": f"block {i}", "move": 0.1 * i, "moved": 1.0} for i in range(3)]} | more


def test_a_page_of_a_clean_model(tmp_path: Path) -> None:
    page = audit.write(tmp_path, told(), "trainwright audit tuned").read_text()
    assert "No sign of contamination was found" in page and page.count("<svg") == 3
    assert "What it was trained on is not known" in page and "25.0 % of training documents" in page
    assert "&lt;d&gt;" in page and "<d>" not in page and not re.search(r'(src|href)="(https?:)?//', page)
    assert json.loads((tmp_path / "audit.json").read_text()) == told()
    [line] = audit.summary(told())
    assert line.startswith("No sign of contamination: none of 4 texts of the evaluation stands in 9 training")


def test_findings_and_what_is_missing(tmp_path: Path) -> None:
    plain = told(base="", drift=[], findings=["It has <read> it."])
    del plain["domains"]["<d>"]["forgetting"]["change"]
    plain["domains"]["<d>"]["seen"] = {}
    page = audit.write(tmp_path, plain).read_text()
    assert '<li class="failure">It has &lt;read&gt; it.</li>' in page and "not measured" in page
    assert page.count("name one with --base") == 2 and audit.summary(plain) == plain["findings"]
