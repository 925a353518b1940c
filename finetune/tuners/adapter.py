"""LoRA on a frozen base, in 4 bits (QLoRA) or in full, on rows that are already tokens and labels.

Transformers' part: the loop, the optimiser, fp16's scaler, checkpoints that resume. PEFT's: the adapter and its files.
Ours: rows, packing, the step (`bnbench.finetune.engine.step`), guards, precision, seals.
"""

import json
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnbench.errors import RecipeError, nearest, require
from bnbench.finetune.engine import processes
from bnbench.finetune.recipes import ALL_LINEAR, Recipe
from bnbench.finetune.tuners.base import Job, Outcome, Tuner
from bnbench.models import loading
from bnbench.models.hub import ModelFiles, with_weights
from bnbench.models.loading import Device, make_portable
from bnbench.progress import Stage, quiet
from bnbench.records import Gain, write_json


class AdapterTuner(Tuner):
    """The tuner that recipes name "qlora" (4-bit base) or "lora" (base as it is).

    Others are made of it: they load the base, make the trainer or measure the gain in their own way.
    """

    shares_steps = True
    timed = True

    def check(self, recipe: Recipe, device: Device | None) -> None:
        """Refuses a recipe whose two words for the base's precision contradict each other."""
        for name, wrong, other, right in (("qlora", "none", "lora", "nf4"), ("lora", "nf4", "qlora", "none")):
            if recipe.tuner.casefold() == name and recipe.quantisation == wrong:
                instead = f'set tuner = "{other}", or quantisation = "{right}"'
                raise RecipeError(f'tuner "{name}" contradicts quantisation "{wrong}": {instead}')

    def train(self, job: Job) -> Outcome:
        """Trains, from `job.resume` if there is one, as `Tuner.train` says."""
        import torch
        import transformers

        from bnbench.finetune.engine.step import Monitor, curve_of
        from bnbench.finetune.engine.trackers import Tracker
        from bnbench.finetune.engine.validation import Validator

        with quiet():
            transformers.set_seed(job.recipe.seed)
            monitor = Monitor(job)
            with loading.explained(job.base.label, "it cannot be trained"):
                trainer = self.trainer(job, self.load(job), monitor)
            validator = Validator(job, trainer) if job.validation else None
            if validator:  # before the monitor, which seals what it adds to a checkpoint
                trainer.remove_callback(monitor)
                trainer.add_callback(validator)
                trainer.add_callback(monitor)
            tracker = Tracker(job) if job.recipe.report_to != "none" else None
            if tracker:
                trainer.add_callback(tracker)
            left = job.steps - (job.resume.step if job.resume else 0)
            with Stage("train", left, unit="steps", quiet=processes.index() > 0) as monitor.bar:
                try:
                    trainer.train(resume_from_checkpoint=str(job.resume.folder) if job.resume else None)
                finally:
                    if tracker:
                        tracker.close()
            seconds, steps = monitor.seconds, trainer.state.global_step
            curve, gain = curve_of(trainer.state.log_history), None
            if steps == job.steps or (validator and validator.stopped):
                if validator:
                    validator.restore_best()
                gain = self.gain(job, trainer)
                if processes.index() == 0:
                    save_adapter(job, trainer.model)
        peak = processes.reduce(torch.cuda.max_memory_reserved(), "MAX") if job.device == "cuda" else None
        return Outcome(steps, curve, seconds, peak, gain, validator.found if validator else None)

    def load(self, job: Job) -> Any:
        """The frozen base."""
        return load_base(job)

    def trainer(self, job: Job, base: Any, monitor: Any) -> Any:
        """The trainer of a job, with the adapter around the base that it trains, and `monitor` among its callbacks."""
        from bnbench.finetune.engine.decoder import Recomputation
        from bnbench.finetune.engine.layers import add_noise
        from bnbench.finetune.engine.step import StepTrainer, prepare

        recipe, on_gpu = job.recipe, job.device == "cuda"
        model = adapt(base, recipe)
        if recipe.checkpointing == "reentrant":
            model.enable_input_require_grads()
        trainer = StepTrainer(
            job, model, monitor, use_liger_kernel=on_gpu and find_spec("liger_kernel") is not None,
            liger_kernel_config={"fused_linear_cross_entropy": False},
        )  # fmt: skip
        # The trainer has put Liger's kernels in, which want the model's own forward; ours comes over it.
        prepare(model, job.device)
        if recipe.neftune:
            add_noise(model, recipe.neftune)
        if on_gpu and recipe.checkpointing == "non-reentrant":
            trainer.recomputation = Recomputation(model, recipe.memory_gib * 2**30)
        return trainer

    def gain(self, job: Job, trainer: Any) -> Gain | None:
        """What the finished training did to held-out pairs, for a tuner that trains on pairs."""
        return None


