"""A ranking in the formats of other tools, of papers and of the hub: a function each, and one table of them.

Scores are those of the ranking, on its scale and in full, and keep their signatures where a format has room for them.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from uuid import UUID

import numpy as np

from bnbench import __version__
from bnbench.errors import UsageError, require
from bnbench.models.hub import HUB_ID
from bnbench.progress import storable
from bnbench.records import AUDITS, CorpusRecord, Run, slug, write_text
from bnbench.reports.ranking import LEVEL, Comparison, Entry, Ranking, Score, Standing
from bnbench.reports.render import ranking_csv
from bnbench.reports.values import Value, name, p_value, shown_values, value_of
from bnbench.reports.verdict import trained_on_test

Files = dict[str, str]  # texts by their paths under the export's own; that of a format of one file is empty
_DATASET = re.compile(rf"({HUB_ID.pattern})(?:@([^#]+))?(?:#(.+))?", re.ASCII)
_NAMES_DATA = ("lm-eval", "every-eval-ever", "model-index", "eval-results")
_TEX = str.maketrans({
    **{sign: rf"\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}", "\N{MINUS SIGN}": "$-$", "<": "$<$", ">": "$>$",
})  # fmt: skip


class Dataset(NamedTuple):
    """A benchmark on the hub, `owner/name[@revision][#task]`."""

    id: str
    revision: str | None
    task: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises UsageError for any other spelling."""
        if found := _DATASET.fullmatch(text):
            return cls(*found.groups())
        raise UsageError(f"--dataset-id {text}: write it as owner/name[@revision][#task]")


def check_exports(wanted: Sequence[str], dataset: Dataset | None) -> None:
    """UsageError for a `FORMAT[=PATH]` of no known format, or without its data set or package, or an idle `dataset`."""
    kinds = [one.partition("=")[0] for one in wanted]
    if dataset and not {*kinds}.intersection(_NAMES_DATA):
        raise UsageError(f"--dataset-id would do nothing: it is for --export {', '.join(_NAMES_DATA)}")
    for place in (Path(one.partition("=")[2]) for one in wanted):
        is_kept = place.name in ("run.json", AUDITS) or place.suffix in (".jsonl", ".parquet")
        if is_kept and any((folder / "run.json").is_file() for folder in place.parents[:3]):
            raise UsageError(f"--export {place}: it is a file of a run, which would be lost; name another one")
    for kind in kinds:
        if kind not in FORMATS:
            raise UsageError(f"--export {kind}: no such format; there are {', '.join(FORMATS)}")
        if kind == "eval-results" and not dataset:
            raise UsageError("--export eval-results: name the benchmark on the hub with --dataset-id owner/name#task")
        if kind in ("model-index", "eval-results"):
            require("huggingface_hub", extra="models")


def export(ranking: Ranking, wanted: str, folder: Path, dataset: Dataset | None = None) -> Path:
    """Writes `FORMAT[=PATH]`, by default under `folder`, and returns where that is; raises as `check_exports`."""
    kind, _, path = wanted.partition("=")
    check_exports([wanted], dataset if kind in _NAMES_DATA else None)
    name, write = FORMATS[kind]
    place = Path(path) if path else folder / name
    for file, text in write(ranking, dataset).items():
        write_text(place / file, storable(text))
    return place


def _key(value: Value) -> str:
    """How tools that know no values of a metric call one: `chrF++`, `ROUGE/rougeL`."""
    return value.metric if value.name == value.metric else f"{value.metric}/{value.name}"


def _scores(ranking: Ranking, standing: Standing) -> Iterator[tuple[Value, Score]]:
    """The values that tables show, where they are finite: no JSON has a number for the others."""
    for value in shown_values(ranking):
        if (score := standing.score(value.metric, value.name)) and math.isfinite(score.value):
            yield value, score


def _candidates(ranking: Ranking) -> Iterator[tuple[Standing, Entry, Run, str]]:
    """Each candidate (of a group the first seed), the run it stands in, and its name in the world: hub id or local/."""
    seen = set[str]()
    for standing in ranking.standings:
        entry = next(e for e in ranking.entries if e.name == standing.candidate)
        run = next(run for run in ranking.runs if entry.record in run.record.candidates)
        place = entry.record.location
        is_hub = HUB_ID.fullmatch(place) and not Path(place).exists() and entry.record.revision and not entry.seeds
        model = place if is_hub and place not in seen else f"local/{slug(entry.name)}"  # of two revisions, the first
        seen.add(place)
        yield standing, entry, run, model


