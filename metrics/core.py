"""What a metric is: a table of additive statistics, one row per reply, and a formula on column sums.

A corpus score is `formula(table.sum(0))`, and a stored table all that intervals, comparisons and reports need.
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

from bnbench.metrics.exceptions import BnbenchError, InputError
from bnbench.metrics.significance import Interval, PairedResult, block_sums, bootstrap, counting, paired_tests

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[int], object] | None
Made = TypeVar("Made")

SCORING_VERSION = "0.9"
"""Part of every signature: it moves when a score can move, not with each release."""
PART = 2_000
"""Replies whose derived texts (tokens, n-grams) are held at once."""
_log = logging.getLogger("bnbench")


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """What scoring n replies with one metric gives. `str(result)` is one line: score, interval, signature.

    All is computed from `table`, n x k, when first asked for. Where that holds sums over blocks of replies
    (`evaluate_stream`), `items` is how many were scored, and the scores of single ones raise `InputError`.
    """

    of: Metric
    table: FloatArray
    resamples: int = 10_000
    seed: int = 42
    clusters: tuple[Hashable, ...] | None = None
    items: int | None = None

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
        """The metric with every choice that moves the score; scores of different signatures are not compared."""
        return self.of.signature(self.n)

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """Every named value over the whole set, the main one first."""
        return dict(zip(self.of.values, map(float, self.of.formula(self.table.sum(axis=0))), strict=True))

    @property
    def value(self) -> float:
        """The main value."""
        return self.scores[self.of.values[0]]

    @cached_property
    def per_reply(self) -> Mapping[str, FloatArray]:
        """Every named value of each single reply, shape (n,) each."""
        if self.n != len(self.table):
            raise InputError(f"the scores of single replies were not kept: {self.n} replies were scored as a stream")
        return dict(zip(self.of.values, self.of.formula(self.table).T, strict=True))

    @property
    def per_item(self) -> FloatArray:
        """The main value of each single reply, shape (n,)."""
        return self.per_reply[self.of.values[0]]

    @cached_property
    def intervals(self) -> Mapping[str, Interval]:
        """The 95 % interval of every value, by its name: bootstrap-t over replies, Wilson's where it is a share."""
        how: dict[str, Any] = {"resamples": self.resamples, "seed": self.seed, "shares": self.of.share_places}
        found = bootstrap(self.table, self.of.formula, clusters=self.clusters, bounds=[self.of.bounds], **how)
        return dict(zip(self.of.values, found, strict=True))

    @property
    def interval(self) -> Interval:
        """The interval of the main value."""
        return self.intervals[self.of.values[0]]

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.2f}{f' {self.interval}' if self.n > 1 else ''} {self.signature}"

    def __repr__(self) -> str:  # without the bootstrap that `str` costs
        return f"<Result {self.metric}: {', '.join(f'{k} {v:.2f}' for k, v in self.scores.items())}; n {self.n}>"

    def _repr_html_(self) -> str:  # what a notebook shows
        rows = [
            f"<tr><td>{escape(self.of.labels.get(name, name))}</td><td>{value:.2f}</td>"
            f"<td>{self.intervals[name] if self.n > 1 else ''}</td></tr>"
            for name, value in self.scores.items()
        ]
        head = f"<tr><th>{escape(self.metric)}</th><th>score</th><th>95 % interval</th></tr>"
        return f"<table>{head}{''.join(rows)}</table><code>{escape(self.signature)}</code>"


def paired_test(a: Result, b: Result, *, value: str | None = None) -> PairedResult:
    """The difference A - B of one value (by default the main one), its interval and its p.

    Both are results of one metric for the same n messages, in order; resamples and seed are those of `a`. Raises
    `InputError` where the signatures (and so n) or the clusters differ, or the metric has no such value.
    """
    if a.signature != b.signature:
        raise InputError(f"scores with different signatures cannot be compared: {a.signature} and {b.signature}")
    if a.clusters != b.clusters:
        raise InputError(f"{a.metric}: the two results have different clusters, so they are not of the same replies")
    if value is not None and value not in a.of.values:
        raise InputError(f"{a.metric} has no value {value!r}; there are {', '.join(a.of.values)}")
    # A stream kept sums over blocks of replies; the other result's rows are summed into the same blocks.
    kept = counting(a.table, b.table)[:, None] if len(a.table) == len(b.table) else 1.0
    ours, theirs = (block_sums(result.table * kept, a.clusters) for result in (a, b))
    both, shares, bounds = [(ours, theirs, a.of.formula)], [a.of.share_places], [a.of.bounds]
    [found] = paired_tests(both, resamples=a.resamples, seed=a.seed, shares=shares, bounds=bounds)
    return found[a.of.values.index(value or a.of.values[0])]


