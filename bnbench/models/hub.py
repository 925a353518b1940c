"""A model or an adapter on a disk or on the hub: found, checked, hashed, and read as far as needs no weights.

One place for evaluation, fine-tuning and publishing alike. safetensors only: a pickle runs code when it is opened.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from bnbench.errors import CandidateError, require
from bnbench.records import write_text

SMALL = ("*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges.txt")
REMEMBERED_FROM = 64 * 2**20  # bytes of a file whose hash is worth remembering
MOST_JSON = 2**28  # bytes; the largest tokenizers have 40 MB
BUNDLED = "bnbench-demo/"
"""`bnbench-demo/base` and `bnbench-demo/adapter` name the bundled models, wherever the package is installed."""

_ADAPTER = "adapter_config.json"
_INDEX = "model.safetensors.index.json"
TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model or adapter lies. `commit` is that of a hub snapshot, and empty for a folder of one's own. `label`
    is what messages call it ("base NAME"), `location` the folder or hub id as the user gave it.
    """

    label: str
    location: str
    commit: str
    folder: Path

    def names(self) -> frozenset[str]:
        """The names of the files in the folder, broken links left out; CandidateError for JSON that nobody needs."""
        found = [p for p in self.folder.iterdir() if p.is_file()]
        if huge := [p for p in found if p.suffix == ".json" and p.stat().st_size > MOST_JSON]:
            raise CandidateError(f"{self.label}: {huge[0]} is larger than {MOST_JSON >> 20} MiB, which no such file is")
        return frozenset(p.name for p in found)

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; CandidateError where it is missing or broken."""
        path = self.folder / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(value, dict):
                return value
            why = f"{path} holds no JSON object"
        except FileNotFoundError:
            why = f"there is no {name} in {self.folder}"
        except (OSError, ValueError, RecursionError) as error:
            why = f"{path} cannot be read as JSON ({error})"
        raise CandidateError(f"{self.label}: {why}")

    def wanted(self) -> tuple[str, ...]:
        """The names under which PEFT or transformers looks for weights: that of one file, then the index's shards."""
        names = self.names()
        if _ADAPTER in names:
            return ("adapter_model.safetensors",)
        shards = self.read_json(_INDEX).get("weight_map", {}) if _INDEX in names else {}
        if not isinstance(shards, dict):
            raise CandidateError(f"{self.label}: the weight_map of {self.folder / _INDEX} is no object; fetch it again")
        return ("model.safetensors", *sorted(set(map(str, shards.values()))))

    def weights(self) -> list[Path]:
        """The files that would be loaded, sorted by name; none where one is missing or is no safetensors file."""
        names, (single, *shards) = self.names(), self.wanted()
        loaded = [single] if single in names else shards
        is_whole = all(name in names and name.endswith(".safetensors") for name in loaded)
        return [self.folder / name for name in loaded] if is_whole else []

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name → shape, from the headers of the weights; CandidateError for a file that is not whole."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, tuple[int, ...]] = {}
        for path in self.weights():
            try:
                with safe_open(path, framework="np") as file:
                    found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                why = f"{path} is not a whole safetensors file ({error}); fetch it again"
                raise CandidateError(f"{self.label}: {why}") from None
        return found

    def weights_sha256(self) -> str:
        """Sha256 of the weights: of the one file, or over the names and hashes of several."""
        paths = self.weights()
        with ThreadPoolExecutor(8) as pool:  # hashing leaves the interpreter to others
            hashes = [(path.name, sha) for path, sha in zip(paths, pool.map(file_sha256, paths), strict=True)]
        if len(hashes) == 1:
            return hashes[0][1]
        return hashlib.sha256("".join(f"{name} {sha}\n" for name, sha in hashes).encode()).hexdigest()


@dataclass(frozen=True)
class Base(ModelFiles):
    """A base to train on. `name` and `revision` are as the user gave them, and what its adapter will record."""

    name: str = ""
    revision: str | None = None

    @cached_property
    def hashes(self) -> dict[str, str]:
        """What makes this base this base, wherever it lies. The first use reads all its weights."""
        return {"weights_sha256": self.weights_sha256(), "config_sha256": file_sha256(self.folder / "config.json")}


