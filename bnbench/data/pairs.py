"""Preference pairs: a message with a better and a worse reply, read from a file or made from ratings of replies.

    bnbench preferences ratings.csv --out pairs.csv      every best reply against each clearly worse one
    bnbench finetune --recipe dpo --data pairs.csv

A pairs file has the corpus' columns of the message (topic, title, question) and `chosen` and `rejected`. All pairs of
one message stand on one side of the split, which is the corpus': the same seed puts a message on the same side.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from bnbench.data.corpus import (
    Corpus,
    Example,
    SplitSizes,
    Step,
    TokenCounter,
    divide,
    make_example,
    match_columns,
    read_records,
    side_of,
)
from bnbench.data.files import as_text, check_table, find_column, iter_table, place, plain_name, texts_of
from bnbench.data.repair import LOST, repair
from bnbench.errors import CorpusError
from bnbench.metrics.empathy import MECHANISMS
from bnbench.metrics.labelled import labelled_set
from bnbench.metrics.normalization import normalize
from bnbench.records import write_text

DEFAULT_SIZES = SplitSizes()
FIELDS = ("topic", "title", "question", "chosen", "rejected")
RATED = {
    "topic": ("topic", "topics"),
    "title": ("title", "questiontitle"),
    "message": ("message", "question", "questions", "prompt"),
    "reply": ("reply", "response", "modelresponse", "answer", "answers"),
}
"""The fields of a file of ratings, and their columns' names without regard to case and punctuation."""
RATINGS = ("empathy", "relevance", "fluency", "helpfulness", "overall", "rating", "score", *MECHANISMS)
"""How the name of a column of ratings may begin, without regard to case and punctuation."""
_ROUNDING = 1e-9  # 0.67 − 0.17 is not quite 0.5
_SIDES = {"development": "train", "held-out": "test"}


@dataclass(frozen=True)
class Pair:
    """Two examples with one message; the reference of `chosen` is the better reply."""

    chosen: Example
    rejected: Example

    @classmethod
    def of(cls, topic: str, title: str, question: str, chosen: str, rejected: str) -> Pair:
        """The pair of these texts."""
        return cls(*(make_example(topic, title, question, reply) for reply in (chosen, rejected)))

    @property
    def id(self) -> str:
        """A hash of the content."""
        return f"{self.chosen.id}-{self.rejected.id}"

    @property
    def message(self) -> tuple[str, str]:
        """Title and question in one spelling: what makes two messages the same."""
        return _message(self.chosen)


@dataclass(frozen=True)
class Preferences:
    """Pairs in fixed splits. `corpus` has one example for each pair, under whose id `pairs` has it."""

    corpus: Corpus
    pairs: Mapping[str, Pair]

    def select(self, split: str, limit: int | None = None) -> tuple[Pair, ...]:
        """The first `limit` pairs of a split ("all" for every one)."""
        return tuple(self.pairs[e.id] for e in self.corpus.select(split, limit))

    def held_out(self, split: str) -> tuple[Pair, ...]:
        """The pairs of validation and test, where `split` leaves them out of the training."""
        parts = [self.corpus.splits.get(side, ()) for side in ("validation", "test")] if split != "all" else []
        return tuple(self.pairs[e.id] for part in parts for e in part)


@dataclass(frozen=True)
class Rated:
    """A reply to a message with the mean of its ratings; `side` is the split that the message belongs to, or empty."""

    example: Example
    rating: float
    side: str = ""


@dataclass(frozen=True)
class Made:
    """What `make_pairs` made: pairs with the ratings (chosen, rejected) and the side of each."""

    pairs: tuple[tuple[Pair, Rated, Rated], ...]
    replies: int
    messages: int
    margin: float

    def summary(self) -> dict[str, float]:
        """The counts, as plain JSON values."""
        used = len({pair.message for pair, _, _ in self.pairs})
        return {
            "pairs": len(self.pairs),
            "messages_with_pairs": used,
            "messages": self.messages,
            "replies": self.replies,
            "margin": self.margin,
        }

    def __str__(self) -> str:
        n = self.summary()
        return (
            f"{n['pairs']} pairs from {n['messages_with_pairs']} of {n['messages']} messages ({n['replies']} rated "
            f"replies): the best against each that is rated at least {self.margin:g} lower"
        )


