"""The files of models and adapters: found in a folder or the hub cache, hashed, read as far as their headers.

Nothing here loads a model. safetensors only: a pickle runs code when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bnbench.errors import CandidateError
from bnbench.extras import require

SMALL = ("*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges.txt")
CODE = ("*.py",)
BUNDLED = "bnbench-demo/"
"""`bnbench-demo/base` and `bnbench-demo/adapter` name the bundled models, wherever the package is installed."""

_ADAPTER = "adapter_config.json"
_INDEX = "model.safetensors.index.json"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model or adapter lies. `revision` is the commit of a hub snapshot and empty for a folder of one's own."""

    label: str
    location: str
    revision: str
    folder: Path

    def names(self) -> frozenset[str]:
        """The names of the files in the folder, broken links left out."""
        return frozenset(p.name for p in self.folder.iterdir() if p.is_file())

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; CandidateError where it is missing or broken."""
        path = self.folder / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CandidateError(f"{self.label}: there is no {name} in {self.folder}") from None
        except (OSError, ValueError) as error:
            raise CandidateError(f"{self.label}: {path} cannot be read as JSON ({error})") from None
        if not isinstance(value, dict):
            raise CandidateError(f"{self.label}: {path} holds no JSON object")
        return value

    def wanted(self) -> tuple[str, ...]:
        """The names under which PEFT or transformers looks for weights: that of one file, then the index's shards."""
        names = self.names()
        if _ADAPTER in names:
            return ("adapter_model.safetensors",)
        shards = self.read_json(_INDEX).get("weight_map", {}).values() if _INDEX in names else ()
        return ("model.safetensors", *sorted(set(map(str, shards))))

    def weights(self) -> list[Path]:
        """The files that would be loaded, sorted by name; none where one is missing or is no safetensors file.

        Other safetensors files in the folder are nobody's weights.
        """
        names, (single, *shards) = self.names(), self.wanted()
        loaded = [single] if single in names else shards
        is_whole = all(name in names and name.endswith(".safetensors") for name in loaded)
        return [self.folder / name for name in loaded] if is_whole else []

    def check_base(self) -> None:
        """Raises CandidateError where transformers would load something else, or something more, than `weights`."""
        if _ADAPTER in self.names():
            raise CandidateError(
                f"{self.label}: there is an {_ADAPTER} beside config.json in {self.folder}, so an adapter would be "
                "loaded with it; give the folder as --adapter, or move the adapter to a folder of its own"
            )
        if named := self.read_json("config.json").get("transformers_weights"):
            raise CandidateError(
                f"{self.label}: its config.json names weights of its own (transformers_weights: {named}), which is not "
                "supported; load it where you trust it and save it again with save_pretrained"
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name → shape, from the headers of the weights."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.weights():
            found |= {k: tuple(v["shape"]) for k, v in self._header(path).items() if k != "__metadata__"}
        return found

    def weights_sha256(self) -> str:
        """Sha256 of the weights: of the one file, or over the names and hashes of several."""
        hashes = [(path.name, file_sha256(path)) for path in self.weights()]
        if len(hashes) == 1:
            return hashes[0][1]
        return hashlib.sha256("".join(f"{name} {sha}\n" for name, sha in hashes).encode()).hexdigest()

    def _header(self, path: Path) -> Mapping[str, Any]:
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if not 0 < size <= path.stat().st_size:
                    raise ValueError("the header is longer than the file")
                header: dict[str, Any] = json.loads(file.read(size))
                return header
        except (OSError, ValueError) as error:
            raise CandidateError(
                f"{self.label}: {path} is not a whole safetensors file ({error}); fetch it again"
            ) from None


def file_sha256(path: Path) -> str:
    """Sha256 of a file. The hub cache names large files by theirs, so 16 GB need not be read."""
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(label: str, location: str, revision: str = "", patterns: Sequence[str] = SMALL) -> ModelFiles:
    """Finds a folder, a bundled model, or a hub id in the cache or on the hub; fetches the files that match `patterns`.

    `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are honoured.

    Raises:
        CandidateError: no such folder, or a hub id that cannot be had, with what to do about it.
    """
    if location.startswith(BUNDLED):
        return ModelFiles(
            label, location, "", Path(str(resources.files("bnbench.demo"))) / location.removeprefix(BUNDLED)
        )
    folder = Path(location).expanduser()
    if folder.is_dir():
        if revision:
            raise CandidateError(
                f"{label}: {location} is a folder, which has no revision {revision!r}; leave out @{revision}"
            )
        return ModelFiles(label, location, "", folder)
    if not _HUB_ID.fullmatch(location):
        raise CandidateError(f"{label}: there is no folder {location}")
    found = _snapshot(label, location, revision, patterns)
    return ModelFiles(label, location, found.name if found.parent.name == "snapshots" else "", found)


def hub_id(folder: Path) -> str | None:
    """The hub id that a folder of the hub cache belongs to (`models--owner--name/snapshots/<commit>`), else None."""
    parts = folder.resolve().parts
    repository = parts[-3] if len(parts) > 3 and parts[-2] == "snapshots" else ""
    return repository.removeprefix("models--").replace("--", "/") if repository.startswith("models--") else None


def remote_names(location: str, revision: str) -> frozenset[str]:
    """The names of all files of a hub repository; empty when the hub cannot be asked."""
    hub = _hub()
    if is_offline() or Path(location).is_dir():
        return frozenset()
    try:
        return frozenset(hub.list_repo_files(location, revision=revision or None))
    except (OSError, ValueError, hub.errors.HfHubHTTPError):
        # Only better words for an error that is raised anyway depend on this.
        return frozenset()


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` is set, now or when huggingface_hub was imported."""
    hub = _hub()
    return hub.constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _hub() -> Any:
    """huggingface_hub with the two submodules that it does not load by itself."""
    for module in ("constants", "errors"):
        require(f"huggingface_hub.{module}", extra="models")
    return require("huggingface_hub", extra="models")


def _snapshot(label: str, location: str, revision: str, patterns: Sequence[str]) -> Path:
    hub = _hub()
    cache = os.environ.get("HF_HUB_CACHE") or hub.constants.HF_HUB_CACHE
    wanted = f"{location}@{revision or 'main'}"
    try:
        return Path(
            hub.snapshot_download(
                location,
                revision=revision or None,
                cache_dir=cache,
                allow_patterns=list(patterns),
                local_files_only=is_offline(),
            )
        )
    except hub.errors.GatedRepoError:
        why = f"is gated: accept its licence at https://huggingface.co/{location} and set HF_TOKEN"
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError):
        why = "is neither a folder nor on the hub (or it is private: set HF_TOKEN)"
    except hub.errors.LocalEntryNotFoundError:
        offline = "HF_HUB_OFFLINE is set" if is_offline() else "the hub cannot be reached"
        fetch = f"hf download {location}" + (f" --revision {revision}" if revision else "")
        why = f"is not in the hub cache {cache}, and {offline}; where there is a network, fetch it with `{fetch}`"
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        why = f"cannot be fetched ({str(error).strip().splitlines()[0]})"
    raise CandidateError(f"{label}: {wanted} {why}")
