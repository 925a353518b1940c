"""Everything that can be known about a training before a weight is loaded; `bnbench finetune --dry-run` prints it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from bnbench.data.corpus import Example
from bnbench.data.pairs import Pair
from bnbench.errors import MissingExtraError, RecipeError
from bnbench.extras import require
from bnbench.finetune.engine import processes
from bnbench.finetune.engine.rows import Row, check_rows, make_rows, rows_sha256
from bnbench.finetune.memory import Estimate, Shape, card_of, estimate
from bnbench.finetune.recipes import Recipe, load_recipe, override
from bnbench.finetune.tuners.adapter import count_parameters
from bnbench.models.files import Base, load_config, load_generation_config, load_tokenizer, resolve_base
from bnbench.models.precision import Device, DType, Precision, choose_precision
from bnbench.models.prompts import SYSTEM, Prompter, pad_id


@dataclass(frozen=True)
class FinetuneRequest:
    """What to train: a base (folder or hub id), a recipe (name, path or Recipe), examples, and a folder for the
    adapter.

    `fingerprint` is the corpus's. `overrides` are the recipe's keys as `--set key=value` gives them. `base_folder` is
    where the base lies if `base` is only the name that the adapter should record. `stop_after` (seconds) ends the
    session early with everything saved. `command` is what a user would type to go on, for messages. `device` is "auto",
    "cpu" or "cuda". A recipe whose tuner is dpo takes `pairs`, and no examples; the result tells what it did to
    those `held_out`.
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
    pairs: tuple[Pair, ...] = ()
    held_out: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A training that passed every check. Token counts are over one epoch; steps are optimiser steps.

    The estimate is for one of the processes, which have a card each. A pair is two rows, chosen and rejected.
    """

    recipe: Recipe
    base: Base
    rows: tuple[Row, ...] = field(repr=False)
    held_out: tuple[Row, ...] = field(repr=False)
    fingerprint: str
    prompt: Mapping[str, str]
    pad_id: int
    precision: Precision
    device: str
    trainable: int
    total: int
    steps: int
    warmup_steps: int
    processes: int
    estimate: Estimate

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in self.rows)

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total
        shared = f" shared by {self.processes} processes" if self.processes > 1 else ""
        unit, samples, longest = "rows", f"{len(self.rows)} rows", f"{self.longest}"
        if self.recipe.pairs:
            held_out = len(self.held_out) // 2
            unit, samples = "pairs", f"{len(self.rows) // 2} pairs and {held_out} held out"
            longest = f"reply with its prompt {longest}"
        return (
            f"{self.recipe.name} on {self.base.name}: {self.trainable:,} of {self.total:,} parameters ({share:.2f} %)\n"
            f"{samples}, the longest {longest} tokens; {self.steps} steps of "
            f"{self.recipe.samples_per_step} {unit}{shared}, {self.warmup_steps} of them warm-up\n"
            f"weights {self.precision.quantisation}, {self.precision.reason}\n"
            f"{'no card here; ' if self.device == 'cpu' else ''}{self.estimate}"
            f"{'' if self.base.has_weights else self._missing}"
        )

    @property
    def _missing(self) -> str:
        return f"\nthe base's weights are not here (no .safetensors in {self.base.folder}): training needs them"

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
            "weights_here": self.base.has_weights,
            "trainable_parameters": self.trainable,
            "total_parameters": self.total,
            "precision": self.precision.dtype_name,
            "quantisation": self.precision.quantisation,
            "precision_reason": self.precision.reason,
            "device": self.device,
            "rows": len(self.rows),
            "held_out_rows": len(self.held_out),
            "tokens": sum(len(row.ids) for row in self.rows),
            "supervised_tokens": sum(row.supervised for row in self.rows),
            "longest_row_tokens": self.longest,
            "samples_per_step": self.recipe.samples_per_step,
            "processes": self.processes,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
            "checkpoints_every": self.recipe.save_every,
            "estimate": self.estimate.summary(),
        }


def plan(request: FinetuneRequest, *, weights: bool = True) -> Plan:
    """Checks recipe, base and rows, and counts what the training will be; loads the tokenizer but no weights.

    Without `weights` (a dry run) they need not even be on this machine, and none are fetched. Raises RecipeError,
    CandidateError, PromptError, TrainingError (rows that must not be trained on, a card too small)
    or MissingExtraError.
    """
    recipe = _recipe(request)
    share = recipe.shared(processes.count())
    _check_installed(recipe)
    device = _device(request.device)
    if recipe.tuner == "unsloth" and weights:
        _check_unsloth(device)
    trust = request.trust_remote_code
    base = resolve_base(
        request.base, request.revision, folder=request.base_folder, trust_remote_code=trust, weights=weights
    )
    config, tokenizer = load_config(base, trust_remote_code=trust), load_tokenizer(base, trust_remote_code=trust)
    prompts = Prompter.of(tokenizer, load_generation_config(base), request.system)
    pad = pad_id(tokenizer, config.get_text_config().vocab_size, prompts.stop_ids)
    rows, held_out = (make_rows(examples, prompts, recipe.loss) for examples in _examples(request, recipe))
    for part in (rows, held_out) if held_out else (rows,):
        check_rows(part, max_tokens=recipe.max_tokens, stops=prompts.stop_ids, pad=pad)
    trainable, total = count_parameters(config, recipe, trust_remote_code=trust)
    steps = count_steps(len(rows) // recipe.rows_per_sample, recipe)
    name = device.name if device.type == "cuda" else card_of(recipe) or "T4"
    expected = estimate(Shape.of(config, total - trainable), share, rows, trainable, steps, card=name)
    if device.memory is not None:
        expected.check_fits(device.memory, device.name)
    return Plan(
        recipe=recipe,
        base=base,
        rows=rows,
        held_out=held_out,
        fingerprint=request.fingerprint,
        prompt=prompts.describe(),
        pad_id=pad,
        precision=_precision(recipe, device, total - trainable),
        device=device.type,
        trainable=trainable,
        total=total,
        steps=steps,
        warmup_steps=count_warmup(steps, recipe),
        processes=processes.count(),
        estimate=expected,
    )


def _examples(request: FinetuneRequest, recipe: Recipe) -> tuple[Sequence[Example], Sequence[Example]]:
    """What is trained on, and what is held out. Raises RecipeError for examples where pairs are wanted, or pairs where
    they are not.
    """
    if recipe.pairs != bool(request.pairs) or (request.pairs and request.examples):
        wanted = "pairs, and no examples" if recipe.pairs else "examples, and no pairs"
        raise RecipeError(f'recipe {recipe.name}: the tuner "{recipe.tuner}" trains on {wanted}')
    trained, held_out = (
        [e for p in pairs for e in (p.chosen, p.rejected)] for pairs in (request.pairs, request.held_out)
    )
    return request.examples or trained, held_out


def count_steps(rows: int, recipe: Recipe) -> int:
    """Optimiser steps of a run; the last step of each epoch may see fewer samples."""
    per_epoch = math.ceil(math.ceil(rows / recipe.batch_size) / recipe.accumulate)
    return math.ceil(recipe.epochs * per_epoch)


def count_warmup(steps: int, recipe: Recipe) -> int:
    """Steps of rising rate, as transformers counts them; the first has rate 0, so one alone would only be lost."""
    warmup = math.ceil(recipe.warmup * steps)
    return warmup if warmup > 1 else 0


def _recipe(request: FinetuneRequest) -> Recipe:
    given = request.recipe
    return override(given, request.overrides) if isinstance(given, Recipe) else load_recipe(given, request.overrides)


def _check_installed(recipe: Recipe) -> None:
    for module in ("torch", "transformers"):
        require(module, extra="models")
    more = (("bitsandbytes",) if _needs_bitsandbytes(recipe) else ()) + (("trl",) if recipe.pairs else ())
    for module in ("peft", *more):
        require(module, extra="finetune")


def _needs_bitsandbytes(recipe: Recipe) -> bool:
    return recipe.quantisation == "nf4" or "8bit" in recipe.optimizer


def _check_unsloth(device: Device) -> None:
    if device.type != "cuda":
        raise RecipeError(f'the tuner "unsloth" needs an NVIDIA GPU (this is {device.type}): set tuner = "qlora"')
    if find_spec("unsloth") is None:
        raise MissingExtraError('unsloth is not installed: pip install unsloth, or set tuner = "qlora"')


def _device(wanted: str) -> Device:
    if wanted not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"device is {wanted!r}: choose auto, cpu or cuda (and a card by CUDA_VISIBLE_DEVICES)")
    return Device.of(wanted)


def _precision(recipe: Recipe, device: Device, parameters: int) -> Precision:
    chosen = choose_precision(device, parameters, recipe.quantisation == "nf4")
    if recipe.precision != "auto":
        reason = f"{recipe.precision}, because the recipe {recipe.name} asks for it"
        if recipe.precision == "bfloat16" and chosen.dtype_name == "float16":
            reason += f", though {device.name or 'the card'} only emulates it: float16 would be several times faster"
        chosen = replace(chosen, dtype_name=cast(DType, recipe.precision), reason=reason)
    if device.type == "cpu" and chosen.dtype_name == "float16":
        raise RecipeError('precision "float16" cannot be trained on a CPU: set precision = "auto"')
    return chosen
