"""CONTRIBUTING.md is followed step by step: what it says to write is written into a copy, and its commands are run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    part.partition("\n")[0]: part for part in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## ")[1:]
}
BLOCK = re.compile(r"^```(\w+) ?([\w/.]*)\n(.*?)^```$", re.S | re.M)


def apply(path: Path, diff: str) -> None:
    """Puts the + lines of a diff after the line that stands before them, or before the first that stands after them."""
    lines = path.read_text(encoding="utf-8").split("\n")
    hunk = diff.splitlines()
    at = lines.index(next(line[1:] for line in hunk if line.startswith(" ")))
    for line in hunk:
        if line.startswith("+"):
            lines.insert(at, line[1:])
            at += 1
        else:
            at = lines.index(line[1:], at) + 1
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")


# Forks itself for each command, as `python -m` in that folder: the libraries are read once, not once a command.
FORKING = """
import json, os, runpy, sys
import peft, transformers.trainer, transformers.models.llama.modeling_llama
for line in sys.stdin:
    folder, words = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(folder)
    for number, name in ((1, "said"), (2, "told")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"], sys.argv = folder, words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("A metric", "asks"),
        ("A backend", "polly"),
        ("A recipe", "quick on bnbench-demo/base"),
        ("A tuner", "adapter: adapters/steady"),
        ("A panel", ""),
    ],
)
def test_each_step_works(section: str, said: str, forking: subprocess.Popen[str], tmp_path: Path) -> None:
    copy, out = tmp_path / "checkout", ""
    for package in ("bnbench", "metrics", "finetune", "reports"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "replies.txt").write_text("আপনি ভালো আছেন?\nতুমি কি আপনার কথা বলছ?\n", encoding="utf-8")
    for kind, path, text in BLOCK.findall(SECTIONS[section]):
        if kind == "diff":
            apply(copy / path, text)
        elif kind != "console":
            assert len(text.splitlines()) <= 40
            (copy / path).write_text(text, encoding="utf-8")
        for line in text.splitlines() if kind == "console" else ():
            assert forking.stdin is not None and forking.stdout is not None
            forking.stdin.write(json.dumps([str(copy), shlex.split(line.removeprefix("$ "))]) + "\n")
            forking.stdin.flush()
            code = forking.stdout.readline()
            assert code == "0\n", f"{line}\n{code}{(copy / 'told').read_text(encoding='utf-8')}"
            out += (copy / "said").read_text(encoding="utf-8")
    assert said in out
    if section == "A panel":
        for name in ("report.md", "report.html"):
            report = (copy / "runs" / "lengths" / name).read_text(encoding="utf-8")
            assert "How long the replies are" in report and "words a reply" in report
