"""Fit the coefficients of `SemanticEmpathy` on the development half of a labelled set, with numpy only.

    PYTHONPATH=. python scripts/calibrate_semantic.py --out metrics/anchors/calibration.json
    PYTHONPATH=. python scripts/calibrate_semantic.py --encoder intfloat/multilingual-e5-small --out e5.json

Each mechanism has a proportional-odds model of seven features: one weight for each feature and two thresholds, fitted
to the levels 0-2 with a ridge penalty on the weights. Stuffed replies count as level 0 in all three (what is said to
everybody is not said to this person); replies without a sentence of their own score 0 by rule and are left out.

Before it writes the file, it prints what cross-validation by message gives on the development half: the score of a reply
is then made by coefficients that have seen no reply to its message. The ridge is a constant and is not searched for.
The held-out half is never read here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bnbench.metrics.audit.agreement import auc, group_numbers, kendall
from bnbench.metrics.core import FloatArray, Texts
from bnbench.metrics.encoder import load_encoder
from bnbench.metrics.labelled import LabelledSet, labelled_set, read_labelled
from bnbench.metrics.lexicon import MECHANISMS
from bnbench.metrics.semantic import FEATURES, Calibration, Reader, load_anchors
from bnbench.metrics.tokenization import is_word, tokenize

RIDGE = 20.0
STEPS = 50
FOLDS = 10
STUFFED = "stuffed"

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


def fit(features: FloatArray, levels: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray]:
    """Weights (f,) and thresholds (2,) by Newton's method; `features` (n, f) are standardised."""
    n, f = features.shape
    rows = np.vstack([np.hstack([features, -np.eye(2)[[level] * n]]) for level in range(2)])
    target = np.concatenate([levels > 0, levels > 1]).astype(np.float64)
    penalty = np.array([ridge] * f + [1e-3] * 2)
    found = np.zeros(f + 2)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-rows @ found))
        slope = rows.T @ (target - chance) - penalty * found
        found += np.linalg.solve((rows * (chance * (1 - chance))[:, None]).T @ rows + np.diag(penalty), slope)
    return found[:f], found[f:]


def calibrate(reader: Reader, features: FloatArray, levels: FloatArray, ridge: float) -> Calibration:
    """All three models on features (n, 3, 7) and levels (n, 3)."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    standard = (features - mean) / scale
    models = [fit(standard[:, place], levels[:, place], ridge) for place in range(len(MECHANISMS))]
    weights, thresholds = (np.stack([model[part] for model in models]) for part in range(2))
    rounded = (np.round(array, 6) for array in (mean, scale, weights, thresholds))
    return Calibration(reader.encoder.id, reader.anchors.id, *rounded)


def targets(data: LabelledSet) -> FloatArray:
    """The levels (n, 3) that are fitted: 0 for stuffed replies."""
    stuffed = np.array([row.kind == STUFFED for row in data.rows])
    return np.where(stuffed[:, None], 0, data.levels).astype(np.float64)


def cross_validated(reader: Reader, features: FloatArray, own: FloatArray, data: LabelledSet, ridge: float) -> FloatArray:
    """Scores (n, 3), 0-100, each from coefficients that have not seen its message."""
    scores, levels = np.zeros((len(data), len(MECHANISMS))), targets(data)
    for test in _folds(data):
        train = ~test & (own > 0)
        found = calibrate(reader, features[train], levels[train], ridge)
        scores[test] = 50 * found.levels(features[test]) * own[test, None]
    return scores


def _folds(data: LabelledSet) -> Iterator[Flags]:
    groups = group_numbers(data.ids)
    for fold in range(FOLDS):
        yield groups % FOLDS == fold


def report(scores: FloatArray, data: LabelledSet) -> str:
    """What the scores are worth: AUC, Kendall's tau, partial correlations, hollow replies, means by kind."""
    groups, kinds, mean = group_numbers(data.ids), np.array([row.kind for row in data.rows]), scores.mean(axis=1)
    lines = [f"AUC, empathic against the rest: {auc(mean, data.empathic, groups).value:.3f}"]
    for place, name in enumerate(MECHANISMS):
        tau = kendall(scores[:, place], data.levels[:, place].astype(np.float64), groups)
        lines.append(f"Kendall's tau, {name}: {tau.value:.3f}")
    words = np.array([sum(map(is_word, tokenize(reply))) for reply in data.replies], dtype=np.float64)
    asks = np.array(["?" in reply for reply in data.replies], dtype=np.float64)
    for name, nuisance in (("words", words), ("a question mark", asks)):
        plain, partial = np.corrcoef(mean, nuisance)[0, 1], _partial(mean, nuisance, data.levels.astype(np.float64))
        lines.append(f"correlation with {name}: {plain:+.3f}, given the labels: {partial:+.3f}")
    for kind in ("stuffed", "copy"):
        lines.append(f"{kind} below the message's empathic mean: {_below(mean, kinds, data, kind):.1%}")
    lines += [f"{kind}: {mean[kinds == kind].mean():.1f} on average" for kind in dict.fromkeys(kinds.tolist())]
    return "\n".join(lines)


def _partial(a: FloatArray, b: FloatArray, given: FloatArray) -> float:
    rows = np.column_stack([given, np.ones(len(given))])
    left = [each - rows @ np.linalg.lstsq(rows, each, rcond=None)[0] for each in (a, b)]
    return float(np.corrcoef(*left)[0, 1])


def _below(mean: FloatArray, kinds: np.ndarray, data: LabelledSet, kind: str) -> float:  # type: ignore[type-arg]
    ids = np.array(data.ids)
    messages = dict.fromkeys(ids[kinds == kind].tolist())
    won = [
        mean[(ids == each) & (kinds == kind)].max() < mean[(ids == each) & (kinds == "empathic")].mean()
        for each in messages
    ]
    return float(np.mean(won))


def main() -> None:
    """Read, cross-validate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="a hub id or folder; default: the encoder that ships with bnbench")
    parser.add_argument("--data", type=Path, help="a labelled file with a development half; default: the shipped set")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args()
    data = labelled_set("development") if given.data is None else read_labelled(given.data, "development")
    reader = Reader(load_encoder(given.encoder), load_anchors())
    features, own = reader.features(Texts.of(data.replies, messages=data.messages))
    print(f"{data.source}: {len(data)} replies, {reader.encoder.id}, {reader.anchors.id}, cross-validated by message")
    print(report(cross_validated(reader, features, own, data, RIDGE), data))
    found = calibrate(reader, features[own > 0], targets(data)[own > 0], RIDGE)
    for name, weights in zip(MECHANISMS, found.weights, strict=True):
        print(f"{name}:", ", ".join(f"{each} {w:+.2f}" for each, w in zip(FEATURES, weights, strict=True)))
    given.out.write_text(json.dumps(found.as_json(), indent=1) + "\n", "utf-8")
    print(f"wrote {given.out}: calibration {found.id}", file=sys.stderr)


if __name__ == "__main__":
    main()
