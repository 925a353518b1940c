"""One training from request to adapter: guards first, then the tuner, then the record of what was done."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import bnbench
from bnbench.errors import PartialRunError, RecipeError, TrainingError
from bnbench.extras import require
from bnbench.finetune.checkpoints import Checkpoint, newest_checkpoint
from bnbench.finetune.engine import processes
from bnbench.finetune.engine.stopping import Stop, listening
from bnbench.finetune.plan import FinetuneRequest, Plan, plan
from bnbench.finetune.tuners.base import Gain, Job, Outcome, Point, get_tuner
from bnbench.finetune.tuners.gain import NOTHING_HELD_OUT, gain_from
from bnbench.plot import loss_svg
from bnbench.records import SCHEMA_VERSION, TRAINING, describe_environment, ends, write_json, write_text

JOB = "job.json"
_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "tokenizers",
)
_log = logging.getLogger("bnbench.finetune")


@dataclass(frozen=True)
class FinetuneResult:
    """What a session did. `finished` is False only when `stop_after` ended it: the same request goes on from there.

    `steps` of `total_steps` are done in all sessions together, `resumed_from` of them before this one; `seconds` is
    their training time. `curve` has one point a step. `peak_memory_bytes` is None off a card. `gain` is what a training
    on pairs did to held-out ones, None where there were none, and before it is finished.
    """

    output: Path
    finished: bool
    steps: int
    total_steps: int
    resumed_from: int
    curve: tuple[Point, ...]
    seconds: float
    trainable: int
    total: int
    peak_memory_bytes: int | None
    tuner: str
    gain: Gain | None = None

    def summary(self) -> dict[str, Any]:
        """The result as plain JSON values; the curve's means over its first and last tenth stand for it."""
        return {
            **{k: v for k, v in asdict(self).items() if k not in ("curve", "output")},
            "output": str(self.output),
            **ends([(p.step, p.loss) for p in self.curve]),
        }

    def __str__(self) -> str:
        told = self.summary()
        unit = "pair" if self.tuner == "dpo" else "token"
        loss = f"loss {told['loss_at_start']:.3f} → {told['loss_at_end']:.3f} nats a {unit}"
        head = f"{self.steps} of {self.total_steps} steps in {self.seconds:.0f} s, {loss}"
        if not self.finished:
            return f"{head}; stopped for the time limit, the same command goes on from there"
        gain = f"\n{self.gain or NOTHING_HELD_OUT}" if self.tuner == "dpo" else ""
        return f"{head}{gain}\nadapter: {self.output} ({self.trainable:,} parameters)"


def finetune(request: FinetuneRequest) -> FinetuneResult:
    """Trains an adapter, or goes on with one: the same request after a kill resumes, after the end gives the result
    again.

    `request.output` receives adapter_model.safetensors, adapter_config.json, training.json, loss.csv and loss.svg, and
    checkpoints/ on the way. Progress is on stderr, notes in the log `bnbench.finetune`. In several processes
    (`accelerate launch`, torchrun) all call this alike: the first one writes, and all get the result.

    Raises:
        RecipeError, CandidateError, PromptError, MissingExtraError: the request cannot be carried out as it is.
        TrainingError: rows that must not be trained on, a folder that belongs to another training, a card too small.
        PartialRunError: stopped by SIGTERM or Ctrl-C; a checkpoint of the last step is saved.
    """
    checkpoints = request.output / "checkpoints"
    with processes.joined(request.device):
        planned, before = processes.first(lambda: _begin(request, checkpoints))
        if isinstance(before, FinetuneResult):
            return before
        resumed_from = before.step if before else 0
        with listening(request.stop_after) as stop:
            job = _job(request, planned, checkpoints, before, stop)
            try:
                outcome = get_tuner(planned.recipe.tuner).train(job)
            except KeyboardInterrupt:
                raise _stopped(request, checkpoints, signal.SIGINT) from None
        processes.first(lambda: _end(request, checkpoints, planned, outcome, resumed_from, stop))
    return _result(request.output, planned, outcome, resumed_from)


def _begin(request: FinetuneRequest, checkpoints: Path) -> tuple[Plan, Checkpoint | FinetuneResult | None]:
    """The plan, and the checkpoint to go on from or the result that is there already."""
    planned = plan(request)
    tuner = get_tuner(planned.recipe.tuner)
    if planned.processes > 1 and not getattr(tuner, "shares_steps", False):
        raise RecipeError(f"the tuner {planned.recipe.tuner!r} trains in one process: start it without a launcher")
    if (request.output / TRAINING).is_file():
        return planned, _finished_before(request.output, planned)
    resume = _resume_from(request.output, checkpoints, planned)
    write_json(checkpoints / JOB, planned.identity())
    _log.info("%s", planned)
    return planned, resume


def _end(
    request: FinetuneRequest, checkpoints: Path, planned: Plan, outcome: Outcome, resumed_from: int, stop: Stop
) -> None:
    if outcome.steps == planned.steps:
        _check_trained(request.output)
        write_text(request.output / "loss.svg", loss_svg([(p.step, p.loss) for p in outcome.curve]))
        write_json(request.output / TRAINING, _record(request, planned, outcome, resumed_from))
    elif stop.signal is not None:
        raise _stopped(request, checkpoints, stop.signal)


