"""Bengali pairs for the metric tests: real sentences of the bundled conversations, recombined; seeded."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

_DEMO = Path(__file__).parents[2] / "bnbench" / "demo" / "conversations.csv"


def _sentences() -> list[str]:
    with _DEMO.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [row[column] for row in rows for column in ("Questions", "Answers")]


def make_pairs(n: int, seed: int = 0, least: int = 10, most: int = 120) -> tuple[list[str], list[str]]:
    """(predictions, references) of `least`-`most` words; a prediction keeps about half of its reference, in pieces."""
    chance, pool = random.Random(seed), [word for text in _sentences() for word in text.split()]
    predictions, references = [], []
    for _ in range(n):
        start, length = chance.randrange(len(pool) - most), chance.randint(least, most)
        words = pool[start : start + length]
        references.append(" ".join(words))
        changed = [word if chance.random() < 0.6 else chance.choice(pool) for word in words]
        cut = chance.randrange(len(changed))
        predictions.append(" ".join(changed[cut:] + changed[: chance.randrange(len(changed) + 1)]))
    return predictions, references


@pytest.fixture(scope="session")
def pairs() -> tuple[list[str], list[str]]:
    """2,000 pairs of 3-40 words; the peers are slow."""
    return make_pairs(2000, least=3, most=40)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """The questions and answers of the bundled conversations."""
    return _sentences()
