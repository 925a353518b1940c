"""Fit what single words say of a reply's empathy to the labelled sets: the weights of the lexicon `bn`; numpy only.

    PYTHONPATH=. python scripts/calibrate_words.py --out metrics/empathy/lexicons/bn_words.json

A ridge regression of the levels 0-2 of the three mechanisms on the words that stand in a reply, in any of their forms,
less those that are forms of the message's, so that no topic is learnt. Stuffed replies count as level 0, and twice. No
held-out half is read here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from bnbench.metrics.empathy.keyword import said
from bnbench.metrics.empathy.lexicon import load_lexicon
from bnbench.metrics.labelled import calibration_set

RIDGE, FEWEST = 30.0, 2  # the penalty, and in how many replies a word must stand


def main() -> None:
    """Count, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args()
    data, lexicon = calibration_set(), load_lexicon("bn")
    forms = [{lexicon.form(word) for word in said(row.reply, row.message)} for row in data.rows]
    counts = Counter(form for words in forms for form in words)
    column = {form: n for n, form in enumerate(sorted(form for form, count in counts.items() if count >= FEWEST))}
    table = np.zeros((len(data), len(column)))
    for row, words in enumerate(forms):
        table[row, [column[form] for form in words if form in column]] = 1

    stuffed = np.array([row.kind == "stuffed" for row in data.rows])
    levels, weight = np.where(stuffed[:, None], 0, data.levels), np.where(stuffed, 2.0, 1.0)
    constants = (weight[:, None] * levels).sum(axis=0) / weight.sum()
    # In the dual form, since there are more words than replies.
    scaled = table * np.sqrt(weight)[:, None]
    left = np.linalg.solve(
        scaled @ scaled.T + RIDGE * np.eye(len(data)), (levels - constants) * np.sqrt(weight)[:, None]
    )
    found = np.round(scaled.T @ left, 3)
    words = {form: found[n].tolist() for form, n in column.items() if np.abs(found[n]).max() >= 0.005}
    content = {"constants": np.round(constants, 3).tolist(), "words": words}
    given.out.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", "utf-8", newline="\n")
    print(f"{len(words)} words from {len(data)} replies")


if __name__ == "__main__":
    main()
