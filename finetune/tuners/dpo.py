"""Direct preference optimisation (Rafailov et al. 2023) of a LoRA adapter: TRL's trainer on rows that we made.

A pair is two rows in succession, chosen and rejected, with the same prompt. The reference is the base itself: the same
model with its adapter off. TRL's part is the loss; the rest is what `bnbench.finetune.tuners.adapter` does.

What TRL 1.16 would do by itself, and is kept from: write prompts with a template of its own (and end replies with the
tokenizer's end token, which closes no turn), cut rows at 1,024 tokens, train a 4-bit base's adapter in bfloat16 (which
fp16's scaler cannot), train in bfloat16 on any card, pad with the end token, write a model card into each checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import datasets
import numpy as np
import numpy.typing as npt
import torch
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from bnbench.errors import RecipeError
from bnbench.finetune.engine.lora import lora_config
from bnbench.finetune.engine.monitor import LongestFirst, Monitor
from bnbench.finetune.engine.rows import IGNORED, Row
from bnbench.finetune.recipes import Recipe
from bnbench.finetune.tuners.adapter import AdapterTuner, training_arguments
from bnbench.finetune.tuners.base import Gain, Job
from bnbench.finetune.tuners.gain import measure_gain
from bnbench.finetune.tuners.load import load_tokenizer
from bnbench.models.precision import Device
from bnbench.progress import stage


class PreferenceTuner(AdapterTuner):
    """The tuner "dpo", on a base in 4 bits or as it is."""

    packages: ClassVar[Mapping[str, str]] = {"trl": '"bnbench[finetune]"'}
    data = "pairs"
    keys: ClassVar[Mapping[str, Any]] = {"beta": 0.0}
    shares_steps = False

    def check(self, recipe: Recipe, device: Device | None) -> None:
        """Refuses settings that mean nothing here: TRL pads, and policy and reference differ by the adapter alone."""
        wanted = {"packing": False, "loss": "completion", "dropout": 0.0, "memory_gib": 0.0}
        wrong = [f"{k} = {str(v).lower()}" for k, v in wanted.items() if getattr(recipe, k) != v]
        if not 0 <= recipe.own["beta"] <= 100:
            raise RecipeError(f"beta is {recipe.own['beta']}: it must lie between 0 and 100")
        if not recipe.own["beta"]:
            wrong.append("beta above 0, such as 0.1")
        if wrong:
            raise RecipeError(f'the tuner "dpo" needs {", ".join(wrong)}')

    def trainer(self, job: Job, base: Any, monitor: Monitor) -> Any:
        """TRL's trainer over the job's pairs, with our callbacks."""
        # For every new length cuDNN makes a plan, as in `step.prepare`.
        torch.backends.cuda.enable_cudnn_sdp(False)
        trainer = _Trainer(
            model=base,
            args=_arguments(job),
            data_collator=DataCollatorForPreference(pad_token_id=job.pad_id),
            train_dataset=datasets.Dataset.from_list(as_pairs(job.rows)),
            processing_class=load_tokenizer(job.base, trust_remote_code=job.trust_remote_code),
            peft_config=lora_config(job.recipe),
            callbacks=[monitor],
        )
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        trainer.processing_class = None  # or every checkpoint has a copy of the tokenizer
        trainer.remove_callback(PrinterCallback)
        largest = sorted(as_pairs(job.rows), key=_padded, reverse=True)[: job.recipe.batch_size]
        trainer.add_callback(LongestFirst(job, partial(trainer.try_batch, largest)))
        return trainer

    def gain(self, job: Job, trainer: Any) -> Gain | None:
        """The gain on held-out pairs; None where there are none."""
        if not job.held_out:
            return None
        pairs = as_pairs(job.held_out)
        base, adapter = _log_probabilities(trainer, pairs, job.recipe.batch_size)
        return measure_gain(base, adapter, [tuple(pair["prompt_ids"]) for pair in pairs], job.recipe.own["beta"])


def as_pairs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows in turns chosen and rejected, as TRL's collator takes them: the ids of prompt, chosen and rejected reply."""
    pairs = []
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        prompt = chosen.unsupervised
        pairs.append(
            {
                "prompt_ids": list(chosen.ids[:prompt]),
                "chosen_ids": list(chosen.ids[prompt:]),
                "rejected_ids": list(rejected.ids[prompt:]),
            }
        )
    return pairs


class _Trainer(DPOTrainer):  # type: ignore[misc]
    """TRL's, on pairs that are already ids."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: `bnbench publish` writes one that knows the data and the evaluation."""

    def try_batch(self, pairs: list[dict[str, Any]]) -> None:
        """One forward and backward pass that leaves nothing in TRL's running means."""
        self.current_gradient_accumulation_steps = 1
        self.training_step(self.model_wrapped, self.data_collator(pairs))
        self._metrics["train"].clear()
        self._total_train_tokens = 0


def _arguments(job: Job) -> Any:
    """`disable_dropout`: policy and reference differ by the adapter alone, whatever dropout the base has."""
    return training_arguments(
        job,
        DPOConfig,
        beta=job.recipe.own["beta"],
        bf16=job.precision.dtype_name == "bfloat16",
        max_length=None,  # no row is cut: those that are too long were dropped whole
        disable_dropout=True,
    )


def _log_probabilities(trainer: Any, pairs: Sequence[dict[str, Any]], size: int) -> npt.NDArray[np.float64]:
    """log p in nats, shape (2, pairs, 2): of base and adapter, of the chosen and the rejected reply."""
    model = trainer.model.eval()
    found = []
    with torch.no_grad(), trainer.accelerator.autocast(), stage("held-out pairs", len(pairs)) as bar:
        for start in range(0, len(pairs), size):
            batch = trainer.data_collator(pairs[start : start + size])
            inputs = {name: value.to(trainer.args.device) for name, value in batch.items()}
            labels = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, IGNORED)
            score = partial(model, **inputs, labels=labels, use_cache=False, fused_lm_head=True)
            adapter = score().log_probs.sum(1)
            with model.disable_adapter():
                base = score().log_probs.sum(1)
            found.append(torch.stack([base, adapter]).view(2, 2, -1).transpose(1, 2).double().cpu().numpy())
            bar.advance(len(labels) // 2)
    return np.concatenate(found, 1)


def _padded(pair: dict[str, Any]) -> int:
    """Tokens of the pair's longer row, to which the other is padded."""
    return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
