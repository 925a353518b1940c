"""Texts of strangers, made to look like ours, to steer a terminal or a spreadsheet, or to carry files away."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.errors import PromptError, UsageError
from bnbench.finetune import publish
from bnbench.models.prompts import Prompter
from bnbench.progress import Lines, told

FORGED = "x\x1b[2J\x9b1m\nbnbench: 100 % better than base\r"


def test_a_line_of_ours_cannot_be_forged() -> None:
    assert told(f"bnbench: {FORGED}") == "bnbench: x\ufffd[2J\ufffd1m\n  bnbench: 100 % better than base\ufffd"
    assert told("a\u202e\u2066b\u200d") == "a\ufffd\ufffdb\u200d"
    entry = logging.LogRecord("bnbench", logging.INFO, "", 0, "column %s", (FORGED,), None)
    assert Lines().format(entry) == "column x\ufffd[2J\ufffd1m\n  bnbench: 100 % better than base\ufffd"


def test_the_head_of_a_table(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[FORGED, "b"], ["ক", "খ"]])
    (tmp_path / "b.jsonl").write_text(json.dumps({FORGED: "ক"}) + "\n", encoding="utf-8")
    for name in ("a.csv", "b.jsonl"):
        done = CliRunner().invoke(app, ["score", str(tmp_path / name)])
        assert done.exit_code == 2 and "\x1b" not in done.output and "\x9b" not in done.output
        assert [line for line in done.stderr.splitlines() if line.startswith("bnbench:")] == [
            done.stderr.splitlines()[0]
        ]


def test_what_a_template_says(tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text('{{ raise_exception("x\\x1b[2J\\nbnbench: fine") }}', encoding="utf-8")
    with pytest.raises(PromptError, match="cannot be used") as error:
        Prompter.of(tiny_tokenizer, template=str(path))
    assert told(str(error.value)).count("\nbnbench") == 0 and "\x1b" not in told(str(error.value))


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("আমি শুনছি।\n" * 240, encoding="utf-8")
    words = [word for name in ("@SUM(1)", "-1", "ক") for word in ("--predictions", f"{name}={tmp_path / 'a.txt'}")]
    done = CliRunner().invoke(app, ["evaluate", *words, "--limit", "2", "--out", str(tmp_path / "run"), "-q"])
    assert done.exit_code == 0
    rows = list(csv.DictReader((tmp_path / "run" / "ranking.csv").open(encoding="utf-8")))
    assert {row["candidate"] for row in rows} == {"'@SUM(1)", "'-1", "ক"}
    assert all(row["difference"][:1] in ("", "-", *"0123456789") for row in rows)


def test_links_out_of_an_adapter_are_not_published(tiny_adapter: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hf_canary", encoding="utf-8")
    shutil.copytree(tiny_adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer.json").symlink_to(secret)
    with pytest.raises(UsageError, match=r"tokenizer\.json is a link to .*secret, which would be published"):
        publish(tmp_path / "adapter", base_id="a/b", dry_run=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "adapter" / "tokenizer.json").unlink()
    (tmp_path / "adapter" / "mine.json").write_text("{}", encoding="utf-8")
    (tmp_path / "adapter" / "tokenizer.json").symlink_to("mine.json")
    publish(tmp_path / "adapter", base_id="a/b", dry_run=True, out=tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8") == "{}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("আমি শুনছি।\n" * 240, encoding="utf-8")
    words = ["evaluate", "--predictions", str(tmp_path / "a.txt"), "--limit", "2", "--out", str(tmp_path / "run"), "-q"]
    assert CliRunner().invoke(app, words).exit_code == 0
    return tmp_path / "run"


def test_nothing_is_written_through_a_link_of_a_run(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious", encoding="utf-8")
    for name in (".report.html.tmp", ".report.md.tmp", "ranking.csv", ".lock"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(mine)
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert mine.read_text(encoding="utf-8") == "precious"
    assert (run / "report.html").is_file() and not (run / "ranking.csv").is_symlink()
    (run / "generations.jsonl").unlink()
    (run / "generations.jsonl").symlink_to(tmp_path / "made")
    words = ["evaluate", "--predictions", str(tmp_path / "a.txt"), "--limit", "2", "--out", str(run)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "generations.jsonl is a link, through which nothing is written" in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["generations.jsonl", "ratings.jsonl", "audits.json"])
def test_a_pipe_in_a_run_is_not_waited_for(run: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    done = CliRunner().invoke(app, ["report", str(run)])
    if name == "audits.json":  # which a run may lack
        assert done.exit_code == 0
    else:
        assert done.exit_code == 2 and f"{name}: not a file that can be read" in done.stderr


def test_a_configuration_is_text_in_the_card(tiny_adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"peft_type": "<script>\n# forged", "target_modules": ["[x](http://y)"]}
    path.write_text(json.dumps(config), encoding="utf-8")
    publish(tmp_path / "adapter", base_id="a/b", dry_run=True, out=tmp_path / "out")
    body = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]
    assert "<script>" not in body and "\n# forged" not in body and "](http://y" not in body.replace("\\]", "")
