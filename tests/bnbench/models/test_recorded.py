"""Recorded replies and the items that they belong to: which joins are certain, and which are refused."""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from bnbench.data.corpus import Corpus, Example, load_corpus
from bnbench.errors import CandidateError, RunError
from bnbench.evaluate import EvaluationRequest, evaluate
from bnbench.models import BackendOptions
from bnbench.models.candidates import parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.hub import file_sha256
from bnbench.models.recorded import Predictions, RecordedReplies
from bnbench.records import read_run

WORDS = ["আজ", "সারা", "দিন", "বাড়ি", "নদী", "মাঠ", "বৃষ্টি", "রোদ", "বই", "খাতা", "কলম", "মা", "বাবা", "ভাই", "বোন"]
Rows = list[dict[str, str]]
EXAMPLES = [Example(f"item-{i}", "পরিবার", "", f"প্রশ্ন {i}", f"উত্তর {i}") for i in range(8)]
IDS = [e.id for e in EXAMPLES]


def make_rows(n: int, **more: Sequence[str]) -> Rows:
    """Rows of random words in the columns of our data, no two alike, with more columns behind."""
    pick = random.Random(7)

    def text(words: int) -> str:
        return " ".join(pick.choices(WORDS, k=words)) + "।"

    made = [{"Topics": "মন", "Question-Title": text(4), "Questions": text(12), "Answers": text(20)} for _ in range(n)]
    return [row | {name: values[i] for name, values in more.items()} for i, row in enumerate(made)]


