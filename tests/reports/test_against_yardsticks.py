"""Candidates against yardsticks: the numbers, what they leave alone, what is said, and the cases with little to say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len

from bnbench.metrics.core import paired_test
from bnbench.metrics.registry import get_metric
from bnbench.metrics.significance import bootstrap
from bnbench.records import read_run
from bnbench.reports import evaluation_md, rank, write_report
from bnbench.reports.language import language
from bnbench.reports.ranking import Ranking
from bnbench.reports.verdict import verdict
from tests.reports.conftest import ADAPTER, BASE, PAIR, PREDICTIONS, Spec, conversations, write_run
from tests.reports.test_report import CASES, FILES, Page, report

Maker = Callable[..., Path]
POOR = (Spec(BASE, 0.0, "base", location="b"), Spec("হুবহু", 1.0, base="b"), Spec("কপি", 0.5, base="b"))
FEW = ("chrF++", "BLEU", "keyword-empathy", "perplexity", "degeneration")
TRAINING = tuple(e["reference"] for e in conversations(240)[40:])


def ranked(*folders: Path, resamples: int = 1000) -> Ranking:
    return rank([read_run(folder) for folder in folders], resamples=resamples)


def by_name(ranking: Ranking) -> dict[str, Any]:
    return {y.name: y for y in ranking.yardsticks}


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of other items' sentences, a candidate that has most of the reference's, and one that copies."""
    questions = {i: e["question"] for i, e in enumerate(conversations(40))}
    specs = (POOR[0], POOR[1], Spec("কপি", 0.5, base="b", replies=questions))
    return write_run(tmp_path_factory.mktemp("poor") / "demo", specs, yardsticks=True, training=TRAINING)


def test_differences_are_those_of_a_paired_test(poor: Path) -> None:
    ranking, examples = ranked(poor), conversations(40)
    copy = by_name(ranking)["copy"]
    for metric in ("chrF++", "keyword-empathy"):
        asked = {"messages": [e["question"] for e in examples], "resamples": 1000}
        references = [e["reference"] for e in examples]
        replies = [[g.reply for g in read_run(poor).replies["হুবহু"]], [e["question"] for e in examples]]
        mine, other = (get_metric(metric).score(texts, references, **asked) for texts in replies)
        expected, c = paired_test(mine, other), copy.versus["হুবহু"][metric]
        assert copy.scores[metric].value == pytest.approx(other.value)
        assert c.difference == pytest.approx(expected.difference)
        assert (c.low, c.high) == pytest.approx((expected.interval.low, expected.interval.high), abs=1e-6)
        assert c.p == pytest.approx(expected.p_value) and c.p_holm is None
    itself = copy.versus["কপি"]["chrF++"]
    assert (itself.difference, itself.p, itself.better) == (0, 1, None)


def test_they_move_neither_ranks_nor_p_values(make_run: Maker) -> None:
    with_them, without = (ranked(make_run(POOR, yardsticks=x, name=str(x))) for x in (True, False))
    assert with_them.yardsticks and not without.yardsticks
    assert with_them.standings == without.standings and with_them.pairs == without.pairs


def test_who_passes_and_what_is_said(poor: Path) -> None:
    ranking = ranked(poor)
    assert {y.name for y in ranking.yardsticks} == {"reference", "another", "central", "stock", "copy"}
    assert [c.other for c in ranking.unpassed("কপি", "chrF++")] == [
        "another item’s reference",
        "the most central training reply",
        "a stock reply",
        "a copy of the message",
    ]
    assert not ranking.unpassed("হুবহু", "chrF++") and not ranking.unpassed("হুবহু", "perplexity")
    # By a metric in which the reference itself is no better, nobody is found wanting.
    assert "degeneration" not in by_name(ranking)["another"].floor_of + by_name(ranking)["stock"].floor_of
    assert [c.other for c in ranking.unpassed("কপি", "degeneration")] == ["a copy of the message"]
    said = " ".join(verdict(ranking).details)
    assert "Held against the yardsticks is হুবহু, the best-ranked of those compared." in said
    assert "মাপকাঠির সঙ্গে মেলানো হয়েছে হুবহুকে, তুলনার প্রার্থীদের" in " ".join(map(language("bn"), verdict(ranking).details))
    assert "Passing every yardstick: chrF++, BLEU, ROUGE-L and keyword empathy." in said
    assert "that the reference itself passes, which are not all: broken replies, %." in said
    assert re.search(r"Without a yardstick: bits per character \(better\)\.", said)


def test_a_gain_below_the_yardsticks_is_told_as_such(make_run: Maker) -> None:
    line = "আমি আপনার কথা শুনছি।"
    specs = (
        Spec(BASE, 0.1, "base", location="b", replies=dict.fromkeys(range(40), "হুম")),
        Spec(ADAPTER, 0.2, base="b", replies=dict.fromkeys(range(40), line)),
    )
    folder = make_run(specs, yardsticks=True)
    made = write_report([read_run(folder)], folder, resamples=500)
    headline = verdict(made.ranking).headline
    assert "Held against" not in " ".join(verdict(made.ranking).details)  # the headline says whose
    assert re.fullmatch(
        r"demo-adapter is better than its base .* \(95 % .*\), but below another item’s reference\.", headline
    )
    text, markdown = str(made), (folder / "report.md").read_text(encoding="utf-8")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    shown = " ".join(" ".join(page.text).split())
    for one in (" ".join(text.split()), markdown, shown):
        assert "but below another item’s reference." in one
        assert "In chrF++, demo-adapter is below another item’s reference, a stock reply and a copy of the mess" in one
        assert "∅ not informative here: not better than" in one and "the reference itself" in one
        assert "on chrF++: replies that no candidate gave" in one or one is shown  # a page has no captions
        assert "A reply that belongs to its message is told from another item’s by" in one
    assert "| chrF++ ∅ |" in markdown and "| BLEU | ↑ ∅ |" in markdown and "| bits per character | ↓ |" in markdown
    assert re.search(r"^another item’s reference +18\.\d", text, re.MULTILINE)
    bars = [titled for titled in re.findall("<title>(.*?)</title>", made.html.read_text()) if "yardstick" in titled]
    assert len(bars) == 3 and '<line class="floor"' in made.html.read_text()
    said, card = evaluation_md(made.ranking, ADAPTER)
    assert said.endswith("but below another item’s reference.") and "↑ ∅" in card and "∅ not informative here" in card
    written = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
    assert written["yardsticks"][1]["versus"][ADAPTER]["chrF++"]["better"] is False


