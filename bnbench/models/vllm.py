"""vLLM in process: one engine answers for a base and all its adapters, which lie in it side by side, never merged."""

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from bnbench.data.corpus import Corpus, Example
from bnbench.errors import CandidateError, UsageError, require
from bnbench.models.backend import BackendOptions, LocalModels, Prompts, Reply, Rows
from bnbench.models.candidates import Candidate
from bnbench.models.decoding import Decoding, item_key
from bnbench.models.hub import ModelFiles
from bnbench.models.prompts import PROBE
from bnbench.progress import quiet

VERSION = 2  # raised when the same arguments would give other replies or likelihoods
WINDOW = 256  # replies that are made, and then saved, together: an engine's batch
# With the engine in this process its errors arrive as they are, and equal batches are scheduled alike. (The workers of
# several cards are processes still.) vLLM writes its log to stdout, and reports its use, unless it is told not to.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "CRITICAL", "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_NO_USAGE_STATS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # fmt: skip
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
# What an adapter's configuration may say. vLLM 0.20 refuses other things, or takes the adapter for a plain LoRA; other
# starts, such as PiSSA's, change the base's weights when PEFT loads the adapter.
SERVED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    **dict.fromkeys((
        "use_dora", "modules_to_save", "lora_bias", "rank_pattern", "alpha_pattern", "trainable_token_indices",
        "target_parameters", "layer_replication", "use_qalora", "use_bdlora", "alora_invocation_tokens",
        "arrow_config", "kasa_config", "monteclora_config",
    ), (None, False, [], {})),
}  # fmt: skip
MEMORY = 0.86  # share of each card for weights, keys and values
LOGITS = 0.1  # share of a card for the logits of a prompt's positions, 10 bytes each: 16 bits, float32, what sorts them
CPU_CACHE = 2**32  # bytes of keys and values; by itself vLLM takes nearly all of the machine's memory

log = logging.getLogger("bnbench.models")


