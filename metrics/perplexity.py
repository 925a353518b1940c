"""How well a model predicts the reference: bits per character, bits per byte, token perplexity."""

import math
from typing import ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Metric, Texts, ratio
from bnbench.metrics.exceptions import InputError
from bnbench.metrics.normalization import Normalizer, normalizer

_LARGEST_EXPONENT = 700.0  # exp of it is still a finite number


class Perplexity(Metric):
    """Bits per character (the headline), bits per byte and token perplexity of the references. Lower is better.

    Token perplexity compares models of one tokenizer only: among four toy models with other tokenizers the worst by
    token perplexity was the best in bits per character. A long text weighs more. Where the texts hold references, bytes
    and characters are those of the normalised first one, so that no model is charged for another spelling. It says
    nothing about what the model would write itself.
    """

    name: ClassVar[str] = "perplexity"
    description: ClassVar[str] = "bits per character and per byte, token perplexity of the references; lower is better"
    higher_is_better: ClassVar[bool] = False
    is_percent: ClassVar[bool] = False
    needs = frozenset({"likelihoods"})
    columns = ("nll", "tokens", "bytes", "characters")
    values = ("bits_per_character", "bits_per_byte", "token_perplexity")
    details = frozenset({"bits_per_byte"})

    def __init__(self, norm: str | Normalizer = "bn1") -> None:
        self.normalizer = normalizer(norm)
        self.choices = {"norm": self.normalizer.signature}

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 4: nll in nats, tokens, bytes, characters; `InputError` on a row that is negative or not finite."""
        given = texts.likelihoods
        if given is None or given.ndim != 2 or given.shape[1] != 4:
            raise InputError("likelihoods must be one row (nll, tokens, bytes, characters) per reply")
        if len(bad := np.flatnonzero(~np.isfinite(given).all(axis=1) | (given < 0).any(axis=1))):
            row = given[bad[0]].tolist()
            raise InputError(f"likelihoods of row {bad[0]} are {row}: they must be finite and not negative")
        table = given.copy()
        if texts.references is not None:
            normal = [self.normalizer(references[0]) for references in texts.references]
            table[:, 2:] = [(len(text.encode("utf-8", "surrogatepass")), len(text)) for text in normal]
        return table

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 4) to (..., 3): nll / (ln 2 characters), nll / (ln 2 bytes), exp(nll / tokens)."""
        nll, tokens, size, characters = (sums[..., column] for column in range(4))
        perplexity = np.exp(np.minimum(ratio(nll, tokens), _LARGEST_EXPONENT))
        bits = nll / math.log(2)
        return np.stack([ratio(bits, characters), ratio(bits, size), perplexity], axis=-1)
