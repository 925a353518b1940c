"""The report in another language, by a catalogue of our sentences: templates/bn.toml has Bengali.

A key is what the English report says, with or without its full stop, and with places for what differs: `{who}` comes
back as it is, and `{n}`, of one letter, has no blank; `{LABEL}` is looked up itself, and of `{LABELS}`, which ends in
S, each part (`a, b and c`, `a; b`). What no key fits stays as it is. Numbers of what is said, but of no name and of no
table's cells, are written in the digits that the catalogue has for `0123456789`.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bnbench.errors import UsageError
from bnbench.reports import panels
from bnbench.reports.verdict import Verdict

_TEMPLATES = Path(__file__).parent / "templates"
_PLACE = re.compile(r"\{(\w+)\}")
_SENTENCE = re.compile(r"(?<=[.?!]) (?=[A-Z“])")  # a boundary
# What a Bengali word takes of -এর, -এ, -কে and -তে, written as one word, by the sound that it ends in; a name in other
# letters keeps the hyphen.
_ENDINGS = (
    (re.compile("(?<=[ক-হ\u09bc\u09dc-\u09df])-এ(র?)(?![\u0980-\u09ff])"), r"ে\1"),
    (re.compile("(?<=[\u09be-\u09cc])-এর(?![\u0980-\u09ff])"), "র"),
    (re.compile("(?<=[\u09be\u09c7\u09cb])-এ(?![\u0980-\u09ff])"), "য়"),
    (re.compile("(?<=[\u09bf-\u09c4])-এ(?![\u0980-\u09ff])"), "তে"),
    (re.compile("(?<=[\u0980-\u09cc])-(কে|তে)(?![\u0980-\u09ff])"), r"\1"),
)
_DIGITS = "0123456789"
_NUMBER = re.compile(
    r"[\w.,:/@#+-]*\d[\w.,:/@#+-]*", re.ASCII
)  # with what belongs to it, which may be a name's letters
_COUNTED = frozenset({"alpha", "auc", "ends", "rank", "rate", "seed", "value", "weights"})  # places of numbers
_LISTS = ((re.compile("; "), "; "), (re.compile(r", (?!%)| and | or "), ", "))


def language(code: str) -> "Catalogue":
    """What says a text of the English report in another language. Raises UsageError for one without catalogue."""
    known = sorted(path.stem for path in _TEMPLATES.glob("*.toml"))
    if code not in known:
        raise UsageError(f"--lang {code}: there are en and {', '.join(known)}")
    return Catalogue(code, tomllib.loads((_TEMPLATES / f"{code}.toml").read_text(encoding="utf-8")))


class Catalogue:
    """Translations by what they translate; the key with most letters of its own that fits counts."""

    def __init__(self, code: str, entries: Mapping[str, str]) -> None:
        self.code, self.stop = code, entries.get(".", ".")
        self.digits = str.maketrans(_DIGITS, entries.get(_DIGITS, _DIGITS))
        own = {key.removesuffix("."): value.removesuffix(self.stop) for key, value in entries.items()}
        self.entries = {key: self._numbers(value) for key, value in own.items()}
        self.said = {key: self._numbers(value) for key, value in entries.items()}
        self.patterns = [  # first what parts a claim from its but, then the key with most letters of its own
            (re.compile("".join(_pattern(part) for part in re.split(r"(\{\w+\})", key)), re.DOTALL), value)
            for key, value in sorted(
                self.entries.items(), key=lambda e: (", but {" not in e[0], -len(_PLACE.sub("", e[0])))
            )
            if _PLACE.search(key)
        ]

    def __call__(self, text: str) -> str:
        """The text in the language, each of its sentences by itself."""
        if text not in self.said:
            parts = _SENTENCE.split(text)
            self.said[text] = " ".join(map(self, parts)) if len(parts) > 1 else self._sentence(text)
        return self.said[text]

    def _sentence(self, text: str) -> str:
        plain = text.removesuffix(".")
        said = self.entries.get(plain)
        for pattern, value in self.patterns if said is None and re.search("[A-Za-z]", plain) else ():
            if found := pattern.fullmatch(plain):
                said = value.format(**{place: self._part(place, part) for place, part in found.groupdict().items()})
                for ending, joint in _ENDINGS:
                    said = ending.sub(joint, said)
                break
        return text if said in (None, plain) else said + (self.stop if plain != text else "")

    def _part(self, place: str, text: str) -> str:
        if not place.isupper():
            return self._numbers(text) if len(place) == 1 or place in _COUNTED else text
        for between, joint in _LISTS if place.endswith("S") and text not in self.entries else ():
            if between.search(text):
                return joint.join(self._part(place, part) for part in between.split(text))
        said = self(text)
        return self._numbers(said) if said == text else said

    def _numbers(self, text: str) -> str:
        """The text with the language's digits, but for those of names such as `t4` and `rater-1`."""
        return _NUMBER.sub(lambda n: n[0] if re.search("[A-Za-z_]", n[0]) else n[0].translate(self.digits), text)


