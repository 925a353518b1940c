"""Candidates: what is to be evaluated. Everything that files can tell is checked here, before a model is loaded.

On the command line: `--base ID[@revision]`, `--adapter ID[@revision]` (repeatable), `--endpoint URL#MODEL`
(repeatable) and `--predictions FILE` (repeatable), each with an optional `name=` in front. Without any, the demo.
"""

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from bnbench.data.files import check_file
from bnbench.errors import BnbenchError, CandidateError, CorpusError, UsageError
from bnbench.models.hub import BUNDLED, ModelFiles, file_sha256, find_model, hub_id, locate, with_weights
from bnbench.models.loading import import_libraries

log = logging.getLogger("bnbench.models")

Kind = Literal["base", "adapter", "endpoint", "predictions"]

DEMO_BASE = f"demo-base={BUNDLED}base"
DEMO_ADAPTER = f"demo-adapter={BUNDLED}adapter"
# PEFT's kinds that live in a model's layers, where the same base answers with them on or off. The others stand in the
# prompt or the cache, choose by task, or load further adapters.
SUPPORTED = frozenset((
    "LORA", "ADALORA", "BOFT", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR",
    "MISS", "OFT", "RANDLORA", "ROAD", "SHIRA", "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT",
))  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One thing that answers: a base model, an adapter on one, a model behind servers, or recorded replies.

    `location` is the folder, hub id or file as it was given; `revision` the commit it was resolved to, empty for a
    folder or file; `folder` where its files lie. `weights_sha256` is of the model's, adapter's or predictions file. A
    model of a backend that reads no files here has its location and revision as they were given, and nothing else;
    `urls` are those of the servers (with /v1) of an endpoint, whose `location` is the model's name there.
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
    urls: tuple[str, ...] = ()


class Spec(NamedTuple):
    """A candidate as it was spelt, `[name=]location[@revision]`; `given` is the part behind the name."""

    name: str
    location: str
    revision: str
    given: str


def parse_spec(text: str, *, revisions: bool = True) -> Spec:
    """Reads `[name=]location[@revision]`. What exists as a path is a path, whatever signs it holds."""
    name, sign, given = text.partition("=")
    if not sign or "/" in name or "\\" in name or Path(text).exists():
        name, given = "", text
    location, sign, revision = given.rpartition("@")
    if not (revisions and sign) or "/" in revision or Path(given).exists():
        location, revision = given, ""
    if not location:
        raise CandidateError(f"{text!r} names no model: write [name=]ID[@revision]")
    label = name or Path(location).name or Path(location).resolve().name
    label = label.encode("utf-8", "replace").decode()  # a file's name need not be UTF-8, and files with it are
    return Spec(label if name or not revision else f"{label}@{revision}", location, revision, given)


def by_name(texts: Sequence[str], candidates: Sequence[Candidate | Spec]) -> dict[str, str]:
    """What was given as [NAME=]TEXT, by the candidate's name, or by "" for all; UsageError where it is given twice."""
    found, names = dict[str, str](), {candidate.name for candidate in candidates}
    for text in texts:
        name, _, rest = text.partition("=")
        name, own = (name, rest) if name in names else ("", text)
        if name in found:
            raise UsageError(f"{found[name]!r} and {own!r} are both given for {name or 'all'}; which of them is meant?")
        found[name] = own
    return found


