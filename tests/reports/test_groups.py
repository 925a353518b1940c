"""Groups of training seeds, several replies an item, and gates."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.errors import UsageError
from bnbench.metrics import bootstrap
from bnbench.records import read_run, write_text
from bnbench.reports import Ranking, Report, rank
from bnbench.reports.gates import failures, parse_gates
from bnbench.reports.render import report_md
from tests.reports.conftest import PAIR, PREDICTIONS, Spec

Maker = Callable[..., Path]
BASE = PAIR[0]
SEEDS = (BASE, *(Spec(f"t4-{s}", 0.38 + 0.02 * s, base=BASE.location) for s in (1, 2, 3)), Spec("weak", 0.16))
GROUP = {"t4": ("t4-1", "t4-2", "t4-3")}


def ranked(folder: Path, **how: Any) -> Ranking:
    return rank([read_run(folder)], resamples=1000, **how)


def trained(folder: Path, **changes: tuple[str, Any]) -> None:
    """Gives the adapters of a run the record of one recipe, each with a seed of its own."""
    path = folder / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for seed, candidate in enumerate(c for c in record["candidates"] if c["name"].startswith("t4-")):
        key, value = changes.get(candidate["name"].replace("-", ""), ("r", 8))
        recipe = {"name": "t4", "r": 8, "seed": seed} | {key: value}
        candidate["training"] = {
            "recipe": recipe, "rows": 160, "steps": 40, "seconds": 9.0, "precision": {}, "peak_memory_bytes": None,
            "device": "cpu", "gain": None, "loss_at_start": 2.0, "loss_at_end": 1.0, "loss": [[1, 2.0], [40, 1.0]],
        }  # fmt: skip
    path.write_text(json.dumps(record), encoding="utf-8")


def test_a_group_ranks_as_one_over_items_and_seeds(make_run: Maker) -> None:
    folder = make_run(SEEDS)
    ranking, alone = ranked(folder, groups=GROUP), ranked(folder)
    assert [s.candidate for s in ranking.standings] == ["t4", "weak", BASE.name]
    assert len(ranking.pairs) == 3 and len(alone.pairs) == 10
    standing, (group,) = ranking.standings[0], ranking.groups
    tables = [alone.runs[0].tables[name]["chrF++"] for name in GROUP["t4"]]
    formula = ranking.metrics["chrF++"].formula
    assert standing.scores[0].value == pytest.approx(formula(np.mean(tables, axis=0).sum(axis=0))[0])
    each = [float(formula(table.sum(axis=0))[0]) for table in tables]
    assert (group.members, group.values, group.seeds) == (GROUP["t4"], pytest.approx(each), (None, None, None))
    assert 0 < group.share < 1
    [expected] = bootstrap(np.stack(tables), formula, resamples=1000)
    assert standing.scores[0].high == pytest.approx(expected.high, abs=0.5)
    # Shown are the replies of the first seed, and their own scores.
    entry = next(e for e in ranking.entries if e.name == "t4")
    assert entry.replies[0].candidate == "t4-1" and np.array_equal(entry.of_replies["chrF++"], tables[0])
    text = " ".join(report_md(ranking).split())
    assert "t4: one recipe, 3 seeds" in text and "Training-seed variance is covered for t4 alone" in text
    assert "t4 is better than its base" in text.replace("\\", "")
    assert "t4: one recipe, 3 seeds" in str(Report(ranking))


def test_seeds_are_found_in_the_records_of_trainings(make_run: Maker) -> None:
    folder = make_run(SEEDS)
    trained(folder)
    (group,) = ranked(folder).groups
    assert (group.name, group.members, group.seeds) == ("t4", GROUP["t4"], (0, 1, 2))
    assert len(ranked(folder, groups={}).standings) == 5  # each by itself
    trained(folder, t43=("r", 16))  # another recipe
    assert ranked(folder).groups[0].members == ("t4-1", "t4-2")
    trained(folder, t42=("seed", 0), t43=("r", 16))  # the same training twice is no other seed
    assert ranked(folder).groups == ()
    single = ranked(make_run(name="single"))
    assert "This is one training run" in report_md(single)


def test_a_common_report_takes_no_other_s_place_and_no_run_twice(
    make_run: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a, b, c = (make_run((BASE, Spec(x, 0.3, base=BASE.location)), name=x, n=4, metrics=("chrF++",)) for x in "abc")
    monkeypatch.chdir(tmp_path)

    def compare(*words: str | Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["compare", *map(str, words)])
        return done.exit_code, done.stderr

    assert compare(a, b)[0] == compare(b, a)[0] == 0
    before = (tmp_path / "runs/compare/ranking.json").read_bytes()
    code, said = compare(a, c)
    refused = "runs/compare holds a report on other runs. Name another --out, or start anew with --overwrite"
    assert (code, said) == (2, f"bnbench: {refused}\n")
    assert (tmp_path / "runs/compare/ranking.json").read_bytes() == before
    # What is wrong with the command itself is said first.
    assert compare(a, c, "--group", "x=none,base") == compare(a, c, "--group", "x=none,base", "--out", "anew")
    assert "none" in compare(a, c, "--group", "x=none,base")[1] and not (tmp_path / "anew").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.md").write_text("", encoding="utf-8")
    for overwrite in ([], ["--overwrite"]):
        code, said = compare(a, c, "--out", "notes", *overwrite)
        assert (code, said) == (
            2, "bnbench: notes holds other files (mine.md), and nothing to go on with: name another --out\n"
        )  # fmt: skip
    assert compare(a, c, "--overwrite")[0] == 0 and compare(a, c)[0] == 0
    # Killed when the first file of the report stood there.
    with monkeypatch.context() as killed:
        written = list[str]()

        def until(path: Path, text: str | bytes) -> None:
            if len(written) > 1:
                raise KeyboardInterrupt
            written.append(path.name)
            write_text(path, text)

        killed.setattr("bnbench.reports.render.write_text", until)
        assert compare(a, b, "--out", "fresh")[0] == 130 and written == ["runs.json", "ranking.json"]
    assert compare(a, b, "--out", "fresh")[0] == 0
    for folder in (c, a):
        code, said = compare(a, b, "--out", folder)
        assert code == 2 and f"{folder} holds a run." in said
    # The same run by its page, by the page of a comparison and by a copy.
    page, copied = tmp_path / "runs/compare/report.html", shutil.copytree(a, tmp_path / "copied")
    for other in (page, copied, a, f"{a}/../a"):
        code, said = compare(a, other, "--out", "new")
        assert (code, said) == (2, f"bnbench: {other} holds the same run as {a}; it cannot be compared with itself\n")
    assert not (tmp_path / "new").exists()


def test_each_run_compared_has_its_own_groups(make_run: Maker) -> None:
    def made(name: str, quality: float) -> Path:
        specs = (Spec(f"t4-{s}", quality + s / 50, base=BASE.location, location=f"{name}/{s}") for s in (1, 2, 3))
        return make_run((BASE, *specs), name=name, n=12, metrics=("chrF++",), groups=GROUP)

    folders = [made("এক", 0.2), made("দুই", 0.6)]
    runs = [read_run(folder) for folder in folders]
    ranking = rank(runs, resamples=100)
    assert {g.name: g.members for g in ranking.groups} == {
        "t4": GROUP["t4"], "t4 (দুই)": ("t4-1 (দুই)", "t4-2 (দুই)", "t4-3 (দুই)"),
    }  # fmt: skip
    assert [s.candidate for s in ranking.standings] == ["t4 (দুই)", "t4", BASE.name]
    again = replace(runs[0], record=replace(runs[0].record, finished="2026-12-01T00:00:00+00:00"))
    assert [g.name for g in rank([runs[0], again], resamples=100).groups] == ["t4"]
    # The same from their pages, and in Bengali.
    runner, out = CliRunner(), folders[0].parent / "both"
    for folder in folders:
        assert runner.invoke(app, ["report", str(folder)]).exit_code == 0
    pages = [str(folder / "report.html") for folder in folders]
    of_pages = runner.invoke(app, ["compare", *pages, "--out", str(out), "--json"])
    of_folders = runner.invoke(app, ["compare", *map(str, folders), "--out", str(out), "--json"])
    assert of_pages.exit_code == 0 and json.loads(of_pages.stdout) == json.loads(of_folders.stdout)
    words = ["--group", "সব=t4-1,t4-2,t4-1 (দুই)", "--lang", "bn"]
    told = runner.invoke(app, ["compare", *pages, "--out", str(out), *words])
    assert told.exit_code == 0 and "সব: একই রেসিপি, ৩টি সিড" in told.stdout
    # A page's run lies nowhere: the page is named.
    other = make_run(PAIR, name="other", n=10, metrics=("chrF++",))
    assert runner.invoke(app, ["report", str(other)]).exit_code == 0
    refused = runner.invoke(app, ["compare", pages[0], str(other / "report.html"), "--out", str(out / "third")])
    assert refused.exit_code == 2
    assert f"{other / 'report.html'} (10 items) and {pages[0]} (12 items) cannot be compared" in refused.stderr


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"t4": ("t4-1", "t4-9")}, "--group t4=t4-1,t4-9: there is no candidate 't4-9'; there are demo-base, t4-1"),
        ({"t4": ("t4-1",)}, "two candidates or more"),
        ({"a": ("t4-1", "t4-2"), "b": ("t4-2", "t4-3")}, "t4-2 is named twice"),
        ({"weak": ("t4-1", "t4-2")}, "there is a candidate weak"),
    ],
)
def test_groups_that_are_none(groups: dict[str, tuple[str, ...]], says: str, make_run: Maker) -> None:
    with pytest.raises(UsageError, match=says):
        ranked(make_run(SEEDS), groups=groups)


def test_gates_fail_where_the_items_can_tell(make_run: Maker) -> None:
    ranking = ranked(make_run(SEEDS))
    metrics, names = ranking.values, [s.candidate for s in ranking.standings]
    kinds = {e.name: e.record.kind for e in ranking.entries}

    def failed(*texts: str) -> list[str]:
        return failures(parse_gates(texts, metrics, kinds), ranking)

    assert failed("chrF++ < base", "CHRF++ < 5", "perplexity/bits_per_character > base") == []
    assert len(failed("chrF++ > base")) == 3  # not `weak`, which the items cannot tell from its base
    assert len(failed("chrF++ >= base")) == 4
    assert failed("weak: chrF++ < t4-1")[0].startswith("weak is −")
    assert "[−" in failed("weak: ROUGE/rouge1 < t4-1")[0] and failed("t4-1: ROUGE < weak") == []
    value = ranking.standings[-1].scores[0].value
    low = f"{names[-1]}: chrF++ < {value + 1}"
    assert failed(low) == [f"{names[-1]} has {value:.1f} chrF++ ({low})"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("chrF++ is low", "write 'METRIC < base'"),
        ("chrF < base", "there is no metric 'chrF'; did you mean 'chrF\\+\\+'"),
        ("chrF++/f1 < base", "there is no value 'f1'; there are chrF"),
        ("t5: chrF++ < base", r"no candidate 't5'; did you mean 't4'\? there are org/b, t4$"),
        ("chrF++ < nan", "nan is never reached; write a number"),
        ("chrF++ < basis", "no candidate 'basis'; did you mean 'base'"),
    ],
)
def test_gates_that_are_none(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_gates([text], {"chrF++": ("chrF++",), "BLEU": ("BLEU",)}, {"org/b": "base", "t4": "adapter"})


@pytest.mark.parametrize(
    ("text", "kinds", "says"),
    [
        ("chrF++ < base", {"a": "predictions", "b": "endpoint"}, r"no base; name a candidate \(a, b\) or a number"),
        ("base: chrF++ < 5", {"a": "predictions"}, "this run has no base"),
        ("a: chrF++ < basis", {"a": "predictions", "b": "predictions"}, "no candidate 'basis'; there are a, b$"),
        ("base: chrF++ < 5", {"org/b": "base", "t4": "adapter"}, "no candidate 'base'; there are org/b, t4$"),
        ("chrF++ < base", {"org/b": "base"}, "compares org/b with itself alone; name another, or a number"),
        ("org/b: chrF++ < base", {"org/b": "base", "t4": "adapter"}, "compares org/b with itself alone"),
        ("t4: chrF++ < t4", {"org/b": "base", "t4": "adapter"}, "compares t4 with itself alone"),
    ],
)
def test_gates_that_could_never_fail(text: str, kinds: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_gates([text], {"chrF++": ("chrF++",)}, kinds)


def test_a_gate_against_a_base_that_is_not_there_writes_nothing(make_run: Maker) -> None:
    folder = make_run(PREDICTIONS[:1])
    report = ["report", str(folder), "--fail-if"]
    refused = CliRunner().invoke(app, [*report, "chrF++ < base"])
    assert refused.exit_code == 2 and "this run has no base; name a candidate (demo-base)" in refused.stderr
    assert not (folder / "ranking.json").exists()
    assert CliRunner().invoke(app, [*report, "chrF++ < 1"]).exit_code == 0


def test_a_candidate_called_base_is_the_one_that_a_gate_names(make_run: Maker) -> None:
    better, worse = PREDICTIONS[1], replace(PREDICTIONS[0], name="base")
    ranking = ranked(make_run((better, worse)))
    kinds = {e.name: e.record.kind for e in ranking.entries}
    (said,) = failures(parse_gates(["chrF++ > base"], ranking.values, kinds), ranking)
    assert said.startswith("demo-adapter is +") and " to base, " in said


def test_a_gate_ends_the_command_with_4(make_run: Maker) -> None:
    folder = str(make_run())
    runner = CliRunner()
    assert runner.invoke(app, ["report", folder, "--fail-if", "chrF++ < base"]).exit_code == 0
    failed = runner.invoke(app, ["report", folder, "--fail-if", "chrF++ < base", "--fail-if", "chrF++ > 1"])
    assert failed.exit_code == 4 and "gate failed: demo-adapter has" in failed.stderr
    told = [
        "report",
        folder,
        "--lang",
        "bn",
        "--fail-if",
        "chrF++ > 1",
        "--fail-if",
        "demo-adapter: chrF++ > demo-base",
    ]
    lines = runner.invoke(app, told).stderr.splitlines()
    assert re.fullmatch(r"bnbench: শর্ত পূরণ হয়নি: demo-adapter-এর chrF\+\+ [\d.]+ \(chrF\+\+ > 1\)", lines[0])
    assert len(lines) == 3 and lines[2].startswith(
        "bnbench: শর্ত পূরণ হয়নি: chrF++-এ demo-base-এর তুলনায় demo-adapter-এর পার্থক্য +"
    )
    # A gate that names nothing is refused before anything is written.
    before = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
    for path in Path(folder).glob("re*.*"):
        path.unlink()
    refused = runner.invoke(app, ["report", folder, "--fail-if", "chrF < base"])
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "there is no metric 'chrF'; did you mean 'chrF++'?" in refused.stderr
    assert not list(Path(folder).glob("re*.*")) and "report.html" in before
    grouped = runner.invoke(app, ["report", folder, "--group", "both=demo-base,demo-adapter"])
    assert grouped.exit_code == 0 and "both: one recipe, 2 seeds" in grouped.stdout


def test_several_replies_to_an_item_are_resampled_together(make_run: Maker) -> None:
    folder = make_run()
    once = ranked(folder)
    # Each reply twice is no news; a second one of its own halves what the dice add.
    for path in (folder / "scores").glob("*.parquet"):
        frame = pd.read_parquet(path)
        pd.concat([frame, frame]).sort_values("id", kind="stable").to_parquet(path, index=False)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps(record | {"samples": 2}), encoding="utf-8")
    twice = ranked(folder)
    assert twice.pairs[0] == once.pairs[0]
    assert "Drawings of a reply" in str(Report(twice)) and "0 %" in str(Report(twice)).split("Drawings of a reply")[1]
