"""Decoding: how a reply is drawn from the logits. Lengths are set in Bengali words; noise belongs to the item.

Tokenizers spend 2 to 7 tokens on a Bengali word, so tokens follow from the fertility measured on the texts at hand.

Noise is a function of (seed, item, step, token) alone, from the counter-based generator Philox4x32-10 (Salmon et al.
2011, Random123): replies depend on no neighbours, machine or past, and where two models' logits agree, so do replies.
"""

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bnbench.errors import UsageError

# For a tokenizer's fertility where the run has no references of its own.
SENTENCES = (
    "আপনার কষ্টটা বুঝতে পারছি। এমন সময়ে মন খারাপ হওয়াটা খুবই স্বাভাবিক।",
    "আজ রাতে ঘুমানোর আগে ফোনটা দূরে রেখে একটু হাঁটুন, তারপর কাছের কাউকে কথাটা খুলে বলুন।",
    "চাকরিটা চলে যাওয়া আপনার যোগ্যতার বিচার নয়; নতুন করে শুরু করার জন্য নিজেকে কয়েকটা দিন সময় দিন।",
    "মায়ের অসুখের খবর শুনে দুশ্চিন্তা হবেই। ডাক্তারের সঙ্গে কথা বলার সময় প্রশ্নগুলো একটা কাগজে লিখে নিয়ে যান।",
    "তুমি একা নও। পরীক্ষার ফল যা-ই হোক, বাবা-মা তোমাকে ভালোবাসেন, আর আবার চেষ্টা করার সুযোগ আছে।",
    "বন্ধুর সঙ্গে ঝগড়া হলে প্রথম কথাটা বলা সবচেয়ে কঠিন। ছোট একটা বার্তা দিয়ে শুরু করতে পারেন।",
    "এত দূরের শহরে একা একা থাকতে থাকতে বাড়ির কথা মনে পড়ে, তাই না? সপ্তাহে একদিন সবার সঙ্গে ভিডিও কলে কথা বলুন।",
    "ঋণের চাপ মাথায় নিয়ে রাত জাগলে সমাধান দূরে সরে যায়। আগে সবগুলো কিস্তির একটা তালিকা করুন।",
)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


@dataclass(frozen=True)
class Decoding:
    """How replies are drawn. The defaults are the original project's, but for the limit, which was 256 tokens.

    `greedy` takes the likeliest token after the repetition penalty, ignoring the others. `max_words` are Bengali words,
    `max_new_tokens` overrides it. `top_k` 0 and `top_p` 1 are off. UsageError for a setting out of its range.
    """

    greedy: bool = False
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    repetition_penalty: float = 1.1
    max_words: int = 120
    max_new_tokens: int | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0 < self.temperature < math.inf, "above 0 and finite (for no sampling use greedy)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0 and finite (1 is off)"),
            "max_words": (self.max_words >= 1, "at least 1"),
            "max_new_tokens": (self.max_new_tokens is None or self.max_new_tokens >= 1, "at least 1"),
            "seed": (0 <= self.seed < 2**64, "from 0 to 2^64 - 1"),
        }
        for name, (is_right, rule) in limits.items():
            if not is_right:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be {rule}")


def item_key(seed: int, item: str) -> tuple[int, ...]:
    """The item's part of the noise: 128 bits as four 32-bit words, from the seed and the item's id."""
    return struct.unpack_from(">4I", hashlib.sha256(f"{seed}\x1f{item}".encode()).digest())


def philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10: four counters and two keys to four words, all int64 arrays of 32-bit words, numpy's or torch's."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product needs 64 bits without sign; as int64 it wraps to the same bits, and masking cuts the sign off.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (((high >> 32) & _MASK) ^ c1 ^ k0, high & _MASK, ((low >> 32) & _MASK) ^ c3 ^ k1, low & _MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_words(keys: Any, step: int, tokens: Any) -> Any:
    """A 32-bit random word for each (item, token), the same whatever other tokens are asked for.

    `keys` (n, 4) of `item_key` and `tokens` (n, m) are int64 arrays of one library; so is the result, (n, m). The
    number (word + 0.5) / 2^32, in 64-bit arithmetic, is uniform in (0, 1).
    """
    parts = [keys[:, i : i + 1] for i in range(4)]
    return philox((tokens, tokens * 0 + step, parts[2], parts[3]), (parts[0], parts[1]))[0]
