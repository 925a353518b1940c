"""Processes that train one adapter together, and when they stop: at a signal, or after a time that the user gave.

`accelerate launch -m bnbench finetune …` or torchrun starts them. Each holds the whole model on a GPU of its own and
takes its share of every step's samples; DDP adds up LoRA's small gradients once a step, in each process's last pass,
however many passes the others have. The first process plans, writes and speaks. Under `accelerate launch --use_fsdp`
the base's layers are shared out too (`bnbench.finetune.engine.shards`).
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

from bnbench.errors import BnbenchError, RecipeError, TrainingError, require

_SHARES = "BNBENCH_USE_FSDP"
T = TypeVar("T")
Number = TypeVar("Number", int, float)


def count() -> int:
    """How many there are, as the launcher says in WORLD_SIZE; 1 without one."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def index() -> int:
    """Which this one is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def share_base() -> bool:
    """Whether each holds a part of the base's layers, as the launcher says in ACCELERATE_USE_FSDP."""
    return count() > 1 and "true" in (os.environ.get(name, "").lower() for name in ("ACCELERATE_USE_FSDP", _SHARES))


@contextmanager
def meet(device: str) -> Iterator[None]:
    """The time that this process spends with the others. Raises RecipeError for fewer GPUs than processes."""
    if sys.platform == "linux":  # read once, when torch first allocates on a GPU; other platforms warn of it
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if count() == 1:
        yield
        return
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        refuse(RecipeError("DeepSpeed is not supported: launch with --multi_gpu, or --use_fsdp to share the base"))
    if share_base():
        if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
            refuse(RecipeError("FSDP's layers stay on the cards: launch without --fsdp_offload_params"))
        # Kept from accelerate, which would wrap the model, LoRA and all: its layers are shared out by us.
        os.environ[_SHARES], os.environ["ACCELERATE_USE_FSDP"] = "true", "false"
    torch = require("torch", extra="models")
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus:
        there, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", count()))
        if here > there:
            refuse(RecipeError(f"{here} processes and {there} cards on this machine: start one process a card"))
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ours = not torch.distributed.is_initialized()
    if ours:
        # One that failed is noticed by the others at once, one that hangs after half an hour.
        backend, patience = "cpu:gloo,cuda:nccl" if on_gpus else "gloo", timedelta(minutes=30)
        torch.distributed.init_process_group(backend, timeout=patience)
    yield
    if ours:  # and no error, after which this could wait for who is gone
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
    with company():
        torch.distributed.broadcast_object_list(told, device=torch.device("cpu"))
    if told[1] is not None:
        refuse(told[1])
    return told[0]  # type: ignore[no-any-return]


def reduce(value: Number, how: Literal["MAX", "SUM"]) -> Number:
    """The largest, or the sum, of all processes' numbers, the same in each. Waits for them."""
    if count() == 1:
        return value
    import torch

    told = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    with company():
        torch.distributed.all_reduce(told, getattr(torch.distributed.ReduceOp, how))
    return type(value)(told)


def refuse(error: BnbenchError) -> NoReturn:
    """Raises an error that all processes know of: one tells it, the others exit alike."""
    if index() == 0:
        raise error
    raise SystemExit(error.exit_code)


@contextmanager
def company() -> Iterator[None]:
    """Says so, in a TrainingError, where the others are lost while the block waits for them."""
    try:
        yield
    except RuntimeError as error:
        if count() == 1 or "out of memory" in str(error).lower():
            raise
        raise TrainingError(
            f"process {index()} of {count()} lost the others: one failed (its message is above) or was killed. "
            f"The same command goes on from the last checkpoint ({str(error).splitlines()[0]})"
        ) from None


class Stop:
    """Asked after every step, by all processes, until `after` seconds from now. `signal` is what came to any."""

    def __init__(self, after: float | None = None) -> None:
        self.signal: int | None = None
        self._end = math.inf if after is None else time.monotonic() + after

    def __call__(self) -> bool:
        """True once a signal came or the time is up, in whichever process."""
        # 1 stands for the time: the signals heard have higher numbers.
        why = reduce(self.signal or int(time.monotonic() >= self._end), "MAX")
        if why > 1:
            self.signal = why
        return why > 0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The signal handler. A second Ctrl-C ends a process at once; a launcher passes on the first one twice."""
        if self.signal is not None and number == signal.SIGINT and count() == 1:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stop_on_signals(after: float | None = None) -> Iterator[Stop]:
    """SIGTERM and Ctrl-C ask for a stop at the end of the step (a second Ctrl-C stops at once), as the time does."""
    # Python allows no thread but the main one to set a handler.
    stop = Stop(after)
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop.hear) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
