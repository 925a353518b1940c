"""Reading what people write by hand: a recipe, a template, a lexicon, a record of audits."""

import errno
import stat
from pathlib import Path

MOST = 2**24
"""Bytes of such a file, more than anybody writes."""


def read_small(path: str | Path) -> bytes:
    """The bytes of a file; OSError for a device or a pipe, which may have no end, and for more than `MOST`."""
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no file, but a folder, a device or a pipe", str(path))
    if found.st_size > MOST:
        raise OSError(errno.EFBIG, f"larger than {MOST >> 20} MiB", str(path))
    return Path(path).read_bytes()
