from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bnbench.data.corpus import Example
from bnbench.errors import CandidateError, MissingExtraError
from bnbench.metrics import normalize
from bnbench.models import BackendOptions, hf, inference
from bnbench.models.candidates import parse_candidates
from bnbench.models.decoding import Decoding, item_key

Make = Callable[..., Any]
QUESTIONS = [
    "আমার মন খারাপ। কী করব?",
    "ঘুম আসে না",
    "চাকরিটা চলে গেছে, বাড়ির সবাইকে কীভাবে বলব বুঝতে পারছি না। কাল থেকে কারও সঙ্গে কথা বলিনি।",
    "পরীক্ষার ফল খারাপ হয়েছে, বাবা-মাকে কীভাবে বলব?",
    "তুমি কি আমার কথা শুনবে?",
    "একা একা লাগে",
    "মায়ের অসুখ, রাতে দুশ্চিন্তা হয়, দিনে কাজে মন বসে না, কেউ বোঝে না।",
    "ভাইয়ের সঙ্গে ঝগড়া হয়েছে",
]
EXAMPLES = [
    Example(f"item-{i}", "পরিবার", "", q, f"উত্তর {i}: আপনার কষ্টটা বুঝতে পারছি।" * (i % 3 + 1))
    for i, q in enumerate(QUESTIONS)
]
IDS = [e.id for e in EXAMPLES]
REFERENCES = [e.reference for e in EXAMPLES]
SAMPLED = Decoding(temperature=1.0, top_p=0.95, max_new_tokens=24)


def open_backend(candidates: Sequence[Any], **options: Any) -> hf.TransformersBackend:
    return hf.TransformersBackend(candidates, BackendOptions(**{"device": "cpu", **options}))


@pytest.fixture(scope="module")
def other_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, make_adapter: Make) -> Path:
    folder: Path = make_adapter(tmp_path_factory.mktemp("other") / "other", tiny_base, seed=5)
    return folder


@pytest.fixture(scope="module")
def session(tiny_base: Path, tiny_adapter: Path, other_adapter: Path) -> hf.TransformersBackend:
    candidates = parse_candidates(adapters=[f"first={tiny_adapter}", f"second={other_adapter}"])
    opened = open_backend(candidates)
    opened.load()
    return opened


@pytest.fixture(scope="module")
def candidates(tiny_base: Path, tiny_adapter: Path, other_adapter: Path) -> Sequence[Any]:
    return parse_candidates(adapters=[f"first={tiny_adapter}", f"second={other_adapter}"])


