"""The backend `vllm`, on a stand-in for the package that computes with transformers and PEFT, one row at a time."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bnbench.data.corpus import Example
from bnbench.errors import BnbenchError, CandidateError, MissingExtraError, PartialRunError, UsageError
from bnbench.evaluate import EvaluationRequest, evaluate
from bnbench.models import BackendOptions, get_backend, vllm
from bnbench.models.candidates import parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.hub import ModelFiles
from bnbench.models.loading import Device
from bnbench.records import read_run

Make = Callable[..., Any]
QUESTIONS = [
    "আমার মন খারাপ। কী করব?",
    "ঘুম আসে না",
    "চাকরিটা চলে গেছে, বাড়ির সবাইকে কীভাবে বলব বুঝতে পারছি না।",
    "পরীক্ষার ফল খারাপ হয়েছে, বাবা-মাকে কীভাবে বলব?",
    "একা একা লাগে",
]
EXAMPLES = [Example(f"item-{i}", "পরিবার", "", q, "আপনার কষ্টটা বুঝতে পারছি।") for i, q in enumerate(QUESTIONS)]
IDS, REFERENCES = [e.id for e in EXAMPLES], [e.reference for e in EXAMPLES]
GREEDY, SAMPLED = Decoding(greedy=True, max_new_tokens=24), Decoding(temperature=1.0, top_k=9, max_new_tokens=12)


@dataclass
class SamplingParams:
    """Those of vLLM's settings that are known to mean here what they mean there; another one is an error."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    skip_reading_prefix_cache: bool = True
    detokenize: bool = True
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """The stand-in's engine. `made` are the arguments of all that were made."""

    made: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[SamplingParams]] = []
    fail: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def __init__(self, **told: Any) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.made.append(told)
        self.told = told
        self.cached: dict[Any, list[int]] = {}  # what was asked first under a salt
        self.reused = 0
        cache = SimpleNamespace(block_size=4)
        self.llm_engine = SimpleNamespace(vllm_config=SimpleNamespace(cache_config=cache))
        dtype = getattr(torch, told["dtype"])
        self.models = {"": AutoModelForCausalLM.from_pretrained(told["model"], dtype=dtype).eval()}
        self.tokenizer = None if told["skip_tokenizer_init"] else AutoTokenizer.from_pretrained(told["model"])

    def model(self, lora: LoRARequest | None) -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        path = lora.lora_path if lora else ""
        if path not in self.models:
            assert self.told["enable_lora"]
            fresh = AutoModelForCausalLM.from_pretrained(self.told["model"], dtype=torch.float32)
            self.models[path] = PeftModel.from_pretrained(fresh, path).eval()
        return self.models[path]

    def generate(
        self, prompts: Sequence[Any], params: Any, *, use_tqdm: bool, lora_request: LoRARequest | None
    ) -> list[Any]:
        LLM.fail()
        assert not use_tqdm
        each = params if isinstance(params, list) else [params] * len(prompts)
        self.asked.extend(each)
        lm = self.model(lora_request)
        return [self.answer(lm, p, how, (lora_request, p["cache_salt"])) for p, how in zip(prompts, each, strict=True)]

    @torch.inference_mode()
    def answer(self, lm: Any, asked: dict[str, Any], how: SamplingParams, salt: Any) -> Any:
        ids = asked["prompt_token_ids"]
        kept = self.cached.setdefault(salt, ids) if self.told["enable_prefix_caching"] else []
        same = next((n for n, (a, b) in enumerate(zip(ids, kept, strict=False)) if a != b), min(len(ids), len(kept)))
        # Whole blocks are there already, but for the last token, which is always computed.
        there = 0 if how.skip_reading_prefix_cache or kept is ids else min(same, len(ids) - 1) // 4 * 4
        self.reused += there
        assert len(ids) + how.max_tokens <= self.told["max_model_len"] and how.detokenize <= (
            self.tokenizer is not None
        )
        known: list[Any] | None = None
        if how.prompt_logprobs is not None:
            logs = lm(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
            values = [float(logs[at, t]) if at >= there else math.nan for at, t in enumerate(ids[1:])]
            known = [None, *({t: SimpleNamespace(logprob=v)} for t, v in zip(ids[1:], values, strict=True))]
        noise = torch.Generator().manual_seed(how.seed) if how.seed is not None else None
        said: list[int] = []
        while len(said) < how.max_tokens:
            logits = lm(input_ids=torch.tensor([[*ids, *said]])).logits[0, -1].float()
            seen = torch.tensor(sorted({*ids, *said}))
            held = logits[seen]
            logits[seen] = torch.where(held > 0, held / how.repetition_penalty, held * how.repetition_penalty)
            if how.temperature == 0:
                said.append(int(logits.argmax()))
            else:
                values, tokens = (logits / how.temperature).topk(how.top_k or len(logits))
                said.append(int(tokens[torch.multinomial(values.softmax(-1), 1, generator=noise)]))
            text = self.tokenizer.decode(said) if how.stop and self.tokenizer else ""
            if said[-1] in how.stop_token_ids or any(stop in text for stop in how.stop):
                return SimpleNamespace(
                    prompt_logprobs=known, outputs=[SimpleNamespace(token_ids=said, finish_reason="stop")]
                )
        return SimpleNamespace(prompt_logprobs=known, outputs=[SimpleNamespace(token_ids=said, finish_reason="length")])


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Puts the stand-in in vLLM's place."""
    for name, value in vllm.SETTINGS.items():
        monkeypatch.setenv(name, value)
    package: Any = ModuleType("vllm")
    package.__version__, package.LLM, package.SamplingParams = "0.20.0", LLM, SamplingParams
    parts: dict[str, Any] = {name: ModuleType(name) for name in ("vllm.platforms", "vllm.lora", "vllm.lora.request")}
    parts["vllm.platforms"].current_platform = SimpleNamespace(device_type="cpu")
    parts["vllm.lora.request"].LoRARequest = LoRARequest
    for name, module in {"vllm": package, **parts}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "asked", [])
    return LLM