def file_sha256(path: Path) -> str:
    """Sha256 of a file. A large one is read once: what it was is remembered by place, size and times of change. What is
    remembered lies in BNBENCH_CACHE, else in ~/.cache/bnbench, where that can be written.
    """
    target = path.resolve()
    # The hub cache names large files by their hash, so these are not read at all.
    if path.is_symlink() and target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    seen = target.stat()
    # A file that was put in the place of another has another time of change, whatever its other times say.
    sign = "\0".join(map(str, (target, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino)))
    folder = Path(os.environ.get("BNBENCH_CACHE") or Path.home() / ".cache" / "bnbench")
    note = folder / "sha256" / hashlib.sha256(sign.encode("utf-8", "surrogateescape")).hexdigest()
    with contextlib.suppress(OSError, ValueError):  # not remembered, or damaged: read it
        if _SHA256.fullmatch(known := note.read_text(encoding="utf-8")):
            return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if seen.st_size >= REMEMBERED_FROM:
        with contextlib.suppress(OSError):
            write_text(note, found)
    return found


def locate(label: str, location: str, revision: str = "", patterns: Sequence[str] = SMALL) -> ModelFiles:
    """Finds a folder, a bundled model, or a hub id in the cache or on the hub; fetches the files that match `patterns`.

    Raises CandidateError for no such folder, one whose name is not UTF-8, or a hub id that cannot be had, with what to
    do about it, and MissingExtraError where a hub id is named and huggingface_hub is not installed.
    """
    if location.startswith(BUNDLED):
        demo = Path(str(resources.files("bnbench.demo") / "__init__.py")).resolve().parent  # a checkout may link files
        return ModelFiles(label, location, "", demo / location.removeprefix(BUNDLED))
    folder = Path(location).expanduser()
    if folder.is_dir():
        why = f"is a folder, which has no revision {revision!r}; leave out @{revision}" if revision else ""
        if str(folder) != str(folder).encode("utf-8", "replace").decode():
            why = "is a name that is not UTF-8, which not every library can open; rename the folder"
        if why:
            raise CandidateError(f"{label}: {location} {why}")
        return ModelFiles(label, location, "", folder)
    if folder.is_file() or not _HUB_ID.fullmatch(location):
        why = f"{location} is a file; name its folder" if folder.is_file() else f"there is no folder {location}"
        raise CandidateError(f"{label}: {why}")
    hub = _hub()
    cache = os.environ.get("HF_HUB_CACHE") or hub.constants.HF_HUB_CACHE
    try:
        wanted = {"revision": revision or None, "allow_patterns": list(patterns)}
        found = Path(hub.snapshot_download(location, **wanted, cache_dir=cache, local_files_only=is_offline()))
        return ModelFiles(label, location, found.name if found.parent.name == "snapshots" else "", found)
    except hub.errors.GatedRepoError:
        why = f"is gated: accept its licence at https://huggingface.co/{location} and set HF_TOKEN"
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError):
        why = "is neither a folder nor on the hub (or it is private: set HF_TOKEN)"
    except hub.errors.LocalEntryNotFoundError:
        offline = "HF_HUB_OFFLINE is set" if is_offline() else "the hub cannot be reached"
        fetch = f"hf download {location}" + (f" --revision {revision}" if revision else "")
        why = f"is not in the hub cache {cache} nor a folder here, and {offline}; "
        why += f"where there is a network, fetch it with `{fetch}`"
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        why = f"cannot be fetched ({str(error).strip().splitlines()[0]})"
    raise CandidateError(f"{label}: {location}@{revision or 'main'} {why}")


