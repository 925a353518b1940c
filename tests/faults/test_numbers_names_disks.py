"""Numbers out of range, names that are not UTF-8, folders and disks that take nothing, and what nobody must be told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import SafetensorError
from typer.testing import CliRunner

import bnbench
from bnbench.cli import _command_line, app
from bnbench.errors import RunError, TrainingError
from bnbench.finetune import finetune, finetune_request
from bnbench.finetune.tuners.adapter import AdapterTuner
from bnbench.records import read_record

SMALL = {"limit": 4, "overrides": {"epochs": "1"}}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("আমি শুনছি।\n" * 240, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["score", "a.txt", "--seed", "-1"], "--seed"),
        (["human", "sheet", "run", "--seed", "-1"], "--seed"),
        (["evaluate", "--seed", "-1"], "--seed"),
        (["finetune", "--set", f"r={'9' * 40}", "--dry-run"], "r is a number out of every range"),
        (["finetune", "--set", "learning_rate=1e400", "--dry-run"], "learning_rate is inf"),
        (["finetune", "--stop-after", f"{'9' * 400}h"], "is no length of time"),
        (["evaluate", "--temperature", "nan"], "temperature is nan"),
        (["preferences", "--margin", "nan"], "the margin is nan"),
        (["evaluate", "--temperature", "inf"], "temperature is inf"),
        (["evaluate", "--repetition-penalty", "inf"], "repetition_penalty is inf"),
        (["evaluate", "--samples", "1001"], "--samples"),
        (["human", "sheet", "run", "--raters", "1001"], "--raters"),
        *(
            (["evaluate", flag, "2147483648"], flag)  # what run.json could not hold, or no memory
            for flag in ("--limit", "--batch-size", "--top-k", "--max-words", "--max-new-tokens", "--max-tokens")
        ),
    ],
)
def test_numbers(files: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str) -> None:
    monkeypatch.chdir(files)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and says in done.stderr


def test_a_time_that_no_calendar_has(files: Path) -> None:
    table = pa.table({"reply": ["ক"], "at": pa.array([2**61 // 1000], pa.timestamp("ms"))})
    pq.write_table(table, files / "a.parquet")
    done = CliRunner().invoke(app, ["score", str(files / "a.parquet")])
    assert done.exit_code == 2 and "a.parquet: not a readable Parquet file" in done.stderr


def test_names_that_are_not_utf_8(files: Path) -> None:
    odd = files / os.fsdecode(b"n\xff.txt")
    shutil.copyfile(files / "a.txt", odd)
    asked = ["evaluate", "--predictions", str(odd), "--limit", "2", "-q"]
    assert CliRunner().invoke(app, [*asked, "--out", str(files / "run")]).exit_code == 0
    assert read_record(files / "run").candidates[0].name == "n?.txt"
    done = CliRunner().invoke(app, [*asked, "--out", str(files / os.fsdecode(b"r\xff"))])
    assert done.exit_code == 2 and "this name is not UTF-8" in done.stderr


@pytest.mark.parametrize("command", ["evaluate", "finetune"])
def test_an_out_that_cannot_be_written_is_found_at_once(files: Path, command: str) -> None:
    start = time.monotonic()
    done = CliRunner().invoke(app, [command, "--base", "nobody/nothing", "--out", str(files / "a.txt" / "run")])
    assert done.exit_code == 2 and "a.txt" in done.stderr and "nobody" not in done.stderr
    assert time.monotonic() - start < 2


def test_a_read_only_folder(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["evaluate", "--predictions", str(files / "a.txt"), "--limit", "2", "-q", "--out", str(files / "run")]
    assert CliRunner().invoke(app, asked).exit_code == 0
    opened = Path.open

    def refuses(self: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wa+"):  # as a file system that is mounted to be read does, also to root
            raise OSError(30, "Read-only file system", str(self))
        return opened(self, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", refuses)
    for words in (asked, ["report", str(files / "run")]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1 and done.stderr.count("\n") == 1
        assert f"{files / 'run'}/.lock: Read-only file system; name another --out, or copy the folder" in done.stderr


def test_a_disk_that_fills_up_while_models_answer(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["evaluate", "--predictions", str(files / "a.txt"), "--limit", "2", "-q", "--out", str(files / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails_for(files / "run" / "generations.jsonl", os.fsync))
        done = CliRunner().invoke(app, asked)
    said, kept = done.stderr.splitlines()
    assert done.exit_code == 3 and f"What was computed is kept in {files / 'run'} (replies: " in kept
    assert said == f"bnbench: {files / 'run'}: No space left on device; make room"
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails_for(files / "run" / "scores" / ".a.parquet.tmp", os.fsync))
        done = CliRunner().invoke(app, asked)
    kept = "make room; what was written before is kept"
    assert (done.exit_code, done.stderr) == (1, f"bnbench: {files / 'run'}: No space left on device; {kept}\n")
    assert CliRunner().invoke(app, asked).exit_code == 0


def fails_for(path: Path, synced: Callable[[int], None]) -> Callable[[int], None]:
    """`os.fsync` of a disk on which one file finds no room."""

    def fails(file: int) -> None:
        if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
            raise OSError(28, "No space left on device")
        synced(file)

    return fails


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 704 vs 598"),
    ],
)
def test_a_full_disk_in_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(AdapterTuner, "train", fails)
    with pytest.raises(TrainingError, match=r"cannot be written \(.*\): make room; the same command goes on"):
        finetune(finetune_request("demo", out=tmp_path / "a", **SMALL))


def test_an_adapter_that_is_gone(tmp_path: Path) -> None:
    done = finetune(finetune_request("demo", out=tmp_path / "a", **SMALL))
    assert done.finished
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match=r"is finished, but its adapter_model\.safetensors is gone; put it back"):
        finetune(finetune_request("demo", out=tmp_path / "a", **SMALL))


def test_no_path_of_a_home_is_told(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = files / "home" / "bithika"
    home.mkdir(parents=True)
    shutil.copyfile(files / "a.txt", home / "a b.txt")
    (home / "d.jsonl").write_text(
        "".join(
            json.dumps({"question": f"আমার মন খারাপ কেন হয় {i} বার", "reference": "আপনার কষ্টটা বুঝতে পারছি আমি"}) + "\n"
            for i in range(240)
        ),
        encoding="utf-8",
    )
    monkeypatch.setenv("HOME", str(home))
    words = ["evaluate", "--predictions", f"x={home}/a b.txt", "--data", f"{home}/d.jsonl", "--limit", "3"]
    monkeypatch.setattr(sys, "argv", ["bnbench", *words, "--out", "runs/x"])
    assert _command_line().startswith('bnbench evaluate --predictions x="$HOME"/\'a b.txt\' --data "$HOME"/d.jsonl')
    done = CliRunner().invoke(app, [*words, "--out", str(files / "run"), "-q"])
    assert done.exit_code == 0, done.stderr
    for path in (files / "run").rglob("*"):
        assert path.is_dir() or b"bithika" not in path.read_bytes(), path


def test_a_clock_that_was_set_back(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["evaluate", "--predictions", str(files / "a.txt"), "--limit", "2", "-q", "--out", str(files / "run")]
    assert CliRunner().invoke(app, asked).exit_code == 0
    path = files / "run" / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"created": "2999-01-01T00:00:00+00:00"}), encoding="utf-8")
    for file in (files / "run").rglob("*"):
        os.utime(file, (2**33, 2**33))
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert CliRunner().invoke(app, ["report", str(files / "run")]).exit_code == 0
    assert read_record(files / "run").created.startswith("2999")


def test_no_token_is_told(files: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("HF_TOKEN", "BNBENCH_API_KEY", "OPENAI_API_KEY", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, "hf_canary0123456789")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter = Path(bnbench.__file__).parent / "demo" / "adapter"
    told = ""
    for words in (
        ["evaluate", "--predictions", str(files / "a.txt"), "--limit", "2", "--out", str(files / "run")],
        ["evaluate", "--endpoint", "http://127.0.0.1:9#m", "--limit", "2", "--out", str(files / "served")],
        ["evaluate", "--base", "nobody/nothing", "--out", str(files / "none")],
        ["corpus", "nobody/nothing"],
        ["publish", str(adapter), "--base-id", "a/b", "--repo", "a/c", "--out", str(files / "published")],
        ["report", str(files / "run"), "--json"],
    ):
        done = CliRunner().invoke(app, words)
        told += done.output + repr(done.exception)
        error = done.exception
        while error is not None:
            told, error = told + str(error), error.__cause__ or error.__context__
    assert "canary" not in told + caplog.text
    assert (files / "published" / "README.md").exists()
    for path in files.rglob("*"):
        assert path.is_dir() or b"canary" not in path.read_bytes(), path


def test_killed_at_random() -> None:
    """The short form of `kills.py`."""
    script = Path(__file__).parent / "kills.py"
    command = [sys.executable, str(script), "--kills", "4", "--seed", "5", "--only", "recorded,import"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "4 kills, 0 faults" in done.stdout, done.stdout + done.stderr
