"""Candidates: what is to be evaluated. Everything that files can tell is checked here, before a model is loaded.

On the command line: `--base ID[@revision]`, `--adapter ID[@revision]` (repeatable), `--predictions FILE` (repeatable),
each with an optional `name=` in front. Without any, the bundled demo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bnbench.data.files import check_file
from bnbench.errors import BnbenchError, CandidateError, CorpusError
from bnbench.models.hub import BUNDLED, ModelFiles, file_sha256, find_model, hub_id, locate, with_weights

Kind = Literal["base", "adapter", "predictions"]

DEMO_BASE = f"demo-base={BUNDLED}base"
DEMO_ADAPTER = f"demo-adapter={BUNDLED}adapter"
# They live in front of the model, not in its layers, so their prompts would not be the base's.
_VIRTUAL_TOKENS = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT"}


@dataclass(frozen=True)
class Candidate:
    """One thing that answers: a base model, an adapter on one, or recorded replies.

    `location` is the folder, hub id or file as it was given; `revision` the commit it was resolved to, empty for a
    folder or file; `folder` where its files lie. An adapter also has its `base` with that one's revision and folder.
    `weights_sha256` is of the model's, adapter's or predictions file. A model of a backend that reads no files here
    has its location and revision as they were given, and nothing else.
    """

    name: str
    kind: Kind
    location: str
    revision: str = ""
    base: str | None = None
    folder: str = ""
    base_revision: str = ""
    base_folder: str = ""
    weights_sha256: str = ""


@dataclass(frozen=True)
class Spec:
    """A candidate as it was spelt: `[name=]location[@revision]`."""

    name: str
    location: str
    revision: str

    @property
    def given(self) -> str:
        """Location and revision as the user wrote them."""
        return f"{self.location}@{self.revision}" if self.revision else self.location


@dataclass(frozen=True)
class _Adapter:
    """An adapter that was found, and the base that its configuration names."""

    spec: Spec
    files: ModelFiles
    base: str
    base_revision: str


def parse_spec(text: str, *, revisions: bool = True) -> Spec:
    """Reads `[name=]location[@revision]`. What exists as a path is a path, whatever signs it holds."""
    name, sign, rest = text.partition("=")
    if not sign or "/" in name or "\\" in name or Path(text).exists():
        name, rest = "", text
    location, sign, revision = rest.rpartition("@")
    if not (revisions and sign) or "/" in revision or Path(rest).exists():
        location, revision = rest, ""
    if not location:
        raise CandidateError(f"{text!r} names no model: write [name=]ID[@revision]")
    label = name or Path(location).name or Path(location).resolve().name
    return Spec(label if name or not revision else f"{label}@{revision}", location, revision)


def parse_candidates(
    base: str | None = None,
    adapters: Sequence[str] = (),
    predictions: Sequence[str] = (),
    *,
    trust_remote_code: bool = False,
    needs_files: bool = True,
) -> tuple[Candidate, ...]:
    """What the command line names, checked and resolved: the base first, then its adapters, then recorded replies.

    An adapter without `base` brings the base that its configuration names. With nothing given, the bundled demo.
    `needs_files` is the backend's: False takes bases and adapters by the names that it knows them by.

    Raises:
        CandidateError: one clear line for a missing base, an adapter of another base, pickled weights, a broken
            configuration, shapes that do not fit, adapters of different bases, or two candidates of one name.
        MissingExtraError: a hub id is named and huggingface_hub is not installed.
    """
    if base is None and not adapters and not predictions:
        if not needs_files:
            raise CandidateError(
                "the bundled models are files, which this backend reads none of: name a model with --base"
            )
        base, adapters = DEMO_BASE, [DEMO_ADAPTER]
    given = None if base is None else parse_spec(base)
    found: list[Candidate] = []
    if not needs_files:
        if given:
            found.append(Candidate(given.name, "base", given.location, given.revision))
        for adapter in map(parse_spec, adapters):
            on = given.location if given else None
            found.append(Candidate(adapter.name, "adapter", adapter.location, adapter.revision, on))
    elif given or adapters:
        found += _models(given, [_find_adapter(parse_spec(text)) for text in adapters], trust_remote_code)
    for text in predictions:
        spec = parse_spec(text, revisions=False)
        path = Path(spec.location)
        try:
            check_file(path)
        except CorpusError as error:
            raise CandidateError(f"predictions {error}") from None
        name = spec.name if spec.name != path.name else path.stem
        folder, sha = str(path.parent), file_sha256(path)
        found.append(Candidate(name, "predictions", spec.location, folder=folder, weights_sha256=sha))
    names = [candidate.name for candidate in found]
    for name in names:
        if names.count(name) > 1:
            raise CandidateError(
                f"two candidates are called {name!r}: put a name in front of one, such as --adapter mine=…"
            )
    return tuple(found)


def missing(models: Sequence[str], predictions: Sequence[str]) -> list[str]:
    """A line for each of these that is not there; looks no further, and fetches no weights."""
    faults = []
    for text in models:
        try:
            spec = parse_spec(text)
            locate(f"model {spec.given}", spec.location, spec.revision)
        except BnbenchError as error:
            faults.append(str(error))
    for text in predictions:
        try:
            check_file(Path(parse_spec(text, revisions=False).location))
        except BnbenchError as error:
            faults.append(f"predictions {error}")
    return faults


def _find_adapter(spec: Spec) -> _Adapter:
    label = f"adapter {spec.given}"
    files = locate(label, spec.location, spec.revision)
    if "adapter_config.json" not in files.names() and "config.json" in files.names():
        raise CandidateError(f"{label}: it is a whole model (config.json, no adapter_config.json); give it as --base")
    config = files.read_json("adapter_config.json")
    kind = config.get("peft_type")
    if kind in _VIRTUAL_TOKENS:
        raise CandidateError(f"{label}: adapters of type {kind} add tokens to the prompt and are not supported")
    if kind == "XLORA":
        raise CandidateError(f"{label}: adapters of type XLORA load further adapters and are not supported")
    needed = ["peft_type", *(["r", "target_modules"] if kind == "LORA" else [])]
    if lacking := [key for key in needed if not config.get(key)]:
        raise CandidateError(
            f"{label}: {files.folder / 'adapter_config.json'} lacks {', '.join(lacking)}; save it again with PEFT"
        )
    base, revision = (str(config.get(key) or "") for key in ("base_model_name_or_path", "revision"))
    return _Adapter(spec, with_weights(files, spec.revision), base, revision)


def _models(given: Spec | None, adapters: Sequence[_Adapter], trust_remote_code: bool) -> list[Candidate]:
    """The base, given or named by the adapters, and the adapters that fit on it."""
    spec = _choose_base(given, adapters)
    files = find_model(f"base {spec.given}", spec.location, spec.revision, trust_remote_code=trust_remote_code)
    shapes, config = files.shapes(), files.read_json("config.json")
    for adapter in adapters:
        _check_shapes(adapter.files, files, shapes, config)
    base = Candidate(spec.name, "base", spec.location, files.commit, None, str(files.folder))
    found = [replace(base, weights_sha256=files.weights_sha256())]
    for adapter in adapters:
        own = adapter.files
        place = (base.location, str(own.folder), base.revision, base.folder, own.weights_sha256())
        found.append(Candidate(adapter.spec.name, "adapter", adapter.spec.location, own.commit, *place))
    return found


def _choose_base(given: Spec | None, adapters: Sequence[_Adapter]) -> Spec:
    """The base that was given, or the one that all adapters name; CandidateError where they do not agree."""
    for adapter in adapters:
        label, folder = adapter.files.label, adapter.files.folder
        if given is None and not adapter.base:
            where = folder / "adapter_config.json"
            raise CandidateError(f"{label}: {where} lacks base_model_name_or_path; name the base with --base")
        if given and adapter.base and not _is_same(given.location, adapter.base, folder):
            raise CandidateError(
                f"{label}: it was trained on {adapter.base}, not on {given.location}; leave out --base, "
                f"or, if both are the same weights, put {given.location} as base_model_name_or_path into its "
                "adapter_config.json"
            )
    if given:
        return given
    first, *others = adapters
    for other in others:
        if not _is_same(first.base, other.base, other.files.folder) or first.base_revision != other.base_revision:
            raise CandidateError(
                f"the adapters belong to different bases, {first.spec.given} to {first.base} and {other.spec.given} to "
                f"{other.base}; evaluate them in two runs and rank these together with `bnbench compare`"
            )
    # A relative folder may be meant from where the adapter lies.
    beside = first.files.folder / first.base
    location = str(beside) if not Path(first.base).is_dir() and beside.is_dir() else first.base
    return Spec(Path(first.base).name, location, first.base_revision)


def _is_same(given: str, stated: str, adapter: Path) -> bool:
    """Whether two spellings mean one base: equal, one folder, a hub id and its snapshot, a copy by name or content."""
    folders = [p.resolve() for p in (Path(stated), adapter / stated) if p.is_dir()]
    if given == stated or Path(given).resolve() in folders:
        return True
    mine, theirs = (hub_id(Path(text)) or text for text in (given, stated))
    if mine == theirs or not Path(given).is_dir():
        return mine == theirs
    if not folders:
        return Path(mine).name == Path(theirs).name
    weights = ModelFiles("base", given, "", Path(given)).weights_sha256()
    return any(ModelFiles("base", stated, "", folder).weights_sha256() == weights for folder in folders)


def _check_shapes(
    adapter: ModelFiles, base: ModelFiles, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> None:
    """Each LoRA matrix, and each layer saved whole, must fit the base's weight (out × in) of the same name."""
    if "quantization_config" in config:
        return  # packed weights have shapes of their own
    mine = {name.removeprefix("base_model.model."): shape for name, shape in adapter.shapes().items()}
    known = {name: f"{name.rpartition('.lora_')[0]}.weight" if ".lora_" in name else name for name in mine}
    if not any(weight in shapes for weight in known.values()):
        return  # other names inside, as in multimodal models: PEFT maps them, and the logits are compared later
    for name, weight in known.items():
        if weight not in shapes and ".lora_" in name:
            raise CandidateError(
                f"{adapter.label}: it changes {weight}, which {base.label} does not have; it belongs to another base"
            )
        own, its, reason = mine[name], shapes.get(weight, ()), ""
        if len(own) != 2 or len(its) != 2:
            continue
        if ".lora_A." in name and own[1] != its[1]:
            reason = f"takes {own[1]} inputs, the base's weight {its[1]}"
        elif ".lora_B." in name and own[0] != its[0]:
            reason = f"gives {own[0]} outputs, the base's weight {its[0]}"
        elif ".lora_" not in name and own != its:
            reason = f"is {own[0]} x {own[1]}, the base's is {its[0]} x {its[1]}"
        if reason:
            raise CandidateError(
                f"{adapter.label}: it does not fit {base.label}: {name} {reason}; it belongs to another base"
            )