def parse_candidates(
    base: str | None = None, adapters: Sequence[str] = (), predictions: Sequence[str] = (),
    endpoints: Sequence[str] = (), *, trust_remote_code: bool = False, needs_files: bool = True,
) -> tuple[Candidate, ...]:  # fmt: skip
    """What the command line names, checked and resolved: the base, its adapters, endpoints, recorded replies.

    An adapter without `base` brings the base that its configuration names. With nothing given, the bundled demo.
    `needs_files` is the backend's: False takes bases and adapters by the names that it knows them by. Raises
    CandidateError for what is missing, broken, pickled, of another base, or named like another candidate, and
    MissingExtraError where a hub id is named and huggingface_hub is not installed.
    """
    if base is None and not adapters and not predictions and not endpoints:
        if not needs_files:
            raise CandidateError("this backend reads no files, so not the bundled models: name a model with --base")
        base, adapters = DEMO_BASE, [DEMO_ADAPTER]
    given, on = None if base is None else parse_spec(base), [parse_spec(text) for text in adapters]
    if needs_files:
        found = _models(given, on, trust_remote_code) if given or on else []
    else:
        found = [Candidate(given.name, "base", given.location, given.revision)] if given else []
        found += [Candidate(one.name, "adapter", one.location, one.revision, given and given.location) for one in on]
    # Several URLs of one name and model are one candidate; the key to a server is no part of it.
    served = dict[tuple[str, str], Candidate]()
    for text in endpoints:
        name, sign, rest = text.partition("=")
        name, rest = (name, rest) if sign and "/" not in name else ("", text)
        advice = "write --endpoint [name=]URL#MODEL, such as --endpoint http://127.0.0.1:8000#my-model"
        try:
            url = urlsplit(rest)
            host = f"{url.hostname}:{url.port}" if url.port else url.hostname
        except ValueError as error:
            raise CandidateError(f"endpoint {rest!r}: {error}; {advice}") from None
        if url.username is not None or url.password is not None:
            raise CandidateError(f"endpoint of {host}: no password in a URL, please: set BNBENCH_API_KEY; {advice}")
        if url.scheme not in ("http", "https") or not host or url.query or not url.fragment:
            raise CandidateError(f"endpoint {rest!r}: {advice}")
        version = "" if re.search(r"/v\d", url.path) else "/v1"
        place = f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}{version}"
        one = Candidate(name or Path(url.fragment).name, "endpoint", url.fragment)
        before = served.get((one.name, one.location), one)
        served[one.name, one.location] = replace(before, urls=tuple(dict.fromkeys((*before.urls, place))))
    found += served.values()
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
    if twice := [c for c in found if [other.name for other in found].count(c.name) > 1]:
        how = f"put a name in front of one, such as --{twice[-1].kind} mine=…"
        raise CandidateError(f"two candidates are called {twice[0].name!r}: {how}")
    return tuple(found)


def missing(models: Sequence[str], predictions: Sequence[str]) -> list[str]:
    """A line for each of these that is not there; looks no further, and fetches no weights."""
    faults = []
    for text, is_model in (*((text, True) for text in models), *((text, False) for text in predictions)):
        try:
            if is_model:
                spec = parse_spec(text)
                locate(f"model {spec.given}", spec.location, spec.revision)
            else:
                check_file(Path(parse_spec(text, revisions=False).location))
        except BnbenchError as error:
            faults.append(str(error) if is_model else f"predictions {error}")
    return faults


def _models(given: Spec | None, adapters: Sequence[Spec], trust_remote_code: bool) -> list[Candidate]:
    """The base, given or named by the adapters, and the adapters; CandidateError where they name different bases. A
    base that is given is taken at its word: whether an adapter fits is known, and checked, when it is put on.
    """
    own, label = [_find_adapter(spec) for spec in adapters], "base"
    for files, named in own:
        if given is None and not named.location:
            where = files.folder / "adapter_config.json"
            raise CandidateError(f"{files.label}: {where} lacks base_model_name_or_path; name the base with --base")
        if given and named.location and not _is_same(given.location, named.location, files.folder):
            log.warning("%s was trained on %s; it is put on %s", files.label, named.location, given.location)
    if given is None:
        (first, given), *others = own
        for spec, (files, other) in zip(adapters[1:], others, strict=True):
            if given.revision != other.revision or not _is_same(given.location, other.location, files.folder):
                which = f"{adapters[0].given} to {given.location} and {spec.given} to {other.location}"
                how = "if both are the same weights, name these with --base, else evaluate them in two runs and"
                how += " rank these together with `bnbench compare`"
                raise CandidateError(f"the adapters belong to different bases, {which}; {how}")
        label = f"{first.label}: --base is not given, and its base"
        # A relative folder may be meant from where the adapter lies.
        beside = first.folder / given.location
        if beside.is_dir() and not (Path(given.location) / "config.json").is_file():
            given = given._replace(location=str(beside))
    base = find_model(f"{label} {given.given}", given.location, given.revision, trust_remote_code=trust_remote_code)
    plain = Candidate(given.name, "base", given.location, base.commit, None, str(base.folder))
    # A large base that is met for the first time takes seconds to hash, and so do the libraries that will load it.
    with ThreadPoolExecutor(1) as aside:
        hashed = aside.submit(base.weights_sha256)
        import_libraries()
    found = [replace(plain, weights_sha256=hashed.result())]
    for spec, (files, _) in zip(adapters, own, strict=True):
        place = (plain.location, str(files.folder), plain.revision, plain.folder, files.weights_sha256())
        found.append(Candidate(spec.name, "adapter", spec.location, files.commit, *place))
    return found