@pytest.fixture(scope="module")
def plain_base(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(session: hf.TransformersBackend) -> list[Any]:
    prompter = session.prompters[session.candidates[0].name]
    return [prompter.prompt(e) for e in EXAMPLES]


def full_logits_nll(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float()
    losses = F.cross_entropy(logits, ids[0, 1:], reduction="none")
    return float(losses[len(prompt) - 1 :].double().sum())


# Generation


@pytest.mark.parametrize("decoding", [SAMPLED, replace(SAMPLED, greedy=True), replace(SAMPLED, top_k=5, top_p=1.0)])
def test_a_reply_does_not_depend_on_its_batch(
    session: hf.TransformersBackend, candidates: Any, prompts: Any, decoding: Decoding
) -> None:
    together = session.generate(candidates[1], prompts, IDS, decoding)
    alone = [session.generate(candidates[1], [p], [i], decoding)[0] for p, i in zip(prompts, IDS, strict=True)]
    backwards = session.generate(candidates[1], prompts[::-1], IDS[::-1], decoding)[::-1]
    assert together == alone == backwards
    assert len({r.text for r in together}) > 1


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_transformers_own(
    session: hf.TransformersBackend, plain_base: Any, prompts: Any, penalty: float
) -> None:
    from transformers import GenerationConfig

    ids, mask = inference.padded([p.ids for p in prompts], 6, torch.device("cpu"), "left")
    stop = (
        *session.prompters[session.candidates[0].name].stop_ids,
        300,
        301,
        302,
        303,
        304,
    )  # so that some rows end early
    config = GenerationConfig(
        do_sample=False, repetition_penalty=penalty, max_new_tokens=24, eos_token_id=list(stop), pad_token_id=6
    )
    theirs = plain_base.generate(input_ids=ids, attention_mask=mask, generation_config=config)[
        :, ids.shape[1] :
    ].tolist()
    decoding = Decoding(greedy=True, repetition_penalty=penalty, max_new_tokens=24)
    drawn = inference.generate(plain_base, [p.ids for p in prompts], IDS, decoding, stop=stop, pad=6)
    expected = [row[: next((at for at, t in enumerate(row) if t in stop), len(row))] for row in theirs]
    assert [list(d.ids) for d in drawn] == expected
    assert [d.finished for d in drawn] == [any(t in stop for t in row) for row in theirs]


def test_finished_rows_leave_the_batch(plain_base: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = inference.call
    monkeypatch.setattr(inference, "call", lambda m, **a: (sizes.append(len(a["input_ids"])), original(m, **a))[1])
    stop = tuple(range(256, 400))
    drawn = inference.generate(
        plain_base, [p.ids for p in prompts], IDS, replace(SAMPLED, max_new_tokens=40), stop=stop, pad=6
    )
    assert sizes[0] == 8 and sizes == sorted(sizes, reverse=True)
    assert min(sizes) < 8 or all(len(d.ids) == len(drawn[0].ids) for d in drawn)
    assert len(set(sizes)) > 1


def test_noise_differs_between_items_and_seeds(session: hf.TransformersBackend, candidates: Any, prompts: Any) -> None:
    same_prompt = [prompts[0]] * 8
    assert len({r.text for r in session.generate(candidates[0], same_prompt, IDS, SAMPLED)}) == 8
    assert len({r.text for r in session.generate(candidates[0], same_prompt, ["x"] * 8, SAMPLED)}) == 1
    reseeded = session.generate(candidates[0], prompts, IDS, replace(SAMPLED, seed=43))
    assert reseeded != session.generate(candidates[0], prompts, IDS, SAMPLED)


def test_base_and_adapters_draw_the_same_noise_but_reply_by_themselves(
    session: hf.TransformersBackend, candidates: Any, prompts: Any
) -> None:
    base, first, second = (session.generate(c, prompts, IDS, SAMPLED) for c in candidates)
    assert base != first != second != base
    assert session.generate(candidates[0], prompts, IDS, SAMPLED) == base


def test_base_with_adapters_disabled_is_the_plain_base(
    session: hf.TransformersBackend, candidates: Any, plain_base: Any, prompts: Any
) -> None:
    decoding = replace(SAMPLED, greedy=True)
    asked = session.prompters[candidates[0].name]
    drawn = inference.generate(
        plain_base, [p.ids for p in prompts], IDS, decoding, stop=asked.stop_ids, pad=session.pad
    )
    assert [r.text for r in session.generate(candidates[0], prompts, IDS, decoding)] == [
        asked.decode(d.ids, cut=not d.finished) for d in drawn
    ]
    answers = [asked.answer(r) for r in REFERENCES]
    rows, starts = [(*p.ids, *a) for p, a in zip(prompts, answers, strict=True)], [len(p.ids) for p in prompts]
    plain = inference.negative_log_likelihoods(plain_base, rows, starts, pad=session.pad)
    scored = session.score(candidates[0], prompts, REFERENCES)
    assert scored is not None
    assert scored[:, 0].tolist() == plain


def test_limit_and_end(session: hf.TransformersBackend, candidates: Any, prompts: Any) -> None:
    for reply in session.generate(candidates[0], prompts, IDS, replace(SAMPLED, max_new_tokens=3)):
        assert reply.tokens is not None and reply.tokens <= 3
        assert reply.hit_limit == (reply.tokens == 3) or not reply.hit_limit
        assert not reply.text.endswith("\ufffd")


# Sampling


def reference_distribution(logits: torch.Tensor, seen: torch.Tensor, d: Decoding) -> torch.Tensor:
    """Transformers' own warpers."""
    from transformers import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    ids = seen.nonzero()[:, 1][None]
    scores = RepetitionPenaltyLogitsProcessor(d.repetition_penalty)(ids, logits)
    scores = TemperatureLogitsWarper(d.temperature)(ids, scores)
    scores = TopKLogitsWarper(d.top_k)(ids, scores) if d.top_k else scores
    scores = TopPLogitsWarper(d.top_p)(ids, scores) if d.top_p < 1 else scores
    return scores.softmax(-1)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(),
        Decoding(top_k=7),
        Decoding(top_p=1.0, top_k=3),
        Decoding(top_p=1.0, temperature=1.5),
        Decoding(top_p=0.05),
    ],
)
def test_draws_follow_transformers_distribution(decoding: Decoding) -> None:
    torch.manual_seed(0)
    logits, seen = torch.randn(1, 50) * 2, torch.zeros(1, 50, dtype=torch.bool)
    seen[0, logits[0].topk(4).indices] = True
    expected = reference_distribution(logits, seen, decoding)[0]
    n = 20_000
    keys = torch.tensor([item_key(1, str(i)) for i in range(n)])
    drawn = inference.choose(logits.expand(n, -1), seen.expand(n, -1), decoding, keys, 0)
    shares = torch.bincount(drawn, minlength=50) / n
    assert not shares[expected == 0].any()
    assert (shares - expected).abs().max() < 0.015


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (3, 0.9), (0, 0.999), (20, 1.0), (0, 1.0), (60, 0.7)])
def test_looking_at_few_tokens_first_changes_nothing(top_k: int, top_p: float) -> None:
    torch.manual_seed(1)
    scores = torch.randn(6, 200)
    few, all_ = (inference.likeliest(scores, top_k, top_p, first) for first in (4, 200))
    for row in range(6):
        sets = [
            {(int(t), float(v)) for v, t in zip(v[row], t[row], strict=True) if v > -torch.inf} for v, t in (few, all_)
        ]
        assert sets[0] == sets[1]


