"""The report's files: whole, harmless and readable whatever a run holds, and the same bytes each time."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.cells import cell_len

from bnbench.errors import RunError
from bnbench.progress import storable
from bnbench.records import SEEN, Rating, append_lines, read_run, unpack, write_json
from bnbench.reports import Report, write_report
from bnbench.reports.language import language, spoken
from bnbench.reports.panels import Intervals, choose, ranking_panel
from bnbench.reports.people import text_key
from bnbench.reports.ranking import rank
from bnbench.reports.render import aligned, evaluation_md, report_md, wrapped
from bnbench.reports.values import legend, name, number, p_value, shown_values
from bnbench.reports.verdict import verdict, warnings
from tests.reports.conftest import ADAPTER, BASE, PAIR, PREDICTIONS, Spec, conversations

Maker = Callable[..., Path]
FILES = ("ranking.json", "ranking.csv", "report.md", "report.html")
EVIL = "<script>document.title='x'</script>\u202e|`*evil*` \"&amp;\n" + "ক" * 300
EVIL_REPLIES = {
    0: "<script>alert(1)</script><img src=x onerror=alert(1)></p></div>",
    1: "ক" * 10_000,
    2: "مرحبا \u202e উল্টো",
    3: "এক\n\n\nদুই\t\x00\x1b[31m",
    4: "অর্ধেক \ud83d",
    5: "",
    6: "{{ 7 * 7 }} {% raw %} </textarea><!-- ",
}
CASES: dict[str, tuple[tuple[Spec, ...], int]] = {
    "pair": (PAIR, 40),
    "alone": (PAIR[:1], 12),
    "predictions": (PREDICTIONS, 40),
    "one item": (PAIR, 1),
    "two items": (PAIR, 2),
    "no variance": ((Spec("a", 0.3, "base"), Spec("b", 0.3)), 40),
    "lacking": ((PAIR[0], Spec(ADAPTER, 0.4, lacks=("BLEU", "degeneration"), likelihoods=False)), 40),
    "nothing said": ((PAIR[0], Spec(ADAPTER, 0.4, replies=dict.fromkeys(range(40), ""))), 40),
    "three": ((*PAIR, Spec("third", 0.9)), 40),
    "ten": ((PAIR[0], *(Spec(f"adapter-{i}", 0.1 + 0.06 * i) for i in range(9))), 40),
    "hostile": ((PAIR[0], Spec(EVIL, 0.4, replies=EVIL_REPLIES)), 40),
    "arabic": ((PAIR[0], Spec("نموذج", 0.4)), 40),
}


def held_in(page: Path) -> dict[str, Any]:
    """What the script of a page reads."""
    text = page.read_text(encoding="utf-8").partition('id="data">')[2].partition("<")[0]
    held: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(text)))
    return held


def report(folder: Path, resamples: int = 400) -> Report:
    return write_report([read_run(folder)], folder, resamples=resamples)


class Page(HTMLParser):
    """Checks that every element is closed by its own tag, and collects tags, text and ids."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "line", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.mark.parametrize("case", CASES)
def test_every_case_gives_a_whole_report_without_nan(make_run: Maker, case: str) -> None:
    specs, n = CASES[case]
    folder = make_run(specs, n=n)
    made = report(folder)
    texts = {file: (folder / file).read_text(encoding="utf-8") for file in FILES}
    page = Page(texts["report.html"])
    assert page.open == []
    for text in (str(made), texts["ranking.csv"], texts["ranking.json"], texts["report.md"], " ".join(page.text)):
        assert not re.search(r"(?<![\w])[+-−]?(nan|NaN|inf|Infinity|None|undefined)(?![\w])", text), case
    json.loads(texts["ranking.json"], parse_constant=lambda constant: pytest.fail(constant))
    assert max(map(cell_len, str(made).splitlines())) <= 110
    assert made.html == folder / "report.html"


