"""Files of replies, references and messages, row by row beside each other, in memory that does not hold their texts.

Files are joined by id where both have a column `id`, else by message where both hold them, each once, whatever their
columns are called, else line by line; messages that contradict how files are joined refuse them. Each is read before
the first row is given, which finds what is wrong with it; those in another order are then copied into a temporary file.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from io import SEEK_END
from itertools import islice, product
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Self

import regex

from bnbench.data import files
from bnbench.data.chat import text_in
from bnbench.data.corpus import repair
from bnbench.errors import BnbenchError, CorpusError
from bnbench.metrics.normalization import normalize

FIELDS = ("reply", "reference", "message", "title", "id")
ReplyRow = tuple[str, tuple[str, ...] | None, str | None]
"""A reply, its references, the message it answers; None where no file of these was given."""
Messages = Sequence[Sequence[bytes]]
"""What the rows of a file answer, each by `comparable`, as they may be written: with their titles, and without."""

_TEXT = regex.compile(r"[^\s\p{C}]")  # more than blanks and what nobody sees, such as a zero-width space
_SOME = 50  # rows that say what a column holds
_IN_MEMORY = 1 << 24  # bytes of the temporary file that are held before it goes to the disk
_SCORED = {files.plain_name(name) for name in (*files.COLUMNS["reply"], *files.COLUMNS["reference"])}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFile:
    """One file, what stands `first` in each column, and those that are read: `column` (None for plain lines), and
    `before` it a message's title. `asked` are the messages that stand in it beside other texts.
    """

    path: Path
    field: str
    first: files.Row
    column: str | None = None
    before: str | None = None
    ids: str | None = None
    asked: Self | None = None

    @classmethod
    def of(cls, path: Path, field: str, columns: Mapping[str, str]) -> Self:
        """The file at `path`, with its columns by `columns` (of `FIELDS`) or their usual names; CorpusError without."""
        if files.kind_of(path) not in files.KINDS:
            files.check_file(path)
            return cls(path, field, {})
        if not (some := [row for _, row in islice(files.iter_table(path), _SOME)]):
            raise CorpusError(f"{path}: the file has no rows")
        # Rows of JSON may lack some columns, and a blank cell does not say what its column holds.
        first = {name: next((row[name] for row in some if row.get(name)), None) for name in files.header_of(some)}
        # One mapping serves all files, of which some may have no ids, or messages of another name.
        has_usual = field == "message" and files.find_column(list(first), field)
        columns = {of: name for of, name in columns.items() if name in first or (of == field and not has_usual)}
        names = files.match_columns(path, list(first), columns, dict.fromkeys(FIELDS, ""), [field])
        found = dict(zip(FIELDS, names, strict=True))
        column, message = found[field], found["message"]
        taken = {name: of for of, name in columns.items() if of != field}
        if field == "reply" and column in taken:  # a reference is no reply, whatever its column is called
            what = f"no column holds a reply, as --columns calls {column!r} the {taken[column]}"
            raise CorpusError(f"{path}: {what}. Name the right one with --columns reply=NAME")
        usual = {files.plain_name(name) for name in {*files.COLUMNS["reply"]} - {*files.COLUMNS["reference"]}}
        others = [name for name in first if name != column and files.plain_name(name) in usual]
        if field == "reply" and "reply" not in columns and others:
            _log.warning("%s: the replies are read from %s, not from %s", path, column, ", ".join(others))
        # A message of another name is taken to be whole; one of a usual name has the title before it.
        is_usual = files.plain_name(columns.get(field, field)) in map(files.plain_name, files.COLUMNS[field])
        before = found["title"] if field == "message" and ("title" in columns or is_usual) else None
        asked = cls.of(path, "message", columns) if message not in (None, column) else None
        return cls(path, field, first, column, before, found["id"], asked)

    @classmethod
    def beside(cls, replies: Self, field: str, columns: Mapping[str, str]) -> Self | None:
        """A further column of the replies' own file whose first cell is a text of this field; None without."""
        name = files.find_column([name for name in replies.first if name != replies.column], field)
        value = text_in(name, replies.first[name], field) if name else None
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
            value = row.get(name) if self.field == "reference" else text_in(name, row.get(name), self.field)
            texts = value if isinstance(value, list) and self.field == "reference" else [value]
            cells = [row.get(self.before), *texts] if self.before else texts
            if self.ids and (own is None or own == "" or own != own):
                fault = f"the row has no {self.ids!r}"
            elif value is None and self.field != "message":
                hint = ' (null) or ends early; an empty reply is ""' if name in row and self.field == "reply" else ""
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

    def keyed(self) -> list[tuple[Self, bool]]:
        """What may name its rows, as files of messages; and whether it holds sentences, which do so by any name."""
        own = self if self.field == "message" else self.asked
        some = [row for _, row in islice(files.iter_table(self.path), _SOME)] if self.column else []
        read, found = (self.column, self.ids, own and own.column), [(own, True)] if own else []
        for name in (name for name in self.first if name not in read and files.plain_name(name) not in _SCORED):
            cells = (text_in(name, row.get(name)) for row in some)
            if words := [len(cell.split()) for cell in cells if isinstance(cell, str)]:
                file = replace(self, field="message", column=name, before=None, asked=None)
                found.append((file, sum(words) > 2 * len(words)))
        return found

    @cached_property
    def messages(self) -> Messages:
        """What its rows answer, or say where it is a file of messages; empty where there are none that can be read."""
        own = self if self.field == "message" else self.asked
        ways = [own, *([replace(own, before=None)] if own.before else [])] if own else []
        try:
            return tuple([comparable(texts[0]) for _, _, texts in way.rows()] for way in ways)
        except CorpusError as error:  # such as a prompt that is a list of turns
            _log.warning("%s: its messages neither join nor check the replies", error)
            return ()


