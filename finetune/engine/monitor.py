"""What happens at the edges of the training steps: longest rows first, the loss curve, seals, stopping, progress."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from transformers import TrainerCallback

from bnbench.errors import TrainingError
from bnbench.finetune.engine import processes
from bnbench.finetune.tuners.base import Job, Point, seal, write_curve
from bnbench.progress import stage

_log = logging.getLogger("bnbench.finetune")


def curve_of(history: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """The loss curve in a trainer's log history, which travels with its checkpoints and so survives a kill."""
    return tuple(Point(e["step"], e["loss"], e["learning_rate"]) for e in history if "loss" in e)


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Tries the longest rows first, draws progress, refuses a loss that is no number, seals checkpoints, keeps
    loss.csv, and passes on a wish to stop. `try_largest`, if set, passes the rows that need most memory once.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start = time.monotonic() - (job.resume.seconds if job.resume else 0.0)
        self.try_largest: Callable[[], None] | None = None
        self._display = ExitStack()

    @property
    def seconds(self) -> float:
        """Training time of all sessions so far."""
        return time.monotonic() - self.start

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Starts the display, and a trial of the longest rows: a GPU too small says so at once, in a TrainingError.

        The trial leaves no trace, since gradients are zeroed and the random state is restored.
        """
        if processes.count() > 1:  # transformers has given all the same, and with them the same dropout
            torch.manual_seed(self.job.recipe.seed + processes.index())
        left = state.max_steps - state.global_step
        self._stage = self._display.enter_context(stage("train (steps)", left, quiet=processes.index() > 0))
        if self.try_largest is None:
            return
        model.train()  # checkpointing and dropout are off in a model just loaded, and so are their costs
        try:
            with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self.job.device == "cuda" else []):
                self.try_largest()
        except torch.OutOfMemoryError:
            recipe, row = self.job.recipe, max(self.job.rows, key=lambda r: len(r.ids))
            if recipe.packing and recipe.tokens_per_row > len(row.ids):
                size, advice = f"a row of {recipe.tokens_per_row} tokens", "lower tokens_per_row"
            elif recipe.packing or recipe.batch_size == 1:
                size, advice = "one sample", "lower max_tokens and drop the longest rows"
            else:
                size, advice = f"{recipe.batch_size} at once", "lower batch_size (and raise accumulate as much)"
            raise TrainingError(
                f"out of memory on the longest rows, tried first: {size}, the longest sample with {len(row.ids)} "
                f'tokens (id {row.id}). In the recipe, {advice}, or set checkpointing = "non-reentrant" (now: '
                f'{recipe.checkpointing}) or quantisation = "nf4" (now: {recipe.quantisation})'
            ) from None
        finally:
            model.zero_grad()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """One optimiser step's loss; every `log_every` steps, and at the last, a line in the log and loss.csv."""
        if "loss" not in logs:
            return
        step, every = state.global_step, self.job.recipe.log_every
        if not math.isfinite(logs["loss"]):
            name = self.job.precision.dtype_name
            why = f'lower learning_rate in the recipe, or set precision = "float32" (now: {name})'
            processes.refuse(TrainingError(f"the loss is {logs['loss']} at step {step}: {why}"))
        if processes.index() == 0 and (step == state.max_steps or step % every == 0):
            curve = curve_of(state.log_history)
            recent = [p.loss for p in curve[-every:]]
            mean = sum(recent) / len(recent)
            _log.info("step %d/%d: loss %.4f (mean of %d)", step, state.max_steps, mean, len(recent))
            write_curve(self.job.output / "loss.csv", curve)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops at the end of a step when that was asked for, with a checkpoint of exactly this step."""
        self._stage.advance(1)
        if state.global_step < state.max_steps and self.job.should_stop():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seals the checkpoint that the trainer has written, once each process has added its file."""
        processes.largest(0)  # waits for them all
        if processes.index() == 0:
            seal(self.job.checkpoints / f"checkpoint-{state.global_step}", self.seconds)
            write_curve(self.job.output / "loss.csv", curve_of(state.log_history))

    def close(self) -> None:
        """Ends the display, also after an error."""
        self._display.close()
