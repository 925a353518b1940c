"""Reading tables of text: CSV, TSV, JSON, JSONL, Parquet, sheets, inspect's logs, and plain lines. Always UTF-8.

Rows come one after the other, in memory that does not grow with the file, except for sheets and a JSON list, which are
read whole. Text files may be gzipped.
"""

import csv
import gzip
import io
import json
import logging
import os
import re
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial, reduce
from itertools import chain, pairwise, zip_longest
from pathlib import Path
from typing import Any, TextIO

from bnbench.errors import CorpusError, nearest
from bnbench.metrics.exceptions import require

Row = dict[str, Any]
"""Column → value as the file has it: text, in JSON and Parquet also numbers, lists and objects; None for no cell."""

COLUMNS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("columns.toml").read_text("utf-8"))
"""Each field and the names under which a file's column of it is looked for, without regard to case and punctuation."""
RATINGS = tuple(COLUMNS.pop("ratings"))  # how the plain name of a column of ratings may begin
SHEETS = (".xlsx", ".xls", ".ods")
_RUNS = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four of full width
_INERT = re.compile(f"^'(?=[{re.escape(''.join(_RUNS))}])")
MOST_COLUMNS = 2_000
MOST_CHARACTERS = 10_000_000  # of one text, which is more than any book has
MOST_BYTES = 2**29  # of what a compressed file unfolds to, or a hundred times its size
MOST_CELLS = 2**25  # of a sheet, empty ones too: its reader makes room for all
KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", *SHEETS, ".eval", ".jsonlines")