class Metric(ABC):
    """One metric. Subclasses give `name`, `columns`, `values`, `description`, `choices`, `statistics` and `formula`.

    `columns` names the k statistics, `values` the v scores that the formula makes of their sums, the main one first:
    on 0-100, higher better, unless `description`, `is_percent` and `higher_is_better` say otherwise. `needs` is any of
    "references", "messages", "likelihoods", "rivals". `details` are values for CSV and JSON only, `shares` those to
    which each reply counts as 0 or 100, which get Wilson's intervals. `parts` are the metrics whose tables, side by
    side, are this one's, which counts nothing itself (`CombinedScore`); `argument` is that of `name:argument`. `bounds`
    are the ends of the scale: where every item is at the low end, a score is known up to Wilson's of none in n.
    """

    name: ClassVar[str]
    columns: tuple[str, ...]
    values: tuple[str, ...]
    description: ClassVar[str]
    is_percent: ClassVar[bool] = True
    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)  # of intervals, where items do not show the scale
    higher_is_better: ClassVar[bool] = True
    needs: frozenset[str] = frozenset()
    details: frozenset[str] = frozenset()
    shares: frozenset[str] = frozenset()
    parts: tuple[Metric, ...] = ()
    argument: str = ""

    @property
    def spelling(self) -> str:
        """What makes this metric again by `get_metric`: `ROUGE`, `BERTScore:FOLDER`."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def share_places(self) -> list[int]:
        """Where `shares` stand in `values`."""
        return [place for place, value in enumerate(self.values) if value in self.shares]

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """What a reader's table calls each value: the main one, called after its metric, by the metric's name."""
        main = {self.name.casefold(), self.name.casefold().replace("-", "_"), "score", "value"}
        title = self.name.replace("-", " ")
        return {value: title if value.casefold() in main else value.replace("_", " ") for value in self.values}

    @cached_property
    def choices(self) -> Mapping[str, object]:
        """Every choice that moves the score, by its key in the signature."""
        return {}

    @abstractmethod
    def statistics(self, texts: Texts) -> FloatArray:
        """The n x k table for n replies; finite numbers only, whatever the texts are.

        A row of zeros says that the metric has nothing to say of this reply: it does not count, for no candidate.
        """

    @abstractmethod
    def formula(self, sums: FloatArray) -> FloatArray:
        """Column sums (..., k) to scores (..., v), for any leading dimensions; defined (never NaN) on all-zero sums."""

    def signature(self, n: int) -> str:
        """The name with all `choices`, as sacrebleu does: `chrF++|norm:bn1|tok:bn1|n:300|bnbench:0.9`."""
        choices = (f"{key}:{value}" for key, value in self.choices.items())
        return "|".join([self.name, *choices, f"n:{n}", f"bnbench:{SCORING_VERSION}"])

    def score(
        self, predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]] | None = None, *,
        messages: Sequence[str] | None = None, likelihoods: npt.ArrayLike | None = None,
        clusters: Sequence[Hashable] | None = None, resamples: int = 10_000, seed: int = 42,
    ) -> Result:  # fmt: skip
        """Score n predictions, each against its reference(s); `clusters` names the dialogue each belongs to.

        Raises `InputError` on unequal lengths, no predictions, or where something the metric needs is not given.
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
        """Raise `InputError` when something that it, or a part of it, needs is missing."""
        for metric in (*self.parts, self):
            for need in sorted(metric.needs):
                if getattr(texts, need) is None:
                    raise InputError(f"{metric.name} needs {need}, one per reply: pass {need}=...")


