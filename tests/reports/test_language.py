"""The report in Bengali: nothing that bnbench itself says is left in English, and what others say stays as it is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import bnbench.reports.language as module
from bnbench.errors import UsageError
from bnbench.records import read_run
from bnbench.reports import write_report
from bnbench.reports.language import Catalogue
from tests.reports.conftest import ADAPTER, BASE, METRICS, PAIR, Spec
from tests.reports.test_report import EVIL, EVIL_REPLIES, Page

Maker = Callable[..., Path]
BENGALI = Path(module.__file__).parent / "templates" / "bn.toml"
ALL = ("chrF++", "BLEU", "ROUGE", "keyword-empathy", "semantic-empathy", "perplexity", "degeneration", "diversity")
# Names of metrics, models, methods, packages, files, units and formats, and what the user's own names and texts are.
NAMES = set(
    f"""chrF BLEU ROUGE AUC Holm Jaccard distinct CPU CPUs GiB BOM UTC Ctrl Linux sha template perplexity degeneration
    diversity combined keyword semantic empathy lex original norm tok smooth exp eff yes stem enc static anchors cal
    parts bnbench json jsonl csv ranking generations python torch transformers peft trl bitsandbytes tokenizers pandas
    sacrebleu numpy float lora cosine adamw all linear none llama cpu top test held out demo base adapter third
    conversations page total count topic lyrics friend sorry {ADAPTER} {BASE}""".split()
)


def left_in_english(html: str) -> set[str]:
    """What the page says in words of three letters or more, not in code, that are no names."""
    page = Page(re.sub(r"<(code|pre)[ >].*?</\1>", "", html, flags=re.DOTALL))
    told = {"aria-label", "placeholder", "title", "data-text", "data-done", "data-marked"}
    texts = [*page.text, *(str(value) for _, attrs in page.tags for key, value in attrs.items() if key in told)]
    return set[str]().union(*map(english, texts))


def english(text: str) -> set[str]:
    """Its words of three letters or more, no hashes, that are no names."""
    return set(re.findall("[A-Za-z]{3,}", re.sub(r"\b[0-9a-f]{12,}\b|(?<=[:@-])[0-9a-f]{8}\b", "", text))) - NAMES


REAL = {  # of the run: sentences of ours that conftest words otherwise
    "precision": {"dtype": "float32", "reason": "float32, because the CPU computes 16-bit numbers no faster"}
}
SPECS = (Spec(BASE, 0.15, "base", location="b"), Spec(ADAPTER, 0.4, base="b"))
MOST_BROKEN = dict.fromkeys(range(30), "I am sorry, my friend.")
CASES = {
    "pair": (SPECS, 12, {"metrics": METRICS}),
    "all": (SPECS, 16, {"metrics": ALL, "yardsticks": True, "combine": "chrF++=0.5,ROUGE=0.5"}),
    "alone": (SPECS[:1], 12, {}),
    "one": (SPECS, 1, {}),
    "same": ((Spec("demo", 0.3, "base"), Spec("third", 0.3)), 12, {}),
    "three": ((*SPECS, Spec("third", 0.9, base="b")), 40, {}),
    "ten": ((PAIR[0], *(Spec(f"adapter-{i}", 0.1 + 0.06 * i) for i in range(9))), 12, {"yardsticks": True}),
    "broken": ((SPECS[0], replace(SPECS[1], replies=MOST_BROKEN)), 40, {"yardsticks": True}),
    "predictions": (tuple(replace(s, kind="predictions", likelihoods=False) for s in PAIR), 12, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_ours_is_left_in_english(make_run: Maker, case: str) -> None:
    specs, n, options = CASES[case]
    folder = make_run(specs, n=n, **{"metrics": ("chrF++", "degeneration"), **REAL, **options})
    record = read_run(folder)
    corpus = replace(record.record.corpus, steps=())
    made = write_report(
        [replace(record, record=replace(record.record, corpus=corpus))], folder, resamples=100, lang="bn"
    )
    html = made.html.read_text(encoding="utf-8")
    assert left_in_english(html) == set()
    assert '<html lang="bn">' in html
    for text in (str(made), (folder / "report.md").read_text(encoding="utf-8")):
        assert english(text) == set()


def test_a_verdict_in_bengali(make_run: Maker) -> None:
    specs = (SPECS[0], replace(SPECS[1], replies=MOST_BROKEN))
    for name, these, says in (
        ("pair", SPECS, rf"{ADAPTER} তার ভিত্তি-মডেল {BASE}-এর চেয়ে ভালো: \+[\d.]+ chrF\+\+ \(95 % আস্থা-ব্যবধান .* থেকে "),
        ("broken", specs, rf"{ADAPTER} তার ভিত্তি-মডেল {BASE}-এর চেয়ে খারাপ: −[\d.]+ chrF\+\+ \(95 % .*\)।"),
        ("alone", SPECS[:1], rf"{BASE}-এর স্কোর [\d.]+ chrF\+\+; 40টি বার্তা \(95 % আস্থা-ব্যবধান "),
    ):  # fmt: skip
        folder = make_run(these, name=name)
        text = " ".join(str(write_report([read_run(folder)], folder, resamples=400, lang="bn")).split())
        assert re.match(says, text), text[:300]
        assert "40টি বার্তা" in text and "দ্রষ্টব্য: উত্তরপ্রতি গড় শব্দসংখ্যা: " in text


def test_what_others_wrote_stays_as_it_is(make_run: Maker) -> None:
    ours = "rank and the base"  # a candidate may be called like a word of ours
    folder = make_run((PAIR[0], Spec(ours, 0.3), Spec(EVIL, 0.4, replies={**EVIL_REPLIES, 9: "All metrics"})))
    html = write_report([read_run(folder)], folder, resamples=50, lang="bn").html.read_text(encoding="utf-8")
    page = Page(html)
    assert page.all("img") == [] and len(page.all("script")) == 2
    assert f'<bdi title="{ours}">{ours}</bdi>' in html
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)


def test_how_a_catalogue_is_read() -> None:
    say = Catalogue("xx", {
        ".": "।", "{n} items": "{n}টি বার্তা", "{LABELS} with {ITEMS}.": "{ITEMS}: {LABELS}", "a, b": "একত্র",
        "empty, %": "ফাঁকা, %", "{LABEL}, %": "{LABEL}, %", "loop": "চক্র", "{who} and {WHAT}": "{who} আর {WHAT}",
    })  # fmt: skip
    assert say("3 items") == "3টি বার্তা"
    assert say("many more items") == "many more items"  # a place of one letter has no blank
    assert say("empty, %; loop, % and x with 2 items.") == "2টি বার্তা: ফাঁকা, %; চক্র, %, x।"
    assert say("loop and loop") == "loop আর চক্র"
    assert say("3 items. Loop.") == "3টি বার্তা। Loop."
    assert (say("12.5"), say(""), say("বাংলা")) == ("12.5", "", "বাংলা")


def test_the_catalogue_is_whole() -> None:
    entries = tomllib.loads(BENGALI.read_text(encoding="utf-8"))
    for key, value in entries.items():
        assert set(re.findall(r"\{(\w+)\}", key)) == set(re.findall(r"\{(\w+)\}", value)), key
        assert value.endswith("।") == key.endswith("."), key


def test_another_language_is_refused(make_run: Maker) -> None:
    with pytest.raises(UsageError, match="--lang fr: there are en and bn"):
        write_report([read_run(make_run(n=1))], Path("nowhere"), lang="fr")
