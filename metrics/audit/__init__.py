"""Metric validation: does a metric of empathy do what one should, and is it better than scores that know nothing?

`audit` takes any `Metric` and any labelled set (`bnbench.metrics.labelled`); what it checks, and how to read it, is in
`docs/empathy.md`. Audits of the two empathy metrics are on record (`findings`).

    >>> from bnbench.metrics import KeywordEmpathy
    >>> report = audit(KeywordEmpathy())
    >>> report.trustworthy
    True
"""

import importlib
from typing import TYPE_CHECKING, Any

from bnbench.metrics.audit.findings import AuditReport, Check, audits_text, read_audits

if TYPE_CHECKING:
    from bnbench.metrics.audit.checks import OriginalSemantic, audit, audits

__all__ = ["AuditReport", "Check", "OriginalSemantic", "audit", "audits", "audits_text", "read_audits"]


def __getattr__(name: str) -> Any:
    """Read on first use: a report that only shows audits on record pays for none of the machinery that makes them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.checks"), name)
