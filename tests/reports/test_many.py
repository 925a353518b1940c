"""Many candidates: the matrix, who cannot be told apart, how often each is first, slices, the forest plot."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.metrics import paired_tests
from bnbench.metrics.address import address_of
from bnbench.metrics.significance import resampled_sums
from bnbench.records import read_run
from bnbench.reports import Ranking, Report, rank
from bnbench.reports.panels import Table, pairs_panel, slices_panel
from bnbench.reports.ranking import alike
from bnbench.reports.render import report_html
from tests.reports.conftest import ADAPTER, BASE, PAIR, Spec

Maker = Callable[..., Path]
FIVE = (PAIR[0], *(Spec(name, quality, base=PAIR[0].location) for name, quality in
                   (("best", 0.62), ("second", 0.58), ("third", 0.3), ("last", 0.05))))  # fmt: skip


def ranked(folder: Path) -> Ranking:
    return rank([read_run(folder)], resamples=1000)


def test_the_matrix_says_what_the_pairs_say(make_run: Maker) -> None:
    ranking = ranked(make_run(FIVE))
    (panel,) = pairs_panel(ranking)
    square = panel.blocks[0]
    assert isinstance(square, Table) and len(square.rows) == 5
    names = [s.candidate for s in ranking.standings]
    for c in ranking.pairs:
        there, back = square.rows[names.index(c.candidate)], square.rows[names.index(c.other)]
        marks = {True: ("▲", "▼"), False: ("▼", "▲"), None: ("·", "·")}[c.better]
        cells = str(there[2 + names.index(c.other)]), str(back[2 + names.index(c.candidate)])
        assert tuple(cell[-1] for cell in cells) == marks
        assert {cell[0] for cell in cells} == {"+", "−"}
    assert [str(row[2 + i]) for i, row in enumerate(square.rows)] == ["–"] * 5
    groups = alike(ranking)
    apart = {frozenset((c.candidate, c.other)) for c in ranking.pairs if c.better is not None}
    assert {name for group in groups for name in group} == set(names) and ("best", "second") in [g[:2] for g in groups]
    for group in groups:
        assert not any(frozenset((a, b)) in apart for a in group for b in group)
    assert any("{best, second" in note for note in square.notes)
    assert "All pairs on chrF++" in str(Report(ranking))
    # The page calls a first column without a head "metric".
    assert re.search(r'lead-head">less</th>.*?>first</th>', report_html(ranking), re.DOTALL)
    assert '<th scope="col" class="text">#</th>' in re.sub(r"\s+<", "<", report_html(ranking))


def test_how_often_each_is_first(make_run: Maker) -> None:
    ranking = ranked(make_run(FIVE))
    shares = {s.candidate: s.first_share for s in ranking.standings}
    assert sum(x for x in shares.values() if x is not None) == pytest.approx(1)
    formula, tables = ranking.metrics["chrF++"].formula, ranking.runs[0].tables
    drawn = np.stack([formula(resampled_sums(t["chrF++"], resamples=1000, seed=42))[:, 0] for t in tables.values()])
    first = np.bincount(drawn.argmax(axis=0), minlength=5) / 1000
    assert [shares[name] for name in tables] == pytest.approx(first.tolist(), abs=0.002)
    assert 0.2 < (shares["best"] or 0) < 1 and shares["last"] == 0
    assert all(s.first_share is None for s in ranked(make_run(name="two")).standings)


def test_slices_are_parts_of_the_same_tables(make_run: Maker) -> None:
    ranking = ranked(make_run())
    (panel,) = slices_panel(ranking)
    (table,) = panel.blocks
    assert isinstance(table, Table)
    run, rows = ranking.runs[0], {str(row[0]): row for row in table.rows}
    assert all(8 <= int(str(row[1])) < 40 for row in table.rows)
    lengths = [sum(int(str(row[1])) for label, row in rows.items() if label.startswith(f"{of} of"))
               for of in ("message", "reference")]  # fmt: skip
    assert lengths == [40, 40]  # thirds of all items
    label = next(label for label in rows if label.startswith("reference says আপনি"))
    kept = [i for i, e in enumerate(run.examples) if address_of(e["reference"]) == "আপনি"]
    assert rows[label][1] == str(len(kept))
    formula = ranking.metrics["chrF++"].formula
    a, b = (run.tables[name]["chrF++"][kept] for name in (ADAPTER, BASE))
    [[expected]] = paired_tests([(a, b, formula)], resamples=1000)
    own = [float(str(cell).replace("−", "-")) for cell in (rows[label][2], rows[label][3], rows[label][4])]
    assert own[0] == pytest.approx(formula(a.sum(axis=0))[0], abs=0.06)
    assert own[2] == pytest.approx(expected.difference, abs=0.06)
    assert f"{expected.interval.high:.1f}" in str(rows[label][5])
    assert list(slices_panel(ranked(make_run(n=7, name="few")))) == []


def test_address_of() -> None:
    assert address_of("আপনার কষ্টটা বুঝতে পারছি।") == "আপনি"
    assert address_of("তোকে কি কেউ বকেছে?") == "তুই"
    assert address_of("তুমি আর আপনি") == "mixed"
    assert address_of("মন খারাপ কোরো না।") == "none"


def test_a_forest_plot_for_a_paper(make_run: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = (PAIR[0], Spec("আমার <ক>", 0.5, base=PAIR[0].location), Spec("no\uffffcharacter", 0.6))
    folder, runner = make_run(specs), CliRunner()
    done = runner.invoke(app, ["report", str(folder), "--forest", str(tmp_path / "a.svg")])
    assert done.exit_code == 0, done.output
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "আমার <ক>" in texts and any(text and text.endswith("n = 40") for text in texts)
    in_bengali = runner.invoke(app, ["report", str(folder), "--lang", "bn", "--forest", str(tmp_path / "bn.svg")])
    assert in_bengali.exit_code == 0
    assert 'sans-serif">chrF++ (বেশি হলে ভালো), ৯৫ % আস্থা-ব্যবধান, n = ৪০</text>' in (tmp_path / "bn.svg").read_text(
        "utf-8"
    )
    first, second, _ = (float(c.get("cx", "")) for c in root.iter("{http://www.w3.org/2000/svg}circle"))
    assert first > second and "stroke-dasharray" in svg and svg.count("http") == 1
    drawn: list[dict[str, object]] = []
    monkeypatch.setitem(
        sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=lambda **how: drawn.append(how) or b"PNG")
    )
    assert runner.invoke(app, ["report", str(folder), "--forest", str(tmp_path / "a.png")]).exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == b"PNG" and drawn[0]["svg_string"] == svg.rstrip()
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    (folder / "report.html").unlink()
    lacking = runner.invoke(app, ["report", str(folder), "--forest", str(tmp_path / "b.png")])
    assert lacking.exit_code == 2 and ".[plot]" in lacking.stderr
    wrong = runner.invoke(app, ["report", str(folder), "--forest", "a.jpg"])
    assert wrong.exit_code == 2 and ".svg or .png" in wrong.stderr
    assert not (folder / "report.html").exists()  # refused before anything is written
