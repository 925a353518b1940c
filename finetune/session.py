"""One training from request to adapter: guards first, then the tuner, then the record of what was done."""

import json
import logging
import re
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

import bnbench
from bnbench import records
from bnbench.errors import PartialRunError, RecipeError, RunError, TrainingError, require
from bnbench.finetune.engine import processes
from bnbench.finetune.engine.processes import stop_on_signals
from bnbench.finetune.plan import FinetuneRequest, Plan, plan
from bnbench.finetune.recipes import get_tuner
from bnbench.finetune.tuners.base import Outcome, Point, newest_checkpoint, write_curve
from bnbench.models.prompts import without_topic
from bnbench.plot import loss_svg

JOB = "job.json"  # in the folder of the checkpoints: what a training must share to go on from them, `Plan.identity`
_UNWRITTEN = re.compile("No space left on device|File too large|Disk quota exceeded|failed writing file|unexpected pos")
_log = logging.getLogger("bnbench.finetune")


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(Outcome):
    """What a session did: `steps` of `total_steps` are done in all sessions, `resumed_from` of them before it.

    It is not finished only where `stop_after` ended it: the same request goes on from there. Fewer steps than
    `total_steps` are all where validation stopped it early.
    """

    output: Path
    total_steps: int
    resumed_from: int
    trainable: int
    total: int
    tuner: str

    @property
    def finished(self) -> bool:
        """Whether the adapter is written."""
        return self.steps == self.total_steps or self.stopped_early

    def summary(self) -> dict[str, Any]:
        """The result as plain JSON values; the curve's means over its first and last tenth stand for it."""
        told = asdict(self) | {"output": str(self.output), "finished": self.finished} | records.ends(self.curve)
        return {key: value for key, value in told.items() if key != "curve"}

    def __str__(self) -> str:
        told, on_pairs = self.summary(), get_tuner(self.tuner).data == "pairs"
        loss = f"loss {told['loss_at_start']:.3f} → {told['loss_at_end']:.3f} nats a {'pair' if on_pairs else 'token'}"
        head = f"{self.steps} of {self.total_steps} steps in {self.seconds:.0f} s, {loss}"
        if not self.finished:
            return f"{head}; stopped for the time limit, the same command goes on from there"
        none = "no pairs were held out, so what the chosen replies gained on other messages is not known"
        gain = f"\n{self.gain or none}" if on_pairs else ""
        if self.validation:
            gain += f"\nvalidation: {self.validation.said(self.curve)}"
        return f"{head}{gain}\nadapter: {self.output} ({self.trainable:,} parameters)"


def finetune(request: FinetuneRequest) -> FinetuneResult:
    """Trains an adapter, or goes on with one: the same request resumes after a kill, and gives a result again.

    `request.output` receives the adapter, training.json, loss.csv, loss.svg, and checkpoints/ on the way. Of several
    processes (`accelerate launch`, torchrun), which all call this, the first one writes, and all get the result.
    Raises as `plan` for what cannot be done, RunError for a folder of another training, TrainingError where the work
    fails, and PartialRunError where SIGTERM or Ctrl-C stopped it: a checkpoint of the last step is saved then.
    """
    with processes.meet(request.device), ExitStack() as held:
        planned, outcome = processes.first(lambda: _begin(request, held))
        resumed_from = outcome.steps if outcome else planned.resume.step if planned.resume else 0
        if outcome is None:
            with stop_on_signals(request.stop_after) as stop:
                try:
                    trained = outcome = get_tuner(planned.recipe.tuner).train(replace(planned, should_stop=stop))
                except KeyboardInterrupt:
                    raise _stopped(planned, request.command, signal.SIGINT) from None
                except (OSError, RuntimeError, SafetensorError) as error:
                    # safetensors and torch have errors of their own for a disk that is full.
                    if not (found := _UNWRITTEN.search(str(error))):
                        raise
                    why = f"{planned.output} cannot be written ({found[0]}): make room; the same command goes on from "
                    raise TrainingError(f"{why}the last checkpoint") from error
            processes.first(lambda: _end(request, planned, trained, resumed_from, stop.signal))
    return FinetuneResult(
        output=planned.output, total_steps=planned.steps, resumed_from=resumed_from, trainable=planned.trainable,
        total=planned.total, tuner=planned.recipe.tuner, **vars(outcome),
    )  # fmt: skip


