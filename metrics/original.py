"""The original project's numbers as it computed them, to reproduce published figures, and what they should have been.

The profile is called `original` in signatures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnbench.metrics.core import Texts
from bnbench.metrics.empathy.lexicon import load_lexicon
from bnbench.metrics.exceptions import InputError, require

PATTERNS: tuple[str, ...] = load_lexicon("original").patterns
"""Its keyword list. The semantic scorer used the first 12."""
THRESHOLD = 0.7
"""Its cosine threshold. For multilingual-e5 it means nothing: any two Bengali sentences lie in 0.76-0.92."""

_PROFILE = 'the profile "original"'
Encode = Callable[[Sequence[str]], npt.ArrayLike]


@dataclass(frozen=True)
class OriginalScores:
    """The original's figures for n replies, on its own mixed scales; `corrected` are the same done rightly, 0-100."""

    n: int
    bleu: float  # 0-100, as `keyword` and `semantic`
    rouge1: float  # 0-1, as the other two
    rouge2: float
    rougeL: float  # noqa: N815  # its name in the field
    keyword: float
    semantic: float | None  # None without an encoder, and `combined` then uses the keyword score
    combined: float  # on neither scale
    corrected: Mapping[str, float]
    signature: str = "original|norm:none|bleu:13a|rouge:ascii|keyword:14|semantic:12"

    def summary(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        names = {"bleu": "BLEU", "keyword": "keyword-empathy", "semantic": "semantic-empathy"}
        lines = [f"{'':<18}{'original':>12}{'should be':>12}"]
        for key in ("bleu", "rouge1", "rouge2", "rougeL", "keyword", "semantic", "combined"):
            name = names.get(key, key)
            cells = ((getattr(self, key), 4), (self.corrected.get(name), 2))
            shown = ["–" if value is None else f"{value:.{digits}f}" for value, digits in cells]
            lines.append(f"{name:<18}" + "".join(f"{cell:>12}" for cell in shown))
        if self.semantic is None:  # what a dash stands for
            how = "original_scores(replies, references, encode) in Python takes one"
            lines.append(f"semantic-empathy needs the original's encoder, and combined takes keyword-empathy; {how}")
        if "keyword-empathy" not in self.corrected:
            lines.append("keyword-empathy as it should be reads what the replies answer: --messages FILE")
        return "\n".join([*lines, f"{self.signature}|n:{self.n}"])


def original_scores(
    replies: Sequence[str], references: Sequence[str], encode: Encode | None = None,
    messages: Sequence[str] | None = None,
) -> OriginalScores:  # fmt: skip
    """All figures of the original for n replies and their references.

    With `messages`, what the replies answer, `corrected` also has bnbench's keyword empathy. `encode` maps n strings
    to an (n, d) array; the original's was sentence-transformers' `paraphrase-multilingual-MiniLM-L12-v2`, which was
    never trained on Bengali. Raises `InputError` on unequal or no texts.
    """
    from bnbench.metrics.bleu import BLEU
    from bnbench.metrics.empathy.keyword import KeywordEmpathy
    from bnbench.metrics.rouge import ROUGE

    texts = Texts.of(replies, references, messages)
    texts.clusters()  # refuses no texts at all
    replies, references = texts.replies, [reference for some in texts.references or () for reference in some]
    if len(replies) != len(references):
        raise InputError("the original knew one reference for each reply: give a list of texts")
    # sacrebleu's default tokeniser leaves `।` glued to its word.
    thirteen_a = require("sacrebleu.metrics.bleu", extra="compare", by=_PROFILE).BLEU()
    bleu = float(thirteen_a.corpus_score(list(replies), [references]).score)
    # rouge-score's default tokeniser keeps [a-z0-9] only: 0 for identical Bengali texts.
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = require("rouge_score.rouge_scorer", extra="compare", by=_PROFILE).RougeScorer(kinds)
    scored = [scorer.score(reference, reply) for reply, reference in zip(replies, references, strict=True)]
    rouge = {kind: float(np.mean([scores[kind].fmeasure for scores in scored])) for kind in kinds}
    # Its keyword score: min(100, 200 m / 14), m of the 14 patterns being substrings. Blind to negation and inflection.
    found = np.array([sum(pattern in reply for pattern in PATTERNS) for reply in replies])
    keyword = float(np.minimum(100.0, 200.0 * found / len(PATTERNS)).mean())
    semantic = None if encode is None else float(semantic_scores(replies, encode).mean())
    empathy = keyword if semantic is None else semantic
    # Of the three that it adds only BLEU is on 0-100, and so weighs 100-fold.
    mixed = 0.25 * bleu + 0.15 * rouge["rougeL"] + 0.60 * empathy / 100
    # The same quantities as bnbench computes them, with everything on 0-100.
    ours = ROUGE().result(texts).scores
    right = {"BLEU": BLEU().result(texts).value, **{kind: ours[kind] for kind in kinds}}
    if messages is not None:
        right["keyword-empathy"] = KeywordEmpathy().result(texts).value
    right["combined"] = 0.25 * right["BLEU"] + 0.15 * right["rougeL"] + 0.60 * empathy
    one, two, longest = rouge.values()
    return OriginalScores(len(replies), bleu, one, two, longest, keyword, semantic, mixed, right)


def semantic_scores(replies: Sequence[str], encode: Encode) -> npt.NDArray[np.float64]:
    """Per reply min(100, 200 m / 12), m = how many of the first 12 patterns have cosine > 0.7 with the reply."""
    patterns = PATTERNS[:12]
    vectors, n = np.asarray(encode([*patterns, *replies]), dtype=np.float64), len(patterns) + len(replies)
    if vectors.ndim != 2 or len(vectors) != n:
        raise InputError(f"encode gave shape {vectors.shape} for {n} texts: one row per text is needed")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.where(lengths == 0, 1, lengths)
    near = (vectors[len(patterns) :] @ vectors[: len(patterns)].T > THRESHOLD).sum(axis=1)
    return np.minimum(100.0, 200.0 * near / len(patterns))  # type: ignore[no-any-return]
