"""Reading tables of text: CSV, TSV, JSONL and Parquet, and plain lines. Always UTF-8, one row after the other.

Memory does not grow with the file, however it is read, except for `read_table` and `read_text`, which return all of it.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from bnbench.errors import CorpusError

Record = dict[str, str]
Row = dict[str, Any]
"""Column → value as the file has it: text, and in JSONL and Parquet also numbers, lists and None."""

_LONGEST_FIELD = 2**26  # characters; a quote that is never closed would otherwise take in the rest of the file
_BATCH = 250  # rows of a Parquet file held at once
_BUFFER = 1 << 20  # bytes of each of its columns


def check_table(path: Path) -> None:
    """Raises CorpusError unless there is a file of a known kind at `path`."""
    if path.suffix.lower() not in KINDS:
        raise CorpusError(f"{path}: unknown kind of file; use one of {', '.join(KINDS)}")
    check_file(path)


def check_file(path: Path) -> None:
    """Raises CorpusError unless there is a file at `path` that may be read."""
    if not path.is_file():
        raise CorpusError(f"{path}: no such file")
    if not os.access(path, os.R_OK):
        raise CorpusError(f"{path}: no permission to read it")


def read_table(path: Path) -> list[Record]:
    """All rows of a file as column → text; an empty cell or null is the empty string.

    Raises:
        CorpusError: no such file, an unknown ending, text that is not UTF-8, a row that cannot be parsed (its number).
    """
    records = [{key: _as_text(value) for key, value in row.items()} for _, row in iter_table(path)]
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


def read_text(path: Path) -> str:
    """A whole UTF-8 file, without its BOM; CorpusError with the line of the first byte that is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


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
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"0x{line[error.start]:02x}"
                return CorpusError(f"{path}, line {number}: not UTF-8 (byte {byte}); save the file as UTF-8")
    return CorpusError(f"{path}: not UTF-8")


def _delimited(path: Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_LONGEST_FIELD)
    with _opened(path, "") as lines:
        rows = csv.reader((line.replace("\x00", "") for line in lines), delimiter=delimiter)
        try:
            header = next(rows, None)
            if header is None:
                raise CorpusError(f"{path}: the file is empty")
            yield from ((rows.line_num, _record(path, rows.line_num, header, row)) for row in rows if row)
        except csv.Error as error:
            raise CorpusError(f"{path}, line {rows.line_num}: {error}") from None


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
            except (json.JSONDecodeError, RecursionError) as error:
                why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                raise CorpusError(f"{path}, line {number}: not JSON ({why})") from None
            if not isinstance(row, dict):
                raise CorpusError(f"{path}, line {number}: a JSON object is needed, not {type(row).__name__}")
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


def _as_text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else str(value)


_READERS: dict[str, Callable[[Path, Sequence[str] | None], Iterator[tuple[int, Row]]]] = {
    ".csv": lambda path, _: _delimited(path, ","),
    ".tsv": lambda path, _: _delimited(path, "\t"),
    ".jsonl": lambda path, _: _jsonl(path),
    ".parquet": _parquet,
}
KINDS = tuple(_READERS)
