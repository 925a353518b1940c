"""LoRA on a frozen base, in 4 bits (QLoRA) or in full, on rows that are already tokens and labels.

Transformers' part: the loop, the optimiser, fp16's scaler, checkpoints that resume. PEFT's: the adapter and its files.
Ours: rows, packing, the step (`bnbench.finetune.engine.step`), guards, precision, seals.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from transformers.trainer_callback import PrinterCallback

from bnbench.errors import RecipeError
from bnbench.finetune.engine import processes
from bnbench.finetune.engine.attention import NAME
from bnbench.finetune.engine.collate import Packed, Padded
from bnbench.finetune.engine.lora import adapt
from bnbench.finetune.engine.monitor import LongestFirst, Monitor, curve_of, write_curve
from bnbench.finetune.engine.recompute import Recomputation
from bnbench.finetune.engine.step import StepTrainer, prepare
from bnbench.finetune.recipes import Recipe
from bnbench.finetune.tuners.base import Gain, Job, Outcome, Tuner
from bnbench.models.four_bits import make_portable
from bnbench.models.precision import Device
from bnbench.quiet import quiet
from bnbench.records import write_json


class AdapterTuner(Tuner):
    """The tuner that recipes name "qlora" (4-bit base) or "lora" (base as it is)."""

    shares_steps = True
    timed = True

    def check(self, recipe: Recipe, device: Device | None) -> None:
        """Refuses a recipe whose two words for the base's precision contradict each other."""
        if recipe.tuner == "qlora" and recipe.quantisation == "none":
            raise RecipeError(
                'tuner "qlora" contradicts quantisation "none": set tuner = "lora", or quantisation = "nf4"'
            )
        if recipe.tuner == "lora" and recipe.quantisation != "none":
            raise RecipeError(
                f'tuner "lora" contradicts quantisation "{recipe.quantisation}": '
                'set tuner = "qlora", or quantisation = "none"'
            )

    def train(self, job: Job) -> Outcome:
        """Trains, from `job.resume` if there is one; see `bnbench.finetune.tuners.base.Tuner`."""
        with quiet():
            transformers.set_seed(job.recipe.seed)
            base = self.load(job)
            monitor = Monitor(job)
            trainer = self.trainer(job, base, monitor)
            try:
                trainer.train(resume_from_checkpoint=str(job.resume.folder) if job.resume else None)
            finally:
                monitor.close()
            curve = curve_of(trainer.state.log_history)
            seconds = monitor.seconds
            gain = self.gain(job, trainer) if trainer.state.global_step == job.steps else None
            if processes.index() == 0:
                write_curve(job.output / "loss.csv", curve)
                if trainer.state.global_step == job.steps:
                    save_adapter(job, trainer.model)
        return Outcome(
            steps=trainer.state.global_step,
            curve=curve,
            seconds=seconds,
            peak_memory_bytes=processes.largest(torch.cuda.max_memory_reserved()) if job.device == "cuda" else None,
            gain=gain,
        )

    def load(self, job: Job) -> Any:
        """The frozen base."""
        return load_base(job)

    def trainer(self, job: Job, base: Any, monitor: Monitor) -> Any:
        """The trainer of a job, with the adapter around the base that it trains."""
        return make_trainer(job, adapt(base, job.recipe), monitor)

    def gain(self, job: Job, trainer: Any) -> Gain | None:
        """What the finished training did to held-out pairs, for a tuner that trains on pairs."""
        return None


def load_base(job: Job) -> Any:
    """The frozen base on its device, in the job's precision.

    Its embeddings stay as they are: no float32 copy is made.
    """
    dtype = getattr(torch, job.precision.dtype_name)
    options: dict[str, Any] = {}
    if job.precision.quantisation == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=job.recipe.double_quantisation,
            bnb_4bit_compute_dtype=dtype,
        )
    if job.device == "cuda":
        options["device_map"] = {"": processes.card()}
        torch.cuda.reset_peak_memory_stats()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job.base.folder,
        dtype=dtype,
        attn_implementation=NAME,
        use_safetensors=True,
        trust_remote_code=job.trust_remote_code,
        **options,
    )
    model.config.use_cache = False
    return make_portable(model)


def make_trainer(job: Job, model: Any, monitor: Monitor) -> Any:
    """The trainer of a job, with our collator and callbacks."""
    collator = Packed(job.recipe.tokens_per_row) if job.recipe.packing else Padded(job.pad_id)
    if job.recipe.checkpointing == "reentrant":
        model.enable_input_require_grads()
    trainer = StepTrainer(
        model=model,
        args=training_arguments(
            job,
            use_liger_kernel=job.device == "cuda" and find_spec("liger_kernel") is not None,
            liger_kernel_config={"fused_linear_cross_entropy": False},
        ),
        train_dataset=job.rows,
        data_collator=list,
        callbacks=[monitor],
    )
    # Liger's kernels want the model's own forward; ours comes over it.
    prepare(model, job.device)
    if job.device == "cuda" and job.recipe.checkpointing == "non-reentrant":
        trainer.recomputation = Recomputation(model, job.recipe.memory_gib * 2**30)
    return on_rows(trainer, job, collator)


def on_rows(trainer: StepTrainer, job: Job, collator: Packed | Padded) -> StepTrainer:
    """Gives the trainer its collator, and the longest rows to try first."""
    trainer.collate = collator
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
    largest = collator.largest(job.rows, job.recipe.shared(processes.count()).batch_size)
    trainer.add_callback(LongestFirst(job, partial(trainer.try_largest, largest)))
    return trainer


def training_arguments(job: Job, kind: Any = transformers.TrainingArguments, **more: Any) -> Any:
    """The recipe in transformers' words. Logged every step: the curve is whole wherever a run is cut and resumed.

    `kind` is the class of arguments, `more` what it takes beside the recipe's or instead of them.
    """
    recipe = job.recipe
    settings = {
        "output_dir": str(job.checkpoints),
        "max_steps": job.steps,
        "per_device_train_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.accumulate,
        "optim": recipe.optimizer,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": job.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "fp16": job.precision.dtype_name == "float16",
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": recipe.checkpointing != "none",
        "gradient_checkpointing_kwargs": {"use_reentrant": recipe.checkpointing == "reentrant"},
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,  # a pass is small, and is moved when its turn comes
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": recipe.keep_checkpoints,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": recipe.seed,
    }
    arguments = kind(**{**settings, **more})
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process drives one card; more than one is `accelerate launch`, never DataParallel
    return arguments


def save_adapter(job: Job, model: Any) -> None:
    """Writes the PEFT files, with the base named as the user named it; old ones stay until the new are whole."""
    model.peft_config["default"].base_model_name_or_path = job.base.name
    model.peft_config["default"].revision = job.base.revision
    temporary = job.output / ".adapter"
    model.save_pretrained(temporary, safe_serialization=True, save_embedding_layers=False)
    (temporary / "adapter_model.safetensors").replace(job.output / "adapter_model.safetensors")
    config = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
    # PEFT writes a set in the order of this process's string hashes.
    write_json(job.output / "adapter_config.json", {**config, "target_modules": sorted(config["target_modules"])})
    shutil.rmtree(temporary)
