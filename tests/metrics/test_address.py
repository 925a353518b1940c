from __future__ import annotations

import pytest

from bnbench.metrics import get_metric


@pytest.mark.parametrize(
    ("reply", "steady"),
    [
        ("আপনার কষ্টটা বুঝতে পারছি। আপনি একা নন।", True),
        ("তোমারই দোষ নয়, তুমিও চেষ্টা করেছ।", True),
        ("তুই চিন্তা করিস না, তোর পাশে আছি।", True),
        ("আপনার কথা শুনলাম, তুমি একটু বিশ্রাম নাও।", False),
        ("তুমি ভালো থেকো, তোকেও ভালোবাসি।", False),
        ("আপনাদেরকে বলছি, তোমাদেরও বলছি।", False),
        ("এমন সময়ে মন খারাপ হওয়াটা স্বাভাবিক।", True),
        ("সে তো আপন মানুষ, তোতাপাখির মতো কথা বলে।", True),
        ("", True),
    ],
)
def test_forms_of_address_are_not_mixed(reply: str, steady: bool) -> None:
    assert get_metric("address").score([reply]).value == 100.0 * steady


def test_it_is_a_share_of_replies_in_any_spelling() -> None:
    result = get_metric("Address").score(["আপনি তুমি", "আপনি ভালো", "তোমায় নয়\u200c, তোমার", "তুই"])
    assert result.value == 75.0
    assert result.signature.startswith("address|norm:bn1|tok:bn1|n:4|")
