"""The field map: one file with everything in it, on which filters find papers and cards open."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from trainwright.papers.library import papers, taxonomies
from trainwright.report import field


def test_every_paper_and_every_taxonomy_is_on_it() -> None:
    data = field.tables(links=False)
    assert {p["id"] for p in data["papers"]} == set(papers())
    assert {v["id"] for v in data["views"]} == {"stage", *taxonomies()}
    classes = {v["id"]: {c["id"] for c in v["classes"]} for v in data["views"]}
    assert all(of in classes[view] for p in data["papers"] for view, of in p["place"].items())
    claims = [c for p in data["papers"] for c in p["claims"]]
    drawn = [c["word"] for c in claims if "<svg" in c["svg"]]
    assert drawn and not {"open", "not tested"} & set(drawn), "only what was measured has an interval"


def test_it_needs_nothing_from_elsewhere() -> None:
    page = field.page()
    assert field.HERE not in page and page.count("<script>") == 1
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page.split("const D =")[0])
    text = page.split("const D = ")[1].split(";\nconst MARK")[0]
    assert "</" not in text and len(json.loads(text)["papers"]) == len(papers())


@pytest.mark.slow
def test_filters_and_cards_in_a_browser(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next((b for n in ("chromium", "chromium-browser", "chrome") if (b := shutil.which(n))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    (tmp_path / "map.html").write_text(field.page(), encoding="utf-8")
    asked, wrong = [], []
    with playwright.sync_playwright() as run:
        started = run.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = started.new_page()
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.goto((tmp_path / "map.html").as_uri())
        assert page.locator(".p").count() == len(papers())
        page.fill("#q", "partial connection")
        assert page.locator(".p b").all_inner_texts() == ["paca 2025"]
        page.fill("#q", "")
        page.click("[data-key=word][data-value=contradicted]")
        shown = page.locator(".p").count()
        assert 0 < shown < len(papers()) and "word=contradicted" in page.url
        page.select_option("#view", "cl-llm-survey")
        assert page.locator(".p").count() == shown and page.locator(".class").count() > 1
        page.click("[data-paper=ul2]")
        assert "UL2" in page.inner_text("#card h3") and page.locator("#card svg.interval").count() == 1
        page.click("#card .close")
        page.fill("#q", "no such paper at all")
        assert page.is_visible("#none")
        started.close()
    assert not wrong and asked == [asked[0]] and asked[0].startswith("file:")
