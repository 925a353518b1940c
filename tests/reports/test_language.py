"""The report in Bengali: nothing that bnbench itself says is left in English, and what others say stays as it is."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import bnbench
import bnbench.reports.language as module
from bnbench.errors import UsageError
from bnbench.records import Rating, append_lines, as_json, read_run, read_training
from bnbench.reports import write_report
from bnbench.reports.language import Catalogue, language
from bnbench.reports.people import BETTER, CRITERIA, text_key
from tests.reports.conftest import ADAPTER, BASE, METRICS, PAIR, Spec
from tests.reports.test_report import EVIL, EVIL_REPLIES, Page

Maker = Callable[..., Path]
BENGALI = Path(module.__file__).parent / "templates" / "bn.toml"
ALL = ("chrF++", "BLEU", "ROUGE", "keyword-empathy", "semantic-empathy", "perplexity", "degeneration", "diversity",
       "relevance", "address")  # fmt: skip
# Names of metrics, models, methods, packages, files, units and formats, and what the user's own names and texts are.
NAMES = set(
    f"""chrF BLEU ROUGE AUC Holm Jaccard distinct CPU CPUs GiB BOM UTC Ctrl Linux sha template perplexity degeneration
    diversity combined keyword semantic empathy lex original norm tok smooth exp eff yes stem enc static anchors cal
    parts pol head fit relevance address dialogue Wilson group rsLoRA DoRA LoRA NEFTune learning rate seed bnbench json
    jsonl csv ranking generations python torch transformers peft trl bitsandbytes tokenizers pandas
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
SEEDS = (*SPECS, Spec("third", 0.44, base="b"))
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
    "seeds": (SEEDS, 40, {"groups": {"demo": (ADAPTER, "third")}}),
    "training": (SEEDS, 12, {}),
    "samples": (SPECS, 12, {"samples": 2}),
    "dialogues": (SPECS, 40, {"yardsticks": True}),
    "one dialogue": (SPECS, 12, {}),
}


def in_dialogues(folder: Path, n: int) -> None:
    path = folder / "examples.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    told = (json.dumps(row | {"dialogue": str(i % n)}) + "\n" for i, row in enumerate(rows))
    path.write_text("".join(told), encoding="utf-8")


def drawn_twice(folder: Path) -> None:
    for path in (folder / "scores").glob("*.parquet"):
        frame = pd.read_parquet(path)
        pd.concat([frame, frame]).sort_values("id", kind="stable").to_parquet(path, index=False)


def trained(folder: Path) -> None:
    """Two adapters with their trainings: one that overfits and stops early, one that never gets better."""
    shown = read_training(Path(bnbench.__file__).parent / "demo" / "adapter")
    assert shown is not None
    recipe = {"dora": True, "rslora": True, "lora_plus": 16.0, "neftune": 5.0, "supervise": "all", "learning_rate": 0.1}
    curves = {ADAPTER: [[0, 3.0, 4.0], [50, 2.0, 3.0], [160, 2.6, 3.3]], "third": [[0, 3.0, 4.0], [160, 3.1, 4.2]]}
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for candidate in (c for c in record["candidates"] if c["name"] in curves):
        validation = {"rows": 20, "characters": 900, "curve": curves[candidate["name"]]}
        kept = as_json(shown.summary()) | {"validation": validation}
        kept["recipe"] |= recipe if candidate["name"] == "third" else {}
        candidate["training"] = kept | {"validation": validation | {"stopped": candidate["name"] == ADAPTER}}
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


EDITS: dict[str, Callable[[Path], None]] = {
    "training": trained,
    "samples": drawn_twice,
    "dialogues": lambda folder: in_dialogues(folder, 12),
    "one dialogue": lambda folder: in_dialogues(folder, 1),
}


