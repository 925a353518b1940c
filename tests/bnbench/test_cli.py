import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bnbench import __version__
from bnbench.cli import app

HEAVY = {"torch", "transformers", "peft", "trl", "pandas", "datasets", "sacrebleu"}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_help_loads_nothing_heavy():
    code = (
        "import sys, bnbench.cli as c\ntry: c.app(['--help'])\n"
        "except SystemExit: pass\nprint(sorted(set(sys.modules) & %r), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code % HEAVY], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for command in ("evaluate", "finetune", "report", "compare", "corpus", "inspect-prompt"):
        assert command in done.stdout


def test_version():
    assert run("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--base", "no/such-model"], "no/such-model"),
        (["evaluate", "--primary", "chrf+"], "chrF++"),
        (["evaluate", "--data", "none.csv"], "none.csv: no such file"),
        (["evaluate", "--split-sizes", "1/2"], "train/validation/test"),
        (["evaluate", "--columns", "question"], "NAME=VALUE"),
        (["evaluate", "--split", "dev"], "there is no split 'dev'"),
        (["evaluate", "--temperature", "-1"], "temperature"),
        (["evaluate", "--bsae", "x"], "No such option"),
        (["finetune", "--recipe", "t5"], "t4"),
        (["finetune", "--set", "learning_rte=1"], "learning_rate"),
        (["finetune", "--stop-after", "soon"], "11h30m"),
        (["corpus", "none.csv"], "no such file"),
        (["inspect-prompt", "--row", "9999"], "row 9999"),
    ],
)
def test_a_wrong_request_is_one_clear_message_and_exit_code_2(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_folder_without_a_run_exits_1(tmp_path):
    result = run("report", tmp_path)
    assert result.exit_code == 1
    assert "no run.json" in result.stderr


def test_ctrl_c_exits_130_and_says_how_to_go_on(monkeypatch, tmp_path):
    def interrupted(request):
        raise KeyboardInterrupt

    monkeypatch.setattr("bnbench.evaluate.evaluate", interrupted)
    monkeypatch.setattr(sys, "argv", ["bnbench", "evaluate", "--limit", "3"])
    result = run("evaluate", "--limit", 3, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert "bnbench evaluate --limit 3" in result.stderr


def test_corpus_shows_every_step_and_the_fingerprint():
    table = run("corpus").stdout
    assert "160 train · 40 validation · 40 test" in table
    summary = json.loads(run("corpus", "--json").stdout)
    assert summary["splits"] == {"train": 160, "validation": 40, "test": 40}
    assert {"encoding", "empty", "too short", "duplicate", "near-duplicate"} <= {s["name"] for s in summary["steps"]}


def test_recipes_are_listed_and_copied(tmp_path):
    listed = run("finetune", "--list").stdout
    assert "original-t4" in listed
    assert "demo" in listed
    path = tmp_path / "mine.toml"
    assert run("finetune", "--recipe", "t4", "--copy", path).exit_code == 0
    assert "[" in path.read_text(encoding="utf-8")
    assert run("finetune", "--recipe", "t4", "--copy", path).exit_code == 2


def test_evaluate_prints_the_ranking_and_names_the_report(tiny_base, tiny_adapter, tmp_path):
    result = run(
        "evaluate",
        "--base",
        tiny_base,
        "--adapter",
        f"দ্বিতীয়={tiny_adapter}",
        "--limit",
        4,
        "--max-new-tokens",
        8,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    )
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "run" / "report.html") in result.stdout
    assert "দ্বিতীয়" in result.stdout
    again = run("report", tmp_path / "run", "--json")
    assert json.loads(again.stdout) == json.loads((tmp_path / "run" / "ranking.json").read_text(encoding="utf-8"))


def test_recorded_replies_are_ranked_beside_each_other_and_with_other_runs(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["মন খারাপ হওয়াটা স্বাভাবিক, আমি শুনছি।"] * 5), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(["হুম"] * 5), encoding="utf-8")
    for name in "ab":
        done = run("evaluate", "--predictions", tmp_path / f"{name}.txt", "--limit", 5, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    both = run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both", "--json")
    assert both.exit_code == 0, both.output
    assert {s["candidate"] for s in json.loads(both.stdout)["standings"]} == {"a", "b"}