def _messages(run: Run) -> list[str]:
    return ["\n\n".join(filter(None, (e["title"].strip(), e["question"].strip()))) for e in run.examples]


def _per_item(ranking: Ranking, entry: Entry) -> dict[str, list[float]]:
    """The main value of each metric for every single reply of the entry, by its key; NaN where it has none."""
    found, tables = dict[str, list[float]](), entry.of_replies
    for v in (v for v in shown_values(ranking) if v.name == ranking.values[v.metric][0] and v.metric in tables):
        known = np.isin(np.arange(len(entry.replies)), ranking.items[v.metric])
        found[_key(v)] = np.where(known, ranking.metrics[v.metric].formula(tables[v.metric])[:, 0], math.nan).tolist()
    return found


def _when(run: Run) -> int:
    return int(datetime.fromisoformat(str(run.record.finished)).timestamp())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def hub_dataset(corpus: CorpusRecord) -> str | None:
    """The hub id of a run's data, without what may follow it; None where they are a file or the bundled ones."""
    place = corpus.source.partition("@")[0].partition(":")[0]
    return place if HUB_ID.fullmatch(place) and not Path(place).suffix and not Path(place).exists() else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def lm_eval(ranking: Ranking, dataset: Dataset | None) -> Files:
    """`results_*.json` and `samples_*.jsonl` of each candidate, laid out as lm-evaluation-harness 0.4 writes them."""
    files, width = dict[str, str](), 2 * NormalDist().inv_cdf(0.5 + LEVEL / 2)
    hashed = ("doc_hash", "prompt_hash", "target_hash")
    for standing, entry, run, model in _candidates(ranking):
        record, candidate, task = run.record, entry.record, slug(run.record.corpus.name)
        scores, how = list(_scores(ranking, standing)), dict(record.decoding)
        found: dict[str, Any] = {"alias": task}
        for value, score in scores:
            error = (score.high - score.low) / width  # that of a normal distribution whose interval is as wide
            found[f"{_key(value)},none"] = score.value
            found[f"{_key(value)}_stderr,none"] = error if math.isfinite(error) else "N/A"
        directions = {_key(value): value.higher_is_better for value, _ in scores}
        told = dict[str, Any](do_sample=not how.get("greedy"), until=[], max_gen_toks=how.get("max_new_tokens"))
        told |= {k: how[k] for k in ("temperature", "top_p", "top_k", "repetition_penalty") if k in how}
        samples, items = list[dict[str, Any]](), _per_item(ranking, entry)
        for i, (example, message, reply) in enumerate(zip(run.examples, _messages(run), entry.replies, strict=True)):
            hashes = (_sha256(text) for text in (json.dumps(example), message, example["reference"]))
            samples.append(
                {"doc_id": i, "doc": example, "target": example["reference"],
                 "arguments": {"gen_args_0": {"arg_0": message, "arg_1": told}},
                 "resps": [[reply.reply]], "filtered_resps": [reply.reply], "filter": "none", "metrics": [*items],
                 **dict(zip(hashed, hashes, strict=True)),
                 **{key: of[i] if math.isfinite(of[i]) else None for key, of in items.items()}}
            )  # fmt: skip
        named = f"pretrained={candidate.base},peft={model}" if candidate.kind == "adapter" else f"pretrained={model}"
        signatures = {key: ranking.signatures[value.metric] for (value, _), key in zip(scores, directions, strict=True)}
        results: dict[str, Any] = {
            "results": {task: found}, "group_subtasks": {task: []},
            "configs": {task: {
                "task": task, "dataset_path": dataset.id if dataset else hub_dataset(record.corpus) or task,
                "test_split": record.corpus.split, "output_type": "generate_until", "generation_kwargs": told,
                "metric_list": [{"metric": k, "higher_is_better": up} for k, up in directions.items()],
                "num_fewshot": 0, "metadata": {"version": 1.0, "bnbench": __version__, "signatures": signatures},
            }},
            "versions": {task: 1.0}, "n-shot": {task: 0}, "higher_is_better": {task: directions},
            "n-samples": {task: {"original": record.corpus.n, "effective": len(run.examples)}},
            "config": {
                "model": candidate.key_fields.get("backend", candidate.kind), "model_args": named,
                "batch_size": record.batch_size, "device": record.device.get("accelerator") or "cpu", "limit": None,
                "bootstrap_iters": ranking.resamples, "gen_kwargs": told, "random_seed": record.seed,
                "model_dtype": record.precision.get("dtype"), "model_revision": candidate.revision or None,
                "model_sha": candidate.weights_sha256,
            },
            "date": float(_when(run)), "transformers_version": record.packages.get("transformers"),
            "task_hashes": {task: _sha256("".join(s[h] for s in samples for h in hashed))},
            "model_name": model, "model_name_sanitized": model.replace("/", "__"),
            "system_instruction": record.prompt.get("system"), "chat_template_sha": record.prompt.get("template_sha"),
        }  # fmt: skip
        at, stamp = model.replace("/", "__"), str(record.finished).replace(":", "-")
        files |= {f"{at}/results_{stamp}.json": _json(results), f"{at}/samples_{task}_{stamp}.jsonl": _jsonl(samples)}
    return files