@pytest.mark.no_cover
@pytest.mark.parametrize("case", CASES)
def test_nothing_of_ours_is_left_in_english(make_run: Maker, case: str) -> None:
    specs, n, options = CASES[case]
    folder = make_run(specs, n=n, **{"metrics": ("chrF++", "degeneration"), **REAL, **options})
    if case in EDITS:
        EDITS[case](folder)
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
        ("pair", SPECS, rf"{ADAPTER} তার বেস মডেল {BASE}-এর চেয়ে ভালো: chrF\+\+-এর পার্থক্য [০-৯.]+ \(৯৫ % .* থেকে "),
        ("broken", specs, rf"{ADAPTER} তার বেস মডেল {BASE}-এর চেয়ে খারাপ: chrF\+\+-এর পার্থক্য [০-৯.]+ \(৯৫ % .*\)।"),
        ("base", (replace(SPECS[0], name="base"), SPECS[1]), rf"{ADAPTER} তার বেস মডেলের চেয়ে ভালো: chrF\+\+-এর "),
        ("alone", SPECS[:1], rf"৪০টি বার্তায় {BASE}-এর স্কোর: chrF\+\+ [০-৯.]+ \(৯৫ % আস্থা-ব্যবধান "),
    ):  # fmt: skip
        folder = make_run(these, name=name)
        text = " ".join(str(write_report([read_run(folder)], folder, resamples=400, lang="bn")).split())
        assert re.match(says, text), text[:300]
        assert "৪০টি বার্তা" in text and "দ্রষ্টব্য: উত্তরপ্রতি গড় শব্দসংখ্যা: " in text


@pytest.mark.parametrize("pairs", [False, True])
def test_what_people_say_in_bengali(make_run: Maker, pairs: bool) -> None:
    folder = make_run(SEEDS, n=30, metrics=("chrF++", "degeneration"), **REAL)
    run, rows = read_run(folder), [Rating("gone", "human:মিতা", "overall", 3.0)]
    for rater, severity in (("মিতা", 0), ("রিতা", 1)):
        for i, example in enumerate(run.examples[:12]):
            texts = [generations[i].reply for generations in run.replies.values()]
            for level, text in enumerate(texts, 2):
                key = text_key(example["id"], text)
                rows += [Rating(key, f"human:{rater}", of, float(level - severity)) for of in CRITERIA]
            asked = text_key(example["id"], *texts[:2])
            rows += [Rating(asked, f"human:{rater}", BETTER, float(i % 3))] if pairs else []
    append_lines(folder / "ratings.jsonl", rows)
    run = read_run(folder)
    run = replace(run, record=replace(run.record, corpus=replace(run.record.corpus, steps=())))
    made = write_report([run], folder, resamples=100, lang="bn", primary="human-overall")
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    known = {"human", "overall", "fluency", "wins", "raters", "items", "pairs", "ratings", "Krippendorff", "Kendall"}
    for left in (left_in_english(made.html.read_text(encoding="utf-8")), english(str(made)), english(markdown)):
        assert left <= known
    for told in (
        "মোট ৩০টি বার্তার মধ্যে কেবল ১২টির উপর, যেগুলোতে সব প্রার্থীর মান আছে", "রিতার কড়াকড়ি",
        "মানুষের ১টি জবাব এমন উত্তরের, যা এই রানে আর নেই", "মানুষের বিচারে সামগ্রিক মান অনুযায়ী ৩টি প্রার্থীর মধ্যে third সেরা।",
        "সমান হলে অর্ধেক। বিচারককে দুটি উত্তর" if pairs else "একই বিচারক যে উত্তরে সামগ্রিক মানে বেশি নম্বর দিয়েছেন, সেটি জেতে।",
    ):  # fmt: skip
        assert told in markdown
    table = markdown.partition("\nমেট্রিক বনাম মানুষ: মানুষের বিচারে সামগ্রিক মানের সঙ্গে Kendall-এর τ, ১ মানে পুরো মিল\n")[2]
    assert [row.split(" | ")[0] for row in table.splitlines()[3:5]] == ["| chrF++", "| ত্রুটিপূর্ণ উত্তর (%)"]


def test_notes_of_a_run_in_bengali() -> None:
    say = module.language("bn")
    for note in (
        "demo was trained on 3 of the 40 test rows: its scores here say nothing about new messages",
        "demo is asked in a format of its own (llama-3.1, template 0123456789ab; base in llama, ba9876543210): some of "
        "what differs may be the format's",
        "likelihoods are not available: demo, third; so perplexity and bits per character are not",
        "demo thinks aloud in 3 of 40 replies; <think>…</think> is not scored",
        "demo refused 3 of 40 messages; what it said instead is scored",
        "3 of 40 answers of the judge demo could not be read, twice: these ratings are missing",
        "the judge demo changed its mind with the order of the replies in 3 of 40 comparisons (8%), which "
        "count as ties",
        "the judge demo and third are of one family (llama): models are known to favour their own kind",
        "ratings by people are left out: each run has raters of its own, so they do not compare the runs",
        "the runs demo and third differ in decoding, dtype, quantisation, prompt format, system prompt: differences "
        "between their candidates may come from there",
        "the combined score is left out: the runs declared different ones, demo none and third 0.5 BLEU + 0.5 ROUGE",
        "the run demo declared BLEU as its primary metric; here ROUGE ranks, as third declared",
    ):
        assert english(say(note)) <= {"think"}, note


