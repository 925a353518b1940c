"""Tiny stand-ins shared by all tests: a random Llama, its tokenizer with Llama-3.1's special tokens, an adapter."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib
import json
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from bnbench.data import corpus
from bnbench.data.corpus import Example
from bnbench.models.prompts import Prompter

# The models of the tests are too small for more than one thread, which only waits for the others on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SENTENCES = [
    "আপনি একজন সহানুভূতিশীল বাংলা কথোপকথন সহকারী। বিষয়: মানসিক স্বাস্থ্য",
    "আমার মন খারাপ, কিছুতেই ঘুম আসে না। কী করব বুঝতে পারছি না।",
    "আপনার কষ্টটা বুঝতে পারছি। আজ রাতে ঘুমানোর আগে একটু হাঁটুন, আর কাছের কাউকে কথাটা বলুন।",
    "চাকরিটা চলে যাওয়ার পর থেকে বাড়ির সবাই কেমন চুপচাপ হয়ে গেছে।",
    "পরীক্ষার ফল খারাপ হয়েছে, বাবা-মাকে কীভাবে বলব?",
    "তুমি একা নও; আমরা পাশে আছি। ধীরে ধীরে সব ঠিক হয়ে যাবে।",
]
SPECIAL_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_0|>", "<|im_start|>", "<|im_end|>",
]  # fmt: skip
# As the stock one does, it adds the date: a prompt that holds one was not written by us.
STOCK_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% if m['role'] == 'system' %}{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n\n' }}{% endif %}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
WORDS = r" ?[\p{L}\p{M}\x{200c}\x{200d}]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


def build_tokenizer(
    special: list[str] = SPECIAL_TOKENS, template: str | None = STOCK_TEMPLATE, adds_bos: bool = True
) -> Any:
    """A byte-level tokenizer of 400 entries that loses no UTF-8 text; bos and eos are the first two special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=special[0], eos_token=special[1])
    tokenizer.chat_template = template
    return tokenizer


def build_base(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """A random Llama of two layers, seeded, saved with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.4,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": [tokenizer.eos_token_id],
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_adapter(
    folder: Path, base: Path, name: str | None = None, *, seed: int = 1, trained: bool = True, **changes: Any
) -> Path:
    """A LoRA adapter on q and v with random (`trained`) or still zero B matrices; `name` is what it calls its base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    config = LoraConfig(**{**settings, **changes}, init_lora_weights=not trained)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.peft_config["default"].base_model_name_or_path = name or str(base)
    # Otherwise PEFT asks the hub about the base's vocabulary.
    model.save_pretrained(folder, save_embedding_layers="modules_to_save" in changes)
    return folder


def pretend_avx512bf16(monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
    """Has bitsandbytes believe that the processor has AVX512-BF16 or has it not, wherever it asks."""
    for module in ("functional", "nn.modules", "backends.cpu.ops"):
        monkeypatch.setattr(f"bitsandbytes.{module}.has_avx512bf16", lambda: answer)


@pytest.fixture(scope="session", autouse=True)
def other_processor() -> Iterator[None]:
    """BNBENCH_TEST_AVX512BF16=0 or =1 gives all tests bitsandbytes' other choices than this processor's own."""
    answer = os.environ.get("BNBENCH_TEST_AVX512BF16")
    with pytest.MonkeyPatch.context() as monkeypatch:
        if answer is not None:
            pretend_avx512bf16(monkeypatch, {"0": False, "1": True}[answer])
        yield


@pytest.fixture(params=[False, True], ids=["portable", "avx512bf16"])
def avx512bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Runs a test on both answers to whether the processor has AVX512-BF16."""
    pretend_avx512bf16(monkeypatch, request.param)
    return bool(request.param)


# Reads lines of JSON: a program, and the processes that are to run it at the same time; answers with their exit codes.
FORKING = """
import gc, json, os, sys, traceback
gc.disable()
import bitsandbytes, peft, transformers.trainer, transformers.models.llama.modeling_llama
gc.enable()
gc.freeze()  # or each of theirs would walk through all of that, and copy its memory
for line in sys.stdin:
    job, children = json.loads(line), []
    for environment, files in job["processes"]:
        if child := os.fork():
            children.append(child)
            continue
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(environment)
        for number, (name, how) in enumerate(zip(files, (os.O_RDONLY, *[os.O_CREAT | os.O_WRONLY] * 2))):
            os.dup2(os.open(name, how), number)
        sys.stdin, sys.argv, sys.path[:0], code = open(0, encoding="utf-8"), job["words"], job["paths"], 0
        try:
            exec(compile(job["code"], "<forked>", "exec"), {"__name__": "__main__"})
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int | None) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[subprocess.CompletedProcess[str]]]]:
    """Runs Python code in a process of its own, or in one for each of `each`, which adds to its environment.

    All are forked from a process that has imported the libraries and nothing of ours: that takes eight seconds, which
    are spent once and not for each process.
    """
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(
            code: str, *words: str, folder: Path, given: str = "", each: Sequence[Mapping[str, str]] = ({},)
        ) -> list[subprocess.CompletedProcess[str]]:
            assert process.stdin is not None and process.stdout is not None
            place = tmp_path_factory.mktemp("forked")
            (place / "in").write_text(given, encoding="utf-8")
            files = [[str(place / name) for name in ("in", f"out{i}", f"err{i}")] for i in range(len(each))]
            job = {
                "code": code, "words": ["-c", *words], "folder": str(folder),
                "paths": [*sys.path, str(Path(__file__).parents[1])],
                "processes": [(os.environ | dict(more), names) for more, names in zip(each, files, strict=True)],
            }  # fmt: skip
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            codes = json.loads(process.stdout.readline())
            said = [[Path(name).read_text(encoding="utf-8") for name in names[1:]] for names in files]
            return [subprocess.CompletedProcess(words, n, *texts) for n, texts in zip(codes, said, strict=True)]

        yield run


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    return build_tokenizer


