"""What a model card says: front matter with `model-index`, how to load the adapter, how it was trained and evaluated.

`model-index` follows the hub's model card specification. `.eval_results/*.yaml` follows the hub's documentation of 2026
(hub-docs, docs/hub/eval-results.md: dataset.id and dataset.task_id, value, date, source, notes). It is for data sets of
the hub that are benchmarks there, with the task that their eval.yaml names, so only the user can say which.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnbench.errors import RunError, UsageError
from bnbench.models.prompts import SYSTEM, template_of
from bnbench.records import RunRecord, TrainingRecord, read_record, slug
from bnbench.reports.panels import training_facts

MARK = "<!-- Written by bnbench publish, which writes it anew when it is run again. -->"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_METRICS = {"chrF++": "chrf", "chrF": "chrf", "BLEU": "bleu", "ROUGE": "rouge", "perplexity": "perplexity"}
_DETAIL = re.compile(r".*_(precision|recall)|rougeLsum|bits_per_byte")
_TOPIC, _MESSAGE = "মানসিক স্বাস্থ্য", "আমার মন খারাপ, কিছুতেই ঘুম আসে না।"


@dataclass(frozen=True)
class Evaluation:
    """One adapter's part of a run: `meta` is run.json, `ranking` ranking.json, `standing` its place therein."""

    meta: RunRecord
    ranking: Mapping[str, Any]
    standing: Mapping[str, Any]

    @property
    def primary(self) -> str:
        """The value that ranks."""
        return str(self.ranking["primary_value"])

    @property
    def base(self) -> str | None:
        """The candidate that it is compared with."""
        other = self.standing["compared_with"]
        return None if other is None else str(other)

    @property
    def notes(self) -> list[str]:
        """Warnings that belong to the numbers."""
        few = [f"{self.ranking['n']} messages are too few for intervals to be trusted"] * (self.ranking["n"] < 30)
        return [*few, *self.ranking["notes"]]

    @property
    def signatures(self) -> list[str]:
        """Of every metric, the primary one first."""
        return list(self.ranking["signatures"].values())

    @property
    def about(self) -> str:
        """What was answered, and how."""
        corpus, decoding = self.meta.corpus, self.meta.decoding
        how = "greedy" if decoding["greedy"] else f"temperature {decoding['temperature']}, top-p {decoding['top_p']}"
        return (
            f"{self.ranking['n']} messages of {corpus.name} (split {corpus.split}, fingerprint "
            f"{corpus.fingerprint[:12]}), bnbench {self.meta.bnbench}, {how}, "
            f"repetition penalty {decoding['repetition_penalty']}."
        )

    @property
    def verdict(self) -> str:
        """One sentence on the primary value."""
        metric, n = self.ranking["primary"], self.ranking["n"]
        score, c = self._score(metric, self.primary), self._versus(metric, self.primary)
        if c is None:
            return f"{self.primary} {_number(score['value'])} {_interval(score)} on {n} messages."
        said = {True: "Better than", False: "Worse than", None: "Not told apart from"}[c["better"]]
        other = f"its base {self.base}" if self.standing["is_own_base"] else self.base
        p = c["p"] if c["p_holm"] is None else c["p_holm"]
        difference = f"{_number(c['difference'], '+')} {self.primary} (95 % {_interval(c, '+')}, p = {p:.2g})"
        least = f"A true difference under {_number(c['smallest_detectable'])} would often go undetected."
        return f"{said} {other}: {difference} on {n} messages. {least}"

    @property
    def rows(self) -> Iterator[list[str]]:
        """The table: metric, value, score and interval, and against the base; what is 0 for both is left out."""
        for score in self.standing["scores"]:
            metric, name = score["metric"], score["name"]
            c = self._versus(metric, name)
            nothing = not score["value"] and (c is None or not c["difference"])
            if nothing or _DETAIL.fullmatch(name):
                continue
            arrow = "↑" if self.ranking["directions"][metric] else "↓"
            yield [f"{metric} {arrow}", name, _number(score["value"]), _interval(score), *self._difference(score, c)]

    def _difference(self, score: Mapping[str, Any], c: Mapping[str, Any] | None) -> list[str]:
        if c is None:
            return [""] * 5 if self.base else []
        p = c["p"] if c["p_holm"] is None else c["p_holm"]
        ends = [_number(score["value"] - c["difference"]), _number(c["difference"], "+"), _interval(c, "+")]
        return [*ends, f"{p:.2g}", {True: "better", False: "worse", None: "open"}[c["better"]]]

    def _score(self, metric: str, name: str) -> Mapping[str, Any]:
        return next(s for s in self.standing["scores"] if (s["metric"], s["name"]) == (metric, name))

    def _versus(self, metric: str, name: str) -> Mapping[str, Any] | None:
        found = (c for c in self.standing["versus_base"] if (c["metric"], c["name"]) == (metric, name))
        return next((c for c in found if None not in (c["difference"], c["p"])), None)

    def model_index(self, name: str, dataset: str | None) -> list[dict[str, Any]]:
        """The `model-index` of a model card: every value that the table has. `dataset` as for `eval_results`."""
        shown = {(row[0].split()[0], row[1]) for row in self.rows}
        corpus = self.meta.corpus
        metrics = [
            {"type": _HUB_METRICS.get(s["metric"], s["metric"]), "name": f"{s['metric']}: {s['name']}", "value": value}
            for s in self.standing["scores"]
            if (s["metric"], s["name"]) in shown and (value := s["value"]) is not None
        ]
        source = corpus.source
        is_hub = HUB_ID.fullmatch(source.partition("@")[0]) and not Path(source).suffix and not Path(source).exists()
        on_hub = re.split("[@#]", dataset or (source if is_hub else ""))[0]
        about = {"type": on_hub or slug(corpus.name), "name": corpus.name, "split": corpus.split}
        task = {"type": "text-generation", "name": "Replies to messages in Bengali"}
        return [{"name": name, "results": [{"task": task, "dataset": about, "metrics": metrics}]}]

    def eval_results(self, dataset: str, repo: str | None) -> list[dict[str, Any]]:
        """The one entry of `.eval_results/`: the primary value. `dataset` is owner/name[@revision][#task]."""
        rest, _, task = dataset.partition("#")
        identity, _, revision = rest.partition("@")
        about = {"id": identity, "task_id": task or "default"} | ({"revision": revision} if revision else {})
        score = self._score(self.ranking["primary"], self.primary)
        signature = self.ranking["signatures"][self.ranking["primary"]]
        source = {"source": {"url": f"https://huggingface.co/{repo}", "name": "Model card"}} if repo else {}
        return [
            {
                "dataset": about,
                "value": score["value"],
                "date": str(self.meta.finished),
                **source,
                "notes": f"{self.primary}, 95 % {_interval(score)}, {signature}",
            }
        ]


