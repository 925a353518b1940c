"""The page in a browser, where Playwright and Chromium are there: its list of items, its tables, hostile replies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bnbench.records import read_run
from bnbench.reports import write_report
from tests.reports.conftest import BASE, PAIR, Spec
from tests.reports.test_report import EVIL, EVIL_REPLIES

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium")

LINE = "আপনার কষ্টটা বুঝতে পারছি, আজ একটু বিশ্রাম নিন।"
# Numbers that stand in the part of a table that is seen, and what lies over an edge or under the names.
SEEN = """async () => {
  const cut = [], never = [];
  for (const box of document.querySelectorAll(".scroll")) {
    const cells = [...box.querySelectorAll("td:is(.number, .interval)")].filter((cell) => cell.textContent.trim());
    const seen = new Set();
    for (let x = 0; x < box.scrollWidth; x += 40) {
      box.scrollLeft = x;
      for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
      const edge = box.getBoundingClientRect();
      for (const cell of cells) {
        if (cell.classList.contains("cut")) continue;
        const range = document.createRange();
        range.selectNodeContents(cell);
        const text = range.getBoundingClientRect(), names = cell.parentElement.querySelector("th");
        const from = names.cellIndex < cell.cellIndex ? names.getBoundingClientRect().right : edge.left;
        if (text.left < from - 1 || text.right > edge.right + 1) cut.push(cell.textContent); else seen.add(cell);
      }
    }
    never.push(...cells.filter((cell) => !seen.has(cell)).map((cell) => cell.textContent));
  }
  return [cut, never];
}"""


@pytest.fixture
def opened(make_run: Callable[..., Path]) -> Iterator[Callable[..., Any]]:
    """`opened(specs, width)` writes a report and opens it; no console message and no request may come of it."""
    said: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def opened(specs: tuple[Spec, ...], width: int = 1280, n: int = 12) -> Any:
            folder = make_run(specs, n=n, yardsticks=True)
            write_report([read_run(folder)], folder, resamples=100)
            page = browser.new_context(viewport={"width": width, "height": 800}, bypass_csp=True).new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("dialog", lambda dialog: said.append(dialog.message))
            page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else said.append(r.url))
            page.goto((folder / "report.html").as_uri())
            page.wait_for_selector("#controls:not([hidden])")
            return page

        yield opened
        browser.close()
    assert said == []


def test_all_items_are_searched_filtered_linked_and_compared(opened: Callable[..., Any]) -> None:
    changed = LINE.replace("কষ্টটা", "কষ্টের কথা").replace("নিন", "নেবেন")
    base = Spec(BASE, 0.2, "base", location="b", replies={3: LINE, 5: ""})
    page = opened((base, Spec("adapter", 0.4, base="b", replies={3: changed})))
    assert page.locator("#items > details").count() == 12
    page.locator("#search").press_sequentially("বিশ্রাম কষ্ট")
    assert page.locator("#shown").inner_text() == "1 of 12 shown"
    page.locator("#search").fill("")
    page.locator("#flag").select_option("empty")
    assert (
        page.locator("#items > details .flag").all_inner_texts().count("⚑ empty")
        == page.locator("#items > details").count()
    )
    page.locator("#order").select_option("gain")
    page.evaluate("location.hash = '#item-4'")  # it is not among those shown: the filter gives way
    item = page.locator("#item-4[open]")
    item.wait_for()
    assert item.locator(".replies > div .bn").all_inner_texts()[1:] == [LINE, changed]
    assert page.evaluate("document.activeElement.parentElement.id") == "item-4"
    item.locator(".difference > summary").press("Enter")
    item.locator(".changes ins").first.wait_for()
    pieces = item.locator(".changes").evaluate("p => [...p.childNodes].map(n => [n.nodeName, n.textContent])")
    # Graphemes are whole: নি becomes নে with its vowel, and not ন with another sign.
    assert pieces == [
        ["#text", "আপনার "], ["DEL", "কষ্টটা "], ["INS", "কষ্টের কথা "], ["#text", "বুঝতে পারছি, আজ একটু বিশ্রাম "],
        ["DEL", "নি"], ["INS", "নেবে"], ["#text", "ন।"],
    ]  # fmt: skip
    assert item.locator(".link").get_attribute("href") == "#item-4"


def test_on_a_phone_no_number_is_cut_and_each_can_be_seen(opened: Callable[..., Any]) -> None:
    names = ("adapter-with-a-name-that-is-rather-long-r64-lr2e-4-seed-3", "একটি-দীর্ঘ-নামের-বাংলা-অ্যাডাপ্টার")
    page = opened((PAIR[0], *(Spec(name, 0.3 + 0.3 * i) for i, name in enumerate(names))), 390)
    page.evaluate("document.querySelectorAll('details.block').forEach((d) => { d.open = true; })")
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    cut, never = page.evaluate(SEEN)
    assert (cut, never) == ([], [])
    widths = page.evaluate("[...document.querySelectorAll('tbody th')].map((th) => th.getBoundingClientRect().width)")
    assert min(widths) >= 100 and max(widths) <= 180
    box = page.locator("#ranking .scroll").first
    box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    left = box.evaluate(
        "box => box.querySelector('tbody th').getBoundingClientRect().left - box.getBoundingClientRect().left"
    )
    assert 0 <= left < 3


def test_hostile_replies_are_text_in_every_item(opened: Callable[..., Any]) -> None:
    replies = {**EVIL_REPLIES, 7: '"><img src=x onerror=alert(1)>', 8: "ক" * 1_000_000, 9: "=HYPERLINK(1)\x07"}
    page = opened((PAIR[0], Spec(EVIL, 0.4, replies=replies)))
    title = page.title()
    page.evaluate("document.querySelectorAll('#items > details, .difference').forEach((d) => { d.open = true; })")
    page.wait_for_function("document.querySelectorAll('#items .replies > div').length === 36")
    assert page.evaluate("document.images.length + document.querySelectorAll('iframe, object, embed').length") == 0
    assert page.title() == title
    third = "[...document.querySelectorAll('#items > details')].map((d) => d.querySelectorAll('.replies .bn')[2])"
    shown = page.evaluate(f"{third}.map((p) => p?.textContent)")
    # Half a character becomes U+FFFD; where nothing was said, that is said.
    expected = {i: replies[i][:20_000].replace("\ud83d", "\ufffd") or None for i in replies}
    assert {i: shown[i].replace("\ufffd\ufffd\ufffd", "\ufffd") if shown[i] else None for i in replies} == expected
    assert "980000 characters more" in page.locator("#item-9 .replies").first.inner_text()
    assert page.locator("#item-9 .difference .long").is_visible()


def test_axe_finds_no_serious_violation(opened: Callable[..., Any]) -> None:
    axe = Path(os.environ.get("BNBENCH_AXE", "/nowhere"))
    if not axe.is_file():
        pytest.skip("name axe.min.js in BNBENCH_AXE")
    for width in (1280, 390):
        page = opened((PAIR[0], Spec("adapter", 0.4)), width)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        page.add_script_tag(path=axe)
        found = page.evaluate("axe.run().then((r) => r.violations.map((v) => [v.impact, v.id, v.nodes[0].html]))")
        assert [one for one in found if one[0] in ("serious", "critical")] == []
