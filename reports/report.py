"""A report: ranking.json, ranking.csv, report.md and report.html in one folder, and the text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench.records import Run, write_text
from bnbench.reports.export import ranking_csv, ranking_json, report_md
from bnbench.reports.format import storable
from bnbench.reports.html import report_html
from bnbench.reports.ranking import RESAMPLES, rank
from bnbench.reports.text import terminal


@dataclass(frozen=True)
class Report:
    """What was written: the ranking as a dict for JSON, the text for the terminal, and where the page lies."""

    ranking: dict[str, Any]
    text: str
    html: Path


def write_report(
    runs: Sequence[Run], folder: Path, *, resamples: int = RESAMPLES, audits: Path | None = None
) -> Report:
    """Ranks the candidates of the runs and writes the four files into `folder`. `audits` is a file of further audits.

    Raises:
        RunError: the runs are not over the same items or not scored alike.
        UsageError: the primary metric cannot be computed, or `audits` not be read.
    """
    ranking = rank(runs, resamples=resamples, audits=audits)
    files = {
        "ranking.json": ranking_json(ranking),
        "ranking.csv": ranking_csv(ranking),
        "report.md": report_md(ranking),
        "report.html": report_html(ranking, runs),
    }
    for name, text in files.items():
        write_text(folder / name, storable(text))
    return Report(ranking.as_dict(), storable(terminal(ranking)), folder / "report.html")
