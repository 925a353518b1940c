"""Sentences to vectors: the encoder that ships with bnbench, and any sentence-transformers model by its id.

Texts go through the bn1 normaliser first, so the spellings of one sentence have one vector. How the shipped encoder was
distilled: its model card, `encoders/bn-static/README.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bnbench.metrics.exceptions import InputError, UsageError, require
from bnbench.metrics.normalization import UNCHANGED, Memo, normalize
from bnbench.metrics.tokenization import preparation

Vectors = npt.NDArray[np.float32]

SHIPPED = Path(__file__).parent / "encoders" / "bn-static"
_BATCH = 512  # sentences whose gathered vectors stay in the processor's cache
_LONGEST = 100  # characters of a token that WordPiece looks at
_MARK = "bn1"  # config.json's "text" of the folders that StaticEncoder may read


class Encoder(Protocol):
    """What the semantic metrics ask of an encoder."""

    @property
    def id(self) -> str:
        """Name and version of the weights, for signatures: two encoders with one id give the same vectors."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """n texts to n x d unit rows of float32; a text without anything to encode gives a row of zeros."""


@dataclass(frozen=True)
class Length:
    """How a text's length enters its vector, the `length` of a folder's config.json (`StaticEncoder`)."""

    start: float
    weight: float
    turn: float


class StaticEncoder:
    """A static encoder of bn1 tokens from a folder that `scripts/make_encoder.py` wrote; numpy only.

    The folder is a model2vec one: one vector for each word or word part, and a sentence is their mean, made a unit
    vector. (`StaticModel.from_pretrained` reads it too, and gives the vectors of `words_only` for bn1 tokens joined by
    spaces.) To that it adds how long the text is, since its teacher puts texts of like length nearer to each other.
    `id` is the folder's name and 8 hex digits of the sha256 over its weights, vocabulary and `Length`; `dim` the length
    of a vector. Raises `UsageError` when the folder lacks a file or holds another kind of model.
    """

    def __init__(self, folder: str | Path = SHIPPED) -> None:
        from safetensors.numpy import load  # here, since importing a metric must stay cheap

        self.folder, files = Path(folder), {}
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            try:
                files[name] = (self.folder / name).read_bytes()
            except OSError as error:
                raise UsageError(f"the encoder folder {self.folder} has no readable {name}: {error}") from error
        config, weights, tokenizer = files.values()
        settings = json.loads(config)
        if settings.get("text") != _MARK:
            raise UsageError(f"{self.folder} holds no encoder of bn1 tokens (made by scripts/make_encoder.py)")
        self._length = Length(**settings["length"]) if "length" in settings else None
        digest = hashlib.sha256(weights + tokenizer)
        self.id = self._id_of_words = f"{self.folder.name}@{digest.hexdigest()[:8]}"
        if self._length:
            digest.update(repr(self._length).encode())
            self.id = f"{self.folder.name}@{digest.hexdigest()[:8]}"
        table = load(weights)  # int8 rows, and the scales that make them the vectors
        self._vectors: Vectors = table["embeddings"].astype(np.float32) * table["weights"].astype(np.float32)[:, None]
        self._vocabulary: dict[str, int] = json.loads(tokenizer)["model"]["vocab"]
        self.dim = int(self._vectors.shape[1]) + (3 if self._length else 0)
        prepared = preparation()
        self._prepare, self._tokens = prepared.normalizer.beyond_words, prepared.pieces
        # The rows of each raw word, found once however many texts have it: this is what makes it fast.
        self._rows: Memo[tuple[int, ...]] = Memo(self._rows_of)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """n texts to n x d unit rows of float32, each by itself, 0 without a known part; `InputError` for no texts."""
        _check(texts)
        found: Vectors = np.zeros((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), _BATCH):
            block = (self._prepare(text).split() for text in texts[start : start + _BATCH])
            rows = [list(chain.from_iterable(map(self._rows.__getitem__, words))) for words in block]
            lengths = np.fromiter(map(len, rows), np.intp, len(rows))
            filled = np.flatnonzero(lengths)
            if not len(filled):
                continue
            # The vectors of all texts of the block, summed from where each text begins to where the next one does.
            flat = np.fromiter(chain.from_iterable(rows), np.intp, int(lengths.sum()))
            sums = np.add.reduceat(self._vectors[flat], (np.cumsum(lengths) - lengths)[filled], axis=0)
            # With a length there is one more component before the sum is made a unit vector: a short text says less and
            # leans to where all do. Two more after it: the cosine of two texts falls with the ratio of their lengths.
            if self._length:
                sums = np.column_stack([sums, np.full(len(sums), self._length.start)])
            norms = np.sqrt(np.einsum("ij,ij->i", sums, sums))[:, None]
            unit = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)
            if self._length:
                angle = self._length.turn * np.log1p(lengths[filled])[:, None]
                turned = [self._length.weight * np.cos(angle), self._length.weight * np.sin(angle)]
                unit = np.column_stack([unit, *turned]) / np.sqrt(1 + self._length.weight**2)
            found[start + filled] = unit
        return found

    def _rows_of(self, raw: str) -> tuple[int, ...]:
        known = self._vocabulary
        if raw in known and UNCHANGED.fullmatch(raw):  # every second word: a token and a part as it stands
            return (known[raw],)
        return tuple([known[part] for token in self._tokens[raw] for part in word_parts(token, known)])


class TransformerEncoder:
    """Any sentence-transformers model, by hub id or folder; needs `pip install ".[models]"`.

    Models of the e5 family are given the prefix `query: ` that they were trained with. `id` is name@commit, or for a
    local folder name@8 hex digits of the sha256 over its weights, vocabulary and settings, and the prefix. Only
    safetensors weights are read, and no code of the model's is run. Raises `MissingExtraError` without
    sentence-transformers, `UsageError` when the model is not there.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        make = require("sentence_transformers", extra="models", by=f"the encoder {name!r}").SentenceTransformer
        try:
            self._model = make(name, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True})
        except Exception as error:  # of the hub, safetensors, tokenizers or torch: a user is told the first line
            why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UsageError(
                f"the encoder {name!r} could not be loaded: {why}. Give the folder or the hub id of a "
                "sentence-transformers model with safetensors weights, or none for the encoder that ships with bnbench"
            ) from error
        folder = Path(name)
        self._prefix = "query: " if "e5-" in folder.name.lower() else ""
        if folder.is_dir():
            digest = hashlib.sha256()
            for file in sorted(folder.rglob("*")):
                if file.suffix in (".safetensors", ".json", ".txt", ".model"):
                    digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
                    with file.open("rb") as opened:  # weights may be larger than the memory
                        digest.update(hashlib.file_digest(opened, "sha256").digest())
            version = digest.hexdigest()
        else:
            config = getattr(getattr(self._model[0], "auto_model", None), "config", None)
            version = getattr(config, "_commit_hash", None) or "unknown"
        self.id = f"{folder.name if folder.is_dir() else name}@{version[:8]}{'+query' if self._prefix else ''}"

    def encode(self, texts: Sequence[str]) -> Vectors:
        """n texts to n x d unit rows of float32, zeros for an empty text; raises as `StaticEncoder.encode` does."""
        _check(texts)
        normal = [normalize(text) for text in texts]
        found: Vectors = self._model.encode(
            [self._prefix + text for text in normal], normalize_embeddings=True, show_progress_bar=False
        ).astype(np.float32)
        found[[not text for text in normal]] = 0
        return found


