"""A journal that an editor or another tool has changed is refused by its line, and never written to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.records import read_record, slug


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journal")
    (folder / "a.txt").write_text("আমি শুনছি, আপনার মনের কষ্টটা বুঝি।\n" * 240, encoding="utf-8")
    assert evaluate(folder).exit_code == 0
    return folder


def evaluate(folder: Path, run: str = "run") -> Result:
    words = ["--predictions", f"ক={folder / 'a.txt'}", "--limit", "5", "--out", str(folder / run), "-q"]
    words += ["--metric", "chrF++"]
    return CliRunner().invoke(app, ["evaluate", *words])


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "edit",
    [
        lambda b: b.replace(b"\n", b"\r\n"),
        lambda b: b"\xef\xbb\xbf" + b,
        lambda b: b.replace("ম".encode(), "স".encode()),
        lambda b: b.replace(b'": ', b'":'),
    ],
    ids=["crlf", "bom", "edited", "json-tool"],
)
@pytest.mark.parametrize("name", ["generations.jsonl", "examples.jsonl"])
def test_a_run(whole: Path, tmp_path: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / name
    original = path.read_bytes()
    path.write_bytes(edit(original))
    before = {one: one.read_bytes() for one in path.parent.rglob("*") if one.is_file()}
    told = [CliRunner().invoke(app, ["report", str(path.parent)])]
    if name == "generations.jsonl":  # the items are written anew from the data
        told.append(evaluate(tmp_path / "copy"))
    for done in told:
        assert done.exit_code == 2
        assert done.stderr.startswith(f"bnbench: {path}, line 1: damaged (") and done.stderr.count("\n") == 1
        assert "nothing was changed; put the file back as it was, or delete the line" in done.stderr
    assert {one: one.read_bytes() for one in path.parent.rglob("*") if one.is_file()} == before
    path.write_bytes(original)
    assert CliRunner().invoke(app, ["report", str(path.parent)]).exit_code == 0


@pytest.mark.parametrize("name", ["generations.jsonl", "answered.jsonl"])
def test_a_reply_without_a_hash_that_is_of_no_item(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    first, *others = (run / "generations.jsonl").read_bytes().splitlines(keepends=True)
    first = json.dumps({k: v for k, v in json.loads(first).items() if k != "sha256"} | {"id": "অন্য"}).encode() + b"\n"
    (run / name).write_bytes(first + (b"".join(others) if name == "generations.jsonl" else b""))
    done = evaluate(tmp_path / "copy")
    assert done.exit_code == 2 and f"{run / name}, line 1: this reply is not of this plan" in done.stderr, done.stderr


def test_a_journal_whose_last_newline_an_editor_took_is_whole(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "generations.jsonl"
    original = path.read_bytes()
    path.write_bytes(original[:-1])
    assert evaluate(tmp_path / "copy").exit_code == 0
    assert path.read_bytes() in (original, original[:-1])


def test_a_table_over_another_is_told_and_made_again(tmp_path: Path) -> None:
    for name, text in (("ক", "আমি শুনছি, আপনার মনের কষ্টটা বুঝি।"), ("খ", "সব ঠিক হয়ে যাবে।")):
        (tmp_path / f"{name}.txt").write_text(f"{text}\n" * 240, encoding="utf-8")
    words = [word for name in "কখ" for word in ("--predictions", f"{name}={tmp_path / name}.txt")]
    asked = ["evaluate", *words, "--limit", "5", "--metric", "chrF++", "--out", str(tmp_path / "run"), "-q"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    first, second = (tmp_path / "run" / "scores" / f"{slug(name)}.parquet" for name in "কখ")
    whole = first.read_bytes()
    shutil.copyfile(second, first)
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert done.exit_code == 2 and f"{first}: damaged (it has the scores of খ); run the same command" in done.stderr
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert first.read_bytes() == whole


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generations.jsonl", lambda b: b[: len(b) // 2]),
        ("generations.jsonl", None),
        ("examples.jsonl", lambda b: b.partition(b"\n")[2]),
        ("examples.jsonl", None),
        ("scores/*.parquet", lambda b: b""),
        ("run.json", lambda b: b""),
        ("run.json", lambda b: b"{}"),
    ],
)
def test_what_its_own_command_mends_is_mended(
    whole: Path, tmp_path: Path, name: str, content: Callable[[bytes], bytes] | None
) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.copyfile(whole / "a.txt", tmp_path / "a.txt")
    [path] = (tmp_path / "run").glob(name)
    original = path.read_bytes()
    if content:
        path.write_bytes(content(original))
    else:
        path.unlink()
    done = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    again = "again: " if name == "run.json" else f"again, what is whole is kept: {read_record(whole / 'run').command}\n"
    assert done.exit_code == 2 and done.stderr.startswith(f"bnbench: {path}: ") and again in done.stderr
    if name == "run.json":
        assert "; remove it and run the same `bnbench evaluate` command again: " in evaluate(tmp_path).stderr
        path.unlink()
    assert evaluate(tmp_path).exit_code == 0
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run")]).exit_code == 0
    assert name == "run.json" or path.read_bytes() == original


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a, b, c, d, e: (a, b, b, c, d, e), "{}, line 3: it repeats line 2; remove it, and run the same"),
        (lambda *a: (*a, *a), "{}, line 6: it repeats line 1; remove it and 4 more that repeat others, and"),
        (lambda a, b, c, d, e: (a, c, d, e), "{}, line 2: this reply is not of this plan (the same command goes on"),
    ],
    ids=["one-twice", "all-twice", "one-gone"],
)
def test_a_line_that_does_not_belong_is_named(
    whole: Path, tmp_path: Path, change: Callable[..., tuple[bytes, ...]], says: str
) -> None:
    shutil.copytree(whole, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "generations.jsonl"
    original = path.read_bytes()
    lines = change(*original.splitlines(keepends=True))
    path.write_bytes(b"".join(lines))
    done = evaluate(tmp_path / "copy")
    assert done.exit_code == 2 and says.format(path) in done.stderr and done.stderr.count("\n") == 1
    assert path.read_bytes() == b"".join(lines)
    path.write_bytes(b"".join(dict.fromkeys(lines)) if len(lines) > 4 else lines[0])  # what the message says
    assert evaluate(tmp_path / "copy").exit_code == 0
    assert path.read_bytes() == original
