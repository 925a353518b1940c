"""What answers a prompt: the protocol that every backend follows, and how one is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bnbench.candidates import Candidate
from bnbench.corpus import Example
from bnbench.decoding import Decoding
from bnbench.metrics.core import FloatArray
from bnbench.prompts import Prompt


@dataclass(frozen=True)
class Reply:
    """One generated reply. `tokens` counts what was generated; `hit_limit` is True when no end token came."""

    text: str
    tokens: int | None
    hit_limit: bool | None


class Session(Protocol):
    """Candidates that are answered from one load.

    Opening a session checks files and reads tokenizers and hashes only; weights are read by `load`, so a run that has
    nothing left to generate never loads a model.
    """

    counts_tokens: bool

    def load(self) -> None:
        """Loads weights, and checks that each adapter changes the logits. Called once, before the first `generate`."""

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """Everything about the candidate that a reply depends on: ids, revisions, hashes, dtype, template, backend, version."""

    def resolve(self, decoding: Decoding, references: Sequence[str]) -> Decoding:
        """The decoding with its limit in tokens, from the limit in words and the fertility measured on `references`."""

    def prompt(self, example: Example) -> Prompt:
        """The prompt of an example, as text and ids."""

    def count_tokens(self, examples: Sequence[Example]) -> Sequence[int]:
        """Tokens of each example's training row (prompt, reference, end); only where `counts_tokens`."""

    def generate(
        self, candidate: Candidate, prompts: Sequence[Prompt], items: Sequence[str], decoding: Decoding
    ) -> list[Reply]:
        """One reply a prompt, as one batch; `items` are the example ids that the sampling noise belongs to."""

    def likelihood(
        self, candidate: Candidate, prompts: Sequence[Prompt], references: Sequence[str]
    ) -> FloatArray | None:
        """(n, 4): nll in nats, tokens, bytes, characters of each reference; None where the backend cannot know it."""

    def precision(self) -> Mapping[str, Any]:
        """dtype, quantisation and the reason they were chosen, for run.json."""

    def prompt_format(self) -> Mapping[str, Any]:
        """kind, template_sha, tokenizer_sha and system prompt, for run.json."""

    def trained_on(self, candidate: Candidate) -> frozenset[str]:
        """Ids of the examples that an adapter was trained on (its training.json), empty where nothing is recorded."""

    def peak_memory_bytes(self) -> int | None:
        """Peak memory of the accelerator (or of the process, on the CPU)."""
