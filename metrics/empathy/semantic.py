"""Semantic empathy: what the sentences of a reply mean, seen by a sentence encoder, given the message they answer.

The mechanisms are those of EPITOME (Sharma, Miner, Atkins & Althoff 2020), as in `empathy`. How a reply is scored:

* It is cut into sentences; a sentence that stands twice counts once. One whose words stand in the message (whatever the
  person: আমি বানালাম, আপনি বানালেন) is copied and left out, and so is a list (see `empathy.LISTED`). A reply with
  nothing of its own scores 0.
* `anchors/bn.toml` has sentences of each mechanism and sentences that contrast with it (advice, dismissal, generic
  talk, stamps, facts). From the anchors' vectors alone come linear contrasts ("heads"), by ridge regression: each
  mechanism against all that is not empathic, each contrasting class against the mechanisms, and all mechanisms
  against the rest.
* Seven features of a reply are made of them (`FEATURES`): means over its own sentences, the best sentence for the
  mechanism itself, and how near the reply is to its message. None is a length, a count, or a mark of punctuation.
* A proportional-odds model for each mechanism turns the features into the expected level (0-2), times 50. It was fitted
  on the development half of the labelled set by `scripts/calibrate_semantic.py`, which took stuffed replies, and
  empathic replies to another message, for level 0: they are not said to this person.

The shipped encoder is a mean of word vectors: it cannot see word order, and hardly sees a negation. No score here says
whether a reply is right, safe, or would be felt as kind. Read `docs/empathy.md` before using one.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from bnbench.metrics.core import FloatArray, Metric, Texts, ratio, signature
from bnbench.metrics.empathy import MECHANISMS, labels_by_means
from bnbench.metrics.empathy.encoder import Encoder, load_encoder, words_only
from bnbench.metrics.empathy.keyword import listed
from bnbench.metrics.errors import InputError, UsageError
from bnbench.metrics.tokenization import is_word, preparation

Flags = npt.NDArray[np.bool_]

CONTRASTS = ("advice", "dismissive", "generic", "stamps", "off_topic")
"""The classes of anchors that contrast with all three mechanisms; `not_<mechanism>` contrast with one of them."""
HEADS = (*MECHANISMS, *CONTRASTS, "empathic")
FEATURES = ("mechanism", "empathic", "advice", "dismissive", "generic", "stamps", "related")
"""What a mechanism's model sees. `mechanism` is the highest value of its own head among the reply's own sentences,
`related` the mean, over them, of the cosine with the nearest sentence of the message; the others are means of heads."""
COPIED_SHARE = 0.7
"""A sentence is copied when this share of its words begins as a word of the message does."""
HEAD_RIDGE = 3.0
ANCHORS = Path(__file__).parent / "anchors" / "bn.toml"
CALIBRATION = Path(__file__).parent / "anchors" / "calibration.json"
_PERSONS = ("আমি", "আমা", "আপনি", "আপনা", "আপনে", "তুমি", "তোমা", "তুই", "তোর", "তোকে")


@dataclass(frozen=True)
class Anchors:
    """Sentences by class; `id` is name, version and 8 hex digits of the file's sha256."""

    id: str
    classes: dict[str, tuple[str, ...]]

    @property
    def sentences(self) -> list[str]:
        """All sentences, class by class."""
        return [sentence for group in self.classes.values() for sentence in group]

    @property
    def labels(self) -> list[str]:
        """The class of each sentence."""
        return [name for name, group in self.classes.items() for _ in group]


@lru_cache(maxsize=4)
def load_anchors(path: Path = ANCHORS) -> Anchors:
    """The anchors of a TOML file. Raises `UsageError` when a class is missing, empty, or not known."""
    try:
        data = path.read_bytes()
        content = tomllib.loads(data.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"the anchors {path} cannot be read: {error}") from error
    name, version = content.pop("name", path.stem), content.pop("version", "0")
    wanted = {*MECHANISMS, *(f"not_{name}" for name in MECHANISMS), *CONTRASTS}
    if wrong := wanted.symmetric_difference(content) or {each for each in wanted if not content[each]}:
        raise UsageError(f"{path}: {', '.join(sorted(wanted))} are needed; check {', '.join(sorted(wrong))}")
    classes = {each: tuple(sentences) for each, sentences in content.items()}
    return Anchors(f"{name}.{version}-{hashlib.sha256(data).hexdigest()[:8]}", classes)


@dataclass(frozen=True)
class Calibration:
    """Coefficients of the three models, shapes (3, 7), (3, 7), (3, 7), (3, 2), and what they were fitted for.

    With z = (features - mean) / scale, P(level > j) = sigmoid(z . weights - thresholds[j]).
    """

    encoder: str
    anchors: str
    mean: FloatArray
    scale: FloatArray
    weights: FloatArray
    thresholds: FloatArray

    def levels(self, features: FloatArray) -> FloatArray:
        """Expected levels 0-2, shape (n, 3), from features (n, 3, 7)."""
        logits = ((features - self.mean) / self.scale * self.weights).sum(axis=-1)
        odds: FloatArray = 1 / (1 + np.exp(-np.clip(logits[..., None] - self.thresholds, -30, 30)))
        levels: FloatArray = odds.sum(axis=-1)
        return levels

    @property
    def id(self) -> str:
        """8 hex digits of the sha256 over the coefficients."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:8]

    def as_json(self) -> dict[str, Any]:
        """What a calibration file holds."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "scale", "weights", "thresholds")}
        return {"encoder": self.encoder, "anchors": self.anchors, "features": list(FEATURES), **arrays}


