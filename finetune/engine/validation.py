"""Validation while a training runs: bits per character of rows that it does not train on, the best adapter kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import repeat
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from bnbench.finetune.engine import processes
from bnbench.finetune.engine.collate import Collate
from bnbench.finetune.tuners.base import Job
from bnbench.records import Validation

BEST = "best.safetensors"
"""In a checkpoint: the adapter of the best validation so far."""
_log = logging.getLogger("bnbench.finetune")


class Validator(TrainerCallback):  # type: ignore[misc]
    """Validates before the first step, every `validate_every` steps and after the last, and keeps the best adapter.

    It draws no random number and leaves the training as it is, but for its end: after `patience` validations in a row
    without a better one it stops (0: never). What it found is in the trainer's log history and the best adapter in each
    checkpoint, so that a run that is killed anywhere, in a validation too, goes on to the same end.
    """

    def __init__(self, job: Job, trainer: Any) -> None:
        self.job, self.trainer, self.stopped = job, trainer, False
        rows, size = sorted(job.validation, key=lambda row: -len(row.ids)), job.recipe.batch_size
        packs = Collate(job.recipe.tokens_per_row if job.recipe.packing else None, job.pad_id)
        batches = [rows] if job.recipe.packing else [rows[i : i + size] for i in range(0, len(rows), size)]
        passes = [one_pass for batch in batches for one_pass in packs(batch)]
        # Where processes share the base, all have as many passes; what is there twice counts once.
        rest = -len(passes) % processes.count() if processes.share_base() else 0
        counted = [*zip(passes, repeat(1)), *zip(passes[:1] * rest, repeat(0))]
        self.passes = counted[processes.index() :: processes.count()]
        self.tokens = sum(row.supervised for row in rows)
        kept = job.resume.folder / BEST if job.resume else None
        self.best: Mapping[str, torch.Tensor] = load_file(kept) if kept and kept.is_file() else {}

    @property
    def found(self) -> Validation:
        """What was found so far."""
        keys = ("step", "validation_bits", "validation_loss")
        curve = tuple(tuple(e[key] for key in keys) for e in self.trainer.state.log_history if keys[1] in e)
        rows, characters = len(self.job.validation), self.job.validation_characters
        return Validation(rows=rows, characters=characters, curve=curve, stopped=self.stopped)

    def validate(self) -> None:
        """One measurement, into the log history (and to trackers)."""
        model, nats = self.trainer.model.eval(), 0.0  # without dropout and recomputation
        with torch.no_grad():
            for one_pass, counts in self.passes:
                nats += counts * float(self.trainer.compute_loss(model, one_pass, num_items_in_batch=1))
        model.train()
        nats = processes.reduce(nats, "SUM")
        bits = nats / math.log(2) / self.job.validation_characters
        logs_step = self.trainer.control.should_log
        self.trainer.log({"validation_bits": bits, "validation_loss": nats / self.tokens})
        self.trainer.control.should_log = logs_step  # what a log takes back: the step's own loss is still to come

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before the first step: the base."""
        if state.global_step == 0:
            self.validate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keeps the adapter if it is the best, and stops where none was for long enough."""
        recipe, step = self.job.recipe, state.global_step
        if step % recipe.validate_every and step != state.max_steps:
            return
        self.validate()
        found = self.found
        best, bits = found.best, found.curve[-1][1]
        _log.info("step %d: validation %.4f bits per character (best %.4f at step %d)", step, bits, best[1], best[0])
        if best[0] == step:
            trained = ((name, p) for name, p in self.trainer.model.named_parameters() if p.requires_grad)
            self.best = {name: p.detach().cpu().clone() for name, p in trained}
        elif recipe.patience and sum(at > best[0] for at, *_ in found.curve) >= recipe.patience:
            # Nothing is saved: what goes on from an earlier checkpoint comes to the same end.
            self.stopped = control.should_training_stop = True
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Puts the best adapter into the checkpoint, before it is sealed."""
        if processes.index() == 0 and self.best:
            save_file(dict(self.best), self.job.checkpoints / f"checkpoint-{state.global_step}" / BEST)

    def restore_best(self) -> None:
        """Gives the model the best adapter."""
        with torch.no_grad():
            for name, parameter in self.trainer.model.named_parameters():
                if name in self.best:
                    parameter.copy_(self.best[name])
