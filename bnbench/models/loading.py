"""Weights into memory: all that a checkpoint holds and all that its model needs, or one line that says what is wrong.

For evaluation and training alike. What transformers, peft, tokenizers and quantisers raise ends here. In what a model
computes is chosen once, with its reason for the run's record; 4-bit weights give the same results everywhere.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bnbench.errors import BnbenchError, CandidateError, UsageError, require
from bnbench.models.hub import ModelFiles
from bnbench.progress import quiet

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "float16", "bfloat16"]
Quantisation = Literal["none", "nf4"]

BFLOAT16_SINCE = (8, 0)  # compute capability; older cards only emulate it, at the rate of float32
ROOM = 0.25  # share of the card kept for keys, values, logits and fragments

log = logging.getLogger("bnbench.models")


@dataclass(frozen=True)
class Device:
    """What decides about precision: `type` cuda, cpu or another; compute capability and memory in bytes of a card."""

    type: str
    name: str = ""
    capability: tuple[int, int] | None = None
    memory: int | None = None

    @classmethod
    def of(cls, name: str) -> Device:
        """Asks torch about cuda, cuda:1, mps, cpu or auto (the first card, else the CPU); UsageError without it."""
        torch: Any = require("torch", extra="models")
        cuda = torch.cuda
        name = ("cuda" if cuda.is_available() else "cpu") if name == "auto" else name
        try:
            chosen = torch.device(name)
        except RuntimeError:
            raise UsageError(f"--device {name}: there is no such device; use cpu, cuda, cuda:1 … or mps") from None
        if chosen.type == "cuda":
            if (chosen.index or 0) >= (seen := cuda.device_count()):
                raise UsageError(f"--device {name}: torch {torch.__version__} sees {seen} CUDA cards; use cpu")
            card = cuda.get_device_properties(chosen)
            return cls("cuda", card.name, (card.major, card.minor), card.total_memory)
        if chosen.type == "mps" and not torch.backends.mps.is_available():
            raise UsageError(f"--device {name}: torch {torch.__version__} sees no Apple GPU; use cpu")
        return cls(chosen.type)


@dataclass(frozen=True)
class Precision:
    """The dtype of weights and arithmetic, how the weights are stored (`nf4`: 4 bits), and why."""

    dtype_name: DType
    quantisation: Quantisation
    reason: str


def choose_precision(card: Device, n_parameters: int, quantise: bool | None = None) -> Precision:
    """The dtype that the device computes fast in, and whether weights are stored in 4 bits (NF4). `quantise` True or
    False decides about NF4; None takes it only where 16-bit weights do not fit on the card.
    """
    dtype: DType = "float16"
    if card.type == "cpu":
        dtype, why = "float32", "float32, because the CPU computes 16-bit numbers no faster"
    elif card.type != "cuda" or card.capability is None:
        why = f"float16, the fast 16-bit arithmetic of {card.type}"
    else:
        why = f"{card.name or 'the card'} has compute capability {card.capability[0]}.{card.capability[1]}"
        # Not torch.cuda.is_bf16_supported(): it is True where bfloat16 is only emulated.
        if card.capability >= BFLOAT16_SINCE:
            dtype, why = "bfloat16", f"bfloat16, because {why} (8.0 and above compute in it)"
        else:
            why = f"float16, because {why} and bfloat16 is emulated below 8.0"
    if quantise is not None:
        asked = "; NF4 weights were asked for" if quantise else ""
        return Precision(dtype, "nf4" if quantise else "none", why + asked)
    needs = n_parameters * (4 if dtype == "float32" else 2)
    if card.type == "cuda" and card.memory is not None and needs > card.memory * (1 - ROOM):
        sizes = f"{needs / 2**30:.1f} GiB of {dtype} weights leave too little of the card's {card.memory / 2**30:.1f}"
        return Precision(dtype, "nf4", f"{why}; NF4 weights, because {sizes} GiB")
    return Precision(dtype, "none", why)


def import_libraries() -> None:
    """Imports what loads models, which takes seconds: peft, with transformers, and bitsandbytes; those that are there.

    bitsandbytes hands functions for the CPU to torch's compiler as it is imported. That brings 550 modules of 3,700
    along, and numbers of its own on machines that have a C++ compiler. Without one it leaves them as they are written.
    """
    torch: Any = require("torch", extra="models")
    compiler = torch.compile
    torch.compile = None
    try:
        with suppress(ImportError):  # said, with what to install, where it is needed
            import_module("bitsandbytes")
    finally:
        torch.compile = compiler
    with suppress(ImportError):
        import_module("peft")


@contextmanager
def explained(label: str, fault: str) -> Iterator[None]:
    """Makes one CandidateError of whatever a library raises in the block, and keeps the libraries quiet meanwhile."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is checked, and said, here
            yield
    except BnbenchError:
        raise
    # A configuration or a checkpoint can make a library raise anything, with a traceback that names its own code.
    except Exception as error:
        why = " ".join(str(error).split())
        raise CandidateError(f"{label}: {fault} ({type(error).__name__}: {why[:300]})") from error


