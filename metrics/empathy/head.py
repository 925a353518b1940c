"""What the words of a reply say of its empathy: a linear head on parts of words and pairs of words.

Fitted to labelled replies by `scripts/calibrate_head.py`; how, and what it is worth: `head/README.md`. Since it sees
parts of words, it knows a word in forms, spellings and dialects that it was not fitted to.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from bnbench.metrics.core import FloatArray
from bnbench.metrics.normalization import Memo
from bnbench.metrics.romanised import standard
from bnbench.metrics.tokenization import SENTENCE_ENDS, is_word, preparation

SHIPPED = Path(__file__).parent / "head" / "model.safetensors"
BUCKETS = 2**16  # the rows of the table, which parts and pairs share by the crc32 of their UTF-8
PARTS = range(2, 6)  # characters in a part, its word between < and >
PAIR = 3.0  # the value of a pair of neighbouring words, where a part has 1
SLOPE = 8.0  # from the regression of -1 and +1 to a chance
GENERAL = 0.15  # the part of emotional reaction that is anybody's: general kindness, from half a level to a whole one
_ROW = 5 * 8  # bytes of the numbers that a piece adds
_END = "|"  # stands for the beginning and end of a sentence in pairs


def buckets(piece: str) -> list[int]:
    """The rows of the table for the parts of a word, or for a pair of words with a space between."""
    if " " in piece:
        return [zlib.crc32(piece.encode()) % BUCKETS]
    marked = f"<{piece}>"
    parts = [marked[at : at + size] for size in PARTS for at in range(len(marked) - size + 1)]
    whole = [marked] if len(marked) > PARTS[-1] else []
    return [each % BUCKETS for each in map(zlib.crc32, map(str.encode, parts + whole))]


def pieces(text: str) -> list[str]:
    """The different words of a text in Bengali script, in their standard form, and its different neighbouring pairs."""
    tokens, known = preparation().tokens(text), standard()
    marked = [_END if t in SENTENCE_ENDS else known[t] for t in tokens if t in SENTENCE_ENDS or is_word(t)]
    marked = [_END, *marked, _END]
    pairs = dict.fromkeys(pairwise(marked))
    pairs.pop((_END, _END), None)
    return [*(word for word in dict.fromkeys(marked) if word != _END), *map(" ".join, pairs)]


class Head:
    """A head from the bytes of its file (none: the shipped one); `id` is 8 hex digits of their sha256.

    A reply is the vector of its pieces: each part of a word counts its rarity, each pair `PAIR` times that, and the
    vector has unit length, so that how long a reply is does not matter.
    """

    def __init__(self, data: bytes | None = None) -> None:
        from safetensors.numpy import load  # here, since importing a metric must stay cheap

        data = SHIPPED.read_bytes() if data is None else data
        self.id = hashlib.sha256(data).hexdigest()[:8]
        tensors = load(data)
        weights, rarity = tensors["weights"].astype(np.float64), tensors["rarity"].astype(np.float64)[:, None]
        self._table, self._constants = np.hstack([weights, rarity]), tensors["constants"]
        self._of_pairs: bytes = (PAIR * rarity * np.hstack([weights, PAIR * rarity])).tobytes()
        self._rows: Memo[bytes] = Memo(self._row)

    def read(self, texts: Iterable[str]) -> FloatArray:
        """(n, 4) of texts in Bengali script: the chance, 0-1, of empathy for anybody, and levels 0-2 by mechanism."""
        rows = [b"".join(map(self._rows.__getitem__, pieces(text))) or bytes(_ROW) for text in texts]
        sizes = np.array(list(map(len, rows)), dtype=np.intp) // _ROW
        table = np.frombuffer(b"".join(rows)).reshape(-1, 5)
        sums = np.add.reduceat(table, np.cumsum(sizes) - sizes) if rows else table
        known = sums[:, 4:] > 0  # else all is 0
        said = sums[:, :4] / np.sqrt(np.where(known, sums[:, 4:], 1)) + self._constants
        chance = 1 / (1 + np.exp(-SLOPE * said[:, :1]))
        found: FloatArray = np.where(known, np.hstack([chance, said[:, 1:].clip(0, 2)]), 0)
        return found

    def _row(self, piece: str) -> bytes:
        """What a piece adds to the four sums, and to the square of the vector's length: the bytes of five numbers."""
        if " " in piece:
            return self._of_pairs[(at := buckets(piece)[0] * _ROW) : at + _ROW]
        table = self._table.take(buckets(piece), axis=0)
        return bytes(table[:, 4].dot(table))


load_head = lru_cache(maxsize=1)(Head)  # that which ships with bnbench


def weighed(earned: FloatArray, by_words: FloatArray, fit: FloatArray, left: FloatArray) -> FloatArray:
    """What replies earned, (n, 3), 0-1, as surely as they are empathic, and for this person.

    `by_words` (n, 4) is of `Head.read`, `fit` (n,) of `chances`; `left` (n,) is what its general kindness keeps.
    """
    found = earned * by_words[:, :1] * fit[:, None]
    found[:, 0] = (1 - GENERAL) * found[:, 0] + GENERAL * left * (2 * by_words[:, 1] - 1).clip(0, 1)
    return found