@pytest.fixture(scope="session")
def make_base() -> Callable[..., Path]:
    return build_base


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    return build_adapter


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """The folder of a random Llama of about 40,000 parameters with its tokenizer."""
    return build_base(tmp_path_factory.mktemp("tiny") / "base", tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """The folder of a LoRA adapter of `tiny_base` that changes its logits."""
    return build_adapter(tmp_path_factory.mktemp("tiny") / "adapter", tiny_base)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First the files that take longest, of the whole and of reports: no worker is to begin one when the other ends."""
    items.sort(key=lambda item: item.path.parent.name not in ("tests", "reports"))


def pytest_collectstart() -> None:
    """The libraries are imported without the coverage's trace, which counts no line of theirs and slows them all; and
    without collections, which find nothing, since modules stay.
    """
    gc.disable()
    if (trace := sys.gettrace()) and "torch" not in sys.modules:
        sys.settrace(None)
        for name in ("rouge_score.rouge_scorer", "peft", "transformers.trainer", "transformers.models.llama"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        sys.settrace(trace)


@pytest.fixture(scope="session", autouse=True)
def each_text_once() -> Iterator[None]:
    """Most runs of the tests begin with the bundled rows: what depends on their texts alone is computed once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, size in (("repair", 10_000), ("make_example", 10_000), ("astuple", 10_000), ("_unlike", 16)):
            monkeypatch.setattr(corpus, name, functools.lru_cache(size)(getattr(corpus, name)))
        count, counted = Prompter.count_tokens, dict[Any, list[int]]()
        encode, encoded = Prompter._encode, dict[Any, list[int]]()

        def count_once(prompter: Prompter, examples: Sequence[Example]) -> list[int]:
            # A prompter is equal to another with the same template, whatever its tokenizer.
            key = (prompter, prompter.tokenizer_sha, *examples)
            if key not in counted:
                counted[key] = count(prompter, examples)
            return counted[key]

        def encode_once(prompter: Prompter, text: str, *, special: bool = True) -> list[int]:
            if (backend := getattr(prompter.tokenizer, "backend_tokenizer", None)) is None:
                return encode(prompter, text, special=special)
            state = (prompter.tokenizer_sha, backend.get_vocab_size(), str(backend.truncation), str(backend.padding))
            key = (type(prompter.tokenizer), *state, text, special)
            if key not in encoded:
                encoded[key] = encode(prompter, text, special=special)
            return list(encoded[key])

        monkeypatch.setattr(Prompter, "count_tokens", count_once)
        monkeypatch.setattr(Prompter, "_encode", encode_once)
        yield


@pytest.fixture(scope="session", autouse=True)
def certificates_once() -> Iterator[None]:
    """Each pool of connections reads the certificates of the world anew, 50 ms long, though ours ask only this host."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session", autouse=True)
def each_template_once() -> Iterator[None]:
    """Jinja keeps no template between environments: each report, and each adapter that PEFT writes, compiles its own
    anew, for a quarter of the time of the tests of reports.
    """
    import jinja2

    made = dict[Any, Any]()
    compile_anew = jinja2.Environment.compile

    def compiled(self: Any, source: Any, *of: Any, **how: Any) -> Any:
        what = (source, of, *how.items(), type(self), self.autoescape, self.trim_blocks, self.lstrip_blocks)
        key = (what, self.keep_trailing_newline, frozenset(self.filters), frozenset(self.extensions))
        if key not in made:
            made[key] = compile_anew(self, source, *of, **how)
        return made[key]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(jinja2.Environment, "compile", compiled)
        yield


@pytest.fixture(scope="session", autouse=True)
def each_table_once() -> Iterator[None]:
    """A report reads a table for each candidate and yardstick, mostly of a run that other tests have copies of: files
    of the same bytes are parsed once. What cannot be read is not kept, and the caller may change what it is given.
    """
    import pandas as pd

    parse, parsed = pd.read_parquet, dict[bytes, Any]()

    def read(path: Any, *more: Any, **how: Any) -> Any:
        if more or how or not isinstance(path, Path) or not path.is_file():
            return parse(path, *more, **how)
        key = hashlib.sha256(path.read_bytes()).digest()
        if key not in parsed:
            parsed[key] = parse(path)
        return parsed[key].copy()

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pd, "read_parquet", read)
        yield


@pytest.fixture(scope="session", autouse=True)
def each_version_once() -> Iterator[None]:
    """Each run notes the versions of a dozen packages, and a version is found by parsing all that a package says."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(metadata, "version", functools.cache(metadata.version))
        yield


@pytest.fixture(scope="session", autouse=True)
def each_command_once() -> Iterator[None]:
    """Typer reads the signatures of all commands each time that one is invoked, 20 ms long."""
    import typer.main
    import typer.testing

    made = functools.cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(typer.main, "get_command", made)
        monkeypatch.setattr(typer.testing, "_get_command", made)
        yield


def pytest_collection_finish() -> None:
    """What was imported stays: no collection, and each load and training has one, walks through it again."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    """So does what the tests of a file import; with all of transformers a collection takes a third of a second."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """A command under -q lowers our logger's voice for the process; the next test begins with it as it was."""
    logger = logging.getLogger("bnbench")
    level = logger.level
    _raise(logger, logging.INFO)
    yield
    _raise(logger, level)


def _raise(logger: logging.Logger, level: int) -> None:
    if logger.level != level:  # each change, and be it to the same, empties what all the loggers of the libraries know
        logger.setLevel(level)
