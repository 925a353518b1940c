"""Files of replies, references and messages, row by row beside each other, in memory that does not hold their texts.

Files are joined by id where both have a column `id`, else line by line. Each is read once before the first row is
given, which finds what is wrong with it; those whose ids stand in another order are then copied into a temporary file.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import SEEK_END
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Self

import regex

from bnbench.data import files
from bnbench.data.chat import text_in
from bnbench.errors import BnbenchError, CorpusError

FIELDS = ("reply", "reference", "message", "title", "id")
ReplyRow = tuple[str, tuple[str, ...] | None, str | None]
"""A reply, its references, the message it answers; None where no file of these was given."""

_TEXT = regex.compile(r"[^\s\p{C}]")  # more than blanks and what nobody sees, such as a zero-width space
_IN_MEMORY = 1 << 24  # bytes of the temporary file that are held before it goes to the disk
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFile:
    """One file and the columns that are read: `column` (None for plain lines), and `before` it a message's title."""

    path: Path
    field: str
    column: str | None = None
    before: str | None = None
    ids: str | None = None

    @classmethod
    def of(cls, path: Path, field: str, columns: Mapping[str, str] | None = None) -> Self:
        """The file at `path`, with its columns by `columns` or their usual names; CorpusError where there is none."""
        hint = f"Call the right one {field!r}{'' if columns is None else f', or name it with --columns {field}=NAME'}"
        columns = columns or {}
        files.check_columns(columns, FIELDS)
        if files.kind_of(path) not in files.KINDS:
            files.check_file(path)
            return cls(path, field)
        if (first := next(files.iter_table(path), None)) is None:
            raise CorpusError(f"{path}: the file has no rows")
        header = list(first[1])
        if (column := files.find_column(path, header, field, columns.get(field))) is None:
            what = f"no column holds a {field}; the columns are {', '.join(header) or 'none'}"
            raise CorpusError(f"{path}: {what}. {hint}")
        usual = {files.plain_name(name) for name in {*files.COLUMNS["reply"]} - {*files.COLUMNS["reference"]}}
        others = [name for name in header if name != column and files.plain_name(name) in usual]
        if field == "reply" and "reply" not in columns and others:
            _log.warning("%s: the replies are read from %s, not from %s", path, column, ", ".join(others))
        # A message of another name is taken to be whole; one of a usual name has the title before it.
        is_usual = files.plain_name(columns.get(field, field)) in map(files.plain_name, files.COLUMNS[field])
        titled = field == "message" and ("title" in columns or is_usual)
        before = files.find_column(path, header, "title", columns.get("title")) if titled else None
        own_id = columns.get("id")  # one mapping serves all files, of which some may have no ids
        ids = files.find_column(path, header, "id", own_id if own_id in header else None)
        return cls(path, field, column, before, ids)

    @classmethod
    def beside(cls, replies: Self, field: str, columns: Mapping[str, str]) -> Self | None:
        """A further column of the replies' own file that holds a text of this field in its first row; None without."""
        if replies.column is None:
            return None
        _, row = next(files.iter_table(replies.path))
        name = files.find_column(replies.path, [name for name in row if name != replies.column], field)
        value = text_in(name, row[name]) if name else None
        first = value[0] if isinstance(value, list) and value else value
        has_text = isinstance(first, str) and any(map(str.isalpha, first))  # and is no label, such as 0 or 1
        return cls.of(replies.path, field, {**columns, field: name}) if name and has_text else None

    def __str__(self) -> str:
        names = " and ".join(filter(None, (self.before, self.column))) or "each line"
        return f"{self.path}: {self.field} from {names}{f', id from {self.ids}' if self.ids else ''}"

    def rows(self) -> Iterator[tuple[int, str, tuple[str, ...]]]:
        """Number (see `files.place`), id ("" where there is none) and texts of each row; only references are several.

        Raises CorpusError at a row that lacks an id, a reference, or the column, or where something else stands in it.
        """
        if self.column is None:
            yield from ((number, "", (line,)) for number, line in enumerate(files.iter_lines(self.path), 1))
            return
        name = self.column
        for number, row in files.iter_table(self.path, list(filter(None, (name, self.before, self.ids)))):
            own, fault = row.get(self.ids) if self.ids else "", ""
            value = row.get(name) if self.field == "reference" else text_in(name, row.get(name))
            texts = value if isinstance(value, list) and self.field == "reference" else [value]
            cells = [row.get(self.before), *texts] if self.before else texts
            if self.ids and (own is None or own == "" or own != own):
                fault = f"the row has no {self.ids!r}"
            elif value is None and self.field != "message":
                hint = ' (null); an empty reply is ""' if name in row and self.field == "reply" else ""
                fault = f"the row has no {name!r}{hint}"
            elif not texts:
                fault = f"{name!r} is an empty list; give at least one reference"
            for one in cells:
                if one is not None and not isinstance(one, str) and not (isinstance(one, (int, float)) and one == one):
                    column = self.before if self.before and one is cells[0] else name
                    fault = fault or f"{column!r} is {type(one).__name__}, not text: {one!r:.60}"
            if fault:
                raise CorpusError(f"{files.place(self.path, number)}: {fault}")
            found = tuple(map(files.as_text, cells))
            yield number, files.whole_number(str(own)), (" ".join(found).strip(),) if self.before else found

    @cached_property
    def checked(self) -> tuple[int, str, str]:
        """After reading all rows: how many, a hash of their ids in order, and where the first id stands again ("")."""
        n, order, seen, twice = 0, hashlib.sha256(), set[str](), ""
        for number, name, _ in self.rows():
            n += 1
            if self.ids:
                order.update(name.encode("utf-8", "surrogatepass") + b"\0")
                if name in seen and not twice:
                    twice = f"{files.place(self.path, number)}: the id {name!r} occurs a second time"
                seen.add(name)
        if not n:
            raise CorpusError(f"{self.path}: the file is empty")
        return n, order.hexdigest(), twice