def spelled(message: str) -> str:
    """The one spelling in which messages of two files may be compared."""
    return " ".join(normalize(repair(message)).split())


def comparable(message: str) -> bytes:
    """A hash of the one spelling of a message; of a blank one nothing."""
    said = spelled(message)
    return hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest() if said else b""


def by_messages(asked: Messages, given: Messages, texts: Sequence[object]) -> list[int] | None:
    """The row of another file in which the message of each row stands; None where that is not certain of all.

    A message joins where one row asks it and it stands, there, beside one text only (of `texts`). The two files may
    write it with its title or without, but each in the same way throughout.
    """
    for own, other in product(asked, given):
        places, several = dict[bytes, int](), set[bytes]()
        for row, message in enumerate(other):
            if texts[places.setdefault(message, row)] != texts[row]:
                several.add(message)
        if len(set(own)) == len(own) and b"" not in own and several.isdisjoint(own) and places.keys() >= set(own):
            return [places[message] for message in own]
    return None


def unanswered(asked: Messages, given: Messages) -> list[int]:
    """The rows whose message is not in the other file, which holds those of others; as few as there may be."""
    ways = [[at for at, said in enumerate(own) if said not in other] for own, other in product(asked, map(set, given))]
    return min((rows for rows in ways if len(rows) < len(asked[0])), key=len, default=[])


