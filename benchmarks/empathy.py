"""Seconds of one core for 1,000 replies, by the two empathy scorers, on the bundled labelled replies.

    python benchmarks/empathy.py

The labelled replies are repeated, each time with another number at the end, so that no result is reused from a cache.
"""

from __future__ import annotations

import platform
import time

from bnbench.metrics import KeywordEmpathy, SemanticEmpathy
from bnbench.metrics.core import Metric, Texts
from bnbench.metrics.labelled import labelled_set

N = 1_000


def seconds(metric: Metric, texts: Texts) -> float:
    """CPU seconds of one scoring, after one reply that loads lexicon, anchors and encoder."""
    metric.statistics(next(texts.parts(1)))
    start = time.process_time()
    metric.statistics(texts)
    return time.process_time() - start


def main() -> None:
    rows = list(labelled_set("development").rows)
    chosen = [rows[i % len(rows)] for i in range(N)]
    texts = Texts.of([f"{row.reply} {i}" for i, row in enumerate(chosen)], messages=[row.message for row in chosen])
    print(f"{platform.machine()}, Python {platform.python_version()}")
    for metric in (KeywordEmpathy(), SemanticEmpathy()):
        print(f"{metric.name}: {seconds(metric, texts):.2f} s for {N} replies")


if __name__ == "__main__":
    main()
