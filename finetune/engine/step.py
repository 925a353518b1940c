"""The training step: a model whose forward is the loss of one pass, a Trainer that runs a step's passes, and what
happens at the edges of the steps: longest rows first, the loss curve, seals, stopping, progress.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from bnbench.errors import TrainingError
from bnbench.finetune.engine import processes
from bnbench.finetune.engine.collate import IGNORED, Collate, Pass, count_tokens, make_pass, pack, share
from bnbench.finetune.engine.decoder import Recomputation, make_lean_decoder
from bnbench.finetune.engine.layers import ATTENTION, Operands, cast, make_lean
from bnbench.finetune.memory import chunk_positions
from bnbench.finetune.tuners.base import Job, Point, seal, write_curve
from bnbench.models import kernels
from bnbench.progress import Stage

_log = logging.getLogger("bnbench.finetune")


def prepare(model: Any, device: str) -> None:
    """Turns a PEFT model on `device` into one that is called as `model(one_pass=…)` and gives {"loss": nats, summed}.

    Frozen input embeddings that are no output head stay in the CPU's memory: they are only looked up.
    """
    # For every new length cuDNN makes a plan: 2 ms a call, 0.9 s of a 1.3 s step (H100). Flash has none to make.
    torch.backends.cuda.enable_cudnn_sdp(False)
    base = model.get_base_model()
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    place = next(p.device for p in model.parameters() if p.requires_grad)
    # Are the logits the head's of the last hidden state, without a soft cap or a scale, as some models have? Four
    # tokens through the model as it was loaded tell.
    name, ids = type(base).__name__, torch.arange(4, device=embedding.weight.device)[None]
    trained = [m for m in (embedding, head) if any(p.requires_grad for p in m.parameters())]
    trains = model.training
    model.eval()  # without dropout
    with torch.no_grad():
        expected = base(input_ids=ids, use_cache=False).logits
        # What Llama 4 calls its base model has the head too.
        hidden = getattr(base.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        plain = hidden is not None and head not in trained
        plain = plain and torch.allclose(head(hidden).float(), expected.float(), rtol=1e-3, atol=1e-3)
        if base.config._attn_implementation == ATTENTION:
            # The four as two samples: the second must be as it is alone, and no token may see the next one.
            positions = torch.arange(2, device=ids.device).repeat(2)[None]
            packed = base(input_ids=ids, position_ids=positions, lengths=(2, 2), use_cache=False).logits
            alone = base(input_ids=torch.cat([ids[:, :2], ids[:, 2:]]), use_cache=False).logits
            first = base(input_ids=ids[:, :1], use_cache=False).logits
            gaps = (packed - alone.view_as(packed)).abs().max(), (first - expected[:, :1]).abs().max()
            if max(gaps) > 0.1 * expected.abs().max():  # roundings of 16 bits are far below
                raise TrainingError(f"{name}: its attention sees other samples, or later tokens; it is not supported")
    model.train(trains)
    if not plain:
        _log.warning("%s does more to its logits than a frozen head: they are made whole, not in chunks", name)
    known = make_lean(model)
    make_lean_decoder(model, known)
    if device == "cuda" and embedding.weight is not head.weight and embedding not in trained:
        embedding.to("cpu")
        if head.weight.shape == embedding.weight.shape:
            # The head goes where they were, so that the memory left for training is in one piece: with a hole in the
            # middle 0.4 GiB more were reserved (Llama-3.1-8B, rows of 4,096 tokens).
            head.weight.data = head.weight.data.clone()
        embedding._apply = lambda *_, **__: embedding  # whatever moves the model leaves it there
        embedding.forward = partial(_look_up, embedding, place)
    base.forward = partial(_loss_of_pass, base, type(base).forward if not plain else None, place, known)


def _look_up(embedding: Any, place: torch.device, ids: torch.Tensor) -> torch.Tensor:
    """An embedding's rows from the CPU's memory, in pinned memory, from which the copy to the GPU waits for nobody."""
    if embedding.weight.device == place:  # there is room for it, as was found later
        return type(embedding).forward(embedding, ids)  # type: ignore[no-any-return]
    if type(embedding) is not torch.nn.Embedding or place.type != "cuda":  # Gemma's has a scale
        return type(embedding).forward(embedding, ids).pin_memory().to(place, non_blocking=True)  # type: ignore[no-any-return]
    rows = torch.empty(ids.numel(), embedding.embedding_dim, dtype=embedding.weight.dtype, pin_memory=True)
    torch.index_select(embedding.weight.detach(), 0, ids.flatten(), out=rows)  # there at once, without a copy
    return rows.view(*ids.shape, -1).to(place, non_blocking=True)


def _loss_of_pass(
    base: Any, whole: Any, place: torch.device, known: dict[Any, Operands], *, one_pass: Pass, **_: Any
) -> dict[str, torch.Tensor]:
    """The forward of the model; `whole` is its own, where its logits are more than the head's."""
    cast(known)
    ids = one_pass.ids.to(base.get_input_embeddings().weight.device)
    on_place = partial(torch.Tensor.to, device=place, non_blocking=True)
    positions, index, targets = map(on_place, (one_pass.positions, one_pass.index, one_pass.targets))
    # `lengths` go through the model's layers to `attend`, which cuts the packed row there.
    settings: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if base.config._attn_implementation == ATTENTION:
        settings |= {"position_ids": positions, "lengths": one_pass.lengths}
    # Weights and activations already have their dtype: autocast, which fp16's scaler brings along, has no part.
    with torch.autocast(place.type, enabled=False):
        if whole is not None:
            logits = whole(base, **settings).logits
            chosen = logits.reshape(-1, logits.shape[-1]).index_select(0, index).float()
            return {"loss": torch.nn.functional.cross_entropy(chosen, targets, reduction="sum")}
        hidden = base.base_model(**settings).last_hidden_state
        supervised = hidden.reshape(-1, hidden.shape[-1]).index_select(0, index)
        return {"loss": summed_loss(supervised, base.get_output_embeddings(), targets)}


