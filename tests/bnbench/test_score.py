"""Files of replies, references and messages: joined rightly or refused with file and row, and scored as in memory."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bnbench import score as scoring
from bnbench.data.corpus import load_corpus
from bnbench.data.files import iter_lines, iter_table
from bnbench.data.join import TextFile
from bnbench.errors import BnbenchError, CorpusError, InputError, UsageError
from bnbench.metrics import ChrFPlusPlus, CombinedScore, Metric, evaluate_pairs, evaluate_stream, original_scores
from bnbench.score import score, score_files

EXAMPLES = load_corpus(None).select("test")
REFERENCES = [e.reference for e in EXAMPLES]
REPLIES = [" ".join(r.split()[: 5 + i % 20]) for i, r in enumerate(REFERENCES)]
MESSAGES = [f"{e.title} {e.question}".strip() for e in EXAMPLES]
IDS = [f"প্রশ্ন-{i}" for i in range(len(EXAMPLES))]


def write(path, rows):
    """Rows (dictionaries of equal keys, or strings) as the kind of file that the ending names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def column(name, texts):
    return [{"id": i, name: t} for i, t in zip(IDS, texts, strict=True)]


def same(scores, whole):
    assert list(scores.results) == list(whole)
    for name, result in scores.results.items():
        assert np.array_equal(result.table, whole[name].table)
        assert (result.scores, result.intervals, str(result)) == (
            whole[name].scores,
            whole[name].intervals,
            str(whole[name]),
        )
    return True


@pytest.fixture(scope="module")
def whole():
    return evaluate_pairs(REPLIES, REFERENCES, messages=MESSAGES)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet", ".txt"])
def test_every_kind_of_file_scores_as_in_memory(ending, tmp_path, whole):
    texts = {"reply": REPLIES, "reference": REFERENCES, "question": MESSAGES}
    rows = {name: t if ending == ".txt" else column(name, t) for name, t in texts.items()}
    files = {name: write(tmp_path / f"{name}{ending}", r) for name, r in rows.items()}
    scores = score_files(files["reply"], [files["reference"]], messages=files["question"], quiet=True)
    assert scores.n == len(REPLIES)
    assert list(scores.results)[:3] == ["chrF++", "BLEU", "ROUGE"]
    assert same(scores, whole)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt", ".json", ".ndjson"])
def test_gzipped_files_and_other_json(ending, tmp_path, whole):
    kind = ".jsonl" if "json" in ending else ending
    files = []
    for name, texts in (("reply", REPLIES), ("reference", REFERENCES)):
        content = write(tmp_path / f"{name}{kind}", texts if ending == ".txt" else column(name, texts)).read_bytes()
        if ending == ".json" and name == "reply":
            content = b"\n[" + b",".join(content.splitlines()) + b"]"
        files.append(tmp_path / f"{name}2{ending}.gz")
        files[-1].write_bytes(gzip.compress(content, mtime=0))
    scores = score_files(files[0], [files[1]], metrics=["chrF++"], quiet=True)
    assert same(scores, {"chrF++": whole["chrF++"]})


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_ids_join_in_any_order_and_lines_do_not_matter_then(ending, tmp_path, whole):
    order = random.Random(1).sample(range(len(IDS)), len(IDS))
    shuffled = [{"id": IDS[i], "title": "", "question": MESSAGES[i], "reference": REFERENCES[i]} for i in order]
    examples = write(tmp_path / f"examples{ending}", shuffled)
    replies = write(tmp_path / "replies.jsonl", column("reply", REPLIES))
    assert same(score_files(replies, [examples], messages=examples, quiet=True), whole)


def beside(name, texts, messages=MESSAGES):
    return [{"message": m, name: t} for m, t in zip(messages, texts, strict=True)]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_messages_join_files_without_ids_in_any_order(ending, tmp_path, whole, caplog):
    other = [{"Question-Title": e.title, "prompt": e.question, "reference": e.reference} for e in reversed(EXAMPLES)]
    predictions = write(tmp_path / f"p.{ending}", beside("reply", REPLIES))
    references = write(tmp_path / f"r.{ending}", other)  # a title in a column of its own
    messages = write(
        tmp_path / f"m.{ending}", [{"question": m.replace(" ", "  ")} for m in MESSAGES[5:] + MESSAGES[:5]]
    )
    with caplog.at_level("INFO", "bnbench"):
        assert same(score_files(predictions, [references]), whole)
        assert f"{references}: reference from reference, joined to the replies by message" in caplog.text
    found = score_files(predictions, [references], messages=messages)
    assert found.results["chrF++"].scores == whole["chrF++"].scores
    # The replies alone have no messages: those that are given for them, line by line, join the references.
    plain, lines = write(tmp_path / "p.txt", REPLIES), write(tmp_path / "m.txt", MESSAGES)
    assert same(score_files(plain, [references], messages=lines), whole)
    # Nor has anything said what the replies answer; but of two files of references one cannot contradict the other.
    aligned = write(tmp_path / f"a.{ending}", beside("reference", REFERENCES))
    twice = score_files(plain, [aligned, references], metrics=["chrF++"])
    assert twice.results["chrF++"].scores == whole["chrF++"].scores


