"""What a metric is: a table of additive statistics, one row per reply, and a formula on column sums.

Everything else follows from it. A corpus score is `formula(table.sum(0))`; a bootstrap over items is one matrix
product `weights (R x n) @ table (n x k)`; two candidates that share the weights are compared in pairs; and a cached
table is all that a ranking, a report or a later comparison needs.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from bnbench.metrics.exceptions import InputError
from bnbench.metrics.significance import Interval, PairedResult, block_sums, bootstrap, paired_tests

FloatArray = npt.NDArray[np.float64]
Made = TypeVar("Made")

SCORING_VERSION = "0.2"
"""Part of every signature. It moves when a score can move, not with each release, so that old and new scores stay
comparable.
"""

_log = logging.getLogger("bnbench")


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """What scoring n replies with one metric gives. `str(result)` is one line: score, interval, signature.

    `table` is the n x k statistics; everything else is computed from it when first asked for, so that a score whose
    interval nobody reads costs no bootstrap.
    """

    of: Metric
    table: FloatArray
    resamples: int = 10_000
    seed: int = 42
    level: float = 0.95
    clusters: tuple[Hashable, ...] | None = None
    items: int | None = None
    """How many replies were scored where `table` holds sums over blocks of them (`evaluate_stream`)."""

    @property
    def n(self) -> int:
        """How many replies were scored."""
        return len(self.table) if self.items is None else self.items

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.of.name

    @property
    def signature(self) -> str:
        """Every choice that moves the score; two scores with different signatures must not be compared."""
        return self.of.signature(self.n)

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Every named value over the whole set, the main one first."""
        return dict(zip(self.of.values, map(float, self.of.formula(self.table.sum(axis=0))), strict=True))

    @property
    def value(self) -> float:
        """The main value, `scores[metric.values[0]]`."""
        return self.scores[self.of.values[0]]

    @cached_property
    def per_reply(self) -> Mapping[str, FloatArray]:
        """Every named value of each single reply, shape (n,) each; `InputError` where only sums were kept."""
        if self.n != len(self.table):
            raise InputError(f"the scores of single replies were not kept: {self.n} replies were scored as a stream")
        return dict(zip(self.of.values, self.of.formula(self.table).T, strict=True))

    @property
    def per_item(self) -> FloatArray:
        """The main value of each single reply, shape (n,); `InputError` where only sums were kept."""
        return self.per_reply[self.of.values[0]]

    @cached_property
    def intervals(self) -> Mapping[str, Interval]:
        """The percentile bootstrap interval of every value, by its name."""
        how: dict[str, Any] = {"resamples": self.resamples, "seed": self.seed, "level": self.level}
        found = bootstrap(self.table, self.of.formula, clusters=self.clusters, **how)
        return dict(zip(self.of.values, found, strict=True))

    @property
    def interval(self) -> Interval:
        """The interval of the main value."""
        return self.intervals[self.of.values[0]]

    def __str__(self) -> str:
        ends = f" {self.interval}" if self.n > 1 else ""  # one item has no interval
        return f"{self.metric} {self.value:.2f}{ends} {self.signature}"

    def __repr__(self) -> str:
        """Every value, without the bootstrap that `str` costs."""
        return f"<Result {self.metric}: {', '.join(f'{k} {v:.2f}' for k, v in self.scores.items())}; n {self.n}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: every value with its interval, and the signature."""
        rows = [
            f"<tr><td>{escape(self.of.labels.get(name, name))}</td><td>{value:.2f}</td>"
            f"<td>{self.intervals[name] if self.n > 1 else ''}</td></tr>"
            for name, value in self.scores.items()
        ]
        head = f"<tr><th>{escape(self.metric)}</th><th>score</th><th>{100 * self.level:g} % interval</th></tr>"
        return f"<table>{head}{''.join(rows)}</table><code>{escape(self.signature)}</code>"


