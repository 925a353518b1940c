"""How the values of the metrics are named for a reader, which of them are shown at first, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass

from bnbench.reports.format import decimals
from bnbench.reports.ranking import Comparison, Ranking

_DETAILS = ("precision", "recall", "_p", "_r", "rougeLsum", "bits_per_byte")  # in the CSV and JSON, not in tables
_LABELS = {"rougeL": "ROUGE-L", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeLsum": "ROUGE-Lsum"}


def label(metric: str, value: str) -> str:
    """`ROUGE-L`, `bits per character`; the metric's name for a value called after it."""
    if value.casefold() in (metric.casefold(), metric.casefold().replace("-", "_"), "score", "value"):
        return metric.replace("-", " ")
    return _LABELS.get(value, value.replace("_", " "))


@dataclass(frozen=True)
class Value:
    """One value of one metric, ready to be a table's row."""

    metric: str
    name: str
    label: str
    higher_is_better: bool
    decimals: int
    is_primary: bool

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
    """The values that tables show, the primary first: each metric's main value, and those that say something else."""
    found = [
        Value(metric, name, label(metric, name), ranking.directions[metric], decimals(ranking, metric, name),
              (metric, name) == (ranking.primary, ranking.primary_value))
        for metric, names in ranking.values.items()
        for name in names
        if name == names[0] or not name.endswith(_DETAILS)
    ]  # fmt: skip
    return sorted(found, key=lambda v: not v.is_primary)
