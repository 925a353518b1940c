"""Semantic empathy: what earns and what does not, on texts written here; anchors, calibration, and what it may cost."""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from bnbench.metrics import SemanticEmpathy, UsageError, get_metric
from bnbench.metrics.core import Texts
from bnbench.metrics.empathy import MECHANISMS, mechanisms
from bnbench.metrics.empathy.encoder import load_encoder, words_only
from bnbench.metrics.empathy.head import load_head
from bnbench.metrics.empathy.lexicon import load_polarity
from bnbench.metrics.empathy.semantic import (
    CALIBRATION,
    CONTRASTS,
    FEATURES,
    HEADS,
    Calibration,
    Reader,
    calibrate,
    load_anchors,
    load_calibration,
)
from bnbench.metrics.exceptions import InputError, MissingExtraError
from bnbench.metrics.labelled import LabelledSet, calibration_set, labelled_set
from bnbench.metrics.relevance import fitted

ROOT = Path(__file__).parents[3]
MESSAGE = "বাবা গত মাসে মারা গেছেন। ওঁর চশমাটা এখনও টেবিলের ওপর রাখা, সরাতে পারছি না।"
REPLIES = {
    "warm": "তোমার জন্য বুকটা ভারী হয়ে গেল, কাছে থাকলে জড়িয়ে ধরতাম।",
    "seen": "চশমাটা সরালে যেন বাবাকেই আরেকবার বিদায় দিতে হবে, সেই ভয়েই হাত থেমে যায়।",
    "asking": "চশমাটার দিকে তাকালে বাবার কোন কথাটা সবচেয়ে বেশি মনে পড়ে তোমার?",
    "advice": "মৃত্যুসনদ তুলে ব্যাংকে জমা দিন, নমিনির কাগজও সঙ্গে রাখুন।",
    "dismissive": "সবার বাবাই একদিন মরে, একটা চশমা নিয়ে এত নাটক করার কিছু নাই।",
    "generic": "জীবন এগিয়ে চলে। নিয়মিত হাঁটুন, ভালো বই পড়ুন।",
    "stuffed": "আপনার কষ্ট বুঝতে পারছি। আমি দুঃখিত। আপনি একা নন। সাহস রাখুন, আশা রাখুন।",
    "copy": "বাবা গত মাসে মারা গেছেন। ওঁর চশমাটা এখনও টেবিলের ওপর রাখা, সরাতে পারছ না।",
}
EMPATHIC = ("warm", "seen", "asking")
OWN = f"head:{load_head().id}|pol:{load_polarity().id}|fit:{fitted().id}|norm:bn1|tok:bn1"


@functools.cache
def few() -> LabelledSet:
    """Each fifth message's replies: a calibration is kept, found and made again whatever it was fitted to."""
    data = calibration_set()
    chosen = {*list(dict.fromkeys(data.ids))[::5]}
    return LabelledSet([row for row in data.rows if row.id in chosen], data.source, data.sha256)


@pytest.fixture(scope="module", autouse=True)
def fitted_to_few() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("bnbench.metrics.empathy.semantic.calibration_set", few)
        yield


@pytest.fixture(scope="module")
def metric() -> SemanticEmpathy:
    return SemanticEmpathy()


def scores(metric: SemanticEmpathy, *replies: str, message: str = MESSAGE) -> list[float]:
    return metric.score(replies, messages=[message] * len(replies)).per_item.tolist()


def test_an_empathic_reply_scores_above_every_other(metric: SemanticEmpathy) -> None:
    found = dict(zip(REPLIES, scores(metric, *REPLIES.values()), strict=True))
    empathic = [found.pop(name) for name in EMPATHIC]
    assert np.mean(empathic) > 1.3 * found.pop("dismissive")  # retelling with contempt is what it tells apart worst
    assert min(empathic) > 1.3 * max(found.values())
    assert found["copy"] == 0
    assert min(found.values()) >= 0 and max(empathic) <= 100


