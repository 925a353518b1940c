"""The training step: a model whose forward is the loss of one pass, and a Trainer that runs a step's passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import Trainer

from bnbench.finetune.engine import processes
from bnbench.finetune.engine.collate import Pass, share
from bnbench.finetune.engine.linear import make_lean
from bnbench.finetune.engine.loss import summed_loss
from bnbench.finetune.engine.recompute import Recomputation
from bnbench.finetune.engine.rows import Row

_log = logging.getLogger("bnbench.finetune")


def prepare(model: Any, device: str) -> None:
    """Turns a PEFT model on `device` into one that is called as `model(one_pass=…)` and gives {"loss": nats, summed}.

    Frozen input embeddings that are no output head stay in the CPU's memory: they are only looked up.
    """
    # For every new length cuDNN makes a plan: 2 ms a call, 0.9 s of a 1.3 s step (H100). Flash has none to make.
    torch.backends.cuda.enable_cudnn_sdp(False)
    base = model.get_base_model()
    place = next(p.device for p in model.parameters() if p.requires_grad)
    plain = _is_plain(base)
    if not plain:
        _log.warning(
            "%s does more to its logits than its head: they are made whole, not in chunks", type(base).__name__
        )
    make_lean(model)
    embedding = base.get_input_embeddings()
    if device == "cuda" and embedding.weight is not base.get_output_embeddings().weight:
        embedding.to("cpu")
        embedding._apply = lambda *_, **__: embedding  # whatever moves the model leaves it there
        embedding.forward = partial(_look_up, embedding, place)
    base.forward = partial(_loss, base, type(base).forward if not plain else None, place)


def _look_up(embedding: Any, place: torch.device, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = type(embedding).forward(embedding, ids)
    return found.pin_memory().to(place, non_blocking=True)


def _loss(base: Any, whole: Any, place: torch.device, *, one_pass: Pass, **_: Any) -> dict[str, torch.Tensor]:
    """Weights and activations already have their dtype: autocast, which fp16's scaler brings along, has no part."""
    ids = one_pass.ids.to(base.get_input_embeddings().weight.device)
    moved = one_pass.on(place)
    settings = {"input_ids": ids, "position_ids": moved.positions, "lengths": moved.lengths, "use_cache": False}
    with torch.autocast(place.type, enabled=False):
        if whole is not None:
            logits = whole(base, **settings).logits
            chosen = logits.reshape(-1, logits.shape[-1]).index_select(0, moved.index).float()
            return {"loss": torch.nn.functional.cross_entropy(chosen, moved.targets, reduction="sum")}
        hidden = base.base_model(**settings).last_hidden_state
        supervised = hidden.reshape(-1, hidden.shape[-1]).index_select(0, moved.index)
        return {"loss": summed_loss(supervised, base.get_output_embeddings(), moved.targets)}


@torch.no_grad()
def _is_plain(base: Any) -> bool:
    """Whether the logits are the head's of the last hidden state: no soft cap, no scale, as some models have."""
    ids = torch.arange(4, device=base.get_input_embeddings().weight.device)[None]
    expected = base(input_ids=ids, use_cache=False).logits
    found = base.get_output_embeddings()(base.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    return torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-3)


class StepTrainer(Trainer):  # type: ignore[misc]
    """Transformers' loop around our step. A batch is a list of passes; the loss is over the step's supervised tokens.

    `collate` makes passes of rows. `recomputation` chooses the layers that are checkpointed, where the recipe
    checkpoints and there is a card. Of several processes each sees every row, so that all know the step's tokens.
    """

    collate: Callable[[Sequence[Row]], list[Pass]]
    recomputation: Recomputation | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Without DDP: gradients are added up in `training_step`."""
        super().create_accelerator_and_postprocess()
        if processes.count() > 1:
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def get_train_dataloader(self) -> Any:
        """Lists of rows, the same in every process."""
        loader = super().get_train_dataloader()
        if processes.count() > 1:
            vars(loader.batch_sampler).update(num_processes=1, process_index=0, even_batches=False)
        return loader

    def try_largest(self, largest: Pass) -> None:
        """One forward and backward of the pass that needs most, and what it tells about the memory of the others."""

        def step() -> None:
            self.training_step(self.model_wrapped, [largest], largest.supervised)

        if self.recomputation is None:
            step()
        else:
            self.recomputation.measure(largest, lambda: self.model_wrapped(one_pass=largest)["loss"], step)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], int]:
        """This process's share of one optimiser step's batches, and how many supervised tokens the step has in all."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        tokens = sum(row.supervised for batch in batches for row in batch)
        shared = share(batches, self.args.per_device_train_batch_size, processes.index(), processes.count())
        return [self.collate(batch) if batch else [] for batch in shared], tokens

    def training_step(self, model: Any, inputs: list[Pass], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of each pass of a batch; gives their share of the step's mean loss.

        Transformers takes the mean of the processes' losses for its log, so theirs are scaled to add up there.
        """
        model.train()
        total = torch.zeros((), device=self.args.device)
        for one_pass in inputs:
            if self.recomputation is not None:
                self.recomputation.set_for(one_pass)
            loss = self.compute_loss(model, one_pass, num_items_in_batch=num_items_in_batch)
            self.accelerator.backward(loss)
            total += loss.detach()
        if processes.count() > 1 and self.accelerator.sync_gradients:
            processes.add_gradients([p for p in model.parameters() if p.requires_grad])
        return total * processes.count() if processes.count() > 1 else total

    def compute_loss(
        self, model: Any, inputs: Pass, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Nats of a pass over the supervised tokens of the whole step."""
        return model(one_pass=inputs)["loss"] / num_items_in_batch

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: transformers would estimate it from padded ids."""
        return 0
