"""LoRA through Unsloth's patched models: on our rows and loss, ending in PEFT files like any other.

Unsloth's part: loading, the adapter, checkpointing, its kernels (driven as in `benchmarks/peers.py`). It has
a GPU to itself, draws its own dropout, and prints to stdout, which is for results.
"""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any, ClassVar

from bnbench.errors import RecipeError, require
from bnbench.finetune.recipes import ALL_LINEAR, Recipe
from bnbench.finetune.tuners.adapter import AdapterTuner
from bnbench.finetune.tuners.base import Job, Outcome
from bnbench.models.loading import Device

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class UnslothTuner(AdapterTuner):
    """The tuner "unsloth", where the package and an NVIDIA GPU are."""

    packages: ClassVar[Mapping[str, str]] = {"unsloth": "unsloth"}
    shares_steps = False
    timed = False

    def check(self, recipe: Recipe, device: Device | None) -> None:
        """Refuses what Unsloth does in one way only, set otherwise, and any machine without an NVIDIA GPU."""
        wanted: dict[str, tuple[Any, ...]] = {
            "validate_every": (0,), "neftune": (0.0,), "packing": (False,),
            "double_quantisation": (True,), "memory_gib": (0.0,),
            "checkpointing": ("non-reentrant", "none"), "precision": ("auto", "float16", "bfloat16"),
        }  # fmt: skip
        if wrong := [f"{k} = {str(v[0]).lower()}" for k, v in wanted.items() if getattr(recipe, k) not in v]:
            raise RecipeError(f'the tuner "unsloth" needs {", ".join(wrong)}; see the recipe unsloth')
        if device is not None and device.type != "cuda":
            raise RecipeError(f'the tuner "unsloth" needs an NVIDIA GPU (this is {device.type}): set tuner = "qlora"')

    def train(self, job: Job) -> Outcome:
        """As `AdapterTuner.train`, with what Unsloth prints on stderr."""
        with redirect_stdout(sys.stderr):
            return super().train(job)

    def load(self, job: Job) -> Any:
        """The base as Unsloth patches it; its tokenizer is not used."""
        import torch

        torch.cuda.reset_peak_memory_stats()
        model, _ = require("unsloth", extra="unsloth").FastLanguageModel.from_pretrained(
            model_name=str(job.base.folder), max_seq_length=job.recipe.max_tokens,
            dtype=getattr(torch, job.precision.dtype_name), load_in_4bit=job.precision.quantisation == "nf4",
            use_gradient_checkpointing=job.recipe.checkpointing != "none" and "unsloth", use_safetensors=True,
            trust_remote_code=job.trust_remote_code, random_state=job.recipe.seed,
        )  # fmt: skip
        return model

    def trainer(self, job: Job, base: Any, monitor: Any) -> Any:
        """Our trainer around Unsloth's adapter. Arithmetic is by autocast, which Unsloth's kernels rely on."""
        from bnbench.finetune.engine.step import LabelTrainer

        recipe = job.recipe
        model = require("unsloth", extra="unsloth").FastLanguageModel.get_peft_model(
            base, r=recipe.r, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, bias="none",
            use_rslora=recipe.rslora, use_dora=recipe.dora,
            target_modules=list(LINEAR if recipe.targets == (ALL_LINEAR,) else recipe.targets),
            use_gradient_checkpointing=recipe.checkpointing != "none" and "unsloth", random_state=recipe.seed,
        )  # fmt: skip
        bf16 = job.precision.dtype_name == "bfloat16"
        return LabelTrainer(job, model, monitor, bf16=bf16, gradient_checkpointing=False)
