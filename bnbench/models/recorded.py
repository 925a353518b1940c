"""Recorded replies: a file takes the model's place. Joined to the items by ids, messages or the data's order."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bnbench.data.corpus import Corpus, Example, repair
from bnbench.data.join import TextFile
from bnbench.errors import CandidateError, CorpusError
from bnbench.metrics.normalization import normalize
from bnbench.models.backend import Backend, BackendOptions, Prompts, Reply
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompter

log = logging.getLogger("bnbench.models")


class RecordedReplies(Backend):
    """The backend `recorded`. There is no tokenizer, prompts have no ids, and likelihoods are not known."""

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        super().__init__(candidates, options)
        asked = Prompter("recorded")  # the file does not say how the model was asked
        self.prompters = {candidate.name: asked for candidate in candidates}
        self.precision = self.precision | {"reason": "recorded replies: no model was run"}
        self._files = {c.name: Predictions.read(Path(c.location)) for c in candidates}
        self._paired: dict[str, Pairing] = {}

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:
        """Joins every file to the items, and says how; raises CandidateError as `pair` does."""
        for name, file in self._files.items():
            self._paired[name] = pair(file, examples, corpus)
            log.info("predictions %s: joined to the items by %s", file.path, self._paired[name].how)

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """The hash of the file, and of what the data made of it where the data's order, ids or messages joined it."""
        known, paired = {"predictions_sha256": candidate.weights_sha256}, self._paired.get(candidate.name)
        if paired and not paired.is_by_content:
            pairs = json.dumps(list(paired.replies.items())).encode()
            known["joined_sha256"] = hashlib.sha256(pairs).hexdigest()
        return {"backend": "recorded", **known}

    def generate(self, candidate: Candidate, prompts: Prompts, items: Sequence[str], decoding: Decoding) -> list[Reply]:
        """The recorded replies of the items; their length in tokens is not known."""
        return [Reply(self._paired[candidate.name].replies[item]) for item in items]


