"""Recorded replies: a file takes the model's place. Joined to the items by ids, messages or the data's order."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from bnbench.data.corpus import Corpus, Example
from bnbench.data.join import Messages, TextFile, agreeing, by_messages, comparable, contradiction, spelled, unanswered
from bnbench.errors import CandidateError, CorpusError
from bnbench.models.backend import Backend, BackendOptions, Prompts, Reply
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompter

log = logging.getLogger("bnbench.models")


class RecordedReplies(Backend):
    """The backend `recorded`. There is no tokenizer, prompts have no ids, and likelihoods are not known."""

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        super().__init__(candidates, options)
        self.prompters = dict.fromkeys((c.name for c in candidates), Prompter("recorded"))  # it says no more
        self.precision = self.precision | {"reason": "recorded replies: no model was run"}
        self._files = {c.name: Predictions.read(Path(c.location), options.columns) for c in candidates}
        self._paired: dict[str, Pairing] = {}

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:
        """Joins every file to the items, and says how; raises CandidateError as `pair` does."""
        for name, file in self._files.items():
            self._paired[name] = pair(file, examples, corpus)
            told = f"{len(examples)} of its {len(file.replies)} replies joined to the items by {self._paired[name].how}"
            log.info("predictions %s: %s", file.path, told)

    def identity(self, candidate: Candidate) -> Mapping[str, Any]:
        """The hash of the file, and of what the data and the names of its columns made of it."""
        known, paired = {"predictions_sha256": candidate.weights_sha256}, self._paired.get(candidate.name)
        if paired:
            known["joined_sha256"] = hashlib.sha256(json.dumps(list(paired.replies.items())).encode()).hexdigest()
        return {"backend": "recorded", **known}

    def generate(self, candidate: Candidate, prompts: Prompts, items: Sequence[str], decoding: Decoding) -> list[Reply]:
        """The recorded replies of the items; their length in tokens is not known."""
        return [Reply(self._paired[candidate.name].replies[item]) for item in items]


@dataclass(frozen=True)
class Predictions:
    """A file of replies; `messages` stand beside them in its column `asked`, and `ids` is None where it has none."""

    path: Path
    replies: tuple[str, ...]
    ids: tuple[str, ...] | None = None
    messages: Messages = ()
    asked: TextFile | None = None
    others: tuple[TextFile, ...] = ()  # of sentences: without `asked`, what may hold messages

    @classmethod
    def read(cls, path: Path, columns: Mapping[str, str] | None = None) -> Self:
        """Reads it as `bnbench score` does, by the data's `columns` (field → name) too; a null is a CandidateError."""
        own = {"question": "message", "title": "title", "reply": "reply", "reference": "reference"}
        named = {own[field]: column for field, column in (columns or {}).items() if field in own}
        try:
            file = TextFile.of(path, "reply", named)
            rows = list(file.rows())
        except CorpusError as error:
            raise CandidateError(f"predictions {error}") from None
        if not rows:
            raise CandidateError(f"predictions {path}: the file is empty")
        ids = tuple(name for _, name, _ in rows) if file.ids else None
        others = () if file.asked else tuple(own for own, is_text in file.keyed() if is_text)
        return cls(path, tuple(texts[0] for _, _, texts in rows), ids, file.messages, file.asked, others)


@dataclass(frozen=True)
class Pairing:
    """Item id → reply, for every item, and what joined them."""

    how: str
    replies: Mapping[str, str]