def load_base(job: Job) -> Any:
    """The frozen base on its device, in the job's precision. Pad on the right: unless `own_attention` it knows no mask.

    Raises CandidateError where it is not whole. Its embeddings stay as they are: no float32 copy is made, as PEFT's
    `prepare_model_for_kbit_training` would.
    """
    import torch
    import transformers

    from bnbench.finetune.engine.layers import ATTENTION
    from bnbench.finetune.engine.shards import Shards, own_part

    dtype = getattr(torch, job.precision.dtype_name)
    options: dict[str, Any] = {}
    if job.precision.quantisation == "nf4":
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=job.recipe.double_quantisation,
        )  # fmt: skip
    if job.device == "cuda":
        options["device_map"] = {"": torch.cuda.current_device()}
        torch.cuda.reset_peak_memory_stats()
    if processes.share_base():
        options |= own_part(job.base, trust_remote_code=job.trust_remote_code)
    model = loading.load_base(job.base, dtype=dtype, trust_remote_code=job.trust_remote_code, **options)
    if processes.share_base():
        Shards(model)
        model.name_or_path = str(job.base.folder)  # which PEFT looks into, or asks the hub for, when it saves
    if not own_attention(model):
        model.set_attn_implementation(ATTENTION)
    model.config.use_cache = False
    return make_portable(model)


def own_attention(model: Any) -> str:
    """Why a model's samples cannot share a row, so that it attends in its own way, to padded rows; empty if they can.

    The classes and configurations of transformers say so: what `layers.attend` knows is all that such a model does.
    """
    if getattr(model, "_is_stateful", False):
        return "its layers carry a state from token to token"
    if not (getattr(model, "_supports_attention_backend", False) and getattr(model, "_supports_sdpa", False)):
        return "its attention (ALiBi, a soft cap, sinks or the like) is its own"
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of {min(unknown).replace('_', ' ')}"
    return ""


def lora_config(model: Any, recipe: Recipe) -> Any:
    """The `peft.LoraConfig` of a recipe for a model."""
    import torch

    peft, all_linear = require("peft", extra="finetune"), recipe.targets == (ALL_LINEAR,)
    # Linear, and yet not to be adapted: Llama 4's routers give two tensors, Mamba's kernels take the weight of its last
    # layer alone, and what sees pictures learns nothing from texts.
    odd = [
        name
        for name, module in (model.named_modules() if all_linear else ())
        if type(module).__name__.endswith("Router")
        or ("vision" in name and isinstance(module, torch.nn.Linear))
        or (name.endswith(".out_proj") and "Mamba" in type(model.get_submodule(name.rpartition(".")[0])).__name__)
    ]
    return peft.LoraConfig(
        r=recipe.r, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, bias="none", task_type="CAUSAL_LM",
        target_modules=ALL_LINEAR if all_linear else list(recipe.targets),
        exclude_modules=odd or None, use_rslora=recipe.rslora, use_dora=recipe.dora,
    )  # fmt: skip


