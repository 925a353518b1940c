import csv
import json
import random
import re
import zipfile
from xml.sax.saxutils import escape

import pandas as pd
import pytest

from bnbench.data.corpus import SplitSizes, divide, load_corpus, make_example, write_dropped
from bnbench.errors import CorpusError
from bnbench.metrics.normalization import normalize

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


@pytest.mark.parametrize("kind", ["edited", "few words", "few letters", "many signs"])
def test_near_duplicates_are_those_of_a_comparison_of_each_with_each(kind):
    chance, signs = random.Random(3), [chr(0x4E00 + i) for i in range(8000)]
    demo = [e.reference.split() for e in load_corpus(None).select("all")[:40]] * 6
    parts = [chance.choices(signs, k=90) for _ in range(80)] * 3  # more signs than a 5-gram has exact numbers for
    texts = {
        "edited": [" ".join(chance.choice(WORDS) if chance.random() < 0.06 else w for w in words) for words in demo],
        "few words": [" ".join(chance.choices(WORDS[:3], k=chance.randrange(2, 40))) for _ in demo],
        "few letters": ["".join(chance.choices("কখ", k=chance.randrange(1, 16))) for _ in demo],
        "many signs": ["".join(own[chance.randrange(30) :]) for own in parts],
    }[kind]
    examples = [make_example("", "", text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    examples = list({e.id: e for e in examples}.values())

    def grams(example):
        text = normalize(f"{example.question} {example.reference}")
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    held, others = examples[::4], [e for at, e in enumerate(examples) if at % 4]
    sets = list(map(grams, held))
    near = {e.id for e in others if any(len(a & (b := grams(e))) / len(a | b) >= 0.7 for a in sets)}
    corpus = divide("x", [(e, "test") for e in held] + [(e, "train") for e in others], [], SplitSizes())
    assert {e.id for e in others} - {e.id for e in corpus.splits["train"]} == near
    assert 5 < len(near) < len(others) - 5


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
        ("a.xlsx", b"x", "not a readable workbook"),
        ("a.json", b"[]", "the file has no rows"),
        ("a.json", b"0", "a.json, row 1: a JSON int; the file must hold one list of objects"),
        ("a.json", b'{\n"samples": 5\n}', "a.json, row 1: a JSON int; the file must hold one list of objects"),
        ("a.csv.gz", b"x", "not a whole gzip file"),
        ("a.csv.zip", b"x", "unpack it first"),
        ("no-bom.csv", "Questions,Answers\nকী?,হুম\n".encode("utf-16-le"), "UTF-16, UTF-32 or no text at all"),
        ("wide.csv", "Questions,Answers\nকী?,হুম\n".encode("utf-32"), "the file is UTF-32; save it as UTF-8"),
        ("big.csv", "\ufeffQuestions,Answers\nকী?,হুম\n".encode("utf-32-be"), "the file is UTF-32; save it as UTF-8"),
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


def test_where_nothing_is_short_enough_the_option_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Questions,Answers\nকী?,কিছু না\n", encoding="utf-8")
    for source, called in ((None, "the bundled conversations"), (path, str(path))):
        with pytest.raises(CorpusError) as raised:
            load_corpus(source, max_tokens=1, count_tokens=lambda examples: [2] * len(examples))
        how = r" too long; raise --max-tokens 1 \(finetune: --set max_tokens\)"
        assert re.fullmatch(rf"{re.escape(called)}: no usable row; (.*, )?\d+{how}", str(raised.value))


def test_the_bundled_conversations():
    corpus = load_corpus(None)
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


def test_dropped_rows_are_listed_with_their_reasons(tmp_path):
    good = rows(6)
    topic, title, question, answer = good[2]
    data = [
        *good,
        good[0],
        (topic, title, question, answer + "\u00a0\u00a0আজ"),
        ("বিষয়", "", "প্রশ্ন আছে", ""),
        ("বিষয়", "", "প্রশ্ন আছে", "হুম"),
        ("বিষয়", "", "কথাটা à¦", "উত্তর আছে এখানে"),
    ]
    corpus = load_corpus(write_csv(tmp_path / "a.csv", data))
    write_dropped(corpus, tmp_path / "dropped.csv")
    with (tmp_path / "dropped.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    found = [(row["row"].rpartition(", ")[2], row["what"], row["why"]) for row in listed]
    assert found[0][1:] == ("dropped", "the same row in the same or another spelling")
    assert found[1][:2] == ("line 9", "repaired") and "mojibake" in found[1][2]
    assert [why for _, _, why in found[2:]] == [
        "no question or no answer",
        "an answer of fewer than 2 words",
        "a letter was lost for good",
    ]
    assert (listed[1]["reference"], listed[1]["reference repaired"]) == (answer + "\u00a0\u00a0আজ", answer + " আজ")
    assert listed[4]["question"] == "কথাটা à¦"
    with pytest.raises(CorpusError, match=r"written as \.csv"):
        write_dropped(corpus, tmp_path / "dropped.txt")
    with pytest.raises(FileExistsError):
        write_dropped(corpus, tmp_path / "a.csv")


def test_no_row_that_is_left_out_goes_unnamed(tmp_path):
    data = rows(150)
    data += [(topic, title, question + " আবার", answer) for topic, title, question, answer in data[:50]]
    corpus = load_corpus(write_csv(tmp_path / "a.csv", data), sizes=SplitSizes(80, 10, 10))
    left = {e.id for part in corpus.splits.values() for e in part}
    assert {row.example.id for row in corpus.rows} - left == set(corpus.fell)
    assert {"surplus", "near-duplicate"} == set(corpus.fell.values())
    assert sum(step.dropped for step in corpus.steps) == 200 - len(left) == len(corpus.fell)
    whole = corpus.unsplit()
    assert len(whole.select("test")) == 200 and not sum(step.dropped for step in whole.steps)


def workbook(path, table, merged=""):
    """A workbook as the standard asks for, with texts inside their cells and numbers as numbers."""
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    main, office = "spreadsheetml/2006/main", "officeDocument/2006/relationships"
    ns = "http://schemas.openxmlformats.org/"

    def cell(value):
        return (
            f"<c><v>{value}</v></c>"
            if isinstance(value, int)
            else f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        )

    lines = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in table)
    lines = re.sub('<c t="inlineStr"><is><t>=(.*?)</t></is></c>', r'<c r="B2"><f>\1</f><v/></c>', lines)
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{ns}package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{ns}package/2006/relationships">'
        f'<Relationship Id="r1" Type="{ns}{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{ns}{main}" xmlns:r="{ns}{office}"><sheets>'
        '<sheet name="তথ্য" sheetId="1" r:id="r1"/><sheet name="আর" sheetId="2" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{ns}package/2006/relationships">'
        f'<Relationship Id="r1" Type="{ns}{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{ns}{main}"><sheetData>{lines}</sheetData>{merged}</worksheet>',
    }
    with zipfile.ZipFile(path, "w") as book:
        for name, text in parts.items():
            book.writestr(name, head + text)
    return path


def test_a_workbook_gives_the_same_corpus(tmp_path, caplog):
    data = rows(5)
    sound = load_corpus(write_csv(tmp_path / "a.csv", data))
    table = [("id", *HEADER), ("", "", "", "", ""), *((i + 7, *row) for i, row in enumerate(data))]
    with caplog.at_level("INFO", "bnbench"):
        corpus = load_corpus(workbook(tmp_path / "a.xlsx", table))
    assert corpus.fingerprint == sound.fingerprint
    assert list(corpus.own_ids()) == ["7", "8", "9", "10", "11"]
    assert corpus.rows[0].where == f"{tmp_path / 'a.xlsx'}, row 3"
    assert "its first sheet is read, তথ্য" in caplog.text
    for damage in (b"PK\x03\x04", b""):
        (tmp_path / "b.xlsx").write_bytes(damage)
        with pytest.raises(CorpusError, match=r"b\.xlsx: not a readable workbook"):
            load_corpus(tmp_path / "b.xlsx")


def test_a_hub_data_set_with_a_configuration(tmp_path, monkeypatch):
    # `datasets` reads a folder of that name as it reads the hub.
    folder = tmp_path / "owner" / "name-1.0"
    for name, (_, _, question, answer) in zip(("bn.x", "en"), rows(2), strict=True):
        (folder / name).mkdir(parents=True)
        line = json.dumps({"question": question, "answer": answer}, ensure_ascii=False)
        (folder / name / "a.jsonl").write_text(line, encoding="utf-8")
    listed = [f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("bn.x", "en")]
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(listed) + "---\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [(_, _, question, answer), *_] = rows(2)
    corpus = load_corpus("owner/name-1.0:bn.x")
    assert [(e.question, e.reference) for e in corpus.select("all")] == [(question, answer)]
    with pytest.raises(CorpusError, match=r"owner/name-1\.0:nix: the hub data set cannot be loaded .*'bn\.x', 'en'"):
        load_corpus("owner/name-1.0:nix")
    for typo in ("ownr", "a.csv", "b/none.csv"):
        with pytest.raises(CorpusError, match="no such file"):
            load_corpus(typo)


def test_without_a_network_a_hub_data_set_is_one_line_with_what_to_do(monkeypatch):
    hub, datasets = pytest.importorskip("huggingface_hub"), pytest.importorskip("datasets")

    def away(**_):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", away)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError) as caught:
        load_corpus("owner/name")
    said = "there is no such file, the cache of `datasets` has no such data set, and HF_HUB_OFFLINE is set; give a file"
    assert str(caught.value).startswith(f"owner/name: {said} (.csv, .tsv, ")


def test_all_columns_that_are_missing_are_named_at_once(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("ক", "খ")], ("x", "y"))
    with pytest.raises(CorpusError) as caught:
        load_corpus(path)
    assert "no column 'Questions' and there is no column 'Answers'; the columns are x, y." in str(caught.value)
    assert "--columns question=NAME --columns reference=NAME" in str(caught.value)
    with pytest.raises(CorpusError, match=r"no column 'z' and there is no column 'w'; the columns are x, y$"):
        load_corpus(path, columns={"question": "z", "reference": "w"})
    with pytest.raises(
        CorpusError, match=r"no column 'z' and there is no column 'Answers'; .* --columns reference=NAME"
    ):
        load_corpus(path, columns={"question": "z"})