def pair(file: Predictions, examples: Sequence[Example], corpus: Corpus | None = None) -> Pairing:
    """The reply of every item: by id, else by message, else by the order of the data, where nothing contradicts it.
    Raises CandidateError where an item has no reply or two, or where it is not certain which reply is whose.
    """
    by_id: dict[str, int] = {}
    for row, item in enumerate(file.ids or ()):
        if by_id.setdefault(item, row) != row:
            what = f"reply {row + 1}: the id {item!r} occurs a second time"
            raise CandidateError(f"predictions {file.path}, {what}; give each row an id of its own")
    named = corpus.own_ids() if corpus and by_id else {}
    own = {item: by_id[name] for name, item in reversed(named.items()) if name in by_id}  # of two equal items the first
    questions = {comparable(e.question) for e in examples if file.others}
    for other in (o for o in file.others if o.messages and 2 * len(questions & {*o.messages[0]}) > len(questions)):
        file = replace(file, messages=other.messages, asked=other)
    # In the file a message may be written without the item's title or with it.
    written = zip(*((e.question, f"{e.title} {e.question}") for e in examples if file.messages), strict=True)
    asked = [list(map(comparable, texts)) for texts in written]
    source = corpus.source if corpus else "the data"
    for how, table in (("the ids of the items", by_id), (f"the ids of {source}", own)):
        if all(e.id in table for e in examples):
            if table is own and by_id.keys() - named == {"0"} and named.keys() - by_id == {str(len(by_id))}:
                why = f"its ids count from 0 and those of {source} from 1"
                raise CandidateError(f"predictions {file.path}: {why}; give each reply the id of its row there")
            return _by_rows(file, examples, asked, how, table)
    # Ids that only number the rows, from 0 as in lm-evaluation-harness or from 1 as in inspect, say their order, which
    # is the one of the data's that has as many rows as there are replies.
    numbers, n = [int(name) for name in by_id if name.isdecimal()], len(by_id)
    is_named = corpus is not None and any(row.own_id for row in corpus.rows)
    is_numbered = n and not is_named and sorted(numbers) in (list(range(n)), list(range(1, n + 1)))
    order = sorted(range(n), key=numbers.__getitem__) if is_numbered else list(range(len(file.replies)))
    orders = corpus.orders(examples) if corpus else {"their order": [e.id for e in examples]}
    fitting = next((name for name, order in orders.items() if len(order) == len(file.replies)), None)
    if not (is_numbered and fitting) and (found := by_messages(asked, file.messages, file.replies)):
        rows = {e.id: row for e, row in zip(examples, found, strict=True)}
        return _by_rows(file, examples, asked, "their messages", rows)
    missing = [e.id for e in examples if by_id and not is_numbered and e.id not in (own or by_id)]
    lost = unanswered(asked, file.messages) if missing or not fitting else []
    if lost and not 0 < len(missing) <= len(lost):
        first = ", ".join(repr(examples[at].question[:50]) for at in lost[:3])
        what = f"{len(lost)} of {len(examples)} items have no reply, their messages are not in it: {first}"
        hint = f'{" …" if lost[3:] else ""}; give each a row, with "" for an empty reply, or take them out of {source}'
        raise CandidateError(f"predictions {file.path}: {what}{hint}")
    if missing:
        first = next((name for name, item in named.items() if item == missing[0]), missing[0])
        raise CandidateError(
            f"predictions {file.path}: {len(missing)} of {len(examples)} items have no reply, the first {first!r};"
            f" ids are those of examples.jsonl in a run folder, or of a column 'id' in {source} that names each row "
            f"once; without a column 'id', replies are joined in the order of {source}"
        )
    if fitting is None:
        raise CandidateError(
            f"predictions {file.path}: it holds {len(file.replies)} replies, and {source} has "
            f"{len(corpus.rows if corpus else examples)} rows, of which {len(examples)} are evaluated, so whose each "
            f"reply is is not certain; give one reply for each row of {source} in its order, or a column 'id' (of "
            f"{source} or of examples.jsonl in a run folder) or 'message', each once"
        )
    rows = dict(reversed([*zip(orders[fitting], order, strict=True)]))  # of two equal items the first
    how = f"the row numbers in its ids, {fitting}" if is_numbered else fitting
    return _by_rows(file, examples, asked, how, rows, by_order=True)


def _by_rows(
    file: Predictions, examples: Sequence[Example], asked: Messages, how: str, rows: Mapping[str, int],
    *, by_order: bool = False,
) -> Pairing:  # fmt: skip
    """The replies of these rows, by the items' ids, if the messages, where there are any, do not contradict them."""
    places = [rows[e.id] for e in examples]
    at = contradiction(asked, file.messages, places)
    if file.asked and file.messages and (by_order or not agreeing(asked, file.messages, places)):
        # Each must be the item's, alone or within a whole prompt. Where ids join, a text that is in all rows is none.
        said = [spelled(texts[0]) for _, _, texts in replace(file.asked, before=None).rows()]
        wrong = [i for i, e in enumerate(examples) if (own := said[rows[e.id]]) and spelled(e.question) not in own]
        at = next(iter(wrong), None) if by_order else at
        if len(wrong) == len(examples) and len(set(said)) > 1 and at is None:
            log.warning("predictions %s: %s join it, but none of its messages is the item's", file.path, how)
    if at is not None:
        what = f"its messages contradict {how}, the first at reply {rows[examples[at].id] + 1}"
        hint = "give the same message the same id in both files, or each once and no ids: then they join the replies"
        if by_order and file.asked:
            hint += f"; call {file.asked.column!r} otherwise if it holds something else"
        raise CandidateError(f"predictions {file.path}: {what}; {hint}")
    return Pairing(how, {e.id: file.replies[rows[e.id]] for e in examples})
