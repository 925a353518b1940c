"""What an audit found: checks with verdicts, and how the metric and the sentinels agree with the labels."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

WIDTH = 110
_LONGEST_NAME = 30
_NOTES = (
    "* a gate: where one fails, the audit fails; the other checks show limits. p: paired bootstrap, two-sided.",
    "Sentinels are taken in their better direction. An audit speaks of these replies and labels only.",
)

PASSES, FAILS, NOT_APPLICABLE = "passes", "fails", "not applicable"
AUC = "AUC"
"""The name of the measure, and of the check, that decides whether a metric is to be trusted."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval over messages."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f},{self.high:.2f}]"


@dataclass(frozen=True)
class Check:
    """One check. `numbers` holds what `shown` says, unrounded; `n` counts replies (spelling) or messages.

    A gate must not fail for the audit to pass; what the other checks find are limits to be stated with the metric.
    """

    group: str
    name: str
    expected: str
    n: int
    shown: str
    verdict: str
    gate: bool
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """How one scorer agrees with the labels: AUC, and tau-b with each label, by name."""

    name: str
    sentinel: bool
    measures: Mapping[str, Estimate]


@dataclass(frozen=True)
class AuditReport:
    """The audit of one metric on one labelled set. `str(report)` is a table of at most 110 columns.

    `standings` has the metric first, then those it was shown beside, then the sentinels.
    """

    metric: str
    signature: str
    data: str
    data_sha256: str
    replies: int
    messages: int
    seed: int
    resamples: int
    checks: tuple[Check, ...]
    standings: tuple[Standing, ...]

    @property
    def trustworthy(self) -> bool:
        """Whether the metric tells empathic replies from the rest better than every sentinel does, with p < .05."""
        return all(check.verdict == PASSES for check in self.checks if check.name == AUC)

    @property
    def passed(self) -> bool:
        """Whether no gate fails: spelling, the message given back, keywords stuffed, and the sentinels, at AUC and at
        each mechanism of which the metric has a score.
        """
        return not any(check.gate and check.verdict == FAILS for check in self.checks)

    @property
    def verdict(self) -> str:
        """One line, which speaks of these replies and labels only."""
        if not self.trustworthy:
            sentinel = next(check.numbers["sentinel"] for check in self.checks if check.name == AUC)
            return f"not trustworthy here: not better than {sentinel}"
        failed = [f"{check.group} {check.name}" for check in self.checks if check.verdict == FAILS]
        return f"trustworthy here; fails: {', '.join(failed)}" if failed else "trustworthy here"

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "verdict": self.verdict, "trustworthy": self.trustworthy, "passed": self.passed}

    def __str__(self) -> str:
        lines = [
            f"{self.signature}",
            f"on {self.data}: {self.replies} replies to {self.messages} messages, seed {self.seed}, "
            f"{self.resamples} resamples of messages",
            *textwrap.wrap(self.verdict, WIDTH, subsequent_indent="  "),
        ]
        return "\n".join([*lines, "", *_check_lines(self.checks), "", standings_table([self]), *_NOTES])


def standings_table(reports: Sequence[AuditReport]) -> str:
    """The agreement of all metrics of several audits, and of the sentinels, in one table; each name once."""
    rows: dict[str, Standing] = {}
    for sentinel in (False, True):
        for report in reports:
            rows |= {row.name: row for row in report.standings if row.sentinel == sentinel and row.name not in rows}
    measures = list(next(iter(rows.values())).measures)
    header = ["agreement with the labels", *(name.removesuffix("_reaction") for name in measures)]
    body = [[_short(row.name), *(_bare(row.measures[name]) for name in measures)] for row in rows.values()]
    return "\n".join(_columns([header, *body]))


def _bare(estimate: Estimate) -> str:
    """Without the 0 before the point: nothing here exceeds 1."""
    return re.sub("(?<![0-9])0(?=[.])", "", str(estimate))


def _short(name: str) -> str:
    """A scorer's name without the digits of a checksum, at most 30 characters."""
    name = re.sub("[-@][0-9a-f]{8}(?= |$)", "", name)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _check_lines(checks: Sequence[Check]) -> list[str]:
    rows = [["check", "expect", "n", "found", "verdict"]]
    rows += [
        [f"{check.group}: {check.name}", check.expected, str(check.n), check.shown, _mark(check)] for check in checks
    ]
    return _columns(rows)


def _mark(check: Check) -> str:
    mark = {PASSES: "pass", FAILS: "FAIL", NOT_APPLICABLE: "n/a"}[check.verdict]
    return f"{mark} *" if check.gate else mark


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
