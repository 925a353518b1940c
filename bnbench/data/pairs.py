"""Preference pairs: a message with a better and a worse reply, read from a file or made from ratings of replies.

bnbench preferences ratings.csv --out pairs.csv      every best reply against each clearly worse one
bnbench finetune --recipe dpo --data pairs.csv
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from statistics import fmean

from bnbench.data import files
from bnbench.data.corpus import FIELDS as CORPUS_FIELDS
from bnbench.data.corpus import Corpus, Example, SplitSizes, Step, TokenCounter, divide, is_lost, make_example, repair
from bnbench.errors import CorpusError
from bnbench.metrics.labelled import labelled_set
from bnbench.metrics.normalization import normalize
from bnbench.records import write_text

FIELDS = {name: own for name, own in CORPUS_FIELDS.items() if name != "reference"}
FIELDS |= {"chosen": "chosen", "rejected": "rejected"}
"""The fields of a pair, and what our own data call their columns."""
RATED = dict.fromkeys(("topic", "title", "message", "reply"), "")
"""The fields of a file of ratings, beside the ratings themselves."""
_ROUNDING = 1e-9  # 0.67 − 0.17 is not quite 0.5
_SIDES = {"development": "train", "held-out": "test"}


def message_of(example: Example) -> tuple[str, str]:
    """Title and question in one spelling: what makes two messages the same."""
    return normalize(example.title), normalize(example.question)


@dataclass(frozen=True)
class Pair:
    """Two examples with one message; the reference of `chosen` is the better reply."""

    chosen: Example
    rejected: Example


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
class RatedReply:
    """A reply to a message with the mean of its ratings."""

    example: Example
    rating: float
    side: str = ""  # the split that the message belongs to, if any
    place: str = ""  # the file and row, where it is of a file


@dataclass(frozen=True)
class PairSet:
    """What `make_pairs` made: pairs with the ratings (chosen, rejected) and the side of each."""

    pairs: tuple[tuple[Pair, RatedReply, RatedReply], ...]
    replies: int
    messages: int
    margin: float

    def summary(self) -> dict[str, float]:
        """The counts, as plain JSON values."""
        used = len({message_of(pair.chosen) for pair, _, _ in self.pairs})
        found = {"pairs": len(self.pairs), "messages_with_pairs": used, "messages": self.messages}
        return found | {"replies": self.replies, "margin": self.margin}

    def __str__(self) -> str:
        n = self.summary()
        made = f"{n['pairs']} pairs from {n['messages_with_pairs']} of {n['messages']} messages"
        how = f"the best against each that is rated at least {self.margin:g} lower"
        return f"{made} ({n['replies']} rated replies): {how}"


def load_pairs(
    source: str | None, *, columns: Mapping[str, str] | None = None, sizes: SplitSizes | None = None, seed: int = 42,
    max_tokens: int | None = None, count_tokens: TokenCounter | None = None,
) -> Preferences:  # fmt: skip
    """Reads and splits the pairs of a file or hub data set; None: the bundled labelled replies', one half held out.

    A seed puts a message on the side that it has in a corpus. Pairs of which one reply is longer than `max_tokens`
    are dropped whole. Raises CorpusError for a row that is no pair, and for a message on two sides.
    """
    name = source or "bundled labelled replies"
    sided = [] if source else [(pair, row.side) for pair, row, _ in labelled_pairs().pairs]
    records = files.read_records(source) if source else {}
    hint = " (pairs have chosen and rejected), or make pairs of rated replies with `bnbench preferences`"
    header, needed = files.header_of(records.values()), ("chosen", "rejected", "question")
    places = files.match_columns(source, header, columns or {}, FIELDS, needed, hint) if source else []
    for where, record in records.items():
        texts = dict(zip(FIELDS, map(repair, files.texts_of(where, record, places)), strict=True))
        if empty := next((field for field in ("question", "chosen", "rejected") if not texts[field]), None):
            raise CorpusError(f"{where}: {empty} is empty; fill it in or remove the row")
        if normalize(texts["chosen"]) == normalize(texts["rejected"]):
            raise CorpusError(f"{where}: chosen and rejected are the same text, so neither is better; remove the row")
        if any(is_lost(texts[field]) for field in ("title", "question", "chosen")):
            raise CorpusError(f"{where}: a letter was lost for good in the message or chosen; remove the row")
        message = (texts["topic"], texts["title"], texts["question"])
        pair = Pair(*(make_example(*message, texts[reply]) for reply in ("chosen", "rejected")))
        sided.append((pair, files.side_of(record)))
    _refuse_straddling(name, ((pair.chosen, side) for pair, side in sided))
    kept = {f"{pair.chosen.id}-{pair.rejected.id}": (pair, side) for pair, side in sided}
    steps = [Step("duplicate", "the same pair in the same or another spelling", dropped=len(sided) - len(kept))]
    both = [e for pair, _ in kept.values() for e in (pair.chosen, pair.rejected)]
    lengths = count_tokens(both) if count_tokens else []
    longest = list(map(max, lengths[::2], lengths[1::2]))
    examples = [(replace(pair.chosen, id=key), side) for key, (pair, side) in kept.items()]
    corpus = divide(name, examples, steps, sizes or SplitSizes(), seed, longest, max_tokens)
    return Preferences(corpus, {key: pair for key, (pair, _) in kept.items()})


def _refuse_straddling(source: str, sided: Iterable[tuple[Example, str]]) -> None:
    """Raises CorpusError where one message stands on two sides of the split."""
    sides: dict[tuple[str, str], str] = {}
    for example, side in sided:
        if (before := sides.setdefault(message_of(example), side)) != side:
            what = f"the column 'split' puts one message on two sides ({before or 'none'} and {side or 'none'})"
            raise CorpusError(f"{source}: {what}: {example.question[:60]!r}")


def labelled_pairs(margin: float = 0.5, half: str | None = None) -> PairSet:
    """Pairs of the bundled labelled replies, rated by the mean of their three levels (0–2); one half, or both."""
    rows = labelled_set(half).rows
    examples = [make_example(row.topic, "", row.message, row.reply) for row in rows]
    sides = ["" if half else _SIDES[row.half] for row in rows]
    return make_pairs(list(map(RatedReply, examples, (fmean(row.levels) for row in rows), sides)), margin)


def read_ratings(path: Path, columns: Mapping[str, str] | None = None, ratings: Sequence[str] = ()) -> list[RatedReply]:
    """Rated replies: one row for each reply, or for each rater of one; empty cells are no ratings.

    `columns` maps reply, message, title and topic where the names differ; `ratings` are the columns of numbers, all on
    one scale, by default those whose names begin like one of `RATINGS`. Raises CorpusError with the row and column.
    """
    records = files.read_records(path)
    header = files.header_of(records.values())
    places = files.match_columns(path, header, columns or {}, RATED, ("message", "reply"))
    names = list(ratings) or [name for name in header if files.plain_name(name).startswith(files.RATINGS)]
    if missing := [name for name in names if name not in header]:
        raise CorpusError(f"{path}: there is no column {missing[0]!r}; the columns are {', '.join(header)}")
    if not names:
        what = f"no column of ratings is known by its name; the columns are {', '.join(header)}"
        raise CorpusError(f"{path}: {what}. Name each with --rating")
    found = []
    for where, row in records.items():
        values = []
        for name in names:
            if not (text := files.as_text(row.get(name))).strip():
                continue
            try:
                values.append(float(text))  # Bengali digits too
            except ValueError:
                values.append(math.nan)
            if not math.isfinite(values[-1]):
                hint = "mend it, leave the cell empty, or name the columns of ratings with --rating"
                raise CorpusError(f"{where}: {name} is {text!r}, not a number; {hint}")
        example = make_example(*map(repair, files.texts_of(where, row, places)))
        if not (example.question and example.reference):
            raise CorpusError(f"{where}: the message or the reply is empty; remove the row")
        if values:
            found.append(RatedReply(example, fmean(values), files.side_of(row), where))
    _refuse_straddling(str(path), ((rated.example, rated.side) for rated in found))
    return found


def make_pairs(rated: Sequence[RatedReply], margin: float) -> PairSet:
    """Of each message every best-rated reply against each that is rated at least `margin` lower, in the file's order. A
    reply that was rated several times has the mean of its ratings. Raises CorpusError where no pair comes of it.
    """
    if not margin > 0:  # nor NaN
        raise CorpusError(f"the margin is {margin:g}: it must be above 0, or a reply would be preferred to its equal")
    messages: dict[tuple[str, str], dict[str, list[RatedReply]]] = {}
    for one in rated:
        replies = messages.setdefault(message_of(one.example), {})
        replies.setdefault(normalize(one.example.reference), []).append(one)
    pairs = []
    for replies in messages.values():
        means = [replace(same[0], rating=fmean(one.rating for one in same)) for same in replies.values()]
        top = max(one.rating for one in means)
        worse = [one for one in means if one.rating <= top - margin + _ROUNDING]
        for best in (one for one in means if one.rating > top - _ROUNDING):
            e = best.example
            for one in worse:
                rejected = make_example(e.topic, e.title, e.question, one.example.reference)
                pairs.append((Pair(e, rejected), best, one))
    count = sum(map(len, messages.values()))
    if not pairs:
        why = f"no message has two replies whose ratings differ by {margin:g}"
        hint = "lower --margin, or rate several replies to each message"
        raise CorpusError(f"no pair comes of {count} rated replies to {len(messages)} messages: {why}; {hint}")
    return PairSet(tuple(pairs), count, len(messages), margin)


def preferences(
    ratings: Path | None, out: Path, *, margin: float = 0.5, columns: Mapping[str, str] | None = None,
    rating_columns: Sequence[str] = (), half: str | None = None,
) -> PairSet:  # fmt: skip
    """Makes pairs of a file of ratings, or of the bundled labelled replies, and writes a CSV that `load_pairs` reads.
    `half` of the bundled ones: "development" (None too), "held-out", or "both" by a column `split`. Raises CorpusError.
    """
    for is_wrong, why in (
        (out.exists(), f"{out} exists: name another file"),
        (out.suffix != ".csv", f"{out}: pairs are written as .csv"),
        (not ratings and (columns or rating_columns), "--columns and --rating are for a file of ratings; give one"),
        (ratings and half, f"--half {half}: only the bundled labelled replies have halves, and {ratings} was given"),
    ):
        if is_wrong:
            raise CorpusError(why)
    if ratings:
        made = make_pairs(read_ratings(ratings, columns, rating_columns), margin)
    else:
        made = labelled_pairs(margin, None if half == "both" else half or "development")
    sided = any(best.side for _, best, _ in made.pairs)
    rows = [(*FIELDS, "chosen_rating", "rejected_rating", *(("split",) if sided else ()))]
    for pair, best, worse in made.pairs:
        beside = (f"{best.rating:.4g}", f"{worse.rating:.4g}", *((best.side,) if sided else ()))
        rows.append((*astuple(pair.chosen)[1:5], pair.rejected.reference, *beside))
    write_text(out, files.csv_text(rows))
    return made
