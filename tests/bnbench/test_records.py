import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from bnbench.errors import RunError
from bnbench.records import (
    SCHEMA_VERSION,
    Generation,
    append_lines,
    read_lines,
    read_record,
    read_run,
    slug,
    write_json,
    write_scores,
)

ONE = Generation("k1", "ভিত্তি", "a", "আমি ভালো আছি।\nতুমি?", 9, False, 12.5, 7, 40, 15)
TWO = Generation("k2", "ভিত্তি", "b", "", 0, True, None, None, None, None)


def read_generations(folder):
    return read_lines(Generation, folder / "generations.jsonl")


def test_replies_are_given_back_as_they_were_appended_in_readable_bengali(tmp_path):
    assert read_generations(tmp_path) == []
    append_lines(tmp_path / "generations.jsonl", [ONE])
    append_lines(tmp_path / "generations.jsonl", [TWO])
    assert read_generations(tmp_path) == [ONE, TWO]
    assert "আমি ভালো আছি।" in (tmp_path / "generations.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("lost", [2, 5, 30])
def test_a_torn_last_line_is_left_out(tmp_path, lost):
    append_lines(tmp_path / "generations.jsonl", [ONE, TWO])
    path = tmp_path / "generations.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])
    assert read_generations(tmp_path) == [ONE]


def test_what_is_appended_behind_a_torn_line_is_not_swallowed(tmp_path):
    path = tmp_path / "generations.jsonl"
    append_lines(path, [ONE, TWO])
    path.write_bytes(path.read_bytes()[:-9])
    append_lines(path, [TWO])
    assert read_generations(tmp_path) == [ONE, TWO]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # an editor that ends no last line
    assert read_generations(tmp_path) == [ONE, TWO]
    append_lines(path, [ONE])
    assert read_generations(tmp_path) == [ONE, TWO, ONE] and path.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda b: b.replace(b"\n", b"\r\n"), "line 1: damaged .an editor made its line end CR LF"),
        (lambda b: b"\xef\xbb\xbf" + b, "line 1: damaged .an editor put a byte order mark before it"),
        (lambda b: b.replace("ভালো".encode(), "খারাপ".encode()), "line 1: damaged .it was edited"),
        (lambda b: b.replace(b'"tokens": 0', b'"tokens": 5'), "line 2: damaged .it was edited"),
        (lambda b: b"".join(json.dumps(json.loads(x)).encode() + b"\n" for x in b.splitlines()), "line 1: .*edited"),
        (lambda b: b.replace(b", ", b",").replace(b": ", b":"), "line 1: damaged .it was edited"),
        (lambda b: b.replace(b"}", b"}\n\n"), "line 2: damaged"),
        (lambda b: b"[" + b.replace(b"}\n", b"},\n") + b"]", "line 1: damaged"),
    ],
)
def test_an_editor_s_or_a_tool_s_change_of_a_line_is_known(tmp_path, edit, why):
    path = tmp_path / "generations.jsonl"
    append_lines(path, [ONE, TWO])
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(RunError, match=rf"{why}.*nothing was changed; put the file back as it was, or delete the line"):
        read_generations(tmp_path)


def test_a_damaged_line_before_the_last_is_an_error_with_its_number(tmp_path):
    append_lines(tmp_path / "generations.jsonl", [ONE, TWO])
    path = tmp_path / "generations.jsonl"
    path.write_bytes(b'{"key": 1}\n' + path.read_bytes())
    with pytest.raises(RunError, match=r"generations.jsonl, line 1: damaged .*delete the line and all after it"):
        read_generations(tmp_path)


def test_a_lone_surrogate_in_a_reply_survives(tmp_path):
    append_lines(tmp_path / "generations.jsonl", [replace(ONE, reply="আ\ud800")])
    assert read_generations(tmp_path)[0].reply.startswith("আ")


def test_slugs_are_safe_and_never_collide():
    names = ["base", "a/b", "a-b", "বাংলা", "হিন্দি", "../x", "a b"]
    assert slug("llama-3.1_8b") == "llama-3.1_8b"
    assert len({slug(n) for n in names}) == len(names)
    assert all("/" not in slug(n) and not slug(n).startswith(".") for n in names)


