"""The numbers of a ranking, against computations that share no code with it, and the cases with little to say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bnbench.errors import RunError, UsageError
from bnbench.metrics import paired_tests
from bnbench.records import Run, read_run
from bnbench.reports import Ranking, Report, evaluation_md, rank, write_report
from bnbench.reports.render import report_html, report_md
from bnbench.reports.values import shown_values
from bnbench.reports.verdict import warnings
from tests.reports.conftest import ADAPTER, BASE, METRICS, PAIR, PREDICTIONS, Spec

Maker = Callable[..., Path]
TEN = (PAIR[0], *(Spec(f"adapter-{i}", 0.1 + 0.06 * i, base=PAIR[0].location) for i in range(9)))


def ranked(*folders: Path, resamples: int = 1000) -> Ranking:
    return rank([read_run(folder) for folder in folders], resamples=resamples)


def overwrite(folder: Path, table: str, column: str, value: Any) -> None:
    path = folder / "scores" / f"{table}.parquet"
    frame = pd.read_parquet(path)
    frame[column] = value
    frame.to_parquet(path, index=False)


def change_meta(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(meta | changes, ensure_ascii=False), encoding="utf-8")


def chrf(sums: np.ndarray) -> float:
    """chrF++ from summed statistics: eight orders of (reply, reference, common), F2 of the mean P and mean R."""
    precisions, recalls = [], []
    for hyp, ref, match in sums.reshape(8, 3):
        if hyp and ref:
            precisions.append(match / hyp)
            recalls.append(match / ref)
    p, r = np.mean(precisions), np.mean(recalls)
    return 100 * 5 * p * r / (4 * p + r)


def test_a_metric_of_some_items_is_of_these_whichever_ranks(make_run: Maker) -> None:
    """As a judge who gave no answer, or a plug-in's metric that has nothing to say of a reply."""
    run = read_run(make_run((*PAIR, Spec("third", 0.6)), metrics=("chrF++", "ROUGE", "degeneration"), n=40))
    asked = np.isin(np.arange(40), range(3, 25))[:, None]  # of the base two less, which then none is compared on
    tables = {who: {**own, "ROUGE": own["ROUGE"] * asked} for who, own in run.tables.items()}
    tables[BASE]["ROUGE"] *= (np.arange(40) > 4)[:, None]
    partly, rows = replace(run, tables=tables), range(5, 25)
    alone = replace(
        run, examples=tuple(run.examples[i] for i in rows),
        replies={who: tuple(of[i] for i in rows) for who, of in run.replies.items()},
        tables={who: {m: table[5:25] for m, table in own.items()} for who, own in run.tables.items()},
    )  # fmt: skip
    by_chrf, by_rouge = (rank([partly], resamples=300, primary=primary) for primary in ("chrF++", "ROUGE"))
    expected = rank([alone], resamples=300, primary="ROUGE")
    assert (by_chrf.n, by_rouge.n, expected.n) == (40, 20, 20)
    assert by_rouge.pairs == expected.pairs
    for ranking in (by_chrf, by_rouge):
        assert "|n:20|" in ranking.signatures["ROUGE"] and "|n:40|" in ranking.signatures["chrF++"]
        for s in ranking.standings:
            of = next(other for other in expected.standings if other.candidate == s.candidate)
            assert {x for x in s.scores if x.metric == "ROUGE"} == {x for x in of.scores if x.metric == "ROUGE"}
            ours, theirs = (
                {replace(c, p_holm=None, better=None) for c in one.versus_base if c.metric == "ROUGE"}
                for one in (s, of)
            )
            assert ours == theirs
        [note] = [note for note in warnings(ranking) if "on only 20 of the 40 items" in note]
        assert note.startswith("ROUGE-L: ")
        assert ("too few to trust" in note) == (ranking is by_chrf)
        assert "ROUGE-L (n = 20)" in report_md(ranking) and "ROUGE-L (n = 20)" in report_html(ranking)
    assert by_rouge.standings[0].first_share == expected.standings[0].first_share
    # Where nobody has it for the items of another, it is left out, and cannot rank.
    tables[ADAPTER]["ROUGE"] = run.tables[ADAPTER]["ROUGE"] * (np.arange(40) < 5)[:, None]
    none = rank([partly], resamples=100)
    assert "ROUGE" not in none.metrics
    assert "ROUGE is left out: no item has ROUGE for all candidates" in none.notes
    with pytest.raises(UsageError, match=r"^no item has ROUGE for all candidates"):
        rank([partly], resamples=100, primary="ROUGE")


