"""Candidates: what is to be evaluated. Everything that files can tell is checked here, before a model is loaded.

On the command line: `--base ID[@revision]`, `--adapter ID[@revision]` (repeatable), `--predictions FILE` (repeatable),
each with an optional `name=` in front. Without any, the bundled demo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bnbench.data.files import check_file
from bnbench.errors import BnbenchError, CandidateError, CorpusError
from bnbench.models.files import BUNDLED, CODE, SMALL, ModelFiles, file_sha256, hub_id, locate, remote_names

Kind = Literal["base", "adapter", "predictions"]

_TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json"}
# They live in front of the model, not in its layers, so their prompts would not be the base's.
_VIRTUAL_TOKENS = {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT"}


@dataclass(frozen=True)
class Candidate:
    """One thing that answers: a base model, an adapter on one, or recorded replies.

    `location` is the folder, hub id or file as it was given; `revision` the commit it was resolved to, empty for a
    folder or file; `folder` where its files lie. An adapter also has its `base` with that one's revision and folder.
    `weights_sha256` is of the model's, adapter's or predictions file.
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
) -> tuple[Candidate, ...]:
    """What the command line names, checked and resolved: the base first, then its adapters, then recorded replies.

    An adapter without `base` brings the base that its configuration names. With nothing given, the bundled demo.

    Raises:
        CandidateError: one clear line for a missing base, an adapter of another base, pickled weights, a broken
            configuration, shapes that do not fit, adapters of different bases, or two candidates of one name.
        MissingExtraError: a hub id is named and huggingface_hub is not installed.
    """
    if base is None and not adapters and not predictions:
        base, adapters = demo_base(), [demo_adapter()]
    found = [_find_adapter(parse_spec(text)) for text in adapters]
    models: list[Candidate] = []
    if base is not None or found:
        spec = _choose_base(parse_spec(base) if base is not None else None, found)
        files = find_base(spec, trust_remote_code=trust_remote_code)
        models = _models(spec, files, found)
    candidates = (*models, *(_predictions(parse_spec(text, revisions=False)) for text in predictions))
    names = [c.name for c in candidates]
    for name in names:
        if names.count(name) > 1:
            raise CandidateError(
                f"two candidates are called {name!r}: put a name in front of one, such as --adapter mine=…"
            )
    return candidates


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


def find_base(spec: Spec, *, trust_remote_code: bool = False) -> ModelFiles:
    """A base model's files, with safetensors weights and a tokenizer; CandidateError otherwise."""
    label = f"base {spec.given}"
    small = (*SMALL, *CODE) if trust_remote_code else SMALL
    files = locate(label, spec.location, spec.revision, small)
    if "config.json" not in files.names():
        if "adapter_config.json" in files.names():
            raise CandidateError(f"{label}: it is an adapter, not a whole model; give it as --adapter")
        raise CandidateError(f"{label}: there is no config.json in {files.folder}, so this is not a model")
    if "auto_map" in files.read_json("config.json") and not trust_remote_code:
        raise CandidateError(
            f"{label}: it runs code of its own (auto_map in config.json); add --trust-remote-code if you trust it"
        )
    files.check_base()
    files = _with_weights(files, spec, small)
    if not files.names() & _TOKENIZERS:
        raise CandidateError(
            f"{label}: there is no tokenizer in {files.folder}; copy tokenizer.json and tokenizer_config.json there"
        )
    return files


def demo_base() -> str:
    """The bundled base, as `--base` would spell it."""
    return f"demo-base={BUNDLED}base"


def demo_adapter() -> str:
    """The bundled adapter, as `--adapter` would spell it."""
    return f"demo-adapter={BUNDLED}adapter"


def _find_adapter(spec: Spec) -> _Adapter:
    label = f"adapter {spec.given}"
    files = locate(label, spec.location, spec.revision)
    if "adapter_config.json" not in files.names() and "config.json" in files.names():
        raise CandidateError(f"{label}: it is a whole model (config.json, no adapter_config.json); give it as --base")
    config = files.read_json("adapter_config.json")
    needed = ["peft_type", *(["r", "target_modules"] if config.get("peft_type") == "LORA" else [])]
    if config.get("peft_type") in _VIRTUAL_TOKENS:
        raise CandidateError(
            f"{label}: adapters of type {config['peft_type']} add tokens to the prompt and are not supported"
        )
    if config.get("peft_type") == "XLORA":
        raise CandidateError(f"{label}: adapters of type XLORA load further adapters and are not supported")
    missing = [key for key in needed if not config.get(key)]
    if missing:
        raise CandidateError(
            f"{label}: {files.folder / 'adapter_config.json'} lacks {', '.join(missing)}; save it again with PEFT"
        )
    files = _with_weights(files, spec, SMALL)
    return _Adapter(spec, files, str(config.get("base_model_name_or_path") or ""), str(config.get("revision") or ""))