CANDIDATE = {"name": "ভিত্তি", "kind": "base", "location": "x", "key_fields": {}}
METRIC = {
    "name": "m", "signature": "m|n:2", "columns": ["x", "y"], "values": ["m"], "higher_is_better": True,
    "description": "m, higher is better",
}  # fmt: skip
META = {
    "schema_version": SCHEMA_VERSION, "name": "run", "bnbench": "0.1", "command": "bnbench evaluate", "created": "then",
    "finished": "now", "packages": {}, "device": {}, "precision": {}, "prompt": {}, "decoding": {},
    "corpus": {"name": "c", "source": "c.csv", "fingerprint": "ab", "split": "test", "n": 2},
    "candidates": [CANDIDATE], "primary_metric": "m", "metrics": [METRIC], "seed": 1, "notes": [],
}  # fmt: skip
STEP = {"name": "empty", "why": "no question or no answer", "dropped": -3}


AGAIN = "run the same command again, what is whole is kept: bnbench evaluate"


def write_run(folder, **changes):
    folder.mkdir()
    write_json(folder / "run.json", {**META, **changes})
    rows = [{"id": i, "topic": "", "title": "", "question": "?", "reference": "!"} for i in "ba"]
    (folder / "examples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    append_lines(folder / "generations.jsonl", [ONE, TWO])
    write_scores(folder, "ভিত্তি", ["a", "b"], {"m": np.array([[1.0, 2.0], [3.0, 4.0]])}, {"m": ("x", "y")})
    return folder


def test_replies_and_tables_are_read_in_the_order_of_the_items(tmp_path):
    run = read_run(write_run(tmp_path / "run"))
    assert [g.id for g in run.replies["ভিত্তি"]] == ["b", "a"]
    assert run.tables["ভিত্তি"]["m"].tolist() == [[3.0, 4.0], [1.0, 2.0]]


def test_what_is_no_finished_run_says_so(tmp_path):
    with pytest.raises(RunError, match=r"no run\.json"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="not finished; go on with: bnbench evaluate --adapter x"):
        read_run(write_run(tmp_path / "a", finished=None, command="bnbench evaluate --adapter x"))
    with pytest.raises(RunError, match="schema 99"):
        read_run(write_run(tmp_path / "b", schema_version=99))
    with pytest.raises(RunError, match=r'schema "1", but this bnbench reads schema 1$'):
        read_run(write_run(tmp_path / "text", schema_version="1"))
    with pytest.raises(RunError, match=r'schema \["১"\], but'):
        read_run(write_run(tmp_path / "list", schema_version=["১"]))
    folder = write_run(tmp_path / "c")
    next((folder / "scores").iterdir()).unlink()
    with pytest.raises(RunError, match=rf"\.parquet: missing; {AGAIN}"):
        read_run(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": "x"}, 'seed is "x", not a whole number'),
        ({"seed": -1}, "seed is -1, and cannot be negative"),
        ({"batch_size": -4}, "batch_size is -4, and cannot be negative"),
        ({"corpus": {**META["corpus"], "n": -2}}, "corpus.n is -2, and cannot be negative"),
        ({"corpus": {**META["corpus"], "steps": [STEP]}}, r"corpus.steps\[0\].dropped is -3, and cannot be negative"),
        ({"corpus": {**META["corpus"], "steps": [{"name": "ফাঁকা"}]}}, r"corpus.steps\[0\].why is missing"),
        ({"notes": None}, "notes is null, not a list"),
        ({"candidates": [{**CANDIDATE, "seconds": "x"}]}, r'candidates\[0\].seconds is "x", not a number'),
        ({"candidates": [{"name": "ভিত্তি"}]}, r"candidates\[0\].kind is missing"),
        ({"metrics": [{**METRIC, "columns": ["x", 3]}]}, r"metrics\[0\].columns\[1\] is 3, not text"),
        ({"corpus": {}}, "corpus.name is missing"),
        ({"corpus": []}, r"corpus is \[\], not an object"),
        ({"combined": {"m": True}}, "combined.m is true, not a number"),
    ],
)
def test_a_damaged_record_is_named_with_its_key(tmp_path, changes, says):
    with pytest.raises(RunError, match=rf"run\.json: damaged \({says}\); remove it and run the same"):
        read_run(write_run(tmp_path / "run", **changes))


def damage(name, text):
    return lambda folder: next(folder.glob(name)).write_text(text, encoding="utf-8")


