"""What a reader should know of a reply before reading it: cut at the limit, empty, repeating itself …"""

from __future__ import annotations

from bnbench.metrics.registry import get_metric
from bnbench.reports.entries import Entry

_METRIC = "degeneration"
_WORDS = {
    "empty": "empty",
    "cut": "cut at the limit",
    "replacement": "broken characters",
    "template": "template remnants",
    "loop": "repetition",
    "wrong_script": "wrong script",
    "copy": "copy of the message",
}


def reply_flags(entry: Entry) -> list[tuple[str, ...]]:
    """The flags of each reply of a candidate, in the order of the items."""
    table = entry.tables.get(_METRIC)
    columns = get_metric(_METRIC).columns if table is not None else ()
    flags = []
    for i, generation in enumerate(entry.replies):
        found = {"empty": not generation.reply.strip(), "cut": bool(generation.hit_limit)}
        if table is not None:
            found |= {name: bool(table[i, k] > 0) for k, name in enumerate(columns) if name in _WORDS}
        flags.append(tuple(_WORDS[name] for name, is_so in found.items() if is_so))
    return flags
