"""Metric validation: does a metric of empathy do what one should, and is it better than scores that know nothing?

`audit` takes any `Metric` and any labelled set (`bnbench.metrics.labelled`) and checks five things.

* Spelling: another spelling of a reply must not change its score (`perturbations.SPELLINGS`).
* Change: what is done to empathic replies should make their score worse, or leave it (`perturbations`). A change for
  the worse is found where the mean over messages lies below 0 with its whole 95 % interval; for the message given back
  and for stuffed keywords the score has to fall in 95 % of the messages as well. In the other register it may move by a
  tenth of its standard deviation on average.
* Kind: the same of the replies of each other kind, against the mean of the empathic replies to the same message.
* Labels: AUC of the empathic replies against the rest, and Kendall's tau-b with tie calibration against the label of
  each mechanism, by the metric's score of that mechanism where it has one (`agreement`).
* Sentinels: the metric must be better than the best of four scores that know nothing (`rivals`), with p < .05 in a
  paired bootstrap over messages. Where it is not, it is not trustworthy there.

What must not happen is a gate, and fails; any other check that does not find what it expects shows a known limit.
Audits of the two empathy metrics are on record (`findings`), so that reports can show them without making them again.

A metric that needs references gets, for each reply, the best-labelled empathic reply among the other replies to the
same message. One that needs likelihoods cannot be audited. An audit speaks of the replies and labels that it was given.

    >>> from bnbench.metrics import KeywordEmpathy
    >>> report = audit(KeywordEmpathy())
    >>> report.trustworthy
    True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnbench.metrics.audit.findings import AuditReport, Check, audits_text, read_audits, write_audits

if TYPE_CHECKING:
    from bnbench.metrics.audit.agreement import krippendorff_alpha
    from bnbench.metrics.audit.checks import audit, audits
    from bnbench.metrics.audit.rivals import OriginalSemantic

__all__ = [
    "AuditReport",
    "Check",
    "OriginalSemantic",
    "audit",
    "audits",
    "audits_text",
    "krippendorff_alpha",
    "read_audits",
    "write_audits",
]

# Read on first use: a report that only shows audits on record pays for none of the machinery that makes them.
_WHERE = {"krippendorff_alpha": "agreement", "audit": "checks", "audits": "checks", "OriginalSemantic": "rivals"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
