"""One training from request to adapter: guards first, then the tuner, then the record of what was done."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import bnbench
from bnbench import records
from bnbench.errors import PartialRunError, RecipeError, RunError, TrainingError, require
from bnbench.finetune.engine import processes
from bnbench.finetune.engine.processes import stop_on_signals
from bnbench.finetune.plan import FinetuneRequest, Plan, plan
from bnbench.finetune.recipes import get_tuner
from bnbench.finetune.tuners.base import Checkpoint, Gain, Job, Outcome, Point, newest_checkpoint, write_curve
from bnbench.plot import loss_svg

JOB = "job.json"
"""In the folder of the checkpoints: what a training must share to go on from them, `Plan.identity`."""
_PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "safetensors", "tokenizers",
)  # fmt: skip
_log = logging.getLogger("bnbench.finetune")


@dataclass(frozen=True)
class FinetuneResult:
    """What a session did. `finished` is False only when `stop_after` ended it: the same request goes on from there.

    `steps` of `total_steps` are done in all sessions, in `seconds`, and `resumed_from` of them before this one.
    `curve` has one point a step. `peak_memory_bytes` is None off a GPU, `gain` where no pairs were held out.
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
            **records.ends([(p.step, p.loss) for p in self.curve]),
        }

    def __str__(self) -> str:
        told, on_pairs = self.summary(), get_tuner(self.tuner).data == "pairs"
        loss = f"loss {told['loss_at_start']:.3f} → {told['loss_at_end']:.3f} nats a {'pair' if on_pairs else 'token'}"
        head = f"{self.steps} of {self.total_steps} steps in {self.seconds:.0f} s, {loss}"
        if not self.finished:
            return f"{head}; stopped for the time limit, the same command goes on from there"
        none = "no pairs were held out, so what the chosen replies gained on other messages is not known"
        gain = f"\n{self.gain or none}" if on_pairs else ""
        return f"{head}{gain}\nadapter: {self.output} ({self.trainable:,} parameters)"


def finetune(request: FinetuneRequest) -> FinetuneResult:
    """Trains an adapter, or goes on with one: the same request resumes after a kill, and gives a result again.

    `request.output` receives the adapter, training.json, loss.csv, loss.svg, and checkpoints/ on the way. Of several
    processes (`accelerate launch`, torchrun), which all call this, the first one writes, and all get the result.

    Raises RecipeError, CandidateError, PromptError or MissingExtraError for what cannot be done, TrainingError for
    rows that must not be trained on, a folder of another training or a GPU too small, and PartialRunError where SIGTERM
    or Ctrl-C stopped it: a checkpoint of the last step is saved then.
    """
    with processes.meet(request.device):
        planned, outcome, checkpoint = processes.first(lambda: _begin(request))
        resumed_from = outcome.steps if outcome else checkpoint.step if checkpoint else 0
        if outcome is None:
            with stop_on_signals(request.stop_after) as stop:
                job = make_job(request, planned, checkpoint, stop)
                try:
                    trained = outcome = get_tuner(planned.recipe.tuner).train(job)
                except KeyboardInterrupt:
                    raise _stopped(request, signal.SIGINT) from None
            processes.first(lambda: _end(request, planned, trained, resumed_from, stop.signal))
    return FinetuneResult(
        output=request.output, finished=outcome.steps == planned.steps, total_steps=planned.steps,
        resumed_from=resumed_from, trainable=planned.trainable, total=planned.total, tuner=planned.recipe.tuner,
        **vars(outcome),
    )  # fmt: skip


def _begin(request: FinetuneRequest) -> tuple[Plan, Outcome | None, Checkpoint | None]:
    """The plan, with the outcome of a training that is finished already, or the checkpoint to go on from."""
    planned = plan(request)
    tuner = planned.recipe.tuner
    if planned.processes > 1 and not get_tuner(tuner).shares_steps:
        raise RecipeError(f"the tuner {tuner!r} trains in one process: start it without a launcher")
    output, checkpoints = request.output, request.output / "checkpoints"

    if (output / records.TRAINING).is_file():
        try:
            record = records.read_training(output)
        except RunError as error:
            raise TrainingError(f"{error}; or choose another folder") from None
        if record is None:
            raise TrainingError(f"{output / records.TRAINING} is not what this bnbench writes: choose another folder")
        _check_same(output, record.identity, planned)
        _log.info("%s already holds this training, finished", output)
        curve = tuple(Point(*point) for point in record.loss)
        gain = Gain(**record.gain) if record.gain else None
        return planned, Outcome(record.steps, curve, record.seconds, record.peak_memory_bytes, gain), None

    newest = None
    if (checkpoints / JOB).is_file():
        newest = newest_checkpoint(checkpoints)
        if newest is not None:
            try:
                before = dict(json.loads((checkpoints / JOB).read_text(encoding="utf-8")))
            except (OSError, TypeError, ValueError) as error:
                why = f"{checkpoints / JOB} cannot be read ({error})"
                raise TrainingError(f"{why}: choose another folder, or remove this one") from None
            _check_same(output, before, planned)
    elif checkpoints.exists() and any(checkpoints.iterdir()):
        raise TrainingError(f"{checkpoints} holds files that bnbench did not write: choose another output folder")
    if newest is None and (output / "adapter_config.json").exists():
        raise TrainingError(
            f"{output} holds an adapter without {records.TRAINING}: choose another folder, or remove it"
        )
    records.write_json(checkpoints / JOB, planned.identity())
    _log.info("%s", planned)
    return planned, None, newest


