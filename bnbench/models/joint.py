"""Several sessions as one: models and recorded replies in the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bnbench.data.corpus import Corpus, Example
from bnbench.metrics.core import FloatArray
from bnbench.models.backend import Reply, Session
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompt


class JointSession:
    """Asks each candidate's own session; prompts, precision and lengths are those of the first one, the model's."""

    def __init__(self, sessions: Sequence[tuple[Sequence[Candidate], Session]]) -> None:
        self._first = sessions[0][1]
        self._sessions = [session for _, session in sessions]
        self._of = {c.name: session for candidates, session in sessions for c in candidates}
        self.counts_tokens = self._first.counts_tokens

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:
        """To all sessions."""
        for session in self._sessions:
            session.bind(examples, corpus)

    def load(self) -> None:
        """All sessions."""
        for session in self._sessions:
            session.load()

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """Of the candidate's session."""
        return self._of[candidate.name].identity(candidate)

    def resolve(self, decoding: Decoding, references: Sequence[str]) -> Decoding:
        """By the first session."""
        return self._first.resolve(decoding, references)

    def prompt(self, example: Example) -> Prompt:
        """By the first session."""
        return self._first.prompt(example)

    def count_tokens(self, examples: Sequence[Example]) -> Sequence[int]:
        """By the first session."""
        return self._first.count_tokens(examples)

    def generate(
        self, candidate: Candidate, prompts: Sequence[Prompt], items: Sequence[str], decoding: Decoding
    ) -> list[Reply]:
        """By the candidate's session."""
        return self._of[candidate.name].generate(candidate, prompts, items, decoding)

    def likelihood(
        self, candidate: Candidate, prompts: Sequence[Prompt], references: Sequence[str]
    ) -> FloatArray | None:
        """By the candidate's session."""
        return self._of[candidate.name].likelihood(candidate, prompts, references)

    def precision(self) -> Mapping[str, Any]:
        """Of the first session."""
        return self._first.precision()

    def prompt_format(self) -> Mapping[str, Any]:
        """Of the first session."""
        return self._first.prompt_format()

    def trained_on(self, candidate: Candidate) -> frozenset[str]:
        """By the candidate's session."""
        return self._of[candidate.name].trained_on(candidate)

    def peak_memory_bytes(self) -> int | None:
        """Of the first session."""
        return self._first.peak_memory_bytes()
