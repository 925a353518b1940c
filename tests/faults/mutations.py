"""Damage for files: what an editor, a crash, a tool or somebody who means harm may leave behind."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**30, 10**400, float("nan"), float("inf"), "", "x", "\ud800", "\x1b[2J", [], {}, [[]],
    {"x": 1}, [None], "=1+1", "../../x", -(2**63), 1e308, "9" * 5000,
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a JSON document holds a value, as keys and indices from its root; of a list its first and its last."""
    yield at
    inner = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list) and value:
        inner = ((i, value[i]) for i in sorted({0, len(value) - 1}))
    for key, one in inner:
        yield from places(one, (*at, key))


def with_value(document: Any, at: tuple[Any, ...], *new: Any) -> Any:
    """The document with another value at a place, or without one."""
    if not at:
        return new[0] if new else {}
    copy = document.copy()
    if len(at) > 1:
        copy[at[0]] = with_value(copy[at[0]], at[1:], *new)
    elif new:
        copy[at[0]] = new[0]
    else:
        del copy[at[0]]
    return copy


def of_json(document: Any) -> Iterator[tuple[str, str]]:
    """Every damage to a JSON document at every place of it: what was done, and the text."""
    for at in places(document):
        where = "/".join(map(str, at)) or "all"
        yield f"{where} gone", json.dumps(with_value(document, at))
        for value in VALUES:
            yield f"{where} = {value!r:.30}", json.dumps(with_value(document, at, value))


def of_bytes(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """A file that is empty, cut, binary, doubled, or of which a byte was changed."""
    rng = random.Random(seed)
    yield "empty", b""
    yield "binary", bytes(rng.randrange(256) for _ in range(200))
    yield "nulls", b"\x00" * len(content)
    yield "twice", content * 2
    yield "deep", b"[" * 100_000
    for _ in range(6):
        yield "cut", content[: rng.randrange(len(content) or 1)]
        at = rng.randrange(len(content) or 1)
        yield f"byte {at}", content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
