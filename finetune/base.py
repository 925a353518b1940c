"""The base model that is trained on: found on the disk or in the hub cache, and identified by the hash of its files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench.errors import CandidateError
from bnbench.extras import require

_READ = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class Base:
    """`name` and `revision` as the user gave them, the `folder` that holds the files, and a `sha256` over all that it
    reads.
    """

    name: str
    revision: str | None
    folder: Path
    sha256: str


def resolve_base(
    name: str, revision: str | None = None, *, folder: Path | None = None, trust_remote_code: bool = False
) -> Base:
    """Finds a base by folder or hub id. `folder` overrides where the files lie when `name` is only what the adapter
    should say.

    Honours `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE`. Raises CandidateError when it is not there, has no safetensors
    weights, or no tokenizer.
    """
    patterns = (*_READ, "*.py") if trust_remote_code else _READ
    place = folder or (Path(name) if Path(name).is_dir() else _from_hub(name, revision, patterns))
    files = sorted(f for pattern in patterns for f in place.glob(pattern))
    _check_files(name, {f.name for f in files}, place)
    return Base(name, revision, place, _sha256(files))


def _from_hub(name: str, revision: str | None, patterns: Iterable[str]) -> Path:
    hub = require("huggingface_hub", extra="models")
    spelt = name if revision is None else f"{name}@{revision}"
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise CandidateError(f"base {name}: no such folder")
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CandidateError(
            f"base {spelt}: neither a folder nor in the hub cache, and the hub gave nothing ({reason}). "
            f"Download it where there is a network: hf download {name}"
        ) from None


def _check_files(name: str, names: set[str], place: Path) -> None:
    if "config.json" not in names:
        raise CandidateError(f"base {name}: {place} holds no config.json; is it an adapter, or not a model folder?")
    if not any(n.endswith(".safetensors") for n in names):
        raise CandidateError(
            f"base {name}: no .safetensors weights in {place} (pickled weights are not loaded; convert them)"
        )
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}:
        raise CandidateError(
            f"base {name}: no tokenizer in {place}; copy tokenizer.json and tokenizer_config.json there"
        )


def _sha256(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {_file_sha256(file)}\n".encode())
    return total.hexdigest()


def _file_sha256(file: Path) -> str:
    """The hub cache names large files by their sha256, so 16 GB need not be read for it."""
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name := file.resolve().name):
        return name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_config(base: Base, *, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of the base."""
    transformers = require("transformers", extra="models")
    return transformers.AutoConfig.from_pretrained(base.folder, trust_remote_code=trust_remote_code)


def load_tokenizer(base: Base, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of the base."""
    transformers = require("transformers", extra="models")
    return transformers.AutoTokenizer.from_pretrained(base.folder, trust_remote_code=trust_remote_code)


def load_generation_config(base: Base) -> Any | None:
    """The generation configuration, whose end ids are stops too; None where the base ships none."""
    if not (base.folder / "generation_config.json").is_file():
        return None
    transformers = require("transformers", extra="models")
    return transformers.GenerationConfig.from_pretrained(base.folder)
