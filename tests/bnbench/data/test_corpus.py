import csv
import json
import random

import pandas as pd
import pytest

from bnbench.data.corpus import SplitSizes, demo_corpus, load_corpus
from bnbench.errors import CorpusError

HEADER = ("Topics", "Question-Title", "Questions", "Answers")
WORDS = [
    "আমি",
    "তুমি",
    "আজ",
    "কাল",
    "বাড়ি",
    "নদী",
    "মাঠ",
    "বৃষ্টি",
    "রোদ",
    "বই",
    "খাতা",
    "কলম",
    "মা",
    "বাবা",
    "ভাই",
    "বোন",
    "বন্ধু",
    "গান",
    "ছবি",
    "চিঠি",
    "রাত",
    "সকাল",
    "দুপুর",
    "বিকেল",
    "শহর",
    "গ্রাম",
    "পথ",
    "নৌকা",
]


def rows(n, seed=0):
    """n rows of random Bengali words, no two nearly alike."""
    pick = random.Random(seed)
    text = lambda k: " ".join(pick.choice(WORDS) for _ in range(k)) + "।"  # noqa: E731
    return [(pick.choice(WORDS), text(3), text(15), text(25)) for _ in range(n)]


def write_csv(path, data, header=HEADER, encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *data])
    return path


def sides(corpus):
    return {e.id: name for name, part in corpus.splits.items() for e in part}


@pytest.fixture(scope="module")
def many():
    return rows(1000)


def test_sides_do_not_change_when_rows_are_reordered_or_appended(tmp_path, many):
    first = load_corpus(write_csv(tmp_path / "a.csv", many))
    shuffled = random.Random(1).sample(many, len(many))
    again = load_corpus(write_csv(tmp_path / "b.csv", shuffled))
    more = load_corpus(write_csv(tmp_path / "c.csv", rows(200, seed=5) + shuffled))
    assert again.splits == first.splits
    assert again.fingerprint == first.fingerprint != more.fingerprint
    assert {k: v for k, v in sides(more).items() if k in sides(first)} == sides(first)
    assert min(len(part) for part in first.splits.values()) > 30


def test_the_sizes_cap_a_side_and_no_row_changes_sides_for_it(tmp_path, many):
    path = write_csv(tmp_path / "a.csv", many)
    small = load_corpus(path, sizes=SplitSizes(80, 10, 10))
    assert {k: len(v) for k, v in small.splits.items()} == {"train": 80, "validation": 10, "test": 10}
    grown = sides(load_corpus(write_csv(tmp_path / "b.csv", many + rows(500, seed=9)), sizes=SplitSizes(80, 10, 10)))
    assert all(grown.get(i, side) == side for i, side in sides(small).items())


def test_another_seed_splits_otherwise(tmp_path, many):
    path = write_csv(tmp_path / "a.csv", many)
    assert sides(load_corpus(path, seed=42)) != sides(load_corpus(path, seed=43))


def test_every_dropped_row_is_accounted_for(tmp_path):
    good = rows(6)
    data = [
        *good,
        good[0],
        (good[1][0], good[1][1], good[1][2], good[1][3].replace("ড়", "ড\u09bc")),
        ("বিষয়", "", "প্রশ্ন আছে", ""),
        ("বিষয়", "", "প্রশ্ন আছে", "হুম"),
        ("বিষয়", "", "কথাটা হারি\ufffdে গেল", "উত্তর আছে এখানে"),
    ]
    corpus = load_corpus(write_csv(tmp_path / "a.csv", data))
    dropped = {s.name: s.dropped for s in corpus.steps if s.dropped}
    assert dropped["duplicate"] == 1 + ("ড়" in good[1][3])
    assert {k: v for k, v in dropped.items() if k != "duplicate"} == {"lost text": 1, "empty": 1, "too short": 1}
    assert not corpus.is_split
    assert len(corpus.select("test")) == 6


def test_rows_too_long_after_the_template_are_dropped_whole(tmp_path):
    data = rows(20)
    lengths = {}

    def count(examples):
        lengths.update({e.id: 10 + i for i, e in enumerate(examples)})
        return [lengths[e.id] for e in examples]

    corpus = load_corpus(write_csv(tmp_path / "a.csv", data), max_tokens=19, count_tokens=count)
    assert len(corpus.select("all")) == 10
    assert all(lengths[e.id] <= 19 for e in corpus.select("all"))
    assert next(s for s in corpus.steps if s.name == "too long").dropped == 10


def test_no_near_duplicate_crosses_the_split(tmp_path):
    data = [(*row, "train") for row in rows(50)] + [(*row, "test") for row in rows(50, seed=3)]
    topic, title, question, answer, _ = data[0]
    data.append((topic, title, question + " আবার", answer, "test"))
    corpus = load_corpus(write_csv(tmp_path / "a.csv", data, (*HEADER, "split")))
    assert {k: len(v) for k, v in corpus.splits.items()} == {"train": 49, "validation": 0, "test": 51}
    assert corpus.steps[-1].dropped == 1