def paired_test(a: Result, b: Result, *, value: str | None = None) -> PairedResult:
    """Whether candidate A is better than B: the difference A - B of one value, its interval and its p.

    Both are results of one metric over the same n replies' messages, in the same order; `value` is the metric's main
    one by default. Resamples, seed and level are those of `a`. Raises `InputError` where the signatures (and so n), the
    clusters, or the ways in which the tables were kept do not agree, or the metric has no such value.
    """
    if a.signature != b.signature:
        raise InputError(f"scores with different signatures cannot be compared: {a.signature} and {b.signature}")
    if a.clusters != b.clusters:
        raise InputError(f"{a.metric}: the two results have different clusters, so they are not of the same replies")
    if value is not None and value not in a.of.values:
        raise InputError(f"{a.metric} has no value {value!r}; there are {', '.join(a.of.values)}")
    # A stream kept sums over blocks of replies; the other result's rows are summed into the same blocks.
    tables = [block_sums(result.table, a.clusters) for result in (a, b)]
    how: dict[str, Any] = {"resamples": a.resamples, "seed": a.seed, "level": a.level}
    [found] = paired_tests([(tables[0], tables[1], a.of.formula)], **how)
    return found[a.of.values.index(value or a.of.values[0])]


class Metric(ABC):
    """One metric. Subclasses give `name`, `columns`, `values`, `description`, `choices`, `statistics` and `formula`.

    `columns` names the k statistics; `values` names the v scores that the formula makes of their sums, the main one
    first. Scores are on 0-100, higher better, unless `description` says otherwise and `higher_is_better` is False.
    `needs` says what beside the replies must be given: any of "references", "messages", "likelihoods". `details` are
    values for the CSV and JSON only, not for a reader's tables.
    """

    name: ClassVar[str]
    columns: tuple[str, ...]
    values: tuple[str, ...]
    description: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    needs: frozenset[str] = frozenset()
    details: frozenset[str] = frozenset()
    parts: tuple[Metric, ...] = ()
    """The metrics whose tables, side by side, are this one's: it counts nothing itself (`CombinedScore`)."""
    argument: str = ""
    """What `get_metric` was given after the colon of `name:argument`."""

    @property
    def spelling(self) -> str:
        """What `get_metric` must be given to make this metric again: `ROUGE`, `BERTScore:FOLDER`."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def labels(self) -> Mapping[str, str]:
        """What a reader's table calls each value. By default a value that is called after its metric, or `score`, has
        the metric's name, and every other its own with blanks.
        """
        main = {self.name.casefold(), self.name.casefold().replace("-", "_"), "score", "value"}
        title = self.name.replace("-", " ")
        return {value: title if value.casefold() in main else value.replace("_", " ") for value in self.values}

    @property
    def choices(self) -> Mapping[str, object]:
        """Every choice that moves the score, by its key in the signature."""
        return {}

    @abstractmethod
    def statistics(self, texts: Texts) -> FloatArray:
        """The n x k table for n replies; finite numbers only, whatever the texts are."""

    @abstractmethod
    def formula(self, sums: FloatArray) -> FloatArray:
        """Column sums (..., k) to scores (..., v), for any leading dimensions; defined (never NaN) on all-zero sums."""

    def signature(self, n: int) -> str:
        """The name with all `choices`, as sacrebleu does: `chrF++|norm:bn1|tok:bn1|n:300|bnbench:0.2`."""
        return signature(self.name, n, **self.choices)

    def score(
        self,
        predictions: Sequence[str],
        references: Sequence[str] | Sequence[Sequence[str]] | None = None,
        *,
        messages: Sequence[str] | None = None,
        likelihoods: npt.ArrayLike | None = None,
        clusters: Sequence[Hashable] | None = None,
        resamples: int = 10_000,
        seed: int = 42,
    ) -> Result:
        """Score n predictions, each against its reference(s); `clusters` names the dialogue each belongs to.

        Raises `InputError` on unequal lengths, on no predictions at all, or where something the metric needs is not
        given.
        """
        return self.result(Texts.of(predictions, references, messages, likelihoods), clusters, resamples, seed)

    def result(
        self, texts: Texts, clusters: Sequence[Hashable] | None = None, resamples: int = 10_000, seed: int = 42
    ) -> Result:
        """Score texts that several metrics share; raises as `score` does."""
        clusters = texts.clusters(clusters)
        self.check(texts)
        return Result(self, self.statistics(texts), resamples, seed, clusters=clusters)

    def check(self, texts: Texts) -> None:
        """Raise `InputError` when something in `needs` is missing."""
        for part in self.parts:
            part.check(texts)
        for need in sorted(self.needs):
            if getattr(texts, need) is None:
                raise InputError(f"{self.name} needs {need}, one per reply: pass {need}=...")


class MeanMetric(Metric):
    """A metric whose values are means over replies. Subclasses give `per_reply` instead of `statistics` and `formula`.

    `columns` are the sums of what `per_reply` gives, and last the number of replies; `scale` is what a mean is
    multiplied with. So `formula` maps (..., k) to (..., k - 1).
    """

    scale: ClassVar[float] = 100

    @abstractmethod
    def per_reply(self, texts: Texts) -> FloatArray:
        """n x (k - 1): the numbers of each reply, 0-1 where `scale` is 100."""

    def statistics(self, texts: Texts) -> FloatArray:
        """The numbers of each reply, and 1 for the count."""
        self.check(texts)
        return np.column_stack([self.per_reply(texts), np.ones(len(texts))])

    def formula(self, sums: FloatArray) -> FloatArray:
        """`scale` times each sum over the number of replies."""
        return self.scale * ratio(sums[..., :-1], sums[..., -1:])


def table_of(metric: Metric, tables: Mapping[str, FloatArray]) -> FloatArray:
    """The statistics of a metric out of those that were counted, (n, k) by metric: its own, or its parts' side by side.

    Raises `InputError` naming what is not among them.
    """
    names = [part.name for part in metric.parts or (metric,)]
    missing = [name for name in names if name not in tables]
    if missing:
        raise InputError(f"{metric.name}{' score' if metric.parts else ''}: {', '.join(missing)} was not scored")
    return np.hstack([tables[name] for name in names]) if metric.parts else tables[names[0]]


@dataclass(frozen=True)
class Texts:
    """n replies and what they are scored against.

    `references` is one tuple of strings per reply, `messages` what each reply answers, `likelihoods` an (n, 4) array
    of nll (nats), tokens, bytes, characters of the reference, `cut` whether generation stopped at the token limit.
    Whatever metrics derive from the texts (normalised forms, tokens, n-gram counts) is made once and shared through
    `derived`.
    """

    replies: tuple[str, ...]
    references: tuple[tuple[str, ...], ...] | None = None
    messages: tuple[str, ...] | None = None
    likelihoods: FloatArray | None = None
    cut: tuple[bool, ...] | None = None
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("references", "messages", "likelihoods", "cut"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.replies):
                raise InputError(
                    f"{len(self.replies)} replies but {len(given)} {name}: give one per reply, in the same order"
                )
        for row, references in enumerate(self.references or ()):
            if not references:
                raise InputError(f"row {row}: no reference; give at least one (an empty string is allowed)")
        texts = {"reply": self.replies, "message": self.messages or (), "reference": self.reference_texts()}
        for what, some in texts.items():
            for row, text in enumerate(some):
                if not isinstance(text, str):
                    raise InputError(f"{what} {row} is {type(text).__name__}, not text: {text!r}")

    @classmethod
    def of(
        cls,
        replies: Sequence[str],
        references: Sequence[str] | Sequence[Sequence[str]] | None = None,
        messages: Sequence[str] | None = None,
        likelihoods: npt.ArrayLike | None = None,
        cut: Sequence[bool] | None = None,
    ) -> Texts:
        """Texts from any sequences: lists, tuples, arrays, columns of a data frame.

        Raises `InputError` for what iterates over something else than the texts (one string, a dict, a set, a whole
        data frame), for unequal lengths, and for references in sacrebleu's layout, a list of streams.
        """
        rows = sequence("replies", replies)
        return cls(
            rows,
            None if references is None else _by_reply(sequence("references", references), len(rows)),
            None if messages is None else sequence("messages", messages),
            None if likelihoods is None else np.asarray(likelihoods, dtype=np.float64),
            None if cut is None else sequence("cut", cut),
        )

    def __len__(self) -> int:
        return len(self.replies)

    def clusters(self, given: Sequence[Hashable] | None = None) -> tuple[Hashable, ...] | None:
        """The cluster of each reply, if any are given; `InputError` where there is no reply, or not one for each."""
        if not self.replies:
            raise InputError("there is no reply to score")
        clusters = None if given is None else sequence("clusters", given)
        if clusters is not None and len(clusters) != len(self):
            raise InputError(f"{len(self)} replies but {len(clusters)} clusters: name the cluster of each reply")
        return clusters

    def part(self, rows: slice) -> Texts:
        """The texts of some rows, with nothing derived yet."""
        columns = (self.replies, self.references, self.messages, self.likelihoods, self.cut)
        return Texts(*(None if column is None else column[rows] for column in columns))  # type: ignore[arg-type]

    def reference_texts(self) -> Iterator[str]:
        """Every reference, those of the first reply first."""
        return (text for references in self.references or () for text in references)

    def derived(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once for each key."""
        if key not in self._derived:
            self._derived[key] = make()
        made: Made = self._derived[key]
        return made

    def mapped(self, key: Hashable, function: Callable[[str], Made]) -> dict[str, Made]:
        """`function` applied once to each distinct reply and reference, as a dictionary from the raw text."""
        distinct = self.derived("distinct", lambda: list(dict.fromkeys((*self.replies, *self.reference_texts()))))
        return self.derived(key, lambda: dict(zip(distinct, map(function, distinct), strict=True)))