class VllmBackend(LocalModels):
    """The backend `vllm`: a base and its adapters in one engine, on all the cards that there are."""

    def __init__(self, candidates: Sequence[Candidate], options: BackendOptions) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        self.vllm = require("vllm", extra="vllm")
        super().__init__(candidates, options)
        self.computed_by = {"backend": "vllm", "backend_version": VERSION, "vllm": str(self.vllm.__version__)}
        seen = require("vllm.platforms", extra="vllm").current_platform.device_type
        if self.device != seen:
            why = f"vLLM {self.vllm.__version__} runs on {seen or 'no device that it finds here'}, not on {self.device}"
            raise UsageError(f"--backend vllm: {why}; CUDA_VISIBLE_DEVICES chooses cards, or use --backend hf")
        if self.precision["quantisation"] == "nf4":
            require("bitsandbytes", extra="models")
        self.lora: dict[str, Any] = {}
        self.rank, self.layers = 0, set[str]()
        for number, (name, files) in enumerate(self.adapter_files.items(), 1):
            rank, layers = check_adapter(files)
            self.rank, self.layers = max(self.rank, rank), self.layers | layers
            request = require("vllm.lora.request", extra="vllm").LoRARequest
            self.lora[name] = request(f"adapter_{number}", number, str(files.folder))
        self.context = self.context and self.context - 1  # the token drawn after a row needs a place too
        self.longest = 0  # tokens of the run's longest row, its reply included; 0: not known
        self.engine: Any = None

    @cached_property
    def n_cards(self) -> int:  # type: ignore[override]  # known when it is first asked for
        """All that torch sees, or as many as share the attention's heads evenly; one for a base stored in NF4."""
        heads = getattr(self.text, "num_attention_heads", None)
        if self.device != "cuda" or self.stored_quantisation.get("quant_method") == "bitsandbytes" or not heads:
            return 1
        import torch

        keys, seen = getattr(self.text, "num_key_value_heads", None) or heads, torch.cuda.device_count()
        even = [n for n in range(1, seen + 1) if heads % n == 0 and 0 in (keys % n, n % keys)]
        if even[-1] < seen:
            reason = f"{heads} attention heads ({keys} of keys) cannot be shared by more evenly"
            log.warning("%s: %d of %d cards are used: %s", self.files.location, even[-1], seen, reason)
        return even[-1]

    def bind(self, examples: Sequence[Example], corpus: Corpus | None = None) -> None:
        """The engine is made for the longest row of the run: its prompt and reference, and the token drawn after it."""
        prompters = {id(p): p for p in self.prompters.values()}.values()
        self.longest = max(max(p.count_tokens(examples), default=0) for p in prompters) + 1

    def batch_sizes(self, lengths: Sequence[int], new_tokens: int) -> list[int]:
        """Windows of some hundreds, all as large, which the engine fills its batches from."""
        self.longest = max(self.longest, max(lengths, default=0) + new_tokens)
        n, windows = len(lengths), math.ceil(len(lengths) / WINDOW)
        return [n // windows + (at < n % windows) for at in range(windows)]

    def arguments(self) -> dict[str, Any]:
        """What the engine is told. Nothing is left to the model's own generation configuration."""
        prompters = list(self.prompters.values())
        probe = max(len(p.prompt(PROBE).ids) for p in prompters) + 1
        told: dict[str, Any] = {
            "model": str(self.files.folder), "trust_remote_code": self.options.trust_remote_code,
            "dtype": self.precision["dtype"], "load_format": "safetensors", "use_tqdm_on_load": False,
            "generation_config": "vllm", "seed": 0, "tensor_parallel_size": self.n_cards,
            # -1: the model's own, or as much as fits.
            "max_model_len": max(self.longest, probe) if self.longest else -1,
            # Only likelihoods read what is cached, of their own prompts: see `likelihood`.
            "enable_prefix_caching": self.memory is not None,
            # Ids go in and ids come out; only who watches for texts that end a reply needs to read them.
            "skip_tokenizer_init": not any(p.stop_texts for p in prompters),
        }  # fmt: skip
        if self.precision["quantisation"] == "nf4":
            told |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
        if self.lora:
            rank = next(rank for rank in RANKS if rank >= self.rank)
            told |= {"enable_lora": True, "max_lora_rank": rank, "lora_target_modules": sorted(self.layers)}
            told |= {"max_loras": 1, "max_cpu_loras": len(self.lora)}  # a batch is one candidate's; the others wait
        if self.memory is None:
            # A prompt that is read in parts takes its noise back, which torch's generator for the CPU cannot do.
            return told | {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE, "enable_chunked_prefill": False}
        # vLLM keeps no room for the logits of likelihoods: they must fit beside what it takes.
        tokens = min(16_384, max(2 * WINDOW, int(LOGITS * self.memory / (10 * self.text.vocab_size))))
        return told | {"gpu_memory_utilization": MEMORY, "max_num_batched_tokens": tokens, "max_num_seqs": WINDOW}

    def load(self) -> None:
        """Makes the engine, and proves that every adapter changes the logits; raises CandidateError otherwise."""
        if self.engine is not None:
            return
        label, plain = self.files.label, None
        try:
            with quiet():
                self.engine = self.vllm.LLM(**self.arguments())
                for candidate in (Candidate("", "base", self.files.location), *self.adapters.values()):
                    label = f"{candidate.kind} {candidate.location}"
                    row = self.prompters[self.candidates[0].name].prompt(PROBE).ids
                    nll = self.likelihood(candidate, [row], [1])[0]
                    self.check_answer(candidate, is_finite=math.isfinite(nll), is_base_s=nll == plain)
                    plain = nll if plain is None else plain
        except CandidateError:
            raise
        except Exception as error:  # anything may come out of an engine
            why = f"vLLM {self.vllm.__version__} cannot serve it ({one_line(error.__cause__ or error)})"
            how = "try --backend hf, or VLLM_LOGGING_LEVEL=ERROR to see more"
            raise CandidateError(f"{label}: {why}; {how}") from error
        log.info("%s in vLLM, cards: %d; %s", self.files.location, self.n_cards, self.precision["reason"])

    def generate(self, candidate: Candidate, prompts: Prompts, items: Sequence[str], decoding: Decoding) -> list[Reply]:
        """One reply a prompt, under a seed of the item's own."""
        prompter = self.prompters[candidate.name]
        limited, stop = prompter.limited(decoding), prompter.stop_ids
        how: dict[str, Any] = {
            "max_tokens": limited.max_new_tokens, "repetition_penalty": decoding.repetition_penalty,
            "stop_token_ids": list(stop), "ignore_eos": True,  # all end tokens are among the prompter's
            "stop": list(prompter.stop_texts), "detokenize": bool(prompter.stop_texts), "skip_special_tokens": False,
            # A reply must not depend on what was asked before: a run that goes on would end otherwise.
            "skip_reading_prefix_cache": True,
        }  # fmt: skip
        if decoding.greedy:
            how["temperature"] = 0
        else:
            how |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
        keys = [item_key(decoding.seed, item) for item in items]  # 63 bits of each are a signed number of 64
        seeds = [None if decoding.greedy else (high << 32 | low) >> 1 for high, low, *_ in keys]
        params = [self.vllm.SamplingParams(**how, seed=seed) for seed in seeds]
        replies = []
        rows = [prompt.ids for prompt in prompts]
        for done in self._run(candidate, rows, [len(row) for row in rows], params):
            said, ids = done.outputs[0], list(done.outputs[0].token_ids)
            if said.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"vLLM ended a reply of {candidate.name} with {said.finish_reason!r}")
            is_cut = said.finish_reason == "length"
            ids = ids[:-1] if ids and ids[-1] in stop else ids
            replies.append(Reply(prompter.decode(ids, cut=is_cut), len(ids), is_cut))
        return replies

    def likelihood(self, candidate: Candidate, rows: Rows, starts: Sequence[int]) -> list[float]:
        """As `Backend.likelihood`, from the log-probabilities of a prompt's own tokens: of the logits as they are.

        The keys and values that a prompt left when its reply was drawn serve again, where they are still there: under
        the prompt's own salt, so that no other row's are taken. vLLM keeps whole blocks, and gives no value for what
        it does not compute: where a prompt ends with a block, what follows it would be lost, so all is computed.
        """
        config = getattr(getattr(self.engine, "llm_engine", None), "vllm_config", None)
        block = 1 if config is None else config.cache_config.block_size
        # What is not computed is filled with anything, which a tokenizer could not read.
        can_reuse = self.memory is not None and not any(self.prompters[c.name].stop_texts for c in self.candidates)
        how = {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0, "flat_logprobs": True, "detokenize": False}
        skips = [not can_reuse or start % block == 0 for start in starts]
        params = [self.vllm.SamplingParams(**how, skip_reading_prefix_cache=skip) for skip in skips]
        known = [done.prompt_logprobs for done in self._run(candidate, rows, starts, params)]
        answers = zip(known, rows, starts, strict=True)
        return [-math.fsum(of[at][row[at]].logprob for at in range(start, len(row))) for of, row, start in answers]

    def _run(self, candidate: Candidate, rows: Rows, starts: Sequence[int], params: Sequence[Any]) -> Any:
        """The engine's outputs for rows of ids, whose prompts end at `starts`; RuntimeError for whatever ends it."""
        if self.engine is None:
            self.load()
        asked = [
            {"prompt_token_ids": list(row), "cache_salt": hashlib.sha256(repr(list(row[:start])).encode()).hexdigest()}
            for row, start in zip(rows, starts, strict=True)
        ]
        try:
            return self.engine.generate(asked, params, lora_request=self.lora.get(candidate.name), use_tqdm=False)
        except Exception as error:  # its classes differ from version to version
            raise RuntimeError(f"vLLM {self.vllm.__version__}: {one_line(error)}") from error

    def peak_memory_bytes(self) -> int | None:
        """As `LocalModels.peak_memory_bytes`; of several cards, which other processes work on, what is taken of one."""
        if self.n_cards == 1:
            return super().peak_memory_bytes()
        import torch

        return max(whole - free for free, whole in map(torch.cuda.mem_get_info, range(self.n_cards)))