def test_columns_in_any_order_under_any_name_and_from_any_file(tmp_path):
    data = rows(5)
    expected = set(load_corpus(write_csv(tmp_path / "a.csv", data)).select("all"))
    turned = write_csv(tmp_path / "b.csv", [r[::-1] for r in data], HEADER[::-1])
    assert set(load_corpus(turned).select("all")) == expected
    renamed = [dict(zip(("বিষয়", "t", "message", "reply"), r, strict=True)) for r in data]
    mapping = {"topic": "বিষয়", "title": "t", "question": "message", "reference": "reply"}
    jsonl = tmp_path / "c.jsonl"
    jsonl.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in renamed), encoding="utf-8")
    assert set(load_corpus(jsonl, columns=mapping).select("all")) == expected
    pd.DataFrame(renamed).to_parquet(tmp_path / "d.parquet")
    assert set(load_corpus(tmp_path / "d.parquet", columns=mapping).select("all")) == expected
    only = load_corpus(write_csv(tmp_path / "e.csv", [r[2:] for r in data], HEADER[2:]))
    assert {e.topic + e.title for e in only.select("all")} == {""}


def test_bom_and_mojibake_are_read_as_what_they_were(tmp_path):
    data = rows(5)
    sound = load_corpus(write_csv(tmp_path / "a.csv", data)).select("all")
    show = lambda t: "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in t.encode())  # noqa: E731
    broken = write_csv(tmp_path / "b.csv", [[show(c) for c in r] for r in data], encoding="utf-8-sig")
    corpus = load_corpus(broken)
    assert corpus.select("all") == sound
    assert corpus.steps[0].changed == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("a.docx", b"x", "unknown kind of file"),
        ("empty.csv", b"", "empty"),
        ("header.csv", b"Questions,Answers\n", "no rows"),
        ("columns.csv", b"a,b\n1,2\n", "--columns question=NAME"),
        ("latin.csv", "Questions,Answers\nok,ok\ncaf\xe9,x\n".encode("latin-1"), "line 3: not UTF-8"),
        ("fields.csv", b"Questions,Answers\na,b,c\n", "line 2: 3 fields under 2 columns"),
        ("bad.jsonl", b'{"Questions": "a"}\n{oops\n', "line 2: not JSON"),
        ("a.xlsx", b"x", "save the sheet as CSV in UTF-8"),
        ("a.json", b"[]", "the file has no rows"),
        ("a.csv.gz", b"x", "not a whole gzip file"),
        ("a.csv.zip", b"x", "unpack it first"),
        ("no-bom.csv", "Questions,Answers\nকী?,হুম\n".encode("utf-16-le"), "UTF-16 or no text at all"),
        ("open.csv", 'Questions,Answers\nকী?,"হুম\nক,খ\n'.encode(), "line 3: unexpected end of data; close each quote"),
        ("nested.jsonl", b'{"Questions": "a", "Answers": ["b"]}\n', "a list or object where text is needed"),
        ("side.csv", "Questions,Answers,split\nকী?,কিছু না,foo\nকী,কিছু না,test\n".encode(), "says 'foo' in 1 of 2 rows"),
        ("half.jsonl", '{"Questions": "কী\\ud83d", "Answers": "কিছু না"}'.encode(), "no usable row; 1 lost text"),
        ("nan.jsonl", '{"Questions": NaN, "Answers": "কিছু না"}'.encode(), "no usable row; 1 empty"),
        ("list.jsonl", b"[1]\n", "line 1: a JSON list; each line must hold one whole object"),
        ("bad.parquet", b"not parquet", "not a readable Parquet"),
        ("short.csv", "Questions,Answers\nকী?,হুম\n".encode(), "no usable row; 1 too short"),
    ],
)
def test_bad_files_get_one_clear_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message.replace("(", r"\(")):
        load_corpus(path)


@pytest.mark.parametrize("text", ["", "1/2", "a/b/c", "-1/2/3", "0/0/0", "1/2/3/4"])
def test_split_sizes_that_make_no_sense(text):
    with pytest.raises(CorpusError, match="split sizes"):
        SplitSizes.parse(text)


def test_the_bundled_conversations():
    corpus = demo_corpus()
    assert {k: len(v) for k, v in corpus.splits.items()} == {"train": 160, "validation": 40, "test": 40}
    assert sum(s.dropped + s.changed for s in corpus.steps) == 0
    everything = corpus.select("all")
    assert len({e.topic for e in everything}) >= 30
    assert all(25 <= len(e.reference.split()) <= 90 for e in everything)
    assert len({" ".join(e.reference.split()[:2]) for e in everything}) >= 235
    asked = {e.question for e in corpus.select("test")}
    assert {"আমার বন্ধুর সাথে ঝগড়া হয়ে গেছে। খুব মন খারাপ।", "আমি চাকরি হারিয়েছি। কীভাবে এগিয়ে যাব?"} <= {
        q.replace("\u09dc", "ড়").replace("\u09df", "য়") for q in asked
    }