def load_pairs(
    source: str | None,
    *,
    columns: Mapping[str, str] | None = None,
    sizes: SplitSizes = DEFAULT_SIZES,
    seed: int = 42,
    max_tokens: int | None = None,
    count_tokens: TokenCounter | None = None,
) -> Preferences:
    """Reads and splits the pairs of a file or hub data set; None: those of the bundled labelled replies, development
    half to train on and the other held out.

    Pairs of which one reply is longer than `max_tokens` after the template are dropped whole, as in `load_corpus`.
    Raises CorpusError: a missing column, an empty text or two equal replies (with the row), a message on two sides.
    """
    name = source or "bundled labelled replies"
    sided = list(_read_pairs(source, columns or {})) if source else [(p, r.side) for p, r, _ in labelled_pairs().pairs]
    _refuse_straddling(name, ((pair.chosen, side) for pair, side in sided))
    kept = {pair.id: (pair, side) for pair, side in sided}
    steps = [Step("duplicate", "the same pair in the same or another spelling", dropped=len(sided) - len(kept))]
    if max_tokens is not None and count_tokens is not None:
        lengths = count_tokens([e for pair, _ in kept.values() for e in (pair.chosen, pair.rejected)])
        longest = map(max, lengths[::2], lengths[1::2])
        short = {key: kept[key] for key, length in zip(kept, longest, strict=True) if length <= max_tokens}
        why = f"a reply over {max_tokens} tokens after the template"
        steps.append(Step("too long", why, dropped=len(kept) - len(short)))
        kept = short
    if not kept:
        raise CorpusError(f"{name}: no usable pair; " + ", ".join(f"{s.dropped} {s.name}" for s in steps if s.dropped))
    corpus = divide(name, [(replace(p.chosen, id=key), side) for key, (p, side) in kept.items()], steps, sizes, seed)
    return Preferences(corpus, {key: pair for key, (pair, _) in kept.items()})


def labelled_pairs(margin: float = 0.5, half: str | None = None) -> Made:
    """Pairs of the bundled labelled replies, rated by the mean of their three levels (0–2); one half, or both."""
    rated = [
        Rated(
            make_example(row.topic, "", row.message, row.reply),
            fmean(row.levels),
            "" if half else _SIDES[row.half],
        )
        for row in labelled_set(half).rows
    ]
    return make_pairs(rated, margin)


def read_ratings(path: Path, columns: Mapping[str, str] | None = None, ratings: Sequence[str] = ()) -> list[Rated]:
    """Rated replies: one row for each reply, or for each rater of one; empty cells are no ratings.

    `columns` maps reply, message, title and topic where the names differ; `ratings` are the columns of numbers, all on
    one scale, by default those whose names begin like one of `RATINGS`. Raises CorpusError with the row and column.
    """
    check_table(path)
    columns = columns or {}
    _refuse_unknown(columns, RATED)
    rows = list(iter_table(path))
    if not rows:
        raise CorpusError(f"{path}: the file has no rows")
    header = [*dict.fromkeys(name for _, row in rows for name in row)]  # rows of JSONL may lack some
    places = {field: find_column(path, header, names, columns.get(field)) for field, names in RATED.items()}
    for field in ("message", "reply"):
        if places[field] is None:
            raise CorpusError(f"{path}: no column holds a {field}; {_name_it(header, field)}")
    names = _rating_columns(path, header, ratings)
    found = []
    for number, row in rows:
        where = place(path, number)
        values = [v for name in names if (v := _number(where, name, as_text(row.get(name)))) is not None]
        example = make_example(*map(repair, texts_of(where, row, places.values())))
        if not (example.question and example.reference):
            raise CorpusError(f"{where}: the message or the reply is empty; remove the row")
        if values:
            found.append(Rated(example, fmean(values), side_of({k: as_text(v) for k, v in row.items()})))
    _refuse_straddling(str(path), ((rated.example, rated.side) for rated in found))
    return found


def make_pairs(rated: Sequence[Rated], margin: float) -> Made:
    """Of each message every best-rated reply against each that is rated at least `margin` lower, in the file's order.

    A reply that was rated several times has the mean of its ratings. Equal ratings give no pair. Raises CorpusError
    where no pair comes of it.
    """
    if not margin > 0:  # nor NaN
        raise CorpusError(f"the margin is {margin:g}: it must be above 0, or a reply would be preferred to its equal")
    messages: dict[tuple[str, str], dict[str, list[Rated]]] = {}
    for one in rated:
        replies = messages.setdefault(_message(one.example), {})
        replies.setdefault(normalize(one.example.reference), []).append(one)
    pairs = [pair for replies in messages.values() for pair in _best_against_worse(replies, margin)]
    count = sum(map(len, messages.values()))
    if not pairs:
        raise CorpusError(
            f"no pair comes of {count} rated replies to {len(messages)} messages: no message has two replies whose "
            f"ratings differ by {margin:g}; lower --margin, or rate several replies to each message"
        )
    return Made(tuple(pairs), count, len(messages), margin)


def _best_against_worse(replies: Mapping[str, list[Rated]], margin: float) -> Iterator[tuple[Pair, Rated, Rated]]:
    rated = [replace(same[0], rating=fmean(r.rating for r in same)) for same in replies.values()]
    top = max(r.rating for r in rated)
    for a in (r for r in rated if r.rating > top - _ROUNDING):
        for b in (r for r in rated if r.rating <= top - margin + _ROUNDING):
            e = a.example
            yield Pair.of(e.topic, e.title, e.question, e.reference, b.example.reference), a, b


