"""Gates for continuous integration: what a ranking must not say."""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from bnbench.errors import UsageError, nearest
from bnbench.reports.ranking import Ranking, compare
from bnbench.reports.values import name, number, value_of

BASE = "base"
_FORM = re.compile(r"(?:(?P<who>.+?): +)?(?P<metric>\S+?)(?:/(?P<value>\w+))?\s*(?P<sign><=|>=|<|>)\s*(?P<than>.+)")
_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Gate:
    """`[CANDIDATE: ]METRIC[/VALUE] < base`, another candidate or a number; it fails where that is so."""

    text: str
    who: str  # where empty, all that the ranking compares with another, or all where `than` is a number
    metric: str
    value: str
    sign: str
    than: str | float


def parse_gates(
    texts: Sequence[str], metrics: Mapping[str, Sequence[str]], candidates: Mapping[str, str]
) -> tuple[Gate, ...]:
    """The gates that are spelt out, of these metrics (with their values) and candidates (with their kinds).

    Raises UsageError for another form, a name that is not among them (with those that are), or a gate that cannot fail:
    against a base that is not there, or of a candidate against itself alone.
    """
    gates, base = [], next((who for who, kind in candidates.items() if kind == "base"), None)
    for text in texts:
        if not (found := _FORM.fullmatch(text.strip())):
            form = "'METRIC < base', 'METRIC < NUMBER' or 'CANDIDATE: METRIC/VALUE <= CANDIDATE'; also >, >="
            raise UsageError(f"--fail-if {text!r}: write {form}")
        who, metric, value, sign, than = (found[key] or "" for key in ("who", "metric", "value", "sign", "than"))
        limit: str | float = than.strip()
        with suppress(ValueError):
            limit = float(than)
            if not math.isfinite(limit):
                raise UsageError(f"--fail-if {text!r}: {limit} is never reached; write a number")
        metric = {known.casefold(): known for known in metrics}.get(metric.casefold(), metric)
        value = value or next(iter(metrics.get(metric, ())), "")
        for what, asked, known in (
            ("metric", metric, list(metrics)),
            ("value", value, metrics.get(metric, ())),
            ("candidate", who, list(candidates)),
            ("candidate", limit, [*([BASE] if base else []), *candidates]),
        ):
            if asked == BASE and what == "candidate" and not base and BASE not in known:
                instead = f"name a candidate ({', '.join(known)}) or a number"
                raise UsageError(f"--fail-if {text!r}: this run has no base; {instead}")
            if isinstance(asked, str) and asked and asked not in known:
                hint = f"{nearest(asked, known) or ';'} there are {', '.join(known)}"
                raise UsageError(f"--fail-if {text!r}: there is no {what} {asked!r}{hint}")
        other = limit if limit in candidates else base
        if isinstance(limit, str) and set([who] if who else candidates) <= {other}:
            raise UsageError(f"--fail-if {text!r}: it compares {other} with itself alone; name another, or a number")
        gates.append(Gate(text, who, metric, value, sign, limit))
    return tuple(gates)


def failures(gates: Sequence[Gate], ranking: Ranking) -> list[str]:
    """A sentence for each gate and candidate that fails.

    A number is held against the score; another candidate only where the items can tell the two, as in the report: a
    gate that is run every day would else fail of chance every other day. `<=` and `>=` fail where they cannot, too.
    """
    said, named = [], {s.candidate for s in ranking.standings}
    for gate in gates:
        value, holds = value_of(ranking, gate.metric, gate.value), _SIGNS[gate.sign]
        for s in ranking.standings:
            if gate.who not in ("", s.candidate) or gate.than == s.candidate:
                continue
            own = s.value(gate.metric, gate.value)
            if isinstance(gate.than, float):
                if own is None or math.isnan(own) or holds(own, gate.than):
                    said.append(f"{name(s.candidate)} has {value.number(own)} {value.label} ({gate.text})")
                continue
            other = gate.than if gate.than in named else s.compared_with  # a candidate may be called base
            c = s.versus(gate.metric, gate.value) if other == s.compared_with else None
            c = c or (compare(ranking, s.candidate, other, gate.metric, gate.value) if other else None)
            if c and holds(0.0 if c.better is None else c.difference, 0.0):
                p = number(c.p if c.p_holm is None else c.p_holm, 4)
                gap = f"{value.number(c.difference, sign=True)} {value.label} to {name(c.other)}"
                said.append(f"{name(s.candidate)} is {gap}, 95 % {value.interval(c)}, p = {p} ({gate.text})")
            elif other and c is None:
                said.append(f"{name(s.candidate)} or {name(other)} has no {value.label} ({gate.text})")
    return said