def test_a_column_that_both_files_have_joins_them_whatever_it_is_called(tmp_path, whole, caplog):
    asked = [{"বার্তা": m, "বিষয়": "মন"} for m in MESSAGES]
    replies = [{"reply": text, **row} for text, row in zip(REPLIES, asked, strict=True)]
    references = [{"reference": text, **row} for text, row in zip(REFERENCES, asked, strict=True)]
    predictions, turned = write(tmp_path / "p.jsonl", replies), write(tmp_path / "r.csv", references[::-1])
    with caplog.at_level("INFO", "bnbench"):
        found = score_files(predictions, [turned], metrics=["chrF++"])
    assert found.results["chrF++"].scores == whole["chrF++"].scores
    assert "joined to the replies by বার্তা" in caplog.text


def test_the_same_messages_join_files_whatever_each_calls_them(tmp_path, whole, caplog):
    """The columns message and বার্তা hold the same texts; a number or a text that is scored names no row."""
    n, right = range(len(REPLIES)), whole["chrF++"].scores
    told = [{"message": m, "reply": r, "n": str(i)} for i, m, r in zip(n, MESSAGES, REPLIES, strict=True)]
    asked = [{"no": str(i), "বিষয়": "মন", "বার্তা": m, "উত্তর": r} for i, m, r in zip(n, MESSAGES, REFERENCES, strict=True)]
    turned = [{**row, "no": str(i)} for i, row in enumerate(asked[::-1])]
    predictions, references = write(tmp_path / "p.jsonl", told), write(tmp_path / "r.csv", turned)
    options = {"metrics": ["chrF++"], "quiet": True}
    with caplog.at_level("INFO", "bnbench"):
        assert (
            score_files(predictions, [references], columns={"reference": "উত্তর"}, **options).results["chrF++"].scores
            == right
        )
    assert f"{references}: reference from উত্তর, joined to the replies by message, there বার্তা" in caplog.text
    assert (
        f"{predictions}: message from message, joined to the replies row by row, as they are of one file" in caplog.text
    )
    # Or it is the references' file that calls them by a usual name, or a file of messages, or one of plain lines.
    own = write(tmp_path / "o.csv", [{"কথা": row["message"], "reply": row["reply"]} for row in told])
    usual = write(tmp_path / "u.csv", [{"question": row["বার্তা"], "reference": row["উত্তর"]} for row in turned])
    assert score_files(own, [usual], **options).results["chrF++"].scores == right
    for messages in (
        write(tmp_path / "m.txt", MESSAGES[::-1]),
        write(tmp_path / "m.csv", [{"prompt": m} for m in MESSAGES[::-1]]),
    ):
        found = score_files(own, messages=messages, metrics=["relevance"], quiet=True)
        assert (
            found.results["relevance"].scores
            == score_files(own, columns={"message": "কথা"}, metrics=["relevance"]).results["relevance"].scores
        )
    # Numbers of another name, and replies and references, join nothing.
    caplog.clear()
    bare = [{"n": row["n"], "reply": row["reply"], "prediction": row["message"]} for row in told]
    score_files(write(tmp_path / "b.csv", bare), [references], columns={"reference": "উত্তর"}, **options)
    assert (
        "line by line: no ids, and no messages that are the same in both, each once, tell whose is whose" in caplog.text
    )


def test_a_column_is_named_as_whichever_file_has_it(tmp_path, whole):
    told, asked = beside("reply", REPLIES), [{"বার্তা": m, "উত্তর": r} for m, r in zip(MESSAGES, REFERENCES, strict=True)]
    predictions, references = write(tmp_path / "p.jsonl", told), write(tmp_path / "r.csv", asked[::-1])
    for name in ("message", "question"):  # what evaluate calls it
        found = score_files(predictions, [references], columns={"reference": "উত্তর", name: "বার্তা"}, quiet=True)
        assert found.results["chrF++"].scores == whole["chrF++"].scores
    for name in ("message", "title", "id"):
        with pytest.raises(
            CorpusError,
            match=r"no file has a column 'নেই'; there are message, reply, বার্তা, উত্তর|r\.csv: there is no column 'নেই'",
        ):
            score_files(predictions, [references], columns={"reference": "উত্তর", name: "নেই"})


def test_messages_that_contradict_how_files_are_joined_are_refused(tmp_path, caplog):
    asked = [MESSAGES[1], *MESSAGES[1:]]  # one stands twice, so that they do not join
    predictions = write(tmp_path / "p.csv", beside("reply", REPLIES, asked))
    references = write(tmp_path / "r.csv", beside("reference", REFERENCES, asked))
    with caplog.at_level("INFO", "bnbench"):
        assert score_files(predictions, [references], metrics=["chrF++"]).n == len(REPLIES)
    assert "joined to the replies line by line, as their messages are" in caplog.text
    turned = write(tmp_path / "t.csv", beside("reference", REFERENCES[::-1], asked[::-1]))
    for profile in ("bnbench", "original"):
        with pytest.raises(
            CorpusError, match=r"p\.csv, line \d+: its message is not that of the row of the same place in"
        ):
            score(predictions, [turned], profile=profile)
    with pytest.raises(
        CorpusError, match=r"p\.csv, line 2: its message .* same place in .*m\.txt, where it stands else"
    ):
        score_files(predictions, messages=write(tmp_path / "m.txt", asked[::-1]))
    # Ids that number each file's own rows are no names of messages.
    rows = [
        [{"id": i, **row} for i, row in enumerate(rows)]
        for rows in (beside("reply", REPLIES), beside("reference", REFERENCES)[::-1])
    ]
    numbered = [write(tmp_path / f"{i}.csv", own) for i, own in enumerate(rows)]
    with pytest.raises(
        CorpusError, match=r"line 2: its message is not that of the row of the same id in .*the same id in both"
    ):
        score_files(numbered[0], [numbered[1]])