def check_adapter(files: ModelFiles) -> tuple[int, set[str]]:
    """The rank of an adapter, and its layers' names; CandidateError where vLLM's answers would not be PEFT's, or none.
    vLLM adds the head's LoRA to the last position alone, so the likelihoods would be others'.
    """
    config, shapes = files.read_json("adapter_config.json"), files.shapes()
    ranks = {name.removesuffix(".lora_A.weight"): s[0] for name, s in shapes.items() if name.endswith(".lora_A.weight")}
    rank, layers = max(ranks.values(), default=0), {name.rpartition(".")[2] for name in ranks}
    others = sorted(name for name in shapes if not name.endswith((".lora_A.weight", ".lora_B.weight")))
    faults = [f"{key} {config[key]!r}" for key, those in SERVED.items() if config.get(key, those[0]) not in those]
    faults += [f"tensors that are no LoRA matrices, such as {name}" for name in others]
    targets = config.get("target_modules")
    named = {t.rpartition(".")[2] for t in targets} if isinstance(targets, list) else layers
    faults += [f"no matrices for {name}, which its configuration names" for name in sorted(named - layers)]
    faults += ["a LoRA on lm_head"] * ("lm_head" in layers) + [f"rank {rank}, above {RANKS[-1]}"] * (rank > RANKS[-1])
    if faults:
        raise CandidateError(f"{files.label}: vLLM cannot serve it (it has {faults[0]}); use --backend hf")
    return rank, layers


def one_line(error: BaseException) -> str:
    """The class and the message of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