def write_pairs(path: Path, made: Made) -> None:
    """A CSV that `load_pairs` reads, with the ratings beside each pair, and `split` where the ratings had one."""
    sided = any(rated.side for _, rated, _ in made.pairs)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow((*FIELDS, "chosen_rating", "rejected_rating", *(("split",) if sided else ())))
    for pair, a, b in made.pairs:
        message = (pair.chosen.topic, pair.chosen.title, pair.chosen.question)
        ratings = (f"{a.rating:.4g}", f"{b.rating:.4g}", *((a.side,) if sided else ()))
        lines.writerow((*message, pair.chosen.reference, pair.rejected.reference, *ratings))
    write_text(path, text.getvalue())


def preferences(
    ratings: Path | None,
    out: Path,
    *,
    margin: float = 0.5,
    columns: Mapping[str, str] | None = None,
    rating_columns: Sequence[str] = (),
    half: str | None = None,
) -> Made:
    """Makes pairs from a file of ratings, or from the bundled labelled replies, and writes them. Raises CorpusError.

    `half` of the bundled ones is "development" (None too), "held-out", or "both": then a column `split` holds the
    held-out half out.
    """
    if out.exists():
        raise CorpusError(f"{out} exists: name another file")
    if out.suffix != ".csv":
        raise CorpusError(f"{out}: pairs are written as .csv")
    if ratings is None and (columns or rating_columns):
        raise CorpusError("--columns and --rating are for a file of ratings, and none was given")
    if ratings is None:
        made = labelled_pairs(margin, None if half == "both" else half or "development")
    elif half is not None:
        raise CorpusError(f"--half {half}: only the bundled labelled replies have halves, and {ratings} was given")
    else:
        made = make_pairs(read_ratings(ratings, columns, rating_columns), margin)
    write_pairs(out, made)
    return made


def _read_pairs(source: str, columns: Mapping[str, str]) -> Iterator[tuple[Pair, str]]:
    _refuse_unknown(columns, FIELDS)
    records = read_records(source)
    header = list(records[0])
    replies = [_required(source, header, field, columns) for field in ("chosen", "rejected")]
    mapped = {field: column for field, column in columns.items() if field not in ("chosen", "rejected")}
    names = match_columns(source, header, {**mapped, "reference": replies[0]})
    for number, record in enumerate(records, 1):
        where = f"{source}, row {number}"
        pair = Pair.of(*map(repair, texts_of(where, record, [*map(names.get, FIELDS[:3]), *replies])))
        _check_pair(where, pair)
        yield pair, side_of(record)


def _required(source: str, header: Sequence[str], field: str, columns: Mapping[str, str]) -> str:
    found = find_column(source, header, (field,), columns.get(field))
    if found is None:
        raise CorpusError(
            f"{source}: there is no column {field!r}, and pairs have chosen and rejected; {_name_it(header, field)}, "
            "or make pairs of rated replies with `bnbench preferences`"
        )
    return found


def _name_it(header: Sequence[str], field: str) -> str:
    return f"the columns are {', '.join(header)}. Name the right one with --columns {field}=NAME"


def _refuse_unknown(columns: Mapping[str, str], fields: Collection[str]) -> None:
    unknown = [field for field in columns if field not in fields]
    if unknown:
        raise CorpusError(f"unknown field {unknown[0]!r} in the column mapping: the fields are {', '.join(fields)}")


def _check_pair(where: str, pair: Pair) -> None:
    question, chosen, rejected = pair.chosen.question, pair.chosen.reference, pair.rejected.reference
    empty = [n for n, text in (("question", question), ("chosen", chosen), ("rejected", rejected)) if not text]
    if empty:
        raise CorpusError(f"{where}: {empty[0]} is empty; fill it in or remove the row")
    if normalize(chosen) == normalize(rejected):
        raise CorpusError(f"{where}: chosen and rejected are the same text, so neither is preferred; remove the row")
    if LOST in pair.chosen.title + question + chosen:
        raise CorpusError(f"{where}: a letter was lost for good (U+FFFD) in the message or chosen; remove the row")


def _refuse_straddling(source: str, sided: Iterable[tuple[Example, str]]) -> None:
    sides: dict[tuple[str, str], str] = {}
    for example, side in sided:
        before = sides.setdefault(_message(example), side)
        if before != side:
            raise CorpusError(
                f"{source}: the column 'split' puts one message on two sides ({before or 'none'} and "
                f"{side or 'none'}): {example.question[:60]!r}"
            )


def _message(example: Example) -> tuple[str, str]:
    return normalize(example.title), normalize(example.question)


def _rating_columns(path: Path, header: Sequence[str], given: Sequence[str]) -> list[str]:
    missing = [name for name in given if name not in header]
    if missing:
        raise CorpusError(f"{path}: there is no column {missing[0]!r}; the columns are {', '.join(header)}")
    known = tuple(map(plain_name, RATINGS))
    found = list(given) or [name for name in header if plain_name(name).startswith(known)]
    if not found:
        raise CorpusError(
            f"{path}: no column of ratings is known by its name; the columns are {', '.join(header)}. "
            "Name each with --rating"
        )
    return found


def _number(where: str, column: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        number = float(text)  # Bengali digits too
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CorpusError(
            f"{where}: {column} is {text!r}, not a number; mend it, leave the cell empty, or name the columns of "
            "ratings with --rating"
        )
    return number