@contextmanager
def bounded(label: str, what: str, seconds: float = 10.0, memory: int = 2**30) -> Iterator[None]:
    """Raises CandidateError where a stranger's file has a library take longer, or more bytes (Linux's main thread)."""
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        yield
        return

    import resource

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    limits, before = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = [pages * resource.getpagesize() + memory, *(n for n in limits if n != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(most), limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except (TimeoutError, MemoryError) as error:
        why = str(error) or f"more than {memory / 2**30:.0f} GiB"
        raise CandidateError(f"{label}: {what} takes {why}, so it is not used") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def load_config(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a causal language model; CandidateError where it is broken, or of another kind of model."""
    transformers = require("transformers", extra="models")
    # Each layer has a tensor at least; a million of them would be made before that shows.
    numbers = [n for key, n in files.read_json("config.json").items() if re.fullmatch(r"n(um)?_.*layers?", key)]
    layers = max((n for n in numbers if isinstance(n, int)), default=0)
    if layers > max(1000, len(files.shapes())):
        raise CandidateError(f"{files.label}: its config.json names {layers:,} layers, and its weights have fewer")
    with explained(files.label, f"{files.folder / 'config.json'} cannot be used"):
        config = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    kind, why = type(config), ""
    if "auto_map" in files.read_json("config.json"):
        return config
    if kind not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        why = "does not write on from a text, so it cannot answer"
    elif kind in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        why = "is an encoder, which sees the words that it is scored on"
    if why:
        raise CandidateError(f"{files.label}: a model of type {config.model_type} {why}")
    return config


def load_base(files: ModelFiles, *, load: Any = None, trust_remote_code: bool = False, **options: Any) -> Any:
    """The model of a folder, with `from_pretrained`'s `options`, every tensor from its checkpoint.

    `load` stands in for that. CandidateError where it fails, or tensors are missing, not used or of another shape.
    """
    load = load or partial(require("transformers", extra="models").AutoModelForCausalLM.from_pretrained, files.folder)
    always = {"use_safetensors": True, "trust_remote_code": trust_remote_code, "output_loading_info": True}
    with explained(files.label, "it cannot be loaded"):
        # A shape that differs is reported below, by name; left alone it is a report of many lines.
        model, info = load(ignore_mismatched_sizes=True, **always, **options)
    differ = info["mismatched_keys"]
    shapes = [f"{name} (stored as {tuple(stored)}, the model's is {tuple(own)})" for name, stored, own in differ]
    refuse_partial(files.label, info["missing_keys"], info["unexpected_keys"], shapes)
    return model


def outline(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """The model of a folder as names and shapes, on torch's device "meta"; raises as `load_config` and `load_base` do.
    No weights are read: what they hold is known from the headers of their files, where these are there.
    """
    torch, auto = require("torch", extra="models"), require("transformers", extra="models").AutoModelForCausalLM
    config = load_config(files, trust_remote_code=trust_remote_code)
    with explained(files.label, "it cannot be loaded"), torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=trust_remote_code)
    # The matrices of bitsandbytes are packed, in shapes of their own.
    quantised = getattr(config, "quantization_config", None) or {}
    if not files.weights() or quantised.get("quant_method") == "bitsandbytes":
        return model
    held = {name: torch.empty(shape, device="meta") for name, shape in files.shapes().items()}
    options = {"config": config, "state_dict": held, "device_map": "meta", "trust_remote_code": trust_remote_code}
    return load_base(files, load=partial(type(model).from_pretrained, None), **options)


def refuse_partial(label: str, missing: Collection[str], unused: Collection[str], shapes: Collection[str] = ()) -> None:
    """Raises CandidateError where tensors are missing, not used or of another shape: how many, and the first names."""
    faults = {"not in its file": missing, "of its file not used": unused, "of another shape": shapes}
    said = [
        f"{len(names)} tensor{'s' * (len(names) > 1)} {fault}: {', '.join(sorted(names)[:3])}{' …' * (len(names) > 3)}"
        for fault, names in faults.items()
        if names
    ]
    if said:
        raise CandidateError(f"{label}: it would not be loaded whole; {'; '.join(said)}; save it again, whole")


def trained_tokens(files: ModelFiles) -> set[int]:
    """The ids of an adapter's tokens that are trained by themselves; CandidateError where they are no ids."""
    config, found = files.read_json("adapter_config.json"), set[int]()
    trained = config.get("trainable_token_indices") or config.get("token_indices") or []
    for ids in trained.values() if isinstance(trained, dict) else [trained]:
        if not isinstance(ids, list) or set(map(type, ids)) - {int} or min(ids, default=0) < 0:
            raise CandidateError(f"{files.label}: its adapter_config.json names tokens that are no ids: {ids!s:.60}")
        found.update(ids)
    return found


def put_on(model: Any, files: ModelFiles, name: str) -> Any:
    """A PeftModel that has the adapter under this name, on a plain model or on one that has adapters already. Raises
    CandidateError where it does not fit, or where a tensor of it is missing or not used.
    """
    peft = require("peft", extra="models")
    # PEFT has no use_safetensors: it opens a pickle where this file is not there (any more).
    if not (files.folder / "adapter_model.safetensors").is_file():
        raise CandidateError(f"{files.label}: there is no adapter_model.safetensors in {files.folder}")
    config = files.read_json("adapter_config.json")
    with explained(files.label, "it cannot be put on its base"):
        # A regular expression of a stranger is tried first, in bounds, on what PEFT will match with it: target_modules
        # in whole, the keys of rank_pattern at the end of a name.
        keys = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
        given = [one for v in map(config.get, keys) for one in ([v] if isinstance(v, str) else v or ())]
        forms = [re.compile(f"(.*\\.)?({one})$") for one in map(str, given) if re.search(r"[*+{]", one)]
        with bounded(files.label, "a regular expression of its adapter_config.json"):
            for form in forms:
                for place, _ in model.named_modules():
                    form.match(place)
        # Tokens that were added in its training: their rows lie in its file, at the end of all that the base has.
        own, rows = model.get_input_embeddings(), 0
        for place, module in model.named_modules():
            if module is own:
                rows = files.shapes().get(f"base_model.model.{place}.weight", (0,))[0]
        # Or each is trained and stored by itself; a head of its own would still lack their rows.
        tokens, is_tied = trained_tokens(files), getattr(model.config, "tie_word_embeddings", False)
        if is_tied and tokens.issuperset(range(own.weight.shape[0], end := max(tokens, default=-1) + 1)):
            rows = max(rows, end)
        if rows > own.weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        if not isinstance(model, peft.PeftModel):
            model = peft.PeftModel.from_pretrained(model, files.folder, adapter_name=name)
        result = model.load_adapter(files.folder, name)  # a second time, which alone says what was loaded
    names = files.shapes()
    # PEFT writes a layer that is saved whole up to three times, and a layer's view of VB-LoRA's one bank not at all.
    unused = [key.replace(f".{name}", "") for key in result.unexpected_keys]
    copies = {key for key in unused for x in (".modules_to_save", ".original_module") if key.replace(x, "") in names}
    missing = [key.replace(f".{name}", "") for key in result.missing_keys if "vblora_vector_bank" not in key]
    refuse_partial(files.label, missing, [key for key in unused if key not in copies])
    if unknown := sorted(filter(config.get, config.keys() - vars(model.peft_config[name]).keys())):
        says = "%s: peft %s does not know what its adapter_config.json sets, and goes on without: %s"
        log.warning(says, files.label, peft.__version__, ", ".join(unknown))
    return model


def unpack(weight: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The (out, in) matrix of a layer's 4-bit `weight`, in the dtype that was quantised or in `dtype`."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    if weight.device.type == "cuda":
        from bnbench.models import kernels

        state, absmax, number = weight.quant_state, weight.quant_state.absmax, dtype or weight.quant_state.dtype
        if state.quant_type == "nf4" and kernels.usable(weight.device) and state.shape.numel() % state.blocksize == 0:
            return kernels.unpack_nf4(weight.data, state, number)
        # `dequantize_4bit` itself goes twice through torch's dispatcher of Python operators, for each weight of each
        # layer: a fifth of the time of a short training step (H200).
        from bitsandbytes.backends.cuda.ops import _dequantize_4bit_impl, _dequantize_blockwise_impl

        if state.nested:
            inner, absmax = state.state2, torch.empty_like(absmax, dtype=torch.float32)
            _dequantize_blockwise_impl(state.absmax, inner.absmax, inner.code, inner.blocksize, torch.float32, absmax)
            absmax += state.offset
        whole = torch.empty(state.shape, dtype=number, device=weight.device)
        _dequantize_4bit_impl(weight.data, absmax, state.blocksize, state.quant_type, number, whole)
        return whole
    state = copy(weight.quant_state)
    state.dtype = dtype or state.dtype
    if weight.device.type != "cpu":
        return dequantize_4bit(weight.data, state)  # type: ignore[no-any-return]
    shape, size = state.shape, state.shape.numel()
    blocks = -(-size // state.blocksize)
    state.shape = torch.Size((blocks, state.blocksize))
    packed = weight.data.reshape(-1).view(torch.uint8)
    whole = torch.nn.functional.pad(packed, (0, blocks * state.blocksize // 2 - packed.numel()))
    return dequantize_4bit(whole[:, None], state).view(-1)[:size].view(shape)  # type: ignore[no-any-return]


def make_portable(model: Any) -> Any:
    """Makes 4-bit layers on the CPU give the same, right results on every processor; gives the model back.

    bitsandbytes (0.50) takes other paths where the processor has AVX-512. Its unpacking of rows that are no multiple
    of the block (64) then mixes up the blocks' scales; with BF16 instructions its forward in eval mode also repacks
    the weights for good, rounds to bfloat16, and fails on such rows. So a weight is unpacked by blocks here, each as
    one row, and multiplied by torch.
    """
    import torch

    class Frozen(torch.autograd.Function):
        """x Wᵀ; for the gradient of x the weight is unpacked again, never kept."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: Any) -> torch.Tensor:
            ctx.weight = weight
            return torch.nn.functional.linear(x, unpack(weight, x.dtype))

        @staticmethod
        def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
            return upstream[0] @ unpack(ctx.weight, upstream[0].dtype), None

    def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
        y: Any = Frozen.apply(x.to(layer.compute_dtype or x.dtype), layer.weight)  # type: ignore[no-untyped-call]
        y = y if layer.bias is None else y + layer.bias.to(y.dtype)
        return y.to(x.dtype)  # type: ignore[no-any-return]

    layers: list[Any] = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    for layer in layers:
        if hasattr(layer.weight, "quant_state") and layer.weight.device.type == "cpu":
            layer.forward = partial(forward, layer)
    return model