def test_what_others_wrote_stays_as_it_is(make_run: Maker) -> None:
    ours = "rank and the base"  # a candidate may be called like a word of ours
    others = (Spec("copy", 0.5), Spec(EVIL, 0.4, replies={**EVIL_REPLIES, 9: "All metrics"}), Spec("stock", 0.6))
    prompt = {"kind": "llama-3.1", "system": "Talk to people. Rank"}
    folder = make_run((replace(PAIR[0], name="base"), Spec(ours, 0.3), *others), name="adapter", prompt=prompt)
    html = write_report([read_run(folder)], folder, resamples=50, lang="bn").html.read_text(encoding="utf-8")
    page = Page(html)
    assert page.all("img") == [] and len(page.all("script")) == 2
    for called in ("base", "copy", "stock", ours):
        assert html.count(f'<bdi title="{called}">{called}</bdi>') >= 6
    assert '<dd dir="auto">Talk to people. Rank</dd>' in html
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^\| \d(?:–\d)? \| base \|", text, re.MULTILINE)) == 2  # ranking, all pairs
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


def test_digits_are_those_of_the_language_but_for_names() -> None:
    say = language("bn")
    for english, bengali in (
        ("2024 is better than t4-r16 by +0.5 chrF++ (95 % 0.1 to 1,200.8, p = 0.02)",
         "2024 t4-r16-এর চেয়ে ভালো: chrF++-এর পার্থক্য +০.৫ (৯৫ % আস্থা-ব্যবধান ০.১ থেকে ১,২০০.৮, p = ০.০২)"),
        ("severity of rater-1", "rater-1-এর কড়াকড়ি"),
        ("repeated 4-grams", "পুনরাবৃত্ত ৪-গ্রাম"),
        ("12 tokens", "১২ টোকেন"),
        ("12.5", "12.5"),
    ):  # fmt: skip
        assert say(english) == bengali
    mixed = re.compile("[0-9]-?[\u0980-\u09ff]")
    assert not [
        value for value in say.entries.values() if mixed.search(value) and not re.search("[A-Za-z][0-9]", value)
    ]


def test_a_report_in_bengali_has_no_latin_digit_before_a_bengali_ending(make_run: Maker) -> None:
    folder = make_run(SPECS)
    made = write_report([read_run(folder)], folder, resamples=100, lang="bn")
    ours = re.sub(r"<(script|blockquote)\b.*?</\1>", "", made.html.read_text(encoding="utf-8"), flags=re.DOTALL)
    for text in (str(made), (folder / "report.md").read_text(encoding="utf-8"), ours):
        assert "৪০টি" in text and re.findall(r"(?<![\w-])[0-9.,]+-?(?:টি|এর|জন|বার)", text) == []


def test_what_no_metric_tells_and_what_yardsticks_are_in_bengali() -> None:
    say = language("bn")
    none = say(
        "A reply that belongs to its message is told from another item’s by none of the metrics, on these items."
    )
    assert none == "কোন উত্তর কোন বার্তার, এই বার্তাগুলোয় তা কোনো মেট্রিকই চিনতে পারে না।"
    heading = say("Yardsticks on chrF++: replies that no candidate gave, without a rank (p unadjusted)")
    assert heading.startswith("chrF++-এর মাপকাঠি: এমন সব উত্তর যা কোনো প্রার্থীর দেওয়া নয়;")


