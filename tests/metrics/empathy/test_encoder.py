"""The shipped encoder: what its vectors must be, what its folder must hold, and the errors of every encoder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnbench.metrics.empathy.encoder import (
    SHIPPED,
    StaticEncoder,
    TransformerEncoder,
    load_encoder,
    word_parts,
    words_only,
)
from bnbench.metrics.exceptions import InputError, MissingExtraError, UsageError
from bnbench.metrics.tokenization import tokenize

ROOT = Path(__file__).parents[3]
EVERYDAY = [
    "আজ সকাল থেকে বৃষ্টি হচ্ছে, তাই বাজারে যাইনি।",
    "তোমার বোনের বিয়ে কবে ঠিক হলো?",
    "আমার মন খারাপ।",
    "আপনার কষ্টটা বুঝতে পারছি।",
    "অফিস থেকে ফিরতে ফিরতে রাত দশটা বেজে গেল!",
    "MP3 ফাইলটা ৫:৩০ মিনিটের, দাম ১,৫০০.৭৫ টাকা 😊",
]


@pytest.fixture(scope="module")
def encoder() -> StaticEncoder:
    return StaticEncoder()


def cosine(encoder: StaticEncoder, a: str, b: str) -> float:
    first, second = encoder.encode([a, b])
    return float(first @ second)


def test_rows_are_unit_vectors_of_float32(encoder: StaticEncoder) -> None:
    rows = encoder.encode(EVERYDAY)
    assert rows.shape == (len(EVERYDAY), encoder.dim)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_a_text_without_anything_known_gives_zeros_and_moves_no_other_row(encoder: StaticEncoder) -> None:
    empty = ["", "  \n ", "\u200b", "<|eot_id|>", "ᚠᚢᚦ"]
    rows = encoder.encode([*empty, EVERYDAY[0], ""])
    assert not rows[[0, 1, 2, 3, 4, 6]].any()
    assert np.array_equal(rows[5], encoder.encode([EVERYDAY[0]])[0])
    assert encoder.encode([]).shape == (0, encoder.dim)
    assert not encoder.encode(["", ""]).any()


def test_a_row_does_not_depend_on_the_batch(encoder: StaticEncoder) -> None:
    many = EVERYDAY * 200
    assert np.array_equal(encoder.encode(many), np.tile(encoder.encode(EVERYDAY), (200, 1)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("আমার হৃদ\u09dfটা পু\u09dcে যাচ্ছে।", "আমার হৃদ\u09af\u09bcটা পু\u09a1\u09bcে যাচ্ছে।"),
        ("ভালো লাগছে না।", "ভাল\u09c7\u09be লাগছে না।"),
        ("আর্\u200cট কলেজে র\u200d্যাগিং হয়।", "আর্ট কলেজে র্\u200dযাগিং হয়।"),
        ("হঠা\u09ce কেঁদে ফেললাম।", "হঠা\u09a4\u09cd\u200d কেঁদে ফেললাম।"),
        ("রাত ২টায় ঘুম ভাঙে।", "রাত 2টায় ঘুম ভাঙে।"),
        ("মন ভালো নেই।", "মন ভালো নেই ৷"),
        ("মন ভালো নেই।", "\ufeffমন  ভালো নেই |"),
        ("দুঃখ পেয়েছি।", "দু:খ পেয়েছি."),
        ("\u0986মার মা অসুস্থ", "\u0985\u09beমার মা অসুস্থ"),
    ],
)
def test_spellings_of_one_sentence_have_one_vector(encoder: StaticEncoder, one: str, other: str) -> None:
    assert one != other
    first, second = encoder.encode([one, other])
    assert first.any()
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("word", "forms", "stranger"),
    [
        ("মন", ["মনটা", "মনের", "মনে", "মনগুলো"], "ক্রিকেট"),
        ("কষ্ট", ["কষ্টটা", "কষ্টের", "কষ্টগুলোকে"], "আনন্দ"),
        ("দুঃখ", ["দুঃখটা", "দুঃখের", "দুঃখবোধ"], "টেবিল"),
    ],
)
def test_inflected_forms_stay_near_their_word(
    encoder: StaticEncoder, word: str, forms: list[str], stranger: str
) -> None:
    nearest = min(cosine(encoder, word, form) for form in forms)
    assert nearest > 0.4
    assert nearest > cosine(words_only(encoder), word, stranger) + 0.3


def test_meaning_orders_sentences(encoder: StaticEncoder) -> None:
    for near, far in [("আমার মনটা ভালো নেই।", "আজ বাজারে গিয়ে মাছ কিনলাম।"), ("আমি খুব কষ্ট পাচ্ছি।", "ট্রেন কয়টায় ছাড়ে?")]:
        assert cosine(encoder, "আমার মন খারাপ।", near) > cosine(encoder, "আমার মন খারাপ।", far) + 0.2


def test_unrelated_sentences_are_far_apart(encoder: StaticEncoder) -> None:
    lines = (ROOT / "bnbench" / "demo" / "conversations.csv").read_text("utf-8").split("।")[:2000:5]
    rows = words_only(encoder).encode(lines)
    cosines = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
    assert abs(np.median(cosines)) < 0.25  # all of one kind; the teacher's lie in 0.76-0.92
    assert np.quantile(cosines, 0.99) - np.quantile(cosines, 0.01) > 0.3


def test_length_is_seen_and_can_be_taken_away(encoder: StaticEncoder) -> None:
    short, long = "মন খারাপ।", "আজ সারাদিন কাজ করে বাড়ি ফিরে দেখি কেউ নেই।"
    repeated = f"{short} {short} {short}"
    assert cosine(words_only(encoder), short, repeated) == pytest.approx(1)
    assert cosine(encoder, short, repeated) < 0.98
    assert encoder.dim == words_only(encoder).dim + 3 and words_only(encoder).id != encoder.id
    rows = encoder.encode([short, long])
    n = [sum(len(encoder._rows[word]) for word in text.split()) for text in (short, long)]
    said = np.array([[np.cos(np.log1p(count)), np.sin(np.log1p(count))] for count in n]) * 0.45 / (1 + 0.45**2) ** 0.5
    assert rows[:, -2:] == pytest.approx(said, abs=1e-6)


def test_model2vec_reads_the_folder_and_gives_the_same_vectors(encoder: StaticEncoder) -> None:
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(SHIPPED)
    theirs = model.encode([" ".join(tokenize(text)) for text in EVERYDAY])
    assert np.allclose(theirs, words_only(encoder).encode(EVERYDAY), atol=1e-5)
    assert model.base_model_name == "intfloat/multilingual-e5-small"


def test_the_parts_of_a_token_are_word_pieces() -> None:
    known = {"মন", "##টা", "##ট", "##া", "ম", "##ন", "মনট"}
    assert word_parts("মন", known) == ["মন"]
    assert word_parts("মনটা", known) == ["মনট", "##া"]  # the longest beginning wins
    assert word_parts("মন", known, whole=False) == ["ম", "##ন"]
    assert word_parts("ম", known, whole=False) == ["ম"]
    assert word_parts("মনx", known) == []
    assert word_parts("ম" * 101, known | {"##ম"}) == []
    shipped = StaticEncoder()
    assert shipped._rows["মনগুলো"] == tuple(shipped._vocabulary[part] for part in ("মন", "##গুলো"))


def test_the_folder_is_small_and_carries_its_card() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) <= 8_000_000
    card = (SHIPPED / "README.md").read_text("utf-8")
    for needed in ("base_model: intfloat/multilingual-e5-small", "CC BY 2.0 FR", "CC BY 4.0", "MIT", "Tatoeba"):
        assert needed in card
    for encoder in (StaticEncoder(), words_only(StaticEncoder())):  # the numbers there are these encoders'
        assert encoder.id in card


def test_the_id_names_the_weights(encoder: StaticEncoder, tmp_path: Path) -> None:
    assert encoder.id.startswith("bn-static@")
    folder = copied(tmp_path / "bn-static")
    assert StaticEncoder(folder).id == encoder.id
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert StaticEncoder(folder).id != encoder.id
    assert load_encoder(folder).id == StaticEncoder(folder).id


def copied(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes((SHIPPED / name).read_bytes())
    return folder


def test_a_folder_that_lacks_something_is_an_error(tmp_path: Path) -> None:
    folder = copied(tmp_path / "enc")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        StaticEncoder(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec"}), "utf-8")
    (folder / "tokenizer.json").write_bytes((SHIPPED / "tokenizer.json").read_bytes())
    with pytest.raises(UsageError, match="bn1"):
        StaticEncoder(folder)


@pytest.mark.parametrize("texts", ["একটি বাক্য", ["ঠিক", None], [b"x"]])
def test_only_lists_of_text_are_encoded(encoder: StaticEncoder, texts: Any) -> None:
    with pytest.raises(InputError):
        encoder.encode(texts)


def test_the_shipped_encoder_is_loaded_once_and_without_torch() -> None:
    assert load_encoder() is load_encoder()
    code = (
        "import sys; from bnbench.metrics.empathy.encoder import load_encoder; load_encoder().encode(['মন']);"
        "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_a_word_is_looked_up_once_however_many_texts_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    look_up = StaticEncoder._rows_of

    def counted(self: StaticEncoder, word: str) -> tuple[int, ...]:
        seen.append(word)
        return look_up(self, word)

    monkeypatch.setattr(StaticEncoder, "_rows_of", counted)
    words = " ".join(EVERYDAY).split()
    rng = np.random.default_rng(0)
    StaticEncoder().encode([" ".join(rng.choice(words, 8)) for _ in range(500)])  # speed: benchmarks/encoder.py
    assert sorted(seen) == sorted(set(words))


def test_without_sentence_transformers_another_encoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[models\]"'):
        load_encoder("some/model-that-needs-it")


def test_a_missing_encoder_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("sentence_transformers")
    missing = str(tmp_path / "no-such-encoder")
    with pytest.raises(UsageError, match="no-such-encoder"):
        load_encoder(missing)


def test_a_sentence_transformers_model_is_an_encoder(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    folder = tiny_transformer(tmp_path / "tiny-e5-test")
    encoder = load_encoder(folder)
    rows = encoder.encode(["মন খারাপ", "", "মন  খারাপ", "কষ্ট হয়"])
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows[[0, 2, 3]], axis=1), 1, atol=1e-5)
    assert not rows[1].any()
    assert np.allclose(rows[0], rows[2], atol=1e-5)
    assert encoder.id.startswith("tiny-e5-test@")
    assert encoder.id.endswith("+query")


def tiny_transformer(folder: Path) -> str:
    """A random BERT of two layers with the words of these tests, saved by sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", "মন", "খারাপ", "কষ্ট"]
    raw = folder.with_name("raw")
    raw.mkdir()
    (raw / "vocab.txt").write_text("\n".join(words), "utf-8")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(raw)
    BertTokenizerFast(str(raw / "vocab.txt"), do_lower_case=False, strip_accents=False).save_pretrained(raw)
    part = Transformer(str(raw))
    SentenceTransformer(modules=[part, Pooling(16)]).save(str(folder))
    return str(folder)


def test_a_folder_with_a_broken_model_is_an_error_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    folder = Path(tiny_transformer(tmp_path / "tiny"))
    [weights] = folder.rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UsageError, match="could not be loaded") as raised:
        load_encoder(folder)
    assert "\n" not in str(raised.value)
    (folder / "config.json").write_text("{", "utf-8")
    with pytest.raises(UsageError, match="could not be loaded"):
        load_encoder(str(folder) + "/.")


def test_the_id_of_a_model_hangs_on_its_settings_and_not_on_its_card(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    folder = Path(tiny_transformer(tmp_path / "tiny"))
    before = TransformerEncoder(str(folder)).id
    (folder / "README.md").write_text("another card", "utf-8")
    assert TransformerEncoder(str(folder)).id == before
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text("utf-8") + "\n", "utf-8")
    assert TransformerEncoder(str(folder)).id != before
