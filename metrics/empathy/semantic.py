"""Semantic empathy: what the sentences of a reply mean, seen by a sentence encoder, given the message they answer.

How a score is made, how it was validated, and what it cannot see: `docs/empathy.md`. Read it before using one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bnbench.metrics.core import SCORING_VERSION, FloatArray, Texts
from bnbench.metrics.empathy import MECHANISMS, EmpathyMetric, in_bengali
from bnbench.metrics.empathy.encoder import Encoder, load_encoder, words_only
from bnbench.metrics.empathy.head import load_head, weighed
from bnbench.metrics.empathy.keyword import LISTENING, TAG, UNASKED, listed
from bnbench.metrics.empathy.lexicon import load_polarity
from bnbench.metrics.exceptions import InputError, UsageError
from bnbench.metrics.labelled import LabelledSet, calibration_set
from bnbench.metrics.normalization import Memo
from bnbench.metrics.relevance import chances, fitted
from bnbench.metrics.romanised import bengali
from bnbench.metrics.tokenization import is_word, preparation

# The classes of anchors that contrast with all three mechanisms; `not_<mechanism>` contrast with one of them.
CONTRASTS = ("advice", "dismissive", "generic", "stamps", "refusing", "off_topic")
HEADS = (*MECHANISMS, *CONTRASTS, "empathic")
FEATURES = ("mechanism", "empathic", "advice", "dismissive", "generic", "stamps", "refusing", "relevance")
"""What a mechanism's model sees. `mechanism` is the highest value of its own head among the reply's own sentences,
`relevance` the log odds that `bnbench.metrics.relevance` gives; the others are means of heads."""
COPIED_SHARE = 0.7  # a sentence is copied when this share of its words begins as a word of the message does
HEAD_RIDGE = 3.0
HEARD = 0.7  # the level that words alone show at most; else one strong stock reply is as good as a person's own
_FOLDER = Path(__file__).parent / "anchors"
CALIBRATION = _FOLDER / "calibration.json"
_ARRAYS = ("mean", "scale", "weights", "thresholds")
_PERSONS = ("আমি", "আমা", "আপনি", "আপনা", "আপনে", "তুমি", "তোমা", "তুই", "তোর", "তোকে")

RIDGE = 5.0  # the penalty on the weights that `calibrate` fits
CHAINS = range(2, 8)  # how many stamps it chains

_log = logging.getLogger("bnbench")


class Anchors(NamedTuple):
    """Sentences and the class of each; `id` is name, version and 8 hex digits of the file's sha256."""

    id: str
    sentences: tuple[str, ...]
    labels: tuple[str, ...]


@lru_cache(maxsize=1)
def load_anchors() -> Anchors:
    """The anchors that ship with bnbench."""
    data = (_FOLDER / "bn.toml").read_bytes()
    classes = tomllib.loads(data.decode("utf-8"))
    name, version = classes.pop("name"), classes.pop("version")
    labels, sentences = zip(*((each, text) for each, texts in classes.items() for text in texts), strict=True)
    return Anchors(f"{name}.{version}-{hashlib.sha256(data).hexdigest()[:8]}", sentences, labels)


@dataclass(frozen=True)
class Calibration:
    """Coefficients of the three models, shapes (3, 8), (3, 8), (3, 8), (3, 2), and what they were fitted for."""

    encoder: str
    anchors: str
    mean: FloatArray
    scale: FloatArray
    weights: FloatArray
    thresholds: FloatArray

    @property
    def id(self) -> str:
        """8 hex digits of the sha256 over the coefficients."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()[:8]

    def as_json(self) -> dict[str, Any]:
        """What a calibration file holds."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {"encoder": self.encoder, "anchors": self.anchors, "features": list(FEATURES), **arrays}


