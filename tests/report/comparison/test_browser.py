"""The page of a comparison as a browser shows it. Skipped where there is none; ``.ci/run`` installs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.comparison import sample, test_ladder
from tests.report.test_browser import CONTRAST, browser, pytestmark  # noqa: F401  (fixture and mark)
from trainwright.report.comparison import ladder, page

OVERLAPS = """() => {
  const found = [];
  for (const plot of document.querySelectorAll('svg.plot')) {
    const words = [...plot.querySelectorAll('text')].filter(e => e.textContent.trim());
    const boxes = words.map(e => [e.textContent.trim(), e.getBoundingClientRect()]);
    const held = plot.closest('.scroll, figure, div').getBoundingClientRect();
    boxes.forEach(([a, p], i) => {
      if (p.left < held.left - 1) found.push([a, 'is cut off']);
      boxes.slice(i + 1).forEach(([b, q]) => {
        const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
        const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (wide > 1 && high > 3) found.push([a, b]);
      });
    });
  }
  return found; }"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("comparison")
    made = {"few": sample.result(), "many": sample.many(), "merge": sample.plain(), "raced": sample.raced()}
    with sample.without_pictures():
        written = {name: page.write(root / name, result) for name, result in made.items()}
        written["ladder"] = ladder.write(root / "ladder", test_ladder.result())
    for i in range(3):                                     # the pages of its sizes
        (root / "ladder" / f"size-{i + 1}").mkdir()
        (root / "ladder" / f"size-{i + 1}" / "index.html").touch()
    return written


BESIDE = """() => [...document.querySelectorAll('.card table, .card svg.plot')].filter(
  e => e.getBoundingClientRect().right > e.closest('.card').getBoundingClientRect().right + 1
).map(e => e.textContent.trim().slice(0, 40))"""
"""Tables and plots that leave their card."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["few", "many", "ladder"])
def test_nothing_leaves_its_card_on_paper(browser: Any, pages: dict[str, Path], name: str) -> None:  # noqa: F811
    """A4 with Chromium's margins is 717 pixels wide, and paper does not scroll."""
    shown = browser.new_page(viewport={"width": 717, "height": 1040})
    shown.goto(pages[name].as_uri())
    shown.emulate_media(media="print")
    assert shown.locator(".card table").count() and shown.evaluate(BESIDE) == []
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    shown.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
@pytest.mark.parametrize("name", ["few", "many", "merge", "raced", "ladder"])
def test_page_renders(
    browser: Any,  # noqa: F811
    pages: dict[str, Path],
    name: str,
    width: int,
    scheme: str,
) -> None:
    """Nothing is logged, loaded, overlapping or wider than the screen, and all can be read."""
    shown = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    logged: list[str] = []
    requested: list[str] = []
    shown.on("console", lambda message: logged.append(message.text))
    shown.on("pageerror", lambda error: logged.append(str(error)))
    shown.on("request", lambda request: requested.append(request.url))
    shown.goto(pages[name].as_uri())
    shown.wait_for_load_state("load")
    assert logged == []
    assert [url for url in requested if not url.startswith("data:")] == [pages[name].as_uri()]
    for opened in (False, True):
        shown.evaluate(f"document.querySelectorAll('details').forEach(d => d.open = {str(opened).lower()})")
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert shown.evaluate(OVERLAPS) == []
    plot = shown.locator("svg.plot").first.bounding_box()
    assert plot["width"] > 0.6 * min(width, 450) and plot["height"] > 60
    worst = shown.evaluate(CONTRAST)
    assert worst[0] >= 4.5, worst
    links = shown.eval_on_selector_all("a[href]", "links => links.map(a => a.getAttribute('href'))")
    assert links and all((pages[name].parent / link).is_file() for link in links)
    shown.close()
