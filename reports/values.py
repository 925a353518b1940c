"""Numbers, names and values as a reader sees them: decimals that fit a column, true minus signs, and never a NaN."""

from __future__ import annotations

import math
import re
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from bnbench.reports.ranking import Comparison, Ranking, Score

ABSENT = "–"
MINUS = "\N{MINUS SIGN}"
FLAG = "⚑"
_KEPT = "\u200c\u200d"  # joiners that spell Bengali


def number(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """`−1.25`; a dash for None and for what is not finite; an exponent where a plain number would be unreadable or,
    with four decimals, would look like 0.
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if abs(value) >= 1e7:
        return f"{value:{'+' if sign else ''}.2e}".replace("-", MINUS)
    rounded = round(value, decimals) or 0.0
    if not rounded and decimals >= 4 and abs(value) > 1e-9:
        return f"{value:{'+' if sign else ''}.0e}".replace("-", MINUS)
    return f"{rounded:{'+' if sign and rounded else ''},.{decimals}f}".replace("-", MINUS)


def p_value(p: float | None) -> str:
    """Four decimals under 0.001, three under 0.1, two above."""
    if p is None or not math.isfinite(p):
        return ABSENT
    if p < 0.00005:
        return "<0.0001"
    return f"{p:.{4 if p < 0.001 else 3 if p < 0.1 else 2}f}"


def p_phrase(p: float | None) -> str:
    """`p = 0.012` or `p < 0.0001`."""
    text = p_value(p)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def counted(n: int, noun: str) -> str:
    """`1 item`, `1,200 items`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def places(best: int, worst: int) -> str:
    """A range of ranks: `1` or `1–3`."""
    return str(best) if best == worst else f"{best}–{worst}"


def name(text: str, limit: int = 60) -> str:
    """A name on one line: controls spelt out, right-to-left letters isolated, its middle left out beyond `limit`."""
    hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in _KEPT}
    visible = "".join(f"\\u{ord(c):04x}" if c in hidden else c for c in text)
    if len(visible) > limit:
        head = limit * 2 // 3
        visible = f"{visible[:head]}…{visible[head + 1 - limit :]}"
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in visible):
        return f"\N{FIRST STRONG ISOLATE}{visible}\N{POP DIRECTIONAL ISOLATE}"
    return visible


def storable(text: str) -> str:
    """Text that any UTF-8 file and any HTML parser takes: lone surrogates and control characters become U+FFFD."""
    return re.sub("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f]", "\ufffd", text)


@dataclass(frozen=True)
class Value:
    """One value of one metric, ready to be a table's row."""

    metric: str
    name: str
    label: str
    higher_is_better: bool
    decimals: int
    is_primary: bool
    flag: str
    """Why it is not to be trusted as a measure of empathy, where an audit on record says so; else empty."""

    @property
    def flagged(self) -> str:
        """The label, with a flag where there is one."""
        return f"{self.label} {FLAG}" if self.flag else self.label

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return "↑" if self.higher_is_better else "↓"

    def number(self, value: float | None, *, sign: bool = False) -> str:
        """A score or difference with this value's decimals."""
        return number(value, self.decimals, sign=sign)

    def interval(self, of: Score | Comparison) -> str:
        """`[1.0, 3.2]` of a score, or of a difference with its signs; a dash where there is none."""
        if not (math.isfinite(of.low) or math.isfinite(of.high)):
            return ABSENT
        low, high = (self.number(end, sign=isinstance(of, Comparison)) for end in (of.low, of.high))
        return f"[{low}, {high}]"


def value_of(ranking: Ranking, metric: str, name: str) -> Value:
    """One value of a metric of the ranking.

    It has so many decimals that its typical interval shows two digits of the half-width; between 1 and 4.
    """
    is_primary = (metric, name) == (ranking.primary, ranking.primary_value)
    scores = [score for s in ranking.standings if (score := s.score(metric, name))]
    versus = [c for s in ranking.standings if (c := s.versus(metric, name))]
    decimals = 2
    differences: Sequence[Score | Comparison] = [*(ranking.pairs if is_primary else ()), *versus]
    for intervals in (differences, scores):
        halves = [h for x in intervals if (h := (x.high - x.low) / 2) > 1e-9 and math.isfinite(h)]
        if halves:
            decimals = min(4, max(1, 1 - math.floor(math.log10(statistics.median(halves)))))
            break
    return Value(
        metric,
        name,
        ranking.metrics[metric].labels[name],
        ranking.directions[metric],
        decimals,
        is_primary,
        flag=next(((t.beaten or {}).get(name, "") for t in ranking.trust if t.metric == metric), ""),
    )


def primary_value(ranking: Ranking) -> Value:
    """The value that ranks."""
    return value_of(ranking, ranking.primary, ranking.primary_value)


def shown_values(ranking: Ranking) -> list[Value]:
    """The values that tables show, the primary first: each metric's main one, and others that are not all 0."""
    shown = [
        value_of(ranking, metric, name)
        for metric, names in ranking.values.items()
        for name in names
        if name == names[0] or not (name in ranking.metrics[metric].details or _all_zero(ranking, metric, name))
    ]
    return sorted(shown, key=lambda v: not v.is_primary)


def flag_notes(values: Sequence[Value]) -> list[str]:
    """What the flags say, for a legend."""
    return [f"{FLAG} not to be trusted as a measure of empathy: {v.label} is {v.flag}" for v in values if v.flag]


def zeros(ranking: Ranking) -> str:
    """The line that names the values which tables leave out because they are 0 for every candidate; "" for none."""
    named = [
        ranking.metrics[metric].labels[name]
        for metric, names in ranking.values.items()
        for name in names[1:]
        if name not in ranking.metrics[metric].details and _all_zero(ranking, metric, name)
    ]
    who = " for every candidate" if len(ranking.standings) > 1 else ""
    return f"0{who}, and therefore not listed: {'; '.join(named)}" if named else ""


def _all_zero(ranking: Ranking, metric: str, name: str) -> bool:
    scores = [score for s in ranking.standings if (score := s.score(metric, name))]
    return all(end == 0 or math.isnan(end) for score in scores for end in (score.low, score.value, score.high))