def _check_trained(output: Path) -> None:
    """LoRA starts with every B matrix at zero. Raises TrainingError where all still are: nothing was learned."""
    safetensors = require("safetensors", extra="finetune")
    with safetensors.safe_open(output / "adapter_model.safetensors", framework="pt") as file:
        ends = [name for name in file.keys() if ".lora_B." in name]  # noqa: SIM118 - it is no mapping
        if ends and not any(file.get_tensor(name).any() for name in ends):
            raise TrainingError(
                f"{output}: the adapter is as it began, every lora_B zero: no step changed it. Train for more steps, "
                'raise learning_rate, or set precision = "float32"; remove the folder first'
            )


def _finished_before(output: Path, planned: Plan) -> FinetuneResult:
    record = _read(output / TRAINING)
    _refuse_other(output, record.get("identity", {}), planned)
    _log.info("%s already holds this training, finished", output)
    return _from_record(output, record)


def _resume_from(output: Path, checkpoints: Path, planned: Plan) -> Checkpoint | None:
    """The newest whole checkpoint of this very training. Nothing of another one, or of another tool, is touched."""
    if (checkpoints / JOB).is_file():
        newest = newest_checkpoint(checkpoints)
        if newest is not None:
            _refuse_other(output, _read(checkpoints / JOB), planned)
            return newest
    elif checkpoints.exists() and any(checkpoints.iterdir()):
        raise TrainingError(f"{checkpoints} holds files that bnbench did not write: choose another output folder")
    if (output / "adapter_config.json").exists():
        raise TrainingError(f"{output} holds an adapter without {TRAINING}: choose another folder, or remove it")
    return None


def _refuse_other(output: Path, before: Mapping[str, Any], planned: Plan) -> None:
    now = planned.identity()
    if before == now:
        return
    changed = [part for part in now if part != "recipe" and before.get(part) != now[part]]
    then = before.get("recipe", {})
    keys = [f"{k} (then {then.get(k)!r}, now {v!r})" for k, v in now["recipe"].items() if then.get(k) != v]
    parts = [f"recipe: {', '.join(keys)}"] if keys else []
    raise TrainingError(
        f"{output} belongs to another training; different: {'; '.join([*parts, *changed])}. "
        "Give the same request to go on with it, or choose another folder"
    )


def _job(request: FinetuneRequest, planned: Plan, checkpoints: Path, resume: Checkpoint | None, stop: Stop) -> Job:
    return Job(
        recipe=planned.recipe,
        base=planned.base,
        rows=planned.rows,
        pad_id=planned.pad_id,
        precision=planned.precision,
        device=planned.device,
        steps=planned.steps,
        warmup_steps=planned.warmup_steps,
        output=request.output,
        checkpoints=checkpoints,
        resume=resume,
        trust_remote_code=request.trust_remote_code,
        should_stop=stop,
        held_out=planned.held_out,
    )


def _stopped(request: FinetuneRequest, checkpoints: Path, number: int) -> PartialRunError:
    newest = newest_checkpoint(checkpoints)
    kept = f"step {newest.step} is saved" if newest else "no step was saved yet"
    again = f"\n  {request.command}" if request.command else ""
    error = PartialRunError(
        f"stopped by {signal.Signals(number).name}: {kept} in {checkpoints}. The same command goes on from there{again}"
    )
    error.exit_code = 130 if number == signal.SIGINT else error.exit_code
    return error


def _record(request: FinetuneRequest, planned: Plan, outcome: Outcome, resumed_from: int) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "bnbench": bnbench.__version__,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": request.command,
        "recipe": planned.recipe.to_dict(),
        "recipe_sha256": planned.recipe.sha256,
        "base": {
            "name": planned.base.name,
            "revision": planned.base.revision,
            "commit": planned.base.commit,
            **planned.base.hashes(),
        },
        "data": planned.identity()["data"],
        "prompt": dict(planned.prompt),
        "precision": asdict(planned.precision),
        "device": planned.device,
        "machine": describe_environment()["device"],
        "processes": planned.processes,
        "seed": planned.recipe.seed,
        "parameters": {"trainable": planned.trainable, "total": planned.total},
        "steps": outcome.steps,
        "resumed_from": resumed_from,
        "seconds": round(outcome.seconds, 3),
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "packages": {p: v for p in _PACKAGES if (v := _version(p)) is not None},
        "loss": [[p.step, p.loss, p.learning_rate] for p in outcome.curve],
        **({"gain": outcome.gain.to_dict() if outcome.gain else None} if planned.recipe.pairs else {}),
        "examples": [row.id for row in planned.rows],
        "identity": planned.identity(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): choose another folder, or remove this one") from None
    if not isinstance(value, dict):
        raise TrainingError(f"{path} is no JSON object: choose another folder, or remove this one")
    return value


def _result(output: Path, planned: Plan, outcome: Outcome, resumed_from: int) -> FinetuneResult:
    return FinetuneResult(
        output=output,
        finished=outcome.steps == planned.steps,
        steps=outcome.steps,
        total_steps=planned.steps,
        resumed_from=resumed_from,
        curve=outcome.curve,
        seconds=outcome.seconds,
        trainable=planned.trainable,
        total=planned.total,
        peak_memory_bytes=outcome.peak_memory_bytes,
        tuner=planned.recipe.tuner,
        gain=outcome.gain,
    )


def _from_record(output: Path, record: Mapping[str, Any]) -> FinetuneResult:
    return FinetuneResult(
        output=output,
        finished=True,
        steps=record["steps"],
        total_steps=record["steps"],
        resumed_from=record["steps"],
        curve=tuple(Point(*point) for point in record["loss"]),
        seconds=record["seconds"],
        trainable=record["parameters"]["trainable"],
        total=record["parameters"]["total"],
        peak_memory_bytes=record["peak_memory_bytes"],
        tuner=record["recipe"]["tuner"],
        gain=gain_from(record),
    )
