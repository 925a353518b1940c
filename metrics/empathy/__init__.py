"""Empathy: by keywords (`keyword`, `lexicon`), and by the nearness of meanings (`semantic`, `encoder`).

Both score the three mechanisms of EPITOME (Sharma, Miner, Atkins & Althoff 2020, "A Computational Approach to
Understanding Empathy Expressed in Text-Based Mental Health Support").
"""

from __future__ import annotations

from bnbench.metrics.core import FloatArray, Result
from bnbench.metrics.errors import InputError

MECHANISMS = ("emotional_reaction", "interpretation", "exploration")
"""What empathy metrics call their values of each: warmth, concern or shared joy; saying what the person feels or went
through; asking about it."""


def mechanisms(result: Result) -> FloatArray:
    """Each reply's score of the three mechanisms, (n, 3), 0-100. `InputError` where the metric has none."""
    places = [place for place, name in enumerate(result.of.values) if name in MECHANISMS]
    if len(places) < len(MECHANISMS):
        raise InputError(f'{result.signature}: it has no mechanisms, as KeywordEmpathy("bn") and SemanticEmpathy have')
    return result.of.formula(result.table)[:, places]
