from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

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
