"""Files of replies, references and messages, joined row by row in memory that does not grow with the texts.

Two files are joined by id where both have a column `id`, else line by line, and then they must be equally long. Every
file is read once before the first row is given: that finds what is wrong with it, counts it, and takes a hash of its
ids. Files whose ids stand in the same order are then read side by side. A file in another order is first copied into a
temporary database on disk (SQLite, deleted at the end), in which rows are found by id: beside SQLite's cache of 64 MB
that keeps one byte a row in memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bnbench.data.files import KINDS, check_file, find_column, iter_lines, iter_table, place
from bnbench.errors import BnbenchError, CorpusError

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "reply": (
        *("reply", "prediction", "response", "response text", "generated", "generated text"),
        *("output", "answer", "Answers"),
    ),
    "reference": ("reference", "references", "Answers", "answer", "target", "gold"),
    "message": ("message", "question", "Questions", "prompt"),
    "title": ("title", "Question-Title"),
    "id": ("id",),
}
"""Each field and the column names under which it is looked for, without regard to case and punctuation."""

Texts = tuple[str, ...]
Find = Callable[[str], Texts]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFile:
    """One file and the columns of it that are read; `column` is None for a file of plain lines.

    `before` is a column whose text goes before the other: the title of a message, as in `bnbench evaluate`.
    """

    path: Path
    field: str
    column: str | None = None
    before: str | None = None
    ids: str | None = None

    @classmethod
    def of(cls, path: Path, field: str, columns: Mapping[str, str]) -> TextFile:
        """The file at `path`; `columns` maps fields to the file's names where they are not among `COLUMNS`.

        Raises CorpusError: no such file, no row, no column for the field, or an unknown field in `columns`.
        """
        unknown = [name for name in columns if name not in COLUMNS]
        if unknown:
            raise CorpusError(
                f"unknown field {unknown[0]!r} in the column mapping: the fields are {', '.join(COLUMNS)}"
            )
        if path.suffix.lower() not in KINDS:
            return cls._of_lines(path, field)
        first = next(iter_table(path), None)
        if first is None:
            raise CorpusError(f"{path}: the file has no rows")
        header = list(first[1])
        column = _column(path, header, field, columns)
        if column is None:
            raise CorpusError(
                f"{path}: no column holds a {field}; the columns are {', '.join(header)}. "
                f"Call the right one {field!r}, or tell `bnbench score` --columns {field}=NAME"
            )
        titled = field == "message" and ("title" in columns or field not in columns)
        before = _column(path, header, "title", columns) if titled else None
        return cls(path, field, column, before, _column(path, header, "id", columns))

    @classmethod
    def _of_lines(cls, path: Path, field: str) -> TextFile:
        check_file(path)
        if path.suffix.lower() in (".json", ".ndjson"):
            raise CorpusError(
                f"{path}: one JSON object a line is read from a file named .jsonl; other JSON is not read"
            )
        return cls(path, field)

    def rows(self) -> Iterator[tuple[int, str, Texts]]:
        """Number (see `tables.place`), id ("" where there is none) and texts of each row; only references are several.

        Raises CorpusError at a row that lacks an id, a reference, or the column, or where something else stands in it.
        """
        if self.column is None:
            for number, line in enumerate(iter_lines(self.path), 1):
                yield number, "", (line,)
            return
        wanted = [name for name in (self.column, self.before, self.ids) if name is not None]
        for number, row in iter_table(self.path, wanted):
            yield number, self._id(number, row), self._texts(number, row)

    def _id(self, number: int, row: Mapping[str, Any]) -> str:
        if self.ids is None:
            return ""
        found = row.get(self.ids)
        if found is None or found == "" or found != found:
            raise CorpusError(f"{place(self.path, number)}: the row has no {self.ids!r}")
        # A column of whole numbers becomes one of floats where a table once had a gap in it.
        return str(int(found) if isinstance(found, float) and found.is_integer() else found)

    def _texts(self, number: int, row: Mapping[str, Any]) -> Texts:
        name = str(self.column)
        value = row.get(name)
        if value is None and self.field != "message":
            hint = ' (null); an empty reply is ""' if name in row and self.field == "reply" else ""
            raise CorpusError(f"{place(self.path, number)}: the row has no {name!r}{hint}")
        if isinstance(value, list) and self.field == "reference":
            if not value:
                raise CorpusError(f"{place(self.path, number)}: {name!r} is an empty list; give at least one reference")
            return tuple(self._text(number, name, one) for one in value)
        text = self._text(number, name, value)
        return (f"{self._text(number, self.before, row.get(self.before))} {text}".strip() if self.before else text,)

    def _text(self, number: int, name: str, value: object) -> str:
        if isinstance(value, str) or value is None:
            return value or ""
        if isinstance(value, (int, float)) and value == value:
            return str(value)
        raise CorpusError(f"{place(self.path, number)}: {name!r} is {type(value).__name__}, not text: {value!r:.60}")

    @cached_property
    def checked(self) -> tuple[int, str]:
        """How many rows there are, and a hash of their ids in order, after reading all of them."""
        n, ids = 0, hashlib.sha256()
        for _, name, _ in self.rows():
            n += 1
            ids.update(_key(name) + b"\0")
        if not n:
            raise CorpusError(f"{self.path}: the file is empty")
        return n, ids.hexdigest()


def _column(path: Path, header: Sequence[str], field: str, columns: Mapping[str, str]) -> str | None:
    """The file's column of a field. A name that was given must be there, but for ids, which a file may lack."""
    given = columns.get(field)
    return find_column(path, header, COLUMNS[field], given if field != "id" or given in header else None)


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


