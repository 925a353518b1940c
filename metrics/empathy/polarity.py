"""Whether a sentence takes comfort back: what both empathy scorers know of refusal and mockery (`polarity.toml`)."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from bnbench.metrics.empathy.lexicon import Matcher
from bnbench.metrics.normalization import normalize


class Polarity:
    """The patterns of one file; `id` is its name, version and 8 hex digits of its sha256."""

    def __init__(self, data: bytes) -> None:
        table = tomllib.loads(data.decode("utf-8"))
        self.id = f"{table['name']}.{table['version']}-{hashlib.sha256(data).hexdigest()[:8]}"
        tables = {"classes": table["classes"], "endings": table["endings"]}
        self._groups = {
            phrase: (float(group["left"]), frozenset(group["unless"]))
            for group in reversed(table["group"])
            for phrase in group["phrases"]
        }
        self._alone = {phrase for group in table["group"] if group.get("alone") for phrase in group["phrases"]}
        self._refusals = Matcher(self._groups, **tables)
        self._lifting = Matcher(frozenset().union(*(unless for _, unless in self._groups.values())), **tables)
        verbs = [text for name in table["verbs"] for text in table["classes"][name] if " " not in text]
        stems = [text.partition("+")[0] + end for text in verbs for end in (("", "ই", "ও") if "+" in text else ("",))]
        self._joined = {normalize(stem + no): (normalize(stem), "না") for stem in stems for no in table["joined"]}
        self._telling = self._refusals.telling | self._joined.keys()

    def left(self, words: Sequence[str], clause_ends: Sequence[bool]) -> float:
        """How much of its comfort a reply keeps beside this sentence, 0-1, where 1 takes nothing back.

        The sentence is given as its words, and whether a clause ends with each.
        """
        if self._telling.isdisjoint(words):
            return 1.0
        clauses = list(self._clauses(words, clause_ends))
        found = [
            phrase
            for clause in clauses
            for phrase, places in self._refusals.find(clause)
            if phrase not in self._alone or len(places) == len(clause)
        ]
        if not found:
            return 1.0
        lifting = {phrase for phrase, _ in self._lifting.find([word for clause in clauses for word in clause])}
        groups = map(self._groups.__getitem__, found)
        return min((left for left, unless in groups if unless.isdisjoint(lifting)), default=1.0)

    def _clauses(self, words: Sequence[str], ends: Sequence[bool]) -> Iterator[list[str]]:
        """The words of each clause, a negation that is written on its verb taken off it."""
        clause: list[str] = []
        for word, end in zip(words, ends, strict=True):
            clause += self._joined.get(word, (word,))
            if end:
                yield clause
                clause = []
        if clause:
            yield clause


@lru_cache(maxsize=1)
def load_polarity() -> Polarity:
    """The patterns that ship with bnbench."""
    return Polarity((Path(__file__).parent / "polarity.toml").read_bytes())
