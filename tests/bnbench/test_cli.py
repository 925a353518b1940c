import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bnbench import __version__
from bnbench.cli import app
from bnbench.metrics import default_metrics

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
    for command in ("evaluate", "finetune", "report", "compare", "score", "corpus", "inspect-prompt"):
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
        (["evaluate", "--primary", "chrf"], "chrF++"),
        (["evaluate", "--out", "file/run"], "choose another path"),
        (["compare", "runs/a", "runs/b", "--out", "runs/a"], "one of the runs"),
        (["finetune", "--split", "test"], "train on train"),
        (["finetune", "--recipe", "t5"], "t4"),
        (["finetune", "--set", "learning_rte=1"], "learning_rate"),
        (["finetune", "--stop-after", "soon"], "11h30m"),
        (["corpus", "none.csv"], "no such file"),
        (["score", "none.csv"], "none.csv: no such file"),
        (["score", "none.csv", "--columns", "reply"], "NAME=VALUE"),
        (["score", "none.csv", "--profile", "orignal"], "original"),
        (["score", "none.csv", "--workers", "0"], "workers"),
        (["inspect-prompt", "--row", "9999"], "row 9999"),
    ],
)
def test_a_wrong_request_is_one_clear_message_and_exit_code_2(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
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


def test_score_is_not_gone_on_with(monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bnbench.scoring.score", interrupted)
    result = run("score", tmp_path / "a.txt")
    assert result.exit_code == 130
    assert result.stderr.strip() == "bnbench: interrupted"


@pytest.fixture
def scored(tmp_path):
    """A file of replies, one of references in another order, and one of messages."""
    replies = ["মন খারাপ হওয়াটা স্বাভাবিক, আমি শুনছি।", "আপনি একা নন।", ""]
    rows = [{"id": i, "reply": reply} for i, reply in enumerate(replies)]
    back = [{"id": 2 - i, "reference": reply} for i, reply in enumerate(reversed(replies))]
    files = {"p.jsonl": rows, "r.jsonl": back, "m.jsonl": [{"id": i, "question": "মন খারাপ লাগছে"} for i in range(3)]}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return [tmp_path / name for name in files]


def test_score_prints_one_line_a_metric(scored):
    replies, references, messages = scored
    result = run("score", replies, "--references", references, "--messages", messages)
    assert result.exit_code == 0, result.output
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert names == [metric.name for metric in default_metrics(frozenset({"references", "messages"}))]
    # A resample of nothing but the empty reply scores 0.
    assert result.stdout.startswith("chrF++ 100.00 [0.00, 100.00] chrF++|norm:bn1|tok:bn1|n:3|bnbench:")
    assert "score: 3/3" in result.stderr


def test_score_of_some_metrics_as_json(scored):
    replies, references, _ = scored
    result = run("score", replies, "--references", references, "--metric", "rouge", "--metric", "BLEU", "--json", "-q")
    made = json.loads(result.stdout)
    assert made["n"] == 3
    assert list(made["metrics"]) == ["ROUGE", "BLEU"]
    assert made["metrics"]["ROUGE"]["value"] == made["metrics"]["ROUGE"]["scores"]["rougeL"] == pytest.approx(200 / 3)
    assert made["metrics"]["ROUGE"]["signature"] == "ROUGE|norm:bn1|tok:bn1|stem:no|n:3|bnbench:0.1"
    assert result.stderr == ""
    missing = run("score", replies, "--metric", "BLEU")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "BLEU needs references" in missing.stderr


def test_score_with_the_original_s_formulas(scored):
    replies, references, messages = scored
    result = run("score", replies, "--references", references, "--messages", messages, "--profile", "original")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[1:-1]}
    assert rows["rougeL"] == ["0.0000", "66.67"]
    assert rows["keyword-empathy"][0] == f"{200 / 14 * 3 / 3:.4f}"
    as_json = json.loads(run("score", replies, "--references", references, "--profile", "original", "--json").stdout)
    assert as_json["rougeL"] == 0
    assert as_json["corrected"]["BLEU"] == pytest.approx(100)


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
