"""Audits on record: those of the shipped empathy metrics, made by `scripts/record_audits.py`, and any that
`bnbench audit METRIC --json > FILE` prints.

An audit belongs to one signature. A metric with another one (another lexicon, encoder, calibration, version of the
scoring) has no audit on record until one is made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from bnbench.metrics.audit.report import AuditReport
from bnbench.metrics.errors import UsageError

RECORD = Path(__file__).parent.parent / "labelled" / "audited.json"


def unnumbered(signature: str) -> str:
    """A signature without the number of replies: what an audit on some replies says of the same metric on others."""
    return re.sub(r"[|]n:[0-9]+(?=[|]|$)", "", signature)


def read_audits(path: str | Path = RECORD) -> list[AuditReport]:
    """The audits of a file. Raises `UsageError` where there is none, or it holds something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, list) or not found:
            raise ValueError
        return [AuditReport.of(plain) for plain in found]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; make a file: bnbench audit METRIC --json > audits.json") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path}: not what `bnbench audit METRIC --json` prints") from None


def write_audits(audits: Sequence[AuditReport], path: str | Path = RECORD) -> None:
    """One audit a line."""
    lines = ",\n".join(json.dumps(audit.as_dict(), ensure_ascii=False, allow_nan=False) for audit in audits)
    Path(path).write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")
