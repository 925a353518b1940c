"""Perplexity of any text: against a float64 model token by token, every token once, and whatever backend answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bnbench import windows as module
from bnbench.cli import app
from bnbench.errors import BnbenchError, CandidateError, CorpusError, UsageError
from bnbench.metrics import normalize
from bnbench.models import Backend, BackendOptions, Candidate, Prompter, parse_candidates
from bnbench.reports.values import MINUS
from bnbench.windows import cut, perplexity, read_texts

NIGHT = (
    "রাতে ঘুম আসে না। জানালার পাশে বসে বৃষ্টির শব্দ শুনি, আর ভাবি কাল সকালে কী হবে।\n\n"
    "মা বলেন, সময় সব ঠিক করে দেয়। কিন্তু সময়টুকু কাটবে কীভাবে, সেটা কেউ বলে না।"
)
TEXTS = [NIGHT, "আজ মনটা ভালো নেই।", "তোমার চিঠি পেলাম, পড়ে কেঁদে ফেলেছি।", "হ্যাঁ"]


def float64_nll(base: Path, adapter: Path | None, ids: Sequence[int], start: int) -> float:
    """-log p of ids from `start` on: Llama written out in float64, which is given one token after the other."""
    from safetensors.numpy import load_file

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    w = {k: v.astype(np.float64) for k, v in load_file(base / "model.safetensors").items()}
    if adapter:
        lora = {k: v.astype(np.float64) for k, v in load_file(adapter / "adapter_model.safetensors").items()}
        settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        for key, b in lora.items():
            if ".lora_B." in key:
                name = key.removeprefix("base_model.model.").replace(".lora_B", "")
                w[name] += settings["lora_alpha"] / settings["r"] * b @ lora[key.replace("lora_B", "lora_A")]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    d = config["hidden_size"] // heads
    frequency = config["rope_parameters"]["rope_theta"] ** (-np.arange(0, d, 2) / d)

    def norm(x: Any, name: str) -> Any:
        return x / np.sqrt((x * x).mean() + config["rms_norm_eps"]) * w[name]

    def turned(x: Any, at: int) -> Any:
        cos, sin, (a, b) = np.cos(at * frequency), np.sin(at * frequency), np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    keys, values = ([[] for _ in range(config["num_hidden_layers"])] for _ in range(2))
    nll = 0.0
    for at, token in enumerate(ids[:-1]):
        x = w["model.embed_tokens.weight"][token]
        for n in range(config["num_hidden_layers"]):
            part = f"model.layers.{n}."
            h = norm(x, part + "input_layernorm.weight")
            q, k, v = ((w[f"{part}self_attn.{p}_proj.weight"] @ h).reshape(-1, d) for p in "qkv")
            keys[n].append(turned(k, at))
            values[n].append(v)
            seen, said = (np.repeat(np.array(cache[n]), heads // groups, axis=1) for cache in (keys, values))
            scores = np.einsum("hd,thd->ht", turned(q, at), seen) / math.sqrt(d)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            x = x + w[part + "self_attn.o_proj.weight"] @ np.einsum("ht,thd->hd", weights, said).ravel()
            h = norm(x, part + "post_attention_layernorm.weight")
            gate, up = (w[f"{part}mlp.{p}_proj.weight"] @ h for p in ("gate", "up"))
            x = x + w[part + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        if at + 1 >= start:
            logits = w["lm_head.weight"] @ norm(x, "model.norm.weight")
            nll += logits.max() + math.log(np.exp(logits - logits.max()).sum()) - logits[ids[at + 1]]
    return nll


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(("context", "stride"), [(2048, 1024), (14, 4)])
def test_equals_a_float64_model_token_by_token(
    tiny_base: Path, tiny_adapter: Path, tiny_tokenizer: Any, tmp_path: Path, bos: bool, context: int, stride: int
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    candidates = parse_candidates(f"base={tiny_base}", [f"adapter={tiny_adapter}"])
    begin, expected = (tiny_tokenizer.bos_token_id,) if bos else (), {}
    for name, adapter in (("base", None), ("adapter", tiny_adapter)):
        sums = []
        for text in TEXTS:
            ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
            # The reference has its own windows: a token is given what lies between it and where its window begins.
            room, rows, done = context - len(begin), [], 1 - len(begin)
            while done < len(ids):
                end = min(room if not rows else rows[-1][1] + stride, len(ids))
                rows.append((max(0, end - room), end, done))
                done = end
            sums.append(
                sum(
                    float64_nll(tiny_base, adapter, (*begin, *ids[first:end]), len(begin) + done - first)
                    for first, end, done in rows
                )
            )
        expected[name] = sums
    for batch_size in (1, 8, 32):
        found = perplexity(
            candidates, [str(path)], BackendOptions(device="cpu"), context=context, stride=stride, bos=bos,
            batch_size=batch_size, quiet=True,
        )  # fmt: skip
        assert found.bos is bos
        for name, sums in expected.items():
            assert found.results[name].table[:, 0].tolist() == pytest.approx(sums, rel=1e-6)
    assert expected["base"] != pytest.approx(expected["adapter"], rel=1e-3)
    assert found.windows["base"] == 4 if context == 2048 else found.windows["base"] > 32


@pytest.mark.parametrize("bos", [None, 7])
@pytest.mark.parametrize(("context", "stride"), [(2, 1), (5, 4), (8, 3), (8, 4), (40, 20)])
def test_every_token_is_scored_once(bos: int | None, context: int, stride: int) -> None:
    for n in range(42):
        ids = list(range(100, 100 + n))
        rows, scored = list(cut(ids, bos, context, stride)), []
        for number, (row, start) in enumerate(rows):
            assert len(row) <= context
            assert start >= 1
            assert (row[0] == bos) is (bos is not None)
            if number:  # what a further window scores has so much before it
                assert start >= context - stride
            scored += row[start:]
        assert scored == ids[bos is None :]


class Uniform(Backend):
    """A backend that finds every token of 400 equally likely."""

    tokenizer: Any = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        if self.tokenizer:
            self.prompters = dict.fromkeys(self.prompters, Prompter.of(self.tokenizer))

    def generate(self, *_: Any) -> Any:
        raise AssertionError("nothing is to be generated")

    def likelihood(self, candidate: Candidate, rows: Any, starts: Any) -> Any:
        if candidate.name == "silent":
            return None
        if candidate.name == "broken":
            raise RuntimeError("the server went away")
        return [(len(row) - start) * math.log(400) for row, start in zip(rows, starts, strict=True)]


@pytest.fixture
def uniform(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> type[Uniform]:
    monkeypatch.setattr(Uniform, "tokenizer", tiny_tokenizer)
    monkeypatch.setattr(module, "get_backend", lambda name: Uniform)
    return Uniform


def measure(*sources: Path, candidate: str = "any", **options: Any) -> Any:
    asked = [Candidate(candidate, "base", candidate)]
    return perplexity(asked, [str(s) for s in sources], BackendOptions("uniform"), quiet=True, **options)


def test_figures_of_a_backend_from_outside(uniform: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "night.txt"
    path.write_text(f"\n{NIGHT}\n", encoding="utf-8")
    ids, normal = tiny_tokenizer(NIGHT, add_special_tokens=False)["input_ids"], normalize(NIGHT)
    told = measure(path, context=50).summary()
    row = told["candidates"][0]
    assert (told["texts"], told["context"], told["stride"], told["bos"]) == (1, 50, 25, True)
    assert (row["tokens"], row["characters"], row["bytes"]) == (len(ids), len(normal), len(normal.encode()))
    assert row["windows"] == 1 + math.ceil((len(ids) - 49) / 25)
    assert row["token_perplexity"] == pytest.approx(400)
    assert row["bits_per_character"] == pytest.approx(len(ids) * math.log2(400) / len(normal))
    assert row["bits_per_byte"] == pytest.approx(len(ids) * math.log2(400) / len(normal.encode()))
    assert "interval" not in row
    # Without BOS the first token is given, and what it spells is not counted.
    path.write_text("আমার মন খারাপ", encoding="utf-8")
    first = tiny_tokenizer("আমার মন খারাপ", add_special_tokens=False)["input_ids"][:1]
    assert tiny_tokenizer.decode(first) == "আ\ufffd"  # and part of the next character, which does count
    whole, rest = (measure(path, bos=bos).summary()["candidates"][0] for bos in (True, False))
    assert (whole["characters"], rest["characters"]) == (13, 12)
    assert (whole["tokens"] - rest["tokens"], rest["token_perplexity"]) == (1, pytest.approx(400))


def test_what_a_text_is(tmp_path: Path) -> None:
    (tmp_path / "poem").write_bytes("এক লাইন\r\n\nআরেক লাইন\n".encode())
    (tmp_path / "table.csv").write_text("id,Text\n1,প্রথম\n2,\n", encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"body": "অন্য"}\n', encoding="utf-8")
    poem, table, other = (str(tmp_path / name) for name in ("poem", "table.csv", "other.jsonl"))
    assert read_texts(poem, {}) == ["এক লাইন\n\nআরেক লাইন"]
    assert read_texts(poem, {}, by_line=True) == ["এক লাইন", "", "আরেক লাইন"]
    assert read_texts(table, {}) == ["প্রথম", ""]
    assert read_texts(other, {"text": "body"}) == ["অন্য"]
    with pytest.raises(CorpusError, match=r"other\.jsonl: no column holds a text; the columns are body\..* text=NAME"):
        read_texts(other, {})
    with pytest.raises(CorpusError, match=r"unknown field 'txt' in the column mapping; did you mean 'text'"):
        read_texts(other, {"txt": "body"})
    with pytest.raises(CorpusError, match=r"none\.txt: no such file"):
        read_texts(str(tmp_path / "none.txt"), {})


def test_half_a_character_is_a_lost_one(tmp_path: Path) -> None:
    found = []
    for name, sign in (("half", r"\ud83d"), ("lost", "\ufffd")):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(f'{{"text": "মন খারাপ {sign} আজ"}}\n', encoding="utf-8")
        found.append(perplexity(parse_candidates(), [str(path)], BackendOptions(), quiet=True).summary()["candidates"])
    assert found[0] == found[1]


def test_what_cannot_be_measured(uniform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, blank = tmp_path / "a.txt", tmp_path / "blank.txt"
    path.write_text(NIGHT, encoding="utf-8")
    blank.write_text(" \n\u200c\u202e\n", encoding="utf-8")  # what cannot be seen either
    assert measure(path, blank).summary()["texts"] == 1
    with pytest.raises(CorpusError, match=r"blank\.txt: there is nothing to score$"):
        measure(blank)
    with pytest.raises(UsageError, match="--stride 50: it must be less than the 50 tokens of a window"):
        measure(path, context=50, stride=50)
    with pytest.raises(CandidateError, match="silent gives no likelihoods here"):
        measure(path, candidate="silent")
    with pytest.raises(BnbenchError, match="broken: RuntimeError: the server went away"):
        measure(path, candidate="broken")
    monkeypatch.setattr(Uniform, "tokenizer", None)
    with pytest.raises(CandidateError, match="the backend uniform gives no tokenizer or no likelihoods"):
        measure(path)


def test_command(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(TEXTS * 3), encoding="utf-8")
    words = ["perplexity", str(path), "--base", f"b={tiny_base}", "--adapter", f"a={tiny_adapter}", "--lines", "-q"]
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    base, adapter = told["candidates"]
    assert (told["texts"], told["context"], told["stride"], told["bos"]) == (15, 2048, 1024, True)
    assert told["signature"] == "perplexity|norm:bn1|n:15|bnbench:0.9"
    assert (base["name"], base["tokens"], base["windows"]) == ("b", adapter["tokens"], 15)
    change = adapter["to_first"]
    assert change["difference"] == pytest.approx(adapter["bits_per_character"] - base["bits_per_character"])
    assert change["interval"][0] < change["difference"] < change["interval"][1]
    text = CliRunner().invoke(app, words).stdout
    assert "15 texts in windows of 2,048 tokens, a new one every 1,024, BOS in front of each" in text
    assert f"to b {change['difference']:+.4f}".replace("-", MINUS) in text
    assert "15 texts: too few to trust the intervals; of 10 or 20 items" in text
    path.write_text("\n".join(TEXTS * 6), encoding="utf-8")
    assert "too few" not in CliRunner().invoke(app, words).stdout
    too_long = CliRunner().invoke(app, [*words, "--context", "4096"])
    assert (too_long.exit_code, "--context 4096: the model has room for 2048 tokens" in too_long.stderr) == (2, True)