def by_texts(replies: TextFile, other: TextFile, ids: Sequence[int] = ()) -> tuple[list[int], str]:
    """As `by_messages`, by columns of the two files: of sentences, whatever they are called, or else of one name, which
    join files of unequal length only. None where there are no such ones; CorpusError where what the files hold says
    otherwise: another column, the rows that their `ids` join, or in files of equal length the order of the lines.
    """
    n, joined, labels, doubts = other.checked[0], list[tuple[str, list[int]]](), list[tuple[str, list[int]]](), []
    for (own, is_text), (rest, is_too) in product(replies.keyed(), other.keyed()) if replies.path != other.path else ():
        is_text = is_text and is_too
        if (not is_text and own.column != rest.column) or (ids and own is replies.asked):
            continue
        how = f"{own.column}{f', there {rest.column}' if rest.column not in (None, own.column) else ''}"
        if rows := by_messages(own.messages, rest.messages, range(n)):
            (joined if is_text else labels).append((how, rows))
        elif is_text and own.messages and own is not replies.asked:  # whose messages the caller compares
            shared = set(own.messages[0]).intersection(*rest.messages[:1])
            doubts += [(how, own.messages, rest.messages)] if 2 * len(shared) > len(own.messages[0]) else []
    order = [("the order of the lines", list(range(n)))] if n == replies.checked[0] else []
    found = [("id", list(ids)), *joined] if ids else joined or order + labels
    says = [how for how, rows in found if rows != found[0][1]]
    says += [how for how, own, rest in doubts if found and contradiction(own, rest, found[0][1]) is not None]
    if says:
        hint = "name the column that tells the rows apart with --columns message=NAME, or id=NAME"
        what = f"{found[0][0]} joins its rows to those of {other.path} otherwise than {says[0]} does"
        raise CorpusError(f"{replies.path}: {what}; {hint}")
    return (found[0][1], f"by {found[0][0]}") if joined or (labels and not order) else ([], "")


def agreeing(asked: Messages, given: Messages, rows: Sequence[int]) -> list[int]:
    """The rows whose message is that of the row of the other file that they were joined to."""
    pairs = (({own[at] for own in asked}, {other[row] for other in given}) for at, row in enumerate(rows))
    return [at for at, (own, other) in enumerate(pairs) if own & other - {b""}]


def contradiction(asked: Messages, given: Messages, rows: Sequence[int]) -> int | None:
    """The first row whose message stands in the other file, but not in the one of `rows` that it was joined to."""
    known = set[bytes]().union(*given) - {b""}
    rows = rows if known else ()
    pairs = (({own[at] for own in asked}, {other[row] for other in given}) for at, row in enumerate(rows))
    return next((at for at, (own, other) in enumerate(pairs) if known & own and own.isdisjoint(other)), None)


@contextmanager
def join(
    replies: TextFile, references: Sequence[TextFile] = (), messages: TextFile | None = None
) -> Iterator[Iterator[ReplyRow]]:
    """Each reply with its references (blank ones left out) and its message, in the order of the replies.

    Raises CorpusError, before the first row is given, for anything wrong in any file, or that keeps them from being
    joined; and, when it comes to it, at a reply of which all references are blank.
    """
    # References come last: where the replies stand beside no messages, those that were given for them are theirs.
    others = (*([messages] if messages else []), *references)
    is_told = len({file.path for file in (replies, *others) if file.asked or file.field == "message"}) > 1
    asked = replies.messages if is_told else []
    with SpooledTemporaryFile(_IN_MEMORY) as copy:
        finders = []
        for other in others:
            places = _places(replies, other, asked)
            finders.append(_finder(other, places, copy))
            if is_told and not asked:
                asked = [[own[place] for place in places] for own in other.messages]

        def rows() -> Iterator[ReplyRow]:
            for at, (number, _, (reply,)) in enumerate(replies.rows()):
                found = [find(at) for find in finders]
                message = found.pop(0)[0] if messages else None
                given = tuple(text for texts in found for text in texts if _TEXT.search(text))
                if references and not given:
                    what = f"the reference of this reply is blank in {', '.join(str(file.path) for file in references)}"
                    hint = "write one, or leave the row out of every file"
                    raise CorpusError(f"{files.place(replies.path, number)}: {what}; {hint}")
                yield reply, given or None, message

        yield rows()


