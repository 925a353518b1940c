"""Reading tables of text: CSV, TSV, JSONL and Parquet, and plain lines. Always UTF-8, one row after the other.

Memory does not grow with the file, however it is read, except for `read_table`, which returns all of it.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from bnbench.errors import CorpusError

Record = dict[str, str]
Row = dict[str, Any]
"""Column → value as the file has it: text, and in JSONL and Parquet also numbers, lists and None."""

_LONGEST_FIELD = 2**26  # characters; a quote that is never closed would otherwise take in the rest of the file
_BATCH = 250  # rows of a Parquet file held at once
_ONE_A_LINE = "each line must hold one whole object, {…}, without a list around them"
_BUFFER = 1 << 20  # bytes of each of its columns
_UNREAD = dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst"), "unpack it first, to one of")
_UNREAD |= dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV in UTF-8; read are")
_UNREAD |= dict.fromkeys((".json", ".ndjson"), "write one object a line and name it .jsonl; read are")
_NOT_TEXT = {
    b"\xff\xfe": "UTF-16; save it as UTF-8 (in Excel: “CSV UTF-8”)",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed (gzip); unpack it first",
    b"PK\x03\x04": "a zip archive or an Excel workbook, not text; save it as CSV in UTF-8",
    b"PAR1": "a Parquet file; name it .parquet",
}


def check_table(path: Path) -> None:
    """Raises CorpusError unless there is a file of a known kind at `path`."""
    check_file(path)
    if path.suffix.lower() not in KINDS:
        hint = _UNREAD.get(path.suffix.lower(), "use one of")
        raise CorpusError(f"{path}: unknown kind of file; {hint} {', '.join(KINDS)}")


def check_file(path: Path) -> None:
    """Raises CorpusError unless there is a file at `path` that may be read."""
    try:
        if not path.is_file():
            raise CorpusError(f"{path}: {'a folder; name a file in it' if path.is_dir() else 'no such file'}")
    except OSError as error:  # such as a name that is too long, or a folder above it that may not be entered
        raise CorpusError(f"{path}: {error.strerror}") from None
    if not os.access(path, os.R_OK):
        raise CorpusError(f"{path}: no permission to read it")


def read_table(path: Path) -> list[Record]:
    """All rows of a file as column → text; an empty cell or null is the empty string.

    Raises:
        CorpusError: no such file, an unknown ending, text that is not UTF-8, a row that cannot be parsed (its number).
    """
    records = [{key: as_text(value) for key, value in row.items()} for _, row in iter_table(path)]
    # Keys may be missing from single rows of JSONL: the columns are those of all rows, in order of appearance.
    columns = dict.fromkeys(key for record in records for key in record)
    return [{c: record.get(c, "") for c in columns} for record in records]


def iter_table(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a file with their numbers (see `place`). `columns` are the only ones that a Parquet file's rows need.

    Raises CorpusError as `read_table` does, when it comes to the row that is at fault.
    """
    check_table(path)
    return _READERS[path.suffix.lower()](path, columns)


