"""What was run, from run.json, as labels and texts: everything that a reader needs to run it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bnbench.records import CandidateRecord, CorpusRecord, Run
from bnbench.reports.format import ABSENT, counted


@dataclass(frozen=True)
class RunView:
    """One run: `facts` are (label, text) pairs; `steps` name, dropped, why; `models` one mapping a candidate."""

    name: str
    command: str
    facts: tuple[tuple[str, str], ...]
    steps: tuple[Mapping[str, Any], ...]
    models: tuple[Mapping[str, str], ...]


def run_view(run: Run) -> RunView:
    """Run.json, readable; what a run did not record is left out."""
    meta = run.record
    facts = {
        "Corpus": _corpus(meta.corpus),
        "Fingerprint": meta.corpus.fingerprint,
        "Prompt": _prompt(meta.prompt),
        "System prompt": meta.prompt.get("system"),
        "Decoding": _decoding(meta.decoding),
        "Precision": _precision(meta.precision),
        "Device": _device(meta.device),
        "Peak memory": _gibibytes(meta.peak_memory_bytes),
        "Versions": ", ".join(f"{k} {v}" for k, v in {"bnbench": meta.bnbench, **meta.packages}.items() if v),
        "Run": " to ".join(_time(stamp) for stamp in (meta.created, meta.finished) if stamp),
    }
    known = tuple((k, str(v)) for k, v in facts.items() if v)
    models = tuple(_model(c) for c in meta.candidates)
    return RunView(meta.name, meta.command, known, meta.corpus.steps, models)


def _corpus(corpus: CorpusRecord) -> str:
    source = "" if corpus.source == corpus.name else f" from {corpus.source}"
    limit = f", limited to {corpus.limit}" if corpus.limit else ""
    return f"{corpus.name}{source}: split {corpus.split}, {counted(corpus.n, 'item')}{limit}"


def _prompt(prompt: Mapping[str, Any]) -> str:
    hashes = {"template": prompt.get("template_sha"), "tokenizer": prompt.get("tokenizer_sha")}
    known = [str(prompt["kind"])] if prompt.get("kind") else []
    return ", ".join(known + [f"{k} sha256 {_short(v)}" for k, v in hashes.items() if v])


def _decoding(decoding: Mapping[str, Any]) -> str:
    if decoding.get("greedy"):
        decoding = {k: v for k, v in decoding.items() if k not in ("temperature", "top_p", "top_k", "seed")}
    pairs = [f"{k.replace('_', ' ')} {v}" for k, v in decoding.items() if k != "greedy" and v is not None]
    return ", ".join(["greedy" if decoding.get("greedy") else "sampled", *pairs])


def _precision(precision: Mapping[str, Any]) -> str:
    quantised = precision.get("quantisation")
    words = [precision.get("dtype"), quantised if quantised and quantised != "none" else None]
    reason = f" – {precision['reason']}" if precision.get("reason") else ""
    return ", ".join(str(w) for w in words if w) + reason


def _device(device: Mapping[str, Any]) -> str:
    cpus = f"{device['cpus']} CPUs" if device.get("cpus") else None
    parts = [device.get("accelerator") or "CPU only", cpus, device.get("machine"), device.get("system")]
    return ", ".join(str(p) for p in parts if p) if device else ""


def _model(candidate: CandidateRecord) -> dict[str, str]:
    revision = f"@{candidate.revision}" if candidate.revision else ""
    speed, seconds = candidate.tokens_per_second, candidate.seconds
    weights = candidate.weights_sha256 or candidate.key_fields.get("weights_sha256")
    return {
        "name": candidate.name,
        "kind": candidate.kind,
        "location": f"{candidate.location}{revision}",
        "base": candidate.base or ABSENT,
        "weights": _short(weights) if weights else ABSENT,
        "seconds": ABSENT if seconds is None else f"{seconds:,.1f} s",
        "speed": ABSENT if speed is None else f"{speed:,.0f} tokens/s",
    }


def _time(stamp: Any) -> str:
    return str(stamp).replace("T", " ").replace("+00:00", " UTC")


def _gibibytes(size: float | None) -> str | None:
    return None if size is None else f"{size / 2**30:.2f} GiB"


def _short(digest: Any) -> str:
    return str(digest)[:12]