def test_hostile_text_stays_text(make_run: Maker) -> None:
    folder = make_run((PAIR[0], Spec(EVIL, 0.4, replies=EVIL_REPLIES)))
    report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.all("script") == [{"type": "application/gzip", "id": "data"}, {}]
    assert page.all("img") == []
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert "&lt;script&gt;document.title" in html
    assert not re.search(r"[\x00\x1b\ud800-\udfff]", html)
    held = unpack(folder / "report.html", folder / "held")[0]
    assert {i: read_run(held).replies[EVIL][i].reply for i in EVIL_REPLIES} == EVIL_REPLIES
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert len(tables) >= 2
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_no_line_of_the_terminal_begins_with_the_sign_of_its_number() -> None:
    text = wrapped([" ".join(["12 % broken"] * 40)], "  ")
    assert max(map(len, text.splitlines())) <= 110 and " ".join(text.split()) == " ".join(["12 % broken"] * 40)
    assert not re.search(r"\d\n", text) and "\n  %" not in text


def test_notes_of_a_run_turn_no_line_around(make_run: Maker) -> None:
    folder = make_run((PAIR[0], Spec("x", 0.4)), notes=["\u202egnp.exe thinks aloud\nbnbench: all is well"])
    made, escaped = str(report(folder, 50)), "\\u202egnp.exe thinks aloud\\u000abnbench: all is well"
    assert f"Note: {escaped}" in made
    page, markdown = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md"))
    assert "\u202e" not in page.partition('id="data"')[0] + markdown and escaped in page


def test_no_cell_of_a_name_runs_and_no_control_reaches_a_terminal(make_run: Maker) -> None:
    names = ("=HYPERLINK(1)", "+x", "-x", "@SUM(A1)", "a\x1b[31m\x9b2J\u202e")
    folder = make_run([Spec(who, 0.1 + 0.1 * i, "base" if not i else "adapter") for i, who in enumerate(names)], n=8)
    made = report(folder, 50)
    rows = list(csv.reader((folder / "ranking.csv").open(encoding="utf-8")))
    cells = {cell for row in rows for cell in row}
    assert {f"'{who}" for who in names[:4]} < cells
    numbers = re.compile(r"-?[\d.]+(e-?\d+)?")
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@") and not numbers.fullmatch(cell)]
    for text in (str(made), (folder / "report.md").read_text(encoding="utf-8")):
        assert "a\\u001b" in text.replace("\\\\", "\\") and not re.search("[\x1b\x9b\u202e]", text)


def test_the_page_needs_no_network_and_forbids_other_scripts(make_run: Maker) -> None:
    folder = make_run()
    report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!data:font/woff2)", html)
    page = Page(html)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert html.count("url(data:font/woff2;base64,d09GMg") == 2  # wOF2
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = __import__("base64").b64encode(__import__("hashlib").sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_page_is_accessible(make_run: Maker) -> None:
    folder = make_run()
    report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.all("html") == [{"lang": "en"}]
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))
    drawings = re.findall(r'<svg[^>]*role="img".*?</svg>', html, re.DOTALL)
    assert drawings
    assert all("<title" in svg for svg in drawings)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    listed = [f"item-{i + 1}" for i in range(40)]  # made by the script
    assert {a["href"] for a in page.all("a") if "href" in a} <= {f"#{i}" for i in [*ids, *listed]}
    assert {p.get("lang") for p in page.all("p") if p.get("class") == "bn"} == {"bn"}


def test_what_was_run_is_on_the_page(make_run: Maker) -> None:
    note = f"{ADAPTER} was trained on 3 of the 40 test rows"
    folder = make_run(notes=[note])
    made = report(folder)
    text = " ".join(" ".join(Page((folder / "report.html").read_text(encoding="utf-8")).text).split())
    meta = read_run(folder).record
    wanted = [meta.command, meta.corpus.fingerprint, "float32 – the CPU computes float32 fastest", "0.57 GiB",
              "encoding damage: BOM", "temperature 0.7", "transformers 5.23.0", "Training-seed variance", note,
              *(m.signature for m in meta.metrics)]  # fmt: skip
    for fact in wanted:
        assert fact in text
    assert f"Note: {note}" in str(made)


def test_what_undoes_the_verdict_is_the_first_note_wherever_it_stands(make_run: Maker) -> None:
    seen = f"{ADAPTER} was trained on 3 of the 8 test rows: {SEEN}"
    folder = make_run(n=8, notes=["the judge x and y are of one family (z)", seen])
    made, ranking = report(folder), rank([read_run(folder)], resamples=400)
    notes = re.findall(r"^(?:> \*\*)?Note:(?:\*\*)? (.*)", str(made), re.MULTILINE)
    assert notes[0].startswith(seen[:60]) and warnings(ranking)[0] == seen
    for text in (report_md(ranking), evaluation_md(ranking, ADAPTER)[1]):
        assert text.index(seen) < text.index("8 items: too few") < text.index("one family") < text.index("| --- |")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.index("was trained on 3") < page.index("8 items: too few")