def test_files_in_which_nothing_can_be_compared_are_joined_by_line_and_that_is_said(tmp_path, whole, caplog):
    predictions = write(tmp_path / "p.csv", beside("reply", REPLIES, [f"প্রশ্ন: {m}" for m in MESSAGES]))
    for name, references in (
        ("none", [{"reference": r} for r in REFERENCES]),
        ("blank", beside("reference", REFERENCES, [""] * len(REFERENCES))),
        ("other", beside("reference", REFERENCES, ["আর কোথাও নেই", *MESSAGES[1:]][::-1])),
    ):
        caplog.clear()
        path = write(tmp_path / f"{name}.csv", references)
        found = score_files(predictions, [path], metrics=["chrF++"], quiet=True)
        assert found.results["chrF++"].scores == whole["chrF++"].scores
        told = "joined to the replies line by line: no ids, and no messages that are the same in both"
        assert f"{path}: reference from reference, {told}" in caplog.text
        assert sum(record.levelname == "WARNING" for record in caplog.records) == 1
        with pytest.raises(
            CorpusError, match="neither a column 'id' nor messages in both join them, files must be equal"
        ):
            score_files(predictions, [write(path, references[1:])])


def test_a_run_folder_s_files_give_the_run_s_scores(tmp_path):
    from bnbench.evaluate import EvaluationRequest, evaluate
    from bnbench.models.candidates import parse_candidates
    from bnbench.records import read_run

    named = [{"id": e.id, "reply": reply} for e, reply in zip(EXAMPLES, REPLIES, strict=True)]
    recorded = write(tmp_path / "replies.jsonl", named)
    candidates = parse_candidates(None, (), [f"ক={recorded}"])
    run = read_run(evaluate(EvaluationRequest(candidates=candidates, out=tmp_path / "run", quiet=True)))
    examples, generations = tmp_path / "run" / "examples.jsonl", tmp_path / "run" / "generations.jsonl"
    made = score_files(generations, [examples], messages=examples, quiet=True)
    order = [[e["id"] for e in run.examples].index(row["id"]) for _, row in iter_table(generations)]
    for name in ("chrF++", "ROUGE", "keyword-empathy"):
        assert np.array_equal(made.results[name].table, run.tables["ক"][name][order])


def test_several_references_in_a_list_or_in_several_files(tmp_path):
    others = REFERENCES[::-1]
    replies = write(tmp_path / "replies.jsonl", column("prediction", REPLIES))
    both = [list(pair) for pair in zip(REFERENCES, others, strict=True)]
    whole = evaluate_pairs(REPLIES, both, ["BLEU", "chrF++"])
    for ending in (".jsonl", ".parquet"):
        listed = write(tmp_path / f"both{ending}", column("references", both))
        assert same(score_files(replies, [listed], metrics=["BLEU", "chrF++"], quiet=True), whole)
    first = write(tmp_path / "first.txt", REFERENCES)
    second = write(tmp_path / "second.csv", column("Answers", others))
    assert same(score_files(replies, [first, second], metrics=["BLEU", "chrF++"], quiet=True), whole)


def test_two_processes_give_the_same(tmp_path, whole, capfd):
    replies, references = write(tmp_path / "p.txt", REPLIES), write(tmp_path / "r.txt", REFERENCES)
    scores = score_files(replies, [references], messages=write(tmp_path / "m.txt", MESSAGES), workers=2)
    assert same(scores, whole)
    assert f"score: {len(REPLIES)}/{len(REPLIES)}" in capfd.readouterr().err


class Fatal(Metric):
    """Ends the process that unpickles it."""

    name, columns, values, description = "fatal", ("n",), ("fatal",), ""

    def statistics(self, texts):
        return np.ones((len(texts), 1))

    def formula(self, sums):
        return sums

    def signature(self, n):
        return "fatal"

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_dies_is_one_clear_line(tmp_path):
    replies = write(tmp_path / "p.txt", REPLIES)
    assert score_files(replies, metrics=[Fatal()], quiet=True).results["fatal"].value == len(REPLIES)
    with pytest.raises(BnbenchError, match="a process that scored died"):
        score_files(replies, metrics=[Fatal()], workers=2, quiet=True)


def test_long_texts_are_scored_fewer_at_a_time(tmp_path, whole, monkeypatch):
    sizes = []
    monkeypatch.setattr(scoring, "_PART_CHARACTERS", 500)
    monkeypatch.setattr(
        scoring,
        "evaluate_stream",
        lambda parts, *a, **k: sizes.extend(map(len, parts := list(parts))) or evaluate_stream(parts, *a, **k),
    )
    replies, references = write(tmp_path / "p.txt", REPLIES), write(tmp_path / "r.txt", REFERENCES)
    scores = score_files(replies, [references], metrics=["ROUGE"], quiet=True)
    assert same(scores, {"ROUGE": whole["ROUGE"]})
    assert sum(sizes) == len(REPLIES)
    assert max(sizes) < 10