def without_first(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes().partition(b"\n")[2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (damage("run.json", "{"), r"run\.json: damaged"),
        (damage("run.json", ""), r"run\.json: damaged .*; remove it and run the same `bnbench evaluate` command again"),
        (damage("run.json", "{}"), r"run\.json: damaged \(schema_version is missing\); remove it and run the same"),
        (damage("examples.jsonl", '{"id": "a"}\n'), r"examples\.jsonl, line 1: damaged \(topic is missing\)"),
        (damage("examples.jsonl", "x\n"), r"examples\.jsonl, line 1: damaged"),
        (lambda folder: (folder / "examples.jsonl").unlink(), rf"examples\.jsonl: missing; {AGAIN}"),
        (without_first("examples.jsonl"), rf"examples\.jsonl: has 1 of the run's 2 items; {AGAIN}"),
        (damage("generations.jsonl", ""), rf"generations\.jsonl: .* no reply to item b \(2 such\); {AGAIN}"),
        (lambda folder: (folder / "generations.jsonl").unlink(), rf"generations\.jsonl: missing; {AGAIN}"),
        (
            damage("generations.jsonl", json.dumps({**asdict(ONE), "tokens": -9}) + "\n"),
            r"generations\.jsonl, line 1: damaged \(tokens is -9, and cannot be negative\)",
        ),
        (damage("generations.jsonl", "[]\n"), r"generations\.jsonl, line 1: damaged \(the file is \[\], not an object"),
        (damage("scores/*.parquet", "no table"), rf"\.parquet: damaged .*; {AGAIN}"),
    ],
)
def test_every_damaged_file_is_named(tmp_path, change, says):
    folder = write_run(tmp_path / "run")
    change(folder)
    with pytest.raises(RunError, match=says):
        read_run(folder)


def test_scores_that_lack_an_item_or_a_column_are_damaged(tmp_path):
    folder = write_run(tmp_path / "run")
    write_scores(folder, "ভিত্তি", ["a"], {"m": np.array([[1.0, 2.0]])}, {"m": ("x", "y")})
    with pytest.raises(RunError, match=r"\.parquet: damaged"):
        read_run(folder)
    write_scores(folder, "ভিত্তি", ["a", "b"], {"m": np.array([[1.0], [2.0]])}, {"m": ("x",)})
    with pytest.raises(RunError, match=r"\.parquet: damaged .*m/y"):
        read_run(folder)


def test_a_table_is_its_candidate_s_and_of_its_replies(tmp_path):
    other = {**CANDIDATE, "name": "অ্যাডাপ্টার"}
    folder = write_run(tmp_path / "run", candidates=[CANDIDATE, other], yardsticks=[{"name": "stock", "label": "s"}])
    mine, theirs = [ONE, TWO], [replace(one, candidate="অ্যাডাপ্টার", key=f"a{one.key}") for one in (ONE, TWO)]
    append_lines(folder / "generations.jsonl", theirs)
    table, columns = {"m": np.array([[1.0, 2.0], [3.0, 4.0]])}, {"m": ("x", "y")}
    write_scores(folder, "stock", ["a", "b"], table, columns, "yardsticks")
    write_scores(folder, "অ্যাডাপ্টার", ["a", "b"], table, columns, replies=theirs)
    assert read_run(folder).tables["ভিত্তি"]["m"].tolist() == [[3.0, 4.0], [1.0, 2.0]]  # older: its table says nothing
    write_scores(folder, "ভিত্তি", ["a", "b"], table, columns, replies=mine)
    read_run(folder)
    base, adapter = (folder / "scores" / f"{slug(name)}.parquet" for name in ("ভিত্তি", "অ্যাডাপ্টার"))
    stock, whole = folder / "scores" / "yardsticks" / "stock.parquet", base.read_bytes()
    base.write_bytes(adapter.read_bytes())
    with pytest.raises(RunError, match=f"{base}: damaged .it has the scores of অ্যাডাপ্টার.; {AGAIN}"):
        read_run(folder)
    write_scores(folder, "ভিত্তি", ["a", "b"], table, columns, replies=[ONE, replace(TWO, reply="না।")])
    with pytest.raises(RunError, match=f"{base}: damaged .it has the scores of other replies.; {AGAIN}"):
        read_run(folder)
    base.write_bytes(whole)
    stock.write_bytes(whole)
    with pytest.raises(RunError, match=f"{stock}: damaged .it has the scores of ভিত্তি.; {AGAIN}"):
        read_run(folder)


def test_a_record_is_written_as_it_was_read_and_passes_over_what_it_does_not_know(tmp_path):
    folder = write_run(tmp_path / "run")
    record = read_record(folder)
    write_json(folder / "run.json", record)
    written = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert list(written)[:6] == ["schema_version", "name", "bnbench", "command", "created", "finished"]
    assert "training" not in written["candidates"][0] and "weights" not in written["metrics"][0]
    write_json(folder / "run.json", written | {"news": 1})
    assert read_record(folder) == record
