"""Progress on stderr: a bar a stage on a terminal, plain lines elsewhere, and the libraries' own notes silenced."""

import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from logging import ERROR, WARNING, Formatter, LogRecord, disable, getLogger
from pathlib import Path

from bnbench.errors import require

PLAIN_EVERY_SECONDS = 15.0


def storable(text: str) -> str:
    """Text that any UTF-8 file and any HTML or XML parser takes: what is no character, or a control, becomes U+FFFD."""
    return re.sub("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]", "\ufffd", text)


def shown(text: str) -> str:
    """What a terminal shows: `storable`, and without marks that turn the direction of what follows them."""
    return re.sub("[\u202a-\u202e\u2066-\u2069]", "\ufffd", storable(text))


def told(text: str) -> str:
    """What a terminal is told: `shown`, further lines indented, so that no text of a stranger begins like ours."""
    return shown(text).replace("\n", "\n  ")


class Lines(Formatter):
    """A log in which each entry is `told`."""

    def format(self, record: LogRecord) -> str:
        """The entry's message."""
        return told(super().format(record))


class JsonLines(Formatter):
    """A log for machines, an object an entry: time (UTC), level, logger, message, and what `extra` has as `fields`."""

    def format(self, record: LogRecord) -> str:
        """The entry as a line of ASCII."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {"time": when, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry | getattr(record, "fields", {}))


def logs_json() -> bool:
    """Whether stderr is for machines, as `--log-json` sets it: then nothing but that log is written there."""
    return any(isinstance(handler.formatter, JsonLines) for handler in getLogger().handlers)


class Stage(AbstractContextManager["Stage"]):
    """One stage of `total` items while a block runs, which calls `advance` after each batch: a rich bar on a terminal,
    else a line every 15 seconds and at the end; or nothing.
    """

    def __init__(self, name: str, total: int, *, unit: str = "items", quiet: bool = False) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.quiet = quiet = quiet or getLogger("bnbench").level >= WARNING  # as -q sets it
        self.done = self.tokens = 0
        self.start = self.shown = time.monotonic()
        self.bar = None
        if not quiet and sys.stderr.isatty() and not logs_json():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress

            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}")
            self.bar = Progress(*columns, console=Console(stderr=True))  # rich honours NO_COLOR
            self.task = self.bar.add_task(name, total=total, rate="")
            self.bar.start()

    def advance(self, items: int, tokens: int = 0, note: str = "", *, is_end: bool = False) -> None:
        """Counts finished items and, where the stage makes any, their tokens; `note` stands before the speed."""
        self.done += items
        self.tokens += tokens
        now = time.monotonic()
        seconds = max(now - self.start, 1e-9)
        left = (self.total - self.done) * seconds / self.done if self.done else 0.0
        tokens_per_second = f" · {self.tokens / seconds:.0f} tokens/s" if self.tokens else ""
        remains = f"{left:.0f} s left" if left < 600 else f"{left / 60:.0f} min left"
        rate = f"{note}{note and ' · '}{self.done / seconds:.1f} {self.unit}/s{tokens_per_second} · {remains}"
        if self.bar and is_end:
            self.bar.stop()
        elif self.bar:
            self.bar.update(self.task, completed=self.done, rate=rate)
        elif not self.quiet and (is_end or now - self.shown >= PLAIN_EVERY_SECONDS):
            self.shown = now
            line = f"{self.name}: {self.done}/{self.total}" + (f" in {seconds:.1f} s" if is_end else f" · {rate}")
            if logs_json():
                fields = {"stage": self.name, "done": self.done, "total": self.total, "tokens": self.tokens}
                getLogger("bnbench.progress").info("%s", line, extra={"fields": fields})
            else:
                print(line, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        self.advance(0, is_end=True)


# On a processor with AVX512-BF16 bitsandbytes, which peft imports, warns that the package `kernels` is not there. It
# would have served a path that `models.loading` never takes. The import is what warns, so this stands before it.
getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)


def quiet_beside_the_first() -> None:
    """Of processes that a launcher started together (RANK is their number) the first speaks; all tell errors."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's warning that every matrix has a gradient
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        disable(WARNING)
        warnings.simplefilter("ignore")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers, and FutureWarning from anywhere, while the block runs; errors are heard."""
    logging, accelerate = require("transformers", extra="models").logging, getLogger("accelerate")
    verbosity, bars, level = logging.get_verbosity(), logging.is_progress_bar_enabled(), accelerate.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # On a resumed epoch accelerate says at every step that it cannot know the epoch's length.
    accelerate.setLevel(ERROR)
    try:
        with warnings.catch_warnings():
            # transformers 5.23 renames settings that trl 1.16 and peft 0.21 still use by their old names.
            warnings.simplefilter("ignore", FutureWarning)
            # bitsandbytes's on a CPU, where nothing is paged, and peft's of a checkpoint's embeddings.
            warnings.filterwarnings("ignore", "Paged optimizers are not supported|Setting `save_embedding_layers`")
            yield
    finally:
        accelerate.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
