"""Bengali pairs for the metric tests: real sentences of the bundled conversations, recombined; seeded."""

from __future__ import annotations

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
