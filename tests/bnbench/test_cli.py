import csv
import errno
import io
import json
import logging
import os
import subprocess
import sys
from importlib import metadata
from importlib.resources import files
from types import SimpleNamespace

import pytest
from typer import Context
from typer.main import get_command
from typer.testing import CliRunner

from bnbench import __version__, cli
from bnbench.cli import IDLE, app
from bnbench.data import join, pairs
from bnbench.data.corpus import READ
from bnbench.metrics import BLEU, default_metrics
from bnbench.records import OF_RUN, alone

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
    models, files = ("evaluate", "finetune", "publish", "perplexity"), ("report", "compare", "score", "corpus")
    for command in (*models, *files, "inspect-prompt"):
        assert command in done.stdout


def test_options_that_do_nothing_are_options():
    commands = get_command(app).commands
    for command, idle, without, beside in IDLE:
        known = {word for option in commands[command].params for word in option.opts}
        assert known >= {*idle.split(), *without.split(), *beside.split()}


@pytest.mark.parametrize(
    "line",
    [
        "evaluate --predictions a --base b --4bit --max-words 9",
        "evaluate --endpoint a#b --max-words 9 --tokenizer c --max-tokens 9",
        "evaluate --4bit --device cpu --top-k 3",
        "report run --serve --port 80",
        "finetune --copy x --recipe t4 --base b",
    ],
)
def test_options_that_do_something_are_taken(line):
    commands, words = get_command(app), line.split()
    assert commands.resolve_command(Context(commands), words)[0] == words[0]