def load_calibration(path: str | Path = CALIBRATION) -> Calibration:
    """What `Calibration.as_json` gave, from a file. Raises `UsageError` when it holds something else, or is damaged."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        if content["features"] != list(FEATURES):
            raise UsageError(f"the calibration {path} is for other features: make it anew with calibrate_semantic.py")
        arrays = [np.array(content[name], dtype=np.float64) for name in _ARRAYS]
        found = Calibration(content["encoder"], content["anchors"], *arrays)
        if content.get("id", found.id) != found.id:
            raise ValueError("its coefficients are not those that were written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the calibration {path} cannot be read: {error!r}") from error
    return found


class Sentence(NamedTuple):
    """One sentence of a reply, whether it is left out or asks, and what it leaves of the comfort (`Polarity.left`)."""

    text: str
    void: bool
    asks: bool
    left: float


class Seen(NamedTuple):
    """What a `Reader` sees of n replies, all 0 where one has no sentence of its own."""

    features: FloatArray  # (n, 3, 8)
    left: FloatArray  # (n,), what each keeps of its score: `Polarity.left`, or 0 without an own sentence
    asked: FloatArray  # (n,), what each keeps of exploration: 1 where a sentence of its own asks, else `UNASKED`


class SentenceReading(NamedTuple):
    """One sentence of a reply: `Sentence`, the value of each head, the nearest anchor and its class."""

    text: str
    void: bool
    asks: bool
    left: float
    heads: dict[str, float]
    nearest: str
    nearest_class: str


def _read(token: str) -> tuple[bool, str]:
    """Whether a token is a word, and its beginning, where it is one and no pronoun."""
    word = is_word(token)
    return word, (token[:4] if len(token) <= 6 else token[:5]) if word and not token.startswith(_PERSONS) else ""


class Reader:
    """Makes the features of replies with an encoder and anchors; everything in it comes from these two."""

    def __init__(self, encoder: Encoder, anchors: Anchors) -> None:
        self.encoder, self.anchors = encoder, anchors
        self.vectors = encoder.encode(anchors.sentences).astype(np.float64)
        self.mean = self.vectors.mean(axis=0)
        self._split, self._tokens = preparation().split_sentences, preparation().tokens
        self._read = Memo(_read)
        # The beginnings of a message's words, which their inflected forms share; of no pronoun.
        self._asked = lru_cache(1_000)(lambda text: {self._read[t][1] for t in self._tokens(text)} - {""})
        # The heads, (10, d + 1), the last column their constants: each mechanism against all that is not empathic, each
        # contrasting class against the mechanisms, and all mechanisms against the rest.
        vectors, labels = self.vectors - self.mean, np.array(anchors.labels)
        empathic, contrasting = np.isin(labels, MECHANISMS), np.isin(labels, CONTRASTS)
        sides = [(labels == name, contrasting | (labels == f"not_{name}")) for name in MECHANISMS]
        sides += [*((labels == name, empathic) for name in CONTRASTS), (empathic, ~empathic)]
        heads = []
        for these, others in sides:
            # Ridge regression of +1 (these) against -1 (others), both of equal weight; the constant is not penalised.
            weight = these / these.sum() + others / others.sum()
            weight *= (these.sum() + others.sum()) / 2
            rows = np.column_stack([vectors, np.ones(len(vectors))])
            penalty = np.diag([*[HEAD_RIDGE] * vectors.shape[1], 0.0])
            target = these.astype(np.float64) - others
            heads.append(np.linalg.solve((rows * weight[:, None]).T @ rows + penalty, rows.T @ (weight * target)))
        self.heads = np.round(heads, 8)  # the last digits follow the processor and the number of its threads

    def seen(self, texts: Texts) -> Seen:
        """What there is to see of replies and messages in Bengali script."""
        read = [self.sentences(*pair) for pair in zip(texts.replies, texts.messages or (), strict=True)]
        own = [[each for each in sentences if not each.void and each.left == 1] for sentences in read]
        # Every different sentence is encoded once, whatever replies and messages it stands in.
        row_of = {text: row for row, text in enumerate(dict.fromkeys(each.text for each in chain(*own)))}
        # No `@`: its sums follow the number of rows and of threads, and a reply's score would follow its neighbours.
        vectors = self.encoder.encode(list(row_of)).astype(np.float64) - self.mean
        heads = np.einsum("nd,hd->nh", vectors, self.heads[:, :-1]) + self.heads[:, -1]
        chance = chances(texts, "relevance")
        odds = np.log(chance / (1 - chance))
        made = np.zeros((len(own), len(MECHANISMS), len(FEATURES)))
        means_of = [HEADS.index(name) for name in FEATURES[1:-1]]
        for place, sentences in enumerate(own):
            if rows := [row_of[each.text] for each in sentences]:
                made[place, :, 0] = heads[rows, : len(MECHANISMS)].max(axis=0)
                made[place, :, 1:] = [*heads[rows].mean(axis=0)[means_of], odds[place]]
        left = [min(each.left for each in sentences) if some else 0 for sentences, some in zip(read, own, strict=True)]
        asked = [1.0 if any(each.asks for each in sentences) else UNASKED for sentences in own]
        return Seen(made, np.array(left, dtype=np.float64), np.array(asked))

    def sentences(self, reply: str, message: str) -> list[Sentence]:
        """The different sentences, left out where they, or the reply, are copied or lists."""
        asked = self._asked(message)
        read = {text: [(token, *self._read[token]) for token in self._tokens(text)] for text in self._split(reply)}
        known = {text: [key in asked for *_, key in words if key] for text, words in read.items()}
        everything = [*chain.from_iterable(known.values())]
        all_copied = sum(everything) >= COPIED_SHARE * len(everything)
        polarity, found = load_polarity(), list[Sentence]()
        for text, copied in known.items():
            if not copied:
                continue
            words, ends = list[str](), list[bool]()
            for token, word, _ in read[text]:
                if word:
                    words.append(token)
                    ends.append(False)
                elif ends and token != "-":  # সুখ-দুঃখ is one thing
                    ends[-1] = True
            ends[-1] = True
            void = all_copied or sum(copied) >= COPIED_SHARE * len(copied) or 2 * sum(listed(ends)) >= len(ends)
            question = "?" in text[len(text.rstrip("?!। )")) :] and not TAG.search(" ".join(words[-4:]))
            asks = question or not LISTENING.isdisjoint(words)
            found.append(Sentence(text, void, asks, polarity.left(words, ends)))
        return found


def calibrate(reader: Reader, data: LabelledSet) -> Calibration:
    """The coefficients that fit an encoder's features to labelled replies.

    Each mechanism has a proportional-odds model (McCullagh 1980): two thresholds and, with a ridge penalty, a weight
    for each of eight features. Replies without a sentence of their own score 0 by rule and are left out.
    """
    # Stuffed replies count as level 0, since what is said to everybody is not said to this person; and so do chains of
    # the anchors' stamps, under one message after the other.
    anchors = zip(reader.anchors.sentences, reader.anchors.labels, strict=True)
    stamps = [text for text, label in anchors if label == "stamps"]
    steps = [(first, size) for size in CHAINS for first in range(0, len(stamps), 2)]
    chains = [" ".join(stamps[(first + 7 * n) % len(stamps)] for n in range(size)) for first, size in steps]
    rows = [*data.rows]
    rows += [replace(row, reply=text, kind="stuffed") for row, text in zip(data.rows, chains, strict=False)]
    stuffed = np.array([row.kind == "stuffed" for row in rows])
    levels = np.where(stuffed[:, None], 0, np.array([row.levels for row in rows]))
    seen = reader.seen(in_bengali(Texts.of([row.reply for row in rows], messages=[row.message for row in rows])))
    whole = seen.left == 1
    features, levels = seen.features[whole], levels[whole]
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    n, _, f = features.shape
    penalty, models = np.array([RIDGE] * f + [1e-3] * 2), list[FloatArray]()  # of each: f weights and 2 thresholds
    for m in range(len(MECHANISMS)):
        # Every reply is two rows of one logistic regression: is its level above 0, and is it above 1.
        standard = ((features - mean) / scale)[:, m]
        twice = np.vstack([np.hstack([standard, -np.eye(2)[[level] * n]]) for level in range(2)])
        target = np.concatenate([levels[:, m] > 0, levels[:, m] > 1]).astype(np.float64)
        models.append(np.zeros(f + 2))
        for _ in range(50):  # Newton's method
            chance = 1 / (1 + np.exp(-twice @ models[-1]))
            curvature = (twice * (chance * (1 - chance))[:, None]).T @ twice + np.diag(penalty)
            models[-1] += np.linalg.solve(curvature, twice.T @ (target - chance) - penalty * models[-1])
    found = (mean, scale, np.stack(models)[:, :f], np.stack(models)[:, f:])
    return Calibration(reader.encoder.id, reader.anchors.id, *(np.round(each, 6) for each in found))


def kept_calibration(reader: Reader) -> Calibration:
    """`calibrate` on what our metrics learn from, kept on disk by the encoder's id; a damaged file is made again."""
    data = calibration_set()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("BNBENCH_CACHE") or caches / "bnbench")
    seen_by = reader.encoder.id, reader.anchors.id, load_polarity().id, fitted().id
    made_of = " ".join([*seen_by, data.sha256, SCORING_VERSION])
    path = folder / f"calibration-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.json"
    try:
        return load_calibration(path)
    except UsageError as error:
        if path.exists():
            _log.warning("%s; it is made again", error)
    made = calibrate(reader, data)
    try:
        # Written beside its place and then renamed, so that no other process reads half of it.
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False, encoding="utf-8") as file:
            json.dump({**made.as_json(), "id": made.id}, file)
        Path(file.name).replace(path)
    except OSError as error:
        _log.warning("the calibration of %s is not kept: %s", reader.encoder.id, error)
    return made


