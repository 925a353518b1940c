import json

import numpy as np
import pytest

from bnbench.errors import RunError
from bnbench.records import (
    SCHEMA_VERSION,
    Generation,
    Journal,
    generation_key,
    read_run,
    slug,
    write_json,
    write_scores,
)

ONE = Generation("k1", "ভিত্তি", "a", "আমি ভালো আছি।\nতুমি?", 9, False, 12.5, 7, 40, 15)
TWO = Generation("k2", "ভিত্তি", "b", "", 0, True, None, None, None, None)


def test_the_journal_gives_back_what_was_appended_in_readable_bengali(tmp_path):
    journal = Journal(tmp_path / "generations.jsonl")
    journal.append([ONE])
    journal.append([TWO])
    assert journal.read() == [ONE, TWO]
    assert "আমি ভালো আছি।" in journal.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("lost", [1, 5, 30])
def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path, lost):
    journal = Journal(tmp_path / "generations.jsonl")
    journal.append([ONE, TWO])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-lost])
    assert journal.read() == [ONE]
    journal.keep([ONE])
    journal.append([TWO])
    assert journal.path.read_bytes() == whole


def test_a_damaged_line_before_the_last_is_an_error_with_its_number(tmp_path):
    journal = Journal(tmp_path / "generations.jsonl")
    journal.append([ONE, TWO])
    journal.path.write_bytes(b'{"key": 1}\n' + journal.path.read_bytes())
    with pytest.raises(RunError, match=r"generations.jsonl, line 1: damaged"):
        journal.read()


def test_a_lone_surrogate_in_a_reply_survives_the_journal(tmp_path):
    journal = Journal(tmp_path / "generations.jsonl")
    broken = Generation(**{**ONE.__dict__, "reply": "আ\ud800"})
    journal.append([broken])
    assert journal.read()[0].reply.startswith("আ")


def test_keys_depend_on_every_part_and_not_on_their_order():
    key = generation_key(base="a", seed=1, prompt=[1, 2])
    assert key == generation_key(prompt=[1, 2], seed=1, base="a")
    assert (
        len({key, generation_key(base="a", seed=2, prompt=[1, 2]), generation_key(base="b", seed=1, prompt=[1, 2])})
        == 3
    )


def test_slugs_are_safe_and_never_collide():
    names = ["base", "a/b", "a-b", "বাংলা", "হিন্দি", "../x", "a b"]
    assert slug("llama-3.1_8b") == "llama-3.1_8b"
    assert len({slug(n) for n in names}) == len(names)
    assert all("/" not in slug(n) and not slug(n).startswith(".") for n in names)


def write_run(folder, **changes):
    metric = {"name": "m", "signature": "m|n:2", "columns": ["x", "y"], "values": ["m"]}
    meta = {"schema_version": SCHEMA_VERSION, "finished": "now", "candidates": [{"name": "ভিত্তি"}], "metrics": [metric]}
    folder.mkdir()
    write_json(folder / "run.json", {**meta, **changes})
    rows = [{"id": i, "topic": "", "title": "", "question": "?", "reference": "!"} for i in "ba"]
    (folder / "examples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    Journal(folder / "generations.jsonl").append([ONE, TWO])
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
    folder = write_run(tmp_path / "c")
    next((folder / "scores").iterdir()).unlink()
    with pytest.raises(RunError, match="its replies are kept"):
        read_run(folder)
