"""Reading tables of text: CSV, TSV, JSONL and Parquet, always UTF-8, always strings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnbench.errors import CorpusError

Record = dict[str, str]


def check_table(path: Path) -> None:
    """Raises CorpusError unless there is a file of a known kind at `path`."""
    if path.suffix.lower() not in _READERS:
        raise CorpusError(f"{path}: unknown kind of file; use one of {', '.join(_READERS)}")
    if not path.is_file():
        raise CorpusError(f"{path}: no such file")


def read_table(path: Path) -> list[Record]:
    """All rows of a file as column → text; an empty cell or null is the empty string.

    Raises:
        CorpusError: no such file, an unknown ending, text that is not UTF-8, a row that cannot be parsed (its number).
    """
    check_table(path)
    return _READERS[path.suffix.lower()](path)


def read_text(path: Path) -> str:
    """A whole UTF-8 file, without its BOM; CorpusError with the line of the first byte that is not UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from None


def _delimited(path: Path, delimiter: str) -> list[Record]:
    csv.field_size_limit(2**31 - 1)
    text = read_text(path).replace("\x00", "")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        header = next(rows, None)
        if header is None:
            raise CorpusError(f"{path}: the file is empty")
        return [_record(path, rows.line_num, header, row) for row in rows if any(row)]
    except csv.Error as error:
        raise CorpusError(f"{path}, line {rows.line_num}: {error}") from None


def _record(path: Path, line: int, header: list[str], row: list[str]) -> Record:
    if len(row) > len(header):
        raise CorpusError(
            f"{path}, line {line}: {len(row)} fields under {len(header)} columns; "
            "put texts that hold the delimiter in quotes"
        )
    return dict(zip(header, row + [""] * (len(header) - len(row)), strict=True))


def _jsonl(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{path}, line {number}: a JSON object is needed, not {type(row).__name__}")
        records.append(_as_text(row))
    # Keys may be missing from single rows: the columns are those of all rows, in order of appearance.
    columns = dict.fromkeys(key for record in records for key in record)
    return [{c: record.get(c, "") for c in columns} for record in records]


def _parquet(path: Path) -> list[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise CorpusError(f"{path}: not a readable Parquet file ({error})") from None
    return [_as_text(row) for row in table.to_pylist()]


def _as_text(row: dict[str, Any]) -> Record:
    return {str(k): "" if v is None else v if isinstance(v, str) else str(v) for k, v in row.items()}


_READERS: dict[str, Callable[[Path], list[Record]]] = {
    ".csv": lambda path: _delimited(path, ","),
    ".tsv": lambda path: _delimited(path, "\t"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
