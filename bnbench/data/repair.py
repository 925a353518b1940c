"""Repairs of Bengali text that was damaged on its way into a file. What cannot be known again is left alone.

Only damage that has one certain undoing is undone; the spelling is never touched (that is the scorer's business,
`bnbench.metrics`). Every rule was seen in rows of public Bengali corpora.
"""

from __future__ import annotations

import regex

# The characters that cp1252 shows for the bytes 0x80-0xFF. Programs that read UTF-8 as cp1252 leave the five bytes that
# cp1252 does not define as C1 control characters, so both spellings of those bytes are accepted.
_BYTE_OF = {bytes([b]).decode("cp1252", errors="ignore") or chr(b): b for b in range(0x80, 0x100)}
_BYTE_OF |= {chr(b): b for b in range(0x80, 0x100)}
_MOJIBAKE_RUN = regex.compile(f"[{regex.escape(''.join(_BYTE_OF))}]+")
# The first two bytes of every Bengali letter, read as cp1252 once or twice.
_MOJIBAKE_SIGN = regex.compile("à[¦§]|Ã\\u00a0Â[¦§]")
_TEMPLATE = regex.compile(
    r"(?:\b(?:system|user|assistant)\s*)?<\|[a-z0-9_]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
)
_STRAY_A = regex.compile(r"Â(?=[\s\u00a0]|$)|(?<=[\s\u00a0\p{Bengali}])Â")  # half of a non-breaking space
_STRAY_END = regex.compile(r"\s*[>@]+\s*$|^\s*[>@]+(?=\s)")
_DOUBLED_SIGN = regex.compile(r"([\u0981-\u0983\u09bc\u09be-\u09cd\u09d7])\1+")
_SPACES = regex.compile(r"[ \t\u00a0]+")
_HALF_A_CHARACTER = regex.compile(r"\p{Cs}")  # a lone surrogate, from JSON that was cut inside an emoji
LOST = "\ufffd"


def undo_mojibake(text: str) -> str:
    """Turns UTF-8 that was read as cp1252 (once or several times) back into Bengali: `à¦•à¦¿` → কি.

    Runs that are not valid UTF-8 are left as they are, and so is Latin text with accents.
    """
    for _ in range(3):
        if not _MOJIBAKE_SIGN.search(text):
            return text
        repaired = _MOJIBAKE_RUN.sub(_decoded, text)
        if repaired == text:
            return text
        text = repaired
    return text


def _decoded(run: regex.Match[str]) -> str:
    try:
        return bytes(_BYTE_OF[c] for c in run.group()).decode("utf-8")
    except UnicodeDecodeError:
        return run.group()


def repair(text: str) -> str:
    """The text without mojibake, BOM, template remnants, stray marks, doubled vowel signs and runs of spaces."""
    text = undo_mojibake(_HALF_A_CHARACTER.sub(LOST, text.replace("\ufeff", "")))
    text = _STRAY_A.sub("", _TEMPLATE.sub(" ", text))
    text = _DOUBLED_SIGN.sub(r"\1", _STRAY_END.sub("", text))
    lines = (_SPACES.sub(" ", line).strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return "\n".join(lines).strip()
