"""The base model that is trained on: found in a folder or the hub cache, identified by hashes of its files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bnbench.errors import CandidateError
from bnbench.extras import require
from bnbench.models.files import CODE, SMALL, ModelFiles, file_sha256, locate


@dataclass(frozen=True)
class Base:
    """A base on the disk. `name` and `revision` are as the user gave them, `commit` is what the hub made of them.

    `commit` is empty for a folder of one's own. `has_weights`: safetensors lie there too, not configuration alone.
    """

    name: str
    revision: str | None
    commit: str
    folder: Path
    has_weights: bool = True

    def hashes(self) -> dict[str, str]:
        """What makes this base this base, wherever it lies. The first call reads all its weights."""
        return dict(self._hashes)

    @cached_property
    def _hashes(self) -> dict[str, str]:
        weights = ModelFiles(f"base {self.name}", self.name, self.commit, self.folder).weights_sha256()
        return {"weights_sha256": weights, "config_sha256": file_sha256(self.folder / "config.json")}


def resolve_base(
    name: str,
    revision: str | None = None,
    *,
    folder: Path | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Base:
    """Finds a base by folder or hub id; `folder` is where the files lie if `name` is only what the adapter should say.

    Without `weights` the configuration and the tokenizer do, and no more is fetched. Raises CandidateError when the
    base is not there, has no safetensors weights (where they are asked for), or no tokenizer.
    """
    patterns = (*SMALL, *(CODE if trust_remote_code else ()))
    place = (str(folder) if folder else name, (revision or "") if folder is None else "")
    files = locate("base", *place, patterns)
    if weights and files.revision:  # its index says which files are its weights
        files = locate("base", *place, (*patterns, *files.wanted()))
    _check_files(name, files, weights)
    return Base(name, revision, files.revision, files.folder, bool(files.weights()))


def _check_files(name: str, files: ModelFiles, weights: bool) -> None:
    names, place = files.names(), files.folder
    if "config.json" not in names:
        raise CandidateError(f"base {name}: {place} holds no config.json; is it an adapter, or not a model folder?")
    files.check_base()
    if weights and not files.weights():
        raise CandidateError(f"base {name}: no .safetensors weights in {place} (pickled weights are not loaded)")
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}:
        raise CandidateError(
            f"base {name}: no tokenizer in {place}; copy tokenizer.json and tokenizer_config.json there"
        )


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