def read_evaluation(folder: Path, sha256: str) -> Evaluation:
    """The part of a run folder that is about the adapter whose weights have this hash.

    Raises RunError: no finished run, no ranking, or a run of other adapters.
    """
    meta = read_record(folder)
    adapters = [c for c in meta.candidates if c.kind == "adapter"]
    mine = next((c.name for c in adapters if c.weights_sha256 == sha256), None)
    if mine is None:
        others = ", ".join(f"{c.name} ({str(c.weights_sha256)[:12]})" for c in adapters) or "no adapter"
        raise RunError(
            f"{folder}: this run is about {others}, not about these weights ({sha256[:12]}): evaluate them with "
            "`bnbench evaluate --adapter`, or leave out --run"
        )
    if not meta.finished:
        raise RunError(f"{folder}: this run is not finished; go on with: {meta.command}")
    path = folder / "ranking.json"
    try:
        ranking = json.loads(path.read_text(encoding="utf-8"))
        standing = next(s for s in ranking["standings"] if s["candidate"] == mine)
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise RunError(
            f"{path}: {mine} cannot be read from it ({type(error).__name__}): write it with `bnbench report {folder}`"
        ) from None
    return Evaluation(meta, ranking, standing)


def check_dataset(given: str, evaluation: Evaluation | None) -> None:
    """Raises UsageError for a --dataset-id that cannot be what an evaluation was on."""
    if not HUB_ID.fullmatch(re.split("[@#]", given)[0]):
        raise UsageError(f"--dataset-id {given}: write it as owner/name[@revision][#task]")
    if evaluation is None:
        raise UsageError("--dataset-id says what the evaluation was on: give the evaluation with --run")


def snippet(base: str, revision: str | None, adapter: str, prompt: Mapping[str, Any]) -> str:
    """Python that loads base and adapter and replies to one message, prompted as in training where that is known."""
    at = f", revision={json.dumps(revision)}" if revision else ""
    system = str(prompt.get("system") or SYSTEM).replace("{topic}", _TOPIC)
    written = template_of(str(prompt.get("kind"))).replace("{user}", "{message}")
    llama = prompt.get("kind") == "llama-3.1"
    plain = "add_special_tokens=False, " if llama else ""
    asked = (
        f"prompt = f{json.dumps(written, ensure_ascii=False)}\n"
        f'inputs = tokenizer(prompt, {plain}return_tensors="pt").to(model.device)'
        if written
        else 'messages = [{"role": "system", "content": system}, {"role": "user", "content": message}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n).to(model.device)'
    )
    stop = ',\n    eos_token_id=tokenizer.convert_tokens_to_ids("<|eot_id|>")' if llama else ""
    return f"""\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({json.dumps(base)}{at})
base = AutoModelForCausalLM.from_pretrained({json.dumps(base)}{at}, dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(base, {json.dumps(adapter)})

system = {json.dumps(system, ensure_ascii=False)}
message = {json.dumps(_MESSAGE, ensure_ascii=False)}
{asked}
output = model.generate(
    **inputs, max_new_tokens=400, do_sample=True, temperature=0.7, top_p=0.9, repetition_penalty=1.1{stop},
)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def facts(record: TrainingRecord) -> list[tuple[str, str]]:
    """Labels and texts of the card's training table."""
    packages = {"bnbench": record.bnbench, **record.packages}
    return [
        *training_facts(record.summary()),
        ("Parameters", f"{record.parameters.trainable:,} trained, of {record.parameters.total:,}"),
        ("Data", f"fingerprint `{record.data.fingerprint}`"),
        ("Base weights", f"sha256 `{record.base.weights_sha256}`"),
        ("Packages", ", ".join(f"{k} {v}" for k, v in packages.items())),
    ]


def escaped(text: str) -> str:
    """Text that stays text in a Markdown table, but for `code`."""
    one_line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\*_\[\]|~$])", r"\\\1", one_line)


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.2f}".replace("-", "\N{MINUS SIGN}")


def _interval(of: Mapping[str, Any], sign: str = "") -> str:
    return f"{_number(of['low'], sign)} to {_number(of['high'], sign)}"
