"""Numbers, names and values as a reader sees them: decimals that fit a column, true minus signs, and never a NaN."""

import math
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from bnbench.reports.ranking import Comparison, Ranking, Score

ABSENT = "–"
FLAG = "⚑"  # stands where a metric is not to be trusted
NOT_INFORMATIVE = "∅"  # stands where a candidate does not pass a yardstick
MINUS = "\N{MINUS SIGN}"
_KEPT = "\u200c\u200d"  # joiners that spell Bengali


def number(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """`−1.25`; a dash for what is not finite; an exponent where it would be too long, or look like 0 in 4 decimals."""
    if value is None or not math.isfinite(value):
        return ABSENT
    rounded, plus = round(value, decimals) or 0.0, "+" if sign else ""
    shown = f"{rounded:{plus if rounded else ''},.{decimals}f}"
    if abs(value) >= 1e7:
        shown = f"{value:{plus}.2e}"
    elif not rounded and decimals >= 4 and abs(value) > 1e-9:
        shown = f"{value:{plus}.0e}"
    return shown.replace("-", MINUS)


def p_value(p: float | None) -> str:
    """Four decimals under 0.001, three under 0.1, two above; never 0.050 of what is less."""
    if p is None or not math.isfinite(p):
        return ABSENT
    if 0.0495 <= p < 0.05:
        return "<0.05"
    return "<0.0001" if p < 0.00005 else f"{p:.{4 if p < 0.001 else 3 if p < 0.1 else 2}f}"


def counted(n: int, noun: str) -> str:
    """`1 item`, `1,200 items`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def items_of(ranking: Ranking) -> str:
    """`40 items`, `40 items in 12 dialogues`."""
    within = "" if ranking.dialogues == ranking.n else f" in {counted(ranking.dialogues, 'dialogue')}"
    return counted(ranking.n, "item") + within


def name(text: str, limit: int = 60) -> str:
    """A name on one line: controls spelt out, right-to-left letters isolated, its middle left out beyond `limit`."""
    hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in _KEPT}
    visible = "".join(f"\\u{ord(c):04x}" if c in hidden else c for c in text)
    letters = regex.findall(r"\X", visible)
    if len(letters) > limit:
        head = limit * 2 // 3
        visible = f"{''.join(letters[:head])}…{''.join(letters[head + 1 - limit :])}"
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in visible):
        return f"\N{FIRST STRONG ISOLATE}{visible}\N{POP DIRECTIONAL ISOLATE}"
    return visible


@dataclass(frozen=True)
class Value:
    """One value of one metric, ready to be a table's row."""

    metric: str
    name: str
    label: str
    flagged: str  # the label with how many items it is of, where not of all, and with ⚑
    flag: str  # why it is not to be trusted as a measure of empathy, else empty
    higher_is_better: bool
    arrow: str
    decimals: int
    has_own_panel: bool  # as the primary and the combined one have

    def number(self, value: float | None, *, sign: bool = False) -> str:
        """A score or difference with this value's decimals."""
        return number(value, self.decimals, sign=sign)

    def interval(self, of: Score | Comparison) -> str:
        """`[1.0, 3.2]` of a score, or of a difference with its signs; a dash where there is none."""
        if not (math.isfinite(of.low) or math.isfinite(of.high)):
            return ABSENT
        is_difference = isinstance(of, Comparison)
        # The interval of a clear difference does not hold 0: an end that rounds to it has more decimals.
        near = 4 if isinstance(of, Comparison) and of.better is not None else self.decimals
        ends = ((end, self.decimals if round(end, self.decimals) else near) for end in (of.low, of.high))
        low, high = (number(end, decimals, sign=is_difference) for end, decimals in ends)
        return f"[{low}, {high}]"


def value_of(ranking: Ranking, metric: str = "", name: str = "") -> Value:
    """One value of a metric; its main one where none is named, and the one that ranks where no metric is."""
    metric = metric or ranking.primary
    name = name or ranking.values[metric][0]
    made, higher = ranking.metrics[metric], ranking.directions[metric]
    is_primary = (metric, name) == (ranking.primary, ranking.primary_value)
    label = made.labels[name]
    flag = next(((t.beaten or {}).get(name, "") for t in ranking.trust if t.metric == metric), "")
    # The typical interval, of differences where there are any, shows two digits of its half-width.
    versus = [c for s in ranking.standings if (c := s.versus(metric, name))]
    differences: Sequence[Score | Comparison] = [*(ranking.pairs if is_primary else ()), *versus]
    decimals = 2
    for intervals in (differences, [score for s in ranking.standings if (score := s.score(metric, name))]):
        if halves := [h for x in intervals if (h := (x.high - x.low) / 2) > 1e-9 and math.isfinite(h)]:
            decimals = min(4, max(1, 1 - math.floor(math.log10(statistics.median(halves)))))
            break
    n, arrow = len(ranking.items[metric]), "↑" if higher else "↓"
    flagged = f"{label}{f' (n = {n})' if n < len(ranking.runs[0].examples) else ''}{f' {FLAG}' if flag else ''}"
    return Value(metric, name, label, flagged, flag, higher, arrow, decimals, is_primary or bool(made.parts))


def shown_values(ranking: Ranking) -> list[Value]:
    """The values that tables show, the primary first: the one that ranks, and all others that are not 0 for all."""
    shown = []
    for metric, names in ranking.values.items():
        for name in names:
            scores = [score for s in ranking.standings if (score := s.score(metric, name))]
            known = [x for score in scores for x in (score.low, score.value, score.high) if not math.isnan(x)]
            is_further = name != names[0] and (not known or name in ranking.metrics[metric].details)
            # A share with no hit has an interval that is not 0.
            is_zero = known and all(score.value == 0 for score in scores)
            if not is_further and (not is_zero or (metric, name) == (ranking.primary, names[0])):
                shown.append(value_of(ranking, metric, name))
    return shown


def legend(ranking: Ranking, values: Sequence[Value]) -> tuple[list[str], list[str]]:
    """What the flags say, and the line that names the values left out because they are 0 for all, if there are any."""
    flags = [f"{FLAG} not to be trusted as a measure of empathy: {v.label} is {v.flag}" for v in values if v.flag]
    if any(ranking.unpassed(s.candidate, metric) for s in ranking.standings for metric in ranking.values):
        why = "not better than replies that nobody made for the message"
        flags.append(f"{NOT_INFORMATIVE} not informative here: {why}")
    shown, absent = {(v.metric, v.name) for v in values}, list[str]()
    for metric, made in ranking.metrics.items():
        absent += [made.labels[v] for v in made.values if (metric, v) not in shown and v not in made.details]
    who = " for every candidate" if len(ranking.standings) > 1 else ""
    return flags, [f"0{who}, and therefore not listed: {'; '.join(absent)}"] if absent else []
