"""The form in a browser, where Playwright and Chromium are there: by keyboard alone, closed in the middle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnbench.records import read_run
from bnbench.reports.human import import_ratings, make_sheets
from bnbench.reports.ranking import rank
from tests.reports.test_human import THREE, TRUE

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium")


def test_a_form_is_filled_in_by_keyboard_closed_reopened_and_imported(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(THREE, n=12, metrics=("chrF++",))
    pages = make_sheets(run, raters=1, items=12, pairs=True).pages
    key = {line["code"]: line for line in map(json.loads, (run / "human-key.jsonl").read_text("utf-8").splitlines())}
    said: list[str] = []
    with playwright.sync_playwright() as p:

        def opened() -> Any:
            context = p.chromium.launch_persistent_context(
                tmp_path / "profile", executable_path=CHROMIUM, args=["--no-sandbox"],
                viewport={"width": 390, "height": 780}, accept_downloads=True,
            )  # fmt: skip
            page = context.new_page()
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda r: None if r.url.startswith(("file:", "blob:")) else said.append(r.url))
            page.goto((run / "human" / "rater-1.html").as_uri())
            return context, page

        def tab_to(place: str) -> None:
            while page.evaluate("document.activeElement.id") != place:
                page.keyboard.press("Tab")

        context, page = opened()
        tab_to("rater")
        page.keyboard.press("Control+A")
        page.keyboard.insert_text("রিতা")
        page.keyboard.press("Enter")
        for step in range(pages):
            if step == pages // 2:
                context.close()
                context, page = opened()
                tab_to("language")  # the page is where it was, in the language chosen
                page.keyboard.press("Enter")
                assert page.locator("#overview").inner_text() == f"{step} / {pages}"
            shown = page.locator(".page:not([hidden])")
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            levels = [TRUE[texts[0]] for texts in key[shown.get_attribute("data-code")]["texts"]]
            if len(levels) == 1:
                for _ in range(4):
                    page.keyboard.press(str(levels[0]))
            else:
                page.keyboard.press("1" if levels[0] > levels[1] else "2")
            page.keyboard.press("Enter")
        assert page.locator("h1.whole").is_visible()
        tab_to("download")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        download.value.save_as(tmp_path / download.value.suggested_filename)
        context.close()
    assert said == []
    made = import_ratings(run, [tmp_path / "rater-1.json"])
    assert (made.raters, made.missing) == (("রিতা",), {})
    standings = rank([read_run(run)], resamples=400, primary="human-overall").standings
    assert [s.candidate for s in standings] == ["better-adapter", "third-adapter", "ভিত্তি-মডেল"]
