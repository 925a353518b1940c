"""CONTRIBUTING.md is followed step by step: what it says to write is written into a copy, and its commands are run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

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


# As `python -m` in the folder that it is run in.
MODULE = "import os, runpy, sys; sys.path.insert(0, os.getcwd()); del sys.argv[0]; "
MODULE += "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


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
def test_each_step_works(section: str, said: str, forked: Any, tmp_path: Path) -> None:
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
            words = shlex.split(line.removeprefix("$ "))
            [done] = forked(MODULE, *words, folder=copy, each=[{"PYTHONPATH": str(copy)}])
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            out += done.stdout
    assert said in out
    if section == "A panel":
        for name in ("report.md", "report.html"):
            report = (copy / "runs" / "lengths" / name).read_text(encoding="utf-8")
            assert "How long the replies are" in report and "words a reply" in report
