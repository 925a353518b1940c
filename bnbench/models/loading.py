"""Weights into memory: all that a checkpoint holds and all that its model needs, or one line that says what is wrong.

For evaluation and training alike. What transformers, peft, tokenizers and quantisers raise ends here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from bnbench.errors import BnbenchError, CandidateError, require
from bnbench.models.hub import ModelFiles
from bnbench.progress import quiet


@contextmanager
def explained(label: str, fault: str) -> Iterator[None]:
    """Makes one CandidateError of whatever a library raises in the block, and keeps the libraries quiet meanwhile."""
    try:
        with quiet():
            yield
    except BnbenchError:
        raise
    # A configuration or a checkpoint can make a library raise anything, with a traceback that names its own code.
    except Exception as error:
        why = " ".join(str(error).split())
        raise CandidateError(f"{label}: {fault} ({type(error).__name__}: {why[:300]})") from error


def load_config(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a causal language model; CandidateError where it is broken, or of another kind of model."""
    transformers = require("transformers", extra="models")
    with explained(files.label, f"{files.folder / 'config.json'} cannot be used"):
        config = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    if (
        "auto_map" not in files.read_json("config.json")
        and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        kind = getattr(config, "model_type", "")
        raise CandidateError(
            f"{files.label}: a model of type {kind} does not write on from a text, so it cannot answer"
        )
    return config


def load_base(files: ModelFiles, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """The model of a folder, with `from_pretrained`'s `options`, every tensor from its checkpoint.

    Raises CandidateError where it cannot be loaded, where tensors are missing, not used or of another shape, and for a
    model that sees the tokens which it is asked to write.
    """
    load = require("transformers", extra="models").AutoModelForCausalLM.from_pretrained
    always = {"use_safetensors": True, "trust_remote_code": trust_remote_code, "output_loading_info": True}
    with explained(files.label, "it cannot be loaded"):
        # A shape that differs is reported below, by name; left alone it is a report of many lines.
        model, info = load(files.folder, ignore_mismatched_sizes=True, **always, **options)
    shapes = [
        f"{name} (stored as {tuple(stored)}, the model's is {tuple(own)})"
        for name, stored, own in info["mismatched_keys"]
    ]
    refuse_partial(files.label, info["missing_keys"], info["unexpected_keys"], shapes)
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        why = (
            "it sees the words after the one it writes, as an encoder does: it would read its likelihoods off the text"
        )
        raise CandidateError(f"{files.label}: {why}")
    return model


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


def put_on(model: Any, files: ModelFiles, name: str) -> Any:
    """A PeftModel that has the adapter under this name, on a plain model or on one that has adapters already.

    Raises CandidateError where it does not fit, or where a tensor of it is missing or not used.
    """
    peft = require("peft", extra="models")
    # PEFT has no use_safetensors: it opens a pickle where this file is not there (any more).
    if not (files.folder / "adapter_model.safetensors").is_file():
        raise CandidateError(f"{files.label}: there is no adapter_model.safetensors in {files.folder}")
    with explained(files.label, "it cannot be put on its base"):
        if not isinstance(model, peft.PeftModel):
            model = peft.PeftModel.from_pretrained(model, files.folder, adapter_name=name)
        result = model.load_adapter(files.folder, name)  # a second time, which alone says what was loaded
    refuse_partial(files.label, result.missing_keys, result.unexpected_keys)
    return model
