"""The root of bnbench's exception tree, and the errors that the metrics raise; `bnbench.errors` has the others."""

from __future__ import annotations

import importlib
from typing import Any


class BnbenchError(Exception):
    """All that bnbench raises on purpose: the message says what, where (file, row, key) and how to fix it."""

    exit_code = 1


class UsageError(BnbenchError):
    """The request itself is wrong: a flag, a configuration key, a file that does not have what was asked of it."""

    exit_code = 2


class InputError(UsageError):
    """Texts that cannot be scored as they are: unequal lengths, missing references, something that is not a string."""


class MissingExtraError(UsageError):
    """A package that an optional part needs is not installed; the message is the pip command that installs it."""


def require(module: str, *, extra: str, by: str = "") -> Any:
    """Import a module of an optional extra, or raise `MissingExtraError` with the pip command; `by` needs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name and error.name.partition(".")[0] != package:
            raise  # it is there, but something that it needs is not
        what = f"{by} needs {package}" if by else f"{module} is not installed"
        raise MissingExtraError(f'{what}: pip install "bnbench[{extra}]"') from None
