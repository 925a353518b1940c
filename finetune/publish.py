"""Publishing an adapter: a folder with its PEFT files, a model card and the record of its training, and the push.

    from bnbench.finetune import publish

    publish(Path("adapters/mine"), run=Path("runs/mine"), repo="owner/name")

The token is huggingface_hub's: `HF_TOKEN`, else the file that `HF_TOKEN_PATH` names. There is no flag for it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnbench.errors import CandidateError, TrainingError, UsageError
from bnbench.extras import require
from bnbench.finetune import card
from bnbench.models.files import BUNDLED, ModelFiles, hub_id, is_offline
from bnbench.plot import loss_svg
from bnbench.records import TRAINING, TrainingRecord, as_json, read_training, slug, write_json, write_text

_COPIED = ("adapter_model.safetensors", "loss.csv")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt")
_WRITTEN = (*_COPIED, *_TOKENIZER, "adapter_config.json", "recipe.toml", TRAINING, "loss.svg")


@dataclass(frozen=True)
class Published:
    """The folder that was written, and the page of the repository that it was pushed to (None: a dry run)."""

    folder: Path
    url: str | None

    def summary(self) -> dict[str, str | None]:
        """Plain JSON values."""
        return {"folder": str(self.folder), "url": self.url}

    def __str__(self) -> str:
        if self.url:
            return f"{self.folder}\n{self.url}"
        return f"{self.folder}\nnot pushed: look at its README.md, then `hf upload OWNER/NAME {self.folder}`"


@dataclass(frozen=True)
class _Source:
    """An adapter as it lies in its folder; `record` is None where bnbench did not train it."""

    files: ModelFiles
    config: Mapping[str, Any]
    record: TrainingRecord | None
    base: str
    revision: str | None


def publish(
    adapter: Path,
    *,
    run: Path | None = None,
    repo: str | None = None,
    out: Path | None = None,
    base_id: str | None = None,
    dataset_id: str | None = None,
    license: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> Published:
    """Writes the folder of an adapter and pushes it to `repo` (owner/name), which is made where it is not there.

    Args:
        adapter: folder of a PEFT adapter, of `bnbench finetune` or any other tool.
        run: folder of a bnbench run with this very adapter, for the evaluation.
        out: the folder; published/NAME by default. One that something else wrote is refused.
        base_id: the base's hub id, needed where adapter_config.json names a folder of this machine.
        dataset_id: owner/name[@revision][#task] of the evaluation's data on the hub, a benchmark there, for
            `.eval_results`; without it there is none.
        license: the hub's name of a licence; without it the card states none.
        dry_run: write the folder and push nothing; needs no token and no network.

    Raises:
        UsageError, CandidateError: what was asked for cannot be; no token.
        RunError: `run` is no finished run of this adapter, or the record of its training is damaged.
        TrainingError: the hub did not take it; the folder stays, and the same call tries again.
    """
    if not (repo is None and dry_run) and not card.HUB_ID.fullmatch(repo or ""):
        raise UsageError(f"--repo {repo or ''}: name the repository as owner/name, or give --dry-run")
    source = _read(adapter, base_id)
    evaluation = card.read_evaluation(run, source.files.weights_sha256()) if run else None
    if dataset_id:
        card.check_dataset(dataset_id, evaluation)
    folder = out or Path("published") / slug(adapter.resolve().name)
    name = repo.rpartition("/")[2] if repo else adapter.resolve().name
    readme = _card(source, evaluation, name, repo, dataset_id, license)
    _make_room(folder, adapter)
    write_text(folder / "README.md", readme)  # first: it marks the folder as ours, should the copying be cut short
    _copy(source, folder)
    if evaluation and dataset_id:
        results = require("yaml", extra="models").safe_dump(evaluation.eval_results(dataset_id, repo), **_YAML)
        write_text(folder / ".eval_results" / "bnbench.yaml", results)
    return Published(folder, None if dry_run else _push(folder, str(repo), private))


_YAML: Mapping[str, Any] = {"allow_unicode": True, "sort_keys": False, "width": 1000}


def _read(adapter: Path, base_id: str | None) -> _Source:
    label = f"adapter {adapter}"
    if not (adapter / "adapter_config.json").is_file():
        raise CandidateError(f"{label}: there is no adapter_config.json, so this is no folder of a PEFT adapter")
    files = ModelFiles(label, str(adapter), "", adapter)
    if not (adapter / "adapter_model.safetensors").is_file():
        raise CandidateError(f"{label}: there is no adapter_model.safetensors: finish its training, or save it by PEFT")
    config = files.read_json("adapter_config.json")
    base, revision = _base(str(config.get("base_model_name_or_path") or ""), config.get("revision"), base_id, adapter)
    return _Source(files, config, read_training(adapter), base, revision)


def _base(named: str, revision: str | None, given: str | None, adapter: Path) -> tuple[str, str | None]:
    """The base's hub id and revision. A folder of the hub's cache says both; another folder must not be published."""
    if given is not None:
        if not card.HUB_ID.fullmatch(given):
            raise UsageError(f"--base-id {given}: write it as owner/name, as on the hub")
        return given, revision if given == named else None
    path = Path(named).expanduser()
    if cached := hub_id(path):
        return cached, path.resolve().name
    if named.startswith(BUNDLED) or not card.HUB_ID.fullmatch(named) or path.is_dir() or (adapter / named).is_dir():
        raise UsageError(
            f"{adapter / 'adapter_config.json'} names its base {named!r}, which nobody else can load: give the hub id "
            "of the same weights with --base-id owner/name"
        )
    return named, revision


def _make_room(folder: Path, adapter: Path) -> None:
    """The folder without what an earlier call wrote, but for its README, which is replaced.

    Raises UsageError for one that something else wrote.
    """
    if folder.resolve() == adapter.resolve():
        raise UsageError(f"--out {folder} is the adapter's own folder: name another one")
    if not folder.exists() or not any(folder.iterdir()):
        return
    readme = folder / "README.md"
    if not readme.is_file() or card.MARK not in readme.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(f"--out {folder} holds files that bnbench publish did not write: name another folder")
    for pattern in (*_WRITTEN, ".eval_results/*.yaml"):
        for file in filter(Path.is_file, folder.glob(pattern)):
            file.unlink()


def _copy(source: _Source, folder: Path) -> None:
    """PEFT's files and the training's record, without what is only true on this machine."""
    for pattern in (*_COPIED, *_TOKENIZER):
        for file in filter(Path.is_file, source.files.folder.glob(pattern)):
            shutil.copyfile(file, folder / file.name)
    named = {"base_model_name_or_path": source.base, "revision": source.revision}
    write_json(folder / "adapter_config.json", {**source.config, **named})
    if source.record is None:
        return
    base = replace(source.record.base, name=source.base)
    write_json(folder / TRAINING, as_json(replace(source.record, command="", base=base)))
    write_text(folder / "recipe.toml", "".join(_toml(k, v) for k, v in source.record.recipe.items()))
    write_text(folder / "loss.svg", loss_svg(source.record.curve))


def _toml(key: str, value: Any) -> str:
    """A line of TOML: its strings, numbers, booleans and lists of strings are JSON's."""
    return f"{key} = {json.dumps(value, ensure_ascii=False)}\n"


def _card(
    source: _Source,
    evaluation: card.Evaluation | None,
    name: str,
    repo: str | None,
    dataset: str | None,
    license: str | None,
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # Markdown: `md` escapes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = card.escaped
    prompt = source.record.prompt if source.record else evaluation.meta.prompt if evaluation else {}
    front = _front(source, evaluation, name, dataset, license)
    return environment.get_template("card.md.j2").render(
        front=require("yaml", extra="models").safe_dump(front, **_YAML),
        mark=card.MARK,
        name=name,
        kind=str(source.config.get("peft_type", "PEFT")).replace("LORA", "LoRA"),
        base=source.base,
        adapter=_shape(source.config),
        snippet=card.snippet(source.base, source.revision, repo or f"OWNER/{name}", prompt),
        evaluation=evaluation,
        training=card.facts(source.record) if source.record else None,
    )


def _front(
    source: _Source, evaluation: card.Evaluation | None, name: str, dataset: str | None, license: str | None
) -> dict[str, Any]:
    trained = source.record.recipe if source.record else {}
    tuner = str(trained.get("tuner") or source.config.get("peft_type", "")).lower()
    return {
        "base_model": source.base,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": "bn",
        **({"license": license} if license else {}),
        "tags": ["bengali", "bnbench", *([tuner] if tuner else [])],
        **({"model-index": evaluation.model_index(name, dataset)} if evaluation else {}),
    }


def _shape(config: Mapping[str, Any]) -> str:
    keys = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "peft_version")
    return ", ".join(f"{key} {config[key]}" for key in keys if config.get(key) is not None)


def _push(folder: Path, repo: str, private: bool) -> str:
    hub = require("huggingface_hub", extra="models")
    again = f"{folder} is ready; the same command tries again"
    if is_offline():
        raise TrainingError(f"{repo}: not pushed, because HF_HUB_OFFLINE is set; {again}")
    token = hub.get_token()
    if token is None:
        raise UsageError(f"{repo}: not pushed, because there is no token: set HF_TOKEN to one that may write; {again}")
    api = hub.HfApi(token=token)
    try:
        url = str(api.create_repo(repo, private=private or None, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Published by bnbench")
    except Exception as error:
        # The hub's client raises whatever its HTTP library does; the user needs one line.
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if status in (401, 403):
            why = f"the hub refused the token ({status}): HF_TOKEN must be one that may write to {repo}"
        raise TrainingError(f"{repo}: not pushed, {why}; {again}") from error
    return url
