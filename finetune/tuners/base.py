"""What a tuner is, what it is given and hands back, and the registry of them.

A tuner of another package is a subclass of `Tuner` with a `train` method, named by an entry point:

    [project.entry-points."bnbench.finetuners"]
    plain = "my_package:Plain"

    class Plain(Tuner):
        def train(self, job: Job) -> Outcome:
            model = adapt(load_base(job), job.recipe)  # these two and save_adapter are in bnbench.finetune
            ...
            save_adapter(job, model)
            return Outcome(job.steps, tuple(curve), seconds)

`bnbench finetune --set tuner=plain` trains with it. Importing this module, or a tuner of ours, imports no torch: what a
tuner needs and takes is asked before it trains, and where nothing is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bnbench.errors import RecipeError
from bnbench.finetune.checkpoints import Checkpoint
from bnbench.finetune.engine.rows import Row
from bnbench.metrics.registry import Registry
from bnbench.models.hub import Base
from bnbench.models.precision import Device, Precision
from bnbench.records import write_text

if TYPE_CHECKING:  # recipes ask their tuner whether it can do what they say, so they stand above this module
    from bnbench.finetune.recipes import Recipe

TUNERS = Registry(
    "bnbench.finetuners",
    "tuner",
    {
        "dpo": "bnbench.finetune.tuners.dpo:PreferenceTuner",
        "lora": "bnbench.finetune.tuners.adapter:AdapterTuner",
        "qlora": "bnbench.finetune.tuners.adapter:AdapterTuner",
        "unsloth": "bnbench.finetune.tuners.unsloth:UnslothTuner",
    },
    RecipeError,
)


@dataclass(frozen=True)
class Point:
    """One optimiser step of the loss curve: mean loss in nats a supervised token (of pairs: a pair), learning rate."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Gain:
    """What held-out pairs gained by a training on other pairs, mean over pairs, whole messages resampled.

    `margin` is DPO's implicit reward margin (Rafailov et al. 2023, section 4): beta times what
    log p(chosen) − log p(rejected) is above the base's, so 0 before the training. `low` and `high` are its 95 %
    bootstrap interval, `p_value` is of the paired randomisation. `chosen` and `rejected` are the changes of log p of
    either reply in nats, `won` is the share of pairs whose margin is above 0.
    """

    pairs: int
    messages: int
    beta: float
    margin: float
    low: float
    high: float
    p_value: float
    won: float
    chosen: float
    rejected: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Gain(**them)` gives it back."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.pairs} held-out pairs of {self.messages} messages: reward margin 0 → {self.margin:+.3f} "
            f"(95 % {self.low:+.3f} to {self.high:+.3f}, p = {self.p_value:.4f}); the chosen reply gained on the "
            f"rejected one in {100 * self.won:.0f} % (log p {self.chosen:+.1f} and {self.rejected:+.1f} nats)"
        )


@dataclass(frozen=True)
class Job:
    """All that a tuner is given: checked `rows`, and `output`, the folder that the adapter goes to.

    `steps` and `warmup_steps` are optimiser steps. `resume` is the newest whole checkpoint, None at the start.
    `should_stop()` is asked after every step: a tuner that hears True saves a checkpoint in `checkpoints` and returns.
    A tuner of pairs has two rows for each, chosen and rejected, in `rows` and in `held_out`, which is not trained on.
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
    """What a tuner hands back: `steps` done in all sessions together, and their loss `curve`, one point a step.

    The adapter is written when `steps` are the job's. `peak_memory_bytes` is None off a GPU, `gain` is what a finished
    training on pairs did to held-out ones, None where there were none.
    """

    steps: int
    curve: tuple[Point, ...]
    seconds: float
    peak_memory_bytes: int | None = None
    gain: Gain | None = None


class Tuner(ABC):
    """A way to train an adapter. Only `train` must be written; the rest says what it needs, with defaults."""

    packages: ClassVar[Mapping[str, str]] = {}
    """Modules beyond torch, transformers and peft that it imports, each with what to give to `pip install`."""
    data: ClassVar[Literal["examples", "pairs"]] = "examples"
    """What it trains on; a pair is a chosen and a rejected reply to one message, and two rows."""
    keys: ClassVar[Mapping[str, Any]] = {}
    """Recipe keys beyond the common ones, with their defaults, whose types are those of the keys. Other tuners'
    recipes may not name them."""
    shares_steps: ClassVar[bool] = False
    """Whether several processes may train one adapter together (see `bnbench.finetune.engine.processes`)."""

    timed: ClassVar[bool] = False
    """Whether the times that `bnbench.finetune.memory` estimates hold for its kernels."""

    def check(self, recipe: Recipe, device: Device | None) -> None:  # noqa: B027 - refuses nothing, and need not
        """Raises RecipeError where the tuner cannot do what the recipe says, or not on this device.

        It is asked when a recipe is read, with None for the device, and again before a training.
        """

    @abstractmethod
    def train(self, job: Job) -> Outcome:
        """Trains, from `job.resume` where there is one, until `job.steps` or until `job.should_stop()`.

        Writes PEFT's files to `job.output` at the end. Raises TrainingError when it cannot go on.
        """


def tuner_names() -> tuple[str, ...]:
    """The names that a recipe's `tuner` may have: ours, then those of plug-ins that load."""
    return TUNERS.names()


def get_tuner(name: str) -> Tuner:
    """A tuner of that name; capitals do not matter.

    Raises RecipeError for an unknown name, a plug-in that does not load, or one that is no `Tuner`.
    """
    kind = TUNERS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, Tuner)):
        raise RecipeError(f"the tuner {name!r} is {kind!r}, which is no subclass of bnbench.finetune.Tuner")
    return kind()


def write_curve(path: Path, curve: Iterable[Point]) -> None:
    """Writes loss.csv: step, loss (nats a supervised token, of pairs: a pair), learning rate; one line a step."""
    lines = [f"{p.step},{p.loss!r},{p.learning_rate!r}\n" for p in curve]
    write_text(path, "".join(["step,loss,learning_rate\n", *lines]))