def test_the_headline_says_who_was_trained_on_the_test(make_run: Maker) -> None:
    """Whatever else is wrong with it, in each form of the report, and in Bengali."""
    broken = dict.fromkeys(range(30), "I am sorry, my friend.\ufffd")
    pair = (PAIR[0], replace(PAIR[1], replies=broken))
    seen, but = f"{ADAPTER} was trained on 3 of the 40 test rows: {SEEN}", ", but it was trained on test rows"
    folder = make_run((PAIR[0], PAIR[1]), name="two", notes=[seen])
    made, ranking = report(folder), rank([read_run(folder)], resamples=400)
    assert re.match(rf"{ADAPTER} is better than its base .*\){but}\.$", verdict(ranking).headline)
    page = " ".join(" ".join(Page((folder / "report.html").read_text(encoding="utf-8")).text).split())
    shown = (" ".join(str(made).split()), report_md(ranking), evaluation_md(ranking, ADAPTER)[0])
    assert all(f"){but}." in text for text in shown) and f"{but}." in page
    in_bengali = report_md(ranking, language("bn")).partition("\n")[0]
    assert in_bengali.endswith("), তবে পরীক্ষার সারি দিয়েই একে প্রশিক্ষণ দেওয়া হয়েছে।")
    one = rank([read_run(make_run(pair[1:], name="one", notes=[seen]))], resamples=400)
    assert verdict(one).headline.endswith(f"{but}.")
    # Nor is it silent where the two are alike, or where it is the base that was.
    told = [f"{name} was trained on 3 of the 40 test rows: {SEEN}" for name in (ADAPTER, BASE)]
    alike = verdict(
        rank(
            [
                read_run(
                    make_run((PAIR[0], replace(PAIR[0], name=ADAPTER, kind="adapter")), name="alike", notes=told[:1])
                )
            ],
            resamples=50,
        )
    )
    assert alike.headline.endswith(f", but {ADAPTER} was trained on test rows.")
    worse = (replace(PAIR[0], quality=PAIR[1].quality), replace(PAIR[1], quality=PAIR[0].quality))
    below = verdict(rank([read_run(make_run(worse, name="worse", notes=told))], resamples=400))
    assert re.match(rf"{ADAPTER} is worse than .*, but .* and .* were trained on test rows\.$", below.headline)
    # Of several that may be the best, and in a list of many.
    twins = (PAIR[0], *(replace(PAIR[1], name=name) for name in "abcd"))
    notes = [f"{name} was trained on 40 of the 40 test rows: {SEEN}" for name in "ab"]
    of_three = verdict(rank([read_run(make_run(twins[:3], name="three", notes=notes[:1]))], resamples=50))
    assert of_three.headline.endswith(" candidates on chrF++, but a was trained on test rows.")
    of_three = verdict(rank([read_run(make_run(twins[:3], name="both", notes=notes))], resamples=50))
    assert of_three.headline.endswith(" candidates on chrF++, but a and b were trained on test rows.")
    assert language("bn")(of_three.headline).endswith(", তবে পরীক্ষার সারি দিয়েই এদের প্রশিক্ষণ দেওয়া হয়েছে: a, b।")
    of_many = verdict(rank([read_run(make_run(twins, name="many", notes=notes))], resamples=50))
    assert of_many.details[-1].endswith("or trained on test rows: a, b.")


