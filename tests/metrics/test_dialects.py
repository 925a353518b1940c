"""Regional Bengali as standard Bengali: words of the table, words by rule, and what is left as it is."""

from __future__ import annotations

import pytest

from bnbench.metrics.normalization import normalize
from bnbench.metrics.romanised import standard

FORMS = {
    "তোঁয়ার": "তোমার", "হামার": "আমার", "হইছে": "হয়েছে", "লাইগ্যা": "জন্য",  # of the table
    "হুনলে": "শুনলে", "ফরীক্ষা": "পরীক্ষা", "ফুকুরের": "পুকুরের", "মানুষডাই": "মানুষটাই",  # by a sound, if that is a word
    "ভাইব্যা": "ভেবে", "কাঁপতাছে": "কাঁপছে", "দেখমু": "দেখব", "মাথাত": "মাথায়",  # by an ending
    "চশমাটা": "চশমাটা", "দুনিয়া": "দুনিয়া", "বই": "বই", "kemon": "kemon", "🙂": "🙂",  # as they are
}  # fmt: skip


@pytest.mark.parametrize("word", FORMS)
def test_a_regional_word_is_read_in_its_standard_form(word: str) -> None:
    assert standard()[normalize(word)] == normalize(FORMS[word])


def test_a_standard_form_is_no_regional_one() -> None:
    for form in ("আমি", "তোমার", "করে", "জন্য", "হয়েছে", "বাড়ি", "কী", "না", "কষ্ট", "বুক"):
        assert standard()[normalize(form)] == normalize(form)
