"""What an audit found: checks with verdicts, how scorers agree with the labels, as text and as files; and what that
says of a metric that scored elsewhere, with the very same signature.

Those of the shipped empathy metrics are on record (`scripts/record_audits.py`), so that reports need not make them.
"""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bnbench.metrics.exceptions import UsageError, read_small

WIDTH = 110
RECORD = Path(__file__).parent.parent / "labelled" / "audited.json"

# A gate fails; what any other check does not find as expected is a known limit.
PASSES, FAILS, LIMIT, NOT_APPLICABLE = "passes", "fails", "limit", "not applicable"
AUC = "AUC"  # the measure, and the check, that decides whether a metric is to be trusted
_MARKS = {PASSES: "pass", FAILS: "FAIL", LIMIT: "limit", NOT_APPLICABLE: "n/a"}
_LONGEST_NAME = 33
# Of a signature, in which an audit on some replies says the same of a metric on others.
NUMBER_OF_REPLIES = re.compile("[|]n:[0-9]+(?=[|]|$)")
_NOTES = """\
* a gate: where one fails, the audit fails; the other checks show limits. p: paired bootstrap, two-sided.
Sentinels are taken in their better direction. An audit speaks of these replies and labels only.
lex:original and original-semantic are the original project's scores; the latter with the encoder that is
named, since its own model cannot be shipped."""


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
    """One check. `numbers` holds what `shown` says, unrounded; `n` counts replies (spelling) or messages."""

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
    """The audit of one metric on one labelled set; `str(report)` is a table of at most `WIDTH` columns."""

    metric: str
    signature: str
    data: str
    data_sha256: str
    replies: int
    messages: int
    seed: int
    resamples: int
    checks: tuple[Check, ...]
    standings: tuple[Standing, ...]  # the metric first, then those it was shown beside, then the sentinels

    @property
    def trustworthy(self) -> bool:
        """Whether the metric tells empathic replies from the rest better than every sentinel does, with p < .05."""
        return all(check.verdict == PASSES for check in self.checks if check.name == AUC)

    @property
    def passed(self) -> bool:
        """Whether no gate fails."""
        return not any(check.gate and check.verdict == FAILS for check in self.checks)

    @property
    def verdict(self) -> str:
        """One line, which speaks of these replies and labels only."""
        if not self.trustworthy:
            sentinel = next(check.numbers["sentinel"] for check in self.checks if check.name == AUC)
            return f"not trustworthy here: not better than {sentinel}"
        found = ["trustworthy here"]
        for what, verdict in (("fails", FAILS), ("known limits", LIMIT)):
            if named := [f"{check.group} {check.name}" for check in self.checks if check.verdict == verdict]:
                found.append(f"{what}: {', '.join(named)}")
        return "; ".join(found)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "verdict": self.verdict, "trustworthy": self.trustworthy, "passed": self.passed}

    def __str__(self) -> str:
        return audits_text([self])


def audits_text(reports: Sequence[AuditReport]) -> str:
    """Each audit's checks, then one table of how all the metrics, and the sentinels, agree with the labels."""

    def columns(rows: Sequence[Sequence[str]]) -> list[str]:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]

    parts = []
    for report in reports:
        rows = [["check", "expect", "n", "found", "verdict"]]
        for check in report.checks:
            mark = _MARKS[check.verdict] + (" *" if check.gate else "")
            rows.append([f"{check.group}: {check.name}", check.expected, str(check.n), check.shown, mark])
        verdict = textwrap.wrap(report.verdict, WIDTH, subsequent_indent="  ")
        on = f"on {report.data}: {report.replies} replies to {report.messages} messages, seed {report.seed}"
        head = [report.signature, f"{on}, {report.resamples} resamples of messages", *verdict]
        parts.append("\n".join([*head, "", *columns(rows)]))
    standings = all_standings(reports)
    rows = [["agreement with the labels", *(name.removesuffix("_reaction") for name in standings[0].measures)]]
    for row in standings:
        # Without the 0 before the point: nothing here exceeds 1.
        bare = (re.sub("(?<![0-9])0(?=[.])", "", str(row.measures[name])) for name in standings[0].measures)
        rows.append([short_name(row.name), *bare])
    return "\n\n".join([*parts, "\n".join([*columns(rows), _NOTES])])


def all_standings(reports: Sequence[AuditReport]) -> list[Standing]:
    """Each scorer of several audits once: the audited metrics, those shown beside them, the sentinels."""
    beside = [row for report in reports for row in report.standings[1:]]
    rows = [*(report.standings[0] for report in reports), *sorted(beside, key=lambda row: row.sentinel)]
    return list({row.name: row for row in reversed(rows)}.values())[::-1]


