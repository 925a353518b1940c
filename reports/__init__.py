"""Reports: ranking, HTML, Markdown, CSV and JSON made from a run folder."""

from bnbench.reports.ranking import Comparison, Ranking, Score, Standing, rank
from bnbench.reports.report import Report, write_report

__all__ = ["Comparison", "Ranking", "Report", "Score", "Standing", "rank", "write_report"]
