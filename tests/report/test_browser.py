"""The page as a browser shows it. Skipped where there is none; ``.ci/run`` installs one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report import sample
from trainwright.report import page

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


CONTRAST = """() => {
      const light = c => { const [r, g, b] = c.match(/[\\d.]+/g)
                             .map(x => x / 255)
                             .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
                           return .2126 * r + .7152 * g + .0722 * b; };
      const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
                            if (c.startsWith('rgb(')) return c; } return 'rgb(255, 255, 255)'; };
      let worst = [99, ''];
      const letters = 'p, li, th, td, dt, dd, pre span, summary, figcaption, a, svg text, .tag, .good, .bad';
      for (const e of document.querySelectorAll(letters)) {
        if (!e.textContent.trim()) continue;
        const style = getComputedStyle(e);
        const a = light(e.closest('svg') ? style.fill : style.color), b = light(ground(e));
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        if (ratio < worst[0]) worst = [ratio, e.textContent.trim().slice(0, 40)];
      }
      return worst; }"""
"""The text of a page with the least contrast against what it stands on: the ratio and its first letters."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        one = started.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield one
        one.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    manifests, folders = sample.run(root / "store")
    return page.write(
        root / "report", sample.RECIPE, "A first life: prose, then code", manifests, folders, sample.PLAN
    )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_page_renders(browser: Any, report: Path, width: int, scheme: str) -> None:
    shown = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    logged: list[str] = []
    requested: list[str] = []
    shown.on("console", lambda message: logged.append(message.text))
    shown.on("pageerror", lambda error: logged.append(str(error)))
    shown.on("request", lambda request: requested.append(request.url))
    shown.goto(report.as_uri())
    shown.wait_for_load_state("load")
    assert logged == []
    assert [url for url in requested if not url.startswith("data:")] == [report.as_uri()]
    drawn = shown.locator("svg.plot")
    assert drawn.count() == 3
    for i in range(3):
        box = drawn.nth(i).bounding_box()
        assert drawn.nth(i).is_visible() and box["width"] > 0.6 * min(width, 450) and box["height"] > 100
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    shown.close()


def test_links_to_pictures_work(browser: Any, report: Path) -> None:
    shown = browser.new_page()
    shown.goto(report.as_uri())
    links = shown.eval_on_selector_all("a[href]", "links => links.map(a => a.getAttribute('href'))")
    assert links and all((report.parent / link).is_file() for link in links)
    shown.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_stand_out(browser: Any, report: Path, scheme: str) -> None:
    """Text keeps a contrast of 4.5 : 1 against its card (WCAG AA), that of the plots too."""
    shown = browser.new_page(color_scheme=scheme)
    shown.goto(report.as_uri())
    worst = shown.evaluate(CONTRAST)
    shown.close()
    assert worst[0] >= 4.5, worst