def word_parts(token: str, vocabulary: Container[str], whole: bool = True) -> list[str]:
    """The longest beginning in the vocabulary, then the longest continuations (`##...`) until the token is used up.

    WordPiece (Schuster & Nakajima 2012) as Hugging Face's `tokenizers` does it: a token that is not wholly covered, or
    longer than 100 characters, has no parts. Without `whole`, only a single character is its own part.
    """
    parts: list[str] = []
    start, size = 0, len(token)
    while start < size <= _LONGEST:
        end = size if whole or start or size == 1 else size - 1
        mark = "##" if start else ""
        while end > start and mark + token[start:end] not in vocabulary:
            end -= 1
        if end == start:
            return []
        parts.append(mark + token[start:end])
        start = end
    return parts


@lru_cache(maxsize=4)
def load_encoder(id_or_path: str | Path | None = None) -> Encoder:
    """The shipped encoder for None; else a folder made by `scripts/make_encoder.py`, or a sentence-transformers model.

    Encoders are loaded once and shared. Raises as they do: one that is not there is an error, never another one.
    """
    if id_or_path is None:
        return StaticEncoder()
    try:
        ours = json.loads((Path(id_or_path) / "config.json").read_text("utf-8")).get("text") == _MARK
    except (OSError, ValueError, AttributeError):  # no such folder, or one that sentence-transformers may judge
        ours = False
    return StaticEncoder(id_or_path) if ours else TransformerEncoder(str(id_or_path))


def words_only(encoder: Encoder) -> Encoder:
    """The encoder without what a static one adds of length, for scores that length must not drive: a unit mean."""
    if not isinstance(encoder, StaticEncoder):
        return encoder
    made = copy(encoder)
    made._length, made.id, made.dim = None, encoder._id_of_words, int(encoder._vectors.shape[1])
    return made


def _check(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InputError("encode takes a list of texts, not one string: encode([text])")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"only text can be encoded, but text {number} is {type(text).__name__}")