def test_how_well_a_metric_tells_is_counted_within_items(poor: Path) -> None:
    run = read_run(poor)
    ranking = rank([run], resamples=1000)
    for metric, own, other in (("ROUGE", "half", "another-half"), ("keyword-empathy", "reference", "another")):
        formula, won = get_metric(metric).formula, []
        for i in range(40):
            for drawing in range(5):
                mine = formula(run.yardsticks[own][metric][i, 0])[0]
                theirs = formula(run.yardsticks[other][metric][i, drawing])[0]
                won.append(1.0 if mine > theirs + 1e-9 else 0.5 if abs(mine - theirs) <= 1e-9 else 0.0)
        told = ranking.telling[metric]
        assert told.value == pytest.approx(np.mean(won))
        items = np.reshape(won, (40, 5)).mean(axis=1)
        # Over 40 items, not 200 drawings: of these the interval would be half as wide.
        [ends] = bootstrap(np.c_[items, np.ones(40)], lambda sums: sums[..., :1] / sums[..., 1:], **ranking.how)
        assert (told.low, told.high) == pytest.approx((ends.low, ends.high), abs=1e-9)
        assert (told.high - told.low) / 3.92 > 0.9 * items.std() / 40**0.5
    assert ranking.telling["degeneration"].value == 0.5 and "perplexity" not in ranking.telling


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "case", ["alone", "one item", "two items", "no variance", "lacking", "nothing said", "ten", "hostile"]
)
def test_every_case_gives_a_whole_report(make_run: Maker, case: str) -> None:
    specs, n = CASES[case]
    training = ("<script>alert(1)</script> | *দুঃখ* \u202e {{ 7 * 7 }}",) if case == "hostile" else TRAINING[:5]
    folder = make_run(specs, n=n, metrics=FEW, yardsticks=True, training=training)
    made = report(folder, 100)
    page = (folder / "report.html").read_text(encoding="utf-8")
    read = Page(page)
    assert read.open == [] and "<script>alert" not in page + (folder / "report.md").read_text(encoding="utf-8")
    texts = [str(made), " ".join(read.text), *((folder / f).read_text(encoding="utf-8") for f in FILES[:3])]
    for text in texts:
        assert not re.search(r"(?<![\w])[+-−]?(nan|NaN|inf|Infinity|None|undefined)(?![\w])", text), case
    assert max(map(cell_len, str(made).splitlines())) <= 110
    assert ("another" in by_name(made.ranking)) == (n > 1)
    assert n > 1 or not any(y.floor_of for y in made.ranking.yardsticks)  # one item shows nothing


def test_a_likelihood_that_ranks_has_no_yardstick(make_run: Maker) -> None:
    folder = make_run(yardsticks=True, primary_metric="perplexity")
    made = write_report([read_run(folder)], folder, resamples=100)
    assert "Yardsticks on" not in str(made) and "below" not in verdict(made.ranking).headline
    assert "Without a yardstick: bits per character (better)" in " ".join(str(made).split())
    row = next(line for line in str(made).splitlines() if line.startswith("bits per character") and "–" in line)
    assert row.split()[3:] == ["↓", *["–"] * 5]
    only = ranked(make_run(name="only", metrics=("perplexity",), primary_metric="perplexity", yardsticks=True))
    assert only.yardsticks == () and not only.telling


def test_runs_together_and_runs_of_before(make_run: Maker) -> None:
    old, new = make_run(name="old"), make_run((Spec("নতুন", 0.6),), name="new", metrics=("chrF++",), yardsticks=True)
    assert "ardstick" not in str(report(old, 100)) + (old / "report.md").read_text(encoding="utf-8")
    both = ranked(old, new, resamples=200)
    for y in both.yardsticks:
        assert set(y.versus) == {BASE, ADAPTER, "নতুন"} and set(y.scores) == {"chrF++"}
    more = make_run((Spec("আরও", 0.3),), name="more", yardsticks=True)
    assert set(by_name(ranked(new, more, resamples=200))["copy"].scores) > {"chrF++", "BLEU", "keyword-empathy"}


def test_a_combined_score_and_recorded_replies_have_them_too(make_run: Maker) -> None:
    ranking = ranked(make_run(PREDICTIONS, combine="chrF++=1,keyword-empathy=1", yardsticks=True), resamples=200)
    another = by_name(ranking)["another"]
    assert another.scores["combined"].value == pytest.approx(
        (another.scores["chrF++"].value + another.scores["keyword-empathy"].value) / 2
    )
    assert "combined" in another.floor_of and "combined" in ranking.telling


def test_counts_that_cancel_out_leave_nothing(make_run: Maker, recwarn: pytest.WarningsRecorder) -> None:
    ranked(make_run(PAIR, yardsticks=True, metrics=("chrF++", "BLEU")))
    assert not [w for w in recwarn if "invalid value" in str(w.message)]
