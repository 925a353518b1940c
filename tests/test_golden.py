"""What the commands wrote before the house was redrawn is what they write now.

    BNBENCH_GOLDEN=write python -m pytest tests/test_golden.py    freezes today's outputs (say why in the commit)
    BNBENCH_GOLDEN=exact python -m pytest tests/test_golden.py    compares byte for byte, on the machine that froze them

Without either, words and layout must be the same to the letter and numbers to a part in a thousand: processors round
the last digits of a model's arithmetic differently.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.reports.test_language import left_in_english

GOLDEN = Path(__file__).parent / "golden" / "house"
MODE = os.environ.get("BNBENCH_GOLDEN", "")
RECIPES = ("demo", "dpo", "full-3-epochs", "lora-16bit", "original-t4", "t4", "t4-r16-all-linear", "unsloth")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
SAMPLES = Path(__file__).parents[1] / "metrics" / "labelled" / "empathy_bn.csv"


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command prints on stdout; it must end well."""
    from bnbench.cli import main

    capsys.readouterr()
    kept, sys.argv = sys.argv, ["bnbench", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = kept
    assert ended.value.code in (0, None), capsys.readouterr().err
    return capsys.readouterr().out


def same(name: str, text: str) -> None:
    path = GOLDEN / name
    if MODE == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    frozen = path.read_text(encoding="utf-8")
    if MODE == "exact":
        assert text == frozen, name
    assert NUMBER.sub("#", text) == NUMBER.sub("#", frozen), name
    pairs = zip(NUMBER.findall(text), NUMBER.findall(frozen), strict=True)
    for now, before in pairs:
        found, expected = (float(number.replace(",", "")) for number in (now, before))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3), f"{name}: {now} instead of {before}"


def without(text: str, *names: str) -> str:
    """The text less what differs from machine to machine or hour to hour: the values of these JSON keys."""
    return re.sub(rf'("(?:{"|".join(names)})": )("[^"]*"|[\d.]+|null)', r"\1…", text)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden") / "demo"


@pytest.fixture
def finished(demo: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The demo's run folder, evaluated once."""
    if not (demo / "ranking.json").exists():
        (demo.parent / "printed.txt").write_text(run(capsys, "evaluate", "--out", demo, "-q"), encoding="utf-8")
    return demo


@pytest.mark.no_cover
def test_demo_in_bengali(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen nowhere: that nothing of ours is left in English, with the training and cleaning of a real run."""
    folder = tmp_path / "demo"
    shutil.copytree(finished, folder)
    printed = run(capsys, "report", folder, "--lang", "bn")
    assert " ".join(printed.split()).startswith("demo-adapter তার বেস মডেল demo-base-এর চেয়ে ভালো: chrF++-এর পার্থক্য ১১.")
    assert left_in_english((folder / "report.html").read_text(encoding="utf-8")) == set()


def test_demo(finished: Path) -> None:
    import pandas as pd

    printed = (finished.parent / "printed.txt").read_text(encoding="utf-8")
    same("demo/printed.txt", printed.replace(str(finished), "RUN"))
    for name in ("report.md", "ranking.csv", "ranking.json", "examples.jsonl"):
        same(f"demo/{name}", (finished / name).read_text(encoding="utf-8"))
    # The key holds the versions of the libraries, which other machines have others of.
    # A line's hash is of its numbers too, to the last digit.
    lines = without((finished / "generations.jsonl").read_text(encoding="utf-8"), "key", "sha256")
    same("demo/generations.jsonl", lines)
    for path in sorted((finished / "scores").glob("*.parquet")):
        same(f"demo/{path.stem}.json", pd.read_parquet(path).to_json(orient="columns", indent=0, force_ascii=False))


def labelled() -> list[dict[str, str]]:
    with SAMPLES.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))[:90]


def test_score_of_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled()
    replies, references = tmp_path / "replies.txt", tmp_path / "references.txt"
    replies.write_text("".join(" ".join(r["reply"].split()) + "\n" for r in rows[:45]), encoding="utf-8")
    references.write_text("".join(" ".join(r["reply"].split()) + "\n" for r in rows[3:48]), encoding="utf-8")
    same("score/lines.txt", run(capsys, "score", replies, "--references", references, "-q"))


def test_score_by_id_with_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled()
    replies, others = tmp_path / "replies.jsonl", tmp_path / "others.jsonl"
    lines = [{"id": str(i), "reply": r["reply"]} for i, r in enumerate(rows)]
    replies.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    lines = [
        {"id": str(i), "reference": [rows[(i + 5) % 90]["reply"], rows[i - 7]["reply"]], "message": r["message"]}
        for i, r in enumerate(rows)
    ]
    backwards = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines[::-1])
    others.write_text(backwards, encoding="utf-8")
    given = ("score", replies, "--references", others, "--messages", others, "-q")
    same("score/by_id.json", run(capsys, *given, "--json").replace(str(tmp_path), "FOLDER"))
    same("score/combined.txt", run(capsys, *given, "--combine", "chrF++=0.25,semantic-empathy=0.75"))


def test_score_of_a_table_as_the_original_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = labelled()
    table = tmp_path / "table.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["response", "answer"], *([r["reply"], rows[i - 4]["reply"]] for i, r in enumerate(rows))])
    given = ("score", table, "--references", table, "--columns", "reply=response", "-q")
    same("score/table.txt", run(capsys, *given))
    same("score/original.txt", run(capsys, *given, "--profile", "original"))


@pytest.mark.no_cover
@pytest.mark.parametrize("recipe", RECIPES)
def test_dry_runs(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["finetune", "--dry-run", "--recipe", recipe, "-q"]
    if recipe == "dpo":
        run(capsys, "preferences", "--out", "pairs.csv")
        words += ["--data", "pairs.csv"]
    same(f"dry_run/{recipe}.txt", run(capsys, *words))
    same(f"dry_run/{recipe}.json", run(capsys, *words, "--json"))


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    same("dry_run/list.txt", run(capsys, "finetune", "--list"))


def test_publish(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = Path(__file__).parents[1] / "bnbench" / "demo" / "adapter"
    out = tmp_path / "published"
    run(capsys, "publish", adapter, "--run", finished, "--dry-run", "--base-id", "org/base", "--out", out)
    for path in sorted(out.rglob("*")):
        if path.suffix in (".md", ".json", ".csv", ".yaml"):
            same(f"publish/{path.relative_to(out).as_posix()}", path.read_text(encoding="utf-8"))
    same("publish/files.txt", "".join(f"{p.relative_to(out).as_posix()}\n" for p in sorted(out.rglob("*"))))


@pytest.mark.no_cover
def test_audit(capsys: pytest.CaptureFixture[str]) -> None:
    same("audit.txt", run(capsys, "audit"))
