from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.errors import CandidateError
from bnbench.models import hub


def test_a_large_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "REMEMBERED_FROM", 10)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights of some size")
    sha = hashlib.sha256(b"weights of some size").hexdigest()
    assert hub.file_sha256(path) == sha

    read: list[str] = []
    plain = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(file.name) or plain(file, name))
    assert hub.file_sha256(path) == sha and not read

    # Another file in its place, as large and as old: its time of change tells.
    times = path.stat()
    path.write_bytes(b"weights of same size")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hub.file_sha256(path) == hashlib.sha256(b"weights of same size").hexdigest() and read

    for note in (tmp_path / "cache" / "sha256").iterdir():
        note.write_text("damaged", encoding="utf-8")
    assert hub.file_sha256(path) == hashlib.sha256(b"weights of same size").hexdigest()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("BNBENCH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(hub, "REMEMBERED_FROM", 0)
    assert hub.file_sha256(tmp_path / "file") == hashlib.sha256(b"").hexdigest()


def test_the_bundled_models_are_files_of_their_own_where_a_checkout_is_installed_by_links() -> None:
    ask = "from bnbench.models.hub import locate; print(locate('adapter', 'bnbench-demo/adapter').folder)"
    told = subprocess.run([sys.executable, "-P", "-c", ask], capture_output=True, text=True, check=True).stdout
    files = list(Path(told.strip()).iterdir())  # a link would be refused by `publish`
    assert {"adapter_model.safetensors", "README.md"} <= {file.name for file in files}
    assert not any(file.is_symlink() for file in files)


def test_a_folder_whose_name_is_not_utf_8_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = shutil.copytree(hub.locate("adapter", "bnbench-demo/adapter").folder, os.fsdecode(b"a\xff"))
    with pytest.raises(CandidateError, match=r"adapter a: a\udcff is a name that is not UTF-8, .*; rename the folder"):
        hub.locate("adapter a", str(odd))
    for option in ("--adapter", "--base"):
        done = CliRunner().invoke(app, ["evaluate", option, str(odd), "--limit", "2", "--out", "run", "-q"])
        assert done.exit_code == 2 and "is not UTF-8" in done.stderr and done.stderr.count("\n") == 1
    assert not Path("run").exists()
    assert hub.locate("adapter", str(Path(odd).rename("অ্যাডাপ্টার"))).weights()
