"""What a run ran on: device, package versions, Python and operating system."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "tokenizers", "sacrebleu", "numpy", "pandas")


def describe_environment() -> dict[str, Any]:
    """The `packages` and `device` parts of run.json. Loads nothing: versions are read from the installed metadata."""
    return {
        "packages": {"python": platform.python_version(), **{p: v for p in _PACKAGES if (v := _version(p))}},
        "device": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "accelerator": _accelerator(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _accelerator() -> str | None:
    """The card's name where torch was loaded by the run and sees one; torch is not loaded only to be asked."""
    import sys

    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name(0)) if torch is not None and torch.cuda.is_available() else None