@pytest.mark.parametrize(("of", "quality"), [("better", 0.9), ("worse", 0.1)])
@pytest.mark.parametrize("metric", ["chrF++", "degeneration"])
def test_by_how_much_has_no_sign(make_run: Maker, of: str, quality: float, metric: str) -> None:
    """Neither of two candidates nor in lists of many, whichever way is better, and in Bengali."""
    broken = dict.fromkeys(range(40), "I am sorry, my friend.")
    base, other = Spec(BASE, 0.5, "base", location="b"), Spec(ADAPTER, quality, base="b")
    if metric == "degeneration":
        base, other = (
            (replace(base, replies=broken), other) if of == "better" else (base, replace(other, replies=broken))
        )
    many = [replace(other, name=f"{ADAPTER}-{i}") for i in range(4)]
    of_two, of_many = r"%s than [^()]*by (\S+) [^()]*\(95 %% (\S+) to (\S+),", r"%s than [^()]*\((\S+)\)"
    for specs, found in (((base, other), of_two), ((base, *many), of_many)):
        ranking = rank([read_run(make_run(specs, name=f"r{len(specs)}"))], resamples=400, primary=metric)
        said = verdict(ranking)
        [numbers] = re.findall(found % f"(?i:{of})", " ".join([said.headline, *said.details]))[:1]
        assert all(re.fullmatch(r"[\d.]+", x) for x in (numbers if isinstance(numbers, tuple) else (numbers,)))
        in_bengali = spoken(said, language("bn"))
        assert not re.search(r"(পার্থক্য|চেয়ে (ভালো|খারাপ): .*\() ?[+−]", " ".join([in_bengali.claim, *in_bengali.details]))


def test_people_are_said_to_be_missing_only_where_they_are(make_run: Maker) -> None:
    run = read_run(folder := make_run(n=8))
    assert "do not replace people who read" in report_md(rank([run], resamples=100))
    rows = [Rating(text_key(e["id"], r.reply), "human:মিতা", "overall", float(1 + i % 5))
            for i, e in enumerate(run.examples) for r in (of[i] for of in run.replies.values())]  # fmt: skip
    append_lines(folder / "ratings.jsonl", rows)
    said = report_md(rank([run], resamples=100))
    assert "do not replace people who read" not in said
    assert "speak of other items read by the same people, not of other people." in said


def test_files_are_the_same_each_time_and_hold_no_times_or_paths(make_run: Maker, tmp_path: Path) -> None:
    folder = make_run()
    report(folder)
    first = {file: (folder / file).read_bytes() for file in FILES}
    write_report([read_run(folder)], tmp_path / "again", resamples=400)
    assert first == {file: (tmp_path / "again" / file).read_bytes() for file in FILES}
    ranking = first["ranking.json"].decode()
    assert str(tmp_path) not in ranking
    assert "2026-11" not in ranking


def test_the_csv_has_a_row_for_each_candidate_and_value(make_run: Maker) -> None:
    folder = make_run()
    made = report(folder)
    rows = list(csv.DictReader(io.StringIO((folder / "ranking.csv").read_text(encoding="utf-8"))))
    scores = {
        (s["candidate"], x["metric"], x["name"]): x["value"]
        for s in made.ranking.as_dict()["standings"]
        for x in s["scores"]
    }
    assert {(r["candidate"], r["metric"], r["value"]): float(r["score"]) for r in rows} == scores
    assert len(rows) == len(scores)
    by_value = {(r["candidate"], r["value"]): r for r in rows}
    assert by_value[ADAPTER, "chrF++"]["outcome"] == "better"
    assert float(by_value[ADAPTER, "chrF++"]["p_holm"]) < 0.05
    assert by_value[BASE, "chrF++"]["difference"] == by_value[BASE, "chrF++"]["compared_with"] == ""


@pytest.mark.parametrize(
    ("specs", "n", "starts"),
    [
        (PAIR, 40, r"demo-adapter is better than its base demo-base by [\d.]+ chrF\+\+ \(95 % [\d.]+ to [\d.]+, p "),
        (PAIR[:1], 40, r"demo-base scores \d+\.\d chrF\+\+ on 40 items \(95 % "),
        ((PAIR[0], Spec(ADAPTER, 0.16, base=PAIR[0].location)), 40, r"The 40 items cannot tell .* from its "),
        (PAIR, 1, r"One item cannot tell demo-adapter from its base demo-base: "),
        ((Spec("a", 0.3, "base"), Spec("b", 0.3)), 40, r"b and its base a have the same chrF\+\+"),
        ((Spec("base", 0.1, "base", location="b"), Spec("a", 0.9, base="b")), 40, r"a is better than its base by \d"),
        ((*PAIR, Spec("third", 0.42)), 40, r"Any of (third|demo-adapter) or .* may be the best of the 3"),
        ((*PAIR, Spec("third", 1.0)), 40, r"third is the best of the 3 candidates on chrF\+\+\."),
        ((Spec(BASE, 0.9, "base", location="b"), Spec(ADAPTER, 0.1, base="b")), 40, r".* is worse than its .* by \d"),
    ],
)  # fmt: skip
def test_the_verdict_in_plain_words(make_run: Maker, specs: tuple[Spec, ...], n: int, starts: str) -> None:
    said = verdict(rank([read_run(make_run(specs, n=n))], resamples=2000))
    assert re.match(starts, said.headline), said.headline