def every_eval_ever(ranking: Ranking, dataset: Dataset | None) -> Files:
    """One record and one file of samples a candidate, by schema 0.3.0 and in the folders of Every Eval Ever's store."""
    files = dict[str, str]()
    for standing, entry, run, model in _candidates(ranking):
        record, candidate = run.record, entry.record
        benchmark, when = slug(dataset.id if dataset else record.corpus.name), str(_when(run))
        identity = f"{benchmark}/{model}/{when}"
        source: dict[str, Any] = {"dataset_name": record.corpus.name, "source_type": "other"}
        if place := dataset.id if dataset else hub_dataset(record.corpus):
            source |= {"source_type": "hf_dataset", "hf_repo": place, "hf_split": record.corpus.split}
            source |= {"samples_number": len(run.examples)}
        decoding = {k: v for k, v in record.decoding.items() if v is not None}
        told: dict[str, Any] = {k: decoding.pop(k) for k in ("temperature", "top_p", "top_k") if k in decoding}
        told |= {"max_tokens": decoding.pop("max_new_tokens")} if "max_new_tokens" in decoding else {}
        generated = {"generation_args": told, "additional_details": {k: str(v) for k, v in decoding.items()}}
        results = []
        for value, score in _scores(ranking, standing):
            items = ranking.items[value.metric]
            unsure: dict[str, Any] = {"num_samples": len(items), "num_bootstrap_samples": ranking.resamples}
            if math.isfinite(score.low) and math.isfinite(score.high):
                ends = {"lower": score.low, "upper": score.high, "confidence_level": LEVEL, "method": "bootstrap"}
                unsure["confidence_interval"] = ends
            about = {
                "evaluation_description": ranking.descriptions[value.metric], "metric_id": f"bnbench.{_key(value)}",
                "metric_name": value.label, "lower_is_better": not value.higher_is_better,
                "additional_details": {"signature": ranking.signatures[value.metric]},
            }  # fmt: skip
            results.append(
                {"evaluation_result_id": _key(value), "evaluation_name": f"{benchmark}/{_key(value)}",
                 "source_data": source, "evaluation_timestamp": when, "metric_config": about,
                 "score_details": {"score": score.value, "uncertainty": unsure}, "generation_config": generated}
            )  # fmt: skip
        # A model's own place, hashes and base; whose weights are open only the reader can know, but for the hub's.
        more = {k: str(v) for k in ("base", "revision", "weights_sha256", "kind") if (v := getattr(candidate, k))}
        more["deployment_type"] = "self_deployed" if candidate.kind in ("base", "adapter") else "unknown"
        more["model_availability"] = "unknown" if model.startswith("local/") else "open_weights"
        samples = _jsonl([*_instances(ranking, entry, run, identity, model, benchmark)])
        # Not drawn but made of what it names, so that the same run is the same record; the bits are those of a UUID 4.
        name = UUID(bytes=hashlib.sha256(f"{identity} {entry.name}".encode()).digest()[:16], version=4)
        at = f"data/{benchmark}/{model}/{name}"
        engine = {"name": str(candidate.key_fields.get("backend", candidate.kind))}
        files[f"{at}_samples.jsonl"] = samples
        files[f"{at}.json"] = _json({
            "schema_version": "0.3.0", "evaluation_id": identity, "evaluation_timestamp": when,
            "retrieved_timestamp": when,
            "source_metadata": {"source_name": "bnbench", "source_type": "evaluation_run",
                                "source_organization_name": "unknown", "evaluator_relationship": "other"},
            "eval_library": {"name": "bnbench", "version": record.bnbench},
            "model_info": {"name": entry.name, "id": model, "developer": model.partition("/")[0],
                           "inference_engine": engine, "additional_details": more},
            "evaluation_results": results,
            "detailed_evaluation_results": {
                "format": "jsonl", "file_path": f"{at}_samples.jsonl", "hash_algorithm": "sha256",
                "checksum": _sha256(storable(samples)), "total_rows": samples.count("\n"),
            },
        })  # fmt: skip
    return files