@contextmanager
def join(
    replies: TextFile, references: Sequence[TextFile] = (), messages: TextFile | None = None
) -> Iterator[Iterator[ReplyRow]]:
    """Each reply with its references (blank ones left out) and its message, in the order of the replies.

    Raises CorpusError, before the first row is given, for anything wrong in any file; where files without ids differ
    in length; where an id occurs twice or a reply's is missing from another file; where a reference has no reply; and,
    when it comes to it, at a reply of which all references are blank.
    """
    with SpooledTemporaryFile(_IN_MEMORY) as copy:
        finders = [_finder(replies, other, copy) for other in (*references, *([messages] if messages else []))]

        def rows() -> Iterator[ReplyRow]:
            for number, name, (reply,) in replies.rows():
                found = [find(name) for find in finders]
                given = tuple(text for texts in found[: len(references)] for text in texts if _TEXT.search(text))
                if references and not given:
                    what = f"the reference of this reply is blank in {', '.join(str(file.path) for file in references)}"
                    hint = "write one, or leave the row out of every file"
                    raise CorpusError(f"{files.place(replies.path, number)}: {what}; {hint}")
                yield reply, given or None, found[-1][0] if messages else None

        yield rows()


def _finder(replies: TextFile, other: TextFile, copy: SpooledTemporaryFile[bytes]) -> Callable[[str], tuple[str, ...]]:
    """A function from the id of the next reply to its texts in the other file, which goes into `copy` where it must."""
    (n, order, twice), (others, other_order, other_twice) = replies.checked, other.checked
    by_id = replies.ids is not None and other.ids is not None
    how = "by id" if by_id else "line by line"
    _log.info("%s, joined to the replies %s", other, how)
    # Of one file, rows stand beside each other; but a log of lm-eval's may have a document under several filters.
    is_one = other.path == replies.path and files.plain_name(replies.column or "") != "filteredresps"
    if by_id and (other_twice or twice) and not is_one:
        listed = "; several references of one reply stand in one list" if other_twice else ""
        raise CorpusError(f"{other_twice or twice}{listed}")
    if not by_id and n != others:
        how = "without a column 'id' in both, files are joined line by line and must be equally long"
        raise CorpusError(f"{replies.path} has {n} rows and {other.path} has {others}; {how}")
    if not by_id or order == other_order:
        rows = other.rows()
        return lambda _: next(rows)[2]

    starts: dict[str, int] = {}
    try:
        end = copy.seek(0, SEEK_END)
        for _, name, texts in other.rows():
            starts[name] = end
            # One JSON list a line: JSON writes a line end inside a text as \n. Half a character may stand in a text.
            end += copy.write(json.dumps(texts, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    except OSError as error:
        what = f"the temporary file for joining {other.path} by id cannot be written ({error})"
        raise BnbenchError(f"{what}; TMPDIR names another folder for it") from error
    for number, name, _ in replies.rows():
        if name not in starts:
            raise CorpusError(f"{files.place(replies.path, number)}: the id {name!r} is not in {other.path}")
    # Every reply has its own row, so that only what no reply asks for can be left over.
    if others > n and other.field == "reference":
        answered = {name for _, name, _ in replies.rows()}
        first = next(name for name in starts if name not in answered)
        what = f"{others - n} of the {others} references in {other.path} have no reply, the first {first!r}"
        hint = "give each a reply (an empty one where the model gave none) or leave its reference out"
        raise CorpusError(f"{replies.path}: {what}; {hint}")

    def find(name: str) -> tuple[str, ...]:
        copy.seek(starts[name])
        return tuple(json.loads(copy.readline().decode("utf-8", "surrogatepass")))

    return find
