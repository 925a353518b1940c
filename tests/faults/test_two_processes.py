"""Two commands on one folder: the second says so in one line, and ends; a lock dies with its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.errors import RunError
from bnbench.records import alone

HOLD = """
import sys, time
from pathlib import Path
from bnbench.records import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    (folder / "a.txt").write_text("আমি শুনছি, আপনার কষ্টটা বুঝি।\n" * 240, encoding="utf-8")
    words = ["evaluate", "--predictions", f"ক={folder / 'a.txt'}", "--limit", "3", "--out", str(folder / "run"), "-q"]
    assert CliRunner().invoke(app, words).exit_code == 0
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--predictions", "{folder}/a.txt", "--limit", "3", "--out", "{folder}/run"),
        ("finetune", "--recipe", "demo", "--out", "{folder}/run"),
        ("report", "{folder}/run"),
        ("human", "sheet", "{folder}/run"),
        ("human", "import", "{folder}/run", "{folder}/a.csv"),
        ("publish", "bnbench-demo/adapter", "--dry-run", "--base-id", "a/b", "--out", "{folder}/run"),
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_the_second_is_told_in_one_line_and_nothing_is_written(finished: Path, words: tuple[str, ...]) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}

    before = files()
    with alone(finished / "run"):
        done = CliRunner().invoke(app, [word.format(folder=finished) for word in words])
    assert done.exit_code == 1
    told = [line for line in done.stderr.splitlines() if line]
    assert told == [
        f"bnbench: {finished / 'run'}: another bnbench works in this folder; wait for its end, or name another"
    ]
    assert files() == before


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    with pytest.raises(RunError, match="another bnbench works"), alone(folder):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with alone(folder):
        (folder / "made").touch()
    assert [path.name for path in folder.iterdir()] == ["made"]


def test_the_lock_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = set[int]()  # inodes, of whose file one byte is locked

    def locking(number: int, mode: int, size: int) -> None:
        assert (mode, size) == (2, 1)
        if os.fstat(number).st_ino in held:
            raise PermissionError(13, "Permission denied")
        held.add(os.fstat(number).st_ino)

    unlink, lock = Path.unlink, tmp_path / "run" / ".lock"

    def unlink_closed(path: Path) -> None:
        if any(number.exists() and number.samefile(path) for number in Path("/proc/self/fd").iterdir()):
            raise PermissionError(13, "The process cannot access the file")
        unlink(path)

    monkeypatch.setattr("bnbench.records.sys.platform", "win32")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))
    monkeypatch.setattr(Path, "unlink", unlink_closed)
    with alone(tmp_path / "run"):
        with pytest.raises(RunError, match="another bnbench works"), alone(tmp_path / "run"):
            pass
        assert lock.exists()
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_nothing_was_written_is_gone_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), alone(tmp_path / "run"):
        raise ValueError("x")
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with alone(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()
