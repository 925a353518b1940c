"""Labelled replies for validating metrics: the Bengali sets that ship with bnbench, and any file of the same form.

A file is CSV in UTF-8 (with commas, semicolons or tabs): one row per reply and the columns `message`, `reply` and one
for each mechanism of EPITOME, labelled 0 (none), 1 (weak) or 2 (strong). It may have more:

* `id` names the message, so rows that answer one message share it; without it the message's text does.
* `kind` says what the reply was written to be; the kinds `EMPATHIC_KINDS` are what a metric should put above all
  others. Without it a reply is empathic when one of its mechanisms is labelled 2.
* `half` ("development" or "held-out"), `topic`, and `SECOND`, the labels of a second labelling.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.exceptions import InputError, UsageError

REQUIRED = ("message", "reply", *MECHANISMS)
SECOND = tuple(f"{name}_second" for name in MECHANISMS)
HALVES = ("development", "held-out")
EMPATHIC = "empathic"
EMPATHIC_KINDS = frozenset({EMPATHIC, "warm", "plain_warm"})
"""The kinds that count as empathic; every other kind is "the rest"."""


@dataclass(frozen=True)
class LabelledReply:
    """One row: `half` and `topic` are empty where the file has none, `second` is None without a second labelling."""

    id: str
    half: str
    topic: str
    message: str
    reply: str
    kind: str
    levels: tuple[int, ...]
    second: tuple[int, ...] | None = None

    @property
    def empathic(self) -> bool:
        """Whether it is of an empathic kind."""
        return self.kind in EMPATHIC_KINDS


class LabelledSet:
    """n labelled replies. `source` names where they come from, with the half; `sha256` is of the whole file.

    `ids` (the clusters of a bootstrap), `replies` and `messages` are tuples of n strings; `empathic` (n,) says which
    are of that kind; `levels` (n, 3) are 0-2, a column for each mechanism.
    """

    def __init__(self, rows: Sequence[LabelledReply], source: str, sha256: str) -> None:
        self.rows, self.source, self.sha256 = tuple(rows), source, sha256
        self.ids = tuple(row.id for row in rows)
        self.replies = tuple(row.reply for row in rows)
        self.messages = tuple(row.message for row in rows)
        self.empathic = np.array([row.empathic for row in rows], dtype=np.bool_)
        self.levels = np.array([row.levels for row in rows], dtype=np.int64).reshape(-1, len(MECHANISMS))

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, half: str | None) -> "LabelledSet":
        """The rows of one half, or all. Raises `UsageError` for another name, `InputError` when it has no rows."""
        if half is None:
            return self
        if half not in HALVES:
            raise UsageError(f"there is no half {half!r}; use one of {', '.join(HALVES)}")
        if not (rows := tuple(row for row in self.rows if row.half == half)):
            raise InputError(f"{self.source}: no row has half {half!r}")
        return LabelledSet(rows, f"{self.source} ({half})", self.sha256)


@lru_cache(maxsize=4)
def labelled_set(half: str | None = None) -> LabelledSet:
    """The shipped set, 80 messages with six replies each (`README.md`), or a half: calibrate on development alone."""
    return labelled_set().part(half) if half else read_labelled(Path(__file__).parent / "empathy_bn.csv")


@lru_cache(maxsize=1)
def blind_set() -> LabelledSet:
    """The second shipped set: 690 messages, each with six or eight replies of eight kinds; dialects, romanised ones."""
    return read_labelled(Path(__file__).parent / "blind_bn.csv")


@lru_cache(maxsize=1)
def calibration_set() -> LabelledSet:
    """What our metrics learn from: the development halves of both shipped sets, and `others_bn.csv`, which has none."""
    others = read_labelled(Path(__file__).parent / "others_bn.csv")
    parts = labelled_set("development"), blind_set().part("development"), others
    sha256 = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    return LabelledSet([row for part in parts for row in part.rows], "development halves and others_bn.csv", sha256)


def read_labelled(path: str | Path, half: str | None = None) -> LabelledSet:
    """A labelled file, or a half, delimited as its header is; `UsageError` or `InputError` with the row and column."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: {'no file, but a folder, a device or a pipe' if path.exists() else 'no such file'}")
    data, source = path.read_bytes(), path.name
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source}, line {line}: not UTF-8; save the file as UTF-8") from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)  # the first of equals
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    if missing := [name for name in REQUIRED if name not in (lines.fieldnames or ())]:
        raise InputError(f"{source}: no column {', '.join(missing)}; a labelled file has {', '.join(REQUIRED)}")
    if not (rows := [_row(f"{source}, line {lines.line_num}", record) for record in lines]):
        raise InputError(f"{source}: there is no row")
    first: dict[str, LabelledReply] = {}
    for row in rows:
        known = first.setdefault(row.id, row)
        if (known.message, known.half) != (row.message, row.half):
            what = "messages" if known.message != row.message else "halves"
            raise InputError(f"{source}: id {row.id!r} has two different {what}; an id names one message, in one half")
    return LabelledSet(rows, source, hashlib.sha256(data).hexdigest()).part(half)


def replies_to_audit(data: str | Path | None, half: str | None) -> LabelledSet:
    """A labelled file, or one half of it; without a file the half of the shipped set, by default the held-out one."""
    return labelled_set(half or "held-out") if data is None else read_labelled(data, half)


def _row(place: str, record: dict[str, str]) -> LabelledReply:
    if None in record:
        raise InputError(f"{place}: more fields than columns; put texts that hold the delimiter in quotes")
    for name in ("id", "message", "reply", "kind"):
        if not record.get(name, "absent").strip():
            raise InputError(f"{place}: {name} is empty")
    half = record.get("half", "")
    if half not in ("", *HALVES):
        raise InputError(f"{place}: half is {half!r}; use one of {', '.join(HALVES)}, or leave it empty")

    def levels(names: Sequence[str]) -> tuple[int, ...]:
        for name in names:
            if record.get(name, "").strip() not in ("0", "1", "2"):
                told = "a level is 0 (none), 1 (weak) or 2 (strong)"
                raise InputError(f"{place}: {name} is {record.get(name)!r}; {told}")
        return tuple(int(record[name]) for name in names)

    found, second = levels(MECHANISMS), levels(SECOND) if any(map(record.get, SECOND)) else None
    message, kind = record["message"], record.get("kind", EMPATHIC if 2 in found else "other")
    name, topic = record.get("id", message), record.get("topic", "")
    return LabelledReply(name, half, topic, message, record["reply"], kind, found, second)
