"""Yardsticks: replies that need no model, so that a score can be read. They stand in every run and rank with nobody."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from bnbench.data.corpus import Example
from bnbench.metrics.core import Metric, Texts, statistics
from bnbench.metrics.empathy.encoder import load_encoder
from bnbench.metrics.tokenization import preparation
from bnbench.progress import Stage
from bnbench.records import YardstickRecord, write_scores

DRAWINGS = 5  # of another item's reference
REFERENCE, ANOTHER, HALF, ANOTHER_HALF = "reference", "another", "half", "another-half"
HALVES = (HALF, ANOTHER_HALF)
"""The first half of a reference, the item's or another's, scored against the item's second half: not shown, but says
whether a metric that reads references tells what belongs to a message from what does not."""
STOCK_REPLY = (
    "আপনার কথা শুনে সত্যিই খারাপ লাগছে। এমন সময়ে মন ভেঙে যাওয়াটা খুব স্বাভাবিক, নিজেকে দোষ দেবেন না। "
    "আপনি একা নন। কাছের কারও সঙ্গে মন খুলে কথা বলুন, নিজের একটু যত্ন নিন, ধীরে ধীরে সব ঠিক হয়ে যাবে। "
    "আরও কিছু বলতে ইচ্ছে হলে বলুন, আমি শুনছি।"
)


def write_yardsticks(
    folder: Path, examples: Sequence[Example], train: Sequence[str], metrics: Sequence[Metric], seed: int, quiet: bool
) -> tuple[YardstickRecord, ...]:
    """Scores what `metrics` can say of each yardstick into `scores/yardsticks/`; several replies to an item are rows of
    its id. `train` are references that are not tested, of which the most central one is a stock reply (none: none).
    """
    references = [e.reference for e in examples]
    messages = tuple(f"{e.title} {e.question}".strip() for e in examples)
    # Each yardstick: what it is called, the one text it is (or ""), and m columns of n replies.
    n, drawn = len(examples), list(drawings(messages, seed))
    # The first and the second half of each reference's sentences; of its words where it has one sentence.
    first, second = list[str](), list[str]()
    for text in references:
        sentences = preparation().split_sentences(text)
        parts = sentences if len(sentences) > 1 else text.split()
        middle = (len(parts) + 1) // 2
        first.append(" ".join(parts[:middle]))
        second.append(" ".join(parts[middle:]))
    central = ""
    if train:
        vectors = load_encoder().encode(train)
        central = train[int((vectors @ vectors.mean(axis=0)).argmax())]
    made: dict[str, tuple[str, str, Sequence[Sequence[str]]]] = {
        REFERENCE: ("the reference itself", "", [references]),
        ANOTHER: ("another item’s reference", "", [[references[j] for j in others] for others in drawn]),
        "central": ("the most central training reply", central, [[central] * n] if train else []),
        "stock": ("a stock reply", STOCK_REPLY, [[STOCK_REPLY] * n]),
        "copy": ("a copy of the message", "", [[e.question for e in examples]]),
        HALF: ("half of the reference", "", [first]),
        ANOTHER_HALF: ("half of another item’s reference", "", [[first[j] for j in others] for others in drawn]),
    }
    made = {name: one for name, one in made.items() if one[2]}
    counted = [m for m in metrics if not m.parts and m.needs <= {"references", "messages"}]
    ids, names = [e.id for e in examples], {c.name: c.columns for c in counted}
    with Stage("yardsticks", n * sum(len(one[2]) for one in made.values()), quiet=quiet) as progress:
        for name, (_, _, columns) in made.items():
            m, against = len(columns), tuple((text,) for text in (second if name in HALVES else references))
            tables = statistics(Texts(tuple(chain(*columns)), against * m, messages * m), counted, progress.advance)
            write_scores(folder, name, ids * m, dict(zip(names, tables, strict=True)), names, "yardsticks")
    return tuple(YardstickRecord(name, label, text) for name, (label, text, _) in made.items())


def drawings(messages: Sequence[str], seed: int) -> Iterator[list[int]]:
    """For each item another one, all of them once, never one with the same message; `DRAWINGS` times, or never where
    one message is that of more than half of the items.
    """
    n, rng = len(messages), np.random.default_rng([seed, 2])
    number = {message: i for i, message in enumerate(dict.fromkeys(messages))}
    group = np.array([number[message] for message in messages])
    most = int(np.bincount(group).max())
    for _ in range(DRAWINGS if 2 * most <= n else 0):
        # Items of one message lie together in a random order: as many places on as the largest group has is another.
        order = np.lexsort((rng.random(n), rng.permutation(len(number))[group]))
        others = np.empty(n, dtype=np.intp)
        others[order] = np.roll(order, -most)
        yield others.tolist()
