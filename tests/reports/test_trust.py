"""What a report says of a metric that was audited, and that it never shows the audit of another signature."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bnbench.errors import UsageError
from bnbench.metrics.audit import audit, read_audits
from bnbench.metrics.audit.findings import sentence
from bnbench.metrics.registry import get_metric
from bnbench.records import read_run, write_json
from bnbench.reports import rank, write_report
from tests.reports.conftest import METRICS

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with audits of chrF++, which knows nothing of empathy, and of keyword empathy, as they are now."""
    path = tmp_path_factory.mktemp("audits") / "audits.json"
    write_json(path, [audit(get_metric(n), resamples=200).as_dict() for n in ("chrF++", "keyword-empathy")])
    return path


def test_an_audited_metric_is_shown_with_its_figures(make_run: Maker, recorded: Path) -> None:
    folder = make_run()
    write_report([read_run(folder)], folder, resamples=200, audits=recorded)
    [_, made] = read_audits(recorded)
    auc = made.standings[0].measures["AUC"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    section = page.split('<section id="trust">')[1].split("</section>")[0]
    assert f"{auc.value:.2f} <small>[{auc.low:.2f}, {auc.high:.2f}]</small>" in section
    for name in ("keyword-empathy lex:original.1", "original-semantic enc:bn-static", "length", "copy of the message"):
        assert name in section
    # The sentinel that is the same for every reply has no order.
    [row] = [row for row in section.split("<tr") if ">constant<" in row]
    assert row.count(">–<") == 3 and "0.50" in row and "0.00 <small>" not in row
    for limit in [check.name for check in made.checks if check.verdict == "limit"]:
        assert limit in section
    assert "Can these metrics be trusted?" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_metric_that_a_sentinel_beats_is_flagged_where_it_stands(make_run: Maker, recorded: Path) -> None:
    folder = make_run()
    made = write_report([read_run(folder)], folder, resamples=200, audits=recorded)
    [chrf] = [t for t in rank([read_run(folder)], resamples=50, audits=recorded).trust if t.metric == "chrF++"]
    assert chrf.beaten is not None and "not better than the sentinel" in chrf.beaten["chrF++"]
    page, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert 'chrF++ <span class="worse">⚑</span>' in page
    for text in (str(made), markdown, page.replace('<span class="worse">', "").replace("</span>", "")):
        assert "chrF++ ⚑" in text and "not to be trusted as a measure of empathy: chrF++ is not better" in text
    assert "keyword empathy ⚑" not in str(made)


def test_figures_of_another_signature_are_never_shown(make_run: Maker, recorded: Path) -> None:
    folder = make_run()
    meta = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for metric in meta["metrics"]:
        metric["signature"] = metric["signature"].replace("lex:bn.", "lex:mine.")
    (folder / "run.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
    ranking = rank([read_run(folder)], resamples=50, audits=recorded)
    [keyword] = [t for t in ranking.trust if t.metric == "keyword-empathy"]
    assert not keyword.scorers and "not audited with this signature" in sentence(keyword)
    made = write_report([read_run(folder)], folder, resamples=50)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert (
        "Can these metrics be trusted?" in page
        and "AUC" not in page.split('<section id="trust">')[1].split("<section")[0]
    )
    assert "keyword-empathy: not audited with this signature" in str(made)


def test_audits_on_other_labels_stand_beside_each_other(make_run: Maker, recorded: Path, tmp_path: Path) -> None:
    [_, one] = read_audits(recorded)
    made = [one, replace(one, data="mine.csv", data_sha256="0")]
    write_json(tmp_path / "two.json", [one.as_dict() for one in made])
    folder = make_run(n=5)
    write_report([read_run(folder)], folder, resamples=50, audits=tmp_path / "two.json")
    trusted = rank([read_run(folder)], resamples=50, audits=tmp_path / "two.json").trust
    assert {t.data for t in trusted} == {each.data for each in made} and len(trusted) == 2
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('aria-label="Agreement with labelled replies"') == 2


def test_the_empathy_metrics_have_an_audit_on_record_without_being_asked(make_run: Maker) -> None:
    folder = make_run(metrics=(*METRICS, "semantic-empathy"), n=5)
    ranking = rank([read_run(folder)], resamples=50)
    assert [t.metric for t in ranking.trust] == ["keyword-empathy", "semantic-empathy"]
    assert rank([read_run(make_run(metrics=("chrF++",), name="plain", n=5))], resamples=50).trust == ()


def test_a_file_that_holds_no_audits_is_refused(make_run: Maker, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    folder = make_run(n=5)
    for name in ("x.json", "none.json"):
        with pytest.raises(UsageError, match=f"{name}: "):
            rank([read_run(folder)], audits=tmp_path / name)
