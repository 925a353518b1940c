"""The adapter's shape: which modules get which rank, and how many parameters that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bnbench.errors import RecipeError
from bnbench.extras import require
from bnbench.finetune.recipes import ALL_LINEAR, Recipe, nearest
from bnbench.quiet import quiet


def lora_config(recipe: Recipe) -> Any:
    """The `peft.LoraConfig` of a recipe."""
    peft = require("peft", extra="finetune")
    return peft.LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=ALL_LINEAR if recipe.targets == (ALL_LINEAR,) else list(recipe.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def adapt(model: Any, recipe: Recipe, *, low_cpu_mem_usage: bool = False) -> Any:
    """The model with a fresh adapter around it and all else frozen.

    Raises RecipeError for a target that it does not have.
    """
    names = [name for name, _ in model.named_modules()]
    ends = sorted({name.rpartition(".")[2] for name in names} - {""})
    for target in recipe.targets:
        if target != ALL_LINEAR and not any(n == target or n.endswith(f".{target}") for n in names):
            raise RecipeError(
                f"recipe {recipe.name}: targets names {target!r}, which the base has not{nearest(target, ends)}"
            )
    peft = require("peft", extra="finetune")
    return peft.get_peft_model(model, lora_config(recipe), low_cpu_mem_usage=low_cpu_mem_usage)


def count_parameters(base: str | Path | Any, recipe: Recipe, *, trust_remote_code: bool = False) -> tuple[int, int]:
    """(trainable, total) parameters of a recipe on a base, adapter included, counted on the meta device: no weights
    needed.

    `base` is a folder that holds a config.json, or a transformers configuration. Tied weights count once.
    """
    require("torch", extra="models")
    import torch

    transformers = require("transformers", extra="models")
    config = base
    if isinstance(base, str | Path):
        config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    with quiet(), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        adapted = adapt(model, recipe, low_cpu_mem_usage=True)
    sizes = [(p.numel(), p.requires_grad) for p in adapted.parameters()]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
