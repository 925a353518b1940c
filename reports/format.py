"""Numbers and names as a reader sees them: one number of decimals a column, true minus signs, and never a NaN."""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Iterable

from bnbench.reports.ranking import Comparison, Ranking, Score

ABSENT = "–"
MINUS = "\N{MINUS SIGN}"
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


def interval(low: float, high: float, decimals: int, *, sign: bool = False, form: str = "[{}, {}]") -> str:
    """`[1.0, 3.2]`; a dash where there is none."""
    if not (math.isfinite(low) or math.isfinite(high)):
        return ABSENT
    return form.format(number(low, decimals, sign=sign), number(high, decimals, sign=sign))


def counted(n: int, noun: str) -> str:
    """`1 item`, `1,200 items`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def percent(share: float | None) -> str:
    """A share of 1 as `12.5 %`."""
    return ABSENT if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def places(best: int, worst: int) -> str:
    """A range of ranks: `1` or `1–3`."""
    return str(best) if best == worst else f"{best}–{worst}"


def name(text: str, limit: int = 60) -> str:
    """A name on one line: controls spelt out, right-to-left letters isolated, its middle left out beyond `limit`."""
    visible = "".join(_visible(c) for c in text)
    if len(visible) > limit:
        head = limit * 2 // 3
        visible = f"{visible[:head]}…{visible[head + 1 - limit :]}"
    if any(unicodedata.bidirectional(c) in ("R", "AL") for c in visible):
        return f"\N{FIRST STRONG ISOLATE}{visible}\N{POP DIRECTIONAL ISOLATE}"
    return visible


def _visible(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _KEPT
    return f"\\u{ord(character):04x}" if hidden else character


def storable(text: str) -> str:
    """Text that any UTF-8 file and any HTML parser takes: lone surrogates and control characters become U+FFFD."""
    return "".join("\ufffd" if _unstorable(c) else c for c in text)


def _unstorable(character: str) -> bool:
    return "\ud800" <= character <= "\udfff" or (character < " " and character not in "\n\t") or character == "\x7f"


def decimals(ranking: Ranking, metric: str, value: str) -> int:
    """So many that the typical interval of this value shows two digits of its half-width; between 1 and 4."""
    pairs = ranking.pairs if (metric, value) == (ranking.primary, ranking.primary_value) else ()
    differences = [*pairs, *(c for s in ranking.standings if (c := s.versus(metric, value)))]
    width = _typical_width(differences) or _typical_width(x for s in ranking.standings if (x := s.score(metric, value)))
    return 2 if width is None else min(4, max(1, 1 - math.floor(math.log10(width))))


def _typical_width(of: Iterable[Score | Comparison]) -> float | None:
    halves = [half for one in of if (half := (one.high - one.low) / 2) > 1e-9 and math.isfinite(half)]
    return statistics.median(halves) if halves else None
