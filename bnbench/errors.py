"""The exception tree of bnbench. Catch `BnbenchError` for all of it; each message says what, where and how to fix it.

The command line exits with the error's `exit_code`: 2 where what was asked for or given is at fault, so that the same
command fails again; 1 where the work, a server or the machine failed; 3 partial (all is kept).
"""

import errno
from typing import Any

from bnbench.metrics.exceptions import BnbenchError, InputError, MissingExtraError, UsageError, nearest, require

__all__ = [
    "BnbenchError", "CandidateError", "CorpusError", "EndpointError", "InputError", "MissingExtraError",
    "PartialRunError", "PromptError", "RecipeError", "RunError", "TrainingError", "UsageError", "nearest", "require",
]  # fmt: skip

FULL = (errno.ENOSPC, errno.EDQUOT)
HELP = dict.fromkeys(FULL, "make room") | {errno.EROFS: "name another --out, or copy the folder elsewhere"}


def refused(error: OSError, place: object = "") -> str:
    """What the system refused, where (`place` if the error names no file), and what helps against it."""
    where, helps = error.filename or place, HELP.get(error.errno or 0)
    return f"{f'{where}: ' if where else ''}{error.strerror or error}{f'; {helps}' if helps else ''}"


class CorpusError(UsageError):
    """A data file that cannot be read, lacks a column, or has no usable row."""


class PromptError(UsageError):
    """A tokenizer or chat template that cannot give a correct prompt (two BOS, no end token, an unusable pad)."""


class CandidateError(UsageError):
    """A base, adapter or predictions file that is missing, broken, or does not fit the others."""


class RecipeError(UsageError):
    """A fine-tuning recipe with an unknown key, a wrong type, or settings that contradict each other."""


class RunError(UsageError):
    """A folder of a run or a training that is damaged, or of another set of arguments."""


class EndpointError(BnbenchError, RuntimeError):
    """A server that cannot be reached, refuses (`status`: with which HTTP status, else 0; `said`: all its words,
    not to be shown), or gives no usable answer. As a RuntimeError it stops a run as every failure of a backend does:
    what was computed is kept, and `before`: what came of the requests beside it, in order; None where nothing did.
    """

    def __init__(self, message: str, status: int = 0, before: Any = (), said: str = "") -> None:
        super().__init__(message)
        self.status, self.before, self.said = status, before, said


class TrainingError(BnbenchError):
    """Training, or what is made of it, that cannot go on: a loss that is not a number, a full disk, a refusing hub."""


class PartialRunError(BnbenchError):
    """The run stopped before its end; everything computed is saved, and the message has the command that goes on."""

    exit_code = 3
