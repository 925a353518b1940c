"""Direct preference optimisation of a LoRA adapter: TRL's trainer on rows that we made.

    L = −log σ(m),   m = β · (Δ(chosen) − Δ(rejected)),   Δ(y) = log p_adapter(y | x) − log p_base(y | x)

(Rafailov et al. 2023, equation 7; m is the reward margin). A pair is two rows in succession, chosen and rejected, with
the same prompt x. The reference is the base itself with its adapter off, or with the adapter that training goes on
with (`Job.start`), of which TRL keeps a copy. TRL's part is the loss.

What TRL 1.16 would do by itself, and is kept from: write prompts with a template of its own (and end replies with the
tokenizer's end token, which closes no turn), cut rows at 1,024 tokens, train a 4-bit base's adapter in bfloat16 (which
fp16's scaler cannot), train in bfloat16 on any GPU, pad with the end token, write a model card into each checkpoint.
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bnbench.errors import RecipeError
from bnbench.finetune.engine.collate import IGNORED, Row
from bnbench.finetune.recipes import Recipe
from bnbench.finetune.tuners.adapter import AdapterTuner, lora_config
from bnbench.finetune.tuners.base import Job
from bnbench.metrics.significance import paired_tests
from bnbench.models.loading import Device
from bnbench.models.prompts import Prompter
from bnbench.progress import Stage
from bnbench.records import Gain


class PreferenceTuner(AdapterTuner):
    """The tuner "dpo", on a base in 4 bits or as it is."""

    packages: ClassVar[Mapping[str, str]] = {"trl": '".[finetune]" in a clone'}
    data = "pairs"
    keys: ClassVar[Mapping[str, Any]] = {"beta": 0.0}
    shares_steps = False

    def check(self, recipe: Recipe, device: Device | None) -> None:
        """Refuses settings that mean nothing here: TRL pads, and policy and reference differ by the adapter alone."""
        wanted = {"packing": False, "loss": "completion", "supervise": "last", "dropout": 0.0, "memory_gib": 0.0}
        wanted |= {"validate_every": 0, "neftune": 0.0, "lora_plus": 1.0}
        wrong = [f"{k} = {str(v).lower()}" for k, v in wanted.items() if getattr(recipe, k) != v]
        beta = recipe.own["beta"]
        if not 0 <= beta <= 100:
            raise RecipeError(f"beta is {beta}: it must lie between 0 and 100")
        if wrong := wrong + ([] if beta else ["beta above 0, such as 0.1"]):
            raise RecipeError(f'the tuner "dpo" needs {", ".join(wrong)}')

    def trainer(self, job: Job, base: Any, monitor: Any) -> Any:
        """TRL's trainer over the job's pairs, with our callbacks."""
        import datasets
        import peft
        import torch
        from transformers.trainer_callback import PrinterCallback
        from trl import DPOConfig, DPOTrainer
        from trl.trainer.dpo_trainer import DataCollatorForPreference

        from bnbench.finetune.engine.step import training_arguments

        class IdsTrainer(DPOTrainer):  # type: ignore[misc]
            """TRL's, on pairs that are already ids, and without its model card: `bnbench publish` writes one."""

            def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
                return dataset

            def create_model_card(self, *_: Any, **__: Any) -> None: ...

        # For every new length cuDNN makes a plan, as in `step.prepare`.
        torch.backends.cuda.enable_cudnn_sdp(False)
        pairs = as_pairs(job.rows)
        # No row is cut: those that are too long were dropped whole. Policy and reference differ by the adapter alone,
        # whatever dropout the base has.
        more = {"beta": job.recipe.own["beta"], "max_length": None, "disable_dropout": True}
        arguments = training_arguments(job, DPOConfig, bf16=job.precision.dtype_name == "bfloat16", **more)
        adapted = peft.PeftModel.from_pretrained(base, job.start, is_trainable=True) if job.start else None
        before = {n: p.detach().float() for n, p in adapted.named_parameters() if p.requires_grad} if adapted else {}
        trainer = IdsTrainer(
            model=adapted or base, args=arguments, data_collator=DataCollatorForPreference(pad_token_id=job.pad_id),
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=Prompter.load(job.base, trust_remote_code=job.trust_remote_code).tokenizer,
            peft_config=None if adapted else lora_config(base, job.recipe), callbacks=[monitor],
        )  # fmt: skip
        for name, parameter in trainer.model.named_parameters():
            if ".ref." in name:  # TRL's copy of the adapter that it goes on with, rounded like that
                parameter.data = before[name.replace(".ref.", ".default.")].clone()
            elif parameter.requires_grad:
                parameter.data = before.get(name, parameter.data).float()
        trainer.processing_class = None  # or every checkpoint has a copy of the tokenizer
        trainer.remove_callback(PrinterCallback)

        # Each reply has the prompt before it, and is padded to the longer one.
        lengths = [max(len(a.ids), len(b.ids)) for a, b in zip(job.rows[::2], job.rows[1::2], strict=True)]
        longest = sorted(range(len(pairs)), key=lengths.__getitem__, reverse=True)[: job.recipe.batch_size]

        def try_largest() -> None:
            # One forward and backward pass that leaves nothing in TRL's running means.
            trainer.current_gradient_accumulation_steps = 1
            trainer.training_step(trainer.model_wrapped, trainer.data_collator([pairs[i] for i in longest]))
            trainer._metrics["train"].clear()
            trainer._total_train_tokens = 0

        monitor.try_largest = try_largest
        return trainer

    def gain(self, job: Job, trainer: Any) -> Gain | None:
        """The gain on held-out pairs; None where there are none."""
        import torch
        from trl.trainer.utils import use_adapter

        if not job.held_out:
            return None
        pairs, size, model, found = as_pairs(job.held_out), job.recipe.batch_size, trainer.model.eval(), []
        with torch.no_grad(), trainer.accelerator.autocast(), Stage("held-out pairs", len(pairs), unit="pairs") as bar:
            for start in range(0, len(pairs), size):
                # TRL's collator: first the chosen rows of the batch, then the rejected ones.
                batch = trainer.data_collator(pairs[start : start + size])
                inputs = {name: value.to(trainer.args.device) for name, value in batch.items()}
                labels = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, IGNORED)
                score = partial(model, **inputs, labels=labels, use_cache=False, fused_lm_head=True)
                adapter = score().log_probs.sum(1)
                # The reference: the adapter that it began with, or the base.
                with use_adapter(model, "ref" if "ref" in model.peft_config else None):
                    base = score().log_probs.sum(1)
                # (model, reply, pair) → (model, pair, reply)
                found.append(torch.stack([base, adapter]).view(2, 2, -1).transpose(1, 2).double().cpu().numpy())
                bar.advance(len(labels) // 2)
        before, after = np.concatenate(found, 1)
        return measure_gain(before, after, [tuple(pair["prompt_ids"]) for pair in pairs], job.recipe.own["beta"])


def as_pairs(rows: Sequence[Row]) -> list[dict[str, list[int]]]:
    """Rows in turns chosen and rejected as TRL's collator takes them: ids of the prompt and of both replies."""
    pairs = []
    for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
        start = next(i for i, label in enumerate(chosen.labels) if label != IGNORED)  # where the reply begins
        prompt, reply, other = chosen.ids[:start], chosen.ids[start:], rejected.ids[start:]
        pairs.append({"prompt_ids": list(prompt), "chosen_ids": list(reply), "rejected_ids": list(other)})
    return pairs


def measure_gain(
    base: npt.NDArray[np.float64], adapter: npt.NDArray[np.float64], messages: Sequence[Hashable], beta: float
) -> Gain:
    """From log p(chosen), log p(rejected) in nats, shape (n, 2), of base and adapter; `messages` names each pair's."""
    # Two candidates, adapter and base, whose statistic for each pair is β times its log odds, and a count.
    after, before = (np.stack([beta * (p[:, 0] - p[:, 1]), np.ones(len(p))], 1) for p in (adapter, base))
    [[found]] = paired_tests([(after, before, lambda sums: sums[..., :1] / sums[..., 1:])], clusters=messages)
    chosen, rejected = (adapter - base).mean(0)
    return Gain(
        pairs=len(base), messages=len(set(messages)), beta=beta, margin=found.difference, low=found.interval.low,
        high=found.interval.high, p_value=found.p_value, won=float((after[:, 0] > before[:, 0]).mean()),
        chosen=float(chosen), rejected=float(rejected),
    )  # fmt: skip
