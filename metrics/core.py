"""What a metric is: a table of additive statistics, one row per reply, and a formula on column sums.

Everything else follows from it. A corpus score is `formula(table.sum(0))`; a bootstrap over items is one matrix
product `weights (R x n) @ table (n x k)`; two candidates that share the weights are compared in pairs; and a cached
table is all that a ranking, a report or a later comparison needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from bnbench.metrics.errors import InputError
from bnbench.metrics.significance import Interval, bootstrap

FloatArray = npt.NDArray[np.float64]
Made = TypeVar("Made")

MECHANISMS = ("emotional_reaction", "interpretation", "exploration")
"""Of empathy, after EPITOME: the values by which empathy metrics name what they say of each."""

SCORING_VERSION = "0.2"
"""Part of every signature. It moves when a score can move, not with each release, so that old and new scores stay
comparable.
"""


@dataclass(frozen=True, repr=False)
class Result:
    """What scoring n replies with one metric gives. `str(result)` is one line: score, interval, signature.

    `table` is the n x k statistics; everything else is computed from it when first asked for, so that a score whose
    interval nobody reads costs no bootstrap.
    """

    of: Metric = field(repr=False)
    table: FloatArray = field(repr=False)
    resamples: int = 10_000
    seed: int = 42
    level: float = 0.95
    clusters: Sequence[Hashable] | None = field(default=None, repr=False)
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
    def per_item(self) -> FloatArray:
        """The main value of each single reply, shape (n,); `InputError` where only sums were kept."""
        if self.n != len(self.table):
            raise InputError(f"the scores of single replies were not kept: {self.n} replies were scored as a stream")
        scores: FloatArray = self.of.formula(self.table)[:, 0]
        return scores

    @property
    def mechanisms(self) -> FloatArray:
        """Each reply's score of the three mechanisms of empathy, (n, 3), 0-100: emotional reaction, interpretation,
        exploration. `InputError` where the metric has none.
        """
        places = [place for place, name in enumerate(self.of.values) if name in MECHANISMS]
        if len(places) < len(MECHANISMS):
            raise InputError(
                f'{self.signature}: it has no mechanisms, as KeywordEmpathy("bn") and SemanticEmpathy have'
            )
        return self.of.formula(self.table)[:, places]

    @cached_property
    def intervals(self) -> Mapping[str, Interval]:
        """The percentile bootstrap interval of every value, by its name."""
        intervals = bootstrap(
            self.table,
            self.of.formula,
            resamples=self.resamples,
            seed=self.seed,
            level=self.level,
            clusters=self.clusters,
        )
        return dict(zip(self.of.values, intervals, strict=True))

    @property
    def interval(self) -> Interval:
        """The interval of the main value."""
        return self.intervals[self.of.values[0]]

    def __str__(self) -> str:
        ends = f" [{self.interval.low:.2f}, {self.interval.high:.2f}]" if self.n > 1 else ""  # one item has no interval
        return f"{self.metric} {self.value:.2f}{ends} {self.signature}"

    def __repr__(self) -> str:
        """Every value, without the bootstrap that `str` costs."""
        return f"<Result {self.metric}: {', '.join(f'{k} {v:.2f}' for k, v in self.scores.items())}; n {self.n}>"


class Metric(ABC):
    """One metric. Subclasses give `name`, `columns`, `values`, `description`, `statistics` and `formula`.

    `columns` names the k statistics; `values` names the v scores that the formula makes of their sums, the main one
    first. Scores are on 0-100, higher better, unless `description` says otherwise and `higher_is_better` is False.
    `needs` says what beside the replies must be given: any of "references", "messages", "likelihoods".
    """

    name: ClassVar[str]
    columns: tuple[str, ...]
    values: tuple[str, ...]
    description: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()
    argument: str = ""
    """What `get_metric` was given after the colon of `name:argument`."""

    @property
    def spelling(self) -> str:
        """What `get_metric` must be given to make this metric again: `ROUGE`, `BERTScore:FOLDER`."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @abstractmethod
    def statistics(self, texts: Texts) -> FloatArray:
        """The n x k table for n replies; finite numbers only, whatever the texts are."""

    @abstractmethod
    def formula(self, sums: FloatArray) -> FloatArray:
        """Column sums (..., k) to scores (..., v), for any leading dimensions; defined (never NaN) on all-zero sums."""

    @abstractmethod
    def signature(self, n: int) -> str:
        """Every choice that moves the score, as sacrebleu does: `chrF++|norm:bn1|tok:bn1|n:300|bnbench:0.2`."""

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
        self,
        texts: Texts,
        clusters: Sequence[Hashable] | None = None,
        resamples: int = 10_000,
        seed: int = 42,
    ) -> Result:
        """Score texts that several metrics share; raises as `score` does."""
        if not len(texts):
            raise InputError(f"{self.name}: there is no reply to score")
        if clusters is not None and len(clusters) != len(texts):
            raise InputError(f"{len(texts)} replies but {len(clusters)} clusters: name the cluster of each reply")
        self.check(texts)
        return Result(self, self.statistics(texts), resamples, seed, clusters=clusters)

    def check(self, texts: Texts) -> None:
        """Raise `InputError` when something in `needs` is missing."""
        for need in sorted(self.needs):
            if getattr(texts, need) is None:
                raise InputError(f"{self.name} needs {need}, one per reply: pass {need}=...")


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
        _strings("reply", self.replies)
        _strings("message", self.messages or ())
        for row, references in enumerate(self.references or ()):
            if not references:
                raise InputError(f"row {row}: no reference; give at least one (an empty string is allowed)")
        _strings("reference", self.reference_texts())

    @classmethod
    def of(
        cls,
        replies: Sequence[str],
        references: Sequence[str] | Sequence[Sequence[str]] | None = None,
        messages: Sequence[str] | None = None,
        likelihoods: npt.ArrayLike | None = None,
        cut: Sequence[bool] | None = None,
    ) -> Texts:
        """Texts from any sequences; a single string where a sequence is meant is an `InputError`."""
        for name, given in (("replies", replies), ("references", references), ("messages", messages)):
            if isinstance(given, str):
                raise InputError(f"{name} is one string; give a list of strings, one per reply")
        return cls(
            tuple(replies),
            None if references is None else as_references(references),
            None if messages is None else tuple(messages),
            None if likelihoods is None else np.asarray(likelihoods, dtype=np.float64),
            None if cut is None else tuple(cut),
        )

    def __len__(self) -> int:
        return len(self.replies)

    def part(self, rows: slice) -> Texts:
        """The texts of some rows, with nothing derived yet."""
        return Texts(
            self.replies[rows],
            None if self.references is None else self.references[rows],
            None if self.messages is None else self.messages[rows],
            None if self.likelihoods is None else self.likelihoods[rows],
            None if self.cut is None else self.cut[rows],
        )

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


def as_references(references: Sequence[str] | Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """One reference per reply, or several, as one tuple per reply."""
    return tuple(_one_row(row, r) for row, r in enumerate(references))


def _one_row(row: int, references: object) -> tuple[str, ...]:
    if isinstance(references, str):
        return (references,)
    if not isinstance(references, Iterable):
        raise InputError(f"row {row}: the reference is {type(references).__name__}, not text")
    return tuple(references)


def _strings(what: str, texts: Iterable[object]) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{what} {row} is {type(text).__name__}, not text: {text!r}")


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
