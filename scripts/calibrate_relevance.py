"""Fit the two models of `bnbench.metrics.relevance` to the labelled sets, with numpy only.

    PYTHONPATH=. python scripts/calibrate_relevance.py --out metrics/relevance.json

Answers are replies of every kind but generic ones to their own message; the same replies put under the 7th and 13th
message further on, at half weight, and replies written as mismatched, twice, are none. A generic reply is an answer at
a quarter, so that it scores low and not 0. Replies of few words are left out, since they share hardly any with their
message, whoever they are for. `fit` learns from empathic replies alone. The bank is the messages with
their replies. Before it writes the file, it prints what cross-validation by message gives. No held-out half is
read here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bnbench.metrics.core import FloatArray, Texts
from bnbench.metrics.empathy import in_bengali
from bnbench.metrics.empathy.lexicon import load_lexicon
from bnbench.metrics.labelled import LabelledReply, calibration_set
from bnbench.metrics.relevance import ContentWords
from bnbench.metrics.romanised import bengali

GENERIC, OTHER = frozenset({"weak", "generic", "stuffed"}), frozenset({"copy", "negated", "mismatched"})
SHIFTS, FOLDS, RIDGE = (7, 13), 5, 1.0
WORDS = 12  # that a reply has at least, to be learnt from
FEWEST = 3  # messages that have a word, in themselves or a reply; one that fewer have counts as one that none has


class Pair(NamedTuple):
    """A reply under a message, whether it answers it, and what it weighs in the fit."""

    id: str
    kind: str
    reply: str
    message: str
    answers: bool
    weight: float
    empathic: bool


def pairs(rows: tuple[LabelledReply, ...]) -> list[Pair]:
    asked = {row.id: row.message for row in rows}
    ids, found = list(asked), []
    for row in (row for row in rows if len(row.reply.split()) >= WORDS):
        said = row.id, row.kind, row.reply
        if row.kind in GENERIC:
            found += [Pair(*said, row.message, answers, 0.25 + 0.5 * (not answers), False) for answers in (True, False)]
        elif row.kind == "mismatched":
            found.append(Pair(*said, row.message, False, 2.0, True))
        elif row.kind not in OTHER:
            found.append(
                Pair(*said, row.message, True, 2.0 if row.kind in ("warm", "plain_warm") else 1.0, row.empathic)
            )
            others = (asked[ids[(ids.index(row.id) + shift) % len(ids)]] for shift in SHIFTS)
            found += [Pair(row.id, "under another message", row.reply, m, False, 0.5, row.empathic) for m in others]
    return found


def logistic(features: FloatArray, target: FloatArray, weight: FloatArray) -> FloatArray:
    """The weights and the constant, by Newton's method, with a ridge penalty on the weights."""
    rows, found = np.column_stack([features, np.ones(len(features))]), np.zeros(features.shape[1] + 1)
    penalty = np.array([RIDGE] * features.shape[1] + [0.0])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-rows @ found))
        slope = rows.T @ (weight * (target - chance)) - penalty * found
        found += np.linalg.solve((rows * (weight * chance * (1 - chance))[:, None]).T @ rows + np.diag(penalty), slope)
    return found


def main() -> None:
    """Count, cross-validate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args()
    bank = defaultdict(set)
    for row in calibration_set().rows:
        bank[row.id] |= {bengali(row.message), bengali(row.reply)}
    lexicon, plain = load_lexicon("bn"), ContentWords({}, len(bank))
    words = [{word for text in texts for word in plain.read(text)[0] if plain.weights[word]} for texts in bank.values()]
    every = Counter(key for each in words for key in {lexicon.keys[word] for word in each} - {""})
    counts = {key: count for key, count in every.items() if count >= FEWEST}

    found = pairs(calibration_set().rows)
    texts = in_bengali(Texts.of([pair.reply for pair in found], messages=[pair.message for pair in found]))
    features = ContentWords(counts, len(bank)).features(texts)
    target, weight = np.array([pair.answers for pair in found], np.float64), np.array([pair.weight for pair in found])
    kinds, numbers = np.array([pair.kind for pair in found]), {name: n for n, name in enumerate(calibration_set().ids)}
    fold, models = np.array([numbers[pair.id] // 6 % FOLDS for pair in found]), {}
    for name, learnt in (("relevance", np.full(len(found), True)), ("fit", np.array([p.empathic for p in found]))):
        scores = np.zeros(len(found))
        for left_out in range(FOLDS):
            rows = learnt & (fold != left_out)
            model = logistic(features[rows], target[rows], weight[rows])
            scores[fold == left_out] = features[fold == left_out] @ model[:-1] + model[-1]
        models[name] = np.round(logistic(features[learnt], target[learnt], weight[learnt]), 4).tolist()
        for kind in ("warm", "plain_warm", "empathic"):
            above = scores[kinds == kind][:, None] - scores[kinds == "mismatched"][None]
            print(f"{name}: {kind} above mismatched, AUC {(np.sign(above) + 1).mean() / 2:.3f}")
    content = {"models": models, "messages": len(bank), "counts": dict(sorted(counts.items()))}
    given.out.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", "utf-8", newline="\n")


if __name__ == "__main__":
    main()