def _instances(
    ranking: Ranking, entry: Entry, run: Run, identity: str, model: str, benchmark: str
) -> Iterator[dict[str, Any]]:
    """A row a reply and metric, as the schema asks for; no score here is right or wrong, so none is correct."""
    texts = list(zip(run.examples, _messages(run), entry.replies, strict=True))
    for key, scores in _per_item(ranking, entry).items():
        for (example, message, reply), score in zip(texts, scores, strict=True):
            if not math.isfinite(score):
                continue
            asked = {"raw": message, "reference": [example["reference"]]}
            taken = {"turn_idx": 0, "source": "output.raw", "extracted_value": reply.reply, "is_terminal": True}
            yield {
                "schema_version": "0.3.0", "evaluation_id": identity, "model_id": model,
                "evaluation_name": f"{benchmark}/{key}", "evaluation_result_id": key, "sample_id": example["id"],
                "sample_hash": _sha256(json.dumps(asked, sort_keys=True)), "interaction_type": "single_turn",
                "input": asked, "output": {"raw": [reply.reply]},
                "answer_attribution": [{**taken, "extraction_method": "none"}],
                "evaluation": {"score": score, "is_correct": False}, "metadata": {"topic": example["topic"]},
            }  # fmt: skip


def sacrebleu(ranking: Ranking, _: Dataset | None) -> Files:
    """The systems as `sacrebleu --format json` prints several, the baseline first, with signatures; p is against it."""
    base = next((s for s in ranking.standings if s.candidate == ranking.base), ranking.standings[0])
    systems = list[dict[str, Any]]()
    for standing in [base, *(s for s in ranking.standings if s is not base)]:
        system: dict[str, Any] = {"system": f"{'Baseline: ' * (standing is base)}{standing.candidate}"}
        for value, score in _scores(ranking, standing):
            versus = standing.versus(value.metric, value.name)
            p = versus.p if versus and versus.other == base.candidate and math.isfinite(versus.p) else None
            middle, half = (score.high + score.low) / 2, (score.high - score.low) / 2  # of our interval
            known = math.isfinite(half)
            system[_key(value)] = {
                "score": score.value, "p_value": p, "mean": middle if known else None, "ci": half if known else None,
                "signature": ranking.signatures[value.metric],
            }  # fmt: skip
        systems.append(system)
    return {"": _json(systems)}


def latex(ranking: Ranking, _: Dataset | None) -> Files:
    """A table for booktabs: candidates, then yardsticks, by each metric's main value with its interval, and primary p.

    Values that are certainly better than the base's are bold. Bengali names need XeLaTeX or LuaLaTeX and a font.
    """
    values = [v for v in shown_values(ranking) if v.name == ranking.values[v.metric][0]]
    arrows = {True: r"$\uparrow$", False: r"$\downarrow$"}
    rows = [["Candidate", *(f"{v.label.translate(_TEX)} {arrows[v.higher_is_better]}" for v in values), "$p$"]]

    def cell(value: Value, score: Score | None, versus: Comparison | None = None) -> str:
        told = value.number(score.value if score else None).translate(_TEX)
        told = rf"\textbf{{{told}}}" if versus and versus.better else told
        return f"{told} {{\\small {value.interval(score).translate(_TEX)}}}" if score else told

    for standing in ranking.standings:
        # After the end of a row, what begins with a bracket or a star would be an argument of it.
        row = [re.sub(r"^[\[*]", r"{}\g<0>", name(standing.candidate).translate(_TEX))]
        row += (cell(v, standing.score(v.metric, v.name), standing.versus(v.metric, v.name)) for v in values)
        primary = standing.versus(ranking.primary, ranking.primary_value)
        adjusted = None if primary is None else primary.p if primary.p_holm is None else primary.p_holm
        rows.append([*row, p_value(adjusted).translate(_TEX)])
    for i, yardstick in enumerate(ranking.yardsticks):
        label = ("" if i else "\\midrule\n") + yardstick.label.translate(_TEX)
        rows.append([label, *(cell(v, yardstick.scores.get(v.metric)) for v in values), ""])
    head, *body = (" & ".join(row) + r" \\" for row in rows)
    notes = ["% \\usepackage{booktabs}", *(f"% {ranking.signatures[v.metric]}" for v in values)]
    begin = rf"\begin{{tabular}}{{l{'r' * len(values)}r}}"
    return {"": "\n".join([*notes, begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""])}