def test_numbers_agree_with_an_independent_computation(make_run: Maker) -> None:
    folder = make_run()
    write_report([read_run(folder)], folder)
    written = json.loads((folder / "ranking.json").read_text(encoding="utf-8"))
    frames = {
        n: pd.read_parquet(folder / "scores" / f"{n}.parquet").filter(regex=r"^chrF\+\+/") for n in (BASE, ADAPTER)
    }
    tables = {name: frame.to_numpy() for name, frame in frames.items()}
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, 40, 40) for _ in range(4000)]
    best = {s["candidate"]: s["scores"][0] for s in written["standings"]}
    for name, table in tables.items():
        assert best[name]["value"] == pytest.approx(chrf(table.sum(0)), abs=1e-9)
        ends = np.quantile([chrf(table[i].sum(0)) for i in drawn], [0.025, 0.975])
        assert [best[name]["low"], best[name]["high"]] == pytest.approx(ends, abs=1.2)
    (pair,) = written["pairs"]
    sign = 1 if pair["candidate"] == ADAPTER else -1
    observed = chrf(tables[ADAPTER].sum(0)) - chrf(tables[BASE].sum(0))
    differences = np.array([chrf(tables[ADAPTER][i].sum(0)) - chrf(tables[BASE][i].sum(0)) for i in drawn])
    assert sign * pair["difference"] == pytest.approx(observed, abs=1e-9)
    assert sorted(sign * pair[k] for k in ("low", "high")) == pytest.approx(
        np.quantile(differences, [0.025, 0.975]), abs=1.6
    )
    assert pair["smallest_detectable"] == pytest.approx((1.959964 + 0.841621) * differences.std(), rel=0.06)
    coins = generator.random((4000, 40, 1)) < 0.5
    exchanged = [
        chrf(np.where(c, tables[ADAPTER], tables[BASE]).sum(0))
        - chrf(np.where(c, tables[BASE], tables[ADAPTER]).sum(0))
        for c in coins
    ]
    assert pair["p"] == pytest.approx(np.mean(np.abs(exchanged) >= abs(observed)), abs=0.003)


def test_bits_per_character_and_rouge_are_what_their_tables_say(make_run: Maker) -> None:
    folder = make_run()
    ranking = ranked(folder)
    frame = pd.read_parquet(folder / "scores" / f"{ADAPTER}.parquet")
    adapter = next(s for s in ranking.standings if s.candidate == ADAPTER)
    bits = frame["perplexity/nll"].sum() / math.log(2) / frame["perplexity/characters"].sum()
    assert adapter.value("perplexity", "bits_per_character") == pytest.approx(bits)
    assert adapter.value("ROUGE", "rougeL") == pytest.approx(100 * frame["ROUGE/rougeL"].mean())


def test_lower_is_better_is_read_the_right_way(make_run: Maker) -> None:
    ranking = ranked(make_run())
    adapter = next(s for s in ranking.standings if s.candidate == ADAPTER)
    comparison = adapter.versus("perplexity", "bits_per_character")
    assert comparison is not None
    assert comparison.difference < 0
    assert comparison.better is True
    by_bits = ranked(make_run(name="bits", primary_metric="perplexity"))
    assert [s.candidate for s in by_bits.standings] == [ADAPTER, BASE]
    assert [(s.best_rank, s.worst_rank) for s in by_bits.standings] == [(1, 1), (2, 2)]


def test_ranges_follow_from_the_pairs_after_holm(make_run: Maker) -> None:
    ranking = ranked(make_run(TEN))
    assert len(ranking.pairs) == 45
    raw = sorted(c.p for c in ranking.pairs)
    adjusted = sorted(c.p_holm for c in ranking.pairs if c.p_holm is not None)
    steps = np.minimum(np.maximum.accumulate([p * (45 - i) for i, p in enumerate(raw)]), 1)
    assert adjusted == pytest.approx(steps)
    for standing in ranking.standings:
        mine = [c for c in ranking.pairs if standing.candidate in (c.candidate, c.other) and c.better is not None]
        above = sum(c.better == (c.other == standing.candidate) for c in mine)
        assert (standing.best_rank, standing.worst_rank) == (1 + above, 10 - (len(mine) - above))
        assert all(c.p_holm is not None and c.p_holm < 0.05 for c in mine)
    values = [s.scores[0].value for s in ranking.standings]
    assert values == sorted(values, reverse=True)


def test_one_candidate_has_no_differences(make_run: Maker) -> None:
    ranking = ranked(make_run(PAIR[:1]))
    (only,) = ranking.standings
    assert (only.best_rank, only.worst_rank, only.versus_base, only.compared_with) == (1, 1, (), None)
    assert ranking.pairs == ()


def test_predictions_have_no_perplexity_and_are_compared_with_the_first(make_run: Maker) -> None:
    ranking = ranked(make_run(PREDICTIONS))
    assert ranking.base == BASE
    assert "perplexity" not in ranking.values
    assert [s.hit_limit_share for s in ranking.standings] == [None, None]


