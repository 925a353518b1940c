"""Fit the linear head of both empathy scorers to the labelled sets (`bnbench.metrics.empathy.head`); numpy only.

    PYTHONPATH=. python scripts/calibrate_head.py --out metrics/empathy/head/model.safetensors

A ridge regression on parts and pairs of words, each weighed by its rarity: of whether a reply is empathic, whoever it
is for (-1 and +1, both of equal weight in all; mismatched replies are), and of the levels 0-2 of the three mechanisms.
Copies of the message are left out. No held-out half is read here.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from bnbench.metrics.core import Texts
from bnbench.metrics.empathy import in_bengali
from bnbench.metrics.empathy.head import BUCKETS, PAIR, buckets, pieces
from bnbench.metrics.labelled import LabelledReply, calibration_set

RIDGE, FEWEST = 0.5, 3  # the penalty, in mean squared lengths; in how many replies a part or pair must stand
HARD = frozenset({"plain_warm", "belittling", "dismissive"})  # what is told apart worst, and counts twice


def fit(data: Sequence[LabelledReply]) -> bytes:
    """The file of a head that is fitted to these replies."""
    rows = [row for row in data if row.kind != "copy"]
    texts = in_bengali(Texts.of([row.reply for row in rows], messages=[row.message for row in rows]))
    found = [[(at, PAIR if " " in p else 1.0) for p in pieces(text) for at in buckets(p)] for text in texts.replies]
    counts = Counter(at for each in found for at in {at for at, _ in each})
    rarity = np.zeros(BUCKETS)
    for at, count in counts.items():
        rarity[at] = np.log(len(rows) / count) + 1 if count >= FEWEST else 0.0
    rarity = rarity.astype(np.float16).astype(np.float64)

    # In the dual form, since there are more features than replies: of each feature, in which rows it stands, and how.
    standing: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row, each in enumerate(found):
        length = np.sqrt(sum((value * rarity[at]) ** 2 for at, value in each)) or 1.0
        for at, value in each:
            if rarity[at]:
                standing[at][row] += value * rarity[at] / length
    columns = {at: (np.array(list(of)), np.array(list(of.values()))) for at, of in standing.items()}
    products = np.zeros((len(rows), len(rows)))
    for places, values in columns.values():
        products[np.ix_(places, places)] += np.outer(values, values)

    empathic = np.array([row.empathic or row.kind == "mismatched" for row in rows])
    target = np.column_stack([np.where(empathic, 1.0, -1.0), [row.levels for row in rows]])
    weight = np.where([row.kind in HARD for row in rows], 2.0, 1.0)
    weight /= np.where(empathic, weight[empathic].sum(), weight[~empathic].sum()) * 2 / len(rows)
    constants = (weight[:, None] * target).sum(axis=0) / weight.sum()
    root = np.sqrt(weight)[:, None]
    penalty = RIDGE * np.diag(products).mean() * np.eye(len(rows))
    dual = root * np.linalg.solve(root * products * root.T + penalty, root * (target - constants))
    weights = np.zeros((BUCKETS, 4), np.float16)
    for at, (places, values) in columns.items():
        weights[at] = values @ dual[places]
    return save({"constants": constants, "rarity": rarity.astype(np.float16), "weights": weights})


def main() -> None:
    """Fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    given = parser.parse_args()
    data = calibration_set()
    given.out.write_bytes(fit(data.rows))
    print(f"{given.out}: from {len(data)} replies")


if __name__ == "__main__":
    main()
