"""Chat data and other tools' files: the last exchange of each row, whatever form it has."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bnbench.data.corpus import Example, load_corpus
from bnbench.data.files import iter_table
from bnbench.errors import CorpusError
from bnbench.score import score_files

ASKED = ["মন ভালো নেই।", "ঘুম আসে না।", "চাকরি চলে গেছে।"]
ANSWERED = ["কী হয়েছে, আমাকে বলো।", "কী নিয়ে ভাবছ রাতে?", "খুব কঠিন সময় যাচ্ছে তোমার।"]
SYSTEM = "তুমি একজন সহায়ক"


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*texts: str | None, roles: Sequence[str] = ("user", "assistant"), role: str = "role") -> list[dict[str, Any]]:
    """Texts of two speakers by turns."""
    text = "content" if role == "role" else "value"
    return [{role: roles[i % len(roles)], text: said} for i, said in enumerate(texts)]


def last(path: Path, **columns: str) -> list[tuple[str, str]]:
    """Question and reference of the examples in the order of their rows."""
    return [(row.example.question, row.example.reference) for row in load_corpus(path, columns=columns).rows]


def message(asked: str, answered: str) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": SYSTEM}, *turns(asked, answered)]}


FORMS = {
    "messages": message,
    "sharegpt": lambda q, a: {"conversations": turns(q, a, roles=("human", "gpt"), role="from")},
    "parts": lambda q, a: {"messages": turns([{"type": "text", "text": q}, {"type": "image"}], [{"text": a}])},  # type: ignore[arg-type]
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a, "system": SYSTEM},
    "texts": lambda q, a: {"prompt": q, "completion": a},
    "lists": lambda q, a: {
        "prompt": [{"role": "system", "content": SYSTEM}, *turns(q)],
        "completion": turns(a, roles=("assistant",)),
    },
    "half": lambda q, a: {"prompt": q, "completion": turns(a, roles=("assistant",))},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_corpus(form: str, tmp_path: Path) -> None:
    pairs = list(zip(ASKED, ANSWERED, strict=True))
    plain = load_corpus(write(tmp_path / "a.jsonl", [{"Questions": q, "Answers": a} for q, a in pairs]))
    rows = [{**FORMS[form](q, a), "split": "test", "id": f"ক{i}"} for i, (q, a) in enumerate(pairs)]
    corpus = load_corpus(write(tmp_path / "b.jsonl", rows))
    assert set(corpus.select("test")) == set(plain.select("all"))
    assert list(corpus.own_ids()) == ["ক0", "ক1", "ক2"]
    (tmp_path / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    assert load_corpus(tmp_path / "c.json").fingerprint == corpus.fingerprint


def test_what_was_said_before_stands_before_the_question(tmp_path: Path) -> None:
    said = ["শোনো", "বলো", ASKED[0], ANSWERED[0]]
    expected = ("ব্যবহারকারী: শোনো\nসহায়ক: বলো\n\nমন ভালো নেই।", ANSWERED[0])
    rows: list[dict[str, Any]] = [
        {"messages": turns(*said)},
        {"messages": turns(*said, "ধন্যবাদ")},  # an unanswered last turn is no part of it
        {"messages": [{"role": "system", "content": SYSTEM}, *turns(*said)]},
    ]
    assert last(write(tmp_path / "a.jsonl", rows)) == [expected] * 3
    history = {"instruction": "মন ভালো", "input": "নেই।", "output": ANSWERED[0], "history": [["শোনো", "বলো"]]}
    assert last(write(tmp_path / "b.jsonl", [history])) == [("ব্যবহারকারী: শোনো\nসহায়ক: বলো\n\nমন ভালো\nনেই।", ANSWERED[0])]
    twice = turns(*said[2:]) + turns("একটু সময় নাও।", roles=("assistant",))
    assert last(write(tmp_path / "c.jsonl", [{"messages": twice}])) == [(ASKED[0], f"{ANSWERED[0]}\nএকটু সময় নাও।")]


def test_rows_without_an_answer_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad: list[Any] = [
        turns(ASKED[0]),
        turns(ANSWERED[0], roles=("assistant",)),
        [],
        None,
        turns(ASKED[0], None),
        [*turns(ASKED[0]), {"role": "tool", "content": "৪২"}, *turns(ANSWERED[0], roles=("assistant",))],
        [{"role": "system", "content": SYSTEM}, *turns(ANSWERED[0], roles=("assistant",))],
    ]
    path = write(tmp_path / "a.jsonl", [message(ASKED[1], ANSWERED[1]), *({"messages": value} for value in bad)])
    with caplog.at_level(logging.INFO, "bnbench"):
        corpus = load_corpus(path)
    assert [e.reference for e in corpus.select("all")] == [ANSWERED[1]]
    assert {s.name: s.dropped for s in corpus.steps if s.dropped} == {"empty": len(bad)}
    assert len(corpus.rows) == 1 + len(bad)  # replies in the order of the file are joined by their places
    assert "read as chat data (messages)" in caplog.text


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": ["মন"]}, "line 2: মন is no turn of a conversation; each has 'role' and 'content'"),
        ({"messages": [{"role": 1, "content": "মন"}]}, "line 2: .* is no turn"),
        ({"messages": [{"role": "user", "content": 7}]}, "line 2: .* is no turn"),
        ({"messages": {"role": "user"}}, "line 2: a list or object where text is needed"),
    ],
)
def test_turns_that_are_none(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=says):
        load_corpus(write(tmp_path / "a.jsonl", [message(ASKED[0], ANSWERED[0]), row]))


def test_a_table_of_texts_stays_one(tmp_path: Path) -> None:
    row = {"Questions": ASKED[0], "Answers": ANSWERED[0], "messages": [{"x": 1}], "instruction": "না", "output": "না"}
    assert last(write(tmp_path / "a.jsonl", [row])) == [(ASKED[0], ANSWERED[0])]
    named = {"লেখা": ASKED[0], "উত্তর": ANSWERED[0], "messages": turns("না", "না")}
    assert last(write(tmp_path / "b.jsonl", [named]), question="লেখা", reference="উত্তর") == [(ASKED[0], ANSWERED[0])]
    assert last(write(tmp_path / "d.jsonl", [{"prompt": ASKED[0], "completion": ANSWERED[0], "label": True}])) == [
        (ASKED[0], ANSWERED[0])
    ]
    history = {"instruction": ASKED[0], "output": ANSWERED[0], "history": ["না"]}
    with pytest.raises(CorpusError, match="line 1: history is no list of pairs"):
        last(write(tmp_path / "c.jsonl", [history]))


def chat_completion(text: str) -> dict[str, Any]:
    choices = [{"message": {"role": "assistant", "content": text}}]
    return {"status_code": 200, "body": {"choices": choices}}


def test_other_tools_predictions_are_scored(tmp_path: Path) -> None:
    pairs = list(zip(ANSWERED, reversed(ANSWERED), strict=True))
    plain = write(tmp_path / "a.jsonl", [{"reply": reply, "reference": reference} for reply, reference in pairs])
    factory = write(tmp_path / "b.jsonl", [{"prompt": "ক", "predict": a, "label": b} for a, b in pairs])
    harness = write(tmp_path / "c.jsonl", [{"resps": [[a]], "filtered_resps": [a], "target": b} for a, b in pairs])
    lines = [{"custom_id": f"r{i}", "response": chat_completion(a)} for i, (a, _) in enumerate(pairs)]
    batch = write(tmp_path / "d.jsonl", lines[::-1])
    answers = write(tmp_path / "e.jsonl", [{"id": f"r{i}", "reference": b} for i, (_, b) in enumerate(pairs)])
    expected = score_files(plain, [plain], metrics=["chrF++"], quiet=True).results["chrF++"].value
    for replies, references in ((factory, factory), (harness, harness), (batch, answers)):
        found = score_files(replies, [references], metrics=["chrF++"], quiet=True).results["chrF++"]
        assert found.value == pytest.approx(expected)
    failed = write(tmp_path / "f.jsonl", [*lines, {"custom_id": "r9", "response": {"status_code": 500, "body": {}}}])
    with pytest.raises(CorpusError, match=r"line 4: the row has no 'response' \(null\)"):
        score_files(failed, quiet=True)
    with pytest.raises(CorpusError, match="line 1: 'filtered_resps' is list, not text"):
        score_files(write(tmp_path / "g.jsonl", [{"filtered_resps": ["ক", "খ"]}]), quiet=True)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('"ভালো আছি, সে বলল\t1\nআছো।\t2\n', [('"ভালো আছি, সে বলল', "1"), ("আছো।", "2")]),
        ('"ভালো" কথাটা\t1\nআছো।\t2\n', [('"ভালো" কথাটা', "1"), ("আছো।", "2")]),
        ('"ভালো\t1\nআছো"\t2\n', [('"ভালো', "1"), ('আছো"', "2")]),  # they would close, but in another row
        ('"ভালো ""আছি"""\t1\n', [('ভালো "আছি"', "1")]),
        ('"ভালো\nআছি"\t1\n', [("ভালো\nআছি", "1")]),
        ("ভালো\n", [("ভালো", "")]),
    ],
)
def test_quotes_in_tsv(text: str, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(f"reply\tn\n{text}", encoding="utf-8")
    assert [tuple(row.values()) for _, row in iter_table(path)] == rows


def test_tsv_in_which_quotes_close_nowhere_and_lines_end_inside_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('reply\tn\n"ভালো\nআছি"\t1\n"না\t2\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"line 2: 1 fields under 2 columns; .*close each quote"):
        list(iter_table(path))


def test_an_example_has_no_more_fields(tmp_path: Path) -> None:
    [example] = load_corpus(write(tmp_path / "a.jsonl", [message(ASKED[0], ANSWERED[0])])).select("all")
    assert isinstance(example, Example) and (example.topic, example.title) == ("", "")
