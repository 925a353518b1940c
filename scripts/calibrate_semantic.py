"""Fit the coefficients of `SemanticEmpathy` on the development half of a labelled set, with numpy only.

    PYTHONPATH=. python scripts/calibrate_semantic.py --out metrics/empathy/anchors/calibration.json
    PYTHONPATH=. python scripts/calibrate_semantic.py --encoder intfloat/multilingual-e5-small --out e5.json

Each mechanism has a proportional-odds model of seven features: one weight for each feature and two thresholds, fitted
to the levels 0-2 with a ridge penalty on the weights. Three things are fitted beside the labels as they stand:

* Stuffed replies count as level 0 in all three, and twice: what is said to everybody is not said to this person.
* Empathic replies put under another message count as level 0, at a quarter of a reply's weight: a score is about the
  reply given the message, and no labelled reply answers the wrong one.
* Replies without a sentence of their own score 0 by rule and are left out.

Before it writes the file, it prints what cross-validation by message gives on the development half: the score of a
reply is then made by coefficients that have seen no reply to its message. The held-out half is never read here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bnbench.metrics.audit.agreement import Groups, auc, group_numbers, kendall
from bnbench.metrics.core import FloatArray, Texts
from bnbench.metrics.empathy.encoder import load_encoder, words_only
from bnbench.metrics.empathy.lexicon import MECHANISMS
from bnbench.metrics.empathy.semantic import FEATURES, Calibration, Reader, load_anchors
from bnbench.metrics.labelled import EMPATHIC, LabelledSet, labelled_set, read_labelled
from bnbench.metrics.tokenization import is_word, tokenize

RIDGE = 20.0
STEPS = 50
FOLDS = 10
STUFFED = "stuffed"
STUFFED_WEIGHT = 2.0
SHIFTS = (7, 13)
"""How many messages further on the empathic replies are put."""
MISPLACED_WEIGHT = 0.25

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """n replies to fit: features (n, 3, 7), whether each has a sentence of its own, levels (n, 3), weights (n,).

    `answers` and `written_for` are the numbers of the message that a reply is put under, and of its own.
    """

    features: FloatArray
    own: Flags
    levels: FloatArray
    weights: FloatArray
    answers: Groups
    written_for: Groups

    def part(self, chosen: Flags) -> Rows:
        """Some of the rows."""
        return Rows(*(getattr(self, each.name)[chosen] for each in fields(self)))

    @classmethod
    def of(cls, reader: Reader, data: LabelledSet) -> Rows:
        """The labelled replies, then the misplaced ones."""
        ids = group_numbers(data.ids)
        messages = dict(zip(ids.tolist(), data.messages, strict=True))
        hollow = np.array([row.kind == STUFFED for row in data.rows])
        levels = np.where(hollow[:, None], 0, data.levels)
        weights = np.where(hollow, STUFFED_WEIGHT, 1.0)
        parts = [cls._made(reader, data.replies, data.messages, levels, ids, ids, weights)]
        replies = [row.reply for row in data.rows if row.kind == EMPATHIC]
        for shift in SHIFTS:
            theirs = ids[data.empathic]
            others = (theirs + shift) % len(messages)
            asked = [messages[each] for each in others.tolist()]
            none = np.zeros((len(replies), len(MECHANISMS)))
            weights = np.full(len(replies), MISPLACED_WEIGHT)
            parts.append(cls._made(reader, replies, asked, none, others, theirs, weights))
        return cls(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    @classmethod
    def _made(
        cls,
        reader: Reader,
        replies: Sequence[str],
        messages: Sequence[str],
        levels: FloatArray,
        answers: Groups,
        written_for: Groups,
        weights: FloatArray,
    ) -> Rows:
        features, own = reader.features(Texts.of(replies, messages=messages))
        return cls(features, own > 0, levels, weights, answers, written_for)


def calibrate(reader: Reader, rows: Rows, ridge: float = RIDGE) -> Calibration:
    """All three models, of the rows with a sentence of their own."""
    rows = rows.part(rows.own)
    mean, scale = rows.features.mean(axis=0), rows.features.std(axis=0)
    standard = (rows.features - mean) / scale
    models = [fit(standard[:, m], rows.levels[:, m], rows.weights, ridge) for m in range(len(MECHANISMS))]
    weights, thresholds = (np.stack([model[part] for model in models]) for part in range(2))
    rounded = (np.round(array, 6) for array in (mean, scale, weights, thresholds))
    return Calibration(reader.encoder.id, reader.anchors.id, *rounded)


def fit(features: FloatArray, levels: FloatArray, weights: FloatArray, ridge: float) -> tuple[FloatArray, FloatArray]:
    """Weights of features (f,) and thresholds (2,) by Newton's method; `features` (n, f) are standardised."""
    n, f = features.shape
    rows = np.vstack([np.hstack([features, -np.eye(2)[[level] * n]]) for level in range(2)])
    target, weight = np.concatenate([levels > 0, levels > 1]).astype(np.float64), np.tile(weights, 2)
    penalty = np.array([ridge] * f + [1e-3] * 2)
    found = np.zeros(f + 2)
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-rows @ found))
        slope = rows.T @ (weight * (target - chance)) - penalty * found
        curvature = (rows * (weight * chance * (1 - chance))[:, None]).T @ rows + np.diag(penalty)
        found += np.linalg.solve(curvature, slope)
    return found[:f], found[f:]