def _begin(request: FinetuneRequest, held: ExitStack) -> tuple[Plan, Outcome | None]:
    """The plan, `resume` in it, with the outcome of a training that is finished already; `held` keeps its folder."""
    held.enter_context(records.alone(request.output, records.OF_TRAINING))
    planned = plan(request)
    tuner, output, checkpoints = planned.recipe.tuner, planned.output, planned.checkpoints
    job = checkpoints / JOB
    if planned.processes > 1 and not get_tuner(tuner).shares_steps:
        raise RecipeError(f"the tuner {tuner!r} trains in one process: start it without a launcher")

    if (output / records.TRAINING).is_file():
        try:
            record = records.read_training(output)
        except RunError as error:
            raise RunError(f"{error}; or choose another folder") from None
        if record is None:
            raise RunError(f"{output / records.TRAINING} is not what this bnbench writes: choose another folder")
        _check_same(record.identity, planned)
        if not (output / "adapter_model.safetensors").is_file():
            how = f"put it back, or remove {records.TRAINING} to make it again from the last checkpoint"
            raise RunError(f"{output}: this training is finished, but its adapter_model.safetensors is gone; {how}")
        _log.info("%s already holds this training, finished", output)
        more = (record.seconds, record.peak_memory_bytes, record.gain, record.validation)
        return planned, Outcome(record.steps, tuple(Point(*point) for point in record.loss), *more)

    # What a kill in the first write of all leaves there is ours.
    if not job.is_file() and {path.name for path in checkpoints.glob("*")} - {f".{JOB}.tmp"}:
        raise RunError(f"{checkpoints} holds files that bnbench did not write: choose another output folder")
    newest = newest_checkpoint(checkpoints) if job.is_file() else None
    if newest is not None:
        try:
            _check_same(records.typed(Mapping[str, Any], json.loads(job.read_text(encoding="utf-8"))), planned)
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{job} cannot be read ({error}): choose another folder, or remove this one") from None
    elif (output / "adapter_config.json").exists():
        raise RunError(f"{output} holds an adapter without {records.TRAINING}: choose another folder, or remove it")
    records.write_json(job, planned.identity())
    _log.info("%s", planned)
    return replace(planned, resume=newest), None


def _check_same(before: Mapping[str, Any], planned: Plan) -> None:
    """Raises RunError that names what the training in the folder has otherwise, `before` being its identity."""
    now, recipe = planned.identity(), before.get("recipe")
    then = recipe if isinstance(recipe, dict) else {}
    changed = [part for part in {**before, **now} if part != "recipe" and before.get(part) != now.get(part)]
    keys = [f"{k} (then {then.get(k)!r}, now {v!r})" for k, v in now["recipe"].items() if then.get(k) != v]
    if other := [*([f"recipe: {', '.join(keys)}"] if keys else []), *changed]:
        what = f"{planned.output} belongs to another training; different: {'; '.join(other)}"
        raise RunError(f"{what}. Give the same request to go on with it, or choose another folder")


def _stopped(planned: Plan, command: str, number: int) -> PartialRunError:
    newest = newest_checkpoint(planned.checkpoints)
    kept = f"step {newest.step} is saved" if newest else "no step was saved yet"
    what = f"stopped by {signal.Signals(number).name}: {kept} in {planned.checkpoints}"
    error = PartialRunError(f"{what}. The same command goes on from there" + f"\n  {command}" * bool(command))
    error.exit_code = 130 if number == signal.SIGINT else error.exit_code
    return error


def _end(request: FinetuneRequest, planned: Plan, outcome: Outcome, resumed_from: int, stopped_by: int | None) -> None:
    """Records a finished training; PartialRunError for one that a signal ended, TrainingError if it learned nothing."""
    if outcome.steps < planned.steps and not outcome.stopped_early:
        if stopped_by is not None:
            raise _stopped(planned, request.command, stopped_by)
        return  # for the time limit, which is no error

    # LoRA starts with every B matrix at zero, and the adapter does nothing while all are.
    safetensors = require("safetensors", extra="finetune")
    with safetensors.safe_open(planned.output / "adapter_model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if ".lora_B." in name]  # noqa: SIM118 - it is no mapping
        if names and not any(file.get_tensor(name).any() for name in names):
            what = f"{planned.output}: the adapter is as it began, every lora_B zero: no step changed it"
            how = 'Train for more steps, raise learning_rate, or set precision = "float32"; remove the folder first'
            raise TrainingError(f"{what}. {how}")

    identity, base, prompt = planned.identity(), planned.base, dict(planned.prompt)
    if not any(e.topic.strip() for e in (*request.examples, *(pair.chosen for pair in request.pairs))):
        prompt["system"] = without_topic(prompt["system"])  # what every row was asked with, and a reply is to be
    environment = records.describe_environment("accelerate", "datasets", "safetensors")
    record = records.TrainingRecord(
        bnbench=bnbench.__version__, finished=datetime.now(UTC).isoformat(timespec="seconds"), command=request.command,
        recipe=planned.recipe.to_dict(), recipe_sha256=planned.recipe.sha256, seed=planned.recipe.seed,
        base=records.BaseRecord(name=base.name, revision=base.revision, commit=base.commit, **base.hashes),
        data=records.TrainingData(**identity["data"]), prompt=prompt, precision=asdict(planned.precision),
        device=planned.device, machine=environment["device"], processes=planned.processes,
        parameters=records.ParameterCount(trainable=planned.trainable, total=planned.total), steps=outcome.steps,
        resumed_from=resumed_from, seconds=round(outcome.seconds, 3), peak_memory_bytes=outcome.peak_memory_bytes,
        packages=environment["packages"], loss=outcome.curve, gain=outcome.gain, validation=outcome.validation,
        start=str(planned.start) if planned.start else None, examples=tuple(row.id for row in planned.rows),
        identity=identity,
    )  # fmt: skip
    records.write_text(planned.output / "loss.svg", loss_svg(outcome.curve, validation=outcome.validation))
    write_curve(planned.output / "loss.csv", outcome.curve)
    records.write_json(planned.output / records.TRAINING, record)
