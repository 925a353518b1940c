"""Bengali pairs for the metric tests: real sentences of the bundled conversations, recombined; seeded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.metrics import bundled_texts, make_pairs


@pytest.fixture(scope="session")
def pairs() -> tuple[list[str], list[str]]:
    """2,000 pairs of 3-40 words; the peers are slow."""
    return make_pairs(2000, least=3, most=40)


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """The questions and answers of the bundled conversations."""
    return bundled_texts()


def krippendorff_alpha(units: Sequence[Sequence[int | None]]) -> float:
    """Krippendorff's ordinal alpha of `units`, each the levels given to one item (None: not given). Krippendorff 2011.

    1 is agreement, 0 what chance would give. It is not defined where fewer than two levels occur in items labelled
    twice.
    """
    given = [[level for level in unit if level is not None] for unit in units]
    given = [unit for unit in given if len(unit) > 1]
    levels = sorted({level for unit in given for level in unit})
    assert len(levels) > 1, "alpha needs at least two levels among the items that were labelled more than once"
    counts = np.array([[unit.count(level) for level in levels] for unit in given], dtype=np.float64)
    each, totals = counts.sum(axis=1), counts.sum(axis=0)
    pairs = np.einsum("uc,uk->uck", counts, counts) - np.einsum("uc,ck->uck", counts, np.eye(len(levels)))
    observed = (pairs / (each - 1)[:, None, None]).sum(axis=0)
    below = np.cumsum(totals) - totals / 2  # the middle rank of each level; distances between them are ordinal
    distance = (below[:, None] - below[None, :]) ** 2
    expected = np.outer(totals, totals) / (totals.sum() - 1)
    return float(1 - (observed * distance).sum() / (expected * distance).sum())