def with_weights(files: ModelFiles, revision: str = "", patterns: Sequence[str] = SMALL) -> ModelFiles:
    """The same files with their safetensors weights fetched; CandidateError where they are missing or not whole."""
    if files.commit:  # only now does a base's index say which files are its weights
        files = locate(files.label, files.location, revision, (*patterns, *files.wanted()))
    names, (single, *shards) = files.names(), files.wanted()
    if lost := sorted(set(shards) - names):
        why = f"{lost[0]} is missing from {files.folder} ({len(lost)} files are); fetch it again"
        raise CandidateError(f"{files.label}: {why}")
    if files.weights():
        return files
    if files.commit and not is_offline():
        # Pickles are never fetched, so only the hub knows of them. Only better words depend on it.
        with contextlib.suppress(OSError, ValueError, _hub().errors.HfHubHTTPError):
            names |= set(_hub().list_repo_files(files.location, revision=revision or None))
    why = f"there are no weights in {files.folder}: no {single}; save them there with save_pretrained"
    if pickles := sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))):
        why = f"its weights are pickled ({pickles[0]}), and a pickle can run any code; only safetensors are loaded. "
        why += "Load it where you trust it and save it again with save_pretrained"
    raise CandidateError(f"{files.label}: {why}")


def find_model(
    label: str, location: str, revision: str = "", *, trust_remote_code: bool = False, weights: bool = True
) -> ModelFiles:
    """A whole model: its configuration, its tokenizer and, unless `weights` is False, its safetensors weights. Raises
    CandidateError: one line for what is missing, or for what would load something else, or run code.
    """
    patterns = (*SMALL, "*.py") if trust_remote_code else SMALL
    files = locate(label, location, revision, patterns)
    names, place = files.names(), files.folder
    config = files.read_json("config.json") if "config.json" in names else {}
    why = ""
    if "config.json" not in names:
        only = f"only an {_ADAPTER}: to evaluate an adapter, give it as --adapter"
        why = f"there is no config.json in {place}, {only if _ADAPTER in names else 'so this is not a model'}"
    elif "auto_map" in config and not trust_remote_code:
        why = "it runs code of its own (auto_map in config.json); add --trust-remote-code if you trust it"
    # Two ways in which transformers would load something else, or something more, than `weights()`.
    elif _ADAPTER in names:
        why = f"there is an {_ADAPTER} beside config.json in {place}, so an adapter would be loaded with it; "
        why += "give the folder as --adapter, or move the adapter to a folder of its own"
    elif named := config.get("transformers_weights"):
        why = f"its config.json names weights of its own (transformers_weights: {named}), which is not supported; "
        why += "load it where you trust it and save it again with save_pretrained"
    elif not names & TOKENIZERS:
        why = f"there is no tokenizer in {place}; copy tokenizer.json and tokenizer_config.json there"
    if why:
        raise CandidateError(f"{label}: {why}")
    return with_weights(files, revision, patterns) if weights else files


def resolve_base(
    name: str, revision: str | None = None, *, folder: Path | None = None, trust_remote_code: bool = False,
    weights: bool = True,
) -> Base:  # fmt: skip
    """A base to train on, by folder or hub id; raises as `find_model` does, and fetches weights only with `weights`.
    `folder` is where the files lie if `name` is only what the adapter should say.
    """
    location, asked = (name, revision or "") if folder is None else (str(folder), "")
    found = find_model(f"base {name}", location, asked, trust_remote_code=trust_remote_code, weights=weights)
    return Base(**vars(found), name=name, revision=revision)


def hub_id(folder: Path) -> str | None:
    """The hub id that a folder of the hub cache belongs to (`models--owner--name/snapshots/<commit>`), else None."""
    parts = folder.resolve().parts
    repository = parts[-3] if len(parts) > 3 and parts[-2] == "snapshots" else ""
    return repository.removeprefix("models--").replace("--", "/") if repository.startswith("models--") else None


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` is set, now or when huggingface_hub was imported."""
    return _hub().constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _hub() -> Any:
    """huggingface_hub with the two submodules that it does not load by itself."""
    *_, hub = (require(f"huggingface_hub{part}", extra="models") for part in (".constants", ".errors", ""))
    return hub
