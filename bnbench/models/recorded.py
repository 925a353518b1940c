"""Recorded replies: a file takes the model's place. Joined to the items by id where it has ids, else line by line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnbench.data.corpus import Example
from bnbench.data.joined import TextFile
from bnbench.errors import CandidateError, CorpusError
from bnbench.metrics.core import FloatArray
from bnbench.models.backend import Reply, SessionOptions
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompt


def open_session(candidates: Sequence[Candidate], options: SessionOptions) -> RecordedSession:
    """The backend's factory; reads all files. Raises CandidateError (see `read_predictions`)."""
    return RecordedSession(candidates)


def read_predictions(path: Path) -> tuple[list[str], list[str] | None]:
    """The replies of a file and their ids, None where it has none.

    Read as `bnbench score` reads them (`joining.TextFile`). Raises CandidateError, also for a reply that is null: what
    has no reply must not be scored as an empty one.
    """
    try:
        file = TextFile.of(path, "reply", {})
        rows = list(file.rows())
    except CorpusError as error:
        raise CandidateError(f"predictions {error}") from None
    if not rows:
        raise CandidateError(f"predictions {path}: the file is empty")
    return [texts[0] for _, _, texts in rows], [name for _, name, _ in rows] if file.ids else None


def join(path: Path, replies: Sequence[str], ids: Sequence[str] | None, examples: Sequence[Example]) -> dict[str, str]:
    """Item id → reply, for every item; CandidateError where an item has none or two, or the lengths differ."""
    if ids is None:
        if len(replies) != len(examples):
            raise CandidateError(
                f"predictions {path}: it holds {len(replies)} and the data {len(examples)}; without a column 'id' "
                "replies are joined line by line, and there must be one for each item, in the same order"
            )
        return {example.id: reply for example, reply in zip(examples, replies, strict=True)}
    by_id: dict[str, str] = {}
    for number, (item, reply) in enumerate(zip(ids, replies, strict=True), 1):
        if by_id.setdefault(item, reply) != reply:
            raise CandidateError(
                f"predictions {path}, reply {number}: the id {item!r} occurs twice, with different replies"
            )
    missing = [e.id for e in examples if e.id not in by_id]
    if missing:
        raise CandidateError(
            f"predictions {path}: {len(missing)} of {len(examples)} items have no reply, the first {missing[0]!r}; "
            "the ids are those of examples.jsonl in a run folder; without a column 'id' lines are joined in order"
        )
    return {e.id: by_id[e.id] for e in examples}


class RecordedSession:
    """Replies from files. There is no tokenizer here: prompts have no ids, and likelihoods are not known."""

    counts_tokens = False

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._files = {c.name: (Path(c.location), *read_predictions(Path(c.location))) for c in candidates}
        self._replies: dict[str, dict[str, str]] = {}

    def bind(self, examples: Sequence[Example]) -> None:
        """Joins every file to the items; raises CandidateError as `join` does."""
        self._replies = {name: join(*file, examples) for name, file in self._files.items()}

    def load(self) -> None:
        """Nothing to load."""

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """The hash of the file."""
        return {"backend": "recorded", "predictions_sha256": candidate.weights_sha256}

    def resolve(self, decoding: Decoding, references: Sequence[str]) -> Decoding:
        """As it is: nothing is decoded."""
        return decoding

    def prompt(self, example: Example) -> Prompt:
        """Title and question, without ids."""
        return Prompt("\n\n".join(p for p in (example.title.strip(), example.question.strip()) if p), ())

    def count_tokens(self, examples: Sequence[Example]) -> Sequence[int]:
        """Not possible without a tokenizer; `counts_tokens` says so."""
        raise NotImplementedError("recorded replies have no tokenizer: ask counts_tokens first")

    def generate(
        self, candidate: Candidate, prompts: Sequence[Prompt], items: Sequence[str], decoding: Decoding
    ) -> list[Reply]:
        """The recorded replies of the items; their length in tokens is not known."""
        return [Reply(self._replies[candidate.name][item], None, None) for item in items]

    def likelihood(
        self, candidate: Candidate, prompts: Sequence[Prompt], references: Sequence[str]
    ) -> FloatArray | None:
        """None: a text says nothing about the probabilities of another."""
        return None

    def precision(self) -> Mapping[str, Any]:
        """Nothing was computed."""
        return {"dtype": "none", "quantisation": "none", "reason": "recorded replies: no model was run"}

    def prompt_format(self) -> Mapping[str, Any]:
        """Unknown: the file does not say how the model was asked."""
        return {"kind": "recorded", "template_sha": "", "tokenizer_sha": "", "system": ""}

    def trained_on(self, candidate: Candidate) -> frozenset[str]:
        """Unknown."""
        return frozenset()

    def peak_memory_bytes(self) -> int | None:
        """None: no model was run."""
        return None
