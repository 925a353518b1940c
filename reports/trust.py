"""Can a metric be trusted? What the audit on record says of it, for the very signature that scored here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnbench.metrics.audit.record import unnumbered
from bnbench.metrics.audit.report import AUC, FAILS, LIMIT, PASSES, AuditReport, Check
from bnbench.metrics.audit.report import Standing as Scorer


@dataclass(frozen=True)
class Trust:
    """What is known of a metric. `data` is empty where no audit is on record for its signature, whatever else there is.

    `beaten` has the values that a score which knows nothing matches, with the reason: they are not to be trusted as a
    measure of empathy. `fails` and `limits` name the checks of replies; `scorers` have the metric first.
    """

    metric: str
    signature: str
    data: str = ""
    data_sha256: str = ""
    replies: int = 0
    messages: int = 0
    beaten: Mapping[str, str] | None = None
    fails: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    scorers: tuple[Scorer, ...] = ()

    @property
    def audited(self) -> bool:
        """Whether an audit is on record."""
        return bool(self.scorers)


def trust(
    signatures: Mapping[str, str], values: Mapping[str, Sequence[str]], audits: Sequence[AuditReport]
) -> tuple[Trust, ...]:
    """Of each metric that audits are on record for, under this or another signature: each set of labels once, by the
    later audit.

    `signatures` and `values` are of the metrics that scored, by name.
    """
    found: dict[str, dict[str, AuditReport]] = {audit.metric: {} for audit in audits}
    for audit in audits:
        if unnumbered(audit.signature) == unnumbered(signatures.get(audit.metric, "")):
            found[audit.metric][f"{audit.data} {audit.data_sha256}"] = audit
    return tuple(
        _trust(name, audit, unnumbered(signature), values[name])
        for name, signature in signatures.items()
        if name in found
        for audit in found[name].values() or [None]
    )


def _trust(metric: str, audit: AuditReport | None, signature: str, values: Sequence[str]) -> Trust:
    if audit is None:
        return Trust(metric, signature)
    labels = {check.name: check for check in audit.checks if check.group == "labels"}
    measured = {values[0]: AUC, **{value: f"tau {value}" for value in values[1:] if f"tau {value}" in labels}}
    return Trust(
        metric,
        signature,
        data=audit.data,
        data_sha256=audit.data_sha256,
        replies=audit.replies,
        messages=audit.messages,
        beaten={value: _why(labels[of]) for value, of in measured.items() if labels[of].verdict != PASSES},
        fails=tuple(check.name for check in audit.checks if check.verdict == FAILS and check.group != "labels"),
        limits=tuple(check.name for check in audit.checks if check.verdict == LIMIT and check.group != "labels"),
        scorers=audit.standings,
    )


def _why(check: Check) -> str:
    measure = "AUC" if check.name == AUC else "τ"
    return (
        f"not better than the sentinel “{check.numbers['sentinel']}” ({measure} {check.numbers['value']:.2f} against "
        f"{check.numbers['sentinel_value']:.2f})"
    )


def sentence(trust: Trust) -> str:
    """One sentence or two about a metric, without its name."""
    if not trust.audited:
        return "not audited with this signature, so nothing is known of it here"
    on = f"on {trust.replies} labelled replies to {trust.messages} messages of {trust.data}"
    beaten = trust.beaten or {}
    parts = [f"{value.replace('_', ' ')} is {why}" for value, why in beaten.items()]
    lead = "; ".join(parts) if parts else f"AUC {trust.scorers[0].measures[AUC]}, better than every sentinel"
    checks = {"fails": trust.fails, "known limits": trust.limits}
    return "; ".join([f"{lead}, {on}", *(f"{what}: {', '.join(names)}" for what, names in checks.items() if names)])


def scorer_tables(trusts: Sequence[Trust]) -> list[tuple[Trust, list[tuple[Scorer, bool]]]]:
    """For each set of labelled replies its scorers, each once; those that scored here (True) come first."""
    found: dict[str, tuple[Trust, dict[str, tuple[Scorer, bool]]]] = {}
    for own in (True, False):
        for t in trusts:
            _, scorers = found.setdefault(f"{t.data} {t.data_sha256}", (t, {}))
            for one in t.scorers[:1] if own else t.scorers[1:]:
                scorers.setdefault(one.name, (one, own))
    return [(t, list(scorers.values())) for t, scorers in found.values() if t.audited]