def test_a_single_name_where_a_list_is_meant(tmp_path):
    replies = write(tmp_path / "p.txt", REPLIES)
    with pytest.raises(InputError, match="references is one path; give a list"):
        score_files(replies, replies)
    with pytest.raises(InputError, match="metrics is one string; give a list"):
        score_files(replies, [replies], metrics="BLEU")


def test_names_of_columns(tmp_path, whole):
    mapping = {"reply": "লেখা", "reference": "উত্তর", "message": "বার্তা", "id": "key"}
    replies = write(tmp_path / "p.jsonl", [{"key": i, "লেখা": t} for i, t in zip(IDS, REPLIES, strict=True)])
    found = zip(IDS, REFERENCES, MESSAGES, strict=True)
    rest = write(tmp_path / "r.csv", [{"key": i, "title": "না", "উত্তর": r, "বার্তা": m} for i, r, m in found][::-1])
    assert same(score_files(replies, [rest], messages=rest, columns=mapping, quiet=True), whole)
    with pytest.raises(CorpusError, match=r"r\.csv: there is no column 'none'; the columns are key, title, উত্তর"):
        score_files(replies, [rest], columns={**mapping, "reference": "none"})
    with pytest.raises(CorpusError, match=r"unknown field 'replies'.*did you mean 'reply'\? the fields are reply"):
        score_files(replies, [rest], columns={"replies": "লেখা"})


def test_without_references_only_what_needs_none(tmp_path):
    replies = write(tmp_path / "p.txt", ["ভালো আছি।", "", "না"])
    scores = score_files(replies, quiet=True)
    assert list(scores.results) == ["degeneration"]
    assert scores.results["degeneration"].scores["empty"] == pytest.approx(100 / 3)
    with pytest.raises(InputError, match="BLEU needs references: give a file of them"):
        score_files(replies, metrics=["BLEU"])
    with pytest.raises(InputError, match="perplexity needs likelihoods: no file gives them"):
        score_files(replies, metrics=["perplexity"])
    with pytest.raises(UsageError, match="did you mean 'ROUGE'"):
        score_files(replies, metrics=["rogue"])
    with pytest.raises(InputError, match="BLEU and BLEU:none: a run has one BLEU"):
        score_files(replies, [replies], metrics=["BLEU", "bleu:none"])
    assert list(score_files(replies, metrics=["diversity", "Diversity"], quiet=True).results) == ["diversity"]


@pytest.mark.parametrize("ending", [".csv", ".txt", ".jsonl", ".parquet"])
def test_empty_replies_keep_their_place(ending, tmp_path):
    texts = ["", "খ", "", "ঘ", ""]
    references = write(tmp_path / "r.txt", [text or "ক" for text in texts])
    replies = write(tmp_path / f"p{ending}", texts if ending == ".txt" else [{"reply": t} for t in texts])
    result = score_files(replies, [references], metrics=["ROUGE"], quiet=True).results["ROUGE"]
    assert result.per_item.tolist() == [0, 100, 0, 100, 0]


