"""A combined score in a report: its numbers, its parts beside it, how firm the order is, and runs that differ in it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnbench.errors import RunError
from bnbench.metrics.combined import parse_weights
from bnbench.metrics.significance import resampled_sums
from bnbench.records import read_run
from bnbench.reports import rank, write_report
from tests.reports.conftest import ADAPTER, BASE, PAIR, PREDICTIONS, Spec

Maker = Callable[..., Path]
WEIGHTS = "chrF++=1,keyword-empathy=1,ROUGE=2"
FOUR = (*PAIR, Spec("<b>x</b>", 0.2, base=PAIR[0].location), Spec("other|one", 0.22, base=PAIR[0].location))


def test_score_interval_and_difference_are_those_of_its_parts(make_run: Maker) -> None:
    run = read_run(make_run(combine=WEIGHTS))
    ranking = rank([run], resamples=800)
    base, adapter = (next(s for s in ranking.standings if s.candidate == name) for name in (BASE, ADAPTER))
    parts = {"chrF++": "chrF++", "keyword-empathy": "keyword_empathy", "ROUGE": "rougeL"}
    weights = parse_weights(WEIGHTS)
    for standing in (base, adapter):
        expected = sum(weights[name] * standing.value(name, value) for name, value in parts.items())
        assert standing.value("combined", "combined") == pytest.approx(expected)
    from bnbench.metrics.registry import get_metric

    def drawn(name: str) -> np.ndarray:
        tables = {m: resampled_sums(run.tables[name][m], resamples=800, seed=42) for m in weights}
        return sum(w * get_metric(m).formula(tables[m])[:, 0] for m, w in weights.items())

    versus = adapter.versus("combined", "combined")
    assert versus is not None and versus.p_holm is None
    ends = np.quantile(drawn(ADAPTER) - drawn(BASE), [0.025, 0.975])
    assert [versus.low, versus.high] == pytest.approx(ends, abs=1.5)  # a bootstrap's, a little narrower
    score = adapter.score("combined", "combined")
    assert score is not None and [score.low, score.high] == pytest.approx(
        np.quantile(drawn(ADAPTER), [0.025, 0.975]), abs=1.5
    )
    assert ranking.primary == "chrF++" and ranking.combined is not None
    assert list(ranking.combined.parts[ADAPTER].values()) == [adapter.value(m, v) for m, v in parts.items()]


def test_it_stands_in_every_form_of_the_report(make_run: Maker) -> None:
    folder = make_run(FOUR, combine=WEIGHTS)
    made = write_report([read_run(folder)], folder, resamples=200)
    combined = made.ranking.as_dict()["combined"]
    assert combined["weights"] == parse_weights(WEIGHTS) and len(combined["neighbours"]) == 3
    page, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for text in (str(made), page, markdown):
        assert "0.25 chrF++ + 0.25 keyword-empathy + 0.5 ROUGE" in text.replace("\\", "")
        assert "declared" in text and "within ±50 % of the declared" in " ".join(text.split())
    assert '<section id="combined">' in page and "<b>x" not in page and "other\\|one" in markdown
    assert max(map(len, str(made).splitlines())) <= 110
    rows = [
        row for row in csv.DictReader((folder / "ranking.csv").open(encoding="utf-8")) if row["metric"] == "combined"
    ]
    assert {row["candidate"] for row in rows} == {spec.name for spec in FOUR}
    assert all(row["low"] and row["signature"].startswith("combined|chrF++:0.25|") for row in rows)
    assert sum(bool(row["difference"]) for row in rows) == 3


def test_without_one_nothing_is_said_of_it(make_run: Maker) -> None:
    folder = make_run()
    made = write_report([read_run(folder)], folder, resamples=200)
    assert made.ranking.as_dict()["combined"] is None
    assert "ombined" not in str(made) + (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("specs", "n"), [(PAIR[:1], 40), (PAIR, 1), (PREDICTIONS, 40)])
def test_one_candidate_one_item_and_replies_without_likelihoods(
    make_run: Maker, specs: tuple[Spec, ...], n: int
) -> None:
    folder = make_run(specs, n=n, combine=WEIGHTS)
    made = write_report([read_run(folder)], folder, resamples=200)
    assert "Combined score" in str(made) and not re.search(r"\bnan\b", str(made))
    assert ("The order of these" in str(made)) == (len(specs) > 1)


def test_it_ranks_where_it_was_declared_to(make_run: Maker) -> None:
    folder = make_run(FOUR, combine=WEIGHTS, primary_metric="combined")
    made = write_report([read_run(folder)], folder, resamples=200)
    standings = made.ranking.as_dict()["standings"]
    assert [s["candidate"] for s in standings] == list(made.ranking.as_dict()["combined"]["scores"])
    assert (
        made.ranking.as_dict()["pairs"][0]["metric"] == "combined"
        and made.ranking.as_dict()["pairs"][0]["p_holm"] is not None
    )
    assert "combined, the primary metric" in str(made)


def test_runs_with_other_weights_leave_it_out(make_run: Maker, tmp_path: Path) -> None:
    one = make_run(name="one", combine=WEIGHTS)
    same = make_run(FOUR[:1] + FOUR[2:], name="same", combine="ROUGE=2,keyword-empathy=1,chrF++=1")
    other = make_run(FOUR[:1] + FOUR[3:], name="other", combine="chrF++=1,ROUGE=1")
    none = make_run(FOUR[:1] + FOUR[3:], name="none")
    assert rank([read_run(one), read_run(same)], resamples=100).combined is not None
    for third in (other, none):
        ranking = rank([read_run(one), read_run(third)], resamples=100)
        assert ranking.combined is None and "combined" not in ranking.values
        assert any("the combined score is left out" in note for note in ranking.notes)
    meta = json.loads((one / "run.json").read_text(encoding="utf-8")) | {"primary_metric": "combined"}
    (one / "run.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(RunError, match="ranks by a combined score that not all of"):
        rank([read_run(one), read_run(other)], resamples=100)
