"""Chat data and other tools' files: the last exchange of each row, whatever form it has."""

from __future__ import annotations

import json
import logging
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from bnbench.data.chat import without_thoughts
from bnbench.data.corpus import Conversation, Example, load_corpus
from bnbench.data.files import iter_table
from bnbench.data.join import TextFile
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
    "Dolly's": lambda q, a: {"instruction": q, "context": "", "response": a, "category": "ক"},
    "Aya's": lambda q, a: {"inputs": q, "targets": a},
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


def test_turns_are_kept_where_each_can_be_trained_on(tmp_path: Path) -> None:
    said = ["শোনো <|eot_id|>", "<think>হুম</think>বলো", ASKED[0], ANSWERED[0]]
    rows = [
        {"messages": [{"role": "system", "content": SYSTEM}, *turns(*said, "ধন্যবাদ")]},
        {"messages": turns("নমস্কার", *said, roles=("assistant", "user"))},  # the assistant begins
        {"messages": turns(said[0], "<think>হুম</think>", *said[2:])},  # an answer is empty
        {"messages": turns(*said[2:])},
    ]
    examples = [row.example for row in load_corpus(write(tmp_path / "a.jsonl", rows)).rows]
    assert [getattr(e, "turns", ()) for e in examples] == [("শোনো", "বলো", ASKED[0]), (), (), ()]
    assert isinstance(examples[0], Conversation) and examples[0].question.endswith(f"সহায়ক: বলো\n\n{ASKED[0]}")


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


@pytest.mark.parametrize("first", ["messages", "texts"])
@pytest.mark.parametrize("second", ["sharegpt", "alpaca"])
def test_rows_of_two_forms_are_refused(first: str, second: str, tmp_path: Path) -> None:
    made = [FORMS[form](q, a) for form, q, a in zip((first, second), ASKED, ANSWERED, strict=False)]
    with pytest.raises(CorpusError, match=r"a\.jsonl, line \d: it has .* give each form a file of its own"):
        load_corpus(write(tmp_path / "a.jsonl", made))


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


def batch_line(number: int, body: dict[str, Any] | None) -> dict[str, Any]:
    """A line of a batch's output, which has an id of the request beside the user's own."""
    response = {"status_code": 200 if body else 500, "request_id": "ক", "body": body or {"error": {"code": "x"}}}
    return {"id": f"batch_req_{900 - number}", "custom_id": f"r{number}", "response": response, "error": None}


