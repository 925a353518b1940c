"""Damages every record of a finished run and of an adapter, and feeds noise to the parsers, for as long as one likes.

    python tests/faults/fuzz.py [--seconds 600] [--seed 1]
    python tests/faults/fuzz.py --atheris -max_total_time=600     guided by coverage; pip install atheris

A command must end with 0 to 3 and, where it fails, a message that begins with "bnbench: "; nothing else may be raised.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from mutations import of_bytes, of_json

import bnbench
from bnbench import records
from bnbench.cli import app
from bnbench.data import chat, corpus, files, pairs
from bnbench.data.corpus import Example, load_corpus, repair
from bnbench.data.files import KINDS, iter_table, read_records
from bnbench.data.pairs import read_ratings
from bnbench.errors import BnbenchError
from bnbench.finetune import recipes
from bnbench.finetune.recipes import load_recipe
from bnbench.finetune.tuners.base import newest_checkpoint, seal
from bnbench.metrics import normalization, romanised, tokenization
from bnbench.metrics.audit.findings import RECORD
from bnbench.metrics.normalization import normalize
from bnbench.metrics.romanised import bengali
from bnbench.metrics.tokenization import split_sentences, tokenize
from bnbench.models import recorded
from bnbench.models.recorded import Predictions
from bnbench.records import Generation, Rating, read_lines, read_record, read_training
from bnbench.reports import render

READERS = (chat, corpus, files, pairs, recipes, recorded, records, normalization, romanised, tokenization)
REPLY = "আমি শুনছি, আপনার মনের কষ্টটা বুঝি।"


def make(folder: Path) -> Path:
    """A finished run of recorded replies that people rated, an adapter with its record, audits, and a checkpoint."""
    for name, tail in (("a", ""), ("b", " পাশে আছি।")):
        (folder / f"{name}.txt").write_text(f"{REPLY}{tail}\n" * 240, encoding="utf-8")
    run = folder / "run"
    words = [word for name in "ab" for word in ("--predictions", str(folder / f"{name}.txt"))]
    expect("evaluate", *words, "--limit", "4", "--out", str(run), "-q")
    expect("human", "sheet", str(run), "--raters", "1", "--items", "2", "--pairs")
    sheet = run / "human" / "rater-1.csv"
    rows = list(csv.DictReader(sheet.open(encoding="utf-8-sig")))
    for row in rows:
        answers = {"better": "1"} if row["second reply"] else dict.fromkeys(rows[0].keys() & CRITERIA, "3")
        row.update({"rater": "রিমা", **answers})
    with sheet.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    expect("human", "import", str(run), str(sheet))
    demo = Path(bnbench.__file__).parent / "demo" / "adapter"
    shutil.copytree(demo, folder / "adapter")
    audits = json.loads(RECORD.read_text(encoding="utf-8"))[:1]
    (folder / "audits.json").write_text(json.dumps(audits), encoding="utf-8")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "state").write_text("x", encoding="utf-8")
    seal(folder / "checkpoint-1", 1.0)
    return folder


CRITERIA = {"empathy", "relevance", "fluency", "overall"}


def expect(*words: str) -> None:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.stderr


def targets(folder: Path) -> list[tuple[Path, Callable[[], None]]]:
    """Each record, and the commands that read it."""
    run, adapter, sheet = folder / "run", folder / "adapter", folder / "run" / "human" / "rater-1.csv"
    report = ("report", str(run))
    people = ("human", "import", str(run), str(sheet))
    publish = ("publish", str(adapter), "--dry-run", "--base-id", "a/b", "--out", str(folder / "published"))
    found: list[tuple[Path, Callable[[], None]]] = [
        (run / name, lambda words=words: run_commands(*words))
        for name, words in {
            "run.json": [report],
            "examples.jsonl": [report],
            "generations.jsonl": [report],
            "ratings.jsonl": [report, ("human", "agreement", str(run)), people],
            "human-key.jsonl": [people],
            "human/rater-1.csv": [people],
        }.items()
    ]
    found += [(path, lambda: run_commands(report)) for path in sorted((run / "scores").rglob("*.parquet"))]
    found += [(adapter / name, lambda: run_commands(publish)) for name in ("training.json", "adapter_config.json")]
    found.append((folder / "audits.json", lambda: run_commands((*report, "--audit", str(folder / "audits.json")))))
    found.append((folder / "checkpoint-1" / "sealed.json", lambda: seals(folder)))
    return found


def run_commands(*commands: tuple[str, ...]) -> None:
    for words in commands:
        done = CliRunner().invoke(app, list(words))
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code in (0, 1, 2, 3), done.exit_code
        if done.exit_code:
            assert done.stderr.splitlines()[-1] and "bnbench: " in done.stderr, done.stderr
            assert "Traceback" not in done.stderr, done.stderr


def seals(folder: Path) -> None:
    copy = folder / "copy"  # what is torn is removed
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "checkpoint-1", copy / "checkpoint-1")
    newest_checkpoint(copy)


def damages(path: Path, seed: int) -> Iterator[tuple[str, bytes]]:
    """All damages to one record."""
    whole = path.read_bytes()
    if path.suffix == ".json":
        yield from ((what, text.encode("utf-8", "surrogatepass")) for what, text in of_json(json.loads(whole)))
    elif path.suffix == ".jsonl":
        lines = whole.splitlines()
        for i in sorted({0, len(lines) - 1}):
            document = {k: v for k, v in json.loads(lines[i]).items() if k != "sha256"}
            for what, text in of_json(document):
                damaged = [*lines[:i], text.encode("utf-8", "surrogatepass"), *lines[i + 1 :]]
                yield f"line {i}: {what}", b"\n".join(damaged) + b"\n"
    yield from of_bytes(whole, seed)


def try_one(path: Path, read: Callable[[], None], content: bytes) -> None:
    """One damage, and the file as it was again."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        read()
    finally:
        path.write_bytes(whole)