def _pattern(part: str) -> str:
    letters = r"\S+" if len(part) == 3 else ".+?"
    return f"(?P<{part[1:-1]}>{letters})" if _PLACE.fullmatch(part) else re.escape(part)


def spoken(
    drawn: Iterable[tuple[panels.Panel, list[panels.Block]]], say: Catalogue
) -> Iterator[tuple[panels.Panel, list[panels.Block]]]:
    """Panels and their blocks in a language: whatever they say, but for names, code and texts of the data."""
    for panel, blocks in drawn:
        yield replace(panel, title=say(panel.title), link=say(panel.link)), [_block(block, say) for block in blocks]


def spoken_verdict(said: Verdict, say: Catalogue) -> Verdict:
    """A verdict in a language."""
    claim, evidence, but = map(say, (said.claim, said.evidence, said.but))
    return replace(said, claim=claim, evidence=evidence, but=but, details=tuple(map(say, said.details)))


def _block(block: panels.Block, say: Catalogue) -> panels.Block:
    match block:
        case panels.Sentences(texts, kind):
            return block if kind in ("code", "name") else replace(block, texts=list(map(say, texts)))
        case panels.Facts(pairs):
            # A system prompt is the user's, whatever it says.
            facts = [(say(of), fact if of.startswith("System prompt") else say(fact)) for of, fact in pairs]
            return replace(block, pairs=facts)
        case panels.Table(columns, rows):
            heads = [replace(c, head=say(c.head)) if isinstance(c.head, str) else c for c in columns]
            cells = [[_cell(cell, c, say) for cell, c in zip(row, columns, strict=True)] for row in rows]
            caption, aside, notes = say(block.caption), say(block.aside), tuple(map(say, block.notes))
            return replace(block, columns=heads, rows=cells, caption=caption, aside=aside, notes=notes)
        case panels.Intervals(bars):
            made = tuple((_name(who, say), score, ends, _bar(bar, say)) for who, score, ends, bar in bars)
            return replace(block, bars=made, caption=say(block.caption))
        case panels.Drawing(svg, caption):
            said = re.sub(r"(?<=>)([^<>]+)(?=</(?:text|title)>)", lambda found: say(found[1]), svg)
            return replace(block, svg=said, caption=say(caption))
        case panels.Replies(chosen, items):
            told = dict[int, panels.Item]()
            for item in items:
                replies = [(who, reply, score, list(map(say, flags))) for who, reply, score, flags in item.replies]
                told[item.number] = replace(item, replies=replies, flags=list(map(say, item.flags)))
            first = [(say(heading), told[item.number]) for heading, item in chosen]
            return replace(block, chosen=first, items=list(told.values()), unit=say(block.unit))


def _cell(cell: panels.Cell, column: panels.Column, say: Catalogue) -> panels.Cell:
    if isinstance(cell, str):
        return cell if column.kind == "code" else say(cell)
    return _name(cell, say) if isinstance(cell, panels.Name) else _bar(cell, say)


def _name(cell: panels.Name, say: Catalogue) -> panels.Name:
    return replace(cell, text=say(cell.text) if cell.is_ours else cell.text, note=say(cell.note))


def _bar(cell: panels.Bar | None, say: Catalogue) -> panels.Bar | None:
    return replace(cell, told=say(cell.told)) if cell else None
