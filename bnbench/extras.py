"""Packages that only some parts need, with the command that installs them when they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from bnbench.errors import MissingExtraError


def require(module: str, *, extra: str) -> Any:
    """Imports a module of an optional extra; raises MissingExtraError with the pip command when it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(f'{module} is not installed: pip install "bnbench[{extra}]"') from None