def test_each_reply_scores_highest_in_its_own_mechanism(metric: SemanticEmpathy) -> None:
    result = metric.score([REPLIES[name] for name in EMPATHIC], messages=[MESSAGE] * 3)
    assert mechanisms(result).argmax(axis=1).tolist() == [0, 1, 2]
    assert mechanisms(result).shape == (3, 3)
    assert list(result.scores) == ["semantic_empathy", *MECHANISMS]
    assert result.value == pytest.approx(result.per_item.mean()) == pytest.approx(mechanisms(result).mean())


def test_saying_it_twice_earns_nothing(metric: SemanticEmpathy) -> None:
    once, twice, looping = scores(metric, *(" ".join([REPLIES["warm"]] * times) for times in (1, 2, 5)))
    assert once == pytest.approx(twice) and looping == 0


def test_a_copied_sentence_earns_nothing(metric: SemanticEmpathy) -> None:
    alone, beside = scores(metric, REPLIES["warm"], MESSAGE.split("।")[0] + "। " + REPLIES["warm"])
    assert 0.8 * alone < beside < alone  # the head hears it too
    assert scores(metric, "", "।?", MESSAGE) == [0, 0, 0]


def test_a_question_mark_does_not_make_exploration(metric: SemanticEmpathy) -> None:
    asked, kept, gone = scores(metric, REPLIES["advice"].replace("।", "?"), REPLIES["asking"], REPLIES["asking"][:-1])
    assert asked < gone and abs(kept - gone) < kept / 2


def test_an_answer_to_something_else_scores_less_on_average(metric: SemanticEmpathy) -> None:
    data = labelled_set("development")
    rows = [row for row in data.rows if row.kind == "empathic"]
    replies, messages = [row.reply for row in rows], [row.message for row in rows]
    there = metric.score(replies, messages=messages).value
    elsewhere = metric.score(replies, messages=messages[10:] + messages[:10]).value
    assert elsewhere < 0.85 * there


def test_development_half_as_calibrated(metric: SemanticEmpathy) -> None:
    data = labelled_set("development")
    found = metric.score(data.replies, messages=data.messages).per_item
    empathic = data.empathic
    assert np.mean(found[empathic][:, None] > found[~empathic]) > 0.95


def test_spellings_score_the_same(metric: SemanticEmpathy) -> None:
    reply = REPLIES["seen"]
    for spelt in (
        reply.replace("।", " |"),
        reply.replace("\u09df", "\u09af\u09bc"),
        reply.replace("ো", "\u09c7\u09be"),
    ):
        assert spelt != reply or "\u09df" not in reply
        assert scores(metric, spelt) == pytest.approx(scores(metric, reply))


def test_a_reply_does_not_depend_on_its_neighbours(metric: SemanticEmpathy) -> None:
    rows = calibration_set().rows[:200]
    texts = Texts.of([row.reply for row in rows], messages=[row.message for row in rows])
    together = metric.statistics(texts)
    for part in (slice(0, 1), slice(1, 3), slice(9, 50)):
        some = Texts.of(texts.replies[part], messages=(texts.messages or ())[part])
        np.testing.assert_array_equal(metric.statistics(some), together[part])
    for threads in (1, 2):  # processes beside a run have one
        with threadpool_limits(threads):
            np.testing.assert_array_equal(SemanticEmpathy().statistics(texts), together)


def test_explain_names_the_nearest_anchor_and_what_is_copied(metric: SemanticEmpathy) -> None:
    copied, own = metric.explain("বাবা গত মাসে মারা গেছেন। আমি তোমার সঙ্গে আছি, যত রাতই হোক।", MESSAGE)
    assert (copied.void, own.void) == (True, False)
    assert own.nearest_class in ("emotional_reaction", "stamps") and own.nearest in load_anchors().sentences
    assert tuple(own.heads) == HEADS
    assert metric.explain("") == ()
    with pytest.raises(InputError, match="one reply"):
        metric.explain([REPLIES["warm"]], MESSAGE)  # type: ignore[arg-type]


def test_a_list_says_nothing(metric: SemanticEmpathy) -> None:
    listed = "কষ্ট, কান্না, ভরসা, গভীর সমবেদনা, পাশে থাকা, কেমন লাগছে, জড়িয়ে ধরা।"
    first, second = metric.explain(f"{listed} বাবার কথা খুব মনে পড়ছে, না?", MESSAGE)
    assert (first.void, second.void) == (True, False)
    assert scores(metric, listed) == [0]


