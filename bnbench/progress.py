"""Progress on stderr: one bar a stage with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PLAIN_EVERY_SECONDS = 15.0


class Stage:
    """One stage under way. `advance(items, tokens)` after each batch."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.done = self.tokens = 0
        self.start = time.monotonic()

    def advance(self, items: int, tokens: int = 0) -> None:
        """Counts finished items and, where the stage makes any, their tokens."""
        self.done += items
        self.tokens += tokens
        self.show()

    def show(self) -> None:
        """Puts the state on the screen; the base class is silent."""

    def close(self) -> None:
        """Ends the stage's display."""

    def rate(self) -> str:
        """Items and tokens per second, and the time left."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        left = (self.total - self.done) * seconds / self.done if self.done else 0.0
        tokens = f" · {self.tokens / seconds:.0f} tokens/s" if self.tokens else ""
        return f"{self.done / seconds:.1f} items/s{tokens} · {left:.0f} s left"


class _PlainStage(Stage):
    """A line when the stage starts and ends, and one every 15 seconds between."""

    def __init__(self, name: str, total: int) -> None:
        super().__init__(name, total)
        self.shown = self.start

    def show(self) -> None:
        if time.monotonic() - self.shown >= PLAIN_EVERY_SECONDS:
            self.shown = time.monotonic()
            print(f"{self.name}: {self.done}/{self.total} · {self.rate()}", file=sys.stderr, flush=True)

    def close(self) -> None:
        seconds = time.monotonic() - self.start
        print(f"{self.name}: {self.done}/{self.total} in {seconds:.1f} s", file=sys.stderr, flush=True)


class _BarStage(Stage):
    """A rich bar; NO_COLOR is honoured by rich itself."""

    def __init__(self, name: str, total: int) -> None:
        super().__init__(name, total)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.bar.start()
        self.task = self.bar.add_task(name, total=total, rate="")

    def show(self) -> None:
        self.bar.update(self.task, completed=self.done, rate=self.rate())

    def close(self) -> None:
        self.bar.stop()


@contextmanager
def stage(name: str, total: int, *, quiet: bool = False) -> Iterator[Stage]:
    """Shows one stage of `total` items while the block runs."""
    kind = Stage if quiet else _BarStage if sys.stderr.isatty() else _PlainStage
    one = kind(name, total)
    try:
        yield one
    finally:
        one.close()