@pytest.mark.parametrize(("p", "says"), [(0.00001, "p < 0.0001)"), (0.00052, "p = 0.0005)")])
def test_the_verdict_never_says_that_p_is_0(make_run: Maker, p: float, says: str) -> None:
    ranking = rank([read_run(make_run())], resamples=200)
    first, second = ranking.standings
    first = replace(first, versus_base=(replace(first.versus_base[0], p=p, p_holm=p),))
    assert verdict(replace(ranking, standings=(first, second))).headline.endswith(f"{says}.")


def test_one_item_gives_no_interval_and_no_p(make_run: Maker) -> None:
    folder = make_run(n=1)
    made = report(folder)
    said = " ".join(Page((folder / "report.html").read_text(encoding="utf-8")).text)
    for text in (str(made), (folder / "report.md").read_text(encoding="utf-8"), said):
        assert "1 item gives neither an interval nor a p-value" in text
        assert not re.search(r"1 items|these 1|take the intervals|– to –|\[–", text)
    rows = list(csv.DictReader((folder / "ranking.csv").open(encoding="utf-8")))
    assert {(row["low"], row["high"], row["p"]) for row in rows} == {("", "", "")}
    assert json.loads((folder / "ranking.json").read_text(encoding="utf-8"))["pairs"][0]["p"] is None


def test_what_is_0_for_all_is_said_alike_everywhere(make_run: Maker) -> None:
    for specs, starts in ((PAIR, "0 for every candidate, and therefore not listed: "), (PAIR[:1], "0, and therefore")):
        folder = make_run(specs, name=str(len(specs)))
        made = report(folder)
        ranking = rank([read_run(folder)], resamples=200)
        _, [line] = legend(ranking, shown_values(ranking))
        assert line.startswith(starts) and "wrong script, %" in line
        page = " ".join(Page((folder / "report.html").read_text(encoding="utf-8")).text)
        for text in (str(made), (folder / "report.md").read_text(encoding="utf-8"), page):
            assert line in " ".join(text.split())


CUT_LATIN = dict.fromkeys(range(30), "I am so sorry to hear that, my friend.")


def test_what_is_wrong_with_the_replies_is_read_first(make_run: Maker) -> None:
    folder = make_run((replace(PAIR[0], replies=CUT_LATIN), replace(PAIR[1], replies=CUT_LATIN)), yardsticks=True)
    made = report(folder)
    notes = warnings(made.ranking)
    assert notes[0].startswith(f"{ADAPTER}, of its replies: 80 % broken, 77.5 % too short, 75 % wrong script, ")
    assert re.fullmatch(rf"words a reply, on average: {ADAPTER} \d+, {BASE} \d+; the references \d+", notes[2])
    assert re.match(r"the scale of chrF\+\+: the reference itself 100\.0, another item’s reference \d+\.\d, ", notes[3])
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (str(made), (folder / "report.md").read_text(encoding="utf-8"), " ".join(Page(page).text)):
        assert "of its replies: 80 % broken, 77.5 %" in " ".join(text.split())
    assert page.index('id="notes"') < page.index('id="ranking"')


def test_nothing_is_better_without_its_but(make_run: Maker) -> None:
    references = [c["reference"] for c in conversations(40)]
    broken = {i: f"{text}\ufffd" for i, text in enumerate(references[:25])}
    two = (PAIR[0], replace(PAIR[1], replies=broken))
    of_two = verdict(rank([read_run(make_run(two, name="two"))], resamples=400))
    assert re.match(rf"{ADAPTER} is better than .*\), but 70 % of its replies are broken\.$", of_two.headline)
    three = (*two, Spec("third", 0.9, replies=broken))
    of_three = verdict(rank([read_run(make_run(three, name="three"))], resamples=400))
    for sentence in [s for s in (of_three.headline, *of_three.details) if " better than " in s or " the best of " in s]:
        assert "of its replies are broken." in sentence
    many = (PAIR[0], *(Spec(f"adapter-{i}", 0.3 + 0.1 * i, replies=broken) for i in range(5)))
    told = verdict(rank([read_run(make_run(many, name="many"))], resamples=400)).details
    doubts = "Not above every yardstick, mostly broken, or trained on test rows"
    assert f"{doubts}: adapter-4, adapter-3" in told[-1]
    eight = (PAIR[0], *(Spec(f"adapter-{i}", 0.1 * i, replies=broken) for i in range(1, 8)))
    notes = warnings(rank([read_run(make_run(eight, name="eight"))], resamples=50))
    assert [re.sub(r"\d+(\.5)?", "#", note) for note in notes[6:8]] == [
        "# more, of their replies: # to # % broken",
        f"words a reply, on average: {', '.join('adapter-# #' for _ in range(6))}, # more # to #; the references #",
    ]


