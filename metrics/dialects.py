"""Regional Bengali read as standard Bengali, word by word: for a reader, তোঁয়ার, তুমার and তোমার are one word.

The words and the rules: `dialects.toml`. A rule counts where it leads to a word that this project's own texts have.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from functools import lru_cache
from pathlib import Path

from bnbench.metrics.normalization import Memo, normalize

_CONSONANT = "(?:[\u0995-\u09b9]\u09bc?)"


@lru_cache(maxsize=1)
def standard() -> Memo[str]:
    """Of each normalised word its standard form, or itself where none is known."""
    folder = Path(__file__).parent
    # As NFC has it, and bn1: য় and ড় are two code points.
    table = tomllib.loads(unicodedata.normalize("NFC", (folder / "dialects.toml").read_text("utf-8")))
    words = {normalize(word): normalize(forms).split() for word, forms in table["words"].items()}
    forms = {form: word for word, regional in words.items() for form in regional}
    known = {*normalize((folder / "bn_words.txt").read_text("utf-8")).split(), *words}
    sounds, endings = (
        [(re.compile(pattern.replace("C", _CONSONANT)), to) for pattern, to in table["rules"][name]]
        for name in ("sounds", "endings")
    )

    def found(word: str) -> str:
        heard = [word]
        if word not in known and word not in forms:
            heard += [new for rule, to in sounds if (new := rule.sub(to, word)) != word]
            heard += [new for each in heard for rule, to in endings if len(new := rule.sub(to, each)) > 1 and new != each]
        return next((forms.get(each, each) for each in heard if each in forms or each in known), word)

    return Memo(found)
