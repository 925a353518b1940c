"""Recorded replies: a file takes the model's place. Joined to the items by ids, messages or the data's order."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench.data.corpus import Corpus, Example, whole_number
from bnbench.data.join import TextFile
from bnbench.data.repair import repair
from bnbench.errors import CandidateError, CorpusError
from bnbench.metrics.core import FloatArray
from bnbench.metrics.normalization import normalize
from bnbench.models.backend import Reply, SessionOptions
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompt

log = logging.getLogger("bnbench.models")


def open_session(candidates: Sequence[Candidate], options: SessionOptions) -> RecordedSession:
    """The backend's factory; reads all files. Raises CandidateError (see `read_predictions`)."""
    return RecordedSession(candidates)


def read_predictions(path: Path) -> tuple[list[str], list[str] | None]:
    """The replies of a file and their ids, None where it has none.

    Read as `bnbench score` reads them (`join.TextFile`). Raises CandidateError, also for a reply that is null: what
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


@dataclass(frozen=True)
class Joined:
    """Item id → reply, for every item, and what joined them. `is_by_content`: by ids that are hashes of the items."""

    how: str
    replies: Mapping[str, str]
    is_by_content: bool = False

    def identity(self) -> dict[str, str]:
        """What a run's replies depend on beside the file: nothing, or what the data's order, ids or messages made."""
        pairs = json.dumps(list(self.replies.items())).encode()
        return {} if self.is_by_content else {"joined_sha256": hashlib.sha256(pairs).hexdigest()}


def join(
    path: Path,
    replies: Sequence[str],
    ids: Sequence[str] | None,
    examples: Sequence[Example],
    corpus: Corpus | None = None,
) -> Joined:
    """The reply of every item: by id, else by message, else, where there are no ids, by the order of the data.

    Ids are those of examples.jsonl or the data's own. Raises CandidateError where an item has no reply or two, or where
    it is not certain which reply is whose.
    """
    by_id = _by_id(path, replies, ids) if ids is not None else {}
    own: dict[str, str] = {}
    for name, item in (corpus.own_ids() if corpus and by_id else {}).items():
        if name in by_id:
            own.setdefault(item, by_id[name])
    source = corpus.source if corpus else "the data"
    for how, table in (("the ids of the items", by_id), (f"the ids of {source}", own)):
        if all(e.id in table for e in examples):
            return Joined(how, {e.id: table[e.id] for e in examples}, table is by_id)
    messages = _messages(path)
    if found := _by_message(messages, replies, examples):
        return Joined("their messages", found)
    if ids is None:
        return _by_order(path, replies, messages, examples, corpus)
    missing = [e.id for e in examples if e.id not in (own or by_id)]
    raise CandidateError(
        f"predictions {path}: {len(missing)} of {len(examples)} items have no reply, the first {missing[0]!r}; "
        f"ids are those of examples.jsonl in a run folder, or of a column 'id' in {source} that names each row once; "
        f"without a column 'id', replies are joined in the order of {source}"
    )


def _by_id(path: Path, replies: Sequence[str], ids: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, (item, reply) in enumerate(zip(ids, replies, strict=True), 1):
        if found.setdefault(whole_number(item), reply) != reply:
            raise CandidateError(
                f"predictions {path}, reply {number}: the id {item!r} occurs twice, with different replies"
            )
    return found


def _messages(path: Path) -> list[str]:
    """The messages that stand beside the replies, made comparable; none where there is no column of them."""
    try:
        file = TextFile.of(path, "message", {})
        return [_comparable(texts[0]) for _, _, texts in file.rows()] if file.column else []
    except CorpusError:  # the replies were read from this file before, so it is only this column that is not there
        return []


def _comparable(message: str) -> str:
    return " ".join(normalize(repair(message)).split())


def _spellings(example: Example) -> tuple[str, str]:
    """An item's message as it may stand beside a reply: without its title, and with it."""
    return _comparable(example.question), _comparable(f"{example.title} {example.question}")


def _by_message(messages: Sequence[str], replies: Sequence[str], examples: Sequence[Example]) -> dict[str, str]:
    """Item id → reply where each item's message stands beside one reply, and no two items share one; else nothing."""
    found: dict[str, set[str]] = {}
    for message, reply in zip(messages, replies, strict=False):
        found.setdefault(message, set()).add(reply)
    for asked in zip(*map(_spellings, examples), strict=True) if found else ():
        if len(set(asked)) == len(asked) and all(len(found.get(message, ())) == 1 for message in asked):
            return {e.id: next(iter(found[message])) for e, message in zip(examples, asked, strict=True)}
    return {}


def _by_order(
    path: Path, replies: Sequence[str], messages: Sequence[str], examples: Sequence[Example], corpus: Corpus | None
) -> Joined:
    orders = corpus.orders(examples) if corpus else {"their order": [e.id for e in examples]}
    how = next((name for name, order in orders.items() if len(order) == len(replies)), None)
    if how is None:
        source, rows = (corpus.source, len(corpus.rows)) if corpus else ("the data", len(examples))
        raise CandidateError(
            f"predictions {path}: it holds {len(replies)} replies, and {source} has {rows} rows, of which "
            f"{len(examples)} are evaluated, so whose each reply is is not certain; give one reply for each row of "
            f"{source} in its order, or a column 'id' (of {source} or of examples.jsonl in a run folder) or 'message'"
        )
    places = {item: i for i, item in reversed(list(enumerate(orders[how])))}  # the first of two equal rows
    known = set(messages)
    for e in examples if messages else ():
        spellings = _spellings(e)
        if known.intersection(spellings) and messages[places[e.id]] not in spellings:
            raise CandidateError(
                f"predictions {path}: its messages do not stand in {how}, and they cannot join the replies, as one "
                f"of them occurs twice or is not there; give both files a column 'id' (reply {places[e.id] + 1})"
            )
    return Joined(how, {e.id: replies[places[e.id]] for e in examples})


class RecordedSession:
    """Replies from files. There is no tokenizer here: prompts have no ids, and likelihoods are not known."""

    counts_tokens = False

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._files = {c.name: (Path(c.location), *read_predictions(Path(c.location))) for c in candidates}
        self._joined: dict[str, Joined] = {}

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:
        """Joins every file to the items, and says how; raises CandidateError as `join` does."""
        for name, (path, replies, ids) in self._files.items():
            self._joined[name] = join(path, replies, ids, examples, corpus)
            log.info("predictions %s: joined to the items by %s", path, self._joined[name].how)

    def load(self) -> None:
        """Nothing to load."""

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """The hash of the file, and of what the data made of it where the data's order, ids or messages joined it."""
        joined = self._joined[candidate.name].identity() if self._joined else {}
        return {"backend": "recorded", "predictions_sha256": candidate.weights_sha256, **joined}

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
        return [Reply(self._joined[candidate.name].replies[item], None, None) for item in items]

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
