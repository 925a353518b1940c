"""The peers of `finetune.py`, each at its best settings: Llama-3.1-8B's shape, random weights, NF4, r = 8 on q and v.

    python benchmarks/peers.py original|trl|unsloth|unsloth-padded [4096]

original is the recipe of the project that this one began as (transformers' Trainer, one sample at a time); trl is TRL's
SFTTrainer, padding-free; unsloth is padding-free too, unsloth-padded pads the step's four samples, its own choice. With
a length every row has so many tokens, one a pass. The data are the same in every variant: row lengths
exp(N(6.2, 0.75)) clipped to 48..4096 from torch seed 42, token ids from seed 1. Prints one JSON line: the median
seconds of a step after the first four (with a length the first), GiB. One process a measurement. Unsloth's packages
are found through PYTHONPATH, and the checkpoint must have a tokenizer beside it (`make_checkpoint`).
"""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
CHECKPOINT = Path("/tmp/llama8b")


def make_checkpoint(tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if (CHECKPOINT / "config.json").exists():
        return
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        tie_word_embeddings=False,
        bos_token_id=128000,
        eos_token_id=128009,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(CHECKPOINT, max_shard_size="4GB")
    del model
    gc.collect()
    torch.cuda.empty_cache()
    if tokenizer:
        shutil.copy(Path(tokenizer) / "tokenizer.json", CHECKPOINT)
        (CHECKPOINT / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "PreTrainedTokenizerFast",
                    "bos_token": "<|begin_of_text|>",
                    "eos_token": "<|eot_id|>",
                    "pad_token": "<|reserved_special_token_2|>",
                }
            )
        )


def rows(n, length=None):
    import torch

    g, ids = torch.Generator().manual_seed(42), torch.Generator().manual_seed(1)
    lengths = [
        length or int(min(4096, max(48, math.exp(6.2 + 0.75 * float(torch.randn(1, generator=g)))))) for _ in range(n)
    ]
    return [torch.randint(1000, 120000, (k,), generator=ids) for k in lengths]


def collate(batch):
    import torch

    ids = torch.nn.utils.rnn.pad_sequence([b["ids"] for b in batch], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(b["ids"]) for b in batch], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


LOADING = 240  # seconds that a process waits for the others
ROUNDS = int(os.environ.get("BNBENCH_TURN_ROUNDS", "1"))


class Turns:
    """Under `finetune.py --together`: processes that have all loaded train one after another, `steps` at a time.

    `medians` are those of this process's turns, in seconds a step. One that has ended is passed over.
    """

    def __init__(self, steps, length):
        self.steps, self.warm = steps, 1 if length else 4  # the first of equal rows, four of mixed ones
        self.folder, self.times, self.medians = os.environ.get("BNBENCH_TURNS"), [], []

    def begin(self):
        """Waits until all have loaded, and then until it is this one's turn."""
        if self.folder:
            self.folder = Path(self.folder)
            (self.folder / f"{os.getpid()}.loaded").touch()
            count, end = int(os.environ["BNBENCH_TURN_COUNT"]), time.time() + LOADING
            while len(found := list(self.folder.glob("*.loaded"))) < count and time.time() < end:
                time.sleep(0.2)
            self.order = sorted(int(path.stem) for path in found)
            self._wait()

    def _turn(self):
        path = self.folder / "turn"
        return int(path.read_text()) if path.exists() else 0

    def _pass_on(self, turn):
        own = self.folder / f"{os.getpid()}.turn"
        own.write_text(str(turn + 1))
        own.replace(self.folder / "turn")

    def _wait(self):
        while (whose := self.order[(turn := self._turn()) % len(self.order)]) != os.getpid():
            status = Path(f"/proc/{whose}/status")
            if not status.exists() or "State:\tZ" in status.read_text(encoding="utf-8"):
                self._pass_on(turn)
            time.sleep(0.1)

    def step(self):
        """A step has ended; after the last of a turn its median is noted, and the others have theirs."""
        import torch

        torch.cuda.synchronize()
        self.times.append(time.time())
        if len(self.times) < self.steps + bool(self.medians):  # a further turn has the time of its beginning, too
            return
        counted = self.times if self.medians else self.times[self.warm :]
        self.medians.append(round(statistics.median(b - a for a, b in pairwise(counted)), 3) if counted[1:] else None)
        if self.folder and len(self.medians) < ROUNDS:
            self._pass_on(self._turn())
            self._wait()
        self.times = [time.time()]


def original(settings, data, clock):
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import Trainer, TrainingArguments

    reentrant = {"use_reentrant": True}
    model = prepare_model_for_kbit_training(quantised(), gradient_checkpointing_kwargs=reentrant)
    model = get_peft_model(model, LoraConfig(lora_dropout=0.05, task_type="CAUSAL_LM", **LORA))
    args = TrainingArguments(
        **settings, per_device_train_batch_size=1, gradient_accumulation_steps=4, remove_unused_columns=False,
        gradient_checkpointing=True, gradient_checkpointing_kwargs=reentrant,
    )  # fmt: skip
    return Trainer(
        model=model, args=args, train_dataset=[{"ids": r} for r in data], data_collator=collate, callbacks=[clock]
    )


LORA = {"r": 8, "lora_alpha": 16, "bias": "none", "target_modules": ["q_proj", "v_proj"]}


def quantised():
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        CHECKPOINT, quantization_config=nf4, dtype=torch.bfloat16, device_map={"": 0}, attn_implementation="sdpa"
    )


def with_sft(variant, length, settings, data, clock):
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    more, extra = {}, {}
    if variant == "trl":
        from peft import LoraConfig

        model, more = quantised(), {"gradient_checkpointing": True}
        extra = {"peft_config": LoraConfig(lora_dropout=0.05, task_type="CAUSAL_LM", **LORA)}
    else:
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            str(CHECKPOINT), max_seq_length=4096 if length else 16384, dtype=torch.bfloat16, load_in_4bit=True
        )
        model = FastLanguageModel.get_peft_model(model, lora_dropout=0, use_gradient_checkpointing="unsloth", **LORA)
    batch = 1 if length else 4
    args = SFTConfig(
        **settings, per_device_train_batch_size=batch, gradient_accumulation_steps=4 // batch, max_length=None,
        padding_free=batch == 4 and not variant.endswith("padded"), **more,
    )  # fmt: skip
    return SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list([{"input_ids": r.tolist()} for r in data]),
        processing_class=AutoTokenizer.from_pretrained(CHECKPOINT), callbacks=[clock], **extra,
    )  # fmt: skip


def main():
    variant, length = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    if variant.startswith("unsloth"):
        import unsloth  # noqa: F401 - it changes what is imported after it
    import torch
    from transformers import TrainerCallback, set_seed

    make_checkpoint(None)
    set_seed(42)
    turns = Turns(7 if length else 16, length)
    data = rows(turns.steps * 4, length)
    settings = {
        "output_dir": f"/tmp/peer-{os.getpid()}", "max_steps": turns.steps * ROUNDS, "learning_rate": 2e-4,
        "warmup_steps": 1, "lr_scheduler_type": "cosine", "optim": "paged_adamw_8bit", "bf16": True,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            turns.step()

    make = original if variant == "original" else lambda *given: with_sft(variant, length, *given)
    trainer = make(settings, data, Clock())
    turns.begin()
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    found = {
        "variant": variant, "card": torch.cuda.get_device_name(0), "length": length,
        "tokens": sum(map(len, data)), "padding_free": getattr(trainer.args, "padding_free", False),
        "median_step_s": turns.medians,
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