def credits(seen: Seen, calibration: Calibration, by_words: FloatArray, fit: FloatArray) -> FloatArray:
    """What replies earn, (n, 3), 0-1: half the expected levels, by sentences and words in equal parts, `weighed`."""
    # By sentences, 0-2: P(level > j) = sigmoid(z . weights - thresholds[j]).
    logits = ((seen.features - calibration.mean) / calibration.scale * calibration.weights).sum(axis=-1)
    above = 1 / (1 + np.exp(-np.clip(logits[..., None] - calibration.thresholds, -30, 30)))
    levels = (above.sum(axis=-1) + by_words[:, 1:].clip(max=HEARD)) / 2
    levels[:, 2] *= seen.asked
    return weighed(levels / 2 * seen.left[:, None], by_words, fit, seen.left)


class SemanticEmpathy(EmpathyMetric):
    """Semantic empathy with the shipped encoder, or with any that `load_encoder` takes.

    An encoder without a `calibration` file is calibrated when it is first used; given by folder or id, the result is
    kept. That use raises as `load_encoder` does, and `UsageError` when the file is for other encoders or anchors.
    """

    name: ClassVar[str] = "semantic-empathy"
    values = ("semantic_empathy", *MECHANISMS)
    _shipped = staticmethod(lru_cache(maxsize=1)(lambda: Reader(words_only(load_encoder()), load_anchors())))

    def __init__(self, encoder: str | Path | Encoder | None = None, calibration: str | Path | None = None) -> None:
        self._encoder, self._calibration = encoder, calibration

    def __getstate__(self) -> dict[str, Any]:
        """As it was made, for another process, which reads by itself."""
        return {"_encoder": self._encoder, "_calibration": self._calibration}

    @cached_property
    def reader(self) -> Reader:
        """The encoder with the anchors, read when first used."""
        if (given := self._encoder) is None:
            return self._shipped()
        return Reader(words_only(load_encoder(given) if isinstance(given, str | Path) else given), load_anchors())

    @cached_property
    def calibration(self) -> Calibration:
        """The coefficients for this encoder and these anchors."""
        reader, path = self.reader, self._calibration
        wanted = (reader.encoder.id, reader.anchors.id)
        found = load_calibration(path or CALIBRATION)
        if (found.encoder, found.anchors) == wanted:
            return found
        if path is None:
            by_name = isinstance(self._encoder, str | Path) and "@unknown" not in reader.encoder.id
            return kept_calibration(reader) if by_name else calibrate(reader, calibration_set())
        of = f"the calibration {path} is for encoder {found.encoder} and anchors {found.anchors}"
        how = "python scripts/calibrate_semantic.py --encoder ID --out FILE; or give none, and it is made here"
        raise UsageError(f"{of}, not for {' and '.join(wanted)}. Make one: {how}")

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 3: `credits`, 0 for a reply without a sentence of its own."""
        by_words = texts.derived("head", lambda: load_head().read(texts.replies))
        return credits(self.reader.seen(texts), self.calibration, by_words, chances(texts, "fit"))

    def explain(self, reply: str, message: str = "") -> tuple[SentenceReading, ...]:
        """The different sentences of the reply, each with its heads and the nearest anchor."""
        if not isinstance(reply, str) or not isinstance(message, str):
            raise InputError("explain takes one reply and one message, both text")
        sentences, anchors = self.reader.sentences(bengali(reply), bengali(message)), self.reader.anchors
        vectors = self.reader.encoder.encode([each.text for each in sentences]).astype(np.float64)
        heads = (vectors - self.reader.mean) @ self.reader.heads[:, :-1].T + self.reader.heads[:, -1]
        found = []
        for sentence, vector, row in zip(sentences, vectors, heads, strict=True):
            near = int((vector @ self.reader.vectors.T).argmax())
            named = dict(zip(HEADS, map(float, row), strict=True))
            found.append(SentenceReading(*sentence, named, anchors.sentences[near], anchors.labels[near]))
        return tuple(found)

    @property
    def choices(self) -> Mapping[str, object]:
        """The encoder, the anchors and the calibration, each with a hash, and how texts become words."""
        made_of = {"enc": self.reader.encoder.id, "anchors": self.reader.anchors.id, "cal": self.calibration.id}
        rules = {"head": load_head().id, "pol": load_polarity().id, "fit": fitted().id}
        return {**made_of, **rules, **preparation().choices}
