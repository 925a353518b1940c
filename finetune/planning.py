"""Everything that can be known about a training before a weight is loaded; `bnbench finetune --dry-run` prints it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from bnbench.corpus import Example
from bnbench.errors import RecipeError
from bnbench.extras import require
from bnbench.finetune.base import Base, load_config, load_generation_config, load_tokenizer, resolve_base
from bnbench.finetune.lora import count_parameters
from bnbench.finetune.memory import Estimate, Shape, estimate
from bnbench.finetune.recipes import Recipe, load_recipe, override
from bnbench.finetune.rows import Row, check_rows, make_rows, rows_sha256
from bnbench.precision import Device, DType, Precision, choose_precision
from bnbench.prompts import SYSTEM, PromptFormat, pad_id


@dataclass(frozen=True)
class FinetuneRequest:
    """What to train: a base (folder or hub id), a recipe (name, path or Recipe), examples, and a folder for the
    adapter.

    `fingerprint` is the corpus's. `overrides` are the recipe's keys as `--set key=value` gives them. `base_folder` is
    where the base lies if `base` is only the name that the adapter should record. `stop_after` (seconds) ends the
    session early with everything saved. `command` is what a user would type to go on, for messages. `device` is "auto",
    "cpu" or "cuda".
    """

    base: str
    examples: tuple[Example, ...]
    fingerprint: str
    output: Path
    recipe: str | Path | Recipe = "t4"
    overrides: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    base_folder: Path | None = None
    system: str = SYSTEM
    device: str = "auto"
    trust_remote_code: bool = False
    stop_after: float | None = None
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """A training that passed every check. Token counts are over one epoch; steps are optimiser steps."""

    recipe: Recipe
    base: Base
    rows: tuple[Row, ...] = field(repr=False)
    fingerprint: str
    prompt: Mapping[str, str]
    pad_id: int
    precision: Precision
    device: str
    trainable: int
    total: int
    steps: int
    warmup_steps: int
    estimate: Estimate

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in self.rows)

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total
        return (
            f"{self.recipe.name} on {self.base.name}: {self.trainable:,} of {self.total:,} parameters ({share:.2f} %)\n"
            f"{len(self.rows)} rows, the longest {self.longest} tokens; {self.steps} steps of "
            f"{self.recipe.samples_per_step} rows, {self.warmup_steps} of them warm-up\n"
            f"weights {self.precision.quantisation}, {self.precision.reason}\n"
            f"{self.estimate}"
        )

    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        return {
            "recipe": self.recipe.influences(),
            "data": {"fingerprint": self.fingerprint, "rows": len(self.rows), "rows_sha256": rows_sha256(self.rows)},
            "base": self.base.hashes(),
            "prompt": dict(self.prompt),
            "dtype": self.precision.dtype_name,
        }

    def summary(self) -> dict[str, Any]:
        """The numbers of a dry run, as plain JSON values."""
        return {
            "recipe": self.recipe.name,
            "base": self.base.name,
            "trainable_parameters": self.trainable,
            "total_parameters": self.total,
            "precision": self.precision.dtype_name,
            "quantisation": self.precision.quantisation,
            "precision_reason": self.precision.reason,
            "device": self.device,
            "rows": len(self.rows),
            "tokens": sum(len(row.ids) for row in self.rows),
            "supervised_tokens": sum(row.supervised for row in self.rows),
            "longest_row_tokens": self.longest,
            "samples_per_step": self.recipe.samples_per_step,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "checkpoints_every": self.recipe.save_every,
            "estimate": self.estimate.summary(),
        }


def plan(request: FinetuneRequest) -> Plan:
    """Checks recipe, base and rows, and counts what the training will be; loads the tokenizer but no weights.

    Raises RecipeError, CandidateError, PromptError, TrainingError (rows that must not be trained on, a card too small)
    or MissingExtraError.
    """
    recipe = _recipe(request)
    if sys.platform == "linux":  # read once, when torch first allocates on a card; other platforms warn of it
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    _check_installed(recipe)
    trust = request.trust_remote_code
    base = resolve_base(request.base, request.revision, folder=request.base_folder, trust_remote_code=trust)
    config, tokenizer = load_config(base, trust_remote_code=trust), load_tokenizer(base, trust_remote_code=trust)
    prompts = PromptFormat.of(tokenizer, load_generation_config(base), request.system)
    pad = pad_id(tokenizer, config.get_text_config().vocab_size, prompts.stop_ids)
    rows = make_rows(request.examples, prompts, recipe.loss)
    check_rows(rows, max_tokens=recipe.max_tokens, stops=prompts.stop_ids, pad=pad)
    trainable, total = count_parameters(config, recipe, trust_remote_code=trust)
    device = _device(request.device)
    steps = count_steps(len(rows), recipe)
    name = device.name if device.type == "cuda" else "T4"
    expected = estimate(Shape.of(config, total - trainable), recipe, rows, trainable, steps, card=name)
    if device.memory is not None:
        expected.check_fits(device.memory, device.name)
    return Plan(
        recipe=recipe,
        base=base,
        rows=rows,
        fingerprint=request.fingerprint,
        prompt=prompts.describe(),
        pad_id=pad,
        precision=_precision(recipe, device, total - trainable),
        device=device.type,
        trainable=trainable,
        total=total,
        steps=steps,
        warmup_steps=math.ceil(recipe.warmup * steps),
        estimate=expected,
    )


def count_steps(rows: int, recipe: Recipe) -> int:
    """Optimiser steps of a run; the last step of each epoch may see fewer samples."""
    per_epoch = math.ceil(math.ceil(rows / recipe.batch_size) / recipe.accumulate)
    return math.ceil(recipe.epochs * per_epoch)


def _recipe(request: FinetuneRequest) -> Recipe:
    given = request.recipe
    return override(given, request.overrides) if isinstance(given, Recipe) else load_recipe(given, request.overrides)


def _check_installed(recipe: Recipe) -> None:
    for module in ("torch", "transformers"):
        require(module, extra="models")
    for module in ("peft", *(("bitsandbytes",) if _needs_bitsandbytes(recipe) else ())):
        require(module, extra="finetune")


def _needs_bitsandbytes(recipe: Recipe) -> bool:
    return recipe.quantisation == "nf4" or "8bit" in recipe.optimizer


def _device(wanted: str) -> Device:
    if wanted not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"device is {wanted!r}: choose auto, cpu or cuda (and a card by CUDA_VISIBLE_DEVICES)")
    return Device.of(wanted)


def _precision(recipe: Recipe, device: Device, parameters: int) -> Precision:
    chosen = choose_precision(device, parameters, recipe.quantisation == "nf4")
    if recipe.precision != "auto":
        reason = f"{recipe.precision}, because the recipe {recipe.name} asks for it"
        chosen = replace(chosen, dtype_name=cast(DType, recipe.precision), reason=reason)
    if device.type == "cpu" and chosen.dtype_name == "float16":
        raise RecipeError('precision "float16" cannot be trained on a CPU: set precision = "auto"')
    return chosen