@contextmanager
def joined(replies: TextFile, others: Sequence[TextFile]) -> Iterator[Iterator[tuple[str, list[Texts]]]]:
    """Each reply with what the other files have for it, in the order of the replies.

    Raises CorpusError, before the first row is given, for anything wrong in any file; where files without ids differ
    in length; where a reply's id is missing from another file or occurs twice; where a reference has no reply.
    """
    with ExitStack() as stack:
        finders = [stack.enter_context(_finder(replies, other)) for other in others]
        yield ((texts[0], [find(name) for find in finders]) for _, name, texts in replies.rows())


@contextmanager
def _finder(replies: TextFile, other: TextFile) -> Iterator[Find]:
    """A function from the id of the next reply to its texts in the other file."""
    (n, order), (others, other_order) = replies.checked, other.checked
    by_id = replies.ids is not None and other.ids is not None
    how = "by id" if by_id else "line by line"
    _log.info("%s: each %s is joined to its reply in %s %s", other.path, other.field, replies.path, how)
    if by_id and (n, order) != (others, other_order):
        with closing(_Shelf(other)) as shelf:
            _check_ids(replies, other, shelf)
            yield shelf.texts
        return
    if n != others:
        raise CorpusError(
            f"{replies.path} has {n} rows and {other.path} has {others}; without a column 'id' in both, files are "
            "joined line by line and must be equally long"
        )
    rows = other.rows()
    yield lambda _: next(rows)[2]


class _Shelf:
    """The rows of a file by id, on disk."""

    def __init__(self, file: TextFile) -> None:
        self._db = sqlite3.connect("")  # a file of SQLite's own in TMPDIR, gone when it is closed
        self._db.execute("pragma cache_size = -65536")
        self._db.execute("create table shelf (place integer primary key, id blob unique, texts text)")
        try:
            for number, name, texts in file.rows():
                self._put(place(file.path, number), name, texts)
        except sqlite3.OperationalError as error:
            self.close()
            raise BnbenchError(
                f"the temporary database for joining {file.path} by id cannot be written ({error}); "
                "TMPDIR names another folder for it"
            ) from error

    def _put(self, where: str, name: str, texts: Texts) -> None:
        try:
            self._db.execute("insert into shelf (id, texts) values (?, ?)", (_key(name), json.dumps(texts)))
        except sqlite3.IntegrityError:
            raise CorpusError(
                f"{where}: the id {name!r} occurs a second time; several references of one reply stand in one list"
            ) from None

    def place(self, name: str) -> int | None:
        """The row with this id, from 1."""
        found = self._db.execute("select place from shelf where id = ?", (_key(name),)).fetchone()
        return None if found is None else int(found[0])

    def name(self, row: int) -> str:
        """The id of a row."""
        found: bytes = self._db.execute("select id from shelf where place = ?", (row,)).fetchone()[0]
        return found.decode("utf-8", "surrogatepass")

    def texts(self, name: str) -> Texts:
        """The texts under this id, which must be there."""
        return tuple(json.loads(self._db.execute("select texts from shelf where id = ?", (_key(name),)).fetchone()[0]))

    def close(self) -> None:
        """Deletes the database."""
        self._db.close()


def _check_ids(replies: TextFile, other: TextFile, shelf: _Shelf) -> None:
    """Every reply has its row, none has two replies, and no reference is left over."""
    taken = bytearray(other.checked[0] + 1)
    for number, name, _ in replies.rows():
        found = shelf.place(name)
        if found is None:
            raise CorpusError(f"{place(replies.path, number)}: the id {name!r} is not in {other.path}")
        if taken[found]:
            raise CorpusError(f"{place(replies.path, number)}: the id {name!r} occurs a second time")
        taken[found] = 1
    left = taken.count(0) - 1  # place 0 is never taken
    if left and other.field == "reference":
        raise CorpusError(
            f"{replies.path}: {left} of the {len(taken) - 1} references in {other.path} have no reply, the first "
            f"{shelf.name(taken.index(0, 1))!r}; give each a reply (an empty one where the model gave none) or leave "
            "its reference out"
        )