def test_what_is_0_for_all_is_in_no_table(make_run: Maker) -> None:
    clean = dict.fromkeys(range(8), "আপনার কথা শুনে কষ্ট পেলাম, আমি আপনার পাশে আছি।")
    ranking = rank([read_run(make_run((PAIR[0], replace(PAIR[1], replies=clean)), n=8))], resamples=50)
    zero = {
        s.candidate: replace(
            s, scores=tuple(replace(x, value=0.0, low=0.0, high=0.0) if x.name == "degenerate" else x for x in s.scores)
        )
        for s in ranking.standings
    }
    none_broken = replace(ranking, standings=tuple(zero.values()))
    shown = shown_values(none_broken)
    assert "degenerate" in [v.name for v in shown_values(ranking)] and "degenerate" not in [v.name for v in shown]
    assert "broken replies, %" in legend(none_broken, shown)[1][0]


def test_a_name_in_the_headline_is_not_broken_at_its_hyphen(make_run: Maker) -> None:
    folder = make_run((PAIR[0], Spec("<b>-x", 0.4, base=PAIR[0].location)))
    report(folder)
    headline = re.search("<h1>.*</h1>", (folder / "report.html").read_text(encoding="utf-8"))[0]
    assert '<span class="whole">&lt;b&gt;-x</span>' in headline
    assert '<span class="whole">demo-base</span>' in headline


def test_what_could_not_have_been_found_is_said(make_run: Maker) -> None:
    ranking = rank([read_run(make_run())], resamples=2000)
    least = f"{ranking.pairs[0].smallest_detectable:.1f}"
    assert (
        f"With 40 items, a true difference under {least} chrF++ would often go undetected." in verdict(ranking).details
    )


def test_examples_are_the_extremes_and_the_median() -> None:
    gains = np.array([3.0, -5.0, 0.5, 9.0, -1.0, 0.0, 2.0])
    chosen = choose(gains.tolist(), are_gains=True)
    assert chosen == [
        ("Largest gain", 3),
        ("Largest gain", 0),
        ("Median item", 2),
        ("Largest loss", 4),
        ("Largest loss", 1),
    ]
    assert choose([1.0], are_gains=True) == [("Median item", 0)]
    assert choose([1.0, 2.0], are_gains=True) == [("Largest gain", 1), ("Median item", 0)]
    assert choose([0.0] * 5, are_gains=True) == [("Median item", 2)]


def test_examples_on_the_page_are_those_of_the_rule(make_run: Maker) -> None:
    folder = make_run()
    made = report(folder)
    run = read_run(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'<article class="item">.*?item (\d+) of 40', html, re.DOTALL)
    formula = __import__("bnbench.metrics.registry", fromlist=["get_metric"]).get_metric("chrF++").formula
    gains = formula(run.tables[ADAPTER]["chrF++"])[:, 0] - formula(run.tables[BASE]["chrF++"])[:, 0]
    assert [int(i) - 1 for i in shown[:2]] == list(np.argsort(-gains, kind="stable")[:2])
    assert int(shown[-1]) - 1 == int(np.argmin(gains))
    assert f'href="#item-{shown[0]}"' in html
    assert made.ranking.as_dict()["n"] == 40


