"""Rows as chat data and other tools have them, as rows with a text for the question and a text for the answer.

messages        [{"role": "user", "content": …}, {"role": "assistant", "content": …}], OpenAI's form
conversations   [{"from": "human", "value": …}, {"from": "gpt", "value": …}], ShareGPT's
instruction, input, output, with history or without: Alpaca's
prompt, completion   texts, or lists of messages as in TRL
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from itertools import chain, cycle
from operator import getitem
from pathlib import Path
from typing import Any

from bnbench.data.files import COLUMNS, Row, as_text, find_column, header_of, plain_name, texts_of
from bnbench.errors import CorpusError

_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_SPEAKERS = {"human": _USER, "gpt": _ASSISTANT, "chatgpt": _ASSISTANT, "model": _ASSISTANT, "bot": _ASSISTANT}
_NAMES = {_USER: "ব্যবহারকারী", _ASSISTANT: "সহায়ক"}
TURNS = "turns before the answer"
"""The column that `plain_rows` adds: what user and assistant said in turns, as a list of texts."""
Turn = tuple[str, str]  # who speaks, and what

# What a model thought aloud: up to its end or, where the limit cut it, the reply's; a prompt may have opened it.
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)|\A(?:(?!<think>).)*?</think>", re.DOTALL)

# Where the text stands in what a tool has in its column of replies, by the column's plain name.
_PATHS: Mapping[str, Sequence[tuple[str | int, ...]]] = {
    "filteredresps": [(0,)],  # lm-evaluation-harness: a list of one text
    "response": [("body", "choices", 0, "message", "content"), ("body", "output", -1, "content")],  # OpenAI's batches
    "output": [("completion",)],  # inspect's samples
}

_log = logging.getLogger(__name__)


def without_thoughts(reply: str) -> str:
    """A reply without its `<think>…</think>`, which nobody is to read; the same text where it has none."""
    return _THOUGHT.sub("", reply).strip() if "think>" in reply else reply


def plain_rows(source: str | Path, records: Mapping[str, Row], columns: Mapping[str, str]) -> Mapping[str, Row]:
    """The rows with the texts of their last exchange in the columns Questions and Answers; other data as they are.

    The last turn of the assistant is the answer, the user's turn before it the question, and what was said before that
    stands as text before the question, but no system text: a prompt has that of the model's own template. Both texts
    are empty where nobody answers, so that cleaning drops and counts the row. `TURNS` has the turns one by one where
    the user spoke first and an earlier turn was answered too. Rows whose conversations begin with the same exchange are
    of one dialogue, unless a column names it. `columns` is that of `load_corpus`.
    Raises CorpusError for a turn that is none (its row).
    """
    rows = records.values()
    header = header_of(rows)
    fields = ("question", "reference", "dialogue", "turns", "instruction", "input", "output", "history")
    given = {field: name for field, name in columns.items() if name in header}  # `match_columns` names the others
    at = {field: find_column(header, field, given.get(field)) or "" for field in fields}
    read = into = (at["question"], at["reference"])
    cells = [row.get(name) for row in rows for name in into] if all(into) else []
    if any(isinstance(cell, list) and cell and all(isinstance(turn, dict) for turn in cell) for cell in cells):
        kind = " and ".join(into)
    elif all(into) or not columns.keys().isdisjoint(("question", "reference")):
        kind = ""  # each text has its column, as the names or `columns` say
    elif any(isinstance(row.get(at["turns"]), list) for row in rows):
        kind, read, into = at["turns"], (at["turns"], ""), ("Questions", "Answers")
    elif at["instruction"] and at["output"]:
        kind, read, into = "instruction and output", (at["instruction"], at["output"]), ("Questions", "Answers")
    else:
        return records
    usual = set(map(plain_name, chain.from_iterable(map(COLUMNS.__getitem__, fields))))
    for where, row in records.items() if any(read) else ():
        if row.keys().isdisjoint(read) and any(row[name] for name in row if plain_name(name) in usual):
            others = f"other rows are read from {' and '.join(filter(None, read))}; give each form a file of its own"
            raise CorpusError(f"{where}: it has {', '.join(row)}, and {others}")
    if not kind:
        return records
    _log.info("%s: read as chat data (%s): the last answer of each row and what was said before it", source, kind)
    made, openings = dict[str, Row](), dict[str, str]()
    for where, row in records.items():
        if kind == at["turns"]:
            turns = _turns(where, row.get(kind), _USER)
        elif kind == "instruction and output":
            history = row.get(at["history"]) or []
            if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
                raise CorpusError(f"{where}: history is no list of pairs of question and answer: {history!s:.60}")
            *asked, answer = texts_of(where, row, [at[name] for name in ("instruction", "input", "output")])
            said = [*(as_text(text) for pair in history for text in pair), "\n".join(filter(None, asked)), answer]
            turns = list(zip(cycle((_USER, _ASSISTANT)), said, strict=False))
        else:
            asked_in, answered_in = (row.get(name) for name in into)
            turns = _turns(where, asked_in, _USER) + _turns(where, answered_in, _ASSISTANT)
        question, answer, before = _last_exchange(turns)
        made[where] = row | {into[0]: question, into[1]: answer, TURNS: before}
        openings[where] = "\n".join([said for who, said in turns if who in _NAMES][:2])
    shared, named = Counter(openings.values()), at["dialogue"]
    for where, opening in openings.items() if not named or named in read else ():
        of = hashlib.sha256(opening.encode(errors="replace")).hexdigest()[:12] if shared[opening] > 1 else ""
        made[where] = made[where] | {named or "dialogue": of}
    return made


def _turns(where: str, value: object, speaker_of_text: str) -> list[Turn]:
    """The turns of a list of messages, or one turn where a text stands in its place."""
    if not isinstance(value, list):
        return [(speaker_of_text, texts_of(where, {"text": value}, ["text"])[0])]
    turns = []
    for turn in value:
        found = turn if isinstance(turn, dict) else {}
        speaker, text = found.get("role", found.get("from")), _joined(found.get("content", found.get("value")))
        if not isinstance(speaker, str) or not isinstance(text, str | None):
            form = "each has 'role' and 'content', or 'from' and 'value'"
            raise CorpusError(f"{where}: {turn!s:.60} is no turn of a conversation; {form}")
        turns.append((_SPEAKERS.get(speaker.lower(), speaker.lower()), text or ""))
    return turns


def _joined(content: Any) -> Any:
    """The text of a turn that is a list of parts, of which those that are no text (pictures) have none."""
    is_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    return "".join(as_text(part.get("text")) for part in content) if is_parts else content


def _last_exchange(turns: Sequence[Turn]) -> tuple[str, str, list[str]]:
    """Question and answer, both empty where there is no exchange, or one in which tools spoke too; and all said before
    the answer, in turns, where the user spoke first and more than once, else [].
    """
    spoken: list[Turn] = []
    for who, said in turns:
        if spoken and spoken[-1][0] == who:  # who speaks twice running goes on
            spoken[-1] = (who, f"{spoken[-1][1]}\n{said}")
        elif who != _SYSTEM:
            spoken.append((who, said))
    last = max((i for i, (who, _) in enumerate(spoken) if who == _ASSISTANT), default=0)
    *before, question, answer = spoken[: last + 1] if last else [("", "")] * 2
    if question[0] != _USER or any(who not in _NAMES for who, _ in before):
        return "", "", []
    spoken = [(who, without_thoughts(said)) for who, said in before]
    said_before = "\n".join(f"{_NAMES[who]}: {said}" for who, said in spoken)
    in_turns = [*(said for _, said in spoken), question[1]] if spoken and spoken[0][0] == _USER else []
    return f"{said_before}\n\n{question[1]}".strip(), answer[1], in_turns


def text_in(column: str, value: Any, field: str = "message") -> Any:
    """The text in what another tool has in its column of replies or messages; any other value as it is. None where a
    request failed, so that there is no reply. Turns give the message that `plain_rows` makes of them, or a reply: the
    assistant's, where it has the last word.
    """
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        with suppress(CorpusError):
            turns = _turns("", value, _USER)
            if field == "reply":
                return turns[-1][1] if turns[-1][0] == _ASSISTANT else value
            return _last_exchange([*turns, (_ASSISTANT, "")])[0] or value
    paths = _PATHS.get(plain_name(column), ())
    for path in paths if isinstance(value, dict) or (isinstance(value, list) and len(value) == 1) else ():
        with suppress(TypeError, LookupError):
            return _joined(reduce(getitem, path, value))
    return None if paths and isinstance(value, dict) else value
