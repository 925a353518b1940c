"""BERTScore's fences, with a random encoder of two layers made here."""

from __future__ import annotations

import re
import shutil
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from bnbench.metrics import ROUGE, BERTScore, MissingExtraError, UsageError, get_metric
from bnbench.metrics.bertscore import FLOOR, UNRELATED

REPLIES = ["আমি ভালো আছি।", "তোমার কষ্টটা বুঝি", "বৃষ্টি পড়ছে বাইরে"]
REFERENCES = ["আমি ভালো আছি।", "তোমার কষ্টটা আমি বুঝতে পারছি", "রোদ উঠেছে আজ"]


def _encoder(folder: Path, lowercase: bool) -> str:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    characters = sorted({c for text in (*REPLIES, *REFERENCES, "কিশোরীর দুঃখ") for c in text if c != " "})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=lowercase, strip_accents=lowercase)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _encoder(tmp_path_factory.mktemp("cased"), lowercase=False)


@pytest.fixture(scope="module")
def metric(encoder: str) -> BERTScore:
    return BERTScore(model=encoder, layer=2, device="cpu")


def test_scores_above_a_fixed_floor(metric: BERTScore) -> None:
    made = metric.score(REPLIES, REFERENCES)
    assert made.per_item[0] == pytest.approx(100, abs=1e-3)
    assert 0 < made.scores["floor"] < made.value <= 100.001
    above = 100 * (made.value - made.scores["floor"]) / (100 - made.scores["floor"])
    assert made.scores["above_floor"] == pytest.approx(above)
    assert "|layer:2|" in made.signature and f"|floor:{FLOOR}|" in made.signature


def test_a_row_depends_on_its_own_reply_alone(metric: BERTScore, encoder: str) -> None:
    together = metric.score(REPLIES, REFERENCES)
    for row, (reply, reference) in enumerate(zip(REPLIES, REFERENCES, strict=True)):
        alone = metric.score([reply], [reference])
        np.testing.assert_allclose(alone.table[0], together.table[row], atol=1e-5)
        assert alone.scores["floor"] == together.scores["floor"] > 0
    backwards = metric.score(REPLIES[::-1], REFERENCES[::-1])
    np.testing.assert_allclose(backwards.table[::-1], together.table, atol=1e-5)


def test_no_two_texts_of_the_floor_are_alike() -> None:
    assert len(set(UNRELATED)) == len(UNRELATED) >= 16
    for some, other in combinations(UNRELATED, 2):
        assert ROUGE().score([some], [other]).value < 25, (some, other)


def test_by_name_with_a_folder(encoder: str, tmp_path: Path) -> None:
    by_name = get_metric(f"bertscore:{encoder}")
    assert by_name.spelling == f"BERTScore:{encoder}"
    assert isinstance(by_name, BERTScore) and by_name.layer == 2  # three quarters of two, rounded
    result = by_name.score(REPLIES, REFERENCES)
    assert result.value == pytest.approx(BERTScore(encoder, 2).score(REPLIES, REFERENCES).value)
    # Where the folder lies moves no score, and no signature; other weights do.
    moved = tmp_path / Path(encoder).name
    shutil.copytree(encoder, moved)
    assert BERTScore(str(moved)).signature(3) == result.signature
    assert re.search(r"\|model:cased\d*@[0-9a-f]{8}\|", result.signature)
    with next(moved.glob("*.safetensors")).open("ab") as file:
        file.write(b"0")
    assert BERTScore(str(moved)).signature(3) != result.signature


def test_empty_and_very_long_texts(metric: BERTScore) -> None:
    made = metric.score(["", "।", "ভালো " * 500], ["ভালো", "", "ভালো"])
    assert made.per_item[:2].tolist() == [0.0, 0.0]
    assert np.isfinite(list(made.scores.values())).all()


def test_short_and_empty_texts_equal_the_peer(metric: BERTScore, encoder: str) -> None:
    from bert_score import BERTScorer

    short = ["ক", "।", "?", "5", "😊", "না", "আমি", "আমি ভালো", "আছি।", "ok."]
    some, others = zip(*product(short, short), strict=True)
    peer = BERTScorer(model_type=encoder, num_layers=2, device="cpu")
    peer._tokenizer.model_max_length = 64
    precision, recall, f1 = (part.double().numpy() for part in peer.score(list(some), list(others)))
    table = metric.score(some, others).table
    np.testing.assert_allclose(table[:, :3], np.column_stack([f1, precision, recall]), atol=1e-6)
    # bert-score gives an empty text 0 where it does not raise; a blank or invisible one is empty here too.
    empty = ["", " ", "\n", "\u200b"]
    for one, other in ((empty, ["ক"] * 4), (["ক"] * 4, empty), (empty, empty)):
        assert not metric.score(one, other).table[:, :3].any()


def test_the_best_of_several_references(metric: BERTScore) -> None:
    assert metric.score(["আমি ভালো আছি।"], [["রোদ উঠেছে আজ", "আমি ভালো আছি।"]]).value == pytest.approx(100, abs=1e-3)


def test_an_uncased_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vowel signs"):
        BERTScore(model=_encoder(tmp_path, lowercase=True), layer=2).score(["ক"], ["ক"])


def test_an_unusable_encoder_is_named(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="layer 9"):
        BERTScore(model=encoder, layer=9).score(["ক"], ["ক"])
    with pytest.raises(UsageError, match="nothing-here"):
        BERTScore(model=str(tmp_path / "nothing-here"), layer=1).score(["ক"], ["ক"])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bert_score", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        BERTScore().score(["ক"], ["ক"])
