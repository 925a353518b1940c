"""People who rate a run: blind forms, what comes back from them, ratings as metrics, agreement, and a plan."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.data.files import read_records
from bnbench.data.pairs import preferences
from bnbench.errors import RunError, UsageError
from bnbench.metrics import get_metric
from bnbench.metrics.significance import bootstrap
from bnbench.records import Rating, append_lines, read_lines, read_run, write_text
from bnbench.reports.human import draw, import_ratings, make_sheets, workbook
from bnbench.reports.panels import Table, people_panel
from bnbench.reports.people import CRITERIA, agreement, alpha, coincidences, plan, read_people, text_key, with_ratings
from bnbench.reports.ranking import rank
from bnbench.reports.render import Report, evaluation_md, people_report, write_report
from bnbench.reports.verdict import warnings
from tests.reports.conftest import Spec

Maker = Callable[..., Path]
Rows = list[dict[str, Any]]
Rate = Callable[[str, Sequence[str]], Mapping[str, int]]  # an item and the candidates of the texts shown → answers

THREE = (Spec("ভিত্তি-মডেল", 0.15, "base"), Spec("better-adapter", 0.6), Spec("third-adapter", 0.4))
TRUE = {"ভিত্তি-মডেল": 2, "better-adapter": 4, "third-adapter": 3}
METRICS = ("chrF++", "degeneration")
HOSTILE = {
    0: "<script>document.title='x'</script></div></textarea>\"><img src=x onerror=alert(1)>",
    1: "ক" * 40_000,
    2: "مرحبا \u202e উল্টো",
    3: "=HYPERLINK(\"http://x\")",
    4: "+১ {{ 7 * 7 }} {% raw %}",
    5: "-2\x00\x1b[31m \ud83d \ufffe",
    6: "@SUM(A1)",
}  # fmt: skip


@pytest.fixture
def run(make_run: Maker) -> Path:
    return make_run(THREE, name="secret-run", n=30, metrics=METRICS)


def read_form(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def answer(run: Path, form: str, rate: Rate, name: str = "", rows: slice = slice(None)) -> Rows:
    """What the page exports when a rater who sees through the key fills it in."""
    key = {line["code"]: line for line in map(json.loads, (run / "human-key.jsonl").read_text("utf-8").splitlines())}
    codes = [row["code"] for row in read_form(run / "human" / f"{form}.csv")][rows]
    return [
        {"rater": name or form, "code": c, **rate(key[c]["item"], [texts[0] for texts in key[c]["texts"]])}
        for c in codes
    ]


def same(level: Mapping[str, int]) -> Rate:
    def rate(item: str, who: Sequence[str]) -> dict[str, int]:
        if len(who) == 2:
            return {"better": 0 if level[who[0]] == level[who[1]] else 1 if level[who[0]] > level[who[1]] else 2}
        return dict.fromkeys(CRITERIA, level[who[0]])

    return rate


def noisy(seed: int, severity: float = 0.0) -> Rate:
    """The item's own quality of each reply, the same for all raters, and what this rater makes of it."""

    def rate(item: str, who: Sequence[str]) -> dict[str, int]:
        text = [*map(ord, item[:8]), TRUE[who[0]]]
        quality = TRUE[who[0]] + 0.6 * np.random.default_rng(text).standard_normal()
        noise = 0.5 * np.random.default_rng([seed, *text]).standard_normal(len(CRITERIA))
        given = np.clip(np.rint(quality + severity + noise), 1, 5)
        return dict(zip(CRITERIA, map(int, given), strict=True))

    return rate


def save(path: Path, rows: Rows) -> Path:
    """A filled form as its page, a spreadsheet or a workbook gives it back."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".xlsx":
        path.write_bytes(workbook(table))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(table)
    return path


# ------------------------------------------------------------------------------------------------------------- the form


class Form(HTMLParser):
    """The texts of a form's boxes, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.boxes, self.links, self.is_inside = Counter[str](), list[str](), list[str](), False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if "text" in str(dict(attrs).get("class")).split():
            self.boxes.append("")
            self.is_inside = True

    def handle_endtag(self, tag: str) -> None:
        self.is_inside = self.is_inside and tag != "div"

    def handle_data(self, data: str) -> None:
        if self.is_inside:
            self.boxes[-1] += data


