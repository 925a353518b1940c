"""Bits per character and byte, token perplexity: closed forms, and what must not move them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bnbench.metrics import InputError, Perplexity, Texts


def test_closed_form() -> None:
    likelihoods = [[math.log(2) * 30, 5, 20, 10], [math.log(2) * 10, 5, 20, 10]]
    made = Perplexity().score(["", ""], likelihoods=likelihoods)
    assert made.scores == {
        "bits_per_character": pytest.approx(2),
        "bits_per_byte": pytest.approx(1),
        "token_perplexity": pytest.approx(16),
    }
    assert made.value == made.scores["bits_per_character"]
    assert made.per_item.tolist() == pytest.approx([3, 1])
    assert not Perplexity.higher_is_better


def test_a_sum_over_texts_not_a_mean_of_perplexities() -> None:
    made = Perplexity().score(["", ""], likelihoods=[[10, 10, 30, 10], [90, 10, 30, 10]])
    assert made.scores["token_perplexity"] == pytest.approx(math.exp(5))


ROW = st.sampled_from(["", "ক", "না।", "আমি ভালো আছি।"]).flatmap(
    lambda text: st.tuples(
        st.just(text), st.lists(st.floats(1e-6, 20), min_size=len(text) > 0, max_size=6 if text else 0)
    )
)


@given(st.lists(ROW, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
@example([("", [])])
@example([("", []), ("ক", [0.5])])
def test_short_and_empty_references_equal_the_definition(rows: list[tuple[str, list[float]]]) -> None:
    # lm-eval's: minus the summed log-likelihood over all bytes, characters or tokens of all texts.
    given_to_us = [[sum(nll), len(nll), 0, 0] for _, nll in rows]
    made = Perplexity().score([""] * len(rows), [text for text, _ in rows], likelihoods=given_to_us).scores
    nll, text = [each for _, some in rows for each in some], "".join(text for text, _ in rows)
    bits = sum(nll) / math.log(2)
    assert made == {
        "bits_per_character": pytest.approx(bits / max(1, len(text))),
        "bits_per_byte": pytest.approx(bits / max(1, len(text.encode()))),
        "token_perplexity": pytest.approx(math.exp(sum(nll) / max(1, len(nll)))),
    }


def test_bytes_and_characters_are_those_of_the_normalised_reference() -> None:
    one, two = "\u09df", "\u09af\u09bc"
    given = [[math.log(2) * 4, 1, 999, 999]]
    for spelled in (one, two, f" {one}\u200c \n"):
        texts = Texts.of(["x"], [[spelled, "another"]], likelihoods=given)
        assert Perplexity().statistics(texts)[0, 2:].tolist() == [6, 2]
    values = [Perplexity().score(["x"], [r], likelihoods=given).scores["bits_per_character"] for r in (one, two)]
    assert values == [pytest.approx(2), pytest.approx(2)]


def test_defined_on_nothing_and_on_the_absurd() -> None:
    assert Perplexity().formula(np.zeros(4)).tolist() == [0, 0, 1]
    assert np.isfinite(Perplexity().formula(np.array([1e9, 1, 1, 1]))).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_rows_that_are_no_likelihoods_are_named(bad: float) -> None:
    with pytest.raises(InputError, match="row 1"):
        Perplexity().score(["a", "b"], likelihoods=[[1, 1, 1, 1], [bad, 1, 1, 1]])


def test_wrong_shapes() -> None:
    with pytest.raises(InputError, match="likelihoods"):
        Perplexity().score(["a"])
    with pytest.raises(InputError, match="one row"):
        Perplexity().score(["a"], likelihoods=[[1, 2, 3]])
    with pytest.raises(InputError, match="2 likelihoods"):
        Perplexity().score(["a"], likelihoods=[[1, 1, 1, 1], [1, 1, 1, 1]])