def test_flags_are_shown(make_run: Maker) -> None:
    loop = " ".join(["আমি আপনার পাশে আছি।"] * 9)
    folder = make_run((PAIR[0], Spec(ADAPTER, 0.4, replies={0: "", 1: loop, 2: "I am sorry to hear that, friend."})))
    report(folder)
    data = held_in(folder / "report.html")
    assert [who for who, *_ in data["names"]] == [BASE, ADAPTER] and data["unit"] == "chrF++"
    by_item = {at: set(own[1]) for at, (*_, own) in enumerate(data["items"], 1)}
    assert "empty" in by_item[1]
    assert "looping" in by_item[2]
    assert "wrong script" in by_item[3]
    assert any("cut at the limit" in found for found in by_item.values())
    ids = [example["id"] for example in read_run(folder).examples]
    assert [item[0] for item in data["items"]] == ids == [e["id"] for e in data["runs"][0]["examples.jsonl"]]


def test_pages_are_compared_as_their_runs_are(make_run: Maker, tmp_path: Path) -> None:
    folders = [
        make_run(
            (PAIR[0], Spec(f"adapter-{i}", 0.3 * i, base=PAIR[0].location)), name=f"run-{i}", n=12, yardsticks=True
        )
        for i in (1, 2)
    ]
    made = [write_report([read_run(f) for f in folders], tmp_path / "of-folders", resamples=100)]
    shutil.copytree(folders[1], folders[0] / "scores" / "inner")  # another run's folder is no part of this one
    pages = [report(folder).html for folder in folders]
    held = [unpack(page, tmp_path / "held" / page.parent.name)[0] for page in pages]
    made.append(write_report([read_run(f) for f in held], tmp_path / "of-pages", resamples=100))
    assert made[0].ranking.as_dict() == made[1].ranking.as_dict()
    for file in FILES[:3]:
        assert (tmp_path / "of-folders" / file).read_bytes() == (tmp_path / "of-pages" / file).read_bytes()
    # A page of two runs holds both.
    assert [read_run(p).record.name for p in unpack(made[1].html, tmp_path / "both")] == ["run-1", "run-2"]
    assert report(folders[0]).html.read_bytes() == pages[0].read_bytes()


