from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.data.corpus import Example, SplitSizes, load_corpus, make_example
from bnbench.data.pairs import RatedReply, labelled_pairs, load_pairs, make_pairs, preferences, read_ratings
from bnbench.errors import CorpusError
from bnbench.metrics.labelled import labelled_set

HEADER = "Topics,Questions,chosen,rejected"
GOOD = "একা থাকাটা কঠিন; আমাকে আরেকটু বলবেন?"
BAD = "এত ভাবার কী আছে।"


def file_of(path: Path, *rows: str, header: str = HEADER) -> str:
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return str(path)


def table_of(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def rated(message: str, reply: str, rating: float, topic: str = "") -> RatedReply:
    return RatedReply(make_example(topic, "", message, reply), rating)


def test_best_reply_against_each_clearly_worse_one() -> None:
    replies = [
        rated("ঘুম আসে না।", "শুনছি।", 4.0),
        rated("ঘুম আসে না।", "কষ্টটা বুঝতে পারছি।", 4.6),
        rated("ঘুম আসে না।", "ঘুমান।", 1.0),
        rated("ঘুম আসে না।", "ওষুধ খান।", 4.1),
        rated("চাকরি নেই।", "মন শক্ত রাখুন।", 3.0),
        rated("চাকরি নেই।", "পাশে আছি।", 3.0),
    ]
    made = make_pairs(replies, 0.5)
    best = "কষ্টটা বুঝতে পারছি।"
    found = [(pair.chosen.reference, pair.rejected.reference) for pair, _, _ in made.pairs]
    assert found == [(best, "শুনছি।"), (best, "ঘুমান।"), (best, "ওষুধ খান।")]
    assert str(made).startswith("3 pairs from 1 of 2 messages (6 rated replies)")
    assert [len(make_pairs(replies, margin).pairs) for margin in (0.55, 1.0)] == [2, 1]


def test_two_best_replies_are_both_chosen_and_never_paired() -> None:
    made = make_pairs([rated("প্রশ্ন", "এক", 5), rated("প্রশ্ন", "দুই", 5), rated("প্রশ্ন", "তিন", 1)], 1)
    assert [(p.chosen.reference, p.rejected.reference) for p, _, _ in made.pairs] == [("এক", "তিন"), ("দুই", "তিন")]


def test_ratings_of_one_reply_are_averaged() -> None:
    # One spelling with a composed য়, one with its nukta apart: the same reply.
    once, twice = rated("প্রশ্ন", "সময় নিন", 5), rated("প্রশ্ন", "সম\u09af\u09bc নিন", 2)
    made = make_pairs([once, rated("প্রশ্ন", "যান", 4), twice], 0.5)
    assert [(p.chosen.reference, a.rating, b.rating) for p, a, b in made.pairs] == [("যান", 4, 3.5)]


@pytest.mark.parametrize(
    ("replies", "margin", "message"),
    [
        ([("ক", 3.0), ("খ", 3.0)], 0.5, "no message has two replies whose ratings differ by 0.5; lower --margin"),
        ([("ক", 3.0), ("খ", 1.0)], 0.0, "it must be above 0"),
        ([("ক", 3.0), ("খ", 1.0)], math.nan, "it must be above 0"),
    ],
)
def test_no_pairs(replies: list[tuple[str, float]], margin: float, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        make_pairs([rated("প্রশ্ন", reply, rating) for reply, rating in replies], margin)


def test_ratings_file_of_two_raters(tmp_path: Path) -> None:
    header = "ID,Prompt,Model_Response,Empathy (1-5),Relevance (1-5),Rater"
    rows = [
        "1,মন ভালো নেই,কী হয়েছে?,৫,4,রীনা",
        "1,মন ভালো নেই,কী হয়েছে?,4,,সুমন",
        "2,মন ভালো নেই,আচ্ছা,1,2,রীনা",
        "3,মন ভালো নেই,হুম,,,সুমন",
    ]
    path = Path(file_of(tmp_path / "ratings.csv", *rows, header=header))
    found = read_ratings(path)
    assert [(r.example.reference, r.rating) for r in found] == [("কী হয়েছে?", 4.5), ("কী হয়েছে?", 4.0), ("আচ্ছা", 1.5)]
    assert [r.rating for r in read_ratings(path, ratings=["Relevance (1-5)"])] == [4.0, 2.0]
    made = preferences(path, tmp_path / "pairs.csv", columns={"message": "Prompt"})
    assert made.summary()["pairs"] == 1 and made.pairs[0][1].rating == 4.25
    assert [p.chosen.reference for p in load_pairs(str(tmp_path / "pairs.csv")).select("all")] == ["কী হয়েছে?"]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("message,text,empathy", "ক,খ,1", "no column holds a reply; the columns are message, text, empathy. Name"),
        ("message,reply,grade", "ক,খ,1", "no column of ratings is known by its name.*Name each with --rating"),
        ("message,reply,empathy", "ক,খ,ভালো", "line 2: empathy is 'ভালো', not a number"),
        ("message,reply,empathy", "ক,খ,inf", "line 2: empathy is 'inf', not a number"),
        ("message,reply,empathy", "ক,,1", "line 2: the message or the reply is empty"),
    ],
)
def test_bad_ratings(tmp_path: Path, header: str, row: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_ratings(Path(file_of(tmp_path / "ratings.csv", row, header=header)))


def test_labelled_replies_give_pairs_of_the_development_half() -> None:
    made = labelled_pairs(half="development")
    development = {row.message for row in labelled_set("development").rows}
    assert {pair.chosen.question for pair, _, _ in made.pairs} <= development
    levels = {(row.message, row.reply): sum(row.levels) for row in labelled_set().rows}
    for pair, _, _ in made.pairs:
        better, worse = (levels[e.question, e.reference] for e in (pair.chosen, pair.rejected))
        assert better - worse >= 1.5
    assert made == labelled_pairs(half="development") and len(made.pairs) > 150


def test_without_a_file_the_held_out_half_is_held_out() -> None:
    found = load_pairs(None)
    held_out = {row.message for row in labelled_set("held-out").rows}
    assert {p.chosen.question for p in found.held_out("train")} <= held_out
    assert not held_out & {p.chosen.question for p in found.select("train")}
    assert found.held_out("all") == ()


def many(count: int, replies: int) -> list[tuple[str, ...]]:
    """Pairs of real messages, each with the reply that it has and some made worse."""
    messages = load_corpus(None).select("all")[:count]
    return [(e.topic, e.question, e.reference, f"{BAD} {j}") for e in messages for j in range(replies)]


def test_pairs_of_a_message_stay_on_the_side_of_the_corpus(tmp_path: Path) -> None:
    sizes = SplitSizes(400, 200, 200)
    pairs = load_pairs(table_of(tmp_path / "pairs.csv", HEADER.split(","), many(60, 3)), sizes=sizes)
    rows = [row[:3] for row in many(120, 1)]
    corpus = load_corpus(table_of(tmp_path / "corpus.csv", ["Topics", "Questions", "Answers"], rows), sizes=sizes)
    sides = {example.question: side for side, part in corpus.splits.items() for example in part}
    for side in ("train", "validation", "test"):
        part = pairs.select(side)
        assert part and {sides[p.chosen.question] for p in part} == {side}
    assert sum(len(pairs.select(side)) for side in ("train", "validation", "test")) == 180
    assert len(pairs.held_out("train")) == len(pairs.select("validation")) + len(pairs.select("test"))


def test_few_pairs_are_not_split(tmp_path: Path) -> None:
    found = load_pairs(table_of(tmp_path / "pairs.csv", HEADER.split(","), [*many(4, 2), *many(4, 2)]))
    assert len(found.select("train")) == 8 and found.held_out("train") == () and not found.corpus.is_split
    assert found.corpus.steps[0].dropped == 8


def test_other_column_names(tmp_path: Path) -> None:
    source = file_of(tmp_path / "pairs.csv", f"ক কেন?,{GOOD},{BAD}", header="msg,better,worse")
    found = load_pairs(source, columns={"question": "msg", "chosen": "better", "rejected": "worse"})
    pair = found.select("all")[0]
    assert (pair.chosen.question, pair.chosen.reference, pair.rejected.reference) == ("ক কেন?", GOOD, BAD)
    with pytest.raises(CorpusError, match="unknown field 'reference' in the column mapping; the fields are topic"):
        load_pairs(source, columns={"reference": "better"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"ঘুম,ঘুম আসে না,,{BAD}", "line 3: chosen is empty"),
        (f"ঘুম,ঘুম আসে না,{GOOD}, ", "line 3: rejected is empty"),
        (f"ঘুম,,{GOOD},{BAD}", "line 3: question is empty"),
        ("ঘুম,ঘুম আসে না,সময় নিন।,সম\u09af\u09bc নিন।", "line 3: chosen and rejected are the same text"),
        (f"ঘুম,ঘুম আসে না,{GOOD[:9]}\ufffd,{BAD}", "line 3: a letter was lost for good"),
    ],
)
def test_rows_that_are_no_pairs(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_pairs(file_of(tmp_path / "pairs.csv", f"ঘুম,রাত জাগি,{GOOD},{BAD}", row))


def test_files_of_another_kind_say_where_they_belong(tmp_path: Path) -> None:
    corpus = file_of(tmp_path / "corpus.csv", f"ঘুম,ঘুম আসে না,{GOOD}", header="Topics,Questions,Answers")
    with pytest.raises(
        CorpusError, match=r"no column 'chosen'.*the columns are Topics, Questions, Answers.*preferences"
    ):
        load_pairs(corpus)
    pairs = file_of(tmp_path / "pairs.csv", f"ঘুম,ঘুম আসে না,{GOOD},{BAD}")
    with pytest.raises(CorpusError, match=r"no column 'Answers'.*preference pairs is for the recipe dpo"):
        load_corpus(pairs)


@pytest.mark.parametrize("rejected", ["কিছু না।", BAD])  # another pair, or the very same
def test_a_message_on_two_sides(tmp_path: Path, rejected: str) -> None:
    rows = [f"ঘুম,ঘুম আসে না,{GOOD},{BAD},train", f"ঘুম,ঘুম আসে না,{GOOD},{rejected},test"]
    message = r"'split' puts one message on two sides .train and test.: 'ঘুম আসে না"
    with pytest.raises(CorpusError, match=message):
        load_pairs(file_of(tmp_path / "pairs.csv", *rows, header=HEADER + ",split"))
    ratings = [f"ঘুম আসে না,{GOOD},5,train", f"ঘুম আসে না,{rejected},1,test"]
    with pytest.raises(CorpusError, match=message):
        read_ratings(Path(file_of(tmp_path / "rated.csv", *ratings, header="message,reply,empathy,split")))


def test_conversations_where_text_is_needed(tmp_path: Path) -> None:
    pair = {"question": "ঘুম আসে না", "chosen": [{"role": "assistant", "content": GOOD}], "rejected": BAD}
    rated = {"message": "ঘুম আসে না", "reply": [GOOD], "empathy": 5}
    for name, row, read in (("pairs", pair, load_pairs), ("rated", rated, lambda path: read_ratings(Path(path)))):
        path = file_of(tmp_path / f"{name}.jsonl", header=json.dumps(row, ensure_ascii=False))
        with pytest.raises(CorpusError, match=r"(row|line) 1: a list or object where text is needed: \["):
            read(path)


def test_ratings_with_an_unnamed_index_or_columns_that_rows_lack(tmp_path: Path) -> None:
    indexed = file_of(
        tmp_path / "a.csv", f"0,মন ভালো নেই,{GOOD},5", f"1,মন ভালো নেই,{BAD},1", header=",message,reply,empathy"
    )
    assert len(make_pairs(read_ratings(Path(indexed)), 0.5).pairs) == 1
    rows = [
        {"message": "মন ভালো নেই", "reply": GOOD, "fluency": 5},
        {"message": "মন ভালো নেই", "title": math.nan, "reply": BAD, "fluency": 5, "empathy": 0},
    ]
    path = file_of(tmp_path / "a.jsonl", json.dumps(rows[1]), header=json.dumps(rows[0]))
    assert [(r.example.title, r.rating) for r in read_ratings(Path(path))] == [("", 5.0), ("", 2.5)]


def test_pairs_that_do_not_fit_are_dropped_whole(tmp_path: Path) -> None:
    def words(examples: Sequence[Example]) -> list[int]:
        return [len(e.reference.split()) for e in examples]

    source = file_of(tmp_path / "pairs.csv", f"ঘুম,ঘুম আসে না,{GOOD},{BAD}", f"ঘুম,ঘুম আসে না,{GOOD},{BAD * 4}")
    found = load_pairs(source, max_tokens=8, count_tokens=words)
    assert [p.rejected.reference for p in found.select("all")] == [BAD]
    assert [(s.name, s.dropped) for s in found.corpus.steps] == [
        ("duplicate", 0),
        ("too long", 1),
        ("near-duplicate", 0),
    ]
    with pytest.raises(CorpusError, match="no usable row; 2 too long"):
        load_pairs(source, max_tokens=2, count_tokens=words)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = CliRunner().invoke(app, ["preferences", "--half", "both", "--margin", "1", "--json"])
    told = json.loads(first.stdout)
    with (tmp_path / "pairs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert first.exit_code == 0 and len(rows) == told["pairs"] and {r["split"] for r in rows} == {"train", "test"}
    assert all(float(r["chosen_rating"]) - float(r["rejected_rating"]) > 0.99 for r in rows)
    again = CliRunner().invoke(app, ["preferences"])
    assert again.exit_code == 2 and "pairs.csv exists: name another file" in again.stderr
    halves = CliRunner().invoke(app, ["preferences", "pairs.csv", "--half", "both", "--out", "b.csv"])
    assert halves.exit_code == 2 and "only the bundled labelled replies have halves" in halves.stderr
    named = CliRunner().invoke(app, ["preferences", "--rating", "empathy", "--out", "b.csv"])
    assert named.exit_code == 2 and "--rating are for a file of ratings" in named.stderr
