"""Audit the empathy metrics and put what is found on record: for reports, and into docs/empathy.md.

    python scripts/record_audits.py

To be run whenever a signature of theirs changes (lexicon, encoder, anchors, calibration) or the audit itself does; a
test fails until it was. It takes a few seconds and writes metrics/labelled/audited.json and the tables between the
markers of docs/empathy.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bnbench.metrics import KeywordEmpathy, SemanticEmpathy  # noqa: E402
from bnbench.metrics.audit import AuditReport, Check, audits  # noqa: E402
from bnbench.metrics.audit.findings import RECORD, all_standings, short_name  # noqa: E402
from bnbench.metrics.labelled import labelled_set  # noqa: E402

METRICS = ("keyword-empathy", "semantic-empathy")
PAGE = ROOT / "docs" / "empathy.md"


def agreement_table(reports: Sequence[AuditReport]) -> str:
    """How every scorer agrees with the labels."""
    rows = all_standings(reports)
    measures = [name.replace("tau ", "τ ").replace("_", " ") for name in rows[0].measures]
    head = [f"held-out half, {reports[0].messages} messages", *measures]
    body = [
        [f"`{short_name(row.name)}`", *(f"{x.value:.3f} [{x.low:.3f}, {x.high:.3f}]" for x in row.measures.values())]
        for row in rows
    ]
    return _markdown([head, *body])


def checks_table(reports: Sequence[AuditReport]) -> str:
    """What each metric makes of other spellings, of every change, and of every kind of reply."""
    columns = [[check for check in report.checks if check.group in ("change", "kind")] for report in reports]
    body = [
        [f"{checks[0].group}: {checks[0].name}", checks[0].expected, *map(_cell, checks)]
        for checks in zip(*columns, strict=True)
    ]
    spelling = ["another spelling", "same", *map(_spelling, reports)]
    return _markdown([["check", "expected", *(report.metric for report in reports)], spelling, *body])


def _cell(check: Check) -> str:
    return check.shown.replace(",", ", ").replace(",  ", ", ") + f": {check.verdict}{' (gate)' if check.gate else ''}"


def _spelling(report: AuditReport) -> str:
    verdicts = Counter(check.verdict for check in report.checks if check.group == "spelling")
    return ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()) + " (gates)"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def page_with(page: str, reports: Sequence[AuditReport]) -> str:
    """docs/empathy.md with both tables made anew."""
    for name, table in (("agreement", agreement_table(reports)), ("checks", checks_table(reports))):
        block = f"<!-- {name}: scripts/record_audits.py -->\n{table}\n<!-- end -->"
        page, found = re.subn(f"<!-- {name}: .*?<!-- end -->", lambda _, block=block: block, page, flags=re.DOTALL)
        if found != 1:
            sys.exit(f"{PAGE}: {found} blocks named {name!r}; one is needed")
    return page


def main() -> None:
    reports = audits(METRICS)
    lines = ",\n".join(json.dumps(report.as_dict(), ensure_ascii=False, allow_nan=False) for report in reports)
    RECORD.write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")
    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), reports), encoding="utf-8")
    for report in reports:
        print(report.signature, report.verdict, sep="\n  ")
    data = labelled_set("held-out")
    known = np.column_stack([data.levels, np.ones(len(data))])  # what is left when the labels are known
    for metric in (KeywordEmpathy(), SemanticEmpathy()):
        scores = np.array(metric.score(data.replies, messages=data.messages).per_item)
        for name, count in (("words", lambda text: len(text.split())), ("a question mark", lambda text: "?" in text)):
            pair = np.column_stack([scores, np.array([count(reply) for reply in data.replies], dtype=np.float64)])
            given = pair - known @ np.linalg.lstsq(known, pair, rcond=None)[0]
            found = [float(np.corrcoef(each.T)[0, 1]) for each in (pair, given)]
            print("{} with {}: correlation {:+.2f}, given the labels {:+.2f}".format(metric.name, name, *found))


if __name__ == "__main__":
    main()