def test_equal_scores_stay_together() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    values, tokens = inference.likeliest(scores, 0, 0.6)
    assert set(tokens[0][values[0] > -torch.inf].tolist()) == {0, 1, 2, 3}
    assert inference.likeliest(scores, 2, 1.0)[0].isfinite().sum() == 4


# Likelihood


def test_likelihood_is_that_of_full_logits(
    session: hf.TransformersBackend, candidates: Any, plain_base: Any, prompts: Any
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = candidates[2]
    fresh = AutoModelForCausalLM.from_pretrained(adapter.base_folder, dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(fresh, adapter.folder).eval()
    for candidate, model in ((candidates[0], plain_base), (adapter, with_adapter)):
        scored = session.score(candidate, prompts, REFERENCES)
        assert scored is not None and scored.shape == (8, 4) and scored.dtype == np.float64
        for row, prompt, reference in zip(scored, prompts, REFERENCES, strict=True):
            answer = session.prompters[session.candidates[0].name].answer(reference)
            assert row[0] == pytest.approx(full_logits_nll(model, prompt.ids, answer), abs=1e-4, rel=1e-6)
            assert row[1] == len(answer)


def test_bytes_and_characters_are_of_the_normalised_reference(
    session: hf.TransformersBackend, candidates: Any, prompts: Any
) -> None:
    spellings = ["বিষয়টা ভালো|", "বিষ\u09af\u09bcটা ভ\u09beল\u09c7\u09be|"]
    scored = session.score(candidates[0], prompts[:2], spellings)
    assert scored is not None
    assert (
        scored[0, 2:].tolist()
        == scored[1, 2:].tolist()
        == [len(normalize(spellings[0]).encode()), len(normalize(spellings[0]))]
    )


def test_chunks_and_padding_change_nothing(
    session: hf.TransformersBackend, candidates: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = session.score(candidates[1], prompts, REFERENCES)
    monkeypatch.setattr(inference, "LOGITS", 400 * 3)
    chunks = session.score(candidates[1], prompts, REFERENCES)
    alone = [session.score(candidates[1], [p], [r]) for p, r in zip(prompts, REFERENCES, strict=True)]
    np.testing.assert_allclose(chunks, whole, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate(alone), whole, rtol=1e-6)


@pytest.mark.parametrize("kind", ["granite", "cohere", "gemma2"])
def test_scaled_and_capped_heads(kind: str, prompts: Any) -> None:
    import transformers as t

    shape = {
        "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.5,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 6,
    }  # fmt: skip
    torch.manual_seed(0)
    made = {
        "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**shape, logits_scaling=4.0)),
        "cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**shape, logit_scale=0.5)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**shape, final_logit_softcapping=2.0)),
    }
    model = made[kind]().eval()
    row = (*prompts[0].ids, *range(100, 120))
    expected = full_logits_nll(model, prompts[0].ids, range(100, 120))
    got = inference.negative_log_likelihoods(model, [row], [len(prompts[0].ids)], pad=6)
    assert got[0] == pytest.approx(expected, abs=1e-4, rel=1e-6)
    ids = torch.tensor([row])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        hidden = model.base_model(input_ids=ids).last_hidden_state
    assert torch.allclose(inference.head(model, hidden), logits, rtol=1e-4, atol=1e-5)
    whole = inference.negative_log_likelihoods(
        model, [row, row[:-3]], [len(prompts[0].ids)] * 2, pad=6, whole_logits=True
    )
    assert whole[0] == pytest.approx(expected, abs=1e-4, rel=1e-6)


# Loading


def test_an_adapter_that_changes_nothing_is_refused_by_name(
    tiny_base: Path, tiny_adapter: Path, make_adapter: Make, tmp_path: Path
) -> None:
    idle = make_adapter(tmp_path / "idle", tiny_base, trained=False)
    opened = open_backend(parse_candidates(adapters=[f"good={tiny_adapter}", f"idle={idle}"]))
    with pytest.raises(CandidateError, match=r"adapter idle .*does not change the logits"):
        opened.load()


def test_weights_that_are_not_finite(tiny_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(tiny_base, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CandidateError, match=r"base .*broken has logits in float32 that are not finite"):
        open_backend(parse_candidates(str(broken))).load()


def test_tokenizer_with_more_ids_than_the_model(
    tiny_base: Path, tiny_tokenizer: Any, make_base: Make, tmp_path: Path
) -> None:
    small = make_base(tmp_path / "small", tiny_tokenizer, vocab_size=390)
    with pytest.raises(
        CandidateError, match=r"the tokenizer has 400 ids but the model embeds 390: .* \(390\) is beyond"
    ):
        open_backend(parse_candidates(str(small)))


def test_unused_special_token_beyond_the_embedding_is_let_pass(
    tiny_base: Path, make_tokenizer: Make, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "image")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert len(tokenizer) == 401
    tokenizer.save_pretrained(folder)
    opened = open_backend(parse_candidates(str(folder)))
    opened.load()
    assert opened.model.get_input_embeddings().weight.shape[0] == 400


def test_opening_reads_no_weights_and_generating_does(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = parse_candidates(str(tiny_base))
    loads: list[int] = []
    original = hf.load_base
    monkeypatch.setattr(hf, "load_base", lambda *given, **how: (loads.append(1), original(*given, **how))[1])
    opened = open_backend(candidates)
    opened.identity(candidates[0])
    prompts = [opened.prompters[candidates[0].name].prompt(e) for e in EXAMPLES]
    assert not loads
    opened.generate(candidates[0], prompts[:1], IDS[:1], replace(SAMPLED, max_new_tokens=1))
    opened.load()
    assert loads == [1]


def test_identity_is_of_the_content_and_tells_candidates_apart(
    session: hf.TransformersBackend, candidates: Any, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    identities = [session.identity(c) for c in candidates]
    assert len({json.dumps(i, sort_keys=True) for i in identities}) == 3
    moved = parse_candidates(
        str(shutil.copytree(tiny_base, tmp_path / "base")), [str(shutil.copytree(tiny_adapter, tmp_path / "a"))]
    )
    assert [dict(open_backend(moved).identity(c)) for c in moved] == [dict(i) for i in identities[:2]]
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"lora_alpha": 8', '"lora_alpha": 16'), encoding="utf-8"
    )
    assert open_backend(moved).identity(moved[1]) != identities[1]


def test_four_bits_on_the_cpu(
    tiny_base: Path, tiny_adapter: Path, session: hf.TransformersBackend, candidates: Any, prompts: Any
) -> None:
    opened = open_backend(candidates, quantise=True)
    assert opened.precision["quantisation"] == "nf4"
    four = opened.score(candidates[1], prompts, REFERENCES)
    full = session.score(candidates[1], prompts, REFERENCES)
    assert four is not None and full is not None
    assert 0 < np.abs(four[:, 0] / full[:, 0] - 1).max() < 0.5
    assert opened.identity(candidates[0]) != session.identity(candidates[0])


def test_peak_memory_is_known(session: hf.TransformersBackend) -> None:
    peak = session.peak_memory_bytes()
    assert peak is not None and 2**26 < peak < 2**37


def test_a_pickle_is_never_opened_in_place_of_an_adapter_s_weights(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    opened = open_backend(parse_candidates(str(tiny_base), [str(adapter)]))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")  # after the check of the files
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was opened"))
    with pytest.raises(CandidateError, match=r"no adapter_model\.safetensors"):
        opened.load()


# Out of memory


def test_a_batch_is_halved_until_it_fits(caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def work(part: slice) -> list[int]:
        rows = list(range(10))[part]
        sizes.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rows

    with caplog.at_level(logging.WARNING):
        assert hf.halving(work, slice(0, 10)) == list(range(10))
    assert sizes == [10, 5, 3, 3, 3, 1]
    assert "batches of 3" in caplog.text


def test_one_row_that_does_not_fit_and_other_errors_are_raised() -> None:
    def too_large(part: slice) -> list[int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(part: slice) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(torch.OutOfMemoryError):
        hf.halving(too_large, slice(0, 4))
    with pytest.raises(RuntimeError, match="shapes differ"):
        hf.halving(broken, slice(0, 4))


def test_generation_goes_on_after_too_little_memory(
    session: hf.TransformersBackend, candidates: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = session.generate(candidates[1], prompts, IDS, SAMPLED)
    original = inference.generate

    def small(model: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, rows, *args, **kwargs)

    monkeypatch.setattr(inference, "generate", small)
    assert session.generate(candidates[1], prompts, IDS, SAMPLED) == expected


def test_missing_package_names_the_command(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = parse_candidates(str(tiny_base))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[models\]"'):
        open_backend(candidates)


def test_batches_fill_a_gpu_and_are_the_same_whatever_else_lies_on_it(tiny_base: Path) -> None:
    backend = hf.TransformersBackend(parse_candidates(str(tiny_base)), BackendOptions(device="cpu"))
    lengths = [900] * 3 + [400] * 300 + [20] * 40
    assert backend.batch_sizes(lengths, 100) == [8] * 42 + [7]
    backend.memory, backend.token_bytes, backend.n_parameters = 16 * 2**30, 131072, 8_000_000_000
    backend.precision["quantisation"] = "nf4"
    sizes = backend.batch_sizes(lengths, 800)
    assert sum(sizes) == len(lengths) and max(sizes) <= hf.MOST_ROWS
    room = (0.9 * backend.memory - 0.7 * 8e9) / 2
    at = 0
    for size in sizes:
        assert size == 1 or size * (lengths[at] + 800) * 131072 <= room
        at += size
    backend.memory = 2**30  # too small for the model itself: one at a time, and memory says the rest
    assert backend.batch_sizes([5, 4], 10) == [1, 1]