def _places(replies: TextFile, other: TextFile, asked: Messages) -> Sequence[int]:
    """Of each reply the row of the other file that belongs to it; `asked` are the messages of the replies."""
    (n, order, twice), (others, other_order, other_twice) = replies.checked, other.checked
    by_id, places = replies.ids is not None and other.ids is not None, range(n)
    # Of one file, rows stand beside each other; but a log of lm-eval's may have a document under several filters.
    is_one = other.path == replies.path and files.plain_name(replies.column or "") != "filteredresps"
    if by_id and (other_twice or twice) and not is_one:
        listed = "; several references of one reply stand in one list" if other_twice else ""
        raise CorpusError(f"{other_twice or twice}{listed}")
    given, how, found = other.messages if asked and other.path != replies.path else [], "by id", list[int]()
    if by_id and order != other_order:
        of = {name: row for row, (_, name, _) in enumerate(other.rows())}
        for number, name, _ in replies.rows():
            if name not in of:
                raise CorpusError(f"{files.place(replies.path, number)}: the id {name!r} is not in {other.path}")
            found.append(of[name])
    if by_id:
        by_texts(replies, other, found or places)
    else:
        rows = by_messages(asked, given, range(others))
        found, how = (rows, "by message") if rows else by_texts(replies, other)
        if not found and n != others:
            how = "by line, as neither a column 'id' nor messages in both join them, files must be equally long"
            for number, *_ in (next(islice(replies.rows(), at, None)) for at in unanswered(asked, given)[:1]):
                how += f"; the message of {files.place(replies.path, number)} is not in {other.path}"
            raise CorpusError(f"{replies.path} has {n} rows and {other.path} has {others}; {how}")
    # Every reply has its own row, so that only what no reply asks for can be left over.
    if others > n and other.field == "reference":
        number, name, _ = next(islice(other.rows(), min(set(range(others)).difference(found)), None))
        what = f"{others - n} of the {others} references in {other.path} have no reply, the first {name or number!r}"
        hint = "give each a reply (an empty one where the model gave none) or leave its reference out"
        raise CorpusError(f"{replies.path}: {what}; {hint}")
    if (at := contradiction(asked, given, found or places)) is not None:
        number, *_ = next(islice(replies.rows(), at, None))
        how = "of the same id" if by_id else "of the same place"
        what = f"its message is not that of the row {how} in {other.path}, where it stands elsewhere"
        hint = "give both files one order, or a column 'id'; messages join them only where each stands once in both"
        hint = "give the same message the same id in both files" if by_id else hint
        raise CorpusError(f"{files.place(replies.path, number)}: {what}; {hint}")
    if not (by_id or found):
        how = "line by line" if other.path != replies.path else "row by row, as they are of one file"
    strange = n - len(agreeing(asked, given, found or places)) if asked and given else 0
    level = logging.WARNING if strange == n or (strange and not by_id) else logging.INFO
    if strange and (by_id or strange < n):
        how += f", though the messages of {strange} of {n} rows are not the same"
    elif asked and given and not (strange or by_id or found):
        how += ", as their messages are"
    elif not (by_id or found) and other.path != replies.path and replies.first and other.first:
        level = logging.WARNING  # of plain lines one expects nothing else
        how += ": no ids, and no messages that are the same in both, each once, tell whose is whose"
    _log.log(level, "%s, joined to the replies %s", other, how)
    return found or places


def _finder(other: TextFile, places: Sequence[int], copy: IO[bytes]) -> Callable[[int], tuple[str, ...]]:
    """A function from the number of the next reply to its texts in the other file, which is copied where it must be."""
    if list(places) == list(range(other.checked[0])):
        rows = other.rows()
        return lambda _: next(rows)[2]
    starts = list[int]()
    try:
        end = copy.seek(0, SEEK_END)
        for _, _, texts in other.rows():
            starts.append(end)
            # One JSON list a line: JSON writes a line end inside a text as \n. Half a character may stand in a text.
            end += copy.write(json.dumps(texts, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    except OSError as error:
        what = f"the temporary file for joining {other.path} cannot be written ({error})"
        raise BnbenchError(f"{what}; TMPDIR names another folder for it") from error

    def find(at: int) -> tuple[str, ...]:
        copy.seek(starts[places[at]])
        return tuple(json.loads(copy.readline().decode("utf-8", "surrogatepass")))

    return find