class _SummedLoss(torch.autograd.Function):
    """L = Σ (log Σ_v exp z_v − z_target) in nats, with z = h Wᵀ, so ∂L/∂h = (softmax(z) − onehot(target)) W.

    Over (n, width) hidden states and (n,) targets, in float32; the head is frozen. A chunk of positions at a time meets
    the vocabulary: logits of whole rows (2.1 GB for 4,096 tokens of Llama-3.1) are never made. The gradient is taken in
    the forward pass, while a chunk's logits are there: they are never kept nor computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden)
        size = chunk_positions(head.out_features)
        for h, t, g in zip(*(torch.split(x, size) for x in (hidden, targets, gradient)), strict=True):
            # One buffer (chunk, vocabulary), float32 in torch's way, is in turn logits, probabilities and gradient.
            logits = head(h)
            if kernels.usable(h.device):
                total += kernels.surprise(logits, t).sum()
                if ctx.needs_input_grad[0]:
                    torch.mm(logits, head.weight, out=g)
                continue
            logits = logits.float()
            logits -= logits.amax(-1, keepdim=True)
            chosen = logits.gather(-1, t[:, None])
            sums = logits.exp_().sum(-1, keepdim=True)
            total += (sums.log() - chosen).sum()
            logits /= sums
            if ctx.needs_input_grad[0]:
                logits.scatter_add_(-1, t[:, None], torch.full_like(chosen, -1.0))
                torch.mm(logits.to(h.dtype), head.weight, out=g)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.saved_tensors[0] * upstream[0].to(ctx.saved_tensors[0].dtype), None, None


summed_loss: Callable[[torch.Tensor, torch.nn.Linear, torch.Tensor], torch.Tensor] = _SummedLoss.apply


def training_arguments(job: Job, kind: Any = TrainingArguments, **more: Any) -> Any:
    """The recipe in transformers' words, a `kind`, with `more` beside them or instead."""
    recipe = job.recipe
    settings = {
        "output_dir": str(job.checkpoints), "max_steps": job.steps, "optim": recipe.optimizer, "seed": recipe.seed,
        "per_device_train_batch_size": recipe.batch_size, "gradient_accumulation_steps": recipe.accumulate,
        "learning_rate": recipe.learning_rate, "lr_scheduler_type": recipe.schedule, "warmup_steps": job.warmup_steps,
        "weight_decay": recipe.weight_decay, "max_grad_norm": recipe.max_grad_norm,
        "fp16": job.precision.dtype_name == "float16", "use_cpu": job.device == "cpu",
        "gradient_checkpointing": recipe.checkpointing != "none",
        "gradient_checkpointing_kwargs": {"use_reentrant": recipe.checkpointing == "reentrant"},
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,  # a pass is small, and is moved when its turn comes
        "save_strategy": "steps", "save_steps": recipe.save_every, "save_total_limit": recipe.keep_checkpoints,
        "logging_steps": 1, "logging_nan_inf_filter": False,  # so the curve is whole wherever a run is cut and resumed
        "report_to": "none", "disable_tqdm": True,
        # So buckets are not arranged anew after the first step, which would change how sums round in a resumed run.
        "ddp_find_unused_parameters": True,
    }  # fmt: skip
    arguments = kind(**{**settings, **more})
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process drives one GPU; more than one is `accelerate launch`, never DataParallel
    return arguments