def test_a_metric_that_one_candidate_lacks_is_not_compared(make_run: Maker) -> None:
    ranking = ranked(make_run((PAIR[0], Spec(ADAPTER, 0.4, lacks=("BLEU",), likelihoods=False))))
    adapter = next(s for s in ranking.standings if s.candidate == ADAPTER)
    assert adapter.score("BLEU", "BLEU") is None
    assert adapter.versus("BLEU", "BLEU") is None
    assert adapter.versus("ROUGE", "rougeL") is not None
    assert next(s for s in ranking.standings if s.candidate == BASE).score("BLEU", "BLEU") is not None


def test_one_item_decides_nothing(make_run: Maker) -> None:
    ranking = ranked(make_run(n=1))
    (pair,) = ranking.pairs
    assert pair.better is None
    # All resamples of one item are alike: their interval of no width, and p = 1, would look like knowledge.
    assert all(map(math.isnan, (pair.low, pair.high, pair.p, pair.smallest_detectable)))
    assert all(math.isnan(x) for s in ranking.standings for score in s.scores for x in (score.low, score.high))
    assert [(s.best_rank, s.worst_rank) for s in ranking.standings] == [(1, 2), (1, 2)]


def test_equal_candidates_share_their_places(make_run: Maker) -> None:
    ranking = ranked(make_run((Spec("a", 0.3, "base"), Spec("b", 0.3))))
    (pair,) = ranking.pairs
    assert (pair.difference, pair.low, pair.high, pair.p, pair.better) == (0, 0, 0, 1, None)
    assert {(s.best_rank, s.worst_rank) for s in ranking.standings} == {(1, 2)}


def test_the_primary_metric_must_be_there_for_all(make_run: Maker) -> None:
    folder = make_run((PAIR[0], Spec(ADAPTER, 0.4, lacks=("chrF++",))))
    with pytest.raises(
        UsageError, match=r"demo-adapter has no chrF\+\+, the primary metric; common to all candidates: BLEU, ROUGE, "
    ):
        ranked(folder)


def test_a_metric_that_is_not_installed_here_is_noted_not_fatal(make_run: Maker) -> None:
    folder = make_run()
    metrics = json.loads((folder / "run.json").read_text(encoding="utf-8"))["metrics"]
    plug_in = metrics[1] | {"name": "stranger"}
    for name in (BASE, ADAPTER):
        for column in plug_in["columns"]:
            overwrite(folder, name, f"stranger/{column}", 1.0)
    change_meta(folder, metrics=[*metrics, plug_in])
    ranking = ranked(folder)
    assert "stranger" not in ranking.values
    assert any("stranger is left out" in note for note in ranking.notes)


def test_statistics_of_another_version_are_refused_where_they_rank(make_run: Maker) -> None:
    folder = make_run(metrics=("chrF++", "BLEU"))
    primary, *others = json.loads((folder / "run.json").read_text(encoding="utf-8"))["metrics"]
    for name in (BASE, ADAPTER):
        overwrite(folder, name, "chrF++/char7_hyp", 1.0)
    change_meta(folder, metrics=[primary | {"columns": [*primary["columns"], "char7_hyp"]}, *others])
    with pytest.raises(UsageError, match=r"the run holds the statistics .*char7_hyp, this version of chrF\+\+ has"):
        ranked(folder)


def test_two_declared_primaries_are_noted(make_run: Maker) -> None:
    one, two = make_run(name="one"), make_run((Spec("c", 0.3),), name="two", primary_metric="BLEU")
    assert any("two declared BLEU" in note for note in ranked(one, two).notes)


def test_runs_are_ranked_together_and_duplicates_once(make_run: Maker) -> None:
    one = make_run(name="one")
    two = make_run((PAIR[0], Spec("newcomer", 0.6, base=PAIR[0].location)), name="two")
    ranking = ranked(one, two)
    assert sorted(s.candidate for s in ranking.standings) == [ADAPTER, BASE, "newcomer"]
    newcomer = next(s for s in ranking.standings if s.candidate == "newcomer")
    assert newcomer.compared_with == BASE
    fewer = ranked(make_run((replace(PAIR[0], lacks=("ROUGE",)), PAIR[1]), name="three"), two)
    scored = next(s for s in fewer.standings if s.candidate == BASE).score("ROUGE", "rougeL")
    assert scored == next(s for s in ranking.standings if s.candidate == BASE).score("ROUGE", "rougeL")
    assert scored  # what only the later run counted of the same replies