def parse(kind: str, content: bytes, folder: Path) -> None:
    """Reads a table of a kind as every command does that reads one; what it says is a BnbenchError."""
    path = folder / f"noise{kind}"
    path.write_bytes(content)
    for read in (lambda: list(iter_table(path)), lambda: read_records(path), lambda: load_corpus(path),
                 lambda: Predictions.read(path), lambda: read_ratings(path)):  # fmt: skip
        try:
            read()
        except BnbenchError as error:
            assert str(path) in str(error) or path.name in str(error), error


def main() -> int:
    if "--atheris" in sys.argv:
        return guided([word for word in sys.argv if word != "--atheris"])
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    logging.disable(logging.CRITICAL)
    render.write_report.__kwdefaults__["resamples"] = render.people_report.__kwdefaults__["resamples"] = 50
    rng, end, tried, failed = random.Random(asked.seed), time.monotonic() + asked.seconds, 0, dict[str, str]()
    with tempfile.TemporaryDirectory() as place:
        folder = make(Path(place))
        records = targets(folder)
        choices = [(path, read, list(damages(path, asked.seed))) for path, read in records]
        seeds = {kind: path.read_bytes() for path, _ in records for kind in (path.suffix,) if kind in KINDS}
        seeds[".csv"] = (Path(bnbench.__file__).parent / "demo" / "conversations.csv").read_bytes()[:4000]
        while time.monotonic() < end:
            tried += 1
            try:
                if rng.random() < 0.7:
                    path, read, every = rng.choice(choices)
                    what, content = rng.choice(every)
                    label = f"{path.relative_to(folder)}: {what}"
                    try_one(path, read, content)
                else:
                    kind = rng.choice(KINDS)
                    what, content = rng.choice(list(of_bytes(seeds.get(kind, seeds[".csv"]), rng.randrange(2**32))))
                    label = f"noise{kind}: {what}"
                    parse(kind, content, folder)
            except Exception as error:
                if (why := f"{type(error).__name__}: {str(error)[:200]}") not in failed.values():
                    print(f"{label}: {why}", flush=True)
                failed[label] = why
    print(f"{tried} damages, {len(failed)} failures, seed {asked.seed}")
    return bool(failed)


def feed(data: bytes, folder: Path) -> None:
    """Gives data to one of the readers, by its first byte; none raises anything but a BnbenchError."""
    which, content = data[0] % (len(KINDS) + 7), data[1:]
    path = folder / "fed"
    if which < len(KINDS):
        parse(KINDS[which], content, folder)
    elif which < len(KINDS) + 6:
        for name in ("fed", "fed.toml", "run.json", "training.json"):
            (folder / name).write_bytes(content)
        with suppress(BnbenchError):
            (
                lambda: read_record(folder),
                lambda: read_training(folder),
                lambda: read_lines(Generation, path),
                lambda: read_lines(Rating, path),
                lambda: read_lines(Example, path),
                lambda: load_recipe(folder / "fed.toml"),
            )[which - len(KINDS)]()
    else:
        text = content.decode("utf-8", "replace")
        bengali(text), tokenize(text), split_sentences(text), repair(text)
        assert normalize(normalize(text)) == normalize(text), text


def guided(words: list[str]) -> int:
    """Fuzzing by coverage of the readers: if all that is loaded counts, it starts late and tries little.

    What fails is written to a file in the folder where this runs, and ends it.
    """
    import atheris

    folder = Path(tempfile.mkdtemp())
    logging.disable(logging.CRITICAL)
    for reader in READERS:
        members = [*vars(reader).values()]
        members += [one for made in members if isinstance(made, type) for one in vars(made).values()]
        for function in filter(inspect.isfunction, members):
            if function.__module__ == reader.__name__:
                atheris.instrument_func(function)
    seeds = folder / "seeds"
    seeds.mkdir()
    made = make(folder)
    demo = Path(bnbench.__file__).parent / "demo"
    named = {".csv": demo / "conversations.csv", "run.json": made / "run" / "run.json"}
    named |= {"training.json": made / "adapter" / "training.json", "fed": made / "run" / "generations.jsonl"}
    for number, kind in enumerate((*KINDS, *["run.json", "training.json", "fed", "fed", "fed", "toml", "text"])):
        content = named[kind].read_bytes()[:4000] if kind in named else REPLY.encode()
        (seeds / str(number)).write_bytes(bytes([number]) + content)
    atheris.Setup([*words, str(seeds)], lambda data: feed(data, folder) if data else None)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