def sequence(what: str, given: Any) -> tuple[Any, ...]:
    """The items of a sequence; `InputError` for what is none, or iterates over something else than its items."""
    if isinstance(given, str | bytes):
        raise InputError(f"{what} is one string; give a list of strings, one per reply")
    kind = type(given).__name__
    if hasattr(given, "columns"):  # a data frame of pandas or polars, a table of pyarrow
        raise InputError(f'{what} is a {kind}, whose column names would be scored; give one column: frame["{what}"]')
    if isinstance(given, Mapping):
        raise InputError(f"{what} is a {kind}, whose keys would be scored; give a list of its values")
    if isinstance(given, Set):
        raise InputError(f"{what} is a {kind}, which has no order; give a list, one item per reply")
    if not isinstance(given, Iterable):
        raise InputError(f"{what} is {kind}; give a list, one item per reply")
    return tuple(given)


def _by_reply(references: tuple[Any, ...], n: int) -> tuple[tuple[str, ...], ...]:
    """The references of each of n replies: one text each, or several.

    sacrebleu wants them the other way round, a list of streams that each have one reference for every reply. Where the
    two can be told apart that is refused, since each reply would be scored against another's references. They cannot
    where there are as many streams as replies; with one reply both layouts mean the same.
    """
    found: list[tuple[str, ...]] = []
    for row, given in enumerate(references):
        if not isinstance(given, str | Iterable):
            raise InputError(f"row {row}: the reference is {type(given).__name__}, not text")
        found.append((given,) if isinstance(given, str) else sequence(f"row {row}: references", given))
    listed = not any(isinstance(given, str) for given in references)
    if listed and n > 0 and found and all(len(texts) == n for texts in found):
        streams = f"references are {len(found)} lists of {n} texts for {n} replies"
        if len(found) != n:
            raise InputError(
                f"{streams}, as sacrebleu takes them: a list of streams. Give the references of each reply together: "
                "list(zip(*references))"
            )
        if n > 1:
            _log.warning(
                "%s, read as the references of each reply; where they are streams, as sacrebleu takes them, give "
                "list(zip(*references))",
                streams,
            )
    return tuple(found)


def signature(name: str, n: int, **choices: object) -> str:
    """`name|key:value|...|n:300|bnbench:0.2`, the keys in the order given."""
    return "|".join(
        [name, *(f"{key}:{value}" for key, value in choices.items()), f"n:{n}", f"bnbench:{SCORING_VERSION}"]
    )


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> FloatArray:
    """Elementwise numerator / denominator, 0 where the denominator is 0."""
    top, bottom = np.broadcast_arrays(
        np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    )
    quotient: FloatArray = np.divide(top, bottom, out=np.zeros(top.shape), where=bottom != 0)
    return quotient
