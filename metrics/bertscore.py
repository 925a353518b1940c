"""BERTScore through the `bert-score` package, with its traps for Bengali fenced (`pip install ".[models]"`)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import metadata
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from bnbench.metrics.core import FloatArray, MeanMetric, Texts, ratio
from bnbench.metrics.exceptions import UsageError, require
from bnbench.metrics.normalization import Normalizer, normalizer
from bnbench.metrics.overlap import Pairs
from bnbench.metrics.tokenization import Preparation

MODEL = "bert-base-multilingual-cased"
LAYER = 9  # of 12, bert-score's choice for `MODEL`: it agreed best with people's ratings of translations
FLOOR = "bn.1"  # the version of `UNRELATED`, which stands in every signature
UNRELATED = tuple(Path(__file__).with_name("unrelated_bn.txt").read_text("utf-8").splitlines())
"""Texts of which no two say anything of each other: what the F1 of any two of them is, is the floor."""

_BATCH = 32
_PROBE = "কিশোরীর দুঃখ"  # five signs; an uncased tokenizer, which strips accents, deletes them
_SIGNS = "\u09bf\u09cb\u09c0\u09c1\u0983"
_OFFSET = frozenset({"roberta", "xlm-roberta", "camembert"})  # their positions start after the padding's


class BERTScore(MeanMetric):
    """BERTScore (Zhang et al. 2020): greedy matching of contextual token vectors, F1, mean over replies, 0-100.

    bert-score has no baseline for Bengali, and raw F1 of unrelated texts is high. So `floor` is the mean F1 of all
    pairs of `UNRELATED` under the same encoder, and `above_floor` is 100 (F - floor) / (100 - floor). A reply or
    reference without text scores 0; texts beyond the encoder's length are cut by it.

    `model` is a hub id or a folder, read when the first reply is scored; `layer` by default bert-score's choice where
    it knows the model, else three quarters of the way up, as in multilingual BERT. Scoring raises `MissingExtraError`
    without bert-score, `UsageError` for an unusable encoder, as one whose tokenizer deletes Bengali vowel signs.
    """

    name: ClassVar[str] = "BERTScore"
    description: ClassVar[str] = "contextual token similarity F1 with its random-pair floor, 0-100, higher is better"
    needs = frozenset({"references"})
    columns = ("f1", "precision", "recall", "floor", "replies")
    values = ("f1", "precision", "recall", "floor", "above_floor")
    details = frozenset({"precision", "recall"})
    labels = MappingProxyType({
        "f1": "BERTScore F1", "precision": "BERTScore precision", "recall": "BERTScore recall",
        "floor": "BERTScore of unrelated texts", "above_floor": "BERTScore above unrelated texts",
    })  # fmt: skip

    def __init__(
        self, model: str = MODEL, layer: int | None = None, norm: str | Normalizer = "bn1", device: str | None = None
    ) -> None:
        self.model, self.device = str(model), device
        self._layer = LAYER if layer is None and self.model == MODEL else layer
        self.normalizer = normalizer(norm)

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 4: F, precision, recall against the best reference, and the floor, all 0-1."""
        pairs = Pairs.of(texts, Preparation(self.normalizer))
        found = self._scored(pairs.replies, pairs.references)
        return np.column_stack([pairs.best(found, found[:, 0]), np.full(len(texts), self.floor)])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 5) to (..., 5): means times 100, and where F lies between the floor and 100."""
        means = super().formula(sums)
        f1, floor = means[..., 0], means[..., 3]
        return np.concatenate([means, 100 * ratio(f1 - floor, 100 - floor)[..., None]], axis=-1)

    @cached_property
    def choices(self) -> Mapping[str, object]:
        """The model, its layer, the versions of the floor's texts and of the package."""
        model, folder = self.model, Path(self.model)
        if folder.is_dir():  # where it lies moves no score; its weights do
            digest = hashlib.sha256()
            for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
                digest.update(path.read_bytes())
            model = f"{folder.resolve().name}@{digest.hexdigest()[:8]}"
        require("bert_score", extra="models", by=self.name)
        made_by = {"floor": FLOOR, "bert-score": metadata.version("bert-score")}
        return {"model": model, "layer": self.layer, "norm": self.normalizer.signature, **made_by}

    @cached_property
    def floor(self) -> float:
        """The mean F1 of all pairs of `UNRELATED`, 0-1, computed once."""
        some, others = zip(*combinations(UNRELATED, 2), strict=True)
        return float(self._scored(some, others)[:, 0].mean())

    @cached_property
    def layer(self) -> int:
        """The hidden layer whose vectors are compared, counted from 1."""
        if self._layer is not None:
            return self._layer
        config = Path(self.model) / "config.json"
        try:
            if config.is_file():
                layers = json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"]
            else:
                known: dict[str, int] = require("bert_score.utils", extra="models", by=self.name).model2layers
                if self.model in known:
                    return known[self.model]
                automatic = require("transformers", extra="models", by=self.name).AutoConfig
                layers = automatic.from_pretrained(self.model).num_hidden_layers
            return round(0.75 * int(layers))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"BERTScore finds no number of layers in the encoder {self.model!r}: {error}") from error

    def _scored(self, replies: Iterable[str], references: Iterable[str]) -> FloatArray:
        """(pairs, 3): F, precision, recall; 0 where a text is empty."""
        ours, theirs = ([self.normalizer(text).strip() for text in texts] for texts in (replies, references))
        filled = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a and b]
        scores = np.zeros((len(ours), 3))
        if filled:
            sides = ([side[i] for i in filled] for side in (ours, theirs))
            precision, recall, f1 = self._scorer.score(*sides, batch_size=_BATCH)
            scores[filled] = np.column_stack([part.double().numpy() for part in (f1, precision, recall)])
        return np.nan_to_num(scores)

    @cached_property
    def _scorer(self) -> Any:
        make = require("bert_score", extra="models", by=self.name).BERTScorer
        try:
            scorer = make(model_type=self.model, num_layers=self.layer, device=self.device)
        except (OSError, ValueError, AssertionError) as error:
            what = f"the encoder {self.model!r} with layer {self.layer}"
            raise UsageError(f"BERTScore cannot use {what}: {error}") from error
        tokenizer, config = scorer._tokenizer, scorer._model.config
        kept = tokenizer.decode(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
        if not all(sign in kept for sign in _SIGNS):
            what = f"loses Bengali vowel signs ({_PROBE!r} becomes {kept!r}), as uncased ones do"
            raise UsageError(f"the tokenizer of {self.model!r} {what}: take a cased multilingual or a Bengali encoder")
        # Tokenizers saved without a length claim 10^30, and the encoder then fails on a long text.
        most = getattr(config, "max_position_embeddings", None)
        if most is not None:
            reserved = (getattr(config, "pad_token_id", None) or 0) + 1 if config.model_type in _OFFSET else 0
            tokenizer.model_max_length = min(tokenizer.model_max_length, most - reserved)
        return scorer