def cross_validated(reader: Reader, rows: Rows, n: int) -> FloatArray:
    """Scores (n, 3), 0-100, of the first n rows, each from coefficients that have not seen its message."""
    scores = np.zeros((n, len(MECHANISMS)))
    for fold in range(FOLDS):
        test = rows.answers % FOLDS == fold
        found = calibrate(reader, rows.part(~test & (rows.written_for % FOLDS != fold)))
        chosen = test[:n]
        scores[chosen] = 50 * found.levels(rows.features[:n][chosen]) * rows.own[:n][chosen, None]
    return scores


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
    hollow = {kind: _below(mean, kinds, data, kind) for kind in (STUFFED, "copy")}
    lines += [f"{kind} below the message's empathic mean: {share:.1%}" for kind, share in hollow.items()]
    lines += [f"{kind}: {mean[kinds == kind].mean():.1f} on average" for kind in dict.fromkeys(kinds.tolist())]
    return "\n".join(lines)


def _partial(a: FloatArray, b: FloatArray, given: FloatArray) -> float:
    rows = np.column_stack([given, np.ones(len(given))])
    left = [each - rows @ np.linalg.lstsq(rows, each, rcond=None)[0] for each in (a, b)]
    return float(np.corrcoef(*left)[0, 1])


def _below(mean: FloatArray, kinds: npt.NDArray[np.str_], data: LabelledSet, kind: str) -> float:
    ids = np.array(data.ids)
    messages = dict.fromkeys(ids[kinds == kind].tolist())
    won = [
        mean[(ids == each) & (kinds == kind)].max() < mean[(ids == each) & (kinds == EMPATHIC)].mean()
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
    reader = Reader(words_only(load_encoder(given.encoder)), load_anchors())
    rows = Rows.of(reader, data)
    print(f"{data.source}: {len(data)} replies, {reader.encoder.id}, {reader.anchors.id}, cross-validated by message")
    print(report(cross_validated(reader, rows, len(data)), data))
    found = calibrate(reader, rows)
    for name, weights in zip(MECHANISMS, found.weights, strict=True):
        print(f"{name}:", ", ".join(f"{each} {w:+.2f}" for each, w in zip(FEATURES, weights, strict=True)))
    given.out.write_text(json.dumps(found.as_json(), indent=1) + "\n", "utf-8")
    print(f"wrote {given.out}: calibration {found.id}", file=sys.stderr)


if __name__ == "__main__":
    main()