def test_one_name_for_two_candidates_gets_the_name_of_its_run(make_run: Maker) -> None:
    other = Spec(ADAPTER, 0.6, location="elsewhere", base=PAIR[0].location)
    ranking = ranked(make_run(name="one"), make_run((PAIR[0], other), name="two"))
    assert sorted(s.candidate for s in ranking.standings) == [ADAPTER, f"{ADAPTER} (two)", BASE]


def test_each_adapter_is_compared_with_its_own_base(make_run: Maker) -> None:
    other = (Spec("other-base", 0.2, "base", location="other"), Spec("other-adapter", 0.5, base="other"))
    ranking = ranked(make_run(name="one"), make_run(other, name="two"))
    compared = {s.candidate: s.compared_with for s in ranking.standings}
    assert compared == {BASE: None, ADAPTER: BASE, "other-base": BASE, "other-adapter": "other-base"}


def test_another_decoding_keeps_both_and_is_noted(make_run: Maker) -> None:
    one, two = make_run(name="one"), make_run(name="two")
    change_meta(two, decoding={**read_run(two).record.decoding, "temperature": 0.2})
    ranking = ranked(one, two)
    assert len(ranking.standings) == 4
    assert any("one and two differ in decoding" in note for note in ranking.notes)
    recorded = make_run((Spec("recorded", 0.4, "predictions"),), name="three")
    change_meta(recorded, decoding={"temperature": 0.2}, precision={"dtype": None}, prompt={"kind": "recorded"})
    assert not any("three differ" in note for note in ranked(one, recorded).notes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda run: run.examples[:-1],
            r"two \(39 items\) and .*one \(40 items\) cannot be compared: item \w+ is in one",
        ),
        (lambda run: run.examples[::-1], "their items are in another order"),
        (
            lambda run: ({**run.examples[0], "reference": "অন্য উত্তর"}, *run.examples[1:]),
            r"item \w+ has another reference",
        ),
    ],
)
def test_other_items_are_refused(make_run: Maker, change: Callable[[Run], Any], says: str) -> None:
    one, two = (read_run(make_run(name=name)) for name in ("one", "two"))
    changed = replace(two, examples=tuple(change(two)))
    with pytest.raises(RunError, match=says):
        rank([one, changed])


def test_another_signature_is_refused_and_both_are_named(make_run: Maker) -> None:
    one, two = make_run(name="one"), make_run(name="two")
    metrics = json.loads((two / "run.json").read_text(encoding="utf-8"))["metrics"]
    change_meta(two, metrics=[metrics[0] | {"signature": "chrF++|norm:nfc"}, *metrics[1:]])
    with pytest.raises(RunError, match=r"chrF\+\+\|norm:nfc cannot be ranked with chrF\+\+\|norm:bn1"):
        ranked(one, two)


def test_no_run_is_an_error() -> None:
    with pytest.raises(RunError, match="at least one"):
        rank([])


def test_the_builder_gives_every_metric(make_run: Maker) -> None:
    assert set(ranked(make_run()).values) == set(METRICS)


def test_items_of_one_dialogue_are_resampled_together(make_run: Maker) -> None:
    apart, together = make_run(name="apart"), make_run(name="together")
    path = together / "examples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    text = "".join(json.dumps(row | {"dialogue": f"d{i // 8}"}) + "\n" for i, row in enumerate(rows))
    path.write_text(text, encoding="utf-8")
    one, five = ranked(apart), ranked(together)
    assert (one.n, one.dialogues, five.n, five.dialogues) == (40, 40, 40, 5)
    tables = five.runs[0].tables
    (pair,), metric = five.pairs, five.metrics["chrF++"]
    both = (tables[pair.candidate]["chrF++"], tables[pair.other]["chrF++"], metric.formula)
    [[expected]] = paired_tests([both], resamples=1000, clusters=[i // 8 for i in range(40)])
    assert (pair.low, pair.p) == (expected.interval.low, expected.p_value) != (one.pairs[0].low, one.pairs[0].p)
    said = str(Report(five)), evaluation_md(five, ADAPTER)[1]
    assert "40 items in 5 dialogues" in said[0] and "40 items in 5 dialogues: too few to trust" in " ".join(
        said[1].split()
    )
    page, others = (" ".join(report_md(r).split()) for r in (five, one))
    assert "Items of one dialogue depend on each other" in page and "over the 5 dialogues" in page
    assert "Items count as independent: no column dialogue" in others and "dialogues" not in others
    with pytest.raises(RunError, match="has another dialogue"):
        ranked(apart, together)


def test_a_share_of_none_is_not_certain(make_run: Maker) -> None:
    ranking = ranked(make_run())
    score = ranking.standings[0].score("degeneration", "template")
    assert score is not None and (score.value, score.low) == (0, 0)
    assert score.high == pytest.approx(8.76, abs=0.01)
    assert "template" not in [v.name for v in shown_values(ranking)]  # what is 0 for all is not listed