class MeanMetric(Metric):
    """A metric of means over replies, times `scale`; subclasses give `per_reply`. The last column counts replies.

    A reply of which one of its numbers is NaN or None does not count: the means are over the others.
    """

    scale: ClassVar[float] = 100

    @abstractmethod
    def per_reply(self, texts: Texts) -> FloatArray:
        """The numbers of each reply, n x (k - 1); 0-1 where `scale` is 100."""

    def statistics(self, texts: Texts) -> FloatArray:
        """The numbers of each reply, and 1 for the count; 0 alone where it has none."""
        self.check(texts)
        given = np.asarray(self.per_reply(texts), dtype=np.float64)
        known = ~np.isnan(given).any(axis=1, keepdims=True)
        return np.hstack([np.where(known, given, 0.0), known])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., k) to (..., k - 1): `scale` times each sum over the number of replies."""
        return self.scale * ratio(sums[..., :-1], sums[..., -1:])


def table_of(metric: Metric, tables: Mapping[str, FloatArray]) -> FloatArray:
    """A metric's (n, k) table out of those that were counted: its own, or its parts' side by side."""
    names = [part.name for part in metric.parts or (metric,)]
    if missing := [name for name in names if name not in tables]:
        raise InputError(f"{metric.name}{' score' if metric.parts else ''}: {', '.join(missing)} was not scored")
    return np.hstack([tables[name] for name in names]) if metric.parts else tables[names[0]]


@dataclass(frozen=True)
class Texts:
    """n replies and what they are scored against, in the same order.

    `references` is one tuple of strings per reply, `messages` what each reply answers, `likelihoods` an (n, 4) array
    of nll (nats), tokens, bytes, characters of the reference, `cut` whether generation stopped at the token limit.
    What metrics derive from the texts (tokens, n-gram counts) is made once and shared through `derived`.
    """

    replies: tuple[str, ...]
    references: tuple[tuple[str, ...], ...] | None = None
    messages: tuple[str, ...] | None = None
    likelihoods: FloatArray | None = None
    cut: tuple[bool, ...] | None = None
    rivals: tuple[tuple[str, ...], ...] | None = None
    _derived: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("references", "messages", "likelihoods", "cut", "rivals"):
            if (given := getattr(self, name)) is not None and len(given) != len(self.replies):
                counts = f"{len(self.replies)} replies but {len(given)} {name}"
                raise InputError(f"{counts}: give one per reply, in the same order")
        for row, references in enumerate(self.references or ()):
            if not references:
                raise InputError(f"row {row}: no reference; give at least one (an empty string is allowed)")
        every = (text for references in self.references or () for text in references)
        texts: dict[str, Iterable[str]] = {"reply": self.replies, "message": self.messages or (), "reference": every}
        for what, some in texts.items():
            for row, text in enumerate(some):
                if not isinstance(text, str):
                    raise InputError(f"{what} {row} is {type(text).__name__}, not text: {text!r}")

    @classmethod
    def of(
        cls, replies: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]] | None = None,
        messages: Sequence[str] | None = None, likelihoods: npt.ArrayLike | None = None,
        cut: Sequence[bool] | None = None,
    ) -> Texts:  # fmt: skip
        """Texts from any sequences: lists, tuples, arrays, columns of a data frame.

        Raises `InputError` for what iterates over something else than the texts (one string, a dict, a set, a whole
        data frame), for unequal lengths, and for references in sacrebleu's layout, a list of streams.
        """
        rows, given = sequence("replies", replies), sequence("references", () if references is None else references)
        found: list[tuple[str, ...]] = []
        for row, one in enumerate(given):
            if not isinstance(one, str | Iterable):
                raise InputError(f"row {row}: the reference is {type(one).__name__}, not text")
            found.append((one,) if isinstance(one, str) else sequence(f"row {row}: references", one))
        # sacrebleu wants a list of streams that each have one reference for every reply. Where that can be told apart
        # it is refused, since each reply would be scored against another's references. It cannot where there are as
        # many streams as replies; with one reply both layouts mean the same.
        n, listed = len(rows), not any(isinstance(one, str) for one in given)
        if listed and n > 0 and found and all(len(texts) == n for texts in found):
            streams, hint = f"references are {len(found)} lists of {n} texts for {n} replies", "list(zip(*references))"
            if len(found) != n:
                how = "a list of streams. Give the references of each reply together"
                raise InputError(f"{streams}, as sacrebleu takes them: {how}: {hint}")
            if n > 1:
                how = "read as the references of each reply; where they are streams, as sacrebleu takes them, give"
                _log.warning("%s, %s %s", streams, how, hint)
        return cls(
            rows, None if references is None else tuple(found),
            None if messages is None else sequence("messages", messages),
            None if likelihoods is None else np.asarray(likelihoods, dtype=np.float64),
            None if cut is None else sequence("cut", cut),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.replies)

    def clusters(self, given: Sequence[Hashable] | None = None) -> tuple[Hashable, ...] | None:
        """The cluster of each reply, if given; `InputError` where there is no reply, or not one cluster for each."""
        if not self.replies:
            raise InputError("there is no reply to score")
        clusters = None if given is None else sequence("clusters", given)
        if clusters is not None and len(clusters) != len(self):
            raise InputError(f"{len(self)} replies but {len(clusters)} clusters: name the cluster of each reply")
        return clusters

    def parts(self, size: int = PART) -> Iterator[Texts]:
        """The texts, `size` replies at a time, with nothing derived yet."""
        columns = (self.replies, self.references, self.messages, self.likelihoods, self.cut, self.rivals)
        for at in range(0, len(self), size):
            yield Texts(*(None if one is None else one[at : at + size] for one in columns))  # type: ignore[arg-type]

    def derived(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once for each key."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]  # type: ignore[no-any-return]


def statistics(texts: Texts, metrics: Sequence[Metric], progress: Progress = None) -> list[FloatArray]:
    """The table of each metric, (n, k) in the order of `metrics`, counted some replies at a time.

    Raises `InputError` for something that a metric needs and lacks, for parts of a combined score in two settings, and
    for a metric, most likely a plug-in's, that fails or gives no finite number for each of its columns.
    """
    for metric in metrics:
        metric.check(texts)
    counted = {metric.name: metric for metric in metrics if not metric.parts}
    for part in (part for metric in metrics for part in metric.parts):
        other = counted.setdefault(part.name, part)
        if other is not part and other.signature(0) != part.signature(0):
            raise InputError(f"a combined score reads {part.signature(0)}; beside it stands {other.signature(0)}")
    tables: dict[str, list[FloatArray]] = {name: [np.empty((0, len(m.columns)))] for name, m in counted.items()}
    for piece in texts.parts():
        for name, metric in counted.items():
            try:
                table, shape = metric.statistics(piece), (len(piece), len(metric.columns))
                if table.shape != shape or not np.isfinite(table).all():
                    raise ValueError(f"its table must be {len(piece)} x {len(metric.columns)} finite numbers")
                tables[name].append(table)
            except BnbenchError:
                raise
            except Exception as error:  # whatever a stranger's metric raises
                raise InputError(f"the metric {metric.spelling} fails: {type(error).__name__}: {error}") from error
        if progress is not None:
            progress(len(piece))
    whole = {name: np.vstack(parts) for name, parts in tables.items()}
    return [table_of(metric, whole) for metric in metrics]


def sequence(what: str, given: Any) -> tuple[Any, ...]:
    """The items of a sequence; `InputError` for what is none, or iterates over something else than its items."""
    kind = type(given).__name__
    faults = (
        (isinstance(given, str | bytes), "one string; give a list of strings, one per reply"),
        # a data frame of pandas or polars, a table of pyarrow
        (hasattr(given, "columns"), f'a {kind}, whose column names would be scored; give one column: frame["{what}"]'),
        (isinstance(given, Mapping), f"a {kind}, whose keys would be scored; give a list of its values"),
        (isinstance(given, Set), f"a {kind}, which has no order; give a list, one item per reply"),
        (not isinstance(given, Iterable), f"{kind}; give a list, one item per reply"),
    )
    for wrong, why in faults:
        if wrong:
            raise InputError(f"{what} is {why}")
    return tuple(given)


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> FloatArray:
    """Elementwise numerator / denominator, 0 where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.divide(top, bottom, out=np.zeros(top.shape), where=bottom != 0)  # type: ignore[no-any-return]
