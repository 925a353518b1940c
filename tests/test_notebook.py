"""The notebook for Kaggle runs from top to bottom on the CPU: this checkout's wheel, the bundled base, a few rows."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = nbformat.read(ROOT / "notebooks" / "kaggle_t4.ipynb", as_version=4)
PROSE = "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown")
SMALL = {
    "SOURCE": str(ROOT), "EXTRAS": "finetune", "DATA": str(ROOT / "bnbench" / "demo" / "conversations.csv"),
    "BASE": "bnbench-demo/base", "RECIPE": "demo", "TRAIN_ROWS": 4, "TEST_ROWS": 3, "MAX_WORDS": 4, "RATED_ITEMS": 3,
    "CARDS": 1, "BASE_ID": "org/base",
}  # fmt: skip
# Stands before the installed command. What imports the libraries asks the test for a process that has them already, and
# says what that said; all else is the command itself.
BEFORE = """#!{python} -S
import os, sys
if not {{"finetune", "evaluate"}}.intersection(sys.argv[1:2]):
    os.execv({command!r}, [{command!r}, *sys.argv[1:]])
from multiprocessing.connection import Client
with Client(("127.0.0.1", {port})) as test:
    test.send((sys.argv[1:], os.getcwd(), dict(os.environ)))
    code, said, wrong = test.recv()
sys.stdout.write(said)
sys.stderr.write(wrong)
sys.exit(code)
"""
# The installed command, from the folder it was installed into.
COMMAND = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import bnbench, bnbench.reports
assert all(module.__file__.startswith(sys.argv[1]) for module in (bnbench, bnbench.reports)), bnbench.__file__
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def quick(tmp_path: Path, forked: Callable[..., Any]) -> Iterator[Path]:
    """A folder with a command `bnbench` that runs what `tmp_path / "installed"` has, the long ones in `forked`."""
    folder, target = tmp_path / "quick", tmp_path / "installed"
    folder.mkdir()
    with Listener(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                with listener.accept() as asking:
                    if (asked := asking.recv()) is None:
                        return
                    words, place, environment = asked
                    of = [str(target), str(target / "bin" / "bnbench"), *words]
                    [done] = forked(COMMAND, *of, folder=place, each=[environment])
                    asking.send((done.returncode, done.stdout, done.stderr))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        command, port = str(target / "bin" / "bnbench"), listener.address[1]
        (folder / "bnbench").write_text(BEFORE.format(python=sys.executable, command=command, port=port))
        (folder / "bnbench").chmod(0o755)
        yield folder
        with Client(listener.address) as end:
            end.send(None)
        thread.join()


def test_it_runs_from_top_to_bottom(tmp_path: Path, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # pip builds and installs this checkout alone, into a folder of its own; the rest is there, and nothing is fetched.
    target = tmp_path / "installed"
    for name in ("NO_DEPS", "NO_INDEX", "DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(f"PIP_{name}", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # the option's own name is negated: 0 is without isolation
    monkeypatch.setenv("PIP_TARGET", str(target))
    monkeypatch.setenv("PYTHONPATH", str(target))
    path = [str(quick), str(target / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    small = nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in SMALL.items()))
    at = next(i for i, cell in enumerate(NOTEBOOK.cells) if cell.id == "parameters")
    ours = nbformat.from_dict({**NOTEBOOK, "cells": [*NOTEBOOK.cells[: at + 1], small, *NOTEBOOK.cells[at + 1 :]]})
    client = nbclient.NotebookClient(ours, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises where a cell fails

    printed = {
        cell.id: "".join(o.get("text", "") for o in cell.outputs) for cell in ours.cells if cell.cell_type == "code"
    }
    assert (target / "bnbench" / "demo" / "base" / "model.safetensors").is_file()
    assert "160 train · 40 validation · 40 test" in printed["data"]
    assert "4 rows" in printed["dry-run"] and "4 of 4 steps" in printed["train"]
    assert "The 3 items" in printed["evaluate"] and "chrF++" in printed["evaluate"]
    shown = next(o.data["text/html"] for cell in ours.cells if cell.id == "report" for o in cell.outputs)
    assert shown.startswith("<div><iframe") and "&lt;!doctype html&gt;" in shown and "chrF++" in shown
    assert len(list((tmp_path / "runs" / "mine" / "human").glob("rater-*.html"))) == 3
    assert "org/base" in (tmp_path / "published" / "mine" / "README.md").read_text(encoding="utf-8")


def test_it_is_kept_without_outputs_and_answers_what_the_original_wrote_down() -> None:
    raw = json.loads((ROOT / "notebooks" / "kaggle_t4.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in raw["cells"])
    told = ["0.0000", r"`\w+`", "0.81", "3.67", "19.33", "0.320", "256", "512", "5,000", "bf16", "14.162"]
    for said in [*told, "10 replies", "One rater", "accelerate launch"]:
        assert said in PROSE, said
    assert re.findall(r"^## ([০-৯])\. .*[\u0980-\u09ff] · [A-Z]", PROSE, re.M) == list("১২৩৪৫৬৭৮")
