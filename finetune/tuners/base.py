"""What a tuner is, and the registry of them.

A tuner is any class with a `train(job) -> Outcome` method. Those of other packages join through the entry-point group
`bnbench.finetuners`; a recipe names one by its `tuner` key:

    [project.entry-points."bnbench.finetuners"]
    my-tuner = "my_package:MyTuner"
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from bnbench.errors import RecipeError
from bnbench.finetune.checkpoints import Checkpoint
from bnbench.finetune.engine.rows import Row
from bnbench.finetune.recipes import Recipe, nearest
from bnbench.finetune.tuners.gain import Gain
from bnbench.models.files import Base
from bnbench.models.precision import Precision

GROUP = "bnbench.finetuners"
_SHIPPED = {
    "qlora": "bnbench.finetune.tuners.adapter:AdapterTuner",
    "lora": "bnbench.finetune.tuners.adapter:AdapterTuner",
    "dpo": "bnbench.finetune.tuners.dpo:PreferenceTuner",
    "unsloth": "bnbench.finetune.tuners.unsloth:UnslothTuner",
}
_log = logging.getLogger("bnbench.finetune")


@dataclass(frozen=True)
class Point:
    """One optimiser step of the loss curve: mean loss in nats a supervised token (of pairs: a pair), learning rate."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Job:
    """All that a tuner is given. `rows` are checked; the adapter goes to `output`.

    `resume` is the newest whole checkpoint, None at the start. `steps` and `warmup_steps` are optimiser steps.
    `should_stop()` is asked after every step: a tuner that hears True saves a checkpoint and returns. The tuner
    "dpo" has two rows for each pair, chosen and rejected, in `rows` and in `held_out`, which is not trained on.
    """

    recipe: Recipe
    base: Base
    rows: tuple[Row, ...]
    pad_id: int
    precision: Precision
    device: str
    steps: int
    warmup_steps: int
    output: Path
    checkpoints: Path
    resume: Checkpoint | None
    trust_remote_code: bool
    should_stop: Callable[[], bool]
    held_out: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a tuner hands back.

    `steps` done in all sessions together; the adapter is written when they are `Job.steps`. `gain` is what a finished
    training on pairs did to held-out ones, None where there were none.
    """

    steps: int
    curve: tuple[Point, ...]
    seconds: float
    peak_memory_bytes: int | None
    gain: Gain | None = None


class Tuner(Protocol):
    """Trains an adapter: goes on from `job.resume`, writes PEFT files to `job.output`.

    One with `shares_steps = True` may be started in several processes (see `bnbench.finetune.engine.processes`).
    """

    def train(self, job: Job) -> Outcome:
        """Trains until `job.steps` or until `job.should_stop()`. Raises TrainingError when it cannot go on."""


def tuner_names() -> tuple[str, ...]:
    """The names that a recipe's `tuner` may have: the shipped ones and those of installed plug-ins."""
    return tuple(sorted({*_SHIPPED, *(e.name for e in _plugins())}))


def get_tuner(name: str) -> Tuner:
    """The tuner of that name.

    A plug-in that does not load is named in the log and taken as absent. Raises RecipeError.
    """
    broken = ""
    for plugin in _plugins():
        if plugin.name == name:
            try:
                return plugin.load()()  # type: ignore[no-any-return]
            except Exception as error:
                broken = f" (the plug-in {plugin.value} does not load: {error})"
                _log.warning("tuner %s: the plug-in %s does not load and is skipped: %s", name, plugin.value, error)
    if name not in _SHIPPED:
        raise RecipeError(f"there is no tuner {name!r}{nearest(name, tuner_names())}{broken}")
    module, _, attribute = _SHIPPED[name].partition(":")
    return getattr(import_module(module), attribute)()  # type: ignore[no-any-return]


def _plugins() -> list[EntryPoint]:
    return [e for e in entry_points(group=GROUP) if e.name not in _SHIPPED]