def test_anchors_are_many_and_their_own() -> None:
    anchors = load_anchors()
    classes = Counter(anchors.labels)
    assert min(classes[name] for name in MECHANISMS) >= 50
    assert min(classes[f"not_{name}"] for name in MECHANISMS) >= 25
    assert set(classes) == {*MECHANISMS, *CONTRASTS, *(f"not_{name}" for name in MECHANISMS)}
    assert len(set(anchors.sentences)) == len(anchors.sentences)
    demo = (ROOT / "bnbench" / "demo" / "conversations.csv").read_text(encoding="utf-8")
    labelled = "\n".join(f"{row.message}\n{row.reply}" for row in labelled_set("development").rows)
    long = [sentence.rstrip("।?!") for sentence in anchors.sentences if len(sentence.split()) >= 5]
    assert [sentence for sentence in long if sentence in demo or sentence in labelled] == []


def test_bad_calibrations(tmp_path: Path) -> None:
    other = tmp_path / "cal.json"
    with pytest.raises(UsageError, match="cannot be read"):
        load_calibration(other)
    other.write_text(json.dumps({"features": ["length"]}), "utf-8")
    with pytest.raises(UsageError, match="other features"):
        load_calibration(other)


def test_a_calibration_for_another_encoder_is_refused(tmp_path: Path) -> None:
    content = json.loads(CALIBRATION.read_text("utf-8"))
    file = tmp_path / "cal.json"
    file.write_text(json.dumps({**content, "encoder": "other@1"}), "utf-8")
    with pytest.raises(UsageError, match=r"for encoder other@1.*calibrate_semantic\.py --encoder"):
        SemanticEmpathy(calibration=file).signature(1)


def test_the_signature_names_encoder_anchors_and_calibration(metric: SemanticEmpathy) -> None:
    anchors, calibration = load_anchors().id, load_calibration().id
    assert metric.signature(3) == (
        f"semantic-empathy|enc:{words_only(load_encoder()).id}|anchors:{anchors}|cal:{calibration}|{OWN}|n:3|bnbench:0.9"
    )
    assert get_metric("semantic-empathy").signature(3) == metric.signature(3)


