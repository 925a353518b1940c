"""What a tuner is, what it is given and hands back, and the checkpoints that it can trust.

For a tuner of another package, `load_base`, `adapt` and `save_adapter` are there (CONTRIBUTING.md has an example).
Importing this module, or a tuner of ours, imports no torch: what a tuner needs is asked where nothing is trained too.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from bnbench.finetune.engine.collate import Row
from bnbench.finetune.recipes import Recipe
from bnbench.models.hub import Base
from bnbench.models.loading import Device, Precision
from bnbench.records import Gain, Validation, typed, write_json, write_text

_SEAL = "sealed.json"
_log = logging.getLogger("bnbench.finetune")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, the optimiser steps done, and the seconds of training that they took."""

    folder: Path
    step: int
    seconds: float


@dataclass(frozen=True)
class Seal:
    """sealed.json, written last: the sha256 of every file of a checkpoint, and the seconds of training until then."""

    seconds: float
    files: Mapping[str, str]


def seal(folder: Path, seconds: float) -> None:
    """Syncs every file of a checkpoint to the disk, then writes the seal over their hashes."""
    hashes = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.name != _SEAL and not f.name.startswith(".")):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            hashes[str(file.relative_to(folder))] = hashlib.file_digest(stream, "sha256").hexdigest()
    write_json(folder / _SEAL, Seal(seconds, hashes))


def newest_checkpoint(parent: Path) -> Checkpoint | None:
    """The newest whole checkpoint below `parent`: its seal, written last, agrees with every file in it.

    Torn ones that are newer are named in the log and removed.
    """
    names = ((re.fullmatch(r"checkpoint-(\d+)", f.name), f) for f in parent.glob("checkpoint-*") if f.is_dir())
    for step, folder in sorted(((int(name[1]), f) for name, f in names if name), reverse=True):
        try:
            sealed: Seal = typed(Seal, json.loads((folder / _SEAL).read_text(encoding="utf-8")))
            for name, sha256 in sealed.files.items():
                with (folder / name).open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != sha256:
                        raise ValueError(f"{name} is not what was sealed")
            return Checkpoint(folder, step, sealed.seconds)
        except (OSError, ValueError, RecursionError):
            _log.warning("checkpoint %s is torn (written while the process was killed, or damaged): removed", folder)
            shutil.rmtree(folder)
    return None


class Point(NamedTuple):
    """One optimiser step of the loss curve: mean loss in nats a supervised token (of pairs: a pair), learning rate."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a tuner is given: checked `rows`, and `output`, the folder that the adapter goes to.

    A tuner that hears True of `should_stop()`, asked after every step, saves a checkpoint in `checkpoints` and returns.
    A tuner of pairs has two rows for each, chosen and rejected, in `rows` and in `held_out`, which is not trained on.
    `start` is the folder of an adapter that one of pairs goes on with, its reference.
    One of examples may validate on `validation`, whose supervised replies have `validation_characters` in all.
    """

    recipe: Recipe
    base: Base
    rows: tuple[Row, ...] = field(repr=False)
    held_out: tuple[Row, ...] = field(default=(), repr=False)
    validation: tuple[Row, ...] = field(default=(), repr=False)
    validation_characters: int = 0
    start: Path | None = None
    pad_id: int
    precision: Precision
    device: str
    steps: int
    warmup_steps: int
    output: Path
    trust_remote_code: bool = False
    resume: Checkpoint | None = None
    should_stop: Callable[[], bool] = bool  # never

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, beside the adapter."""
        return self.output / "checkpoints"


@dataclass(frozen=True)
class Outcome:
    """What a tuner hands back: `steps` done in all sessions together, and their loss `curve`, one point a step.

    The adapter is written when `steps` are the job's, or `validation` stopped it. `gain` is None without held-out
    pairs, `validation` where there was none, the peak off a GPU.
    """

    steps: int
    curve: tuple[Point, ...]
    seconds: float
    peak_memory_bytes: int | None = None
    gain: Gain | None = None
    validation: Validation | None = None

    @property
    def stopped_early(self) -> bool:
        """Whether it is done before its last step, since validation grew no better."""
        return self.validation is not None and self.validation.stopped


class Tuner(ABC):
    """A way to train an adapter. Only `train` must be written; the rest says what it needs, with defaults."""

    packages: ClassVar[Mapping[str, str]] = {}
    """Modules beyond torch, transformers and peft that it imports, each with what to give to `pip install`."""
    data: ClassVar[Literal["examples", "pairs"]] = "examples"
    """What it trains on; a pair is a chosen and a rejected reply to one message, and two rows."""
    keys: ClassVar[Mapping[str, Any]] = {}
    """Recipe keys that only its recipes have, with their defaults, whose types are those of the keys."""
    shares_steps: ClassVar[bool] = False
    """Whether several processes may train one adapter together (see `bnbench.finetune.engine.processes`)."""
    timed: ClassVar[bool] = False
    """Whether the times that `bnbench.finetune.memory` estimates hold for its kernels."""

    def check(self, recipe: Recipe, device: Device | None) -> None:  # noqa: B027 - refuses nothing, and need not
        """Raises RecipeError where it cannot do what the recipe says, or not on this device (None: not known yet)."""

    @abstractmethod
    def train(self, job: Job) -> Outcome:
        """Trains, from `job.resume` if there is one, until `job.steps` or `job.should_stop()`, and writes PEFT's files
        to `job.output` at the end. Raises TrainingError when it cannot go on.
        """


def write_curve(path: Path, curve: Iterable[Point]) -> None:
    """Writes loss.csv: step, loss (nats a supervised token, of pairs: a pair), learning rate; one line a step."""
    lines = [f"{p.step},{p.loss!r},{p.learning_rate!r}\n" for p in curve]
    write_text(path, "".join(["step,loss,learning_rate\n", *lines]))
