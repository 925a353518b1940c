"""Several processes that train one adapter together: `accelerate launch -m bnbench finetune …`, or torchrun.

Each holds the whole model on a card of its own and takes its share of every step's samples. The gradients are added up
once a step, in one buffer: LoRA's are small, and unlike with DDP no process needs as many passes as the others. The
first process plans, writes and speaks. What they tell each other otherwise goes through the CPU, so no card waits.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from bnbench.errors import BnbenchError, RecipeError, TrainingError
from bnbench.extras import require

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: one that failed is noticed at once, one that hangs after this."""
T = TypeVar("T")


def count() -> int:
    """How many there are, as the launcher says in WORLD_SIZE; 1 without one."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def index() -> int:
    """Which this one is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def card() -> int:
    """The number of this process's card on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Meets the others, if there are any; `device` is the request's.

    Raises RecipeError where the machine has fewer cards than processes, or the launcher is to split the model.
    """
    if sys.platform == "linux":  # read once, when torch first allocates on a card; other platforms warn of it
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if count() == 1:
        yield
        return
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            refuse(RecipeError(f"{name} splits a model; here each process has a whole one: launch with --multi_gpu"))
    torch = require("torch", extra="models")
    on_cards = device != "cpu" and torch.cuda.is_available()
    if on_cards:
        cards, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", count()))
        if here > cards:
            refuse(RecipeError(f"{here} processes and {cards} cards on this machine: start one process a card"))
        torch.cuda.set_device(card())
    meeting = not torch.distributed.is_initialized()
    if meeting:
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cards else "gloo", timeout=PATIENCE)
    yield
    if meeting:  # and no error, after which this could wait for who is gone
        atexit.register(torch.distributed.destroy_process_group)


def first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in all of them. If it raises there, the others leave without a word."""
    if count() == 1:
        return make()
    import torch

    told: list[Any] = [None, None]
    if index() == 0:
        try:
            told[0] = make()
        except BnbenchError as error:
            told[1] = error
    with _in_company():
        torch.distributed.broadcast_object_list(told, device=torch.device("cpu"))
    if told[1] is not None:
        refuse(told[1])
    return told[0]  # type: ignore[no-any-return]


def largest(value: int) -> int:
    """The largest of all processes' values. Waits for them."""
    if count() == 1:
        return value
    import torch

    told = torch.tensor(value)
    with _in_company():
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return int(told)


def wait() -> None:
    """Until all processes have come here."""
    largest(0)


def add_gradients(parameters: Sequence[Any]) -> None:
    """Makes each parameter's gradient the sum of all processes'; a process without one adds nothing."""
    import torch

    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    together = torch.cat([g.reshape(-1) for g in gradients])
    with _in_company():
        torch.distributed.all_reduce(together)
    for parameter, summed in zip(parameters, torch.split(together, [p.numel() for p in parameters]), strict=True):
        parameter.grad = summed.view_as(parameter)


def refuse(error: BnbenchError) -> NoReturn:
    """Raises an error that all processes know of: one tells it, the others exit alike."""
    if index() == 0:
        raise error
    raise SystemExit(error.exit_code)


@contextmanager
def _in_company() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            f"process {index()} of {count()} lost the others: one failed (its message is above) or was killed. "
            f"The same command goes on from the last checkpoint ({str(error).splitlines()[0]})"
        ) from None
