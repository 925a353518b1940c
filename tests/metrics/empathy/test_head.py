"""The linear head of both empathy scorers: what it hears, and that it is made by its script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from bnbench.metrics.empathy.head import BUCKETS, GENERAL, PAIR, SHIPPED, buckets, load_head, pieces, weighed

WARM = "তোমার কথা শুনে আমার বুকটা ভারী হয়ে গেল।"
BELITTLING = "এইটুকু নিয়ে এত নাটক করার কী আছে, লোকে শুনলে হাসবে।"


def test_pieces_are_words_and_pairs_with_sentence_ends() -> None:
    assert pieces("কষ্ট হয়। কষ্ট হয়।") == ["কষ্ট", "হয়", "| কষ্ট", "কষ্ট হয়", "হয় |"]
    assert pieces("কষ্ট, হয়?") == pieces("কষ্ট হয়!") and pieces("।") == []  # which mark it is says nothing


def test_a_word_is_its_parts_and_a_pair_is_one() -> None:
    assert len(buckets("কথা")) == 4 + 3 + 2 + 1  # of <কথা>, from two to five characters
    assert len(buckets("কথাটা")) == 6 + 5 + 4 + 3 + 1  # and the whole of a longer one
    assert len(buckets("কথা শুনে")) == 1 and all(0 <= at < BUCKETS for at in buckets("কথাটা"))


def test_warmth_in_words_it_was_not_fitted_to_is_heard() -> None:
    warm, dialect, against, nothing = load_head().read([WARM, "তুমার কতা হুইন্যা আমার বুকখান ভার অইয়া গেল।", BELITTLING, ""])
    assert warm[0] > 0.9 and warm[1] > 1 and dialect[0] > 0.8
    assert against[0] < 0.2 and nothing.tolist() == [0, 0, 0, 0]


def test_general_kindness_is_more_than_half_a_level_and_at_most_a_whole_one() -> None:
    levels = np.array([0.0, 0.5, 0.75, 1.0, 2.0])
    by_words = np.column_stack([np.zeros(5), levels, np.zeros((5, 2))])  # to nobody in particular: no chance, no fit
    found = weighed(np.ones((5, 3)), by_words, np.zeros(5), np.ones(5))
    assert (found[:, 0] / GENERAL).tolist() == [0, 0, 0.5, 1, 1] and not found[:, 1:].any()


def test_a_reply_is_the_vector_of_its_pieces() -> None:
    """As its docstring defines it, with the shipped file read anew."""
    tensors = load_file(SHIPPED)
    weights, rarity = tensors["weights"].astype(np.float64), tensors["rarity"].astype(np.float64)
    vector = np.zeros(BUCKETS)
    parts = [(at, PAIR if " " in piece else 1) for piece in pieces(WARM) for at in buckets(piece)]
    squares = sum((value * rarity[at]) ** 2 for at, value in parts)
    for at, value in parts:
        vector[at] += value * rarity[at]
    levels = (vector @ weights / np.sqrt(squares) + tensors["constants"])[1:].clip(0, 2)
    np.testing.assert_allclose(load_head().read([WARM])[0, 1:], levels, rtol=1e-12)


def test_how_long_a_reply_is_does_not_matter() -> None:
    once, twice, alone = load_head().read([WARM, f"{WARM} {WARM}", WARM])
    np.testing.assert_array_equal(once, twice)
    np.testing.assert_array_equal(once, alone)


def test_only_general_kindness_is_left_of_what_is_meant_for_somebody_else() -> None:
    by_words = np.array([[1.0, 2.0, 2.0, 2.0], [0.5, 2.0, 0.0, 0.0]])
    found = weighed(np.ones((2, 3)), by_words, fit=np.array([0.0, 1.0]), left=np.array([1.0, 0.1]))
    assert found[0] == pytest.approx([GENERAL, 0, 0])
    assert found[1] == pytest.approx([(1 - GENERAL) * 0.5 + GENERAL * 0.1, 0.5, 0.5])


def test_the_script_gives_the_shipped_head(tmp_path: Path) -> None:
    out, root = tmp_path / "head.safetensors", Path(__file__).parents[3]
    subprocess.run([sys.executable, "scripts/calibrate_head.py", "--out", str(out)], cwd=root, check=True)
    made, shipped = load_file(out), load_file(SHIPPED)
    for name in ("constants", "rarity", "weights"):
        np.testing.assert_allclose(made[name], shipped[name], atol=2e-4)
    assert SHIPPED.stat().st_size < 700_000
