"""How the values of the metrics are named for a reader, which of them are shown at first, and which way is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnbench.reports.format import decimals
from bnbench.reports.ranking import Comparison, Ranking

FLAG = "⚑"
_DETAILS = ("precision", "recall", "_p", "_r", "rougeLsum", "bits_per_byte")  # in the CSV and JSON, not in tables
_LABELS = {
    "rougeL": "ROUGE-L",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeLsum": "ROUGE-Lsum",
    "degenerate": "broken replies, %",
    "empty": "empty, %",
    "cut": "cut at the limit, %",
    "replacement": "broken characters, %",
    "template": "template remnants, %",
    "loop": "looping, %",
    "wrong_script": "wrong script, %",
    "copy": "copy of the message, %",
    "unfinished": "unfinished, %",
    "too_short": "too short, %",
    "too_long": "too long, %",
    "foreign_letters": "foreign letters, %",
    "repeated_4grams": "repeated 4-grams, %",
}


def label(metric: str, value: str) -> str:
    """`ROUGE-L`, `bits per character`; the metric's name for a value called after it."""
    if value.casefold() in (metric.casefold(), metric.casefold().replace("-", "_"), "score", "value"):
        return metric.replace("-", " ")
    named = _LABELS.get(value, value.replace("_", " "))
    # Two scorers measure the same three mechanisms: each says by which means.
    return f"{named} ({metric.removesuffix('-empathy')})" if metric.endswith("-empathy") else named


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

    def mark(self, comparison: Comparison | None) -> str:
        """The outcome as a sign and a word, so that neither colour nor sign is needed alone."""
        if comparison is None:
            return ""
        return {True: "▲ better", False: "▼ worse", None: "· open"}[comparison.better]


def shown_values(ranking: Ranking) -> list[Value]:
    """The values that tables show, the primary first: each metric's main one, and others that are not all 0."""
    found = [
        value_of(ranking, m, name)
        for m, names in ranking.values.items()
        for name in names
        if _is_shown(ranking, m, name)
    ]
    return sorted(found, key=lambda v: not v.is_primary)


def flag_notes(values: Sequence[Value]) -> list[str]:
    """What the flags say, for a legend."""
    return [f"{FLAG} not to be trusted as a measure of empathy: {v.label} is {v.flag}" for v in values if v.flag]


def zeros(ranking: Ranking) -> str:
    """The line that names the values which tables leave out because they are 0 for every candidate; "" for none."""
    named = [
        label(metric, name)
        for metric, names in ranking.values.items()
        for name in names[1:]
        if not name.endswith(_DETAILS) and _all_zero(ranking, metric, name)
    ]
    who = " for every candidate" if len(ranking.standings) > 1 else ""
    return f"0{who}, and therefore not listed: {'; '.join(named)}" if named else ""


def value_of(ranking: Ranking, metric: str, name: str) -> Value:
    """One value of a metric of the ranking."""
    return Value(
        metric,
        name,
        label(metric, name),
        ranking.directions[metric],
        decimals(ranking, metric, name),
        is_primary=(metric, name) == (ranking.primary, ranking.primary_value),
        flag=next(((t.beaten or {}).get(name, "") for t in ranking.trust if t.metric == metric), ""),
    )


def _is_shown(ranking: Ranking, metric: str, name: str) -> bool:
    if name == ranking.values[metric][0]:
        return True
    return not name.endswith(_DETAILS) and not _all_zero(ranking, metric, name)


def _all_zero(ranking: Ranking, metric: str, name: str) -> bool:
    scores = [score for s in ranking.standings if (score := s.score(metric, name))]
    return all(end == 0 or end != end for score in scores for end in (score.low, score.value, score.high))