def completion(text: str) -> dict[str, Any]:
    return {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def response(text: str) -> dict[str, Any]:
    said = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    return {"object": "response", "output": [{"type": "reasoning", "summary": []}, said]}


def sample(number: int, asked: Any, answered: str, target: str) -> dict[str, Any]:
    """A sample of inspect's log."""
    output = {"choices": [{"message": {"role": "assistant", "content": answered}}], "completion": answered}
    return {"id": number, "epoch": 1, "input": asked, "target": target, "messages": [], "output": output, "scores": {}}


def zipped(path: Path, samples: Sequence[dict[str, Any]], compression: int) -> Path:
    """inspect's own kind of log; 93 is Zstandard, which `zipfile` does not write everywhere."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compression != 93 else zipfile.ZIP_STORED) as log:
        log.writestr("header.json", "{}")
        for one in samples:
            content = json.dumps(one, ensure_ascii=False).encode()
            if compression == 93:
                content = pyarrow.compress(content, codec="zstd", asbytes=True)
            log.writestr(f"samples/{one['id']}_epoch_1.json", content)
    if compression == 93:  # in the heads of the members, and in the list at the end
        raw = bytearray(path.read_bytes())
        for mark, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            start = raw.find(mark)
            while start >= 0:
                name = raw[start + (30 if at == 8 else 46) :][:8]
                if name == b"samples/":
                    raw[start + at : start + at + 2] = (93).to_bytes(2, "little")
                start = raw.find(mark, start + 4)
        path.write_bytes(bytes(raw))
    return path


def test_other_tools_predictions_are_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = list(zip(ANSWERED, reversed(ANSWERED), strict=True))
    plain = write(tmp_path / "a.jsonl", [{"reply": reply, "reference": reference} for reply, reference in pairs])
    factory = write(
        tmp_path / "b.jsonl",
        [{"prompt": f"user\nক\nassistant\n{i}", "predict": a, "label": b} for i, (a, b) in enumerate(pairs)],
    )
    lines = [
        {"doc_id": i, "target": b, "resps": [[a]], "filtered_resps": [a], "filter": "none"}
        for i, (a, b) in enumerate(pairs)
    ]
    harness = write(tmp_path / "c.jsonl", lines)
    batches = [
        write(
            tmp_path / f"{make.__name__}.jsonl",
            [batch_line(i, make(a)) for i, (a, _) in reversed(list(enumerate(pairs)))],
        )
        for make in (completion, response)
    ]
    answers = write(tmp_path / "e.jsonl", [{"id": f"r{i}", "reference": b} for i, (_, b) in enumerate(pairs)])
    asked: list[Any] = [ASKED[0], turns(ASKED[1]), [{"role": "system", "content": SYSTEM}, *turns(ASKED[2])]]
    samples = [sample(i, q, a, b) for i, (q, (a, b)) in enumerate(zip(asked, pairs, strict=True), 1)]
    logs = [tmp_path / "one.json", tmp_path / "two.json"]
    for log, indent in zip(logs, (None, 2), strict=True):
        log.write_text(
            json.dumps({"version": 2, "samples": samples}, ensure_ascii=False, indent=indent), encoding="utf-8"
        )
    logs += [zipped(tmp_path / f"{kind}.eval", samples[::-1], kind) for kind in (8, 93)]
    expected = score_files(plain, [plain], metrics=["chrF++"], quiet=True).results["chrF++"].value
    for replies, references in (
        (plain, []),
        (factory, []),
        (harness, []),
        *((b, [answers]) for b in batches),
        *((log, []) for log in logs),
    ):
        found = score_files(replies, references, metrics=["chrF++"], quiet=True).results["chrF++"]
        assert found.value == pytest.approx(expected), replies
    for log in logs:
        rows = [texts for _, _, texts in TextFile.of(log, "message", {}).rows()]
        assert sorted(rows) == sorted((q,) for q in ASKED)
    with pytest.raises(CorpusError, match=r"line 4: the id '0' occurs a second time"):  # a document under each filter
        score_files(write(tmp_path / "h.jsonl", [*lines, *({**line, "filter": "ক"} for line in lines)]), quiet=True)
    lines = [batch_line(i, completion(a)) for i, (a, _) in enumerate(pairs)]
    failed = write(tmp_path / "f.jsonl", [*lines, batch_line(9, None)])
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
        ("ভালো\n", [("ভালো", None)]),
    ],
)
def test_quotes_in_tsv(text: str, rows: list[tuple[str, str | None]], tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("<think>\nThe user is sad. আমি ভাবছি।\n</think>\n\nতোমার কষ্টটা বুঝতে পারছি।", "তোমার কষ্টটা বুঝতে পারছি।"),
        ("আচ্ছা।<think>ক</think> তারপর <think>খ</think>শোনো।", "আচ্ছা। তারপর শোনো।"),
        ("আমি ভাবছি কী বলা যায়।</think>\nএকটু জিরিয়ে নাও।", "একটু জিরিয়ে নাও।"),
        ("<think>ভাবতে ভাবতে সময় শেষ", ""),
        ("  ভাবছি <thinking> নিয়ে।", "  ভাবছি <thinking> নিয়ে।"),
        ("", ""),
    ],
)
def test_thoughts_are_no_part_of_a_reply(reply: str, said: str) -> None:
    assert without_thoughts(reply) == said


def test_a_long_reply_without_an_end_of_thought_takes_no_time() -> None:
    begin = time.monotonic()
    assert without_thoughts("think> ক" * 100_000)
    assert time.monotonic() - begin < 5


def test_turns_of_one_conversation_are_one_dialogue(tmp_path: Path) -> None:
    whole = [text for pair in zip(ASKED, ANSWERED, strict=True) for text in pair]
    rows = [{"messages": turns(*whole[:2])}, {"messages": turns(*whole)}, {"messages": turns(*whole[2:4])}]
    first, longer, other = load_corpus(write(tmp_path / "a.jsonl", rows)).rows
    assert first.example.dialogue == longer.example.dialogue != ""
    assert other.example.dialogue == ""
    assert first.example.id == load_corpus(write(tmp_path / "b.jsonl", rows[:1])).rows[0].example.id
    named = [row | {"conversation_id": 7 + i // 2} for i, row in enumerate(rows)]
    assert [r.example.dialogue for r in load_corpus(write(tmp_path / "c.jsonl", named)).rows] == ["7", "7", "8"]
    as_turns = [{"dialogue": row["messages"]} for row in rows]
    assert [bool(r.example.dialogue) for r in load_corpus(write(tmp_path / "d.jsonl", as_turns)).rows] == [1, 1, 0]