def iter_lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends. Only LF and CR LF end one; raises CorpusError as `read_table`."""
    check_file(path)
    with _opened(path, "\n") as lines:
        for line in lines:
            yield line.removesuffix("\n").removesuffix("\r")


def place(path: Path, number: int) -> str:
    """Where a row stands, for messages: its line, in Parquet its row, both from 1."""
    return f"{path}, {'row' if path.suffix.lower() == '.parquet' else 'line'} {number}"


@contextmanager
def _opened(path: Path, newline: str) -> Iterator[TextIO]:
    with path.open(encoding="utf-8-sig", newline=newline) as lines:
        try:
            yield lines
        except UnicodeDecodeError:  # it counts from the beginning of some buffer
            raise _not_utf8(path) from None


def _not_utf8(path: Path) -> CorpusError:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            kind = next((why for magic, why in _NOT_TEXT.items() if number == 1 and line.startswith(magic)), None)
            if kind or b"\x00" in line:
                return CorpusError(f"{path}: the file is {kind or 'UTF-16 or no text at all; save it as UTF-8'}")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte, following = line[error.start : error.start + 1], line[error.start + 1 : error.start + 2]
                # Where a continuation byte follows it is UTF-8 that was cut rather than another encoding.
                sign = byte.decode("cp1252", errors="ignore") if following < b"\x80" else ""
                as_sign = f", {sign} in Windows-1252" if sign else ""
                return CorpusError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{byte.hex()}{as_sign}); save the file as UTF-8"
                )
    return CorpusError(f"{path}: not UTF-8")


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with _opened(path, "") as lines:
        first = next(lines, "")
        if delimiter == "," and "," not in first:  # Excel's, where the comma stands in numbers, or pasted from a sheet
            delimiter = next((sign for sign in ";\t" if sign in first), ",")
        # Strict: a quote that is not closed would otherwise silently take in all rows up to the next one.
        unread = (line.replace("\x00", "") for line in chain([first], lines))
        rows = csv.reader(unread, delimiter=delimiter, strict=True)
        try:
            header = next(filter(None, rows), None)
            if header is None:
                raise CorpusError(f"{path}: the file is empty")
            twice = [name for name in header if name and header.count(name) > 1]
            if twice:
                raise CorpusError(f"{path}: two columns are called {twice[0]!r}; give one of them another name")
            yield from ((rows.line_num, _record(path, rows.line_num, header, row)) for row in rows if row)
        except csv.Error as error:
            hint = "; close each quote, and double those inside quoted text"
            raise CorpusError(f"{path}, line {rows.line_num}: {error}{hint}") from None


def _record(path: Path, line: int, header: list[str], row: list[str]) -> Row:
    if len(row) > len(header):
        raise CorpusError(
            f"{path}, line {line}: {len(row)} fields under {len(header)} columns; "
            "put texts that hold the delimiter in quotes"
        )
    return dict(zip(header, row + [""] * (len(header) - len(row)), strict=True))


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with _opened(path, "\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
                raise CorpusError(f"{path}, line {number}: not JSON ({why}); {_ONE_A_LINE}") from None
            if not isinstance(row, dict):
                raise CorpusError(f"{path}, line {number}: a JSON {type(row).__name__}; {_ONE_A_LINE}")
            yield number, row


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH, columns=columns, use_threads=False):
                yield from enumerate(batch.to_pylist(), number + 1)
                number += len(batch)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: not a readable Parquet file ({error})") from None


class Nested(str):
    """A list or an object where text was expected: who uses its column must refuse it."""


def as_text(value: object) -> str:
    """A value as text: "" for null and NaN, `Nested` for lists and objects."""
    if value is None or value != value:
        return ""
    return value if isinstance(value, str) else (Nested if isinstance(value, (list, dict)) else str)(value)


def find_column(
    source: str | Path, header: Sequence[str], names: Sequence[str], given: str | None = None
) -> str | None:
    """The column that `given` names exactly, else the first of `names`, without regard to case and punctuation.

    Raises CorpusError where `given` is not there.
    """
    if given is None:
        known = {plain_name(column): column for column in reversed(header)}
        return next((known[plain_name(name)] for name in names if plain_name(name) in known), None)
    if given not in header:
        raise CorpusError(f"{source}: there is no column {given!r}; the columns are {', '.join(header)}")
    return given


def plain_name(name: str) -> str:
    """A column's name without case and punctuation."""
    return "".join(c for c in name.lower() if c.isalnum())


def texts_of(where: str, row: Mapping[str, object], columns: Iterable[str | None]) -> tuple[str, ...]:
    """The texts of a row's columns, "" where a column is None. Raises CorpusError for a list or an object."""
    texts = tuple("" if column is None else as_text(row.get(column)) for column in columns)
    nested = next((text for text in texts if isinstance(text, Nested)), None)
    if nested is not None:
        raise CorpusError(f"{where}: a list or object where text is needed: {nested:.60}; give each text a column")
    return texts


_READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[tuple[int, Row]]]] = {
    ".csv": lambda path, _: _delimited(path, ","),
    ".tsv": lambda path, _: _delimited(path, "\t"),
    ".jsonl": lambda path, _: _jsonl(path),
    ".parquet": _parquet,
}
KINDS = tuple(_READERS)