@dataclass(frozen=True)
class Predictions:
    """A file of replies. `ids` is None where it has none; `messages` that stand beside them are made comparable."""

    path: Path
    replies: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    messages: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file as `bnbench score` does; CandidateError also for a null, which is no empty reply."""
        try:
            file = TextFile.of(path, "reply")
            rows = list(file.rows())
        except CorpusError as error:
            raise CandidateError(f"predictions {error}") from None
        if not rows:
            raise CandidateError(f"predictions {path}: the file is empty")
        messages: tuple[str, ...] = ()
        with suppress(CorpusError):  # the replies were read from this file before: it has no column of messages
            beside = TextFile.of(path, "message")
            try:
                messages = tuple(comparable(texts[0]) for _, _, texts in beside.rows()) if beside.column else ()
            except CorpusError as error:  # such as a prompt that is a list of turns
                log.warning("predictions %s: its messages neither join nor check the replies", error)
        ids = tuple(name for _, name, _ in rows) if file.ids else None
        return cls(path, tuple(texts[0] for _, _, texts in rows), ids, messages)


@dataclass(frozen=True)
class Pairing:
    """Item id → reply, for every item, and what joined them. `is_by_content`: by ids that are hashes of the items."""

    how: str
    replies: Mapping[str, str]
    is_by_content: bool = False


def comparable(message: str) -> str:
    """A message in the one spelling in which two files may be compared."""
    return " ".join(normalize(repair(message)).split())


def pair(file: Predictions, examples: Sequence[Example], corpus: Corpus | None = None) -> Pairing:
    """The reply of every item: by id, else by message, else by the order of the data, where ids do not contradict it.

    Raises CandidateError where an item has no reply or two, or where it is not certain which reply is whose.
    """
    by_id: dict[str, str] = {}
    for number, (item, reply) in enumerate(zip(file.ids or (), file.replies, strict=file.ids is not None), 1):
        if item in by_id:
            what = f"reply {number}: the id {item!r} occurs a second time"
            raise CandidateError(f"predictions {file.path}, {what}; give each row an id of its own")
        by_id[item] = reply
    own: dict[str, str] = {}
    for name, item in (corpus.own_ids() if corpus and by_id else {}).items():
        if name in by_id:
            own.setdefault(item, by_id[name])
    source = corpus.source if corpus else "the data"
    for how, table in (("the ids of the items", by_id), (f"the ids of {source}", own)):
        if all(e.id in table for e in examples):
            return Pairing(how, {e.id: table[e.id] for e in examples}, table is by_id)

    # A message joins where it stands beside one reply only and is asked by one item only. In the file it may be
    # written without the item's title or with it, but all items in the same way.
    beside: dict[str, set[str]] = {}
    for message, reply in zip(file.messages, file.replies, strict=False):
        beside.setdefault(message, set()).add(reply)
    spellings = [(comparable(e.question), comparable(f"{e.title} {e.question}")) for e in examples if file.messages]
    for asked in zip(*spellings, strict=True):
        if len(set(asked)) == len(asked) and all(len(beside.get(message, ())) == 1 for message in asked):
            found = {e.id: next(iter(beside[message])) for e, message in zip(examples, asked, strict=True)}
            return Pairing("their messages", found)

    # Ids that only number the rows, from 0 as in lm-evaluation-harness or from 1 as in inspect, say their order.
    numbers, n = [int(name) for name in by_id if name.isdecimal()], len(by_id)
    is_named = corpus is not None and any(row.own_id for row in corpus.rows)
    if n and not is_named and sorted(numbers) in (list(range(n)), list(range(1, n + 1))):
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        asked = tuple(file.messages[i] for i in order if file.messages)
        file = replace(file, replies=tuple(file.replies[i] for i in order), messages=asked)
        paired = _pair_by_order(file, examples, corpus, spellings)
        return replace(paired, how=f"the row numbers in its ids, {paired.how}")
    if file.ids is not None:
        missing = [e.id for e in examples if e.id not in (own or by_id)]
        raise CandidateError(
            f"predictions {file.path}: {len(missing)} of {len(examples)} items have no reply, the first {missing[0]!r};"
            f" ids are those of examples.jsonl in a run folder, or of a column 'id' in {source} that names each row "
            f"once; without a column 'id', replies are joined in the order of {source}"
        )
    return _pair_by_order(file, examples, corpus, spellings)


def _pair_by_order(
    file: Predictions, examples: Sequence[Example], corpus: Corpus | None, spellings: Sequence[tuple[str, str]]
) -> Pairing:
    """By the one order that has as many rows as there are replies, if the messages, where there are any, agree."""
    orders = corpus.orders(examples) if corpus else {"their order": [e.id for e in examples]}
    how = next((name for name, order in orders.items() if len(order) == len(file.replies)), None)
    if how is None:
        source, rows = (corpus.source, len(corpus.rows)) if corpus else ("the data", len(examples))
        raise CandidateError(
            f"predictions {file.path}: it holds {len(file.replies)} replies, and {source} has {rows} rows, of which "
            f"{len(examples)} are evaluated, so whose each reply is is not certain; give one reply for each row of "
            f"{source} in its order, or a column 'id' (of {source} or of examples.jsonl in a run folder) or 'message'"
        )
    places = {item: i for i, item in reversed(list(enumerate(orders[how])))}  # the first of two equal rows
    known = set(file.messages)
    for e, asked in zip(examples, spellings, strict=False):
        if known.intersection(asked) and file.messages[places[e.id]] not in asked:
            raise CandidateError(
                f"predictions {file.path}: its messages do not stand in {how}, and they cannot join the replies, as "
                f"one of them occurs twice or is not there; give both files a column 'id' (reply {places[e.id] + 1})"
            )
    return Pairing(how, {e.id: file.replies[places[e.id]] for e in examples})