def curve_of(history: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """The loss curve in a trainer's log history, which travels with its checkpoints and so survives a kill."""
    return tuple(Point(e["step"], e["loss"], e["learning_rate"]) for e in history if "loss" in e)


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Tries the longest rows first, draws progress, refuses a loss that is no number, seals checkpoints, keeps
    loss.csv, and passes on a wish to stop. Who trains sets `bar` and `try_largest`, a pass of what needs most memory.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start = time.monotonic() - (job.resume.seconds if job.resume else 0.0)
        self.try_largest: Callable[[], None]
        self.bar: Stage
        self.tokens = 0  # of the step under way, in all processes

    @property
    def seconds(self) -> float:
        """Training time of all sessions so far."""
        return time.monotonic() - self.start

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Tries the longest rows: a GPU too small says so at once, in a TrainingError.

        The trial leaves no trace, since gradients are zeroed and the random state is restored.
        """
        if processes.count() > 1:  # transformers has given all the same, and with them the same dropout
            torch.manual_seed(self.job.recipe.seed + processes.index())
        model.train()  # checkpointing and dropout are off in a model just loaded, and so are their costs
        try:
            with torch.random.fork_rng(devices=[torch.cuda.current_device()] if self.job.device == "cuda" else []):
                self.try_largest()
        except torch.OutOfMemoryError:
            recipe, row = self.job.recipe, max(self.job.rows, key=lambda r: len(r.ids))
            if recipe.packing and recipe.tokens_per_row > len(row.ids):
                size, advice = f"a row of {recipe.tokens_per_row} tokens", "lower tokens_per_row"
            elif recipe.packing or recipe.batch_size == 1:
                size, advice = "one sample", "lower max_tokens and drop the longest rows"
            else:
                size, advice = f"{recipe.batch_size} at once", "lower batch_size (and raise accumulate as much)"
            raise TrainingError(
                f"out of memory on the longest rows, tried first: {size}, the longest sample with {len(row.ids)} "
                f'tokens (id {row.id}). In the recipe, {advice}, or set checkpointing = "non-reentrant" (now: '
                f'{recipe.checkpointing}) or quantisation = "nf4" (now: {recipe.quantisation})'
            ) from None
        finally:
            model.zero_grad()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """One optimiser step's loss, into the bar; every `log_every` steps, and at the last, into log and loss.csv."""
        if "loss" not in logs:
            return
        step, every = state.global_step, self.job.recipe.log_every
        if not math.isfinite(logs["loss"]):
            name = self.job.precision.dtype_name
            why = f'lower learning_rate in the recipe, or set precision = "float32" (now: {name})'
            processes.refuse(TrainingError(f"the loss is {logs['loss']} at step {step}: {why}"))
        memory = f" · {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB" if self.job.device == "cuda" else ""
        self.bar.advance(1, self.tokens, f"loss {logs['loss']:.3f}{memory}")
        if processes.index() == 0 and (step == state.max_steps or step % every == 0):
            curve = curve_of(state.log_history)
            recent = [p.loss for p in curve[-every:]]
            mean = sum(recent) / len(recent)
            _log.info("step %d/%d: loss %.4f (mean of %d)", step, state.max_steps, mean, len(recent))
            write_curve(self.job.output / "loss.csv", curve)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops at the end of a step when that was asked for, with a checkpoint of exactly this step."""
        if state.global_step < state.max_steps and not control.should_training_stop and self.job.should_stop():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seals the checkpoint that the trainer has written, once each process has added its file."""
        processes.reduce(0, "MAX")  # waits for them all
        if processes.index() == 0:
            seal(self.job.checkpoints / f"checkpoint-{state.global_step}", self.seconds)
            write_curve(self.job.output / "loss.csv", curve_of(state.log_history))


class StepTrainer(Trainer):  # type: ignore[misc]
    """Transformers' loop around our step. A batch is a list of passes; the loss is over the step's supervised tokens.

    `recomputation`, if set, chooses the layers that are checkpointed. Of several processes each sees every row, so that
    all know the step's tokens. `more` are arguments of transformers' beside the recipe's.
    """

    recomputation: Recomputation | None = None

    def __init__(self, job: Job, model: Any, monitor: Monitor, **more: Any) -> None:
        arguments, recipe = training_arguments(job, **more), job.recipe
        over_epoch = recipe.packing and recipe.packing_over == "epoch"
        self.packs = pack(job.rows, recipe.tokens_per_row) if over_epoch else None
        data, self.lora_plus = self.packs or job.rows, recipe.lora_plus
        super().__init__(model=model, args=arguments, train_dataset=data, data_collator=list, callbacks=[monitor])
        self.monitor, self.rows = monitor, job.rows
        # DDP leaves what is frozen where it is, embeddings in the CPU's memory too, and sends none of it around.
        model._ddp_params_and_buffers_to_ignore = [
            name for name, value in [*model.named_parameters(), *model.named_buffers()] if not value.requires_grad
        ]
        self.collate = Collate(job.recipe.tokens_per_row if job.recipe.packing else None, job.pad_id)
        self.remove_callback(PrinterCallback)  # it prints to stdout, which is for results
        most = len(job.rows) if self.packs else job.recipe.shared(processes.count()).batch_size
        monitor.try_largest = partial(self.try_largest, self.collate.largest(job.rows, most))

    def get_train_dataloader(self) -> Any:
        """Lists of rows, the same in every process: `share` deals them out by length, not accelerate's sampler."""
        loader = super().get_train_dataloader()
        if processes.count() > 1:
            vars(loader.batch_sampler).update(num_processes=1, process_index=0, even_batches=False)
        return loader

    def try_largest(self, largest: Pass) -> None:
        """One forward and backward of the pass that needs most, and what it tells about the memory of the others."""
        step = partial(self.training_step, self.model, [largest], largest.supervised)  # by itself, without the others
        if self.recomputation is None:
            step()
        else:
            self.recomputation.measure(largest.ids.numel(), lambda: self.model(one_pass=largest)["loss"], step)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], int]:
        """This process's share of one optimiser step's batches, and how many supervised tokens the step has in all."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        size = self.args.per_device_train_batch_size
        if self.packs:
            batches = [[row for pack in batch for row in pack] for batch in batches]
            size = max(map(len, batches))
        tokens = sum(row.supervised for batch in batches for row in batch)
        self.monitor.tokens = sum(map(count_tokens, batches))
        shared = share(batches, size, processes.index(), processes.count())
        return [self.collate(batch) if batch else [] for batch in shared], tokens

    def training_step(self, model: Any, inputs: list[Pass], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of each pass of a batch; gives their share of the step's mean loss.

        Of several processes each adds its gradients to the others' in its last pass of the step, a short one that
        counts nothing where it has none; where they share the base, all have as many passes, by such ones. DDP and
        transformers' log take means, so that losses are scaled to sums.
        """
        if not model.training:  # else it goes through all modules for nothing, while the card waits
            model.train()
        total, count = torch.zeros((), device=self.args.device), processes.count()
        meets = isinstance(model, torch.nn.parallel.DistributedDataParallel) and self.accelerator.sync_gradients
        wanted = processes.reduce(len(inputs), "MAX") if processes.share_base() else int(meets)
        weights, rest = [float(count)] * len(inputs), max(0, wanted - len(inputs))
        if rest:
            shortest = make_pass([min(self.rows, key=lambda row: len(row.ids))])
            inputs, weights = [*inputs, *[shortest] * rest], [*weights, *[0.0] * rest]
        for i, (one_pass, weight) in enumerate(zip(inputs, weights, strict=True), 1):
            if self.recomputation is not None:
                self.recomputation.set_for(one_pass.ids.numel())
            with model.no_sync() if meets and i < len(inputs) else nullcontext(), processes.company():
                loss = self.compute_loss(model, one_pass, num_items_in_batch=num_items_in_batch)
                loss = loss * weight if weight != 1 else loss
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def compute_loss(self, model: Any, inputs: Pass, *_: Any, num_items_in_batch: Any = None) -> Any:
        """Nats of a pass over the supervised tokens of the whole step."""
        return model(one_pass=inputs)["loss"] / num_items_in_batch

    def create_optimizer(self, *given: Any) -> Any:
        """Transformers', with another rate for the matrices B where the recipe's `lora_plus` is one."""
        optimizer = super().create_optimizer(*given)
        # It waits for the card after each matrix, though all that it launches is in one stream.
        if (module := sys.modules.get("bitsandbytes.optim.optimizer")) and hasattr(module, "sync_gpu"):
            vars(module)["sync_gpu"] = lambda _: None
        if self.lora_plus != 1 and len(optimizer.param_groups) == 2:
            b = {id(p) for name, p in self.model.named_parameters() if ".lora_B." in name}
            groups = optimizer.param_groups
            for group in list(groups):
                faster = {**group, "params": [p for p in group["params"] if id(p) in b]}
                group["params"] = [p for p in group["params"] if id(p) not in b]
                groups.append(faster | {"lr": group["lr"] * self.lora_plus})
        return optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers would estimate it from padded ids."""
        return 0


class LabelTrainer(StepTrainer):
    """The step on a model that is not ours: it takes labels, and divides by the step's tokens itself."""

    def compute_loss(self, model: Any, inputs: Pass, *_: Any, num_items_in_batch: Any = None) -> Any:
        """As above; labels stand where the token itself is, and the model shifts them by one."""
        labels = torch.full((inputs.ids.numel(),), IGNORED)
        labels[inputs.index + 1] = inputs.targets
        place = self.args.device
        count = torch.tensor(num_items_in_batch, device=place)
        ids, labels = inputs.ids.to(place), labels.view_as(inputs.ids).to(place)
        return model(input_ids=ids, labels=labels, num_items_in_batch=count).loss
