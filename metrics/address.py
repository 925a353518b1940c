"""Whether a reply keeps to one form of address: আপনি, তুমি or তুই."""

from types import MappingProxyType

import numpy as np

from bnbench.metrics.core import FloatArray, MeanMetric, Texts
from bnbench.metrics.normalization import normalize
from bnbench.metrics.tokenization import tokenize

_CASES = (
    "আপনি আপনাকে আপনার আপনাতে আপনারা আপনাদের আপনাদেরকে",
    "তুমি তোমাকে তোমায় তোমার তোমাতে তোমরা তোমাদের তোমাদেরকে",
    "তুই তোকে তোর তোতে তোরা তোদের তোদেরকে",
)
# Each with its emphatic -ই and -ও. Verbs are left out: করো, করিস and করেন tell the person only together with a pronoun.
_FORMS = [{normalize(word + end) for word in cases.split() for end in ("", "ই", "ও")} for cases in _CASES]


def address_of(text: str) -> str:
    """আপনি, তুমি or তুই, as the text addresses its reader; "mixed" where it has several, "none" without a pronoun."""
    words = set(tokenize(text))
    found = [cases.split()[0] for cases, form in zip(_CASES, _FORMS, strict=True) if words & form]
    return found[0] if len(found) == 1 else "mixed" if found else "none"


class Address(MeanMetric):
    """The share of replies that do not mix আপনি, তুমি and তুই, 0-100: whoever comforts somebody keeps to one of them.

    A reply without any pronoun of address counts as steady. What is quoted is not told apart.
    """

    name = "address"
    description = "share of replies that keep to one form of address, 0-100, higher is better"
    columns = ("steady", "n")
    values = ("address",)
    shares = frozenset(values)
    labels = MappingProxyType({"address": "one form of address, %"})
    choices = MappingProxyType({"norm": "bn1", "tok": "bn1"})

    def per_reply(self, texts: Texts) -> FloatArray:
        """1 for a reply with one form of address or none, n x 1."""
        return np.array([[address_of(reply) != "mixed"] for reply in texts.replies], dtype=np.float64)