def _check_same(output: Path, before: Mapping[str, Any], planned: Plan) -> None:
    """Raises TrainingError that names what the training in `output` has otherwise, `before` being its identity."""
    now, then = planned.identity(), dict(before.get("recipe") or {})
    changed = [part for part in now if part != "recipe" and before.get(part) != now[part]]
    keys = [f"{k} (then {then.get(k)!r}, now {v!r})" for k, v in now["recipe"].items() if then.get(k) != v]
    if parts := [*([f"recipe: {', '.join(keys)}"] if keys else []), *changed]:
        raise TrainingError(
            f"{output} belongs to another training; different: {'; '.join(parts)}. "
            "Give the same request to go on with it, or choose another folder"
        )


def make_job(
    request: FinetuneRequest, planned: Plan, checkpoint: Checkpoint | None, should_stop: Callable[[], bool]
) -> Job:
    """What a tuner is given for a plan, to begin or to go on from a checkpoint."""
    alike = {one.name: getattr(planned, one.name) for one in fields(Job) if hasattr(planned, one.name)}
    return Job(
        **alike, output=request.output, checkpoints=request.output / "checkpoints", resume=checkpoint,
        trust_remote_code=request.trust_remote_code, should_stop=should_stop,
    )  # fmt: skip


def _stopped(request: FinetuneRequest, number: int) -> PartialRunError:
    checkpoints = request.output / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    kept = f"step {newest.step} is saved" if newest else "no step was saved yet"
    again = f"\n  {request.command}" if request.command else ""
    error = PartialRunError(
        f"stopped by {signal.Signals(number).name}: {kept} in {checkpoints}. The same command goes on from there{again}"
    )
    error.exit_code = 130 if number == signal.SIGINT else error.exit_code
    return error


def _end(request: FinetuneRequest, planned: Plan, outcome: Outcome, resumed_from: int, stopped_by: int | None) -> None:
    """Records a finished training; PartialRunError for one that a signal ended, TrainingError if it learned nothing."""
    if outcome.steps < planned.steps:
        if stopped_by is not None:
            raise _stopped(request, stopped_by)
        return  # for the time limit, which is no error

    # LoRA starts with every B matrix at zero, and the adapter does nothing while all are.
    safetensors = require("safetensors", extra="finetune")
    with safetensors.safe_open(request.output / "adapter_model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if ".lora_B." in name]  # noqa: SIM118 - it is no mapping
        if names and not any(file.get_tensor(name).any() for name in names):
            raise TrainingError(
                f"{request.output}: the adapter is as it began, every lora_B zero: no step changed it. Train for more "
                'steps, raise learning_rate, or set precision = "float32"; remove the folder first'
            )

    packages = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(package)
    identity, base = planned.identity(), planned.base
    record = records.TrainingRecord(
        bnbench=bnbench.__version__, finished=datetime.now(UTC).isoformat(timespec="seconds"), command=request.command,
        recipe=planned.recipe.to_dict(), recipe_sha256=planned.recipe.sha256, seed=planned.recipe.seed,
        base=records.BaseRecord(name=base.name, revision=base.revision, commit=base.commit, **base.hashes),
        data=records.TrainingData(**identity["data"]), prompt=planned.prompt, precision=asdict(planned.precision),
        device=planned.device, machine=records.describe_environment()["device"], processes=planned.processes,
        parameters=records.ParameterCount(trainable=planned.trainable, total=planned.total), steps=outcome.steps,
        resumed_from=resumed_from, seconds=round(outcome.seconds, 3), peak_memory_bytes=outcome.peak_memory_bytes,
        packages=packages, loss=tuple((p.step, p.loss, p.learning_rate) for p in outcome.curve),
        gain=asdict(outcome.gain) if outcome.gain else None, examples=tuple(row.id for row in planned.rows),
        identity=identity,
    )  # fmt: skip
    records.write_text(request.output / "loss.svg", loss_svg(record.curve))
    write_curve(request.output / "loss.csv", outcome.curve)
    records.write_json(request.output / records.TRAINING, record)
