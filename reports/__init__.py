"""Reports: ranking, HTML, Markdown, CSV and JSON made from a run folder."""