def _find_adapter(spec: Spec) -> tuple[ModelFiles, Spec]:
    """An adapter whose configuration can be used, with its weights, and the base that the configuration names."""
    label = f"adapter {spec.given}"
    files = locate(label, spec.location, spec.revision)
    if "adapter_config.json" not in files.names() and "config.json" in files.names():
        raise CandidateError(f"{label}: it is a whole model (config.json, no adapter_config.json); give it as --base")
    config = files.read_json("adapter_config.json")
    kind, task = config.get("peft_type"), config.get("task_type") or "CAUSAL_LM"
    why = ""
    if kind and str(kind) not in SUPPORTED:
        why = f"adapters of type {kind} are not supported; these are: {', '.join(sorted(SUPPORTED))}"
    elif task != "CAUSAL_LM":
        why = f"it was trained for the task {task}, and writes no replies"
    elif config.get("alora_invocation_tokens"):
        why = "an activated LoRA (aLoRA) is on only behind its own tokens in a prompt, which is not supported"
    if why:
        raise CandidateError(f"{label}: {why}")
    at = "target_parameters" if config.get("target_parameters") else "target_modules"  # the first of experts alone
    if lacking := [key for key in ("peft_type", *(("r", at) if kind == "LORA" else ())) if not config.get(key)]:
        path = files.folder / "adapter_config.json"
        raise CandidateError(f"{label}: {path} lacks {', '.join(lacking)}; save it again with PEFT")
    base, revision = (str(config.get(key) or "") for key in ("base_model_name_or_path", "revision"))
    named = Spec(Path(base).name, base, revision, f"{base}@{revision}" if revision else base)
    files = with_weights(files, spec.revision)
    # A file that is not whole is known now. A rank is a dimension of some tensor: a larger one would fill the memory.
    most = max((size for shape in files.shapes().values() for size in shape), default=0)
    ranks = {"r": config.get("r"), **(config.get("rank_pattern") or {})}
    if large := [f"{key} {rank}" for key, rank in ranks.items() if isinstance(rank, int) and rank > most]:
        why = f"its adapter_config.json asks for {large[0]}, and no tensor of its file is so large"
        raise CandidateError(f"{label}: {why}")
    copies = [part for part in config.get("layer_replication") or () if isinstance(part, list) and len(part) == 2]
    if sum(end - start for start, end in copies if isinstance(start, int) and isinstance(end, int)) > 1000:
        raise CandidateError(f"{label}: layer_replication of its adapter_config.json makes more than 1,000 layers")
    return files, named


def _is_same(given: str, stated: str, adapter: Path) -> bool:
    """Whether two spellings mean one base: one folder, one hub id in any case, or a folder of the cache that is its."""
    folders = [p.resolve() for p in (Path(stated), adapter / stated) if p.is_dir()]
    if Path(given).resolve() in folders:
        return True
    mine, theirs = ((hub_id(Path(text)) or text).rstrip("/").casefold() for text in (given, stated))
    if mine == theirs or not (folders and Path(given).is_dir()):
        return mine == theirs
    own, *others = (ModelFiles("base", str(p), "", p).weights_sha256() for p in (Path(given), *folders))
    return own in others
