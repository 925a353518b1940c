"""Progress on stderr: a bar a stage on a terminal, plain lines elsewhere, and quiet for everybody else.

The libraries' own bars, notes and deprecation warnings stay off the screen: a stage has one bar, and it is ours.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, WARNING, disable, getLogger
from pathlib import Path

from bnbench.errors import require

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


# On a processor with AVX512-BF16 bitsandbytes, which peft imports, warns that the package `kernels` is not there. It
# would have served a path that `models.four_bits` never takes. The import is what warns, so this stands before it.
getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)


def quiet_beside_the_first() -> None:
    """Of processes that a launcher started together (RANK is their number) the first speaks; all tell errors."""
    if "LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0":
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        disable(WARNING)
        warnings.simplefilter("ignore")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers, and FutureWarning from anywhere, while the block runs; errors are heard."""
    logging = require("transformers", extra="models").logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    # On a resumed epoch accelerate says at every step that it cannot know the epoch's length.
    accelerate = getLogger("accelerate")
    level = accelerate.level
    accelerate.setLevel(ERROR)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # transformers 5.23 renames settings that trl 1.16 and peft 0.21 still use by their old names.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        accelerate.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