def _with_weights(files: ModelFiles, spec: Spec, patterns: Sequence[str]) -> ModelFiles:
    """The same files with their safetensors weights fetched; CandidateError where they are missing or not whole."""
    names = files.names() | (remote_names(spec.location, spec.revision) if files.revision else set())
    if files.revision and names.intersection(files.wanted()):
        files = locate(files.label, spec.location, spec.revision, (*patterns, *files.wanted()))
    single, *shards = files.wanted()
    missing = sorted(set(shards) - files.names())
    if missing:
        raise CandidateError(
            f"{files.label}: {missing[0]} is missing from {files.folder} ({len(missing)} files are); fetch it again"
        )
    if files.weights():
        return files
    pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        raise CandidateError(
            f"{files.label}: its weights are pickled ({pickles[0]}), and a pickle can run any code; only "
            "safetensors are loaded. Load it where you trust it and save it again with save_pretrained"
        )
    raise CandidateError(f"{files.label}: there are no weights in {files.folder}: no {single}")


def _choose_base(given: Spec | None, adapters: Sequence[_Adapter]) -> Spec:
    """The base that was given, or the one that all adapters name."""
    for adapter in adapters:
        if not adapter.base and given is None:
            where = adapter.files.folder / "adapter_config.json"
            raise CandidateError(
                f"{adapter.files.label}: {where} lacks base_model_name_or_path; name the base with --base"
            )
    if given is None:
        return _common_base(adapters)
    for adapter in adapters:
        if adapter.base and not _is_same(given.location, adapter.base, adapter.files.folder):
            raise CandidateError(
                f"{adapter.files.label}: it was trained on {adapter.base}, not on {given.location}; leave out --base, "
                f"or, if both are the same weights, put {given.location} as base_model_name_or_path into its "
                "adapter_config.json"
            )
    return given


def _common_base(adapters: Sequence[_Adapter]) -> Spec:
    first = adapters[0]
    for other in adapters[1:]:
        if not _is_same(first.base, other.base, other.files.folder) or first.base_revision != other.base_revision:
            raise CandidateError(
                f"the adapters belong to different bases, {first.spec.given} to {first.base} and {other.spec.given} to "
                f"{other.base}; evaluate them in two runs and rank these together with `bnbench compare`"
            )
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


def _models(spec: Spec, files: ModelFiles, adapters: Sequence[_Adapter]) -> list[Candidate]:
    shapes = files.shapes()
    config = files.read_json("config.json")
    for adapter in adapters:
        _check_shapes(adapter.files, files, shapes, config)
    base = Candidate(
        spec.name, "base", spec.location, files.revision, None, str(files.folder), weights_sha256=files.weights_sha256()
    )
    return [base, *(_adapter_candidate(a, base) for a in adapters)]


def _adapter_candidate(adapter: _Adapter, base: Candidate) -> Candidate:
    return Candidate(
        name=adapter.spec.name,
        kind="adapter",
        location=adapter.spec.location,
        revision=adapter.files.revision,
        base=base.location,
        folder=str(adapter.files.folder),
        base_revision=base.revision,
        base_folder=base.folder,
        weights_sha256=adapter.files.weights_sha256(),
    )


def _check_shapes(
    adapter: ModelFiles, base: ModelFiles, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> None:
    """Each LoRA matrix, and each layer saved whole, must fit the base's weight of the same name."""
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
        reason = _misfit(name, mine[name], shapes.get(weight))
        if reason:
            raise CandidateError(
                f"{adapter.label}: it does not fit {base.label}: {name} {reason}; it belongs to another base"
            )


def _misfit(name: str, mine: tuple[int, ...], base: tuple[int, ...] | None) -> str:
    """Why a tensor of the adapter cannot go with the base's weight (out x in); empty where it can."""
    if base is None or len(base) != 2 or len(mine) != 2:
        return ""
    if ".lora_A." in name:
        return "" if mine[1] == base[1] else f"takes {mine[1]} inputs, the base's weight {base[1]}"
    if ".lora_B." in name:
        return "" if mine[0] == base[0] else f"gives {mine[0]} outputs, the base's weight {base[0]}"
    return "" if ".lora_" in name or mine == base else f"is {mine[0]} x {mine[1]}, the base's is {base[0]} x {base[1]}"


def _predictions(spec: Spec) -> Candidate:
    path = Path(spec.location)
    try:
        check_file(path)
    except CorpusError as error:
        raise CandidateError(f"predictions {error}") from None
    name = spec.name if spec.name != path.name else path.stem
    return Candidate(name, "predictions", spec.location, folder=str(path.parent), weights_sha256=file_sha256(path))