def test_a_bengali_word_takes_its_ending_without_a_hyphen() -> None:
    say = module.language("bn")
    for english, bengali in (
        ("In human relevance, x is below a stock reply", "মানুষের বিচারে প্রাসঙ্গিকতায় x এগুলোর চেয়ে কম পায়: একটা বাঁধাধরা উত্তর"),
        ("In human overall, x is below a stock reply", "মানুষের বিচারে সামগ্রিক মানে x এগুলোর চেয়ে কম পায়: একটা বাঁধাধরা উত্তর"),
        ("below another item’s reference", "অন্য বার্তার আদর্শ উত্তরের চেয়েও কম পায়"),
        ("severity of মিতু", "মিতুর কড়াকড়ি"),
        ("severity of সজীব", "সজীবের কড়াকড়ি"),
        ("severity of rater-1", "rater-1-এর কড়াকড়ি"),
        ("রিতা is better than its base ভিত্তি-মডেল by +0.46 human overall (95 % 0.1 to 0.8, p = 0.02)",
         "রিতা তার বেস মডেল ভিত্তি-মডেলের চেয়ে ভালো: মানুষের বিচারে সামগ্রিক মানের পার্থক্য +০.৪৬ "
         "(৯৫ % আস্থা-ব্যবধান ০.১ থেকে ০.৮, p = ০.০২)"),
        ("a is better than b by +1.2 human empathy (95 % 0.1 to 0.8, p = 0.02), but below a stock reply",
         "a b-এর চেয়ে ভালো: মানুষের বিচারে সহমর্মিতার পার্থক্য +১.২ (৯৫ % আস্থা-ব্যবধান ০.১ থেকে ০.৮, p = ০.০২), "
         "তবে একটা বাঁধাধরা উত্তরের চেয়েও কম পায়"),
        ("a is the best of the 3 candidates on human overall, but 60 % of its replies are broken",
         "মানুষের বিচারে সামগ্রিক মান অনুযায়ী ৩টি প্রার্থীর মধ্যে a সেরা, তবে এর ৬০ % উত্তরই ত্রুটিপূর্ণ"),
        ("a scores 3.2 chrF++ on 40 items (95 % 2.1 to 4.3), but below a stock reply",
         "৪০টি বার্তায় a-এর স্কোর: chrF++ ৩.২ (৯৫ % আস্থা-ব্যবধান ২.১ থেকে ৪.৩), তবে একটা বাঁধাধরা উত্তরের চেয়েও কম পায়"),
        ("মিনি thinks aloud in 3 of 40 replies; <think>…</think> is not scored",
         "৪০টির মধ্যে ৩টি উত্তরে মিনি আগে লিখে লিখে ভেবেছে; <think>…</think> অংশটুকু মাপা হয়নি"),
        ("demo was trained on 3 of the 40 test rows: its scores here say nothing about new messages",
         "পরীক্ষার ৪০টি সারির ৩টি দিয়ে demo-কে প্রশিক্ষণ দেওয়া হয়েছে: এখানে তার স্কোর নতুন বার্তা সম্বন্ধে কিছুই বলে না"),
    ):  # fmt: skip
        assert say(english) == bengali


def test_one_word_for_one_thing_wherever_we_speak_bengali() -> None:
    """What the report, the readme and the raters' form call a thing, and what none of them calls it."""
    entries, root = tomllib.loads(BENGALI.read_text(encoding="utf-8")), Path(__file__).parents[2]
    readme = (root / "README.bn.md").read_text(encoding="utf-8")
    form = (BENGALI.parent / "human.html.j2").read_text(encoding="utf-8")
    interval = entries["95 % {a} to {b}"].split()[2]
    for term in (interval, *(entries[key] for key in ("base", "adapter", "yardstick", "seed", "empathy", "Ranking"))):
        assert term in readme, term
    rivals = ("ব্যবধি", "আস্থা-অন্তর", "সহানুভূতি", "ভিত্তি-মডেল", "বীজ", "উপাত্ত", "স্তম্ভ", "মেমরি", "মতৈক্য")
    for name, text in (("bn.toml", " ".join(entries.values())), ("README.bn.md", readme), ("the form", form)):
        assert [rival for rival in rivals if rival in text] == [], name


def test_the_catalogue_is_whole() -> None:
    entries = tomllib.loads(BENGALI.read_text(encoding="utf-8"))
    for key, value in entries.items():
        assert set(re.findall(r"\{(\w+)\}", key)) == set(re.findall(r"\{(\w+)\}", value)), key
        assert value.endswith("।") == key.endswith("."), key


def test_another_language_is_refused(make_run: Maker) -> None:
    with pytest.raises(UsageError, match=r"--lang fr: there are en and bn$"):
        write_report([read_run(make_run(n=1))], Path("nowhere"), lang="fr")
