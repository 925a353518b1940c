"""Any panel is drawn by any pen, and a metric that bnbench never heard of stands in every form of the report."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnbench.metrics import registry
from bnbench.metrics.core import MeanMetric
from bnbench.records import read_run
from bnbench.reports import Report, evaluation_md, panels, rank, render, write_report
from bnbench.reports.panels import Column, Facts, Name, Panel, Pen, Sentences, Table
from tests.reports.conftest import ADAPTER, METRICS, PAIR

Maker = Callable[..., Path]
EVIL = "<b>*x*|y</b>"


def test_a_panel_is_one_function_for_all_pens(make_run: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (Column("who", "name"), Column("much"), Column("only here", pens=Pen.HTML))
    table = Table(columns, [[Name(EVIL, "a note"), "12.5", "seen"]], caption="A table", notes=("under it",))
    blocks = (
        table,
        Sentences((f"told of {EVIL}",), "list"),
        Facts((("label", EVIL),)),
        Sentences(("page",), pens=Pen.HTML),
    )

    monkeypatch.setattr(
        panels, "PANELS", (*panels.PANELS, lambda _: iter([Panel("new", "New section", blocks, "New")]))
    )
    ranking = rank([read_run(make_run(n=8))], resamples=50)
    text, markdown, page = str(Report(ranking)), render.report_md(ranking), render.report_html(ranking)
    assert f"A table\nwho           much\n{EVIL}  12.5\nunder it" in text and f"told of {EVIL}" in text
    assert "## New section" in markdown and "| &lt;b&gt;\\*x\\*\\|y&lt;/b&gt; | 12.5 |" in markdown
    assert "* under it" in markdown and "only here" not in markdown + text and "a note" not in markdown + text
    section = page.partition('<section id="new">')[2].partition("</section>")[0]
    assert (
        "<b>" not in section and section.count("&lt;b&gt;*x*|y&lt;/b&gt;") == 4
    )  # the name with its title, twice told
    assert "<small>a note</small>" in section and '<td class="number">seen</td>' in section and 'href="#new"' in page


class Length(MeanMetric):
    """A stranger's metric."""

    name = "my-length"
    columns = ("whole", "half", "raw", "replies")
    values = ("score", "half", "raw")
    description = "characters, higher is better"
    details = frozenset({"raw"})
    scale = 1
    labels = {"score": "my length", "half": "half of it", "raw": "raw"}  # noqa: RUF012 - as a plug-in may write it

    def per_reply(self, texts: Any) -> Any:
        return np.array([[len(reply), len(reply) / 2, len(reply)] for reply in texts.replies], dtype=np.float64)

    def signature(self, n: int) -> str:
        return f"my-length|n:{n}"


def test_a_metric_of_another_package_needs_no_line_of_ours(make_run: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("my-length", f"{__name__}:Length", "bnbench.metrics")
    monkeypatch.setattr(EntryPoint, "load", lambda _: Length)
    monkeypatch.setattr(registry.metadata, "entry_points", lambda **_: [point])
    folder = make_run(metrics=(*METRICS, "my-length"), primary_metric="my-length")
    made = write_report([read_run(folder)], folder, resamples=50)
    page, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for text in (str(made), markdown, page):
        assert "my length" in text and "half of it" in text
    assert "my length, the primary metric" in str(made) and "raw  " not in str(made) and "<th>raw" not in page
    assert any(s["name"] == "raw" for s in made.ranking.as_dict()["standings"][0]["scores"])


def test_what_a_model_card_says(make_run: Maker) -> None:
    ranking = rank([read_run(make_run())], resamples=200)
    said, table = evaluation_md(ranking, ADAPTER)
    assert said.startswith(f"{ADAPTER} is better than its base") and "would often go undetected" in table
    assert "| chrF++ | ↑ |" in table and "| bits per character | ↓ |" in table
    alone, table = evaluation_md(rank([read_run(make_run(PAIR[:1], name="alone"))], resamples=200), PAIR[0].name)
    assert "demo-base scores" in alone and "| chrF++ | ↑ |" in table
    with pytest.raises(KeyError):
        evaluation_md(ranking, "nobody")


def test_a_ranking_shows_itself(make_run: Maker) -> None:
    ranking = rank([read_run(make_run())], resamples=50)
    assert str(Report(ranking)).startswith("demo-adapter is better than its base demo-base by ")
    shown = Report(ranking)._repr_html_()
    assert "<table>" in shown and "demo-adapter is better than" in shown and "<script" not in shown
