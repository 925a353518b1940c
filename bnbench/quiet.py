"""Keeps the libraries' own bars, notes and deprecation warnings off the screen: a stage has one bar, and it is ours."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, WARNING, disable, getLogger
from pathlib import Path

from bnbench.extras import require

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