def open_backend(candidates: Sequence[Any], name: str = "vllm", **options: Any) -> Any:
    """A backend that knows the items of the run, and the prompts that it will be asked."""
    backend = get_backend(name)(candidates, BackendOptions(name, **{"device": "cpu", **options}))
    backend.bind(EXAMPLES)
    prompts = [backend.prompters[candidates[0].name].prompt(e) for e in EXAMPLES]
    backend.batch_sizes([len(p.ids) for p in prompts], 24)
    return backend, prompts


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_replies_and_likelihoods_are_those_of_hf(tiny_base: Path, tiny_adapter: Path, penalty: float) -> None:
    candidates = parse_candidates(str(tiny_base), [f"mine={tiny_adapter}"])
    (ours, prompts), (theirs, _) = open_backend(candidates), open_backend(candidates, "hf")
    decoding, replies, scores = replace(GREEDY, repetition_penalty=penalty), [], []
    for candidate in candidates:
        replies.append(ours.generate(candidate, prompts, IDS, decoding))
        assert replies[-1] == theirs.generate(candidate, prompts, IDS, decoding)
        scores.append(ours.score(candidate, prompts, REFERENCES))
        assert scores[-1] == pytest.approx(theirs.score(candidate, prompts, REFERENCES), abs=1e-4)
    assert replies[0] != replies[1] and (scores[0][:, 0] != scores[1][:, 0]).all()
    assert len(LLM.made) == 1  # one engine for both
    shared = {"backend", "backend_version", "vllm", "transformers"}
    for candidate in candidates:
        mine, other = (dict(backend.identity(candidate)) for backend in (ours, theirs))
        assert mine["backend"] == "vllm" and mine["vllm"] == "0.20.0"
        assert {k: v for k, v in mine.items() if k not in shared} == {k: v for k, v in other.items() if k not in shared}
    assert ours.peak_memory_bytes() > 2**26


