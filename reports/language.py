"""The report in another language, by a catalogue of our sentences: templates/bn.toml has Bengali.

A key is what the English report says, with or without its full stop, and with places for what differs: `{who}` comes
back as it is, and `{n}`, of one letter, has no blank; `{LABEL}` is looked up itself, and of `{LABELS}`, which ends in
S, each part (`a, b and c`, `a; b`). What no key fits stays as it is. Numbers of what is said, but of no name and of no
table's cells, are written in the digits that the catalogue has for `0123456789`.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from bnbench.errors import UsageError
from bnbench.reports import panels
from bnbench.reports.verdict import Verdict

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
# With what belongs to it, which may be a name's letters.
_NUMBER = re.compile(r"[\w.,:/@#+-]*\d[\w.,:/@#+-]*", re.ASCII)
_COUNTED = frozenset({"alpha", "auc", "ends", "rank", "rate", "seed", "value", "weights"})  # places of numbers
_LISTS = ((re.compile("; "), "; "), (re.compile(r", (?!%)| and | or "), ", "))


@cache
def language(code: str) -> "Catalogue":
    """What says a text of the English report in another language. Raises UsageError for one without catalogue."""
    known = sorted(path.stem for path in panels.TEMPLATES.glob("*.toml"))
    if code not in known:
        raise UsageError(f"--lang {code}: there are en and {', '.join(known)}")
    return Catalogue(code, tomllib.loads((panels.TEMPLATES / f"{code}.toml").read_text(encoding="utf-8")))


class Catalogue:
    """Translations by what they translate; the key with most letters of its own that fits counts."""

    def __init__(self, code: str, entries: Mapping[str, str]) -> None:
        self.code, self.stop = code, entries.get(".", ".")
        self.digits = str.maketrans(_DIGITS, entries.get(_DIGITS, _DIGITS))
        own = {key.removesuffix("."): value.removesuffix(self.stop) for key, value in entries.items()}
        self.entries = {key: self._numbers(value) for key, value in own.items()}
        self.said = {key: self._numbers(value) for key, value in entries.items()}
        # First what parts a claim from its but, then the key with most letters of its own.
        keys = sorted(filter(_PLACE.search, self.entries), key=lambda k: (", but {" not in k, -len(_PLACE.sub("", k))))
        self.patterns = list[tuple[re.Pattern[str], str]]()
        for key in keys:
            letters = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\S+)", re.escape(key)))
            self.patterns.append((re.compile(letters, re.DOTALL), self.entries[key]))

    def __call__(self, text: str) -> str:
        """The text in the language, each of its sentences by itself."""
        if text in self.said:
            return self.said[text]
        if len(parts := _SENTENCE.split(text)) > 1:
            return self.said.setdefault(text, " ".join(map(self, parts)))
        plain = text.removesuffix(".")
        said = self.entries.get(plain)
        for pattern, value in self.patterns if said is None and re.search("[A-Za-z]", plain) else ():
            if found := pattern.fullmatch(plain):
                said = value.format(**{place: self._part(place, part) for place, part in found.groupdict().items()})
                for ending, joint in _ENDINGS:
                    said = ending.sub(joint, said)
                break
        self.said[text] = text if said in (None, plain) else said + (self.stop if plain != text else "")
        return self.said[text]

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


# What is ours to say in each part of a report; the rest are names, code, numbers and texts of the data.
_OURS: Mapping[type, str] = {
    panels.Panel: "title link", panels.Sentences: "texts", panels.Table: "columns caption aside notes",
    panels.Column: "head", panels.Name: "note", panels.Bar: "told", panels.Intervals: "bars caption",
    panels.Drawing: "caption", panels.Replies: "chosen items unit", panels.Item: "flags",
    Verdict: "claim evidence but details",
}  # fmt: skip


def spoken(part: Any, say: Catalogue) -> Any:
    """Panels, blocks, a verdict, or what they are made of, in the language of a catalogue."""
    own = {key: spoken(getattr(part, key), say) for key in _OURS.get(type(part), "").split()}
    match part:
        case str():
            return say(part)
        case list() | tuple():
            return type(part)(spoken(one, say) for one in part)
        case panels.Sentences(kind="code" | "name"):
            return part
        case panels.Facts(pairs):  # a system prompt is the user's, whatever it says
            own["pairs"] = [(say(of), fact if of.startswith("System prompt") else say(fact)) for of, fact in pairs]
        case panels.Table(columns, rows):
            codes = [column.kind == "code" for column in columns]
            own["rows"] = [[x if c else spoken(x, say) for x, c in zip(row, codes, strict=True)] for row in rows]
        case panels.Name(text, is_ours=True):
            own["text"] = say(text)
        case panels.Drawing(svg):
            own["svg"] = re.sub(r"(?<=>)([^<>]+)(?=</(?:text|title)>)", lambda found: say(found[1]), svg)
        case panels.Item(replies=replies):
            own["replies"] = [(*reply, spoken(flags, say)) for *reply, flags in replies]
    return replace(part, **own) if own else part
