"""Can a metric be trusted? What the audit on record says of it, for the very signature that scored here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bnbench.metrics.audit.findings import AUC, FAILS, LIMIT, PASSES, AuditReport, unnumbered
from bnbench.metrics.audit.findings import Standing as Scorer

FLAG = "⚑"  # stands where a metric is not to be trusted
NOT_INFORMATIVE = "∅"  # stands where a candidate does not pass a yardstick


@dataclass(frozen=True)
class Trust:
    """What is known of a metric. `scorers`, the metric first, is empty where no audit is on record for its signature.

    `beaten` has the values that a score which knows nothing matches, with the reason: they are not to be trusted as a
    measure of empathy. `fails` and `limits` name the checks of replies.
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


def trust(
    signatures: Mapping[str, str], values: Mapping[str, Sequence[str]], audits: Sequence[AuditReport]
) -> tuple[Trust, ...]:
    """What is known of each metric that audits are on record for, under this or another signature.

    Each set of labels counts once, by its later audit. `signatures` and `values` are of the metrics that scored.
    """
    found: dict[str, dict[str, AuditReport]] = {audit.metric: {} for audit in audits}
    for audit in audits:
        if unnumbered(audit.signature) == unnumbered(signatures.get(audit.metric, "")):
            found[audit.metric][f"{audit.data} {audit.data_sha256}"] = audit
    made = []
    for metric in (metric for metric in signatures if metric in found):
        signature, (main, *others) = unnumbered(signatures[metric]), values[metric]
        if not found[metric]:
            made.append(Trust(metric, signature))
        for audit in found[metric].values():
            labels = {check.name: check for check in audit.checks if check.group == "labels"}
            measured = {main: AUC, **{value: f"tau {value}" for value in others if f"tau {value}" in labels}}
            beaten = {}
            for value, check in ((value, labels[of]) for value, of in measured.items()):
                n = check.numbers
                if check.verdict != PASSES:
                    beaten[value] = (
                        f"not better than the sentinel “{n['sentinel']}” ({'AUC' if check.name == AUC else 'τ'} "
                        f"{n['value']:.2f} against {n['sentinel_value']:.2f})"
                    )
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