def test_version():
    assert run("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--base", "no/such-model"], "no/such-model"),
        (["evaluate", "--primary", "chrf+"], "chrF++"),
        (["evaluate", "--primary", "COMBINED"], "--combine METRIC=WEIGHT"),
        (["evaluate", "--combine", "CHRF++=1,PERPLEXITY=1"], "lower is better"),
        (["evaluate", "--predictions", "file", "--metric", "PERPLEXITY"], "it needs likelihoods, which none of them"),
        (["evaluate", "--combine", "chrF++=1,semantic=1"], "semantic-empathy"),
        (["evaluate", "--combine", "chrF++=1,perplexity=1"], "lower is better"),
        (["evaluate", "--metric", "chrf+"], "did you mean 'chrF++'?"),
        (["evaluate", "--metric", "chrF", "--metric", "chrF:none"], "chrF and chrF:none: a run has one chrF"),
        (["evaluate", "--metric", "chrF:none", "--primary", "chrF:bn1"], "chrF:none and chrF:bn1: a run has one chrF"),
        (["evaluate", "--predictions", "file", "--primary", "perplexity"], "it needs likelihoods, which none of them"),
        (["evaluate", "--predictions", "file", "--metric", "perplexity"], "it needs likelihoods, which none of them"),
        (["evaluate", "--backend", "recorder"], "did you mean 'recorded'?"),
        (["evaluate", "--backend", "recorded"], "name a model with --base"),
        (["evaluate", "--combine", "chrF++=-1"], "positive"),
        (["evaluate", "--primary", "combined"], "--combine METRIC=WEIGHT"),
        (["score", "none.csv", "--combine", "chrF++"], "METRIC=WEIGHT"),
        (["evaluate", "--data", "none.csv"], "none.csv: no such file"),
        (["evaluate", "--split-sizes", "1/2"], "train/validation/test"),
        (["evaluate", "--columns", "question"], "FIELD=COLUMN"),
        (["evaluate", "--split", "al"], "there is no split 'al'; did you mean 'all'?"),
        (["evaluate", "--split", "dev", "--data", "none.csv"], "there is no split 'dev'"),
        (["evaluate", "--columns", "questoin=x", "--data", "none.csv"], "did you mean 'question'?"),
        (["evaluate", "--base", "no/model", "--data", "none.csv"], "none.csv: no such file\n  model no/model: "),
        (["evaluate", "--predictions", "a=x.csv", "--data", "none.csv"], "file\n  predictions x.csv: no such file"),
        (["evaluate", "--base", "file"], "base file: file is a file; name its folder"),
        (["evaluate", "--adapter", "none"], "none@main is not in the hub cache "),
        (
            ["evaluate", "--predictions", "r.txt", "--predictions", "r.txt"],
            "'r': put a name in front of one, such as --p",
        ),
        (["score", "none.json"], "no column holds a reply; the columns are none. Name"),
        (["evaluate", "--predictions", "folder"], "predictions folder: a folder; name a file in it"),
        (["evaluate", "--data", "folder"], "folder: a folder; name a file in it"),
        (["evaluate", "--data", "x" * 300 + ".csv"], "File name too long"),
        (["evaluate", "--temperature", "-1"], "temperature"),
        (["evaluate", "--bsae", "x"], "No such option"),
        (["evaluate", "--base", "a", "--base", "b"], "bnbench: --base is given twice: give it once\n"),
        (["evaluate", "--seed", "1", "--limit", "2", "--seed=1"], "--seed is given twice"),
        (["doctor", "--4bit", "--no-4bit"], "--4bit/--no-4bit is given twice"),
        (["evaluate", "--base", ""], "bnbench: --base is empty: give it a value, or leave it out\n"),
        (["evaluate", "--predictions", "file", "--predictions="], "--predictions is empty"),
        (["export", "bnbench-demo/adapter", "--gguf", ""], "--gguf is empty"),
        (["report", ""], "run is empty"),
        (["perplexity", "file", ""], "texts is empty"),
        (
            ["finetune", "--dry-run", "--start", "file", "--recipe", "dpo"],
            "adapter file: file is a file; name its folde",
        ),
        (["doctor", "--rows", "9"], "--rows would do nothing without --base: leave it out\n"),
        (
            ["evaluate", "--predictions", "file", "--4bit"],
            "--4bit would do nothing beside --predictions without --base or",
        ),
        (["evaluate", "--endpoint", "x#y", "--no-4bit"], "--4bit would do nothing beside --endpoint without --base or"),
        (
            ["evaluate", "--predictions", "file", "--max-words", "9"],
            "nothing beside --predictions without --base or --ada",
        ),
        (["evaluate", "--endpoint", "x#y", "--max-tokens", "9"], "without --base or --adapter or --tokenizer"),
        (
            ["evaluate", "--greedy", "--top-p=1", "--top-k", "2"],
            "--top-k, --top-p would do nothing beside --greedy: lea",
        ),
        (
            ["evaluate", "--max-words", "9", "--max-new-tokens", "9"],
            "--max-words would do nothing beside --max-new-tok",
        ),
        (["evaluate", "--judge-language", "en"], "--judge-language would do nothing without --judge"),
        (["audit", "--judge-language", "en"], "--judge-language would do nothing without --judge"),
        (["finetune", "--list", "--recipe", "t4"], "--recipe would do nothing beside --list"),
        (["finetune", "--copy", "x.toml", "--set", "epochs=1"], "--set would do nothing beside --copy"),
        (["report", "run", "--port", "80"], "--port would do nothing without --serve"),
        (["report", "run", "--dataset-id", "a/b"], "--dataset-id would do nothing: it is for --export lm-eval, "),
        (["compare", "a", "b", "--dataset-id", "a/b", "--export", "csv"], "--dataset-id would do nothing: it is for"),
        (["perplexity", "file", "--columns", "text=x"], "--columns would do nothing: each of the texts is a file with"),
        (["perplexity", "two.csv", "--lines"], "--lines would do nothing: each of the texts is a table"),
        (["human", "sheet", "folder", "--raters", "2", "--raters", "3"], "--raters is given twice"),
        (["corpus", "two.csv", "--columns", "question=a", "--columns", "question=b"], "question=a is given too"),
        (["finetune", "--set", "epochs=1", "--set", "epochs=2"], "--set epochs=2: epochs=1 is given too; give it once"),
        (["evaluate", "--group", "a=b,c", "--group", "a=d,e"], "--group a=d,e: a=b,c is given too"),
        (["finetune", "--set", "epochs=1", "--sweep", "epochs=1,2"], "--set and --sweep both have epochs"),
        (["evaluate", "--system", "a=b", "--system", "c"], "'a=b' and 'c' are both given for all"),
        (["evaluate", "--template", "demo-base=chat", "--template", "demo-base=plain"], "both given for demo-base"),
        (["evaluate", "--data", "\x1b[31m\x9b2J\udcff.csv"], "\ufffd[31m\ufffd2J\ufffd.csv: no such file"),
        (["evaluate", "--out", "file/run"], "file: a file, not a folder; name another --out"),
        (["compare", "runs/a"], "`bnbench report runs/a` ranks one by itself"),
        (["finetune", "--split", "test"], "train on train"),
        (["finetune", "--recipe", "t5"], "there is no recipe 't5'; did you mean 't4'?"),
        (["finetune", "--recipe", "zz"], "there is no recipe 'zz' (shipped: "),
        (["finetune", "--set", "zzz=1"], "unknown key 'zzz'; known: name, "),
        (["finetune", "--set", "targets=wxyz"], "which the base has not. It has "),
        (["finetune", "--set", "epochs"], "write it as KEY=VALUE"),
        (["finetune", "--set", "learning_rte=1"], "learning_rate"),
        (["finetune", "--stop-after", "soon"], "11h30m"),
        (["corpus", "none.csv"], "no such file"),
        (
            ["evaluate", "--columns", "prompt=a"],
            "unknown field 'prompt' in the column mapping; did you mean 'question'?",
        ),
        (["corpus", "two.csv", "--columns", "Answer=a"], "did you mean 'reference'? the fields are topic, title, "),
        (
            ["score", "two.csv", "--columns", "prompt=a"],
            "unknown field 'prompt' in the column mapping; did you mean 'message'",
        ),
        (["evaluate", "--columns", "message=a", "--columns", "question=b"], "unknown field 'message'"),
        (["evaluate", "--columns", "reply=a"], "unknown field 'reply'"),  # there are no recorded ones
        *(([name, "--columns", "message=x"], "give --data too") for name in ("evaluate", "corpus", "inspect-prompt")),
        (["score", "none.csv"], "none.csv: no such file"),
        (["score", "none.csv", "--columns", "reply"], "FIELD=COLUMN"),
        (["score", "none.csv", "--profile", "orignal"], "original"),
        (["score", "none.csv", "--workers", "0"], "workers"),
        (["inspect-prompt", "--row", "40"], "there is no row 40 in the split test: its 40 are counted from 0"),
        (["inspect-prompt", "--row", "240", "--split", "all"], "no row 240 in the whole file: its 240 are counted"),
        (["inspect-prompt", "--row", "2", "--data", "two.csv"], "no row 2 in the whole file: its 2 are counted"),
        *(([name, "--columns", "question=x"], "give --data too") for name in ("evaluate", "corpus", "inspect-prompt")),
    ],
)
def test_a_wrong_request_is_one_clear_message_and_exit_code_2(arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    rows = "question,answer\nঘুম আসে না।,রাতে হাঁটুন।\nমন খারাপ।,কথা বলুন।\n"
    for name, text in {"two.csv": rows, "r.txt": "আমি শুনছি।\n", "none.json": "{}"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        # What was asked for or given is at fault, whatever it is.
        *((words, 2) for words in (
            ["report", "folder"], ["report", "file"], ["report", "none"], ["report", "damaged"],
            ["compare", "folder", "damaged"], ["compare", "file", "page.html"],
            ["human", "sheet", "folder"], ["human", "import", "folder", "none.csv"], ["human", "agreement", "none"],
            ["score", "none.txt"], ["score", "folder"], ["score", "file", "--metric", "BLEUU"],
            ["corpus", "none.csv"], ["corpus", "file"], ["corpus", "two.csv", "--split-sizes", "x"],
            ["audit", "BLEUU"], ["audit", "--data", "none.csv"], ["preferences", "none.csv"],
            ["evaluate", "--base", "folder"], ["evaluate", "--adapter", "none/at/all"],
            ["evaluate", "--judge", "nowhere"],
            ["perplexity", "none.txt"], ["perplexity", "file"], ["inspect-prompt", "--template", "none.jinja"],
            ["finetune", "--recipe", "none.toml"], ["finetune", "--data", "two.csv", "--out", "foreign"],
            ["publish", "folder", "--dry-run"], ["publish", "none", "--dry-run"], ["export", "folder"],
            ["doctor", "--device", "tpu"], ["doctor", "--base", "folder"], ["nothing"], ["report"],
        )),
        # The work or a server failed: later the same command may do.
        (["evaluate", "--endpoint", "http://127.0.0.1:9#m"], 1),
    ],
)  # fmt: skip
def test_exit_codes(arguments, code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("folder", "damaged", "foreign/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    rows = "question,answer\nঘুম আসে না।,রাতে হাঁটুন।\nমন খারাপ।,কথা বলুন।\n"
    empty = ("file", "page.html", "foreign/adapter_config.json", "foreign/checkpoints/x")
    for name, text in {**dict.fromkeys(empty, ""), "two.csv": rows, "damaged/run.json": "{"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert done.output and "Traceback" not in done.output


@pytest.mark.parametrize("reply", [None, "", "{}"])
def test_ctrl_c_exits_130_and_says_how_to_go_on(monkeypatch, tmp_path, reply):
    def interrupted(request):
        with alone(request.out, OF_RUN):
            if reply is not None:
                (request.out / "generations.jsonl").write_text(reply, encoding="utf-8")
            raise KeyboardInterrupt

    monkeypatch.setattr("bnbench.evaluate.evaluate", interrupted)
    monkeypatch.setattr(sys, "argv", ["bnbench", "evaluate", "--limit", "3"])
    result = run("evaluate", "--limit", 3, "--out", tmp_path / "run")
    assert result.exit_code == 130
    kept = "what was computed is kept" if reply else "no reply is kept yet"  # a model was loading
    assert f"bnbench: interrupted; {kept}. Go on with: bnbench evaluate --limit 3\n" in result.stderr


@pytest.mark.parametrize(
    ("number", "reason", "written", "helps"),
    [
        (28, "No space left on device", False, "make room"),
        (28, "No space left on device", True, "make room; what was written before is kept"),
        (errno.EDQUOT, "Disk quota exceeded", True, "make room; what was written before is kept"),
        (30, "Read-only file system", True, "name another --out, or copy the folder elsewhere"),
    ],
)
def test_a_full_disk_is_one_line(monkeypatch, tmp_path, number, reason, written, helps):
    out = tmp_path / "run"

    def full(request):
        with alone(request.out, OF_RUN):
            if written:
                (request.out / "run.json").write_text("{}", encoding="utf-8")
            # A file that is open says no path; one that cannot be opened does.
            raise OSError(number, reason) if number != 30 else OSError(number, reason, str(out / "run.json"))

    monkeypatch.setattr("bnbench.evaluate.evaluate", full)
    result = run("evaluate", "--limit", 3, "--out", out)
    place = out / "run.json" if number == 30 else out
    assert (result.exit_code, result.stderr) == (1, f"bnbench: {place}: {reason}; {helps}\n")


@pytest.mark.parametrize("number", [28, 5])
def test_an_error_of_no_folder_promises_nothing(monkeypatch, tmp_path, number):
    def refuses(*_, **__):
        raise OSError(number, "No space left on device" if number == 28 else "Input/output error")

    monkeypatch.setattr("bnbench.score.score", refuses)
    said = "No space left on device; make room" if number == 28 else "Input/output error"
    assert run("score", tmp_path / "a.txt").stderr == f"bnbench: {said}\n"


def test_what_a_console_cannot_show_is_spelt_out(scored):
    command = [sys.executable, "-m", "bnbench", "score", scored[0], "--metric", "ক"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, check=False)
    assert done.returncode == 2
    assert b"\\u0995" in done.stderr and b"Traceback" not in done.stderr


def test_score_is_not_gone_on_with(monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bnbench.score.score", interrupted)
    result = run("score", tmp_path / "a.txt")
    assert result.exit_code == 130
    assert result.stderr.strip() == "bnbench: interrupted"


@pytest.fixture
def scored(tmp_path):
    """A file of replies, one of references in another order, and one of messages."""
    replies = ["মন খারাপ হওয়াটা স্বাভাবিক, আমি শুনছি।", "আপনি একা নন।", ""]
    rows = [{"id": i, "reply": reply} for i, reply in enumerate(replies)]
    back = [{"id": 2 - i, "reference": reply or "না।"} for i, reply in enumerate(reversed(replies))]
    files = {"p.jsonl": rows, "r.jsonl": back, "m.jsonl": [{"id": i, "question": "মন খারাপ লাগছে"} for i in range(3)]}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return [tmp_path / name for name in files]


def test_score_prints_one_line_a_metric(scored):
    replies, references, messages = scored
    result = run("score", replies, "--references", references, "--messages", messages)
    assert result.exit_code == 0, result.output
    head, *lines, few = result.stdout.splitlines()
    assert few.startswith("3 replies: too few to trust the intervals; ")
    assert head == "3 replies, 95 % bootstrap intervals; 0–100, ↑ higher is better, ↓ lower"
    names = [line.split()[1] for line in lines]
    assert names == [metric.name for metric in default_metrics(frozenset({"references", "messages"}))]
    assert lines[0].startswith("↑ chrF++ 96.26 [85.31, 100.00] chrF++|norm:bn1|tok:bn1|n:3|bnbench:")
    assert any(line.startswith("↓ degeneration ") for line in lines)
    assert "score: 3/3" in result.stderr


def test_a_log_for_machines(scored, monkeypatch, tmp_path):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)  # no bar all the same
    replies, references, _ = scored
    try:
        done = run("--log-json", "score", replies, "--references", references, "--metric", "BLEU")
        *_, entry = map(json.loads, done.stderr.splitlines())
        told = {key: entry.pop(key) for key in ("time", "message")}
        assert entry == {
            "level": "INFO", "logger": "bnbench.progress", "stage": "score", "done": 3, "total": 3, "tokens": 0
        }  # fmt: skip
        assert told["message"].startswith("score: 3/3 in ") and told["time"].endswith("+00:00")
        (tmp_path / "\x1b[2J.csv").write_text("reply\n\udc95", encoding="utf-8", errors="surrogateescape")
        monkeypatch.setattr(logging.getLogger(), "handlers", [])  # the last had that run's stderr
        done = run("--log-json", "score", tmp_path / "\x1b[2J.csv")
        (entry,) = map(json.loads, done.stderr.splitlines())
        assert (done.exit_code, entry["level"], entry["exit"]) == (2, "ERROR", 2)
        assert entry["message"].endswith(
            "[2J.csv, line 2: not UTF-8 (byte 0x95, • in Windows-1252); save the file as UTF-8"
        )
        assert "\x1b" not in done.stderr
    finally:
        logging.captureWarnings(False)


def test_score_says_what_more_files_would_add_and_that_one_reply_has_no_interval(scored, tmp_path):
    replies, references, _ = scored
    *_, hint = run("score", replies, "--references", references).stdout.splitlines()
    assert hint == "with --messages FILE also: keyword-empathy, semantic-empathy"
    assert "also:" not in run("score", replies, "--references", references, "--metric", "BLEU").stdout
    (tmp_path / "one.txt").write_text("আপনি একা নন।\n", encoding="utf-8")
    head, line, *_ = run("score", tmp_path / "one.txt", "--references", tmp_path / "one.txt").stdout.splitlines()
    assert head.startswith("1 reply, one gives no interval")
    assert line.startswith("↑ chrF++ 100.00 chrF++|")
    made = json.loads(run("score", tmp_path / "one.txt", "--json").stdout)
    assert made["metrics"]["degeneration"]["interval"] is None


def test_score_of_some_metrics_as_json(scored):
    replies, references, _ = scored
    result = run("score", replies, "--references", references, "--metric", "rouge", "--metric", "BLEU", "--json", "-q")
    made = json.loads(result.stdout)
    assert made["n"] == 3
    assert list(made["metrics"]) == ["ROUGE", "BLEU"]
    assert made["metrics"]["ROUGE"]["value"] == made["metrics"]["ROUGE"]["scores"]["rougeL"] == pytest.approx(200 / 3)
    assert made["metrics"]["ROUGE"]["signature"] == "ROUGE|norm:bn1|tok:bn1|stem:no|n:3|bnbench:0.9"
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
    assert as_json["corrected"]["BLEU"] == pytest.approx(84.648, abs=0.001)  # one of three replies is empty


def test_corpus_shows_every_step_and_the_fingerprint():
    table = run("corpus").stdout
    assert "160 train · 40 validation · 40 test" in table
    summary = json.loads(run("corpus", "--json").stdout)
    assert summary["splits"] == {"train": 160, "validation": 40, "test": 40}
    assert {"encoding", "empty", "too short", "duplicate", "near-duplicate"} <= {s["name"] for s in summary["steps"]}


def test_a_small_corpus_says_that_it_is_not_split_and_what_to_do(tmp_path):
    (tmp_path / "a.csv").write_text("Questions;Answers\nমন খারাপ;আমি শুনছি।\n", encoding="utf-8")  # as Excel saves it
    table = run("corpus", tmp_path / "a.csv").stdout
    assert "1 all" in table
    assert "not split: it has fewer than 100 usable rows, so evaluate and finetune each take all of them" in table
    assert "a column 'split' that says train, validation or test" in table
    assert "not split" not in run("corpus").stdout


def test_metrics_are_listed_with_plug_ins_and_what_they_need(monkeypatch):
    class Length(BLEU):
        name, needs, higher_is_better = "length", frozenset(), False

    def cut(to):
        return Length()

    plug_ins = [
        SimpleNamespace(name=n, value="a:b", load=lambda made=made: made)
        for n, made in (("length", Length), ("cut", cut))
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: plug_ins if group == "bnbench.metrics" else [])
    rows = {row["name"]: row for row in json.loads(run("metrics", "--json").stdout)}
    assert next(iter(rows)) == "chrF++" and list(rows)[-2:] == ["length", "cut"]
    assert rows["BLEU"]["needs"] == ["references"] and rows["BLEU"]["higher_is_better"] is True
    assert rows["length"]["higher_is_better"] is False and rows["length"]["signature"].startswith("length|norm:bn1")
    assert "needs an argument" in rows["cut"]["signature"]  # it does not hide the others
    shown = run("metrics").stdout
    assert "↓ perplexity        likelihoods  perplexity|norm:bn1|n:N|" in shown and "? cut " in shown


def test_every_command_prints_json_and_an_option_means_the_same_everywhere():
    said, commands = {}, dict(get_command(app).commands)
    for name, command in commands.pop("human").commands.items():
        commands[f"human {name}"] = command
    for name, command in commands.items():
        options = [p for p in command.params if p.param_type_name == "option"]
        assert "--json" in {word for option in options for word in option.opts}, name
        for option in options:
            said.setdefault(option.name, set()).add(option.help)
    assert {name for name, texts in said.items() if len(texts) > 1} == {
        "out",
        "data",
        "columns",
    }  # another file for each
    assert not any("[" in text or text[-1] != "." for texts in said.values() for text in texts if text)


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--base", "none"],
        ["finetune", "--base", "none"],
        ["finetune", "--base", "none", "--dry-run"],
        ["finetune", "--base", "none", "--sweep", "r=2,4"],
    ],
)
@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["notes.md"], "other files (notes.md)"),
        (["adapter_config.json", "adapter_model.safetensors", "a", "b"], "an adapter (a, adapter_config.json, "),
        (["config.json"], "a model (config.json)"),
        (["runs.json", "ranking.json"], "a report (ranking.json, runs.json)"),
        (["run.json"], "a run (run.json)"),
        (["training.json", "adapter_config.json"], "an adapter (adapter_config.json, training.json)"),
        ([".DS_Store"], ""),
    ],
)
def test_a_folder_that_holds_something_else_is_not_written_into(command, names, what, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in names:
        (out / name).write_text("{}", encoding="utf-8")
    result = run(*command, "--out", out)
    # What is gone on with is no other kind; all else is refused before the base, which is not there, is looked for.
    kinds = {"run.json": "evaluate", "training.json": "finetune"}
    is_same = kinds.get(names[0]) == command[0] and "--sweep" not in command
    said = "none" if is_same or not what else f"{out} holds {what}"
    assert (
        result.exit_code == 2 and said in result.stderr and ("name another --out" in result.stderr) == (said != "none")
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    file = run(*command, "--out", out / names[0])
    assert (file.exit_code, file.stderr) == (
        2,
        f"bnbench: {out / names[0]}: a file, not a folder; name another --out\n",
    )


def test_an_advice_names_options_of_its_own_command(tmp_path):
    (tmp_path / "p.csv").write_text("id,উত্তর\n1,ভালো আছি।\n", encoding="utf-8")
    said = "p.csv: no column holds a reply; the columns are id, উত্তর. "
    scored, ran = run("score", tmp_path / "p.csv"), run("evaluate", "--predictions", tmp_path / "p.csv")
    assert f"{said}Name the right one with --columns reply=NAME\n" in scored.stderr
    assert f"{said}Name the right one with --columns reply=NAME\n" in ran.stderr  # which has that option too
    columns = [*READ, "reply"]  # of the recorded ones
    fields = {"evaluate": columns, "score": [*join.FIELDS], "preferences": [*pairs.RATED], "perplexity": ["text"]}
    commands = get_command(app).commands
    for name, known in fields.items():
        told = next(p.help for p in commands[name].params if p.name == "columns")
        assert told.rstrip(".").partition("Fields: ")[2].split(", ") == known, name


def test_a_prompt_as_json():
    shown = json.loads(run("inspect-prompt", "--row", 1, "--json").stdout)
    assert shown["prompt_ids"] and shown["supervised_ids"] and shown["kind"] == "llama-3.1"
    assert run("inspect-prompt", "--row", 1).stdout.startswith(shown["text"][:100])


def test_capitals_of_a_metric_s_name_do_not_matter(scored):
    replies, references, _ = scored
    words = ["--metric", "ROUGE", "--combine", "CHRF++=0.5,rOuGe=0.5"]
    made = json.loads(run("score", replies, "--references", references, *words, "--json", "-q").stdout)
    assert list(made["metrics"]) == ["ROUGE", "chrF++", "combined"]
    assert run("audit", "bleu", "--data", references).stderr == run("audit", "BLEU", "--data", references).stderr


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
    (tmp_path / "a.txt").write_text("\n".join(["মন খারাপ হওয়াটা স্বাভাবিক, আমি শুনছি।"] * 240), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(["হুম"] * 240), encoding="utf-8")
    for name in "ab":
        done = run("evaluate", "--predictions", tmp_path / f"{name}.txt", "--limit", 5, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    both = run("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both", "--json")
    assert both.exit_code == 0, both.output
    assert {s["candidate"] for s in json.loads(both.stdout)["standings"]} == {"a", "b"}
    assert "load:" not in done.stderr and "generate:" not in done.stderr  # nothing of the kind was done


def test_audit_shows_both_empathy_metrics_beside_the_original_s(tmp_path):
    shipped = (files("bnbench.metrics.labelled") / "empathy_bn.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(shipped)))
    with (tmp_path / "mine.csv").open("w", encoding="utf-8", newline="") as lines:
        few = csv.DictWriter(lines, rows[0])
        few.writeheader()
        few.writerows(row for row in rows if row["id"] in sorted({r["id"] for r in rows})[:8])
    shown = run("audit", "--data", tmp_path / "mine.csv")
    table = shown.stdout.split("agreement with the labels")[1].splitlines()[1:9]
    assert [line.split("  ")[0] for line in table] == [
        "keyword-empathy lex:bn.3", "semantic-empathy enc:bn-static", "keyword-empathy lex:original.1",
        "original-semantic enc:bn-static", "length", "constant", "copy of the message", "question mark",
    ]  # fmt: skip
    found = json.loads(run("audit", "--data", tmp_path / "mine.csv", "--json").stdout)
    assert [each["metric"] for each in found] == ["keyword-empathy", "semantic-empathy"]
    assert shown.exit_code == (0 if all(each["passed"] for each in found) else 4)
    for each in found:
        gates = {check["verdict"] for check in each["checks"] if check["gate"]}
        assert each["passed"] == ("fails" not in gates) and "limit" not in gates
    assert run("audit", "BLEU", "--data", tmp_path / "mine.csv").exit_code == 4


def test_quiet_silences_transformers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as its notes on kernels that are not installed, which it writes while a model answers."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "")
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    level = logging.getLogger("bnbench").level
    try:
        cli._hush(True)
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    finally:
        logging.getLogger("bnbench").setLevel(level)