def load_calibration(path: str | Path = CALIBRATION) -> Calibration:
    """A file that `scripts/calibrate_semantic.py` wrote. Raises `UsageError` when it is not one."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        if content["features"] != list(FEATURES):
            raise UsageError(f"the calibration {path} is for other features: make it anew with calibrate_semantic.py")
        arrays = [np.array(content[name], dtype=np.float64) for name in ("mean", "scale", "weights", "thresholds")]
        return Calibration(content["encoder"], content["anchors"], *arrays)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the calibration {path} cannot be read: {error!r}") from error


@dataclass(frozen=True)
class SentenceReading:
    """One sentence of a reply: whether it is left out, the value of each head, the nearest anchor and its class."""

    text: str
    void: bool
    heads: dict[str, float]
    nearest: str
    nearest_class: str


class Reader:
    """Makes the features of replies with an encoder and anchors; everything in it comes from these two."""

    def __init__(self, encoder: Encoder, anchors: Anchors) -> None:
        self.encoder, self.anchors = encoder, anchors
        self.vectors = encoder.encode(anchors.sentences).astype(np.float64)
        self._mean = self.vectors.mean(axis=0)
        self._heads = _fit_heads(self.vectors - self._mean, np.array(anchors.labels))
        self._split, self._tokens = preparation().split_sentences, preparation().tokens

    def features(self, texts: Texts) -> tuple[FloatArray, FloatArray]:
        """Features (n, 3, 7), and for each reply 1 when it has a sentence of its own, else 0 (its features are 0)."""
        own = [self._own(*pair) for pair in zip(texts.replies, texts.messages or (), strict=True)]
        sentences = {text: place for place, text in enumerate(dict.fromkeys(chain.from_iterable(own)))}
        vectors, heads = self._read(list(sentences))
        messages = {message: self._split(message) for message in dict.fromkeys(texts.messages or ())}
        asked = {text: place for place, text in enumerate(dict.fromkeys(chain.from_iterable(messages.values())))}
        said = self.encoder.encode(list(asked)).astype(np.float64)
        made = np.zeros((len(own), len(MECHANISMS), len(FEATURES)))
        for row, (texts_of, message) in enumerate(zip(own, texts.messages or (), strict=True)):
            if places := [sentences[text] for text in texts_of]:
                about = said[[asked[text] for text in messages[message]]]
                made[row] = _features(vectors[places], heads[places], about)
        return made, np.array([bool(each) for each in own], dtype=np.float64)

    def sentences(self, reply: str, message: str) -> list[tuple[str, bool]]:
        """The different sentences of a reply, and whether each is left out.

        It is when it is copied, as all are when the reply as a whole is, or a list.
        """
        asked = {_key(word) for word in self._words(message)}
        found = dict.fromkeys(self._split(reply))
        known = {text: [_key(word) in asked for word in self._words(text)] for text in found}
        everything = [each for words in known.values() for each in words]
        all_copied = _mostly(everything)
        return [(text, all_copied or _mostly(words) or self._is_list(text)) for text, words in known.items() if words]

    def read(self, reply: str, message: str) -> tuple[SentenceReading, ...]:
        """Every sentence of a reply as the scorer sees it."""
        pairs = self.sentences(reply, message)
        vectors, heads = self._read([text for text, _ in pairs])
        nearest = (vectors @ self.vectors.T).argmax(axis=1) if pairs else []
        found, labels = self.anchors.sentences, self.anchors.labels
        return tuple(
            SentenceReading(text, void, dict(zip(HEADS, map(float, row), strict=True)), found[near], labels[near])
            for (text, void), row, near in zip(pairs, heads, nearest, strict=True)
        )

    def _own(self, reply: str, message: str) -> list[str]:
        return [text for text, void in self.sentences(reply, message) if not void]

    def _is_list(self, text: str) -> bool:
        words = [is_word(token) for token in self._tokens(text)]
        ends = [not after for word, after in zip(words, [*words[1:], False], strict=True) if word]
        return 2 * sum(listed(ends)) >= len(ends)

    def _read(self, sentences: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        vectors: FloatArray = self.encoder.encode(sentences).astype(np.float64)
        return vectors, (vectors - self._mean) @ self._heads[:-1] + self._heads[-1]

    def _words(self, text: str) -> list[str]:
        return [token for token in self._tokens(text) if is_word(token) and not token.startswith(_PERSONS)]


def _key(word: str) -> str:
    """A word's beginning, which its inflected forms share."""
    return word[:4] if len(word) <= 6 else word[:5]


def _mostly(known: Sequence[bool]) -> bool:
    return sum(known) >= COPIED_SHARE * len(known)


