"""Reports: ranking, HTML, Markdown, CSV and JSON made from a run folder.

from bnbench.records import read_run
from bnbench.reports import Report, rank

report = Report(rank([read_run("runs/demo")]))    # print(report) gives its text; a notebook shows it by itself
"""

from bnbench.reports.ranking import Comparison, Ranking, Score, Standing, rank
from bnbench.reports.render import Report, evaluation_md, write_report

__all__ = ["Comparison", "Ranking", "Report", "Score", "Standing", "evaluation_md", "rank", "write_report"]
