"""When a training should stop before its end: a signal, or a time that the user gave."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bnbench.finetune.engine import processes

TIME = 1
"""Stands for the time limit where processes tell each other why they stop: the signals heard have higher numbers."""


class Stop:
    """Asked after every optimiser step, by all processes. `signal` is the one that came to any, None while none did."""

    def __init__(self, after: float | None = None) -> None:
        self.signal: int | None = None
        self._deadline = None if after is None else time.monotonic() + after

    def __call__(self) -> bool:
        """True once a signal came or the time is up, in whichever process."""
        time_is_up = self._deadline is not None and time.monotonic() >= self._deadline
        why = processes.largest(self.signal or (TIME if time_is_up else 0))
        if why > TIME:
            self.signal = why
        return why > 0

    def _hear(self, number: int, frame: FrameType | None) -> None:
        # A launcher passes on the Ctrl-C that its processes have already heard.
        if self.signal is not None and number == signal.SIGINT and processes.count() == 1:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def listening(after: float | None = None) -> Iterator[Stop]:
    """SIGTERM and Ctrl-C ask for a stop at the end of the step (a second Ctrl-C stops at once); `after` in seconds,
    too.

    Signals are heard in the main thread only: Python allows no other to set a handler.
    """
    stop = Stop(after)
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop._hear) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