def write(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


def record(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def joined(path: Path, corpus: Corpus, examples: Sequence[Example], **columns: str) -> dict[str, str]:
    """Reference → reply, as the run would pair them."""
    [candidate] = parse_candidates(predictions=[f"mine={path}"])
    backend = RecordedReplies([candidate], BackendOptions("recorded", columns=columns))
    backend.bind(examples, corpus)
    replies = backend.generate(candidate, [], [e.id for e in examples], Decoding())
    return {e.reference: reply.text for e, reply in zip(examples, replies, strict=True)}


def is_perfect(path: Path, corpus: Corpus, examples: Sequence[Example], **columns: str) -> bool:
    return all(reference == reply for reference, reply in joined(path, corpus, examples, **columns).items())


def answers(rows: Rows, **columns: str) -> Rows:
    """Each row's own answer as its reply, with some of its columns under other names."""
    return [{"reply": row["Answers"], **{name: row[column] for name, column in columns.items()}} for row in rows]


@pytest.mark.parametrize("count", [12, 150])
def test_without_ids_the_order_is_that_of_the_data_file(
    tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows(count)
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    mine = record(tmp_path / "mine.jsonl", answers(rows))
    examples = corpus.select("test")
    assert [e.reference for e in examples] != [r["Answers"] for r in rows][: len(examples)]
    with caplog.at_level(logging.INFO, "bnbench"):
        assert is_perfect(mine, corpus, examples)
    assert (
        f"predictions {mine}: " in caplog.text
        and f"joined to the items by the order of {tmp_path / 'test.csv'}" in caplog.text
    )
    assert is_perfect(mine, corpus, examples[:5])


def test_a_dropped_row_takes_its_reply_along(tmp_path: Path) -> None:
    rows = make_rows(12)
    rows[2] |= {"Answers": ""}
    rows[5] |= {"Questions": "হারা\ufffd অক্ষর"}
    rows[8] = dict(rows[4])
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    examples = corpus.select("test")
    assert len(examples) == 9
    replies = [{"reply": r["Answers"] or "কোনো উত্তর নেই"} for r in rows]
    replies[8] = {"reply": "একই সারির আরেক উত্তর"}
    assert is_perfect(record(tmp_path / "all.jsonl", replies), corpus, examples)
    few = record(tmp_path / "few.jsonl", [replies[i] for i in (0, 1, 3, 4, 6, 7, 9, 10, 11)])
    with pytest.raises(CandidateError, match=r"holds 9 replies, and .*test\.csv has 12 rows, of which 9 are evaluated"):
        joined(few, corpus, examples)


def test_the_bundled_data_have_an_order_too(tmp_path: Path) -> None:
    corpus, text = load_corpus(None), (files("bnbench.demo") / "conversations.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    mine = record(tmp_path / "mine.jsonl", answers(rows))
    assert is_perfect(mine, corpus, corpus.select("test", 7)) and is_perfect(mine, corpus, corpus.select("all"))
    # The file states its splits: 40 replies may stand as there or as in examples.jsonl.
    held_out = record(tmp_path / "test.jsonl", answers([r for r in rows if r["split"] == "test"]))
    with pytest.raises(CandidateError, match=r"holds 40 replies, and bnbench demo has 240 rows, of which 40"):
        joined(held_out, corpus, corpus.select("test"))


def test_the_order_of_examples_jsonl_is_certain_only_where_we_drew_the_split(tmp_path: Path) -> None:
    corpus = load_corpus(write(tmp_path / "test.csv", make_rows(150)))
    examples = corpus.select("test")
    mine = record(tmp_path / "mine.jsonl", [{"reply": e.reference} for e in examples])
    assert is_perfect(mine, corpus, examples) and is_perfect(mine, corpus, examples[:3])
    # Three replies and --limit 3: the first of the file, or of examples.jsonl?
    few = record(tmp_path / "few.jsonl", [{"reply": e.reference} for e in examples[:3]])
    with pytest.raises(CandidateError, match="holds 3 replies"):
        joined(few, corpus, examples[:3])


@pytest.mark.parametrize("own", [False, True])
def test_ids_of_the_run_and_of_the_data(tmp_path: Path, own: bool) -> None:
    rows = make_rows(12, ID=[str(100 + i) for i in range(12)])
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    plain = load_corpus(write(tmp_path / "plain.csv", [{k: v for k, v in r.items() if k != "ID"} for r in rows]))
    assert corpus.fingerprint == plain.fingerprint and corpus.splits == plain.splits  # an id of its own changes nothing
    assert list(asdict(corpus.select("all")[0])) == ["id", "topic", "title", "question", "reference", "dialogue"]
    names = {e.reference: e.id for e in corpus.select("all")}
    replies: list[dict[str, Any]] = [
        {"id": float(row["ID"]) if own else names[row["Answers"]], "reply": row["Answers"]} for row in rows
    ]
    random.Random(1).shuffle(replies)
    assert is_perfect(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all"))
    with pytest.raises(CandidateError, match=r"1 of 12 items have no reply, .*column 'id' in .*test\.csv"):
        joined(record(tmp_path / "few.jsonl", replies[1:]), corpus, corpus.select("all"))
    for again in (replies[0], replies[0] | {"reply": "অন্য উত্তর"}):
        with pytest.raises(CandidateError, match=r"reply 13: the id '.*' occurs a second time"):
            joined(record(tmp_path / "twice.jsonl", [*replies, again]), corpus, corpus.select("all"))


def test_an_id_that_two_rows_share_joins_nothing(tmp_path: Path) -> None:
    rows = make_rows(12, id=["১", "১", *map(str, range(10))])
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    replies = [{"id": str(i), "reply": "একই উত্তর"} for i in range(12)]
    with pytest.raises(CandidateError, match="2 of 12 items have no reply"):
        joined(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all"))


@pytest.mark.parametrize(
    "columns",
    [
        {"question": "Questions"},
        {"Questions": "Questions", "Question-Title": "Question-Title"},
        {"prompt": "Questions", "id": "ID"},
        {"message": "whole"},
    ],
)
def test_messages_join_where_each_occurs_once(tmp_path: Path, columns: dict[str, str]) -> None:
    rows = make_rows(12)
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    more = [{"ID": f"নেই-{i}", "whole": f"{r['Question-Title']}\n\n{r['Questions']}"} for i, r in enumerate(rows)]
    replies = answers([row | other for row, other in zip(rows, more, strict=True)], **columns)
    random.Random(1).shuffle(replies)
    assert is_perfect(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all"))


def test_messages_join_by_the_name_that_the_data_have_for_theirs(tmp_path: Path) -> None:
    rows = [{"বার্তা": row["Questions"], "উত্তর": row["Answers"]} for row in make_rows(12)]
    columns = {"question": "বার্তা", "reference": "উত্তর"}
    corpus = load_corpus(write(tmp_path / "test.csv", rows), columns=columns)
    mine = record(tmp_path / "mine.jsonl", [{"reply": row["উত্তর"], "বার্তা": row["বার্তা"]} for row in rows[::-1]])
    assert is_perfect(mine, corpus, corpus.select("all"), **columns)
    with pytest.raises(CandidateError, match=r"the columns are বার্তা\. Name the right one with --columns reply=NAME"):
        joined(record(tmp_path / "none.jsonl", [{"বার্তা": "ক"}]), corpus, corpus.select("all"), **columns)


@pytest.mark.parametrize("numbered", [False, True])
def test_messages_join_whatever_their_column_is_called(tmp_path: Path, numbered: bool) -> None:
    """In another order than the data's, under a name that nobody told; row numbers as ids, which they contradict."""
    rows = make_rows(8)
    corpus = load_corpus(write(tmp_path / "data.csv", rows)).unsplit()
    told = [{"কথা": row["Questions"], "reply": f"→ {row['Answers']}"} for row in rows[::-1]]
    told = [{"id": str(i), **row} if numbered else row for i, row in enumerate(told)]
    path = write(tmp_path / "p.csv", told)
    if numbered:
        with pytest.raises(CandidateError, match="its messages contradict the row numbers in its ids"):
            joined(path, corpus, corpus.select("all"))
        return
    found = joined(path, corpus, corpus.select("all"))
    assert len(found) == 8 and all(reply == f"→ {reference}" for reference, reply in found.items())


def test_replies_are_read_from_the_column_that_is_named(tmp_path: Path) -> None:
    rows = make_rows(12)
    data = write(tmp_path / "test.csv", rows)
    corpus = load_corpus(data)
    named = [
        {"reply": "না", "জবাব": r["Answers"], "id": e.id}
        for r, e in zip(rows, [row.example for row in corpus.rows], strict=True)
    ]
    mine = record(tmp_path / "mine.jsonl", named)
    assert is_perfect(mine, corpus, corpus.select("all"), reply="জবাব")
    assert set(joined(mine, corpus, corpus.select("all")).values()) == {"না"}
    with pytest.raises(CandidateError, match="there is no column 'নেই'; the columns are reply, জবাব, id"):
        joined(mine, corpus, corpus.select("all"), reply="নেই")
    # Of one file and one run folder, the replies of another column are another run's.
    asked = EvaluationRequest(parse_candidates(predictions=[str(mine)]), tmp_path / "run", data=str(data), quiet=True)
    run = read_run(evaluate(replace(asked, columns={"reply": "জবাব"})))
    assert [g.reply for g in run.replies["mine"]] == [e["reference"] for e in run.examples]
    with pytest.raises(RunError, match="holds another run"):
        evaluate(asked)


def test_an_item_that_has_no_reply_is_named(tmp_path: Path) -> None:
    rows = make_rows(15)
    rows[6] |= {"Questions": "নতুন শহরে এসেছি, কাউকে চিনি না।"}
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    replies = answers(rows, message="Questions")
    del replies[6]
    told = r"1 of 15 items have no reply, their messages are not in it: 'নতুন শহরে এসেছি, কাউকে চিনি না।'; give each a row"
    with pytest.raises(CandidateError, match=told):
        joined(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all"))
    asked = [{"id": f"অনুরোধ-{i}", **reply} for i, reply in enumerate(replies)]  # ids of the requests, not of the data
    with pytest.raises(CandidateError, match=told):
        joined(record(tmp_path / "ids.jsonl", asked), corpus, corpus.select("all"))
    with pytest.raises(CandidateError, match=r"5 of 15 items have no reply, .*', '.*', '.*' …; give each a row"):
        joined(record(tmp_path / "few.jsonl", replies[:10]), corpus, corpus.select("all"))
    twice = [*replies, replies[0] | {"reply": "আরেক উত্তর"}, replies[1] | {"reply": "আরেক উত্তর"}]
    twice.append({"reply": "আছি", "message": "নতুন শহরে এসেছি, কাউকে চিনি না।"})
    with pytest.raises(CandidateError, match=r"holds 17 replies, .* or 'message', each once"):
        joined(record(tmp_path / "twice.jsonl", twice), corpus, corpus.select("all"))


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("right", [0, 1, 11])
def test_messages_of_other_data_are_not_joined_by_order(tmp_path: Path, right: int, numbered: bool) -> None:
    rows = make_rows(12)
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    replies = answers(rows, message="Questions")
    for i in range(right, 12):
        replies[i] |= {"message": f"অন্য কোথাও থেকে আসা বার্তা {i}"}
    if numbered:
        replies = [{"id": str(i), **reply} for i, reply in enumerate(replies)]
    with pytest.raises(CandidateError, match=r"contradict .*, the first at reply [0-9]+; .* call 'message' oth"):
        joined(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all")[:])
    # Whole prompts have the messages in them, and an empty one says nothing.
    for i, (reply, row) in enumerate(zip(replies, rows, strict=True)):
        reply |= {"message": f"তুমি মন দিয়ে শোনো।\n\n{row['Questions']}\n\nউত্তর:" if i else ""}
    assert is_perfect(record(tmp_path / "whole.jsonl", replies), corpus, corpus.select("all"))


def test_a_message_that_occurs_twice_leaves_the_order_which_must_agree(tmp_path: Path) -> None:
    rows = make_rows(12)
    for row in (rows[3], rows[9]):
        row |= {"Question-Title": "ঘুম", "Questions": "রাতে ঘুম আসে না, কী করব?"}
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    replies = answers(rows, question="Questions")
    assert is_perfect(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all"))
    with pytest.raises(CandidateError, match=r"its messages contradict the order of .*test\.csv"):
        joined(record(tmp_path / "turned.jsonl", replies[::-1]), corpus, corpus.select("all"))


def test_replies_are_not_taken_from_a_run_on_the_same_rows_in_another_order(tmp_path: Path) -> None:
    rows = make_rows(12)
    [mine] = parse_candidates(predictions=[str(record(tmp_path / "mine.jsonl", answers(rows)))])
    data = write(tmp_path / "test.csv", rows)
    asked = EvaluationRequest((mine,), tmp_path / "run", data=str(data), quiet=True)
    run = read_run(evaluate(asked))
    assert [g.reply for g in run.replies["mine"]] == [e["reference"] for e in run.examples]
    evaluate(asked)
    write(data, rows[::-1])
    with pytest.raises(RunError, match="holds another run"):
        evaluate(asked)


def open_file(candidates: Sequence[Any]) -> RecordedReplies:
    return RecordedReplies(candidates, BackendOptions("recorded"))


def predictions(path: Path, text: str) -> Any:
    path.write_text(text, encoding="utf-8")
    return parse_candidates(predictions=[f"mine={path}"])


def test_replies_are_joined_by_id(tmp_path: Path) -> None:
    lines = [json.dumps({"id": e.id, "reply": f"উত্তর {e.id}"}, ensure_ascii=False) for e in EXAMPLES]
    found = predictions(tmp_path / "p.jsonl", "\n".join(lines[::-1]) + "\n")
    opened = open_file(found)
    opened.bind(EXAMPLES[:5])
    replies = opened.generate(found[0], [], ["item-3", "item-0"], Decoding())
    assert [r.text for r in replies] == ["উত্তর item-3", "উত্তর item-0"]
    assert opened.score(found[0], [], []) is None
    assert opened.prompters[found[0].name].prompt(EXAMPLES[0]).text == "প্রশ্ন 0"
    assert opened.identity(found[0])["predictions_sha256"] == file_sha256(tmp_path / "p.jsonl")


def test_plain_lines_are_joined_in_order_and_lengths_must_agree(tmp_path: Path) -> None:
    # U+2028 and U+0085 are no ends of lines in a file of lines, and an empty reply is a reply.
    found = predictions(tmp_path / "p.txt", "এক\u2028দুই\r\n\nতিন\x85\n")
    opened = open_file(found)
    opened.bind(EXAMPLES[:3])
    assert [r.text for r in opened.generate(found[0], [], IDS[:3], Decoding())] == ["এক\u2028দুই", "", "তিন\x85"]
    with pytest.raises(CandidateError, match="it holds 3 replies, and the data has 4 rows"):
        opened.bind(EXAMPLES[:4])


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.parquet"])
def test_tables(tmp_path: Path, name: str) -> None:
    import pandas as pd

    frame = pd.DataFrame({"response_text": ["এক, দুই", "তিন\nচার"], "timestamp": ["", ""]})
    path = tmp_path / name
    if name.endswith("parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if name.endswith("csv") else "\t")
    assert Predictions.read(path) == Predictions(path, ("এক, দুই", "তিন\nচার"))


def test_predictions_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match=r"no column holds a reply; the columns are x"):
        open_file(predictions(tmp_path / "a.csv", "x\n1\n"))
    with pytest.raises(CandidateError, match="no rows"):
        open_file(predictions(tmp_path / "b.csv", "reply\n"))
    twice = open_file(predictions(tmp_path / "c.csv", "id,reply\nitem-0,ক\nitem-0,খ\n"))
    with pytest.raises(CandidateError, match=r"'item-0' occurs a second time"):
        twice.bind(EXAMPLES[:1])
    with pytest.raises(CandidateError, match=r"7 of 8 items have no reply, the first 'item-1'"):
        open_file(predictions(tmp_path / "d.csv", "id,reply\nitem-0,ক\n")).bind(EXAMPLES)
    (tmp_path / "e.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CandidateError, match=r"predictions .*e\.txt: the file is UTF-16; save it as UTF-8"):
        open_file(parse_candidates(predictions=[str(tmp_path / "e.txt")]))
    for lines, says in (
        ('{"reply": null}', r"the row has no 'reply' \(null\)"),
        ('{"reply": ["ক"]}', "list, not text"),
    ):
        with pytest.raises(CandidateError, match=rf"f\.jsonl, line 2: .*{says}"):
            open_file(predictions(tmp_path / "f.jsonl", f'{{"reply": ""}}\n{lines}\n'))
    numbered = open_file(predictions(tmp_path / "g.jsonl", '{"id": 7.0, "reply": ""}\n'))
    numbered.bind([replace(EXAMPLES[0], id="7")])  # ids are text, whatever type the file gives them


@pytest.mark.parametrize("first", [0, 1])
def test_ids_that_number_the_rows(tmp_path: Path, first: int, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(12)
    rows[4] |= {"Answers": ""}
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    replies: list[dict[str, Any]] = [{"doc_id": i, "reply": row["Answers"] or "না"} for i, row in enumerate(rows, first)]
    random.Random(1).shuffle(replies)
    with caplog.at_level(logging.INFO, "bnbench"):
        assert is_perfect(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all"))
    assert "joined to the items by the row numbers in its ids, the order of" in caplog.text
    for wrong in (replies[1:], [*replies[1:], replies[0] | {"doc_id": 99}]):
        with pytest.raises(CandidateError, match="items have no reply"):
            joined(record(tmp_path / "wrong.jsonl", wrong), corpus, corpus.select("all"))
    named = load_corpus(write(tmp_path / "named.csv", [{**row, "id": f"প্রশ্ন-{i}"} for i, row in enumerate(rows)]))
    with pytest.raises(CandidateError, match="11 of 11 items have no reply"):  # the data have other names
        joined(tmp_path / "mine.jsonl", named, named.select("all"))


def test_ids_that_the_messages_contradict_are_refused(tmp_path: Path) -> None:
    rows = make_rows(12, ID=[str(i) for i in range(12)])
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    replies = [{"id": str(i), **reply} for i, reply in enumerate(answers(rows, message="Questions")[::-1])]
    with pytest.raises(
        CandidateError, match=r"its messages contradict the ids of .*test\.csv, the first at reply \d+;"
    ):
        joined(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all"))
    unknown = [reply | {"message": "আর কোথাও নেই"} for reply in replies[::-1]]  # says nothing for or against the ids
    assert set(joined(record(tmp_path / "mine.jsonl", unknown), corpus, corpus.select("all")))


def test_row_numbers_that_the_messages_contradict_are_refused_unless_they_count_other_rows(tmp_path: Path) -> None:
    rows = make_rows(12)
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    replies = [{"id": str(i), **reply} for i, reply in enumerate(answers(rows[::-1], message="Questions"))]
    with pytest.raises(CandidateError, match="contradict the row numbers in its ids, the order of"):
        joined(record(tmp_path / "mine.jsonl", replies), corpus, corpus.select("all"))
    few = corpus.select("all", 5)  # of which a file has the replies, numbered by themselves
    own = {e.question: e.reference for e in few}
    mine = [{"id": str(i), "message": said, "reply": reply} for i, (said, reply) in enumerate(sorted(own.items()))]
    assert is_perfect(record(tmp_path / "few.jsonl", mine), corpus, few)


def test_messages_that_cannot_be_read_are_not_left_out_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "turns.jsonl"
    path.write_text('{"id": "1", "prompt": [{"role": "user"}], "reply": "শুনছি।"}\n', encoding="utf-8")
    read = Predictions.read(path)
    assert (read.ids, read.messages) == (("1",), ())
    assert "turns.jsonl" in caplog.text and "neither join nor check the replies" in caplog.text


@pytest.mark.parametrize("named", ["generated_text", "reply"])
def test_of_a_whole_conversation_the_assistant_s_last_word_is_the_reply(tmp_path: Path, named: str) -> None:
    rows = make_rows(12)
    corpus = load_corpus(write(tmp_path / "test.csv", rows))

    def turns(row: dict[str, str], last: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": row["Questions"]}, {"role": last, "content": row["Answers"]}]

    chats = [{named: turns(row, "assistant")} for row in rows]
    assert is_perfect(record(tmp_path / "chats.jsonl", chats), corpus, corpus.select("all"))
    chats[4] = {named: turns(rows[4], "user")}
    with pytest.raises(CandidateError, match=f"chats.jsonl, line 5: '{named}' is list, not text"):
        joined(record(tmp_path / "chats.jsonl", chats), corpus, corpus.select("all"))


def test_turns_join_replies_that_stand_beside_them(tmp_path: Path) -> None:
    rows = make_rows(12)
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    mine = [{"messages": [{"role": "user", "content": row["Questions"]}], "reply": row["Answers"]} for row in rows]
    assert is_perfect(record(tmp_path / "turns.jsonl", mine[::-1]), corpus, corpus.select("all"))


def test_a_column_that_only_the_first_row_lacks_counts(tmp_path: Path) -> None:
    rows = make_rows(12)
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    mine = answers(rows, message="Questions")
    numbered = [mine[0], *({"id": str(12 - i), **row} for i, row in enumerate(mine[1:]))]
    with pytest.raises(CandidateError, match=r"mine\.jsonl, line 1: the row has no 'id'"):
        joined(record(tmp_path / "mine.jsonl", numbered), corpus, corpus.select("all"))
    asked = [{"reply": mine[0]["reply"]}, *mine[:0:-1]]
    with pytest.raises(CandidateError, match="its messages contradict the order of"):
        joined(record(tmp_path / "mine.jsonl", asked), corpus, corpus.select("all"))


def test_ids_that_the_data_have_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(12, ID=[str(i) for i in range(1, 13)])
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    some = [row.example for row in corpus.rows[:5]]
    from_zero = [{"id": str(i), **reply} for i, reply in enumerate(answers(rows))]
    with pytest.raises(CandidateError, match=r"its ids count from 0 and those of .* from 1; give"):
        joined(record(tmp_path / "mine.jsonl", from_zero), corpus, some)
    more = [{"id": str(i), **reply} for i, reply in enumerate(answers([rows[0], *rows]))] + [{"id": "ক", "reply": "না"}]
    with caplog.at_level(logging.INFO, "bnbench.models"):
        assert is_perfect(record(tmp_path / "more.jsonl", more), corpus, some)
    assert "5 of its 14 replies joined to the items by" in caplog.text
    with pytest.raises(CandidateError, match="11 of 12 items have no reply, the first '2';"):
        joined(record(tmp_path / "one.jsonl", more[1:2]), corpus, corpus.select("all"))


def test_ids_whose_messages_are_all_of_other_data_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(12, ID=[str(i) for i in range(12)])
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    for message, told in (
        (lambda i: f"### প্রশ্ন: {rows[i]['Questions']}\n### উত্তর:", False),
        (lambda i: f"### প্রশ্ন: {rows[(i + 3) % 12]['Questions']}\n### উত্তর:", True),
        (lambda i: f"অন্য কারও কথা, {i} নম্বর", True),
        (lambda i: "নিচের বার্তার উত্তর দাও।", False),
    ):
        caplog.clear()
        mine = [{"id": str(i), "message": message(i), **reply} for i, reply in enumerate(answers(rows))]
        assert is_perfect(record(tmp_path / "mine.jsonl", mine), corpus, corpus.select("all"))
        assert ("none of its messages is the item's" in caplog.text) is told


def test_what_is_named_as_the_reference_is_no_reply(tmp_path: Path) -> None:
    rows = [{"message": row["Questions"], "answer": row["Answers"]} for row in make_rows(12)]
    data = write(tmp_path / "test.csv", [row | {"bot": "শুনে খারাপ লাগল।"} for row in rows])
    corpus = load_corpus(data, columns={"reference": "answer"})
    with pytest.raises(
        CandidateError, match=r"no column holds a reply, as --columns calls 'answer' the reference\. Name"
    ):
        joined(data, corpus, corpus.select("all"), reference="answer")
    found = joined(data, corpus, corpus.select("all"), reference="answer", reply="bot")
    assert set(found.values()) == {"শুনে খারাপ লাগল।"}


@pytest.mark.parametrize("cell", [float("nan"), ["শুনছি"]])
def test_sentences_of_which_one_is_no_text_join_nothing(
    tmp_path: Path, cell: object, caplog: pytest.LogCaptureFixture
) -> None:
    rows = make_rows(12)
    corpus = load_corpus(write(tmp_path / "test.csv", rows))
    mine: list[dict[str, Any]] = [*answers(rows, প্রশ্ন="Questions")]
    mine[3]["প্রশ্ন"] = cell
    assert is_perfect(record(tmp_path / "mine.jsonl", mine), corpus, corpus.select("all"))
    assert "neither join nor check the replies" in caplog.text