def adapt(model: Any, recipe: Recipe, *, low_cpu_mem_usage: bool = False) -> Any:
    """The model in a fresh `peft.PeftModel`, all else frozen. Raises RecipeError for what cannot be adapted in it."""
    import torch
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL
    from transformers.pytorch_utils import Conv1D

    peft = require("peft", extra="finetune")
    names, head = [name for name, _ in model.named_modules()], model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, Conv1D)) and m is not head]
    ends = sorted({name.rpartition(".")[2] for name in linear})
    unknown = list(recipe.targets)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it sets by itself, such as fan_in_fan_out
            adapted = peft.get_peft_model(model, lora_config(model, recipe), low_cpu_mem_usage=low_cpu_mem_usage)
        # Of a target beside others it says nothing. Experts, which are tensors and no layers, it has put elsewhere.
        unknown = adapted.peft_config["default"].target_modules
        unknown = sorted(t for t in unknown if not any(n == t or n.endswith(f".{t}") for n in names))
        if not unknown:
            return adapted
    except (TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        if "lora_dropout" in why:  # PEFT adapts tensors without it
            why = "the experts of this base are adapted without dropout: --set dropout=0"
        if "not found in the base model" not in why:
            raise RecipeError(f"recipe {recipe.name}: {why}") from None
    usual = [name for name in USUAL.get(model.config.model_type, ()) if name in ends]
    instead = f"--set targets={','.join(usual)} as PEFT does, or " if usual else ""
    why = f"targets names {unknown[0]!r}, which the base has not{nearest(unknown[0], ends) or '.'}"
    raise RecipeError(f"recipe {recipe.name}: {why} It has {', '.join(ends)}: {instead}--set targets={ALL_LINEAR}")


def linear_parameters(model: Any) -> int:
    """Weights of the linear layers of a model without adapter, its output head aside: those that NF4 packs."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return sum(
        module.weight.numel()
        for module in model.modules()
        if module is not head and (type(module) is torch.nn.Linear or isinstance(module, Conv1D))
    )


def recipe_of_adapter(recipe: Recipe, start: Path) -> Recipe:
    """The recipe with rank, scale and targets of an adapter that training goes on with; RecipeError for what cannot."""
    if not recipe.pairs:
        raise RecipeError(f'the tuner "{recipe.tuner}" begins with a new adapter: --start is for pairs (dpo)')
    files = ModelFiles(f"adapter {start}", str(start), "", start)
    config = files.read_json("adapter_config.json")
    with_weights(files)
    named = config.get("target_modules")
    targets = tuple(sorted(map(str, named))) if isinstance(named, list) else ()
    odd = (
        "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices",
    )  # fmt: skip
    unlike = [key for key in odd if config.get(key)]
    if str(config.get("peft_type")).upper() != "LORA" or config.get("bias", "none") != "none" or unlike or not targets:
        why = f"its {', '.join(unlike)}" if unlike else "what it is"
        raise RecipeError(f"adapter {start}: only a LoRA of plain linear layers can be gone on with, because of {why}")
    taken = {"r": config["r"], "alpha": config["lora_alpha"], "rslora": bool(config.get("use_rslora"))}
    return replace(recipe, targets=targets, **taken)


def count_parameters(base: str | Path | Any, recipe: Recipe, *, trust_remote_code: bool = False) -> tuple[int, int]:
    """(trainable, total) parameters of a recipe on a base, adapter included and tied weights once, without weights.

    `base` is a folder that holds a config.json, or a transformers configuration.
    """
    torch, transformers = require("torch", extra="models"), require("transformers", extra="models")
    config = base
    if isinstance(base, str | Path):
        config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    with quiet(), torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        counts: tuple[int, int] = adapt(model, recipe, low_cpu_mem_usage=True).get_nb_trainable_parameters()
    return counts


def save_adapter(job: Job, model: Any) -> None:
    """Writes a PEFT model's files to `job.output`, over old ones once whole, with the base as the user named it."""
    model.peft_config["default"].base_model_name_or_path = job.base.name
    model.peft_config["default"].revision = job.base.revision
    temporary = job.output / ".adapter"
    model.save_pretrained(
        temporary, safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"]
    )
    (temporary / "adapter_model.safetensors").replace(job.output / "adapter_model.safetensors")
    config = json.loads((temporary / "adapter_config.json").read_text(encoding="utf-8"))
    # PEFT writes a set in the order of this process's string hashes.
    sets = {key: sorted(config[key]) for key in ("target_modules", "target_parameters") if config.get(key)}
    write_json(job.output / "adapter_config.json", {**config, **sets})
    shutil.rmtree(temporary)
