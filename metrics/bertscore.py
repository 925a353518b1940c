"""BERTScore through the `bert-score` package, with its traps for Bengali fenced. Needs `pip install
"bnbench[models]"`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, Metric, Texts, ratio, signature
from bnbench.metrics.errors import MissingExtraError, UsageError
from bnbench.metrics.normalization import Normalizer, normalizer
from bnbench.metrics.overlap import Pairs
from bnbench.metrics.tokenization import Preparation

_PROBE = "কিশোরীর দুঃখ"  # five signs; an uncased tokenizer, which strips accents, deletes them
_SIGNS = "\u09bf\u09cb\u09c0\u09c1\u0983"


class BERTScore(Metric):
    """BERTScore (Zhang et al. 2020): greedy matching of contextual token vectors, F1, mean over replies, 0-100.

    bert-score has no baseline for Bengali, and raw F1 of unrelated texts is high. `floor` is therefore computed on
    the run's own data, each reply against the next reply's reference, and `above_floor` is 100 (F - floor) / (100 -
    floor): 0 for what any two texts of this run would get. A reply or reference without text scores 0 (bert-score
    raises). An encoder whose tokenizer deletes Bengali vowel signs (every *uncased* one) is refused. Texts beyond the
    encoder's length are cut by it.

    `model` is a hub id or a folder; `layer` the hidden layer whose vectors are compared (9 of 12 is bert-score's
    choice for multilingual BERT). Raises `MissingExtraError` when bert-score is not installed, `UsageError` for an
    unusable encoder.
    """

    name: ClassVar[str] = "BERTScore"
    description: ClassVar[str] = "contextual token similarity F1 with its random-pair floor, 0-100, higher is better"
    needs = frozenset({"references"})

    def __init__(
        self,
        model: str = "bert-base-multilingual-cased",
        layer: int = 9,
        norm: str | Normalizer = "bn1",
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        self.model, self.layer, self.batch_size, self.device = model, layer, batch_size, device
        self.normalizer = normalizer(norm)
        self.columns = ("f1", "precision", "recall", "floor", "replies", "floor_pairs")
        self.values = ("f1", "precision", "recall", "floor", "above_floor")
        self._scorer: Any = None

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 6: F, precision, recall against the best reference, F against the next reply's reference, 1, 1 if there
        is one.
        """
        pairs = Pairs.of(texts, Preparation(self.normalizer))
        scores = pairs.best(found := self._scored(pairs.replies, pairs.references), found[:, 0])
        others = [r[0] for r in texts.references or ()]
        several = len(others) > 1
        floor = self._scored(texts.replies, (*others[1:], others[0]))[:, 0] if several else np.zeros(len(texts))
        ones = np.ones(len(texts))
        return np.column_stack([scores, floor, ones, ones * several])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 6) to (..., 5): means times 100; above_floor is 0 where there is no floor (a single reply)."""
        means = 100 * ratio(sums[..., :3], sums[..., 4:5])
        floor = 100 * ratio(sums[..., 3], sums[..., 5])
        above = np.where(sums[..., 5] > 0, 100 * ratio(means[..., 0] - floor, 100 - floor), 0.0)
        return np.concatenate([means, np.stack([floor, above], axis=-1)], axis=-1)

    def signature(self, n: int) -> str:
        """`BERTScore|model:...|layer:9|norm:bn1|floor:next-pair|n:...|bnbench:...`."""
        return signature(
            self.name, n, model=self.model, layer=self.layer, norm=self.normalizer.signature, floor="next-pair"
        )

    def _scored(self, replies: tuple[str, ...], references: tuple[str, ...]) -> FloatArray:
        """(pairs, 3): F, precision, recall; 0 where a text is empty."""
        ours, theirs = [self.normalizer(t).strip() for t in replies], [self.normalizer(t).strip() for t in references]
        filled = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a and b]
        scores = np.zeros((len(ours), 3))
        if filled:
            precision, recall, f1 = self._load().score(
                [ours[i] for i in filled], [theirs[i] for i in filled], batch_size=self.batch_size
            )
            scores[filled] = np.column_stack([f1.double().numpy(), precision.double().numpy(), recall.double().numpy()])
        return np.nan_to_num(scores)

    def _load(self) -> Any:
        if self._scorer is None:
            try:
                from bert_score import BERTScorer
            except ImportError as error:
                raise MissingExtraError('BERTScore needs bert-score: pip install "bnbench[models]"') from error
            try:
                scorer = BERTScorer(
                    model_type=self.model, num_layers=self.layer, device=self.device, batch_size=self.batch_size
                )
            except (OSError, ValueError, AssertionError) as error:
                raise UsageError(
                    f"BERTScore cannot use the encoder {self.model!r} with layer {self.layer}: {error}"
                ) from error
            _check_tokenizer(scorer._tokenizer, self.model)
            _bound_length(scorer._tokenizer, scorer._model)
            self._scorer = scorer
        return self._scorer


def _check_tokenizer(tokenizer: Any, model: str) -> None:
    kept = tokenizer.decode(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    if not all(sign in kept for sign in _SIGNS):
        raise UsageError(
            f"the tokenizer of {model!r} loses Bengali vowel signs ({_PROBE!r} becomes {kept!r}), as uncased ones do: "
            "take a cased multilingual or a Bengali encoder"
        )


def _bound_length(tokenizer: Any, model: Any) -> None:
    """Tokenizers saved without a length claim 10^30, and the encoder then fails on a long text."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None:
        reserved = (getattr(model.config, "pad_token_id", None) or 0) + 1 if model.config.model_type in _OFFSET else 0
        tokenizer.model_max_length = min(tokenizer.model_max_length, most - reserved)


_OFFSET = frozenset({"roberta", "xlm-roberta", "camembert"})  # their positions start after the padding's