def _features(vectors: FloatArray, heads: FloatArray, message: FloatArray) -> FloatArray:
    """(3, 7) from a reply's s sentences (s, d), their heads (s, 9), and the m sentences of its message (m, d)."""
    mean = heads.mean(axis=0)
    shared = [mean[HEADS.index(name)] for name in FEATURES[1:-1]]
    related = float((vectors @ message.T).max(axis=1).mean()) if len(message) else 0.0
    return np.array([[heads[:, place].max(), *shared, related] for place in range(len(MECHANISMS))])


def _fit_heads(vectors: FloatArray, labels: npt.NDArray[np.str_]) -> FloatArray:
    """(d + 1, 9): a column for each of `HEADS`, the last row its constant."""
    empathic = np.isin(labels, MECHANISMS)
    contrasting = np.isin(labels, CONTRASTS)
    columns = [_contrast(vectors, labels == name, contrasting | (labels == f"not_{name}")) for name in MECHANISMS]
    columns += [_contrast(vectors, labels == name, empathic) for name in CONTRASTS]
    columns.append(_contrast(vectors, empathic, ~empathic))
    return np.stack(columns, axis=1)


def _contrast(vectors: FloatArray, these: Flags, others: Flags) -> FloatArray:
    """Ridge regression of +1 (these) against -1 (others), both sides of equal weight; the constant is not penalised."""
    weight = these / these.sum() + others / others.sum()
    weight *= (these.sum() + others.sum()) / 2
    rows = np.column_stack([vectors, np.ones(len(vectors))])
    penalty = np.diag([*[HEAD_RIDGE] * vectors.shape[1], 0.0])
    target = these.astype(np.float64) - others
    return np.linalg.solve((rows * weight[:, None]).T @ rows + penalty, rows.T @ (weight * target))


class SemanticEmpathy(Metric):
    """Semantic empathy with the shipped encoder, or with any that `load_encoder` takes and a calibration made for it.

    `SemanticEmpathy().score(replies, messages=messages)` gives a `Result`, and `mechanisms(result)` each reply's. The
    first use raises `UsageError` when the encoder is missing or the calibration was made for another encoder or other
    anchors.
    """

    name: ClassVar[str] = "semantic-empathy"
    description: ClassVar[str] = "mean of emotional reaction, interpretation, exploration, 0-100, higher is better"
    needs = frozenset({"messages"})
    columns = (*MECHANISMS, "replies")
    values = ("semantic_empathy", *MECHANISMS)

    def __init__(self, encoder: str | Path | Encoder | None = None, calibration: str | Path | None = None) -> None:
        self._encoder, self._calibration = encoder, calibration or CALIBRATION

    @cached_property
    def reader(self) -> Reader:
        """The encoder with the anchors, read when first used."""
        given = self._encoder
        encoder = load_encoder(given) if given is None or isinstance(given, str | Path) else given
        return Reader(words_only(encoder), load_anchors())

    @cached_property
    def calibration(self) -> Calibration:
        """The coefficients, checked to be for this encoder and these anchors."""
        made, encoder, anchors = load_calibration(self._calibration), self.reader.encoder.id, self.reader.anchors.id
        if (made.encoder, made.anchors) != (encoder, anchors):
            raise UsageError(
                f"the calibration {self._calibration} is for encoder {made.encoder} and anchors {made.anchors}, not "
                f"for {encoder} and {anchors}. Make one: python scripts/calibrate_semantic.py --encoder ID --out FILE; "
                "then SemanticEmpathy(encoder=ID, calibration=FILE)"
            )
        return made

    @property
    def labels(self) -> Mapping[str, str]:
        """What a reader's table calls each value."""
        return labels_by_means(self, super().labels, "semantic")

    def statistics(self, texts: Texts) -> FloatArray:
        """n x 4: 0-1 for each mechanism, and 1 for the count."""
        self.check(texts)
        features, own = self.reader.features(texts)
        levels = self.calibration.levels(features) * own[:, None]
        return np.hstack([levels / 2, np.ones((len(texts), 1))])

    def formula(self, sums: FloatArray) -> FloatArray:
        """(..., 4) to (..., 4): the mean of the three mechanisms, then each."""
        means = 100 * ratio(sums[..., :-1], sums[..., -1:])
        return np.concatenate([means.mean(axis=-1, keepdims=True), means], axis=-1)

    def explain(self, reply: str, message: str = "") -> tuple[SentenceReading, ...]:
        """The different sentences of the reply, each with its heads and the nearest anchor."""
        if not isinstance(reply, str) or not isinstance(message, str):
            raise InputError("explain takes one reply and one message, both text")
        return self.reader.read(reply, message)

    def signature(self, n: int) -> str:
        """`semantic-empathy|enc:bn-static@1a2b3c4d|anchors:bn.1-1a2b3c4d|cal:1a2b3c4d|norm:bn1|tok:bn1|n:300|...`."""
        read, choices = self.reader, preparation().choices
        return signature(self.name, n, enc=read.encoder.id, anchors=read.anchors.id, cal=self.calibration.id, **choices)