def test_end_tokens_and_limits(tiny_base: Path) -> None:
    candidates = parse_candidates(str(tiny_base))
    (ours, prompts), (theirs, _) = open_backend(candidates), open_backend(candidates, "hf")
    stop = (*ours.prompters[candidates[0].name].stop_ids, *range(256, 400))  # so that some replies end early
    ours._asked = theirs._asked = replace(ours.prompters[candidates[0].name], stop_ids=stop)
    replies = ours.generate(candidates[0], prompts, IDS, GREEDY)
    assert replies == theirs.generate(candidates[0], prompts, IDS, GREEDY)
    assert {r.hit_limit for r in replies} >= {False} and all(r.tokens <= 24 for r in replies)
    assert LLM.made[0]["skip_tokenizer_init"] and not LLM.asked[-1].detokenize


def test_a_stop_text_ends_a_plain_reply_as_in_hf(tmp_path: Path, make_tokenizer: Make, make_base: Make) -> None:
    base = make_base(tmp_path / "plain", make_tokenizer(special=["<s>", "</s>"], template=None))
    candidates = parse_candidates(str(base))
    (ours, prompts), (theirs, _) = open_backend(candidates), open_backend(candidates, "hf")
    whole = [r.text for r in theirs.generate(candidates[0], prompts, IDS, GREEDY)]
    said = whole[0][len(whole[0]) // 2 :][:2]
    stopping = replace(ours.prompters[candidates[0].name], stop_texts=(said,))
    for backend in (ours, theirs):
        backend.prompters[candidates[0].name] = stopping
    replies = ours.generate(candidates[0], prompts, IDS, GREEDY)
    assert replies == theirs.generate(candidates[0], prompts, IDS, GREEDY)
    assert said in whole[0] and said not in replies[0].text and not replies[0].hit_limit
    assert not LLM.made[0]["skip_tokenizer_init"]


def test_likelihoods_read_their_own_prompts_and_lose_nothing(tiny_base: Path, tiny_adapter: Path) -> None:
    candidates = parse_candidates(str(tiny_base), [str(tiny_adapter)])
    (ours, prompts), (theirs, _) = open_backend(candidates), open_backend(candidates, "hf")
    ours.memory = 10**9  # a card's: on the CPU nothing is cached
    assert 0 in {len(p.ids) % 4 for p in prompts} != {0}
    for candidate in candidates:
        ours.generate(candidate, prompts, IDS, GREEDY)
        found, true = (b.score(candidate, prompts, REFERENCES) for b in (ours, theirs))
        np.testing.assert_allclose(found, true, rtol=1e-5)
    read = sum(len(p.ids) // 4 * 4 for p in prompts if len(p.ids) % 4)
    assert LLM.made[0]["enable_prefix_caching"] and ours.engine.reused == 2 * read


def test_noise_is_the_item_s(tiny_base: Path) -> None:
    candidates = parse_candidates(str(tiny_base))
    backend, prompts = open_backend(candidates)
    together = backend.generate(candidates[0], prompts, IDS, SAMPLED)
    assert [
        backend.generate(candidates[0], [p], [i], SAMPLED)[0] for p, i in zip(prompts, IDS, strict=True)
    ] == together
    assert len({r.text for r in backend.generate(candidates[0], [prompts[0]] * 5, IDS, SAMPLED)}) == 5
    assert backend.generate(candidates[0], prompts, IDS, replace(SAMPLED, seed=43)) != together
    how = LLM.asked[-1]
    assert (how.temperature, how.top_k, how.top_p, how.repetition_penalty) == (1.0, 9, 0.9, 1.1)
    assert all(0 <= (p.seed or 0) < 2**63 for p in LLM.asked)


# Refusals, before anything is loaded


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\]"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"rank_pattern": {"q_proj": 2}}, r"rank_pattern \{'q_proj': 2\}"),
        ({"target_modules": ["q_proj", "lm_head"]}, "a LoRA on lm_head"),
        ({"r": 513}, "rank 513, above 512"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve(
    tiny_base: Path, make_adapter: Make, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    adapter = make_adapter(tmp_path / "other", tiny_base, **changes)
    candidates = parse_candidates(str(tiny_base), [str(adapter)])
    with pytest.raises(
        CandidateError, match=rf"adapter .*other: vLLM cannot serve it \(it has {why}\); use --backend hf$"
    ):
        open_backend(candidates)
    assert not LLM.made


def test_what_an_adapter_s_configuration_does_not_say(tiny_adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_adapter, tmp_path / "more")
    files = ModelFiles("adapter more", "more", "", folder)
    assert vllm.check_adapter(files) == (4, {"q_proj", "v_proj"})
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.model.norm.weight": torch.ones(32)}, folder / "adapter_model.safetensors")
    with pytest.raises(CandidateError, match=r"no LoRA matrices, such as base_model\.model\.model\.norm\.weight"):
        vllm.check_adapter(files)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for changes, why in (({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"), ({"peft_type": "IA3"}, "IA3")):
        (folder / "adapter_config.json").write_text(json.dumps(config | changes), encoding="utf-8")
        with pytest.raises(CandidateError, match=why):
            vllm.check_adapter(files)


def test_missing_package_and_device(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = parse_candidates(str(tiny_base))
    for seen, found in (("cuda", "cuda"), ("", "no device that it finds here")):
        monkeypatch.setattr(sys.modules["vllm.platforms"].current_platform, "device_type", seen)
        with pytest.raises(UsageError, match=rf"vLLM 0\.20\.0 runs on {found}, not on cpu; .*--backend hf"):
            open_backend(candidates)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r'pip install "\.\[vllm\]"'):
        open_backend(candidates)


# Loading


def test_an_idle_adapter_and_a_broken_engine(
    tiny_base: Path, tiny_adapter: Path, make_adapter: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = make_adapter(tmp_path / "idle", tiny_base, trained=False)
    candidates = parse_candidates(str(tiny_base), [f"good={tiny_adapter}", f"idle={idle}"])
    with pytest.raises(CandidateError, match=r"adapter idle .*does not change the logits"):
        open_backend(candidates)[0].load()

    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried 20 GiB")

    monkeypatch.setattr(LLM, "fail", too_large)
    with pytest.raises(CandidateError) as caught:
        open_backend(candidates)[0].load()
    assert str(caught.value) == (
        f"base {tiny_base}: vLLM 0.20.0 cannot serve it (OutOfMemoryError: CUDA out of memory. Tried 20 GiB)"
        "; try --backend hf, or VLLM_LOGGING_LEVEL=ERROR to see more"
    )


def test_what_the_engine_is_told(tiny_base: Path, tiny_adapter: Path, make_adapter: Make, tmp_path: Path) -> None:
    wide = make_adapter(tmp_path / "wide", tiny_base, r=20, target_modules=["o_proj"])
    candidates = parse_candidates(str(tiny_base), [str(tiny_adapter), str(wide)])
    backend, prompts = open_backend(candidates)
    told = backend.arguments()
    assert told["model"] == str(tiny_base) and told["dtype"] == "float32" and told["load_format"] == "safetensors"
    assert (told["max_lora_rank"], told["max_loras"], told["max_cpu_loras"]) == (32, 1, 2)
    assert told["lora_target_modules"] == ["o_proj", "q_proj", "v_proj"]
    prompter = backend.prompters[candidates[0].name]
    longest = max(len(p.ids) + max(24, len(prompter.answer(r)) + 1) for p, r in zip(prompts, REFERENCES, strict=True))
    assert told["max_model_len"] == longest and not told["enable_prefix_caching"]
    assert backend.batch_sizes([9] * 600, 5) == [200, 200, 200] and backend.batch_sizes([], 5) == []
    fresh = get_backend("vllm")(candidates[:1], BackendOptions("vllm", device="cpu"))
    assert fresh.arguments()["max_model_len"] == -1 and "enable_lora" not in fresh.arguments()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("capability", "gib", "cards", "expected"),
    [
        ((7, 5), 15, 1, ("float16", "bitsandbytes", 1, 1255)),  # one T4
        ((7, 5), 15, 2, ("float16", None, 2, 1255)),  # Kaggle's two T4s hold 16-bit weights together
        ((9, 0), 140, 3, ("bfloat16", None, 2, 11720)),  # three cards cannot share four heads
    ],
)
def test_cards(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capability: tuple[int, int], gib: int, cards: int, expected: tuple[str, str | None, int, int],
) -> None:  # fmt: skip
    candidates = parse_candidates(str(tiny_base))
    monkeypatch.setattr(sys.modules["vllm.platforms"].current_platform, "device_type", "cuda")
    monkeypatch.setattr(Device, "of", lambda name: Device("cuda", "card", capability, gib * 2**30))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(ModelFiles, "shapes", lambda files: {"all": (8_000_000_000,)})
    with caplog.at_level(logging.WARNING):
        backend: Any = get_backend("vllm")(candidates, BackendOptions("vllm"))
    monkeypatch.setattr(backend.text, "vocab_size", 128_256)
    told = backend.arguments()
    names = ("dtype", "quantization", "tensor_parallel_size", "max_num_batched_tokens")
    assert tuple(map(told.get, names)) == expected
    assert told["gpu_memory_utilization"] + vllm.LOGITS < 1
    assert ("2 of 3 cards are used" in caplog.text) == (cards == 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (2**30, (3 + at) * 2**30))
    if cards > 1:
        assert backend.peak_memory_bytes() == 3 * 2**30


def test_the_library_is_told_to_be_quiet_unless_the_user_says_otherwise(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_LOGGING_STREAM")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    open_backend(parse_candidates(str(tiny_base)))
    assert os.environ["VLLM_LOGGING_STREAM"] == "ext://sys.stderr" and os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"


# A whole run


def test_an_engine_that_dies_leaves_a_run_to_go_on_with(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> Path:
        return evaluate(EvaluationRequest(
            parse_candidates(str(tiny_base), [f"mine={tiny_adapter}"]), tmp_path / name, limit=4,
            decoding=replace(GREEDY, max_new_tokens=6),
            device="cpu", backend="vllm", metrics=("chrF++", "perplexity"), quiet=True,
        ))  # fmt: skip

    monkeypatch.setattr(vllm, "WINDOW", 2)
    whole = run("whole")
    record = read_run(whole).record
    assert record.candidates[1].key_fields["vllm"] == "0.20.0" and record.precision["dtype"] == "float32"

    class EngineDeadError(Exception):  # vLLM's derives from nothing else either
        pass

    left = [5]

    def dies() -> None:
        left[0] -= 1
        if not left[0]:
            raise EngineDeadError("EngineCore encountered an issue.\nSee stack trace")

    monkeypatch.setattr(LLM, "fail", dies)
    with pytest.raises(PartialRunError, match=r"vLLM 0\.20\.0: EngineDeadError: .* See stack trace\nWhat was"):
        run("cut")
    assert len((tmp_path / "cut" / "generations.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert run("cut") and left[0] < 0
    for name in ("generations.jsonl", "examples.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole / name).read_bytes()


def test_a_reply_that_was_aborted_is_no_reply(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = parse_candidates(str(tiny_base))
    backend, prompts = open_backend(candidates)
    backend.load()
    gone = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5], finish_reason="abort")])
    monkeypatch.setattr(LLM, "answer", lambda *_: gone)
    with pytest.raises(RuntimeError, match="'abort'") as caught:
        backend.generate(candidates[0], prompts, IDS, GREEDY)
    assert not isinstance(caught.value, BnbenchError)
