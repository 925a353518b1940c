"""Checkpoints that can be trusted: one counts only when its seal, written last, agrees with every file in it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench.records import write_json

_SEAL = "sealed.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_log = logging.getLogger("bnbench.finetune")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, the optimiser steps done, and the seconds of training that they took."""

    folder: Path
    step: int
    seconds: float


def seal(folder: Path, seconds: float) -> None:
    """Syncs every file of a checkpoint to the disk, then writes the seal over their hashes."""
    files = {}
    for file in _files(folder):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            files[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    write_json(folder / _SEAL, {"seconds": seconds, "files": files})


def newest_checkpoint(parent: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `parent`. Torn ones that are newer are named in the log and removed."""
    for folder in sorted(_folders(parent), key=_step, reverse=True):
        sealed = _read_seal(folder)
        if sealed is not None:
            return Checkpoint(folder, _step(folder), sealed["seconds"])
        _log.warning("checkpoint %s is torn (written while the process was killed, or damaged): removed", folder)
        shutil.rmtree(folder)
    return None


def _folders(parent: Path) -> list[Path]:
    return [f for f in parent.glob("checkpoint-*") if f.is_dir() and _NAME.fullmatch(f.name)]


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file() and f.name != _SEAL and not f.name.startswith("."))


def _read_seal(folder: Path) -> dict[str, Any] | None:
    try:
        sealed: dict[str, Any] = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        for name, sha256 in sealed["files"].items():
            with (folder / name).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                    return None
    except (OSError, ValueError, KeyError):
        return None
    return sealed
