"""n-gram matches of many pairs of strings at once, by sorting packed integers instead of counting Python objects.

A string here is a sequence of symbols: the characters of a text, or one character per token (see `overlap`). Every
position's n-gram of the highest order is packed into one 64-bit key, (pair, symbols, side), and the keys are sorted.
n-grams of all lower orders are prefixes, so equal ones are neighbours in the same order, and one sort serves all
orders. The results are those of counting, exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

_BATCH = 128  # pairs sorted together: the keys of so many replies stay in the processor's cache


def ngram_counts(hypotheses: Sequence[str], references: Sequence[str], order: int) -> IntArray:
    """For each pair and each order 1 ... `order`: n-grams of the hypothesis, of the reference, and common to both.

    Shape (n, order, 3); a common n-gram counts as often as it occurs in the text that has it less often.
    """
    lengths = np.array([[len(h), len(r)] for h, r in zip(hypotheses, references, strict=True)], dtype=np.int64)
    lengths = lengths.reshape(-1, 2)
    counts = np.empty((len(lengths), order, 3), dtype=np.int64)
    counts[:, :, :2] = np.maximum(lengths[:, None, :] - np.arange(order)[None, :, None], 0)
    for start in range(0, len(lengths), _BATCH):
        rows = slice(start, start + _BATCH)
        _fill_matches(hypotheses[rows], references[rows], order, lengths[rows], counts[rows, :, 2])
    return counts


def _fill_matches(
    hypotheses: Sequence[str], references: Sequence[str], order: int, lengths: IntArray, matches: IntArray
) -> None:
    """Write the matches of one batch into `matches`, (n, order)."""
    # All characters in a row, hypotheses first, as numbers 1 ... size of the alphabet.
    n, texts = len(hypotheses), "".join([*hypotheses, *references])
    codes = np.frombuffer(texts.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    present = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.uint64)
    present[codes] = 1
    numbers = present.cumsum(dtype=np.uint64)
    symbols, bits = numbers[codes], int(numbers[-1]).bit_length()

    if order * bits + n.bit_length() + 1 <= 64:
        pair = np.concatenate([np.arange(n), np.arange(n)]).repeat(lengths.T.ravel())
        side = np.arange(2).repeat(lengths.sum(axis=0))
        keys = _packed(symbols, lengths.T.ravel(), order, bits)
        keys |= pair.astype(np.uint64) << np.uint64(order * bits)
        keys = (keys << np.uint64(1)) | side.astype(np.uint64)
        keys.sort()
        _count_sorted(keys, order, bits, matches)
    elif n > 1:  # the keys do not fit: half of the pairs have a smaller alphabet
        for half in (slice(0, n // 2), slice(n // 2, n)):
            _fill_matches(hypotheses[half], references[half], order, lengths[half], matches[half])
    else:
        matches[0] = [_counted(hypotheses[0], references[0], length) for length in range(1, order + 1)]


def _packed(symbols: npt.NDArray[np.uint64], lengths: IntArray, order: int, bits: int) -> npt.NDArray[np.uint64]:
    """At each position its n-gram of the highest order, `bits` per symbol, 0 for symbols beyond the end of its text."""
    # Every text gets order - 1 zeros behind it, so that no n-gram reaches into the next.
    gap = order - 1
    at = np.arange(len(symbols)) + (np.arange(len(lengths)) * gap).repeat(lengths)
    padded = np.zeros(len(symbols) + gap * (len(lengths) + 1), dtype=np.uint64)
    padded[at] = symbols
    inner = len(padded) - gap
    keys = padded[:inner].copy()
    for shift in range(1, order):  # one symbol further at every position at once
        keys <<= np.uint64(bits)
        keys |= padded[shift : inner + shift]
    packed: npt.NDArray[np.uint64] = keys[at]
    return packed


def _count_sorted(keys: npt.NDArray[np.uint64], order: int, bits: int, matches: IntArray) -> None:
    """Write the matches of all orders from the sorted keys (pair, symbols, side), from the highest order down."""
    # Occurrences in hypothesis and reference are counted in the lower and upper half of one integer: one sum for both.
    counts = np.where(keys & np.uint64(1), np.int64(1 << 32), np.int64(1))
    grams = keys >> np.uint64(1)
    for length in range(order, 0, -1):
        # Equal n-grams are neighbours: the sum over a run of them is the running sum at its end less that before it.
        last = np.flatnonzero(np.append(grams[1:] != grams[:-1], True)) if len(grams) else np.empty(0, dtype=np.int64)
        counts = counts.cumsum()[last]
        counts[1:] -= counts[:-1].copy()
        grams = grams[last]
        common = np.minimum(counts >> 32, counts & 0xFFFFFFFF)
        common[(grams & np.uint64((1 << bits) - 1)) == 0] = 0  # ends beyond its text: an n-gram of a lower order only
        met = np.flatnonzero(common)
        pair = (grams[met] >> np.uint64(length * bits)).astype(np.int64)
        matches[:, length - 1] = np.bincount(pair, weights=common[met], minlength=len(matches))
        grams >>= np.uint64(bits)  # the next lower order: the last symbol is dropped


def _counted(hypothesis: str, reference: str, length: int) -> int:
    """The plain way, for a pair whose alphabet is too large for packed keys."""
    ours, theirs = (
        Counter(text[i : i + length] for i in range(len(text) - length + 1)) for text in (hypothesis, reference)
    )
    return (ours & theirs).total()