def test_a_page_keeps_dialogues_and_every_reply_to_an_item(make_run: Maker, tmp_path: Path) -> None:
    folder = make_run(n=12)
    examples = [json.loads(line) for line in (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [e | {"dialogue": f"আলাপ {i % 6}", "turns": ["ভালো নেই।", "কী হয়েছে?"]} for i, e in enumerate(examples)]
    (folder / "examples.jsonl").write_text("".join(json.dumps(e) + "\n" for e in told), encoding="utf-8")
    # A second reply to each item, of statistics of its own; an editor took the newline of the last.
    run, path = read_run(folder), folder / "generations.jsonl"
    rows = [replace(g, reply="আবার বলি।", sample=1) for own in run.replies.values() for g in own]
    append_lines(path, rows)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    for table in (folder / "scores").glob("*.parquet"):
        frame = pd.read_parquet(table)
        second = frame.assign(**{c: frame[c].to_numpy()[::-1] for c in frame.columns if c != "id"})
        pd.concat([frame, second]).sort_values("id", kind="stable").to_parquet(table, index=False)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", record | {"samples": 2})
    made = report(folder)
    assert made.ranking.dialogues == 6 and "Drawings of a reply" in str(made)
    # The score of a reply is that reply's, not the mean of what was drawn.
    first = {name: run.tables[name]["chrF++"] for name in (BASE, ADAPTER)}
    own = {name: made.ranking.metrics["chrF++"].formula(table)[:, 0] for name, table in first.items()}
    told = [[float(x) for x in scores] for _, _, _, scores, _ in held_in(made.html)["items"]]
    assert told == [[round(own[name][i], 1) for name in (BASE, ADAPTER)] for i in range(12)]
    (held,) = unpack(made.html, tmp_path / "held")
    found, lines = read_run(held), held_in(made.html)["runs"][0]["generations.jsonl"]
    assert [len(own) for own in found.replies.values()] == [12, 12] and len(lines) == 48
    assert {name: table.shape for name, table in found.drawn[ADAPTER].items()} == {
        name: table.shape for name, table in read_run(folder).drawn[ADAPTER].items()
    }
    again = rank([found], resamples=made.ranking.resamples)
    assert again.as_dict() == made.ranking.as_dict()
    assert lines[-1]["reply"] == "আবার বলি।" and held_in(made.html)["runs"][0]["examples.jsonl"][0]["turns"]


def test_a_page_holds_no_ratings_of_people(make_run: Maker) -> None:
    folder = make_run(n=3)
    line = {"key": "x", "rater": "human:রিতা", "criterion": "overall", "value": 3.0}
    (folder / "ratings.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    report(folder)
    assert "রিতা" not in json.dumps(held_in(folder / "report.html"), ensure_ascii=False)


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("<p>another page</p>", "a page without the data of a run; name a report.html that this bnbench wrote"),
        ('<script type="application/gzip" id="data">AAAA</script>', "its data are damaged (Error -3 while"),
        ({"schema_version": 2, "runs": []}, "its data are of another schema"),
        ({"schema_version": 1, "runs": [{"../../run.json": {}}]}, "damaged (a file called ../../run.json)"),
        ({"schema_version": 1, "runs": [{"scores/../../x.parquet": {}}]}, "damaged (a file called scores/../"),
    ],
)
def test_a_page_that_holds_no_run_is_refused(tmp_path: Path, page: str | dict[str, object], says: str) -> None:
    if not isinstance(page, str):
        data = base64.b64encode(gzip.compress(json.dumps(page).encode())).decode()
        page = f'<script type="application/gzip" id="data">{data}</script>'
    (tmp_path / "a.html").write_text(page, encoding="utf-8")
    with pytest.raises(RunError, match=re.escape(says)):
        unpack(tmp_path / "a.html", tmp_path / "held")
    assert [path.name for path in tmp_path.rglob("*")] == ["a.html"]


def test_runs_together_in_one_report(make_run: Maker, tmp_path: Path) -> None:
    folders = [make_run(name="one"), make_run((PAIR[0], Spec("newcomer", 0.8, base=PAIR[0].location)), name="two")]
    made = write_report([read_run(f) for f in folders], tmp_path / "both", resamples=400)
    text = " ".join(Page(made.html.read_text(encoding="utf-8")).text)
    assert all(name in text for name in ("one", "two", BASE, ADAPTER, "newcomer"))
    assert "Every pair on chrF++" in text


def test_plot_marks_lie_inside(make_run: Maker) -> None:
    for specs, n in CASES.values():
        run = read_run(make_run(specs, n=n, name=f"plot-{len(specs)}-{n}", metrics=("chrF++",)))
        ranking = rank([run], resamples=200)
        [plot] = [b for panel in ranking_panel(ranking) for b in panel.blocks if isinstance(b, Intervals)]
        for *_, bar in plot.bars:
            assert bar is not None
            assert 0 <= bar.span[0] <= bar.span[1] <= bar.span[2] <= 100
        assert 1 <= len(plot.ticks) <= 8
        assert all(0 <= at <= 100 for at, _ in plot.ticks)


def test_numbers_as_a_reader_sees_them() -> None:
    assert number(-1.25, 1) == "−1.2"
    assert number(0.04, 1, sign=True) == number(-0.04, 1, sign=True) == "0.0"
    assert number(float("nan")) == number(float("inf")) == number(None) == "–"
    assert number(123456789.0) == "1.23e+08"
    assert [number(x, 4, sign=True) for x in (0.0, 0.00012, 0.00003, -0.00003, 1e-15)] == [
        "0.0000", "+0.0001", "+3e−05", "−3e−05", "0.0000",
    ]  # fmt: skip
    assert [p_value(p) for p in (1.0, 0.25, 0.0123, 0.00052, 0.00009999, 0.00001)] == [
        "1.00", "0.25", "0.012", "0.0005", "0.0001", "<0.0001",
    ]  # fmt: skip
    assert p_value(None) == p_value(float("nan")) == "–"


def test_names_are_one_visible_line() -> None:
    assert name("a\nb\u202e") == "a\\u000ab\\u202e"
    assert name("র‍্যাব") == "র‍্যাব"
    assert name("نموذج") == "\u2068نموذج\u2069"
    assert len(name("x" * 500)) == 60
    assert storable("ক\ud800\x00\n\ufffe") == "ক\ufffd\ufffd\n\ufffd"  # XML has no U+FFFE


def test_columns_are_as_wide_as_they_look() -> None:
    lines = aligned([["মডেল", "1.0"], ["a", "10.0"]]).splitlines()
    assert cell_len(lines[0]) == cell_len(lines[1])


def test_importing_reports_is_light() -> None:
    heavy = ("torch", "jinja2", "pandas", "transformers")
    code = f"import sys, bnbench.reports; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