def tiny_model(folder: Path, seed: int = 0) -> Path:
    """A BERT of one layer with random weights and a vocabulary of characters, saved by sentence-transformers."""
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    texts = "".join((*load_anchors().sentences, *labelled_set().replies, *labelled_set().messages))
    letters = sorted({letter for letter in texts if not letter.isspace()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    raw = folder.with_name(f"{folder.name}-raw")
    raw.mkdir(parents=True)
    (raw / "vocab.txt").write_text("\n".join(words), "utf-8")
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(raw)
    tokenizer = BertTokenizerFast(str(raw / "vocab.txt"), do_lower_case=False, strip_accents=False)
    tokenizer.save_pretrained(raw)
    SentenceTransformer(modules=[Transformer(str(raw)), Pooling(16)], device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BNBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fitted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The encoders that a calibration is made for from now on."""
    made: list[str] = []

    def counted(reader: Reader, data: LabelledSet) -> Calibration:
        made.append(reader.encoder.id)
        return calibrate(reader, data)

    monkeypatch.setattr("bnbench.metrics.empathy.semantic.calibrate", counted)
    return made


def test_any_model_is_calibrated_once(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fitted(monkeypatch)
    first = get_metric(f"semantic-empathy:{model}")
    assert not made and not cache.exists()  # a report asks for the metric only to name it
    found = first.signature(2)
    own = calibrate(Reader(load_encoder(model), load_anchors()), few())
    assert re.fullmatch(
        rf"semantic-empathy\|enc:tiny@[0-9a-f]{{8}}\|anchors:.*\|cal:{own.id}\|{re.escape(OWN)}\|n:2\|bnbench:0.9",
        found,
    )
    replies, messages = list(REPLIES.values()), [MESSAGE] * len(REPLIES)
    scored = first.score(replies, messages=messages)
    assert list(scored.scores) == ["semantic_empathy", *MECHANISMS] and 0 < scored.value < 100

    [file] = cache.iterdir()
    again = get_metric(f"semantic-empathy:{model}")
    assert again.signature(2) == found and len(made) == 1
    assert again.score(replies, messages=messages).scores == scored.scores
    assert json.loads(file.read_text("utf-8"))["id"] == own.id


@pytest.fixture(scope="module")
def kept(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A signature, and the cache that its calibration is in; it is read only."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("BNBENCH_CACHE", str(folder))
        return SemanticEmpathy(model).signature(1), folder


@pytest.mark.parametrize("damage", ["", "{}", "half", "another number"])
def test_a_damaged_calibration_is_made_again(
    model: Path, kept: tuple[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    found, (file,) = kept[0], shutil.copytree(kept[1], cache).iterdir()
    written = file.read_text("utf-8")
    number = json.loads(written)["weights"][0][0]
    file.write_text(
        {"half": written[:300], "another number": written.replace(str(number), "7.5")}.get(damage, damage), "utf-8"
    )
    made = fitted(monkeypatch)
    with caplog.at_level(logging.WARNING, "bnbench"):
        assert SemanticEmpathy(model).signature(1) == found
    assert len(made) == 1 and "made again" in caplog.text
    assert [path.read_text("utf-8") for path in cache.iterdir()] == [written]


def test_a_cache_that_cannot_be_written_stops_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("BNBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, "bnbench"):
        assert "enc:tiny@" in SemanticEmpathy(model).signature(1)
    assert "is not kept" in caplog.text


def test_the_cache_is_where_the_system_keeps_caches(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BNBENCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    SemanticEmpathy(model).signature(1)
    assert [path.suffix for path in (tmp_path / "bnbench").iterdir()] == [".json"]


@pytest.mark.no_cover
def test_other_weights_under_the_same_name_are_another_encoder(model: Path, cache: Path, tmp_path: Path) -> None:
    other = SemanticEmpathy(tiny_model(tmp_path / "tiny", seed=1)).signature(1)
    assert "enc:tiny@" in other and other != SemanticEmpathy(model).signature(1)
    assert len(list(cache.iterdir())) == 2


def test_an_encoder_of_ones_own_leaves_nothing_on_disk(cache: Path) -> None:
    class Letters:
        id = "letters@1"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            rows = np.array([[text.count(c) for c in "কবমতরি?"] for text in texts], dtype=np.float32).reshape(-1, 7)
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)

    metric = SemanticEmpathy(Letters())
    assert "enc:letters@1|" in metric.signature(1) and not cache.exists()
    assert np.isfinite(metric.score(list(REPLIES.values()), messages=[MESSAGE] * len(REPLIES)).per_item).all()


def test_without_sentence_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    metric = get_metric("semantic-empathy:org/never-loaded")  # nothing is loaded until it scores
    with pytest.raises(MissingExtraError) as raised:
        metric.score(["মন খারাপ"], messages=["কেমন আছ?"])
    said = str(raised.value)
    assert 'pip install ".[models]"' in said and "org/never-loaded" in said and "\n" not in said


def test_the_script_gives_the_shipped_calibration(tmp_path: Path) -> None:
    out = tmp_path / "cal.json"
    command = [sys.executable, "scripts/calibrate_semantic.py", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    assert "cross-validated by message" in done.stdout
    page = (ROOT / "docs" / "empathy.md").read_text("utf-8")
    told = re.search(r"cross-validated by message, gave (\S+), (\S+),\s(\S+) and (\S+)\.", page)
    found = re.findall(r"(?:AUC|Kendall's tau), .*: (0\.\d+)", done.stdout)
    assert told and list(map(float, told.groups())) == pytest.approx(list(map(float, found)), abs=0.002)
    made, shipped = load_calibration(out), load_calibration()
    assert (made.encoder, made.anchors) == (shipped.encoder, shipped.anchors)
    for name in ("mean", "scale", "weights", "thresholds"):
        assert getattr(made, name) == pytest.approx(getattr(shipped, name), abs=1e-3)
    assert shipped.weights.shape == (len(MECHANISMS), len(FEATURES))


def test_no_torch_is_needed() -> None:
    code = "import sys; from bnbench.metrics import SemanticEmpathy as S; S().score(['ভালো'], messages=['কেমন?']); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
