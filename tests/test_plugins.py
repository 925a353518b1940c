"""A package of somebody else's, installed: its metric, backend and tuner work through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bnbench
from bnbench.cli import app

PACKAGE = Path(__file__).parent / "plugin_package"
FILES = ("metric.py", "backend.py", "tuner.py")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the package is installed."""
    folder = tmp_path_factory.mktemp("site")
    # Nothing is fetched: setuptools is here. The sources are copied, as building writes beside them.
    source = tmp_path_factory.mktemp("source") / "package"
    source.mkdir()
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".toml"):
            to = source / path.relative_to(PACKAGE)
            to.parent.mkdir(exist_ok=True)
            to.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, capture_output=True)
    paths = [str(folder), str(Path(bnbench.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(environment: dict[str, str], folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "bnbench", *words]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_is_one_short_file() -> None:
    for name in FILES:
        assert (PACKAGE / "bnbench_example" / name).read_text(encoding="utf-8").count("\n") < 50


def test_a_metric_and_a_backend(installed: dict[str, str], tmp_path: Path) -> None:
    words = ["evaluate", "--backend", "echo", "--base", "parrot", "--metric", "questions", "--metric", "chrF"]
    made = json.loads(
        run(installed, tmp_path, *words, "--primary", "Questions", "--limit", "6", "--out", "r", "--json")
    )
    assert made["primary"] == "questions"
    replies = (tmp_path / "r" / "generations.jsonl").read_text(encoding="utf-8").splitlines()
    said = [json.loads(line)["reply"] for line in replies]
    assert len(said) == 6 and all(reply.startswith("আপনি বললেন, ") for reply in said)
    share = 100 * sum("?" in reply for reply in said) / 6
    [standing] = made["standings"]
    assert (standing["candidate"], standing["scores"][0]["value"]) == ("parrot", pytest.approx(share))
    assert "asks back, %" in (tmp_path / "r" / "report.md").read_text(encoding="utf-8")


def test_a_tuner_whose_adapter_is_evaluated(
    installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process, which has the libraries in it; its own path finds the package as a new process' would.
    monkeypatch.syspath_prepend(installed["PYTHONPATH"].split(os.pathsep)[0])
    monkeypatch.chdir(tmp_path)
    made = []
    for words in (
        ["finetune", "--recipe", "demo", "--set", "tuner=plain", "--set", "epochs=1", "--limit", "12", "--out", "mine"],
        ["evaluate", "--adapter", "mine", "--limit", "4", "--max-new-tokens", "4", "--out", "r"],
    ):
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code == 0, done.stderr
        made.append(json.loads(done.stdout))
    assert made[0]["finished"] and made[0]["steps"] == made[0]["total_steps"] and len(made[1]["standings"]) == 2


def test_they_are_known_by_name(installed: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bnbench", "evaluate", "--backend", "ecko", "--base", "parrot"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=installed, cwd=tmp_path)
    assert done.returncode == 2
    assert "echo" in done.stderr and "Traceback" not in done.stderr