def test_cells_that_are_merged_or_formulas_without_their_values(tmp_path, caplog):
    table = [
        ("topic", "question", "answer"),
        ("ঘুম", "ঘুম আসে না।", "কী নিয়ে ভাবছ রাতে?"),
        ("", "ভোরে উঠতে পারি না।", "রাতে কখন শুতে যাও?"),
    ]
    merged = '<mergeCells count="1"><mergeCell ref="A2:A3"/></mergeCells>'
    with caplog.at_level("INFO", "bnbench"):
        corpus = load_corpus(workbook(tmp_path / "merged.xlsx", table, merged))
    assert [row.example.topic for row in corpus.rows] == ["ঘুম", "ঘুম"]
    assert "a cell is merged over rows 2 to 3, and read in each" in caplog.text
    assert [row.example.topic for row in load_corpus(workbook(tmp_path / "a.xlsx", table)).rows] == ["ঘুম", ""]
    table[1] = ("ঘুম", "=CONCATENATE(A2)", "কী নিয়ে ভাবছ রাতে?")
    with pytest.raises(
        CorpusError, match=r"b\.xlsx: the cell B2 is a formula without its value; open the file in Excel"
    ):
        load_corpus(workbook(tmp_path / "b.xlsx", table))


def test_thoughts_are_no_part_of_a_reference(tmp_path):
    sound, loud = rows(3), [(*row[:3], f"<think>ভাবি</think>\n{row[3]}") for row in rows(3)]
    found = load_corpus(write_csv(tmp_path / "loud.csv", loud))
    assert found.fingerprint == load_corpus(write_csv(tmp_path / "sound.csv", sound)).fingerprint
    assert found.steps[0].changed == 3


def test_a_dialogue_stays_on_one_side(tmp_path):
    rows = [("dialogue", "question", "answer")]
    asked = (f"প্রশ্ন নম্বর {i}: {'কখগঘঙচছজঝঞ'[i % 10] * 9}?" for i in range(400))
    rows += [(f"আলাপ {i // 5}", question, f"উত্তর নম্বর {i} এই রকম") for i, question in enumerate(asked)]
    path = tmp_path / "d.csv"
    path.write_text("\n".join(map(",".join, rows)), encoding="utf-8")
    corpus = load_corpus(path)
    sides = [{e.dialogue for e in part} for part in corpus.splits.values()]
    assert len(sides[0]) > 40 and len(sides[2]) > 2
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert load_corpus(path, columns={"dialogue": "answer"}).rows[0].example.dialogue == "উত্তর নম্বর 0 এই রকম"
    with pytest.raises(CorpusError, match="there is no column 'thread'"):
        load_corpus(path, columns={"dialogue": "thread"})
