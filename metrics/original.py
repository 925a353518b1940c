"""The original project's numbers as it computed them, and beside them what they should have been.

For reproducing published figures only; the profile is called `original` in signatures. What was wrong with each is in
its docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bnbench.metrics.core import Texts
from bnbench.metrics.exceptions import InputError, require

PATTERNS = (
    "বুঝতে পারছি", "বুঝি", "দুঃখিত", "কষ্ট", "মন খারাপ", "পাশে আছি", "সাহায্য",
    "চেষ্টা", "সাহস", "আশা", "স্বাভাবিক", "ঠিক আছে", "চিন্তা করবেন না", "একা নন",
)  # fmt: skip
"""Its keyword list. The semantic scorer used the first 12."""
THRESHOLD = 0.7
"""Its cosine threshold. For multilingual-e5 it means nothing: any two Bengali sentences lie in 0.76-0.92."""

_PROFILE = 'the profile "original"'
Encode = Callable[[Sequence[str]], npt.ArrayLike]


@dataclass(frozen=True)
class OriginalScores:
    """The original's figures on its own mixed scales, and `corrected`: the same quantities computed rightly, all on
    0-100.

    `bleu`, `keyword`, `semantic`: 0-100; `rouge1`, `rouge2`, `rougeL`: 0-1; `combined`: neither. `semantic` is None
    without an encoder, and `combined` then uses the keyword score.
    """

    bleu: float
    rouge1: float
    rouge2: float
    rougeL: float  # noqa: N815  # its name in the field
    keyword: float
    semantic: float | None
    combined: float
    corrected: Mapping[str, float]
    signature: str = "original|norm:none|bleu:13a|rouge:ascii|keyword:14|semantic:12"


def original_scores(
    replies: Sequence[str],
    references: Sequence[str],
    encode: Encode | None = None,
    messages: Sequence[str] | None = None,
) -> OriginalScores:
    """All figures of the original for n replies and their references.

    With `messages`, what the replies answer, `corrected` also has bnbench's keyword empathy.

    `encode` maps n strings to an (n, d) array; the original's was sentence-transformers'
    `paraphrase-multilingual-MiniLM-L12-v2`, which was never trained on Bengali. Raises `InputError` on unequal or no
    texts.
    """
    from bnbench.metrics.bleu import BLEU
    from bnbench.metrics.empathy.keyword import KeywordEmpathy
    from bnbench.metrics.rouge import ROUGE

    texts = Texts.of(replies, references, messages)
    texts.clusters()  # refuses no texts at all
    replies, references = texts.replies, list(texts.reference_texts())
    if len(replies) != len(references):
        raise InputError("the original knew one reference for each reply: give a list of texts")
    bleu, rouge = bleu_13a(replies, references), ascii_rouge(replies, references)
    keyword = float(keyword_scores(replies).mean())
    semantic = None if encode is None else float(semantic_scores(replies, encode).mean())
    empathy = keyword if semantic is None else semantic

    # The same quantities as bnbench computes them, with everything on 0-100.
    ours = ROUGE().result(texts).scores
    right = {"BLEU": BLEU().result(texts).value, **{kind: ours[kind] for kind in ("rouge1", "rouge2", "rougeL")}}
    if messages is not None:
        right["keyword-empathy"] = KeywordEmpathy().result(texts).value
    right["combined"] = 0.25 * right["BLEU"] + 0.15 * right["rougeL"] + 0.60 * empathy
    one, two, longest = (rouge[kind] for kind in ("rouge1", "rouge2", "rougeL"))
    mixed = combined(bleu, longest, empathy)
    return OriginalScores(bleu, one, two, longest, keyword, semantic, mixed, right)


def keyword_scores(replies: Sequence[str]) -> npt.NDArray[np.float64]:
    """Per reply min(100, 200 m / 14), m = how many of the 14 patterns occur as substrings. Blind to negation and
    inflection.
    """
    found = [sum(pattern in reply for pattern in PATTERNS) for reply in replies]
    scores: npt.NDArray[np.float64] = np.minimum(100.0, 200.0 * np.array(found) / len(PATTERNS))
    return scores


def semantic_scores(replies: Sequence[str], encode: Encode) -> npt.NDArray[np.float64]:
    """Per reply min(100, 200 m / 12), m = how many of the first 12 patterns have cosine > 0.7 with the reply."""
    patterns = PATTERNS[:12]
    vectors = np.asarray(encode([*patterns, *replies]), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(patterns) + len(replies):
        raise InputError(
            f"encode gave shape {vectors.shape} for {len(patterns) + len(replies)} texts: one row per text is needed"
        )
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths == 0, 1, lengths)
    near = (vectors[len(patterns) :] @ vectors[: len(patterns)].T > THRESHOLD).sum(axis=1)
    scores: npt.NDArray[np.float64] = np.minimum(100.0, 200.0 * near / len(patterns))
    return scores


def combined(bleu: float, rouge_l: float, empathy: float) -> float:
    """0.25 BLEU + 0.15 ROUGE-L + 0.60 empathy / 100 with BLEU left on 0-100: a sum of two scales, in which BLEU
    weighs 100-fold.
    """
    return 0.25 * bleu + 0.15 * rouge_l + 0.60 * empathy / 100


def bleu_13a(replies: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU with sacrebleu's default tokeniser, which leaves `।` glued to its word; 0-100."""
    module = require("sacrebleu.metrics.bleu", extra="compare", by=_PROFILE)
    return float(module.BLEU().corpus_score(list(replies), [list(references)]).score)


def ascii_rouge(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F of rouge-score's default tokeniser, which keeps [a-z0-9] only: 0 for identical Bengali texts; 0-1."""
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = require("rouge_score.rouge_scorer", extra="compare", by=_PROFILE).RougeScorer(kinds)
    scores = [scorer.score(reference, reply) for reply, reference in zip(replies, references, strict=True)]
    return {kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}
