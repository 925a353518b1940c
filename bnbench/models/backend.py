"""What answers a prompt: the protocol that every backend follows, and the registry of backends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Protocol

from bnbench.data.corpus import Corpus, Example
from bnbench.errors import UsageError
from bnbench.metrics.core import FloatArray
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import SYSTEM, Prompt

GROUP = "bnbench.backends"
log = logging.getLogger("bnbench.models")

# Imported only when used: torch takes seconds.
_OURS = {"hf": "bnbench.models.hf:open_session", "recorded": "bnbench.models.recorded:open_session"}


@dataclass(frozen=True)
class Reply:
    """One generated reply. `tokens` counts what was generated; `hit_limit` is True when no end token came."""

    text: str
    tokens: int | None
    hit_limit: bool | None


@dataclass(frozen=True)
class SessionOptions:
    """What a session may be told.

    `device` None is the first card, else the CPU; `quantise` None takes 4-bit weights where the card is too small;
    `trust_remote_code` lets code run that comes with a model; `system` is the system prompt.
    """

    device: str | None = None
    quantise: bool | None = None
    trust_remote_code: bool = False
    system: str = SYSTEM


class Session(Protocol):
    """Candidates that are answered from one load. Made by a backend: `factory(candidates, options) -> Session`.

    Opening a session checks files and reads tokenizers and hashes only; weights are read by `load`, so a run that has
    nothing left to generate never loads a model.
    """

    counts_tokens: bool

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:
        """Tells all items of the run, and the corpus that they are from, before the first reply.

        This is what joins recorded replies to them.
        """

    def load(self) -> None:
        """Loads weights, and checks that each adapter changes the logits. Called once, before the first `generate`."""

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """All that a reply depends on: ids, revisions, hashes, dtype, template, backend, versions. JSON values only."""

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


Factory = Callable[[Sequence[Candidate], SessionOptions], Session]


def backend_names() -> tuple[str, ...]:
    """Ours and those of plug-ins (entry-point group `bnbench.models`)."""
    return tuple(sorted({*_OURS, *(point.name for point in metadata.entry_points(group=GROUP))}))


def get_backend(name: str) -> Factory:
    """The factory of a backend; UsageError for an unknown name, or for a plug-in that cannot be imported."""
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        factory: Factory = getattr(import_module(module), attribute)
        return factory
    for point in metadata.entry_points(group=GROUP, name=name):
        try:
            loaded: Factory = point.load()
        except Exception as error:
            # A plug-in is someone else's program: what it raises must not end us, nor hide another of that name.
            log.warning("backend %s (%s) is skipped: %s: %s", name, point.value, type(error).__name__, error)
        else:
            return loaded
    raise UsageError(f"there is no usable backend {name!r}; there are {', '.join(backend_names())}")
