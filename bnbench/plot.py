"""Where marks go in the report's drawings, in per cent of the width, so that one drawing fits a phone and a wall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bnbench.reports.ranking import Comparison, Ranking, Score

_MARGIN = 3.0  # per cent left free on each side


@dataclass(frozen=True)
class Bar:
    """An interval and its point, in per cent of the width."""

    low: float
    point: float
    high: float


@dataclass(frozen=True)
class Tick:
    """A mark of the axis: its place in per cent, its value and the decimals that it needs."""

    at: float
    value: float
    decimals: int


@dataclass(frozen=True)
class Plot:
    """One bar a candidate (None where a number is not finite), the axis, and the base's point as a guide."""

    bars: tuple[Bar | None, ...]
    ticks: tuple[Tick, ...]
    guide: float | None


def interval_plot(ranking: Ranking) -> Plot:
    """All candidates on the primary value, in the order of the ranking."""
    # One item has no interval: its score is drawn as a point.
    known = [ranking.primary_score(s) for s in ranking.standings]
    scores = [s if _is_finite(s) else replace(s, low=s.value, high=s.value) for s in known]
    ends = [x for s in scores if _is_finite(s) for x in (s.low, s.value, s.high)]
    scale = _Scale.over(ends or [0.0, 1.0])
    bars = tuple(Bar(scale.at(s.low), scale.at(s.value), scale.at(s.high)) if _is_finite(s) else None for s in scores)
    base = next((b for s, b in zip(ranking.standings, bars, strict=True) if s.candidate == ranking.base), None)
    return Plot(bars, scale.ticks(), base.point if base and len(bars) > 1 else None)


def forest_bars(comparisons: Sequence[Comparison | None], higher_is_better: bool) -> list[Bar | None]:
    """Differences of one value around a common zero at 50 %, turned so that right is better."""
    ends = [abs(x) for c in comparisons if c and _is_finite(c) for x in (c.low, c.difference, c.high)]
    reach = max(ends, default=0.0) or 1.0
    half = (50.0 - _MARGIN) / reach * (1 if higher_is_better else -1)

    def bar(c: Comparison) -> Bar:
        low, high = sorted((50 + half * c.low, 50 + half * c.high))
        return Bar(low, 50 + half * c.difference, high)

    return [bar(c) if c and _is_finite(c) else None for c in comparisons]


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> _Scale:
        low, high = min(values), max(values)
        room = (high - low) * 0.04 or max(abs(low) * 0.1, 1.0)
        return cls(low - room, high + room)

    def at(self, value: float) -> float:
        return _MARGIN + (value - self.low) / (self.high - self.low) * (100 - 2 * _MARGIN)

    def ticks(self, about: int = 4) -> tuple[Tick, ...]:
        """Round numbers, some four of them."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
        decimals = max(0, -math.floor(math.log10(step)) + (1 if step / power == 2.5 else 0))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return tuple(Tick(self.at(i * step), i * step, decimals) for i in range(first, last + 1))


def _is_finite(of: Score | Comparison) -> bool:
    point = of.value if isinstance(of, Score) else of.difference
    return all(map(math.isfinite, (of.low, point, of.high)))