def short_name(name: str) -> str:
    """A scorer's name with the first of its choices, without the digits of a checksum, at most 33 characters."""
    name = re.sub("[-@][0-9a-f]{8}(?= |$)", "", re.sub(r"^(\S+ \S+:\S+) .*", r"\1", name))
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def read_audits(path: str | Path = RECORD) -> list[AuditReport]:
    """The audits of a file. Raises `UsageError` where there is none, or it holds something else."""
    try:
        found = json.loads(read_small(path))
        if not isinstance(found, list) or not found:
            raise ValueError
        for plain in found:
            plain["checks"] = tuple(_of(Check, check) for check in plain["checks"])
            for check in (check for check in plain["checks"] if check.group == "labels"):
                f"{check.numbers['sentinel']} {check.numbers['value']:f} {check.numbers['sentinel_value']:f}"  # as told
            measured = [{k: _of(Estimate, v) for k, v in of["measures"].items()} for of in plain["standings"]]
            told = zip(plain["standings"], measured, strict=True)
            plain["standings"] = tuple(Standing(str(of["name"]), bool(of["sentinel"]), own) for of, own in told)
            measures = set(map(frozenset, measured))
            if AUC not in [check.name for check in plain["checks"]] or len(measures) != 1 or AUC not in measures.pop():
                raise ValueError
        return [_of(AuditReport, plain) for plain in found]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; make a file: bnbench audit METRIC --json > audits.json") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UsageError(f"{path}: not what `bnbench audit METRIC --json` prints") from None


@dataclass(frozen=True)
class Trust:
    """What is known of a metric."""

    metric: str
    signature: str
    data: str = ""
    data_sha256: str = ""
    replies: int = 0
    messages: int = 0
    # The values that a score which knows nothing matches, with the reason: no measure of empathy that is to be trusted.
    beaten: Mapping[str, str] | None = None
    fails: tuple[str, ...] = ()  # checks of replies, as `limits`
    limits: tuple[str, ...] = ()
    scorers: tuple[Standing, ...] = ()  # the metric first; empty where no audit is on record for its signature


def trust(
    signatures: Mapping[str, str], values: Mapping[str, Sequence[str]], audits: Sequence[AuditReport]
) -> tuple[Trust, ...]:
    """What audits of this or another signature tell of each metric that scored; of a set of labels the later counts."""
    found: dict[str, dict[str, AuditReport]] = {audit.metric: {} for audit in audits}
    for audit in audits:
        scored, audited = (NUMBER_OF_REPLIES.sub("", s) for s in (signatures.get(audit.metric, ""), audit.signature))
        if scored == audited:
            found[audit.metric][f"{audit.data} {audit.data_sha256}"] = audit
    made = []
    for metric in (metric for metric in signatures if metric in found):
        signature, (main, *others) = NUMBER_OF_REPLIES.sub("", signatures[metric]), values[metric]
        if not found[metric]:
            made.append(Trust(metric, signature))
        for audit in found[metric].values():
            labels = {check.name: check for check in audit.checks if check.group == "labels"}
            measured = {main: AUC, **{value: f"tau {value}" for value in others if f"tau {value}" in labels}}
            beaten = {}
            for value, check in ((value, labels[of]) for value, of in measured.items()):
                if check.verdict != PASSES:
                    n, what = check.numbers, "AUC" if check.name == AUC else "τ"
                    than = f"{what} {n['value']:.2f} against {n['sentinel_value']:.2f}"
                    beaten[value] = f"not better than the sentinel “{n['sentinel']}” ({than})"
            of_replies = [check for check in audit.checks if check.group != "labels"]
            fails, limits = (tuple(c.name for c in of_replies if c.verdict == kind) for kind in (FAILS, LIMIT))
            data = audit.data, audit.data_sha256, audit.replies, audit.messages
            made.append(Trust(metric, signature, *data, beaten, fails, limits, audit.standings))
    return tuple(made)


def sentence(trust: Trust) -> str:
    """One sentence or two about a metric, without its name."""
    if not trust.scorers:
        return "not audited with this signature, so nothing is known of it here"
    beaten = [f"{value.replace('_', ' ')} is {why}" for value, why in (trust.beaten or {}).items()]
    lead = "; ".join(beaten) or f"AUC {trust.scorers[0].measures[AUC]}, better than every sentinel"
    checks = {"fails": trust.fails, "known limits": trust.limits}
    on = f"on {trust.replies} labelled replies to {trust.messages} messages of {trust.data}"
    return "; ".join([f"{lead}, {on}", *(f"{what}: {', '.join(names)}" for what, names in checks.items() if names)])


def _of(kind: Any, plain: Mapping[str, Any]) -> Any:
    """A dataclass of a JSON object's values; ValueError for one that is not what its annotation says."""
    values = {one.name: float(plain[one.name]) if one.type is float else plain[one.name] for one in fields(kind)}
    plainly = {one.name: one.type for one in fields(kind) if isinstance(one.type, type)}
    if wrong := [name for name, of in plainly.items() if not isinstance(values[name], of)]:
        raise ValueError(wrong)
    return kind(**values)
