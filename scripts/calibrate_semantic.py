"""Fit the coefficients of `SemanticEmpathy` to the development half of a labelled set, with numpy only.

    PYTHONPATH=. python scripts/calibrate_semantic.py --out metrics/empathy/anchors/calibration.json
    PYTHONPATH=. python scripts/calibrate_semantic.py --encoder FOLDER --data mine.csv --out mine.json

This makes the shipped calibration, and one for your own labelled replies; an encoder that is to be fitted to the
bundled ones needs no file (`semantic-empathy:FOLDER`). How it is fitted: `bnbench.metrics.empathy.semantic.calibrate`.

Before it writes the file, it prints what cross-validation by message gives on the development half: the score of a
reply is then made by coefficients that have seen no reply to its message. The held-out half is never read here.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
from calibrate_head import fit

from bnbench.metrics.audit.agreement import auc, group_numbers, kendall
from bnbench.metrics.core import FloatArray, Texts
from bnbench.metrics.empathy import MECHANISMS, in_bengali
from bnbench.metrics.empathy.encoder import load_encoder, words_only
from bnbench.metrics.empathy.head import Head, load_head
from bnbench.metrics.empathy.semantic import FEATURES, Reader, Seen, calibrate, credits, load_anchors
from bnbench.metrics.labelled import LabelledSet, calibration_set, read_labelled
from bnbench.metrics.relevance import chances

FOLDS = 5


def cross_validated(reader: Reader, data: LabelledSet, head: Head | None) -> FloatArray:
    """Scores (n, 3), 0-100, of n replies, each from coefficients that have seen neither its message nor it, and so for
    the head where none is given.
    """
    fold = group_numbers(data.ids) % FOLDS
    reader.sentences = cache(reader.sentences)  # type: ignore[method-assign]  # each pair is in all folds but one
    texts = in_bengali(Texts.of(data.replies, messages=data.messages))
    seen, fits = reader.seen(texts), chances(texts, "fit")
    scores = np.zeros((len(data), len(MECHANISMS)))
    for left_out in range(FOLDS):
        rows = tuple(row for row, number in zip(data.rows, fold, strict=True) if number != left_out)
        found = calibrate(reader, LabelledSet(rows, data.source, data.sha256))
        chosen = fold == left_out
        part = Seen(*(each[chosen] for each in seen))
        by_words = (head or Head(fit(rows))).read(np.array(texts.replies, dtype=object)[chosen])
        scores[chosen] = 100 * credits(part, found, by_words, fits[chosen])
    return scores


def main() -> None:
    """Read, cross-validate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="a hub id or folder; default: the encoder that ships with bnbench")
    parser.add_argument("--data", type=Path, help="a labelled file with a development half; default: the shipped set")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args()
    data = calibration_set() if given.data is None else read_labelled(given.data, "development")
    reader = Reader(words_only(load_encoder(given.encoder)), load_anchors())

    print(f"{data.source}: {len(data)} replies, {reader.encoder.id}, {reader.anchors.id}, cross-validated by message")
    scores, groups = cross_validated(reader, data, given.data and load_head()), group_numbers(data.ids)
    none = np.zeros((0, int(groups.max()) + 1))  # no resamples: no intervals are shown
    print(f"AUC, empathic against the rest: {auc(scores.mean(axis=1), data.empathic, groups, none).value:.3f}")
    for name, ours, levels in zip(MECHANISMS, scores.T, data.levels.T.astype(np.float64), strict=True):
        print(f"Kendall's tau, {name}: {kendall(ours, levels, groups, none).value:.3f}")

    found = calibrate(reader, data)
    for name, weights in zip(MECHANISMS, found.weights, strict=True):
        print(f"{name}:", ", ".join(f"{each} {w:+.2f}" for each, w in zip(FEATURES, weights, strict=True)))
    given.out.write_text(json.dumps(found.as_json(), indent=1) + "\n", "utf-8")
    print(f"wrote {given.out}: calibration {found.id}", file=sys.stderr)


if __name__ == "__main__":
    main()