def model_index(ranking: Ranking, standing: Standing, name: str, dataset: str | None) -> dict[str, Any]:
    """What `huggingface_hub.ModelCardData` takes for a card's `model-index`: every value that tables show."""
    hub, corpus = require("huggingface_hub", extra="models"), ranking.runs[0].record.corpus
    return {"model_name": name, "eval_results": [
        hub.EvalResult(
            task_type="text-generation", task_name="Replies to messages in Bengali",
            # The hub takes any other text for the id of a data set of its own.
            dataset_type=dataset or hub_dataset(corpus) or "unknown", dataset_name=corpus.name,
            dataset_split=corpus.split, metric_type=value.metric.lower().rstrip("+"),
            metric_name=f"{value.metric}: {value.name}", metric_value=score.value,
        )
        for value, score in _scores(ranking, standing)
    ]}  # fmt: skip


def may_be_told(ranking: Ranking, standing: Standing) -> bool:
    """Whether the hub is told a candidate's scores: not of rows that it was trained on, and the log says so."""
    if note := trained_on_test(ranking, standing):
        logging.getLogger("bnbench").warning("%s; none go into model-index or .eval_results: test on others", note)
    return not note


def model_cards(ranking: Ranking, dataset: Dataset | None) -> Files:
    """The front matter of a card for each candidate, with its `model-index`: `metadata_update` of the hub takes it."""
    hub, files = require("huggingface_hub", extra="models"), dict[str, str]()
    for one in (s for s in ranking.standings if may_be_told(ranking, s)):
        index = model_index(ranking, one, one.candidate, dataset.id if dataset else None)
        files[f"{slug(one.candidate)}/README.md"] = f"---\n{hub.ModelCardData(language='bn', **index).to_yaml()}\n---\n"
    return files


def eval_results(ranking: Ranking, standing: Standing, dataset: Dataset, repo: str | None) -> str:
    """`.eval_results/*.yaml` of a repository (hub-docs, docs/hub/eval-results.md): one entry, the primary value."""
    hub = require("huggingface_hub", extra="models")
    if not hasattr(hub, "EvalResultEntry"):
        raise UsageError(f"--dataset-id needs a newer huggingface_hub than {hub.__version__}: pip install -U it")
    value, score = value_of(ranking), standing.scores[0]
    interval = f"95 % {value.number(score.low)} to {value.number(score.high)}"
    entry = hub.EvalResultEntry(
        dataset_id=dataset.id, task_id=dataset.task or "default", dataset_revision=dataset.revision, value=score.value,
        date=ranking.runs[0].record.finished, source_url=f"https://huggingface.co/{repo}" if repo else None,
        source_name="Model card" if repo else None,
        notes=f"{value.name}, {interval}, {ranking.signatures[ranking.primary]}",
    )  # fmt: skip
    return str(hub.utils.yaml_dump(hub.eval_result_entries_to_yaml([entry]), sort_keys=False))


def leaderboard(ranking: Ranking, dataset: Dataset | None) -> Files:
    """`.eval_results` of each candidate, in a folder that can be uploaded to its repository."""
    assert dataset  # by check_exports
    told = (s for s in ranking.standings if may_be_told(ranking, s))
    return {f"{slug(s.candidate)}/.eval_results/bnbench.yaml": eval_results(ranking, s, dataset, None) for s in told}


FORMATS: Mapping[str, tuple[str, Callable[[Ranking, Dataset | None], Files]]] = MappingProxyType({
    "csv": ("ranking.csv", lambda ranking, _: {"": ranking_csv(ranking)}),
    "latex": ("ranking.tex", latex),
    "sacrebleu": ("sacrebleu.json", sacrebleu),
    "lm-eval": ("lm-eval", lm_eval),
    "every-eval-ever": ("every-eval-ever", every_eval_ever),
    "model-index": ("model-index", model_cards),
    "eval-results": ("eval-results", leaderboard),
})  # fmt: skip
