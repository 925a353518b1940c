"""What a metric is: a table of additive statistics, one row per reply, and a formula on column sums.

Everything else follows from it. A corpus score is `formula(table.sum(0))`; a bootstrap over items is one matrix product
`weights (R x n) @ table (n x k)`; two candidates that share the weights are compared in pairs; and a cached table is all that a
ranking, a report or a later comparison needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from bnbench.metrics.errors import InputError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval in the units of the score it belongs to; `level` is its coverage, 0.95 by default."""

    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Result:
    """What scoring n replies with one metric gives.

    `table` is the n x k statistics, `per_item` the n scores of the single replies (main value), `scores` every named value of
    the metric over the whole set, `value` and `interval` the main one (`metric.values[0]`). `str(result)` is one line.
    """

    metric: str
    value: float
    interval: Interval
    scores: Mapping[str, float]
    per_item: FloatArray = field(repr=False)
    table: FloatArray = field(repr=False)
    signature: str = ""

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.value:.2f} [{self.interval.low:.2f}, {self.interval.high:.2f}] {self.signature}"
        )


class Metric(ABC):
    """One metric. Subclasses give `name`, `columns`, `values`, `description`, `statistics` and `formula`.

    `columns` names the k statistics; `values` names the v scores that the formula makes of their sums, the main one first.
    Scores are on 0-100, higher better, unless `description` says otherwise and `higher_is_better` is False.
    `needs` says what beside the replies must be given: any of "references", "messages", "likelihoods".
    """

    name: ClassVar[str]
    columns: tuple[str, ...]
    values: tuple[str, ...]
    description: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def statistics(self, texts: Texts) -> FloatArray:
        """The n x k table for n replies; finite numbers only, whatever the texts are."""

    @abstractmethod
    def formula(self, sums: FloatArray) -> FloatArray:
        """Column sums (..., k) to scores (..., v), for any leading dimensions; defined (never NaN) on all-zero sums."""

    @abstractmethod
    def signature(self, n: int) -> str:
        """Every choice that moves the score, as sacrebleu does: `chrF++|norm:bn1|tok:bn1|n:300|bnbench:0.1`."""


@dataclass(frozen=True)
class Texts:
    """n replies and what they are scored against: `references` one tuple per reply, `messages` what each one answers."""

    replies: tuple[str, ...]
    references: tuple[tuple[str, ...], ...] | None = None
    messages: tuple[str, ...] | None = None
    likelihoods: FloatArray | None = None
    hit_limit: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        for name, given in (("references", self.references), ("messages", self.messages)):
            if given is not None and len(given) != len(self.replies):
                raise InputError(f"{len(self.replies)} replies but {len(given)} {name}: give one per reply, in the same order")

    def __len__(self) -> int:
        return len(self.replies)


def as_references(references: Sequence[str] | Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """One reference per reply, or several, as one tuple per reply."""
    return tuple((r,) if isinstance(r, str) else tuple(r) for r in references)
