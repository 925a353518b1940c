"""The root of bnbench's exception tree, and the errors that the metrics raise; `bnbench.errors` has the others."""

import errno
import importlib
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_WRITTEN = 2**24


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
        raise MissingExtraError(f'{what}: pip install ".[{extra}]" in a clone') from None


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'epochs'?` after an unknown word, capitals aside; empty where none of the known is near."""
    import difflib  # for a message only

    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), names, n=1, cutoff=0.6 if len(word) > 2 else 0.5)  # t5 is near t4
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def read_small(path: str | Path) -> bytes:
    """The bytes of what people write by hand; OSError for a device, a pipe, or over `MOST_WRITTEN` bytes."""
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no file, but a folder, a device or a pipe", str(path))
    if found.st_size > MOST_WRITTEN:
        raise OSError(errno.EFBIG, f"larger than {MOST_WRITTEN >> 20} MiB", str(path))
    return Path(path).read_bytes()
