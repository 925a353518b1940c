"""Publishing an adapter: a folder with its PEFT files, a model card and the record of its training, and the push.

The token is huggingface_hub's, of `HF_TOKEN` or the file that `HF_TOKEN_PATH` names: there is no flag for it. So are
the classes that write the card's front matter and `.eval_results/*.yaml` (hub-docs, docs/hub/eval-results.md).
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bnbench.errors import RunError, TrainingError, UsageError, require
from bnbench.models.candidates import Spec, parse_spec
from bnbench.models.hub import BUNDLED, HUB_ID, SMALL, ModelFiles, hub_id, is_offline, locate, with_weights
from bnbench.models.prompts import SYSTEM, template_of, without_topic
from bnbench.plot import loss_svg
from bnbench.records import TRAINING, TrainingRecord, alone, read_run, read_training, slug, write_json, write_text
from bnbench.reports.exports import Dataset, eval_results, may_be_told, model_index
from bnbench.reports.panels import facts, training_facts
from bnbench.reports.ranking import Ranking, Standing, rank
from bnbench.reports.render import escaped, evaluation_md, table_md
from bnbench.reports.values import value_of
from bnbench.reports.verdict import trained_on_test

Evaluation = tuple[Ranking, Standing]  # of a run its ranking, and one adapter's standing therein
MARK = "<!-- Written by bnbench publish, which writes it anew when it is run again. -->"
_MESSAGE = "Published by bnbench"
_LICENSE = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*", re.ASCII)
_TEMPLATES = Path(__file__).parent / "templates"
_COPIED = ("adapter_model.safetensors", "loss.csv")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt")
_WRITTEN = (*_COPIED, *_TOKENIZER, "adapter_config.json", "recipe.toml", TRAINING, "loss.svg", ".eval_results/*.yaml")
_TORN = (".*.tmp", ".eval_results/.*.tmp")  # what a kill leaves of a file


@dataclass(frozen=True)
class Published:
    """The folder that was written, and the page of the repository that it was pushed to (None: a dry run)."""

    folder: Path
    url: str | None

    def summary(self) -> dict[str, str | None]:
        """Plain JSON values."""
        return {"folder": str(self.folder), "url": self.url}

    def __str__(self) -> str:
        how = f"not pushed: look at its README.md, then `hf upload OWNER/NAME {self.folder}`"
        return f"{self.folder}\n{self.url or how}"


@dataclass(frozen=True)
class Adapter:
    """An adapter and the hub id and revision of its base; `record` is None where bnbench did not train it."""

    files: ModelFiles
    config: Mapping[str, Any]
    record: TrainingRecord | None
    base: str
    revision: str | None


def publish(
    adapter: str | Path, *, run: Path | None = None, repo: str | None = None, out: Path | None = None,
    base_id: str | None = None, dataset_id: str | None = None, license: str | None = None,
    private: bool = False, create_pr: bool = False, dry_run: bool = False,
) -> Published:  # fmt: skip
    """Writes the folder of an adapter and pushes it to `repo` (owner/name), which is made where it is not there.

    `adapter` is a folder, a hub id or id@revision. With `create_pr` the push is a pull request to a repository that is
    there, whoever owns it: by default that of a hub adapter.
    `run` is a bnbench run with this very adapter. `out` is published/NAME by default. `base_id` is needed where the
    adapter names a folder of this machine, `dataset_id` (owner/name[@revision][#task], a benchmark on the hub) for
    `.eval_results`. With `dry_run` nothing is pushed, and no token or network is needed. Raises UsageError or
    CandidateError for what cannot be, RunError for a run or record that is damaged or another's, and TrainingError
    where the hub did not take it: the folder stays, and the same call tries again.
    """
    spec = parse_spec(str(adapter))
    if create_pr and repo is None and not Path(spec.location).is_dir():
        repo = spec.location
    if not (repo is None and dry_run) and not HUB_ID.fullmatch(repo or ""):
        raise UsageError(f"{f'--repo {repo}' if repo else 'publish'}: give --repo owner/name to push to, or --dry-run")
    if license is not None and not _LICENSE.fullmatch(license):
        how = "write its id as in the table of https://huggingface.co/docs/hub/repositories-licenses"
        raise UsageError(f"--license {license!r}: {how}, such as cc0-1.0 or llama3.1; other for any other")
    if create_pr and private:
        raise UsageError("--private makes a repository, --create-pr is for one that is there: leave one of them out")
    source, own = _read_adapter(spec, base_id), Path(spec.location).resolve().name
    evaluation = _read_evaluation(run, source.files.weights_sha256()) if run else None
    dataset = Dataset.parse(dataset_id) if dataset_id else None
    if dataset and evaluation is None:
        raise UsageError("--dataset-id says what the evaluation was on: give the evaluation with --run")
    folder, name = out or Path("published") / slug(own), repo.rpartition("/")[2] if repo else own
    copied, told = _copied(source.files.folder), evaluation if evaluation and may_be_told(*evaluation) else None
    results = model_index(*told, name, dataset.id if dataset else None) if told else {}
    readme = _readme(source, evaluation, name, repo, {"license": license, **results})
    results_yaml = eval_results(*told, dataset, repo) if told and dataset else ""
    if folder.resolve() == source.files.folder.resolve():
        raise UsageError(f"--out {folder} is the adapter's own folder: name another one")
    with alone(folder):
        if {path.name for path in folder.glob("*")} - {".README.md.tmp", ".lock"}:
            if not (card := folder / "README.md").is_file() or MARK not in card.read_text("utf-8", "replace"):
                raise UsageError(f"--out {folder} holds files that bnbench publish did not write: name another folder")
            for pattern in (*_WRITTEN, *_TORN):
                for file in (path for path in folder.glob(pattern) if path.is_file() or path.is_symlink()):
                    file.unlink()
        write_text(folder / "README.md", readme)  # first: it marks the folder as ours, should the copying be cut short
        # PEFT's files and the training's record, without what is only true on this machine.
        for file in copied:
            shutil.copyfile(file, folder / file.name)
        named = {"base_model_name_or_path": source.base, "revision": source.revision}
        write_json(folder / "adapter_config.json", {**source.config, **named})
        if source.record is not None:
            on = replace(source.record.base, name=source.base)
            write_json(folder / TRAINING, replace(source.record, command="", base=on))
            # TOML's strings, numbers, booleans and lists of strings are JSON's.
            lines = (f"{k} = {json.dumps(v, ensure_ascii=False)}\n" for k, v in source.record.recipe.items())
            write_text(folder / "recipe.toml", "".join(lines))
            write_text(folder / "loss.svg", loss_svg(source.record.loss, validation=source.record.validation))
        if results_yaml:
            write_text(folder / ".eval_results" / "bnbench.yaml", results_yaml)
    return Published(folder, None if dry_run else _push(folder, str(repo), private, create_pr))


def _read_adapter(spec: Spec, base_id: str | None) -> Adapter:
    label, patterns = f"adapter {spec.given}", (*SMALL, "loss.csv")
    files = locate(label, spec.location, spec.revision, patterns)
    config = files.read_json("adapter_config.json")
    files = with_weights(files, spec.revision, patterns)
    base = named = str(config.get("base_model_name_or_path") or "")
    path, revision = Path(named).expanduser(), config.get("revision")
    if base_id is not None:
        if not HUB_ID.fullmatch(base_id):
            raise UsageError(f"--base-id {base_id}: write it as owner/name, as on the hub")
        base, revision = base_id, revision if base_id == named else None
    elif (cached := hub_id(path)) and HUB_ID.fullmatch(cached):  # in the hub's cache, whose paths say id and commit
        base, revision = cached, path.resolve().name
    elif named.startswith(BUNDLED) or not HUB_ID.fullmatch(named) or path.is_dir() or (files.folder / named).is_dir():
        raise UsageError(
            f"{files.folder / 'adapter_config.json'} names its base {named!r}, which nobody else can load: give the "
            "hub id of the same weights with --base-id owner/name"
        )
    return Adapter(files, config, read_training(files.folder), base, revision)


def _copied(folder: Path) -> list[Path]:
    """The files of an adapter that are published as they are; UsageError for a link that leads out of its folder."""
    copied = [file for pattern in (*_COPIED, *_TOKENIZER) for file in folder.glob(pattern) if file.is_file()]
    own = folder.resolve()
    homes = (own, own.parents[1] / "blobs") if hub_id(own) else (own,)  # a snapshot of the hub's cache is links
    if strays := [file for file in copied if not any(map(file.resolve().is_relative_to, homes))]:
        where = f"{strays[0]} is a link to {strays[0].resolve()}"
        raise UsageError(f"{where}, which would be published; put the file itself there, or remove the link")
    return copied


def _read_evaluation(folder: Path, sha256: str) -> Evaluation:
    run = read_run(folder)
    adapters = [c for c in run.record.candidates if c.kind == "adapter"]
    mine = next((c.name for c in adapters if c.weights_sha256 == sha256), None)
    if mine is None:
        others = ", ".join(f"{c.name} ({str(c.weights_sha256)[:12]})" for c in adapters) or "no adapter"
        wrong = f"this run is about {others}, not about these weights ({sha256[:12]})"
        raise RunError(f"{folder}: {wrong}: evaluate them with `bnbench evaluate --adapter`, or leave out --run")
    ranking = rank([run], groups={})  # these weights are of one seed
    return ranking, next(s for s in ranking.standings if s.candidate == mine)


def _readme(
    source: Adapter, evaluation: Evaluation | None, name: str, repo: str | None, more: Mapping[str, Any]
) -> str:
    hub = require("huggingface_hub", extra="models")
    record, drawn = source.record, dict[str, Any]()
    tuner = str((record.recipe if record else {}).get("tuner") or source.config.get("peft_type", ""))
    data = hub.ModelCardData(
        base_model=source.base, base_model_relation="adapter", library_name="peft", pipeline_tag="text-generation",
        language="bn", tags=["bengali", "bnbench", *([tuner.lower()] if tuner else [])], **more,
    )  # fmt: skip
    prompt: Mapping[str, Any] = record.prompt if record else {}
    if evaluation is not None:
        ranking, standing = evaluation
        run = ranking.runs[0].record
        drawn = {"ranking": ranking, "standing": standing, "run": run, "note": trained_on_test(ranking, standing)}
        drawn |= {"primary": value_of(ranking).label, "rated": any(m.startswith("human-") for m in ranking.metrics)}
        drawn["verdict"], drawn["evaluation"] = evaluation_md(ranking, standing.candidate)
        prompt = prompt or run.prompt
        # Another tool's adapter and an older record do not say if there were topics; the data that were tested do.
        is_of_data = record is None or record.data.fingerprint == run.corpus.fingerprint
        if is_of_data and not any(e["topic"].strip() for e in ranking.runs[0].examples):
            prompt = {**prompt, "system": without_topic(prompt.get("system") or SYSTEM)}
    if record is not None:
        drawn["training"] = table_md([("", ""), *training_facts(record.summary()), *facts("card", r=record)])
    card = hub.ModelCard.from_template(
        data, template_path=str(_TEMPLATES / "card.md.j2"), mark=MARK, escaped=escaped, title=name, base=source.base,
        config=source.config, snippet=snippet(source.base, source.revision, repo or f"OWNER/{name}", prompt), **drawn,
    )  # fmt: skip
    return f"{card}\n"


def snippet(base: str, revision: str | None, adapter: str, prompt: Mapping[str, Any]) -> str:
    """Python that loads base and adapter and replies to one message, prompted as in training where that is known."""
    jinja2 = require("jinja2", extra="models")
    # Python's strings are JSON's.
    quoted = partial(json.dumps, ensure_ascii=False)
    return str(jinja2.Template((_TEMPLATES / "snippet.py.j2").read_text(encoding="utf-8")).render(
        quoted=quoted, base=base, revision=revision, adapter=adapter, llama=prompt.get("kind") == "llama-3.1",
        system=str(prompt.get("system") or SYSTEM).replace("{topic}", "মানসিক স্বাস্থ্য").strip(),
        prompt=template_of(str(prompt.get("kind"))).replace("{user}", "{message}"),
    ))  # fmt: skip


def _push(folder: Path, repo: str, private: bool, create_pr: bool) -> str:
    hub, again = require("huggingface_hub", extra="models"), f"{folder} is ready; the same command tries again"
    why = "" if (token := hub.get_token()) else "there is no token: set HF_TOKEN to one that may write"
    if why := "HF_HUB_OFFLINE is set" if is_offline() else why:
        raise UsageError(f"{repo}: not pushed, because {why}; {again}")
    api = hub.HfApi(token=token)
    try:
        if create_pr:  # in one commit, which opens it: by `upload_folder` it would stay a draft
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            sent = [hub.CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
            return str(api.create_commit(repo, sent, commit_message=_MESSAGE, create_pr=True).pr_url)
        url = str(api.create_repo(repo, private=private or None, exist_ok=True))
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=_MESSAGE)
    except Exception as error:
        # The hub's client raises whatever its HTTP library does; the user needs one line.
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if status in (401, 403):
            why = f"the hub refused the token ({status}): HF_TOKEN must be one that may write to {repo}"
        elif status == 404 and create_pr:
            why = "there is no such repository to make a pull request to; without --create-pr it is made"
        raise TrainingError(f"{repo}: not pushed, {why}; {again}") from error
    return url
