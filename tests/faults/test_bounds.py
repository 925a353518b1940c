"""Files made to take all the time or all the memory: refused, or ended in words."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.data import files
from bnbench.data.files import iter_lines, iter_table
from bnbench.errors import BnbenchError, CandidateError, CorpusError, PromptError, RecipeError, UsageError
from bnbench.finetune.recipes import load_recipe
from bnbench.metrics.audit.findings import read_audits
from bnbench.models.candidates import parse_candidates
from bnbench.models.hub import ModelFiles
from bnbench.models.loading import bounded, load_config, outline, put_on
from bnbench.models.prompts import Prompter
from bnbench.reports.human import workbook


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 15  # on a machine that does other things


def test_time_and_memory_are_given_back() -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    with pytest.raises(CandidateError, match=r"x: a loop takes more than 0 s"), bounded("x", "a loop", 0.1):
        while True:
            pass
    with pytest.raises(CandidateError, match=r"x: a text takes more than 1 GiB"), bounded("x", "a text"):
        "a" * 10**11
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.parametrize(
    "template", ["{{ 'a' * 10**10 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"]
)
def test_a_chat_template(tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    from bnbench.models import prompts

    monkeypatch.setattr(prompts, "bounded", lambda *a: bounded(*a, seconds=0.3))
    (tmp_path / "t.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(PromptError, match="its chat template takes more than"):
        Prompter.of(tiny_tokenizer, template=str(tmp_path / "t.jinja"))


def changed(folder: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(folder, to)
    name = "adapter_config.json" if (to / "adapter_config.json").exists() else "config.json"
    config = json.loads((to / name).read_text(encoding="utf-8"))
    (to / name).write_text(json.dumps(config | changes), encoding="utf-8")
    return to


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern"])
def test_a_regular_expression_of_an_adapter(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    from bnbench.models import loading
    from bnbench.models.loading import load_base

    monkeypatch.setattr(loading, "bounded", lambda *a: bounded(*a, seconds=0.3))
    slow = r"(([a-z._0-9]+)+)+!"
    adapter = changed(tiny_adapter, tmp_path / "a", **{key: {slow: 4} if key == "rank_pattern" else slow})
    model = load_base(ModelFiles("base", "", "", tiny_base))
    with pytest.raises(CandidateError, match=r"a regular expression of its adapter_config\.json takes more than"):
        put_on(model, ModelFiles("adapter", "", "", adapter), "a")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"r": 10**6}, r"asks for r 1000000, and no tensor of its file is so large"),
        ({"rank_pattern": {"q_proj": 10**6}}, r"asks for q_proj 1000000"),
        ({"layer_replication": [[0, 2]] * 20_000}, r"makes more than 1,000 layers"),
    ],
)
def test_numbers_of_an_adapter(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    adapter = changed(tiny_adapter, tmp_path / "a", **changes)
    with pytest.raises(CandidateError, match=says):
        parse_candidates(str(tiny_base), [str(adapter)])


def test_numbers_of_a_base(tiny_base: Path, tmp_path: Path) -> None:
    deep = ModelFiles("base", "", "", changed(tiny_base, tmp_path / "deep", num_hidden_layers=10**6))
    with pytest.raises(CandidateError, match="names 1,000,000 layers, and its weights have fewer"):
        load_config(deep)
    for key in ("vocab_size", "hidden_size", "intermediate_size"):
        wide = ModelFiles("base", "", "", changed(tiny_base, tmp_path / key, **{key: 4 * 10**8}))
        with pytest.raises(BnbenchError):
            outline(wide)
    huge = ModelFiles("base", "", "", tmp_path / "huge")
    shutil.copytree(tiny_base, huge.folder)
    with (huge.folder / "config.json").open("ab") as file:
        file.truncate(500 * 10**6)
    with pytest.raises(CandidateError, match=r"config\.json is larger than 256 MiB"):
        huge.names()


def one_text_in_every_row(path: Path) -> None:
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["ক" * 300_000]))
    pq.write_table(pa.table({"reply": dictionary}), path, compression="zstd")
    assert path.stat().st_size < 100_000


def many_columns(path: Path) -> None:
    path.write_text(",".join(f"c{i}" for i in range(100_000)) + "\n", encoding="utf-8")


def long_reply(path: Path) -> None:
    path.write_text(json.dumps({"reply": "a" * 15_000_000}) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (one_text_in_every_row, "a.parquet", "its texts have more than 128 MiB, much more than the file"),
        (many_columns, "a.csv", "100,000 columns; at most 2,000 are read"),
        (long_reply, "a.jsonl", "line 1: a text of 15,000,000 characters; at most 10,000,000"),
    ],
)
def test_a_table(
    tmp_path: Path, make: Callable[[Path], None], name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / name)
    monkeypatch.setattr(files, "MOST_BYTES", 2**27)
    with pytest.raises(CorpusError, match=says):
        for _ in iter_table(tmp_path / name):
            pass


def test_a_cell_larger_than_all_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    pq.write_table(pa.table({"reply": ["ক" * 1_000_000]}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(CorpusError, match="much more than the file"):
        next(iter_table(tmp_path / "a.parquet"))


def bomb(path: Path, unit: bytes, head: bytes = b"") -> None:
    with gzip.open(path, "wb") as file:
        file.write(head + unit * (2**21 // len(unit)))


def workbook_with(path: Path, old: bytes, new: bytes) -> None:
    parts = zipfile.ZipFile(io.BytesIO(workbook([["reply"], ["ক"]])))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in parts.namelist():
            file.writestr(name, parts.read(name).replace(old, new) if "sheet1" in name else parts.read(name))


def log_of_inspect(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("samples/1.json", json.dumps({"output": "a" * 2**21}))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.jsonl.gz", lambda path: bomb(path, b"a", b'{"reply": "')),
        ("a.json.gz", lambda path: bomb(path, b" ", b"[\n")),
        ("a.csv.gz", lambda path: bomb(path, b"a", b"reply\n")),
        ("a.txt.gz", lambda path: bomb(path, b"a")),
        ("b.txt.gz", lambda path: bomb(path, b"\xff")),
        ("a.xlsx", lambda path: workbook_with(path, b"</sheetData>", b"</sheetData>" + b" " * 2**21)),
        ("a.eval", log_of_inspect),
    ],
)
def test_what_unfolds_without_end(
    tmp_path: Path, name: str, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 2**20)
    make(tmp_path / name)
    with pytest.raises(CorpusError, match="unfolds to more than 1 MiB, much more than the file"):
        list(iter_lines(tmp_path / name) if ".txt" in name else iter_table(tmp_path / name))


def test_a_cell_far_out(tmp_path: Path) -> None:
    workbook_with(tmp_path / "a.xlsx", b'"A2"', b'"XFD1048576"')
    with pytest.raises(CorpusError, match=r"a\.xlsx: its cells reach to row 1,048,576 and column 16,384"):
        list(iter_table(tmp_path / "a.xlsx"))


@pytest.mark.parametrize("name", ["config.json", "a.toml", "--set"])
def test_what_is_nested_without_end(tiny_base: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"a":' * 50_000, encoding="utf-8")
    (tmp_path / "a.toml").write_text("a = " + "[" * 50_000, encoding="utf-8")
    if name == "config.json":
        with pytest.raises(CandidateError, match=r"config\.json cannot be read as JSON"):
            ModelFiles("base", "", "", tmp_path).read_json("config.json")
    else:
        with pytest.raises(RecipeError):
            load_recipe(*(("demo", {"r": "[" * 50_000}) if name == "--set" else (tmp_path / name,)))


def test_a_normaliser_that_doubles_a_text_again_and_again(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    path = tmp_path / "base" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    twice = {"type": "Replace", "pattern": {"String": "ক"}, "content": "কক"}

    def load(times: int) -> Prompter:
        halves = [{"type": "Sequence", "normalizers": [twice] * n} for n in (times // 2, times - times // 2)]
        changed = tokenizer | {"normalizer": {"type": "Sequence", "normalizers": halves}}
        path.write_text(json.dumps(changed), encoding="utf-8")
        return Prompter.load(ModelFiles("base", "", "", tmp_path / "base"))

    assert load(9).tokenizer.backend_tokenizer.normalizer.normalize_str("ক") == "ক" * 2**9
    with pytest.raises(CandidateError, match="its normaliser can make a text over 1,000 times as long"):
        load(40)


def test_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"ক\n{'a' * 10_000_001}\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.txt, line 2: a text of 10,000,002 characters"):
        list(iter_lines(tmp_path / "a.txt"))


ODS = (
    '<office:document-content xmlns:office="urn:oasis:names:tc:opendocument:xmlns:office:1.0" '
    'xmlns:table="urn:oasis:names:tc:opendocument:xmlns:table:1.0" '
    'xmlns:text="urn:oasis:names:tc:opendocument:xmlns:text:1.0"><office:body><office:spreadsheet>'
    '<table:table table:name="S">{}</table:table></office:spreadsheet></office:body></office:document-content>'
)


@pytest.mark.parametrize(
    ("cells", "rows", "says"),
    [
        ("", 'rows-repeated="1048570"', ""),  # empty up to the sheet's edge, as every program writes it
        ("<text:p>ক</text:p>", 'rows-repeated="99000000"', "over 99,000,002 rows and 2 columns; remove the copies"),
        ("<text:p>ক</text:p>", 'columns-repeated="99000000"', "over 3 rows and 99,000,000 columns; remove the copies"),
    ],
)
def test_cells_that_a_sheet_repeats(tmp_path: Path, cells: str, rows: str, says: str) -> None:
    def row(*texts: str) -> str:
        cells = (f'<table:table-cell office:value-type="string"><text:p>{t}</text:p></table:table-cell>' for t in texts)
        return f"<table:table-row>{''.join(cells)}</table:table-row>"

    more = f"table:number-{rows}"
    of_row, of_cell = (more, "") if "rows" in more else ("", more)
    last = f"<table:table-row {of_row}><table:table-cell {of_cell}>{cells}</table:table-cell></table:table-row>"
    written = row("question", "answer"), row("রাতে ঘুম আসে না।", "রাতে একটু হাঁটুন।")
    with zipfile.ZipFile(tmp_path / "a.ods", "w") as book:
        book.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        kind = "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"
        book.writestr("META-INF/manifest.xml", f'<manifest:manifest xmlns:manifest="{kind}"/>')
        book.writestr("content.xml", ODS.format("".join((*written, last))))
    done = CliRunner().invoke(app, ["corpus", str(tmp_path / "a.ods"), "--json"])
    if says:
        assert done.exit_code == 2 and says in done.stderr
    else:
        assert json.loads(done.stdout)["splits"] == {"all": 1}


@pytest.mark.parametrize(
    "words",
    [
        ("finetune", "--dry-run", "--recipe", "{}.toml"), ("inspect-prompt", "--template", "{}"),
        ("audit", "keyword-empathy:{}.toml"), ("audit", "chrF++", "--data", "{}"),
        ("score", "{}"), ("corpus", "{}.csv"), ("perplexity", "{}"),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "zero", "large"])
def test_files_without_an_end(words: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to, a device that never ends and a file of gigabytes are one line, at once."""
    if kind == "large" and words[0] not in ("finetune", "inspect-prompt"):
        pytest.skip("data may be large")
    for path in (tmp_path / "x", tmp_path / "x.toml", tmp_path / "x.csv"):
        if kind == "large":
            with path.open("wb") as file:
                file.truncate(2**36)
        else:
            os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    done = CliRunner().invoke(app, [word.format(tmp_path / "x") for word in words])
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1 and re.search("device|pipe|larger than 16 MiB", done.stderr)
    with pytest.raises(UsageError, match=r"device|larger than 16 MiB"):
        read_audits(tmp_path / "x")