_log = logging.getLogger(__name__)
_HUB_ID = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(?::(?P<name>[^@]+))?(?:@(?P<revision>.+))?")
# A cell of a sheet whose formula no program has computed; one that computed an empty text says t="str".
_FORMULA = re.compile(rb'<c r="(\w+)"(?![^>]*\bt="str")[^>]*><f\b[^>]*(?:/>|>[^<]*</f>)(?:<v ?/>|<v></v>)?</c>')
_REPEATED = re.compile(rb'\bnumber-(?:columns|rows)-repeated=["\']([0-9]{1,9})["\']')
_CELL = re.compile(rb'\br="([A-Z]{1,3})([0-9]{1,7})"')
_NOT_TEXT = {
    **dict.fromkeys((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"), "UTF-32; save it as UTF-8"),  # before UTF-16's
    b"\xff\xfe": "UTF-16; save it as UTF-8 (in Excel: “CSV UTF-8”)",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed (gzip); unpack it first, or let its name end in .gz",
    b"PK\x03\x04": "a zip archive or an Excel workbook, not text; name a workbook .xlsx",
    b"PAR1": "a Parquet file; name it .parquet",
}


def check_file(path: Path, kinds: Sequence[str] = ()) -> None:
    """Raises CorpusError unless there is a file at `path` that may be read, of one of these kinds, if any are named."""
    try:
        if not path.is_file():
            other = "a device or a pipe; name a file" if path.exists() else "no such file"
            raise CorpusError(f"{path}: {'a folder; name a file in it' if path.is_dir() else other}")
    except OSError as error:  # such as a name that is too long, or a folder above it that may not be entered
        raise CorpusError(f"{path}: {error.strerror}") from None
    if not os.access(path, os.R_OK):
        raise CorpusError(f"{path}: no permission to read it")
    if kinds and kind_of(path) not in kinds:
        hint = "unpack it first, to" if kind_of(path) in (".zip", ".bz2", ".xz", ".zst") else "use"
        raise CorpusError(f"{path}: unknown kind of file; {hint} one of {', '.join(kinds)}")


def kind_of(path: Path) -> str:
    """The ending that says how a file is read, such as ".csv", also for `a.csv.gz`."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def iter_table(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a file with their numbers (see `place`); `columns` are all that is read of a Parquet file. Raises
    CorpusError for what is no table, not UTF-8 or cannot be parsed, as soon as it is read.
    """
    check_file(path, KINDS)
    readers = dict.fromkeys(SHEETS, _sheet) | {".csv": _delimited, ".tsv": _delimited, ".eval": _inspect_log}
    rows = _parquet(path, columns) if kind_of(path) == ".parquet" else readers.get(kind_of(path), _json)(path)
    return ((number, row) for number, row in rows if _check_texts(path, number, row.values()))


def _check_texts(path: Path, number: int, texts: Iterable[object]) -> bool:
    """True; CorpusError for a text that would take minutes and gigabytes to score."""
    for text in texts:
        if isinstance(text, str) and len(text) > MOST_CHARACTERS:
            raise CorpusError(f"{place(path, number)}: a text of {len(text):,} characters; at most {MOST_CHARACTERS:,}")
    return True


def iter_lines(path: Path) -> Iterator[str]:
    """The lines of a text file without their ends. Only LF and CR LF end one; raises CorpusError as `iter_table`."""
    check_file(path)
    with _text(path, "\n") as lines:
        for number, line in enumerate(lines, 1):
            _check_texts(path, number, [line])
            yield line.removesuffix("\n").removesuffix("\r")


def place(path: Path, number: int) -> str:
    """Where a row stands, for messages: its line, or in what has none its row, both from 1."""
    return f"{path}, {'row' if kind_of(path) in ('.parquet', '.json', '.eval', *SHEETS) else 'line'} {number}"


def _most(path: Path) -> int:
    return max(MOST_BYTES, 100 * path.stat().st_size)


def _check_unfolded(path: Path, size: int, what: str = "it unfolds to") -> None:
    if size > _most(path):
        raise CorpusError(f"{path}: {what} more than {_most(path) >> 20} MiB, much more than the file")


@contextmanager
def _text(path: Path, newline: str) -> Iterator[TextIO]:
    is_packed = path.suffix.lower() == ".gz"
    opened: Callable[[], Any] = partial(gzip.open, path) if is_packed else partial(path.open, "rb")
    try:
        if is_packed:  # before anything is read, as one line may be all of it
            with opened() as unfolded:
                _check_unfolded(path, unfolded.seek(_most(path) + 1))
        with io.TextIOWrapper(opened(), encoding="utf-8-sig", newline=newline) as text:
            yield text
        return
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}: not a whole gzip file ({error})") from None
    except UnicodeDecodeError:
        pass  # its position counts from the beginning of some buffer, so that the place is looked for anew
    with opened() as lines:
        for number, line in enumerate(lines, 1):
            kind = next((why for magic, why in _NOT_TEXT.items() if number == 1 and line.startswith(magic)), None)
            if kind or b"\x00" in line:
                raise CorpusError(f"{path}: the file is {kind or 'UTF-16, UTF-32 or no text at all; save it as UTF-8'}")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte, following = line[error.start : error.start + 1], line[error.start + 1 : error.start + 2]
                # Where a continuation byte follows it is UTF-8 that was cut rather than another encoding.
                sign = byte.decode("cp1252", errors="ignore") if following < b"\x80" else ""
                what = f"byte 0x{byte.hex()}{f', {sign} in Windows-1252' if sign else ''}"
                raise CorpusError(f"{path}, line {number}: not UTF-8 ({what}); save the file as UTF-8") from None
    raise CorpusError(f"{path}: not UTF-8")


def _in_one_column(rows: Iterable[tuple[int, list[Any]]]) -> Iterator[tuple[int, list[Any]]]:
    """The rows, of which a blank one before others is an empty text, or all would shift; those at the end are none."""
    blank = list[int]()
    for number, row in rows:
        if row:
            yield from ((at, [""]) for at in blank)
            yield number, row
            blank.clear()
        else:
            blank.append(number)


def _delimited(path: Path) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(2**26)  # a quote that is never closed would otherwise take in the rest of the file
    mark = "," if kind_of(path) == ".csv" else "\t"
    # Some programs write TSV with quotes, as CSV, and some without, where a quote is text like any other. The file is
    # read twice: quotes are text in all of it where one does not close, or closes in another row than its own.
    if not (quotes := mark == ","):
        with _text(path, "") as lines, suppress(csv.Error):
            rows = csv.reader((line.replace("\x00", "") for line in lines), delimiter=mark, strict=True)
            found = {("\t" in cell, len(row) == 1) for row in rows for cell in row if "\n" in cell}
            if (False, True) in found:
                what = "quotes around several lines, alone in a row, may be one text or belong to several"
                raise CorpusError(f"{path}: {what}; save it as .csv, or as .txt with one text a line")
            quotes = not any(is_of_cells for is_of_cells, _ in found)
    with _text(path, "") as lines:
        first = next(lines, "")
        if mark == "," and "," not in first:  # Excel's, where the comma stands in numbers, or pasted from a sheet
            mark = next((sign for sign in ";\t" if sign in first), ",")
        # What Python writes as text on Windows ends each line in CR CR LF, which is no blank line after it.
        pairs = pairwise(chain(["", first], lines))
        whole = (line.replace("\x00", "") for before, line in pairs if before[-1:] + line != "\r\r\n")
        # Strict: a quote that is not closed would otherwise silently take in all rows up to the next one.
        rows = csv.reader(whole, delimiter=mark, strict=True, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE)
        try:
            if not (header := _checked_header(path, next(filter(None, rows), []))):
                raise CorpusError(f"{path}: the file is empty")
            table = ((rows.line_num, row) for row in rows)
            for number, row in _in_one_column(table) if not header[1:] else (one for one in table if one[1]):
                # Cells may be missing at the end of a row, but not where a text without quotes may hold line ends.
                if len(row) > len(header) or (len(row) < len(header) and not quotes):
                    hint = f"put texts that hold the delimiter in quotes{'' if quotes else ', and close each quote'}"
                    raise CorpusError(f"{path}, line {number}: {len(row)} fields under {len(header)} columns; {hint}")
                row = [_INERT.sub("", cell) for cell in row] if kind_of(path) == ".csv" else row
                yield number, dict(zip_longest(header, row))  # what is not there is None: "" is a text, of a whole row
        except csv.Error as error:
            hint = "close each quote, and double those inside quoted text"
            raise CorpusError(f"{path}, line {rows.line_num}: {error}; {hint}") from None


def csv_text(rows: Iterable[Sequence[object]], end: str = "\n") -> str:
    """Rows as CSV; a quote, which reading takes off again, stands before what a spreadsheet would run as a formula."""
    text = io.StringIO(newline="")
    inert = ([f"'{c}" if isinstance(c, str) and c.startswith(_RUNS) else c for c in row] for row in rows)
    csv.writer(text, lineterminator=end).writerows(inert)
    return text.getvalue()


def _checked_header(path: Path, names: Iterable[str]) -> list[str]:
    if len(header := list(names)) > MOST_COLUMNS:
        raise CorpusError(f"{path}: {len(header):,} columns; at most {MOST_COLUMNS:,} are read")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise CorpusError(f"{path}: two columns are called {twice[0]!r}; give one of them another name")
    return header


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object. Raises KeyError for a key that stands twice, of which Python would take the last in silence."""
    if len(found := dict(pairs)) < len(pairs):
        key = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        values = " and ".join(f"{value!r:.40}" for other, value in pairs if other == key)
        raise KeyError(f"the key {key!r} stands twice in one object, with {values}; leave one")
    return found


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    decode = json.JSONDecoder(object_pairs_hook=_object).decode  # `json.loads` would make one for each line
    hint, is_list = "each line must hold one whole object, {…}, without a list around them", False
    with _text(path, "\n") as lines:
        texts: Iterable[tuple[int, str]] = enumerate(lines, 1)
        # One list of objects, or an object with one (inspect's log), but many call one object a line so too.
        if kind_of(path) == ".json":
            number, first = next(((number, line) for number, line in texts if line.strip()), (1, ""))
            is_list = not first.lstrip().startswith("{") or not first.rstrip().endswith("}") or '"samples"' in first
            if is_list:
                hint = "the file must hold one list of objects"
            texts = [(1, first + lines.read())] if is_list else chain([(number, first)], texts)
        for number, text in filter(lambda numbered: numbered[1].strip(), texts):
            where = f"{path}" if is_list else f"{path}, line {number}"
            try:
                value = decode(text)
            except KeyError as error:
                raise CorpusError(f"{where}: {error.args[0]}") from None
            except (ValueError, RecursionError) as error:
                why = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
                raise CorpusError(f"{where}: not JSON ({why}); {hint}") from None
            if is_list and isinstance(value, dict):
                value = value.get("samples") or value
            rows = value if is_list and isinstance(value, list) else [value]
            for at, row in enumerate(rows, 1 if is_list else number):
                if not isinstance(row, dict):
                    raise CorpusError(f"{where}{f', row {at}' if is_list else ''}: a JSON {type(row).__name__}; {hint}")
                yield at, row


def _parquet(path: Path, columns: Sequence[str] | None) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    number = unfolded = 0
    what = "its texts have"
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            _checked_header(path, file.schema_arrow.names)
            sizes = [file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)]
            # A text that stands in many rows is stored once, and that compressed: a few rows may be gigabytes.
            size = max(1, min(250, 2**28 // max(sizes))) if max(sizes, default=0) > 20 * path.stat().st_size else 250
            _check_unfolded(path, sum(sizes), what)
            for batch in file.iter_batches(size, columns=columns, use_threads=False):
                rows = batch.to_pylist()
                unfolded += sum(len(text) for row in rows for text in row.values() if isinstance(text, str))
                _check_unfolded(path, unfolded, what)
                yield from enumerate(rows, number + 1)
                number += len(batch)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # a year that no calendar has
        raise CorpusError(f"{path}: not a readable Parquet file ({error})") from None


def _sheet(path: Path) -> Iterator[tuple[int, Row]]:
    import python_calamine as calamine

    try:
        if kind_of(path) != ".xls":
            with zipfile.ZipFile(path) as parts:  # first: its reader ends the process where memory ends
                _check_unfolded(path, sum(part.file_size for part in parts.infolist()))
                sheets = [parts.read(name) for name in parts.namelist() if name.startswith("xl/worksheets/sheet")]
                tables = parts.read("content.xml").split(b"<table:table ") if "content.xml" in parts.namelist() else ()
            for table in tables:  # cells that an .ods file says to be repeated would fill the memory, too
                down = across = 0
                for line in table.split(b"<table:table-row")[1:]:
                    cut = re.split(rb"<table:(?:covered-)?table-cell", line)  # first that of the row itself
                    times, *each = (int(found[1]) if (found := _REPEATED.search(part)) else 1 for part in cut)
                    # What is empty is repeated up to the sheet's edge by every program, and left out by the reader.
                    if full := [at for at, part in enumerate(cut) if b"office:value" in part or b"<text:" in part]:
                        down, across = down + times, max(across, sum(each[: full[-1]]))
                if down * across > MOST_CELLS:
                    where = f"{down:,} rows and {across:,} columns"
                    raise CorpusError(f"{path}: its cells are repeated over {where}; remove the copies")
            for sheet in sheets:  # the reader makes room up to the farthest cell, which would end the process
                places = [(int(row), column.rjust(3)) for column, row in _CELL.findall(sheet)]
                last = max((row for row, _ in places), default=0)
                letters = max((column for _, column in places), default=b"")
                width = reduce(lambda n, letter: 26 * n + max(0, letter - 64), letters, 0)
                if last * width > MOST_CELLS:
                    where = f"row {last:,} and column {width:,}"
                    raise CorpusError(f"{path}: its cells reach to {where}; remove those far out")
            if lacking := next(filter(None, map(_FORMULA.search, sheets)), None):
                hint = "open the file in Excel or LibreOffice and save it"
                raise CorpusError(f"{path}: the cell {lacking[1].decode()} is a formula without its value; {hint}")
        book = calamine.CalamineWorkbook.from_path(path)
        sheet = book.get_sheet_by_index(0)
        cells = sheet.to_python(skip_empty_area=False)
    except (calamine.CalamineError, zipfile.BadZipFile, OSError) as error:
        raise CorpusError(f"{path}: not a readable workbook ({error})") from None
    # What is merged over several rows stands in the first of them; those that hold nothing else are not rows.
    for (top, column), (bottom, _) in sheet.merged_cell_ranges or ():
        for row in cells[top + 1 : bottom + 1]:
            if any(row):
                row[column] = cells[top][column]
                _log.info("%s: a cell is merged over rows %d to %d, and read in each", path, top + 1, bottom + 1)
            elif not row[1:]:
                row.clear()
    if book.sheet_names[1:]:
        _log.info("%s: its first sheet is read, %s", path, book.sheet_names[0])
    # A workbook has no whole numbers: 7 is stored as 7.0.
    whole = ([int(c) if isinstance(c, float) and c.is_integer() else c for c in row] for row in cells)
    rows = ((at, row if any(cell != "" for cell in row) else []) for at, row in enumerate(whole, 1) if row)
    header = _checked_header(path, map(str, next((row for _, row in rows if row), [])))
    for number, row in _in_one_column(rows) if not header[1:] else (one for one in rows if one[1]):
        yield number, dict(zip(header, row, strict=True))


def _inspect_log(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow

    try:
        with zipfile.ZipFile(path) as log, path.open("rb") as raw:
            _check_unfolded(path, sum(one.file_size for one in log.infolist()))
            for number, one in enumerate((one for one in log.infolist() if one.filename.startswith("samples/")), 1):
                if one.compress_type == 93:  # Zstandard, which `zipfile` reads from Python 3.14 on
                    raw.seek(one.header_offset + 26)  # in a member's own head the lengths of its name and extra field
                    raw.seek(sum(int.from_bytes(raw.read(2), "little") for _ in range(2)), os.SEEK_CUR)
                    packed = io.BytesIO(raw.read(one.compress_size))
                    content = pyarrow.input_stream(packed, compression="zstd").read(_most(path))
                else:
                    content = log.read(one)
                if not isinstance(row := json.loads(content), dict):
                    raise CorpusError(f"{path}, {one.filename}: a JSON {type(row).__name__}; each sample is one object")
                yield number, row
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CorpusError(f"{path}: not a readable log of inspect ({error})") from None


def check_source(source: str | Path) -> bool:
    """Whether it is meant as a file: it is there, or its name ends as a file's does (.csv, not .5 or :2.bn). Raises
    CorpusError when it is neither one of a known kind nor looks like a hub id; reads nothing.
    """
    path = Path(source)
    if is_file := (kind_of(path)[1:].isalpha() and ":" not in path.name) or path.exists():
        check_file(path, KINDS)
    elif not _HUB_ID.fullmatch(str(source)):
        raise CorpusError(f"{source}: no such file, and not a hub id (owner/name, owner/name:configuration)")
    return is_file


def read_records(source: str | Path) -> dict[str, Row]:
    """All rows, one or more, by where they stand, of a file or `owner/name[:configuration][@revision]` on the hub."""
    if check_source(source):
        path = Path(source)
        if records := {place(path, number): row for number, row in iter_table(path)}:
            return records
        raise CorpusError(f"{source}: the file has no rows")
    datasets, hub_id = require("datasets", extra="models"), _HUB_ID.fullmatch(str(source))
    hub = require("huggingface_hub", extra="models")
    away = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    if hub_id and not hub.constants.HF_HUB_OFFLINE:
        try:
            hub.HfApi().dataset_info(hub_id["path"], revision=hub_id["revision"], timeout=4)
        except hub.errors.HfHubHTTPError:
            pass  # it can be reached, and `datasets` says what is wrong
        except Exception:  # its HTTP library's; `datasets` would try for half a minute before it takes the cache's
            _log.warning("%s: the hub cannot be reached; what its cache has is read", source)
            hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        parts = datasets.load_dataset(**hub_id.groupdict() if hub_id else {})
    except ConnectionError:
        why = f"there is no such file, the cache of `datasets` has no such data set, and {away}"
        raise CorpusError(f"{source}: {why}; give a file ({', '.join(KINDS[:6])} …)") from None
    except Exception as error:
        # `datasets` raises whatever the hub, the network or a parser raised; the user needs one line with the id.
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        hint = f"; name one of them: {source}:NAME" if "Config name is missing" in why else ""
        raise CorpusError(f"{source}: the hub data set cannot be loaded ({why}){hint}") from error
    sides = {side: {"split": str(side)} if len(parts) > 1 else {} for side in parts}
    found = [row | sides[side] for side, rows in parts.items() for row in rows]  # the column `split` is the hub's
    return {f"{source}, row {number}": row for number, row in enumerate(found, 1)}


def side_of(record: Mapping[str, object]) -> str:
    """What a row's column `split` says; empty where there is none."""
    name = next((as_text(value).strip().lower() for column, value in record.items() if column.lower() == "split"), "")
    return {"dev": "validation", "val": "validation", "valid": "validation"}.get(name, name)


def plain_name(name: str) -> str:
    """A column's name without case and punctuation."""
    return "".join(c for c in name.lower() if c.isalnum())


def find_column(header: Sequence[str], field: str, given: str | None = None, own: str = "") -> str | None:
    """The column `given`, else `own` or the first of the field's `COLUMNS`."""
    known = {plain_name(column): column for column in reversed(header)}
    return given or next(filter(None, (known.get(plain_name(name)) for name in (own, *COLUMNS[field]) if name)), None)


def check_columns(columns: Mapping[str, str], fields: Iterable[str]) -> dict[str, str]:
    """The mapping (field → column), with a message's name among the fields; CorpusError for something that is none."""
    fields, found = tuple(fields), dict(columns)
    for name, twin in (("message", "question"), ("question", "message")):
        if name in found and name not in fields and twin in fields and twin not in found:
            found[twin] = found.pop(name)
    for field in (name for name in found if name not in fields):
        meant = next((own for own in fields if plain_name(field) in map(plain_name, COLUMNS.get(own, ()))), "")
        hint = (f"; did you mean {meant!r}?" if meant else nearest(field, fields)) or ";"
        raise CorpusError(f"unknown field {field!r} in the column mapping{hint} the fields are {', '.join(fields)}")
    return found


def match_columns(
    source: str | Path, header: Sequence[str], columns: Mapping[str, str], fields: Mapping[str, str],
    needed: Iterable[str], hint: str = "",
) -> list[str | None]:  # fmt: skip
    """The file's column of each of `fields` (field → our own name of it, or ""): by `columns`, else by name. Raises
    CorpusError as `check_columns`, and, with `hint`, where some of `columns` or `needed` are not there: all.
    """
    columns = check_columns(columns, fields)
    unknown = [name for name in columns.values() if name not in header]
    found = {field: find_column(header, field, columns.get(field), own) for field, own in fields.items()}
    lacking = [field for field in needed if found[field] is None]
    faults = [f"there is no column {name!r}" for name in (*unknown, *filter(None, map(fields.get, lacking)))]
    faults += [f"no column holds a {field}" for field in lacking if not fields[field]]
    if faults:
        names = " ".join(f"--columns {field}=NAME" for field in lacking)
        hint = f". Name {'each' if lacking[1:] else 'the right one'} with {names}{hint}" if lacking else ""
        raise CorpusError(f"{source}: {' and '.join(faults)}; the columns are {', '.join(header) or 'none'}{hint}")
    return list(found.values())


def header_of(rows: Iterable[Row]) -> list[str]:
    """The columns of all rows in order of appearance, since rows of JSON may lack some."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_text(value: object) -> str:
    """A value as text: "" for null and NaN."""
    return "" if value is None or value != value else str(value)


def whole_number(name: str) -> str:
    """An id as text: a column of whole numbers becomes one of floats where a table once had a gap in it."""
    return name.removesuffix(".0") if name.removesuffix(".0").isdecimal() else name


def texts_of(where: str, row: Mapping[str, object], columns: Iterable[str | None]) -> tuple[str, ...]:
    """The texts of a row's columns, "" where a column is None. Raises CorpusError for a list or an object."""
    values = [None if column is None else row.get(column) for column in columns]
    if (nested := next((value for value in values if isinstance(value, (list, dict))), None)) is not None:
        raise CorpusError(f"{where}: a list or object where text is needed: {nested!s:.60}; give each text a column")
    return tuple(map(as_text, values))