def test_a_sheet_is_blind(run: Path) -> None:
    made = make_sheets(run, raters=3, items=20, pairs=True)
    assert made.items == 20
    files = [Path(file) for file in made.files]
    assert [path.name for path in files] == [f"rater-{n}.{k}" for n in (1, 2, 3) for k in ("html", "csv", "xlsx")]
    assert made.key == str(run / "human-key.jsonl")
    assert {path.parent for path in files} == {run / "human"}
    key = [json.loads(line) for line in Path(made.key).read_text("utf-8").splitlines()]
    assert len({line["code"] for line in key}) == len(key) == made.pages * 3
    told = [*TRUE, "secret-run", *(line["key"] for line in key)]
    for path in files:
        text = json.dumps(list(read_records(path).values()), ensure_ascii=False) if path.suffix != ".html" else ""
        text = text or path.read_text(encoding="utf-8")
        assert not [word for word in told if word in text], path
    orders = [[(line["item"], line["texts"]) for line in key if line["form"] == f"rater-{n}"] for n in (1, 2, 3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # All raters get the same texts; a pair may stand in either order.
    texts = [sorted(json.dumps(one) for one in order if len(one[1]) == 1) for order in orders]
    assert texts[0] == texts[1] == texts[2]
    # No place on the page is one candidate's: over 20 items a fixed one would come first 20 times.
    first = Counter(next(t[0][0] for i, t in orders[0] if i == item) for item in {i for i, _ in orders[0]})
    assert max(first.values()) < 18
    # A second sheet has new names, so that neither files nor codes are mistaken for the first's.
    assert make_sheets(run, raters=1, items=3).files[0] == str(run / "human" / "rater-4.html")
    assert "The run has only 30 items, not 99.\n" in str(make_sheets(run, raters=1, items=99))
    assert "only" not in str(made)


def test_pairs_show_each_text_first_once_and_second_once(run: Path) -> None:
    make_sheets(run, raters=1, items=30, pairs=True)
    lines = [json.loads(line) for line in (run / "human-key.jsonl").read_text("utf-8").splitlines()]
    for item in {line["item"] for line in lines}:
        own = [line["texts"] for line in lines if line["item"] == item]
        singles, pairs = [t for t in own if len(t) == 1], [t for t in own if len(t) == 2]
        assert [len(t) for t in own] == [1] * len(singles) + [2] * len(pairs)  # after the ratings, not before
        if len(singles) == 3:
            assert sorted(a[0] for a, _ in pairs) == sorted(b[0] for _, b in pairs) == sorted(TRUE)
    with pytest.raises(UsageError, match="compares candidates"):
        make_sheets(_alone(run), pairs=True)


def _alone(run: Path) -> Path:
    from tests.reports.conftest import write_run

    return write_run(run.parent / "alone", THREE[:1], n=4, metrics=METRICS)


def test_hostile_replies_stay_text_on_the_page_and_in_cells(make_run: Maker) -> None:
    folder = make_run((THREE[0], Spec("hostile", 0.4, replies=HOSTILE)), n=12, metrics=METRICS)
    make_sheets(folder, raters=1, items=12)
    html = (folder / "human" / "rater-1.html").read_text(encoding="utf-8")
    form = Form(html)
    assert form.tags["script"] == 1
    assert form.tags["img"] == form.tags["textarea"] == 0
    assert form.links == []
    assert "default-src 'none'" in html
    shown = [box.strip() for box in form.boxes]
    assert HOSTILE[0] in shown
    # No browser breaks a word of a million letters into lines in time, and no cell holds it.
    cut = f"{HOSTILE[1][:32_000]} … (cut here: 40,000 characters)"
    assert cut in shown
    assert HOSTILE[4] in shown
    assert not re.search("[\x00\ufffe]", html)
    cells = [row["reply"] for row in read_form(folder / "human" / "rater-1.csv")]
    assert not [cell for cell in cells if cell[:1] in "=+-@" and cell]
    assert {f"'{HOSTILE[i]}" for i in (3, 4, 6)} < set(cells)
    assert max(cells, key=len) == cut
    records = read_records(folder / "human" / "rater-1.xlsx").values()
    assert {HOSTILE[i] for i in (0, 2, 3, 4, 6)} < {row["reply"] for row in records}


def test_the_same_text_of_two_candidates_is_shown_once_and_counts_for_both(make_run: Maker) -> None:
    folder = make_run((Spec("a", 0.3, "base"), Spec("b", 0.3, replies={0: "তুমি একা নও।"})), n=5, metrics=METRICS)
    make_sheets(folder, raters=1, items=5, pairs=True)
    rows = answer(folder, "rater-1", same({"a": 3, "b": 5}))
    assert len(rows) == 4 + 2 + 1
    import_ratings(folder, [save(folder / "r.json", rows)])
    scores = {s.candidate: s.value("human-overall", "human_overall") for s in rank([read_run(folder)]).standings}
    assert scores == {"a": 3.0, "b": fmean([5, 3, 3, 3, 3])}
    people = read_people(read_run(folder))
    assert people is not None
    assert people.own.sum() == 6


def test_both_languages_have_words_for_every_number(run: Path) -> None:
    make_sheets(run, raters=1, items=1)
    html = (run / "human" / "rater-1.html").read_text(encoding="utf-8")
    anchors = re.findall(
        r'<li data-anchor="(\w+-\d)"><b>.*?</b> <span class="bn" lang="bn">(.+?)</span><span .*?>(.+?)<', html
    )
    assert [name for name, _, _ in anchors] == [f"{criterion}-{n}" for criterion in CRITERIA for n in range(1, 6)]
    assert all(re.search("[ক-হ]", bn) and en.isascii() for _, bn, en in anchors)
    assert ">সহমর্মিতা<" in html
    assert ">সামগ্রিক মান<" in html


# ---------------------------------------------------------------------------------------------------------- the drawing


def test_items_are_drawn_in_proportion_from_topics_and_from_disagreement(make_run: Maker) -> None:
    run = read_run(make_run(THREE, n=60, metrics=("chrF++", "ROUGE", "keyword-empathy")))
    whole = dict(draw(run, 60, seed=1))
    assert len(whole) == 60
    order = sorted(whole, key=lambda i: whole[i])
    assert whole[order[40]] - whole[order[20]] > 0.01  # on some the metrics disagree more
    size = Counter(example["topic"] for example in run.examples)
    often = Counter[int]()
    for seed in range(200):
        taken = draw(run, 20, seed)
        assert len(taken) == len({i for i, _ in taken}) == 20
        for topic, n in Counter(run.examples[i]["topic"] for i, _ in taken).items():
            assert abs(n - size[topic] / 3) < 2, (topic, n)  # a random sample is off by 3.3 now and then
        thirds = Counter(order.index(i) // 20 for i, _ in taken)
        assert {thirds[k] for k in range(3)} <= {6, 7}
        often.update(i for i, _ in taken)
    assert min(often[i] for i in range(60)) > 35  # each 66.7 times, give or take 6.7
    assert draw(run, 20, 3) == draw(run, 20, 3) != draw(run, 20, 4)
    assert len(draw(run, 500, 3)) == 60


# ----------------------------------------------------------------------------------------------------------- the import


@pytest.mark.parametrize("kind", [".json", ".csv", ".xlsx"])
def test_a_filled_form_comes_back_and_ranks(run: Path, kind: str) -> None:
    make_sheets(run, raters=2, items=12)
    files = [save(run / f"r{n}{kind}", answer(run, f"rater-{n}", same(TRUE))) for n in (1, 2)]
    made = import_ratings(run, files)
    texts = len(answer(run, "rater-1", same(TRUE)))
    assert (made.added, made.known, made.missing) == (2 * 4 * texts, 0, {})
    ranking = rank([read_run(run)], resamples=400, primary="human-overall")
    found = [(s.candidate, s.scores[0].value, s.best_rank, s.worst_rank) for s in ranking.standings]
    order = ["better-adapter", "third-adapter", "ভিত্তি-মডেল"]
    assert [who for who, *_ in found] == order
    assert [ranks for _, _, *ranks in found] == [[1, 1], [2, 2], [3, 3]]
    assert ranking.n == 12
    assert re.fullmatch(
        r"human-overall\|raters:2-[0-9a-f]{8}\|items:12\|n:12\|bnbench:[\d.]+", ranking.signatures["human-overall"]
    )
    assert re.search(r"\|n:30\|", ranking.signatures["chrF++"])
    # As a secondary metric it stands beside those of all 30 items.
    beside = rank([read_run(run)], resamples=400)
    assert (beside.primary, beside.n) == ("chrF++", 30)
    assert beside.declared == "declared before the run"
    assert ranking.declared == "chosen after the run, which declared chrF++"


def rows_of_people(run: Path, primary: str | None) -> list[set[str]]:
    """The rows about ratings in text, Markdown, page, model card and CSV, without what is said of a primary metric."""
    ranking = write_report([read_run(run)], run, primary=primary).ranking
    page, (_, card) = (run / "report.html").read_text("utf-8"), evaluation_md(ranking, "better-adapter")
    lines = [
        str(Report(ranking)).splitlines(), (run / "report.md").read_text("utf-8").splitlines(), card.splitlines(),
        [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in re.findall(r"<tr.*?</tr>", page, re.DOTALL)],
    ]  # fmt: skip
    rows = [
        {" ".join(line.split()) for line in of if re.match(r"\W*human (?!overall)\w+ \(n = 8\)", line)} for of in lines
    ]
    table = csv.DictReader(io.StringIO((run / "ranking.csv").read_text("utf-8")))
    kept = ("candidate", "metric", "score", "low", "high", "difference", "difference_low", "p", "n", "signature")
    return [*rows, {str([row[k] for k in kept]) for row in table if row["metric"].startswith("human-")}]


def test_ratings_of_some_items_say_the_same_whichever_metric_ranks(run: Path) -> None:
    make_sheets(run, raters=2, items=8)
    files = [save(run / f"{n}.csv", answer(run, f"rater-{n}", noisy(n))) for n in (1, 2)]
    import_ratings(run, files)
    by_chrf, by_people = (rank([read_run(run)], primary=primary) for primary in (None, "human-overall"))
    for metric in by_chrf.metrics:
        assert by_chrf.signatures[metric] == by_people.signatures[metric]
        assert f"|n:{8 if metric.startswith('human-') else 30}|" in by_chrf.signatures[metric]
    for one in by_chrf.standings:
        other = next(s for s in by_people.standings if s.candidate == one.candidate)
        assert set(one.scores) == set(other.scores)
        bare = [{replace(c, p_holm=None, better=None) for c in s.versus_base} for s in (one, other)]
        assert bare[0] == bare[1]
    assert by_chrf.n == 30 and by_people.n == 8
    # What the eight items alone say.
    table = with_ratings(read_run(run)).tables["better-adapter"]["human-overall"]
    alone = bootstrap(table[table[:, 1] > 0], get_metric("human-overall").formula, bounds=[(1, 5)])[0]
    best = next(s for s in by_chrf.standings if s.candidate == "better-adapter")
    score = best.score("human-overall", "human_overall")
    assert score is not None and (score.low, score.high) == (alone.low, alone.high)
    assert people_report(run)[0].means["better-adapter"]["human-overall"].low == alone.low
    for ranking in (by_chrf, by_people):
        [few] = [note for note in warnings(ranking) if "on only 8 of the 30 items" in note]
        assert few.startswith("human ") and "human overall" in few and "human wins" in few
        assert "too few to trust the intervals" in " ".join(warnings(ranking))
    ways = [rows_of_people(run, primary) for primary in (None, "human-overall")]
    assert ways[0] == ways[1] and [len(of) >= 4 for of in ways[0]] == [True] * 5


def test_bengali_digits_count_and_what_is_left_out_is_missing(run: Path) -> None:
    make_sheets(run, raters=1, items=4)
    rows = answer(run, "rater-1", same(TRUE))
    rows[0] |= {"empathy": "৫", "fluency": ""}
    del rows[1]["overall"]
    made = import_ratings(run, [save(run / "r.csv", rows)])
    assert made.missing == {"rater-1": 2}
    key = next(json.loads(line) for line in (run / "human-key.jsonl").read_text("utf-8").splitlines())
    first = [r for r in read_lines(Rating, run / "ratings.jsonl") if r.key == key["key"]]
    assert {r.criterion: r.value for r in first}["empathy"] == 5
    assert {r.criterion for r in first} == {"empathy", "relevance", "overall"}
    assert {r.rater for r in first} == {"human:rater-1"}


def test_every_fault_is_told_by_file_row_and_column_and_nothing_is_imported(run: Path) -> None:
    make_sheets(run, raters=1, items=4)
    rows = answer(run, "rater-1", same(TRUE))
    rows[0]["empathy"] = 6
    rows[1]["overall"] = "ভালো"
    rows[2]["better"] = 1
    rows[3]["rater"] = " "
    rows[4]["code"] = "xxxxxxxx"
    rows[5]["code"] = rows[6]["code"]
    rows[7]["fluency"] = 2.5
    rows[8]["overall"] = f"{rows[8]['overall']}.0"  # as a column of numbers with a gap is written
    rows.append(dict.fromkeys(rows[0], " "))
    for kind, row in ((".csv", "line"), (".xlsx", "row")):
        path = save(run / f"wrong{kind}", rows)
        with pytest.raises(UsageError) as caught:
            import_ratings(run, [path])
        said = str(caught.value).splitlines()
        assert said == [
            "7 faults, nothing was imported:",
            f"{path}, {row} 2, empathy: '6' is no whole number from 1 to 5",
            f"{path}, {row} 3, overall: 'ভালো' is no whole number from 1 to 5",
            f"{path}, {row} 4, better: '1', but this row does not ask for it; leave it empty",
            f"{path}, {row} 5, rater: no name",
            f"{path}, {row} 6, code: 'xxxxxxxx' is not on the key of this run",
            f"{path}, {row} 8, code: {rows[6]['code']} stands twice",
            f"{path}, {row} 9, fluency: '2.5' is no whole number from 1 to 5",
        ]
    assert not (run / "ratings.jsonl").exists()
    with pytest.raises(UsageError, match="no column 'code'"):
        import_ratings(run, [save(run / "other.csv", [{"rater": "x", "reply": "y"}])])


def test_a_form_without_an_answer_is_no_success(run: Path) -> None:
    made = make_sheets(run, raters=2, items=4)
    filled = save(run / "filled.csv", answer(run, "rater-1", same(TRUE)))
    for kind in (".csv", ".xlsx"):
        empty = run / "human" / f"rater-2{kind}"
        with pytest.raises(UsageError) as caught:
            import_ratings(run, [filled, empty])
        fault = f"{empty}: no answer in the form rater-2; fill in empathy, relevance, fluency, overall, or leave it out"
        assert str(caught.value).splitlines() == ["1 fault, nothing was imported:", fault]
    assert not (run / "ratings.jsonl").exists()
    # In a table of two forms the one that nobody filled in is named.
    both = [*read_form(run / "human" / "rater-2.csv"), *answer(run, "rater-1", same(TRUE))]
    with pytest.raises(UsageError, match=r"both\.csv: no answer in the form rater-2;"):
        import_ratings(run, [save(run / "both.csv", both)])
    # Two raters who each left something out are told apart.
    parts = [save(run / f"part-{n}.csv", answer(run, f"rater-{n}", same(TRUE))[n:]) for n in (1, 2)]
    assert import_ratings(run, parts).missing == {"rater-1": 4, "rater-2": 8}
    assert made.before == 0
    assert str(make_sheets(run, raters=1, items=4)).startswith("Forms of earlier sheets still count (2); these come")


def test_a_table_sorted_by_some_of_its_columns_is_refused(run: Path) -> None:
    make_sheets(run, raters=1, items=6, pairs=True)
    cells = {row["code"]: row for row in read_form(run / "human" / "rater-1.csv")}
    rows = [{**cells[row["code"]], **row} for row in answer(run, "rater-1", same(TRUE))]
    import_ratings(run, [save(run / "whole.csv", rows)])
    replies = sorted(row["reply"] for row in rows)
    apart = [{**row, "reply": reply} for row, reply in zip(rows, replies, strict=True)]
    wrong = [line for line, (row, reply) in enumerate(zip(rows, replies, strict=True), 2) if row["reply"] != reply]
    with pytest.raises(
        UsageError, match=f"{len(wrong)} faults, .*\n.*line {wrong[0]}, reply: not the one of this code; sort and copy"
    ):
        import_ratings(run, [save(run / "apart.csv", apart)], replace=True)
    # Most are told by their lines alone, and what all of them come from at the end.
    with pytest.raises(UsageError) as caught:
        import_ratings(run, [run / "apart.csv"], replace=True)
    path, said = run / "apart.csv", str(caught.value).splitlines()
    assert len(said) == 6 and [line.split(",")[1] for line in said[1:4]] == [f" line {n}" for n in wrong[:3]]
    rest = ", ".join(map(str, wrong[3:]))
    assert said[4] == f"{path}, lines {rest}, reply: {len(wrong) - 3} more like these"
    assert said[5].startswith(f"{path}: every reply is there, in another order than its codes: columns were sorted")
    # With a reply that is none of the form's it is no order; a row that is not filled in counts as the others.
    for row in apart[:2]:
        row |= dict.fromkeys((*CRITERIA, "better"), "")
    with pytest.raises(UsageError, match="every reply is there"):
        import_ratings(run, [save(run / "apart.csv", apart)], replace=True)
    apart[-1]["reply"] = "অন্য"
    with pytest.raises(UsageError, match="not the one of this code") as caught:
        import_ratings(run, [save(run / "apart.csv", apart)], replace=True)
    assert "every reply is there" not in str(caught.value)


def test_faults_of_one_kind_are_listed_by_their_lines(run: Path) -> None:
    make_sheets(run, raters=1, items=6)
    rows = answer(run, "rater-1", same(TRUE))
    for row in rows[:5]:
        row["empathy"] = 7
    for row in rows[5:9]:  # one more than three is told as it is
        row["overall"] = "x"
    path = save(run / "wrong.csv", rows)
    with pytest.raises(UsageError) as caught:
        import_ratings(run, [path])
    why = "is no whole number from 1 to 5"
    assert str(caught.value).splitlines() == [
        "9 faults, nothing was imported:",
        *(f"{path}, line {n}, empathy: '7' {why}" for n in (2, 3, 4)),
        f"{path}, lines 5, 6, empathy: 2 more like these",
        *(f"{path}, line {n}, overall: 'x' {why}" for n in (7, 8, 9, 10)),
    ]


def test_raters_conflict_by_name_alone(run: Path) -> None:
    make_sheets(run, raters=3, items=4)
    one = save(run / "one.json", answer(run, "rater-1", same(TRUE), "রিতা"))
    strict = {who: level - 1 for who, level in TRUE.items()}
    other = save(run / "other.json", answer(run, "rater-2", same(strict), "রিতা"))
    with pytest.raises(UsageError, match=r"other.json, row 1, empathy: রিতা gave \d here and \d in .*one.json, row"):
        import_ratings(run, [one, other])
    assert not (run / "ratings.jsonl").exists()
    # Under two names both stand.
    third = save(run / "third.json", answer(run, "rater-3", same(strict), "মিতা"))
    assert import_ratings(run, [one, third]).raters == ("রিতা", "মিতা")
    before = (run / "ratings.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"row 1, empathy: রিতা gave \d here and \d in ratings.jsonl.*--replace"):
        import_ratings(run, [other])
    assert (run / "ratings.jsonl").read_bytes() == before
    # The same again adds nothing; a correction is added, and the later answer counts.
    assert import_ratings(run, [one]).added == 0
    assert import_ratings(run, [other], replace=True).added == len(json.loads(other.read_text("utf-8"))) * 4
    assert (run / "ratings.jsonl").read_bytes().startswith(before)
    people = read_people(read_run(run))
    assert people is not None
    assert np.nanmean(people.given["overall"][..., people.raters.index("human:রিতা")]) == pytest.approx(2, abs=0.2)


def test_a_form_is_of_one_person_whose_name_is_spelt_in_any_case(run: Path) -> None:
    make_sheets(run, raters=2, items=4)
    rows = answer(run, "rater-2", same(TRUE))
    one = save(run / "one.json", rows)
    again, mita = (
        save(run / f"{i}.json", [{**r, "rater": who} for r in rows]) for i, who in enumerate((" Rater-2 ", "মিতা"))
    )
    both = save(run / "both.json", [{**r, "rater": ("রিতা", "মিতা")[i % 2]} for i, r in enumerate(rows)])
    of = "but the form rater-2 was filled in by"
    with pytest.raises(
        UsageError, match=rf"^1 fault.*\n.*both.json, row 2, rater: মিতা, {of} রিতা; a form is of one person"
    ):
        import_ratings(run, [both])
    assert import_ratings(run, [one]).added == 4 * len(rows)
    made = import_ratings(run, [again])
    assert (made.raters, made.added, made.known) == (("rater-2",), 0, 4 * len(rows))
    with pytest.raises(UsageError, match=rf"^1 fault.*\n.*1.json, row 1, rater: মিতা, {of} rater-2"):
        import_ratings(run, [mita], replace=True)
    # Another form is another person's.
    import_ratings(run, [save(run / "other.json", answer(run, "rater-1", same(TRUE), "মিতা"))])
    people = read_people(read_run(run))
    assert people is not None and people.raters == ("human:rater-2", "human:মিতা")


def test_a_form_comes_back_in_parts_and_after_a_torn_line(run: Path) -> None:
    make_sheets(run, raters=1, items=6)
    rows = answer(run, "rater-1", same(TRUE))
    half = save(run / "half.json", rows[:5])
    made = import_ratings(run, [half])
    assert (made.added, made.missing) == (20, {"rater-1": 4 * len(rows) - 20})
    assert f"20 answers added, 0 were there, {4 * len(rows) - 20} missing (rater-1 {4 * len(rows) - 20})" in str(made)
    # What came back before is not missing from what comes back after it.
    assert import_ratings(run, [save(run / "other.json", rows[6:])]).missing == {"rater-1": 4}
    path = run / "ratings.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # killed while it wrote
    made = import_ratings(run, [save(run / "whole.json", rows)])
    assert (made.added, made.known, made.missing) == (5, 4 * len(rows) - 5, {})
    assert len(read_lines(Rating, path)) == 4 * len(rows)


def test_ratings_of_replies_that_are_gone_do_not_count(run: Path) -> None:
    make_sheets(run, raters=1, items=6)
    import_ratings(run, [save(run / "r.json", answer(run, "rater-1", same(TRUE)))])
    key = [json.loads(line) for line in (run / "human-key.jsonl").read_text("utf-8").splitlines()]
    own = next(line for line in key if line["texts"] == [["better-adapter"]])
    lines = [json.loads(line) for line in (run / "generations.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        if (line["candidate"], line["id"]) == ("better-adapter", own["item"]):
            line["reply"] = "অন্য উত্তর"
    write_text(run / "generations.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    rated = with_ratings(read_run(run))
    assert rank([read_run(run)], resamples=200, primary="human-overall").n == 5
    assert rated.record.notes[0] == "4 answers of people are of other replies than this run holds, and are left out"
    # A judge's ratings lie in the same file and are no person's.
    append_lines(run / "ratings.jsonl", [Rating(text_key("x", "y"), "my-judge|bn-1234", "overall", 5.0)])
    people = read_people(read_run(run))
    assert people is not None
    assert people.raters == ("human:rater-1",)


@pytest.mark.parametrize("texts", [[], [[]], [["better-adapter"], []]])
def test_a_key_whose_texts_nobody_said_is_damaged(run: Path, texts: list[list[str]]) -> None:
    made = make_sheets(run, raters=1, items=2)
    form = save(run / "r.json", answer(run, "rater-1", same(TRUE)))
    first, *others = Path(made.key).read_text("utf-8").splitlines()
    key = json.dumps({name: value for name, value in json.loads(first).items() if name != "sha256"} | {"texts": texts})
    write_text(Path(made.key), "\n".join([key, *others]) + "\n")
    with pytest.raises(RunError, match=r"human-key.jsonl, line 1: damaged \(texts has no text, or one that no candid"):
        import_ratings(run, [form])


def test_starting_a_run_anew_keeps_what_people_gave(tmp_path: Path) -> None:
    texts = [
        {"id": str(i), "question": f"মন ভালো নেই, {i} দিন ধরে।", "reference": "কী হয়েছে?", "reply": "বলো।"}
        for i in range(3)
    ]
    data, out = save(tmp_path / "data.csv", texts), tmp_path / "run"
    words = ["evaluate", "--predictions", f"mine={data}", "--data", str(data), "--metric", "chrF++", "--out", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 0
    person, judge = Rating("a", "human:রিতা", "overall", 4.0), Rating("b", "model|bn-1234", "overall", 2.0)
    append_lines(out / "ratings.jsonl", [person, judge])
    done = CliRunner().invoke(app, [*words, "--overwrite"])
    assert done.exit_code == 0, done.output
    assert read_lines(Rating, out / "ratings.jsonl") == [person]


def test_a_comparison_of_runs_leaves_people_out_and_says_so(run: Path, make_run: Maker) -> None:
    make_sheets(run, raters=1, items=4)
    import_ratings(run, [save(run / "r.json", answer(run, "rater-1", same(TRUE)))])
    other = make_run((Spec("another", 0.3, "base"),), name="other", n=30, metrics=METRICS)
    made = rank([read_run(run), read_run(other)], resamples=200)
    assert not [name for name in made.metrics if name.startswith("human-")]
    assert made.notes[0].startswith("ratings by people are left out: each run has raters of its own")


def test_preference_pairs_come_of_the_ratings(make_run: Maker, tmp_path: Path) -> None:
    run = make_run((*THREE[:2], Spec("third-adapter", 0.4, replies={0: "", 1: " "})), n=8, metrics=METRICS)
    make_sheets(run, raters=2, items=8)
    import_ratings(run, [save(run / f"{n}.json", answer(run, f"rater-{n}", same(TRUE))) for n in (1, 2)])
    made = preferences(run / "human-ratings.csv", tmp_path / "pairs.csv", margin=0.5)
    replies = {name: {g.reply for g in of} for name, of in read_run(run).replies.items()}
    assert made.messages == 8
    assert {(best.rating, worse.rating) for _, best, worse in made.pairs} == {(4.0, 3.0), (4.0, 2.0)}
    assert all(pair.chosen.reference in replies["better-adapter"] for pair, _, _ in made.pairs)


# -------------------------------------------------------------------------------------------------------- the agreement

NAN = np.nan
PUBLISHED = [  # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": 4 observers, 12 units
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def test_alpha_is_that_of_the_publication_and_of_the_krippendorff_package() -> None:
    assert float(alpha(coincidences(np.array(PUBLISHED).T).sum(axis=0))[0]) == pytest.approx(0.815, abs=5e-4)
    # krippendorff 0.9.0, level_of_measurement="ordinal", on the same numbers
    for seed, noise, expected in (
        (0, 0.3, 0.7928640685851226),
        (1, 0.8, 0.43695518639066067),
        (2, 2.0, 0.15252758434290437),
    ):
        rng = np.random.default_rng(seed)
        given = np.clip(np.round(rng.normal(3, 1, (60, 1)) + rng.normal(0, noise, (60, 4))), 1, 5)
        given[rng.random((60, 4)) < 0.25] = NAN
        assert float(alpha(coincidences(given).sum(axis=0))[0]) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(alpha(coincidences(np.full((9, 3), 4.0)).sum(axis=0))).all()
    assert np.isnan(alpha(coincidences(np.full((9, 1), 4.0)).sum(axis=0))).all()


def test_agreement_recovers_what_simulated_raters_were_told(make_run: Maker) -> None:
    run = make_run(THREE, n=40, metrics=(*METRICS, "ROUGE"))
    make_sheets(run, raters=3, items=40)
    files = [
        save(run / f"{n}.json", answer(run, f"rater-{n}", noisy(n, s))) for n, s in ((1, -0.5), (2, 0.0), (3, 0.5))
    ]
    import_ratings(run, files)
    made, text = people_report(run, resamples=400)
    found = made.summary()
    assert (found["raters"], found["items"]) == (3, 40)
    for criterion in CRITERIA:
        agreed, severity = found["alpha"][criterion], found["severity"]
        assert 0.45 < agreed["low"] < agreed["value"] < agreed["high"] < 0.85
        assert severity["rater-1"][criterion]["value"] == pytest.approx(0.7, abs=0.2)
        assert severity["rater-3"][criterion]["value"] == pytest.approx(-0.7, abs=0.2)  # 5 is the end of the scale
    for candidate, means in found["means"].items():
        assert means["human-overall"]["value"] == pytest.approx(TRUE[candidate], abs=0.3)
        assert means["human-overall"]["low"] < means["human-overall"]["value"] < means["human-overall"]["high"]
    wins = {who: of["human-wins"]["value"] for who, of in found["means"].items()}
    assert wins["better-adapter"] > 75 > 65 > wins["third-adapter"] > 35 > 25 > wins["ভিত্তি-মডেল"]
    assert fmean(wins.values()) == pytest.approx(50)
    # The replies' quality is made of the reference's sentences, which ROUGE sees; all three candidates in its order.
    per_reply, per_candidate = found["metrics"]["ROUGE"]
    assert per_reply["low"] > 0.05
    assert per_candidate == 1.0
    assert "Krippendorff’s α" in text
    html = write_report([read_run(run)], run, resamples=400, primary="human-overall").html
    assert html is not None
    assert "Krippendorff’s α" in html.read_text(encoding="utf-8")


def test_a_group_has_the_means_of_its_members(make_run: Maker) -> None:
    run = make_run(THREE, n=30, metrics=METRICS, groups={"g": ("better-adapter", "third-adapter")})
    make_sheets(run, raters=1, items=12)
    import_ratings(run, [save(run / "r.json", answer(run, "rater-1", same(TRUE)))])
    made, text = people_report(run, resamples=200)
    means = made.means["g"]
    assert means["human-overall"].value == 3.5
    standing = next(s for s in rank([read_run(run)], resamples=200).standings if s.candidate == "g")
    for criterion in (*CRITERIA, "wins"):
        score = standing.score(f"human-{criterion}", f"human_{criterion}")
        assert score is not None and score.value == pytest.approx(means[f"human-{criterion}"].value)
    assert re.search(r"\ng +3\.50 \[", text)


def test_no_interval_leaves_the_scale_and_one_reply_tells_no_severity(run: Path) -> None:
    make_sheets(run, raters=3, items=6)
    drawn = sorted({row["item"] for row in map(json.loads, (run / "human-key.jsonl").read_text("utf-8").splitlines())})

    def extreme(item: str, who: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(CRITERIA, 5 if item in drawn[:3] else 1)

    for n in (1, 2, 3):  # the second rates what is good, the third a single reply
        rows = answer(run, f"rater-{n}", extreme, rows=slice(1 if n == 3 else None))
        rows = [row for row in rows if n != 2 or row["overall"] == 5]
        import_ratings(run, [save(run / f"{n}.json", rows)])
    made, text = people_report(run, resamples=200)
    ends = [(e.low, e.high) for of in made.means.values() for m, e in of.items() if m != "human-wins"]
    assert min(ends)[0] >= 1 and max(high for _, high in ends) == 5  # unbounded some are beyond
    assert all(-4 <= e.low <= e.high <= 4 for who in ("rater-1", "rater-2") for e in made.severity[who].values())
    assert re.search(r"severity of rater-3( +–){4}\n", text)
    scores = [
        s.score(f"human-{c}", f"human_{c}") for s in rank([read_run(run)], resamples=200).standings for c in CRITERIA
    ]
    assert all(score and 1 <= score.low <= score.high <= 5 for score in scores)


def test_one_rater_agrees_with_nobody(run: Path) -> None:
    make_sheets(run, raters=1, items=10)
    import_ratings(run, [save(run / "r.json", answer(run, "rater-1", same(TRUE)))])
    made, text = people_report(run, resamples=200)
    found = made.summary()
    unknown = {"value": None, "low": None, "high": None}
    assert found["alpha"]["overall"] == found["severity"]["rater-1"]["overall"] == unknown
    assert found["means"]["better-adapter"]["human-overall"]["value"] == 4.0
    assert "nan" not in text
    assert re.search(r"severity of rater-1( +–){4}\n", text)


def test_a_metric_that_makes_no_difference_has_no_tau_and_one_that_contradicts_people_a_negative(run: Path) -> None:
    make_sheets(run, raters=1, items=12)
    worst_first = {who: 6 - level for who, level in TRUE.items()}
    import_ratings(run, [save(run / "r.json", answer(run, "rater-1", same(worst_first)))])
    ranking = rank([read_run(run)], resamples=100)
    loaded = ranking.runs[0]
    alike = {
        who: {**own, "degeneration": np.zeros_like(own["degeneration"])} for who, own in loaded.tables.items()
    }  # fmt: skip
    found = agreement(replace(loaded, tables=alike), ranking.metrics)
    tau, over_candidates = found.metrics["degeneration"]
    assert (np.isnan([tau.value, tau.low, tau.high]).all(), over_candidates) == (True, None)
    assert found.summary()["metrics"]["degeneration"] == [{"value": None, "low": None, "high": None}, None]
    against, order = found.metrics["chrF++"]
    assert against.low <= against.value < -0.2
    assert (order, found.by_pairs) == (-1.0, False)
    blocks = next(people_panel(replace(ranking, runs=(replace(loaded, tables=alike),)))).blocks
    table = blocks[-1]
    assert isinstance(table, Table)
    assert table.rows[1] == ["broken replies, %", "–", "–"]
    assert table.notes == ("–: the metric or people make no difference between the replies.",)


def test_wins_come_from_pairs_where_people_were_asked_for_them(run: Path) -> None:
    make_sheets(run, raters=2, items=10, pairs=True)
    rate = same(TRUE)

    def against(item: str, who: Sequence[str]) -> Mapping[str, int]:  # the ratings say one thing, the pairs another
        return rate(item, who[::-1]) if len(who) == 2 else rate(item, who)

    import_ratings(run, [save(run / f"{n}.json", answer(run, f"rater-{n}", against)) for n in (1, 2)])
    ranking = rank([read_run(run)], resamples=400, primary="human-wins")
    scores = {s.candidate: s.scores[0].value for s in ranking.standings}
    assert scores["ভিত্তি-মডেল"] > 95
    assert scores["better-adapter"] < 5
    assert "|by:pairs|" in ranking.signatures["human-wins"]


# ------------------------------------------------------------------------------------------------------------- the plan


def test_a_plan_recovers_the_spread_and_has_the_power_that_it_promises(make_run: Maker) -> None:
    run = make_run(THREE[:2], n=200, metrics=METRICS)
    rng, spread, noise = np.random.default_rng(3), 0.9, 0.8
    loaded, rows = read_run(run), list[Rating]()
    replies = list(loaded.replies.values())
    for i, example in enumerate(loaded.examples):
        true = 3 + rng.normal(0, spread / 2**0.5, 2)
        for r in range(3):
            for c in range(2):
                value = float(true[c] + (r - 1) * 0.4 + rng.normal(0, noise / 2**0.5))
                rows.append(Rating(text_key(example["id"], replies[c][i].reply), f"human:{r}", "overall", value))
    append_lines(run / "ratings.jsonl", rows)
    made = plan(read_run(run), difference=0.3)
    assert made.spread == pytest.approx(spread, abs=0.12)
    assert made.noise == pytest.approx(noise, abs=0.06)  # severity cancels
    # 80 % of studies of that size find a true difference of 0.3 with a paired t-test.
    for raters in (1, 3):
        n, sd = made.items[raters], (made.spread**2 + made.noise**2 / raters) ** 0.5
        d = rng.normal(0.3, sd, (4000, n))
        t = d.mean(axis=1) / (d.std(axis=1, ddof=1) / n**0.5)
        critical = 1.96 + (1.96**3 + 1.96) / (4 * n)
        assert (np.abs(t) > critical).mean() == pytest.approx(0.80, abs=0.02)
    assert list(made.items) == [1, 2, 3, 4, 5]
    assert "α −0.12, a spread" in str(replace(made, alpha=-0.123))
    assert sorted(made.items.values(), reverse=True) == list(made.items.values())
    assert plan(read_run(run), difference=0.6).items[1] < made.items[1] / 3


def test_what_is_not_there_is_said(run: Path) -> None:
    def said(*words: object) -> Iterator[Any]:
        done = CliRunner().invoke(app, [str(word) for word in words])
        yield done.exit_code
        yield done.output

    for words, code, what in (
        (("human", "agreement", run), 2, "nobody rated it yet"),
        (("human", "plan", run), 2, "needs ratings of overall of two candidates by two people"),
        (("human", "plan", run, "--criterion", "length"), 2, "one of empathy, relevance"),
        (("human", "import", run, run / "run.json"), 2, "no sheet was made of this run"),
        (("human", "sheet", run.parent), 2, "not a run folder"),
        (("report", run, "--primary", "human-overall"), 2, "has no human-overall"),
        (
            ("evaluate", "--primary", "human-overall", "--out", run.parent / "x"),
            2,
            "`bnbench human sheet RUN` asks them",
        ),
    ):
        exit_code, output = said(*words)
        assert (exit_code, what in " ".join(output.split())) == (code, True), output
    with pytest.raises(UsageError, match="human-empathy is of a run that people read"):
        get_metric("human-empathy").score(["ভালো থেকো।"])


def test_the_commands(run: Path) -> None:
    def done(*words: object) -> str:
        made = CliRunner().invoke(app, [str(word) for word in words])
        assert made.exit_code == 0, made.output
        return made.stdout

    sheets = json.loads(done("human", "sheet", run, "--raters", 2, "--items", 15, "--json"))
    assert (sheets["items"], len(sheets["files"])) == (15, 6)
    files = [save(run / f"{n}.csv", answer(run, f"rater-{n}", same(TRUE))) for n in (1, 2)]
    assert f"rater-1, rater-2: {8 * sheets['pages']} answers added, 0 were there, 0 missing" in done(
        "human", "import", run, *files
    )
    assert json.loads(done("human", "agreement", run, "--json"))["alpha"]["overall"]["value"] == 1.0
    planned = done("human", "plan", run).splitlines()
    assert planned[0].startswith("To see a difference of 0.3 in overall with 80 % power at 5 % two-sided over 3 pairs")
    assert re.fullmatch(r"  1 rater  a text: +\d+ items", planned[1]) and len({len(line) for line in planned[1:6]}) == 1
    text = done("report", run, "--primary", "human-overall")
    assert text.splitlines()[0] == "better-adapter is the best of the 3 candidates on human overall."
    assert max(map(len, io.StringIO(text))) <= 112
