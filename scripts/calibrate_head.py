"""Fit the linear head of both empathy scorers to the labelled sets (`bnbench.metrics.empathy.head`); numpy only.

    PYTHONPATH=. python scripts/calibrate_head.py --out metrics/empathy/head/model.safetensors

A ridge regression on parts and pairs of words, each weighed by its rarity: of whether a reply is empathic, whoever it
is for (-1 and +1, both of equal weight in all; mismatched replies are), and of the levels 0-2 of the three mechanisms.
Copies of the message are left out. The replies of the bundled conversations that are not for testing are empathic ones
in another style. No held-out half is read here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from bnbench.data.corpus import load_corpus
from bnbench.metrics.core import Texts
from bnbench.metrics.empathy import in_bengali
from bnbench.metrics.empathy.head import BUCKETS, PAIR, buckets, pieces
from bnbench.metrics.labelled import LabelledReply, calibration_set

RIDGE, FEWEST = 0.5, 3  # the penalty, in mean squared lengths; in how many replies a part or pair must stand

# What is told apart worst, and what is made of stock phrases, counts twice.
HARD = frozenset({"plain_warm", "belittling", "dismissive", "stuffed", "generic"})


@cache
def features_of(text: str) -> list[tuple[int, float]]:
    """Where the parts and pairs of a text stand in the table, and what each counts; cross-validation asks again."""
    return [(at, PAIR if " " in piece else 1.0) for piece in pieces(text) for at in buckets(piece)]


@cache
def bundled_replies() -> list[str]:
    """Those of the bundled conversations that are not for testing."""
    splits = load_corpus(None).splits
    return [example.reference for split in ("train", "validation") for example in splits[split]]


def fit(data: Sequence[LabelledReply]) -> bytes:
    """The file of a head that is fitted to these replies."""
    rows, bundled = [row for row in data if row.kind != "copy"], bundled_replies()
    texts = in_bengali(Texts.of([*(row.reply for row in rows), *bundled]))
    found = [features_of(text) for text in texts.replies]
    total = len(texts)
    row = np.repeat(np.arange(total), list(map(len, found)))
    at = np.array([at for each in found for at, _ in each], dtype=np.int64)
    standing, which = np.unique(at * total + row, return_inverse=True)  # each feature in each of its rows
    counts = np.bincount(standing // total, minlength=BUCKETS)
    rarity = np.where(counts >= FEWEST, np.log(total / counts.clip(min=1)) + 1, 0.0)
    rarity = rarity.astype(np.float16).astype(np.float64)
    value = np.array([value for each in found for _, value in each]) * rarity[at]
    length = np.sqrt(np.bincount(row, value**2, total))
    values = np.bincount(which, value / np.where(length, length, 1.0)[row])

    # In the dual form, since there are more features than replies: of each feature, in which rows it stands, and how.
    known = rarity[standing // total] > 0
    features, starts = np.unique(standing[known] // total, return_index=True)
    parts = (np.split(each[known], starts[1:]) for each in (standing % total, values))
    columns = dict(zip(features, zip(*parts, strict=True), strict=True))
    # A feature of many rows is a line of a full matrix; those of few are so many that such a matrix takes longer.
    many = [of for of in columns.values() if len(of[0]) > 64]
    full = np.zeros((len(many), total))
    for line, (places, values) in zip(full, many, strict=True):
        line[places] = values
    products = full.T @ full
    for size in range(1, 65):
        if few := [of for of in columns.values() if len(of[0]) == size]:
            places, values = map(np.stack, zip(*few, strict=True))
            np.add.at(products, (places[:, :, None], places[:, None]), values[:, :, None] * values[:, None])

    # The bundled replies have no labels: they are empathic, and say nothing of levels.
    empathic = np.array([*(row.empathic or row.kind == "mismatched" for row in rows), *(True for _ in bundled)])
    counting = np.array([*(2.0 if row.kind in HARD else 1.0 for row in rows), *(1.0 for _ in bundled)])
    levels = np.array([row.levels for row in rows], dtype=np.float64)
    constants, dual = np.zeros(4), np.zeros((total, 4))
    for part, target in ((slice(0, 1), np.where(empathic, 1.0, -1.0)[:, None]), (slice(1, 4), levels)):
        n = len(target)
        weight, right = counting[:n], empathic[:n]
        weight = weight / np.where(right, weight[right].sum(), weight[~right].sum()) * n / 2
        constants[part] = (weight[:, None] * target).sum(axis=0) / n
        root, penalty = np.sqrt(weight)[:, None], RIDGE * np.diag(products)[:n].mean() * np.eye(n)
        system = root * products[:n, :n] * root.T + penalty
        dual[:n, part] = root * np.linalg.solve(system, root * (target - constants[part]))
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