def test_a_blank_reference_is_no_reference(tmp_path):
    replies, references = write(tmp_path / "p.txt", REPLIES), write(tmp_path / "r.txt", REFERENCES)
    metrics = ["BLEU", "chrF++", "ROUGE"]
    whole = evaluate_pairs(REPLIES, REFERENCES, metrics)
    blank = write(tmp_path / "blank.txt", ["", " \u00a0\t", "\u200b", "\ufeff \u200c"] * (len(REPLIES) // 4))
    for order in ([references, blank], [blank, references], [blank, references, blank]):
        assert same(score_files(replies, order, metrics=metrics, quiet=True), whole)
    some = [r if i % 3 else "" for i, r in enumerate(REFERENCES[::-1])]
    in_lists = write(
        tmp_path / "lists.jsonl", column("reference", [list(p) for p in zip(REFERENCES, some, strict=True)])
    )
    several = evaluate_pairs(REPLIES, [[a, b] if b else [a] for a, b in zip(REFERENCES, some, strict=True)], metrics)
    assert same(score_files(replies, [in_lists], metrics=metrics, quiet=True), several)
    assert same(score_files(replies, [references, write(tmp_path / "some.txt", some)], metrics=metrics), several)
    for files in ([write(tmp_path / "some.txt", some)], [blank, tmp_path / "some.txt"]):
        with pytest.raises(
            CorpusError, match=r"p\.txt, line 1: the reference of this reply is blank in .*some\.txt; write"
        ):
            score_files(replies, files, quiet=True)


def test_columns_beside_the_replies_are_taken_and_named(tmp_path, whole, caplog):
    titled = [(e.title, e.question) for e in EXAMPLES]
    rows = [
        {"id": i, "title": t, "question": q, "reference": r, "reply": p}
        for i, (t, q), r, p in zip(IDS, titled, REFERENCES, REPLIES, strict=True)
    ]
    path = write(tmp_path / "p.csv", rows)
    with caplog.at_level("INFO", "bnbench"):
        assert same(score_files(path, quiet=True), whole)
    assert f"{path}: message from title and question, id from id, joined to the replies by id" in caplog.text
    usual = {name: name for name in ("reply", "reference", "title", "id")} | {"message": "question"}
    assert same(score_files(path, columns=usual, quiet=True), whole)
    assert same(score_files(path, columns={"message": "question"}, quiet=True), whole)
    for label in (1, True, "0", "", None):  # is no reference
        labelled = write(tmp_path / "l.jsonl", [{"reply": "ভালো আছি।", "label": label}])
        assert list(score_files(labelled, quiet=True).results) == ["degeneration"]
    answers = write(
        tmp_path / "a.csv", [{"question": "কেমন আছ?", "answer": "ভালো আছি।"}]
    )  # one column is not two things
    assert "chrF++" not in score_files(answers, quiet=True).results


def test_all_that_is_missing_is_named_at_once(tmp_path):
    path = write(tmp_path / "p.csv", [{"ক": "১", "খ": "২"}])
    with pytest.raises(
        CorpusError, match=r"no column holds a reply.*; .*no column holds a reference.*; .*holds a message"
    ):
        score_files(path, [path], messages=path)
    with pytest.raises(CorpusError, match=r"there is no column 'x'; .* there is no column 'y'"):
        score_files(path, columns={"reply": "x", "reference": "y"})


REPLY = '{"id": "ক", "reply": "ভালো"}\n{"id": "খ", "reply": "না"}\n'
REFERENCE = '{"id": "ক", "reference": "ভালো"}\n{"id": "খ", "reference": "না"}\n'


@pytest.mark.parametrize(
    ("replies", "references", "message"),
    [
        (REPLY, None, "r.jsonl: no such file"),
        ("", REFERENCE, "p.jsonl: the file has no rows"),
        (
            REPLY,
            '{"id": "ক"}\n',
            "r.jsonl: no column holds a reference; the columns are id. Name the right one with --columns reference",
        ),
        ('{"text": "ভালো"}\n', REFERENCE, "p.jsonl: no column holds a reply; the columns are text"),
        ('{"id": 2, "reply": "ক"}\n{"id": 1}\n', REFERENCE, "p.jsonl, line 2: the row has no 'reply'"),
        ('{"reply": "ক"}\n\n{"reply": ["খ"]}\n', REFERENCE, "p.jsonl, line 3: 'reply' is list, not text"),
        ('{"reply": "ক"}\n{"reply": NaN}\n', REFERENCE, "p.jsonl, line 2: 'reply' is float, not text"),
        ('{"reply": "ক"}\n{oops\n', REFERENCE, "p.jsonl, line 2: not JSON"),
        ('{"reply": "ক"}\n' + "[" * 100_000 + "\n", REFERENCE, "p.jsonl, line 2: not JSON (nested too deeply)"),
        (REPLY, '{"reference": "ক"}\n{"reference": null}\n', "r.jsonl, line 2: the row has no 'reference'"),
        (REPLY, '{"reference": "ক"}\n{"reference": []}\n', "r.jsonl, line 2: 'reference' is an empty list"),
        (REPLY, '{"reference": ["ক", 7]}\n{"reference": ["ক", ["খ"]]}\n', "r.jsonl, line 2: 'reference' is list"),
        (REPLY, '{"reference": "ক"}\n', "p.jsonl has 2 rows and"),
        (
            '{"message": "কেমন আছ?", "reply": "ভালো"}\n{"message": "ঘুম আসে না", "reply": "শুনছি"}\n',
            '{"message": "কেমন আছ?", "reference": "ভালো আছি"}\n',
            "p.jsonl, line 2 is not in",
        ),
        (REPLY, REFERENCE.replace('"খ"', '"গ"'), "p.jsonl, line 2: the id 'খ' is not in"),
        (REPLY, REFERENCE.replace('"খ"', '"ক"'), "r.jsonl, line 2: the id 'ক' occurs a second time"),
        (REPLY.replace('"খ"', '"ক"'), REFERENCE, "p.jsonl, line 2: the id 'ক' occurs a second time"),
        (REPLY, REFERENCE + '{"id": "গ", "reference": "না"}\n', "1 of the 3 references in"),
        (REPLY, REFERENCE.replace('"খ"', "null"), "r.jsonl, line 2: the row has no 'id'"),
        (REPLY.replace('"খ"', '"ক"'), REFERENCE.replace('"খ"', '"ক"'), "r.jsonl, line 2: the id 'ক' occurs a second"),
    ],
)
def test_what_cannot_be_joined_is_one_clear_line(replies, references, message, tmp_path):
    (tmp_path / "p.jsonl").write_text(replies, encoding="utf-8")
    if references is not None:
        (tmp_path / "r.jsonl").write_text(references, encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        score_files(tmp_path / "p.jsonl", [tmp_path / "r.jsonl"], quiet=True)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "the file is empty"),
        (
            "a.txt",
            "ভালো\n\xff".encode("latin-1", "ignore") + b"ok\n\xff\n",
            "line 2: not UTF-8 (byte 0xff, ÿ in Windows-1252)",
        ),
        ("a.csv", b"reply\nok\n\xe0\xa6\n", "line 3: not UTF-8 (byte 0xe0)"),
        ("a.csv", b"reply\n", "the file has no rows"),
        ("a.json", b'["ok"]', "row 1: a JSON str; the file must hold one list of objects"),
        ("a.json", b"null", "row 1: a JSON NoneType; the file must hold one list of objects"),
        ("a.json", b'{"samples": 3}', "row 1: a JSON int; the file must hold one list of objects"),
        ("a.json", b'[{"reply": "ok"},\n{oops]', "not JSON (Expecting"),
        ("a.json", b'{"reply": "ok"}\nno\n', "line 2: not JSON"),
        ("a.jsonl", b'{"reply": "ok"}\n{"id": 1, "reply": "ok", "id": 2}\n', "line 2: the key 'id' stands twice"),
        ("a.json", b'[{"reply": "ok"},\n{"reply": {"x": 1, "x": 7}}]', "a.json: the key 'x' stands twice in one"),
        (
            "a.json",
            b'[{"id": 0, "reply": "ok"}, {"reply": 1, "id": []}, {"id": 2, "reply": {}}]',
            "row 3: 'reply' is dict, not text",
        ),
        ("a.ndjson", b'{"id": "ok"}', "no column holds a reply"),
        ("a.parquet", b"no", "not a readable Parquet file"),
        ("folder", None, "a folder; name a file in it"),
        ("folder.csv", None, "a folder; name a file in it"),
        ("a.csv", "reply\nভালো\n".encode("utf-16"), "the file is UTF-16; save it as UTF-8"),
        ("a.txt", "\ufeffভালো".encode("utf-16-be"), "the file is UTF-16"),
        ("a.csv", b"reply\n\x93ok\x94\n", "line 2: not UTF-8 (byte 0x93, “ in Windows-1252); save the file as UTF-8"),
        ("a.csv", gzip.compress(b"reply\nok\n", mtime=0), "compressed (gzip); unpack it first, or let its name end"),
        ("a.csv.gz", gzip.compress(b"reply\nok\n" * 99, mtime=0)[:30], "not a whole gzip file"),
        ("a.txt.gz", b"ok\n", "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"reply": "\xff"}\n', mtime=0), "line 1: not UTF-8 (byte 0xff"),
        ("a.xlsx", b"PK\x03\x04\xff\xff", "not a readable workbook"),
        ("a.csv", b"id,reply,reply\n1,ok,ok\n", "two columns are called 'reply'"),
        ("a.jsonl", b'[{"reply": "ok"},\n{"reply": "ok"}]\n', "line 1: not JSON (Expecting"),
        ("a.jsonl", b'[{"reply": "ok"}]\n', "line 1: a JSON list; each line must hold one whole object"),
        ("a.jsonl", b'{"reply": "ok", "id": 1' + b"0" * 5000 + b"}\n", "line 1: not JSON (Exceeds the limit"),
        ("a.jsonl", b'{"reply": "ok"}\n{"reply": null}\n', "line 2: the row has no 'reply' (null) or ends early; "),
    ],
)
def test_files_that_cannot_be_read_are_one_clear_line(name, content, message, tmp_path):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        score_files(path, quiet=True)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_lone_surrogates_in_texts_and_ids(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "\\ud800", "reply": "\\ud83d ক"}\n{"id": "2", "reply": "খ"}\n')
    (tmp_path / "r.jsonl").write_text('{"id": "2", "reference": "খ"}\n{"id": "\\ud800", "reference": "\\udc00 ক"}\n')
    result = score_files(tmp_path / "p.jsonl", [tmp_path / "r.jsonl"], metrics=["ROUGE"], quiet=True).results["ROUGE"]
    assert result.per_item.tolist() == [100, 100]


def test_lines_end_at_line_feeds_only_and_a_bom_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffএক\u2028দুই\r\n\x0bতিন\n\n".encode())
    assert list(iter_lines(path)) == ["এক\u2028দুই", "\x0bতিন", ""]


def test_rows_of_a_table_know_where_they_stand(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\ufeffreply,x\n"এক\nদুই",1\n\n"",""\nতিন\n', encoding="utf-8")
    assert list(iter_table(path)) == [
        (3, {"reply": "এক\nদুই", "x": "1"}),
        (5, {"reply": "", "x": ""}),
        (6, {"reply": "তিন", "x": None}),
    ]
    rows = write(tmp_path / "a.parquet", [{"reply": str(i), "other": i} for i in range(2500)])
    assert list(iter_table(rows, ["reply"]))[-1] == (2500, {"reply": "2499"})
    assert list(iter_table(rows))[7] == (8, {"reply": "7", "other": 7})


def test_a_combined_score_stands_beside_its_parts(tmp_path):
    replies, references = write(tmp_path / "p.txt", REPLIES), write(tmp_path / "r.txt", REFERENCES)
    messages = write(tmp_path / "m.txt", MESSAGES)
    weights = {"BLEU": 1, "keyword-empathy": 3}
    made = score(replies, [references], messages=messages, metrics=["chrF++"], combine=weights)
    assert list(made.results) == ["chrF++", "BLEU", "keyword-empathy", "combined"]
    whole = CombinedScore(weights).score(REPLIES, REFERENCES, messages=MESSAGES)
    assert made.results["combined"].value == pytest.approx(whole.value)
    assert str(made).splitlines()[-1].endswith(str(whole))
    assert made.summary()["metrics"]["combined"]["signature"] == whole.signature
    for changes, says in (
        ({"messages": None}, "keyword-empathy needs messages: give a file of them"),
        ({"combine": {"perplexity": 1}}, "perplexity cannot be part of a combined score"),
        ({"metrics": None, "profile": "original"}, "in one process: leave out combine"),
    ):
        given = {"messages": messages, "metrics": ["chrF++"], "combine": weights, **changes}
        with pytest.raises(UsageError, match=says):
            score(replies, [references], **given)


def test_an_id_that_stands_twice_parts_no_columns_of_one_file(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("id,reply,reference\n1,আমি শুনছি।,আমি শুনছি।\n1,ভালো থাকুন,আমি আছি\n", encoding="utf-8")
    made = score(path, metrics=["chrF++"])
    two = ["আমি শুনছি।", "ভালো থাকুন"], ["আমি শুনছি।", "আমি আছি"]
    assert made.results["chrF++"].value == ChrFPlusPlus().score(*two).value


def test_the_original_s_figures_beside_the_right_ones(tmp_path):
    replies, references = write(tmp_path / "p.txt", REPLIES), write(tmp_path / "r.txt", REFERENCES)
    messages = write(tmp_path / "m.txt", MESSAGES)
    made = score(replies, [references], messages=messages, profile="original")
    assert made == original_scores(REPLIES, REFERENCES, messages=MESSAGES)
    lines = str(made).splitlines()
    assert lines[1].split() == ["BLEU", f"{made.bleu:.4f}", f"{made.corrected['BLEU']:.2f}"]
    assert [line.split()[1] for line in lines[2:5]] == ["0.0000"] * 3
    assert lines[-1].startswith("original|norm:none") and lines[-1].endswith(f"n:{len(REPLIES)}")
    why = "semantic-empathy needs the original's encoder, and combined takes keyword-empathy; original_scores("
    assert lines[-2].startswith(why)
    without = str(original_scores(REPLIES, REFERENCES, lambda texts: [[1.0]] * len(texts))).splitlines()
    assert without[-2] == "keyword-empathy as it should be reads what the replies answer: --messages FILE"
    assert not any(line.startswith(why) for line in without)
    json.dumps(made.summary())
    with pytest.raises(UsageError, match="in one process: leave out metrics, workers"):
        score(replies, [references], metrics=["BLEU"], workers=2, profile="original")
    with pytest.raises(UsageError, match="no profile 'orignal'"):
        score(replies, [references], profile="orignal")
    with pytest.raises(InputError, match="reply 1 has 2 references"):
        score(replies, [references, references], profile="original")


def test_few_replies_are_said_to_be_few(tmp_path):
    for n, is_few in ((2, True), (29, True), (30, False), (1, False)):
        said = str(score(write(tmp_path / f"{n}.jsonl", [{"reply": REPLIES[i % 3]} for i in range(n)])))
        assert (f"\n{n} replies: too few to trust the intervals; of 10 or 20 items" in said) == is_few


PEAK = """
import sys
import numpy as np
from bnbench.metrics import Metric
from bnbench.score import score_files

class Length(Metric):
    name, columns, values, description = "length", ("characters",), ("length",), ""
    def statistics(self, texts):
        return np.array([[len(reply)] for reply in texts.replies], dtype=float)
    def formula(self, sums):
        return sums
    def signature(self, n):
        return "length"

print(score_files(sys.argv[1], [sys.argv[2]], metrics=[Length()], quiet=True).results["length"].value)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
def test_memory_does_not_grow_with_the_files(tmp_path):
    """Of files whose ids stand in another order too only the ids are held, and not the texts."""

    def peak(n):
        texts = [f"{i} " + "কথা মন আশা রাত দিন " * 160 for i in range(n)]
        rows = [{"id": str(i), "reply": text, "reference": text} for i, text in enumerate(texts)]
        files = [write(tmp_path / f"{n}.jsonl", rows), write(tmp_path / f"{n}.parquet", rows[::-1])]
        command = [sys.executable, "-c", PEAK, *files]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        length, kilobytes = done.stdout.split()
        assert float(length) == sum(map(len, texts))
        return files[0].stat().st_size // 1024, int(kilobytes)

    (small, before), (large, after) = peak(2_000), peak(8_000)
    assert after - before < (large - small) / 10


def test_thoughts_are_cut_and_counted(tmp_path):
    loud = [f"<think>ভাবি {i}</think>\n{reply}" if i % 2 else reply for i, reply in enumerate(REPLIES)]
    write(tmp_path / "loud.jsonl", [{"reply": text} for text in loud])
    write(tmp_path / "plain.txt", REPLIES)
    write(tmp_path / "references.txt", REFERENCES)
    made = [
        score(tmp_path / name, [tmp_path / "references.txt"], metrics=["chrF++"])
        for name in ("loud.jsonl", "plain.txt")
    ]
    assert made[0].results["chrF++"].value == made[1].results["chrF++"].value
    assert f"{len(REPLIES) // 2} of {len(REPLIES)} replies think aloud" in str(made[0]) and "think" not in str(made[1])
    write(tmp_path / "references.txt", [f"<think>ভাবি</think> {text}" for text in REFERENCES])
    both = score(tmp_path / "plain.txt", [tmp_path / "references.txt"], metrics=["chrF++"])
    assert both.results["chrF++"].value == made[1].results["chrF++"].value
    assert f"{len(REFERENCES)} of {len(REFERENCES)} references think aloud" in str(both)


def test_which_of_two_columns_of_replies_is_read_is_said(tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", [{"prediction": "ক", "reply": "খ", "answer": "গ"}])
    TextFile.of(path, "reply", {})
    assert caplog.messages == [f"{path}: the replies are read from reply, not from prediction"]
    TextFile.of(path, "reply", {"reply": "prediction"})
    assert len(caplog.messages) == 1


SAID = [e.question for e in EXAMPLES]


def pair_of_files(folder, reply, reference):
    """Replies that are the references, so that 100 is right, beside these columns, and the references beside those."""
    n = range(8)
    replies = [{**{name: texts[i] for name, texts in reply.items()}, "reply": REFERENCES[i]} for i in n]
    order = reference.pop("order", list(n))
    references = [{**{c: texts[i] for c, texts in reference.items()}, "reference": REFERENCES[i]} for i in order]
    return write(folder / "p.csv", replies), write(folder / "r.csv", references)


def chrf(predictions, references, **columns):
    found = score_files(predictions, [references], columns=columns, metrics=["chrF++"], quiet=True)
    return next(iter(found.results["chrF++"].scores.values()))


FEELINGS = ["দুঃখ", "রাগ", "ভয়", "লজ্জা", "আনন্দ", "ঘৃণা", "বিস্ময়", "হতাশা"]
TURNED = [3, 5, 1, 7, 0, 2, 6, 4]


@pytest.mark.parametrize(
    ("reply", "reference"),
    [
        ({"ধরা_পড়েছে": FEELINGS}, {"আসলে": FEELINGS[::-1]}),
        ({"ধরা_পড়েছে": FEELINGS, "কথা": SAID}, {"আসলে": FEELINGS[::-1], "বার্তা": SAID, "order": TURNED}),
        ({"যিনি": FEELINGS, "কথা": SAID}, {"যিনি": FEELINGS[::-1], "কথা": SAID, "order": TURNED}),
        ({"কথা": ["😢😢", *SAID[1:]]}, {"বার্তা": ["😢😢", *SAID[1:]], "order": TURNED}),
    ],
    ids=["labels-of-other-names", "messages-behind-labels", "messages-behind-a-name", "no-letter-in-the-first"],
)
def test_labels_name_no_rows(tmp_path, reply, reference):
    predictions, references = pair_of_files(tmp_path, reply, dict(reference))
    assert chrf(predictions, references) == pytest.approx(100)


@pytest.mark.parametrize(
    ("reply", "reference", "says"),
    [
        ({"ক্রম": FEELINGS}, {"ক্রম": FEELINGS[::-1]}, "the order of the lines joins .* otherwise than ক্রম"),
        (
            {"নং": list("12345678"), "কথা": [SAID[0], *SAID[:7]]},
            {"নং": list("12345678"), "কথা": [SAID[0], *SAID[:7]][::-1]},
            "the order of the lines joins .* otherwise than কথা",
        ),
        (
            {"id": list("12345678"), "কথা": SAID[:8]},
            {"id": list("12345678"), "কথা": SAID[:8][::-1]},
            "id joins .* otherwise than কথা",
        ),
        (
            {"আগের": SAID[8:16], "কথা": SAID[:8]},
            {"আগের": SAID[8:16][::-1], "কথা": SAID[:8]},
            "আগের joins .* otherwise than কথা",
        ),
    ],
    ids=["a-rank", "one-message-twice", "ids-are-row-numbers", "two-columns"],
)
def test_columns_that_contradict_each_other_are_refused(tmp_path, reply, reference, says):
    predictions, references = pair_of_files(tmp_path, reply, reference)
    with pytest.raises(CorpusError, match=rf"p\.csv: {says} does; name the column"):
        chrf(predictions, references)
    if says.startswith("আগের"):
        assert chrf(predictions, references, message="কথা") == pytest.approx(100)


def test_messages_that_differ_are_told_however_files_are_joined(tmp_path, caplog):
    """One message that both files hold does not speak for the others."""
    mine = [MESSAGES[0], *(f"প্রশ্ন: {message}" for message in MESSAGES[1:])]
    replies = write(tmp_path / "p.jsonl", beside("reply", REPLIES, mine))
    score_files(replies, [write(tmp_path / "line.jsonl", beside("reference", REFERENCES))], quiet=True)
    told = f"line by line, though the messages of {len(REPLIES) - 1} of {len(REPLIES)} rows are not the same"
    assert [r.levelname for r in caplog.records if told in r.getMessage()] == ["WARNING"]
    named = [{"id": i, **row} for i, row in zip(IDS, beside("reply", REPLIES, MESSAGES[::-1]), strict=True)]
    other = [{"id": i, **row} for i, row in zip(IDS, beside("reference", REFERENCES, mine), strict=True)]
    other[0]["message"] = "আর কোথাও নেই"
    caplog.clear()
    score_files(write(tmp_path / "n.jsonl", named), [write(tmp_path / "o.jsonl", other)], quiet=True)
    told = f"by id, though the messages of {len(REPLIES)} of {len(REPLIES)} rows are not the same"
    assert [r.levelname for r in caplog.records if told in r.getMessage()] == ["WARNING"]


def test_a_blank_first_reference_is_a_blank_reference(tmp_path):
    for row in ({"reference": ""}, {}):
        rows = beside("reply", REPLIES)
        rows = [rows[0] | row, *(r | {"reference": t} for r, t in zip(rows[1:], REFERENCES[1:], strict=True))]
        with pytest.raises(CorpusError, match=r"line 1: the (reference of this reply is blank|row has no 'reference')"):
            score_files(write(tmp_path / "p.jsonl", rows), quiet=True)
