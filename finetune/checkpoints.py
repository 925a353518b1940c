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
    hashes = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != _SEAL and not f.name.startswith(".")):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            hashes[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    write_json(folder / _SEAL, {"seconds": seconds, "files": hashes})


def newest_checkpoint(parent: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `parent`. Torn ones that are newer are named in the log and removed."""
    found = [
        (int(match[1]), f) for f in parent.glob("checkpoint-*") if f.is_dir() and (match := _NAME.fullmatch(f.name))
    ]
    for step, folder in sorted(found, reverse=True):
        try:
            sealed = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
            for name, sha256 in sealed["files"].items():
                with (folder / name).open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                        raise ValueError(f"{name} is not what was sealed")
            return Checkpoint(folder, step, sealed["seconds"])
        except (OSError, ValueError, KeyError):
            _log.warning("checkpoint %s is torn (written while the process was killed, or damaged): removed", folder)
            shutil.rmtree(folder)
    return None
