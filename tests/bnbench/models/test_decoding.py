from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bnbench.errors import UsageError
from bnbench.models.decoding import Decoding, item_key, philox, random_words

# Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[np.ndarray]:
    return [np.array([int(w, 16)], dtype=np.int64) for w in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_gives_the_published_answers(counter: str, key: str, result: str) -> None:
    assert [f"{int(w[0]):08x}" for w in philox(words(counter), words(key))] == result.split()


def test_philox_is_the_same_in_torch_and_numpy() -> None:
    import torch

    tokens = np.arange(2000, dtype=np.int64).reshape(2, 1000)
    keys = np.array([item_key(42, "a"), item_key(42, "b")], dtype=np.int64)
    in_torch = random_words(torch.from_numpy(keys), 3, torch.from_numpy(tokens)).numpy()
    np.testing.assert_array_equal(in_torch, random_words(keys, 3, tokens))


def test_noise_belongs_to_seed_item_step_and_token_alone() -> None:
    tokens = np.array([[5, 6, 7]], dtype=np.int64)

    def draw(seed: int = 42, item: str = "a", step: int = 0, asked: np.ndarray = tokens) -> np.ndarray:
        return random_words(np.array([item_key(seed, item)], dtype=np.int64), step, asked)

    np.testing.assert_array_equal(draw(), draw())
    np.testing.assert_array_equal(draw(asked=tokens[:, 1:]), draw()[:, 1:])
    for other in (draw(seed=43), draw(item="b"), draw(step=1), draw(asked=tokens + 1)):
        assert not (other == draw()).any()


def test_noise_is_uniform() -> None:
    keys = np.array([item_key(7, f"item {i}") for i in range(50)], dtype=np.int64)
    drawn = (random_words(keys, 1, np.tile(np.arange(2000, dtype=np.int64), (50, 1))) + 0.5) / 2.0**32
    assert drawn.min() > 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=100, range=(0, 1))
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert 60 < chi_square < 150  # 99 degrees of freedom
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}, {"repetition_penalty": 0.0},
        {"max_words": 0}, {"max_new_tokens": 0}, {"seed": -1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Decoding(**wrong)


def test_importing_needs_no_torch() -> None:
    code = "import sys, bnbench.models.decoding, bnbench.models.candidates\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
