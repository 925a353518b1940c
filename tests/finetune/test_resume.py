from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bnbench.errors import PartialRunError, RunError
from bnbench.finetune import FinetuneRequest, FinetuneResult, finetune
from bnbench.finetune.engine.processes import Stop

from .conftest import make_request

Request = Callable[..., FinetuneRequest]

CHILD = """
import json, os, signal, sys
from pathlib import Path
import torch
from bnbench.data.corpus import Example
from bnbench.finetune import FinetuneRequest, finetune
torch.set_num_threads(1)
save = torch.save

def save_half(value, file, *more, **named):
    save(value, file, *more, **named)
    if str(file).endswith("checkpoint-STEP/optimizer.pt"):
        os.truncate(file, os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save_half
given = json.loads(sys.stdin.read())
examples = tuple(Example(**e) for e in given.pop("examples"))
finetune(FinetuneRequest(**{**given, "examples": examples, "output": Path(given["output"])}))
"""


@pytest.fixture
def recipe() -> str:
    """Padded rows in float32; tests name "t4" for packed ones on a 4-bit base, recomputed, with an 8-bit optimizer."""
    return "demo"


@pytest.fixture(scope="module")
def train_once(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FinetuneResult]:
    """The 18 steps of a recipe's default request, never stopped."""
    return cache(lambda recipe: finetune(make_request(tiny_base, tmp_path_factory.mktemp("o") / "out", recipe=recipe)))


@pytest.fixture
def undisturbed(recipe: str, train_once: Callable[[str], FinetuneResult]) -> FinetuneResult:
    """Its folder is read only."""
    return train_once(recipe)


@pytest.fixture
def request_for(recipe: str, tiny_base: Path, tmp_path: Path) -> Request:
    return lambda output="out", **changes: make_request(tiny_base, tmp_path / output, recipe=recipe, **changes)


def as_json(request: FinetuneRequest) -> str:
    plain = {k: v for k, v in vars(request).items() if v is not None}
    return json.dumps({**plain, "output": str(request.output), "examples": [vars(e) for e in request.examples]})


def same(a: FinetuneResult, b: FinetuneResult) -> bool:
    files = ("adapter_model.safetensors", "adapter_config.json", "loss.csv")
    return a.curve == b.curve and all((a.output / f).read_bytes() == (b.output / f).read_bytes() for f in files)


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sends this process a signal after a number of steps."""

    def arrange(number: int, step: int) -> None:
        steps: list[None] = []
        ask = Stop.__call__

        def asked(self: Stop) -> bool:
            steps.append(None)
            if len(steps) == step:
                os.kill(os.getpid(), number)
            return ask(self)

        monkeypatch.setattr(Stop, "__call__", asked)

    return arrange


@pytest.fixture
def train_till_torn(forked: Any, tmp_path: Path) -> Callable[[FinetuneRequest, int], int]:
    """Another process, which kills itself while it writes the checkpoint of that step; its exit code."""

    def train(request: FinetuneRequest, step: int) -> int:
        [done] = forked(CHILD.replace("STEP", str(step)), folder=tmp_path, given=as_json(request))
        return int(done.returncode)

    return train


@pytest.mark.no_cover
@pytest.mark.parametrize("recipe", ["t4"])
def test_killed_in_a_checkpoint_and_stopped_again_ends_like_an_undisturbed_run(
    request_for: Request,
    undisturbed: FinetuneResult,
    interrupting: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    train_till_torn: Callable[[FinetuneRequest, int], int],
) -> None:
    request = request_for("killed")
    assert train_till_torn(request, 6) == -signal.SIGKILL
    assert (request.output / "checkpoints" / "checkpoint-6" / "optimizer.pt").exists()
    interrupting(signal.SIGTERM, 4)
    with pytest.raises(PartialRunError, match="step 7 is saved"):
        finetune(request)
    assert "checkpoint-6 is torn" in caplog.text
    monkeypatch.undo()
    resumed = finetune(request)
    assert resumed.resumed_from == 7 and same(resumed, undisturbed)


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("recipe", "number", "code"), [("demo", signal.SIGTERM, 3), ("demo", signal.SIGINT, 130), ("t4", signal.SIGTERM, 3)]
)
def test_signal_saves_the_step_and_the_same_request_goes_on(
    request_for: Request,
    undisturbed: FinetuneResult,
    interrupting: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    request = request_for("stopped", command="bnbench finetune --recipe demo")
    interrupting(number, 4)
    with pytest.raises(PartialRunError, match=r"step 4 is saved.*\n  bnbench finetune --recipe demo") as caught:
        finetune(request)
    assert caught.value.exit_code == code
    monkeypatch.undo()
    resumed = finetune(request)
    assert resumed.resumed_from == 4
    assert same(resumed, undisturbed)


@pytest.mark.no_cover
@pytest.mark.parametrize("recipe", ["demo", "t4"])
def test_time_limit_returns_unfinished_and_goes_on(request_for: Request, undisturbed: FinetuneResult) -> None:
    first = finetune(request_for("timed", stop_after=0.0))
    assert (
        not first.finished and "the same command goes on" in str(first) and first.steps == 1 and len(first.curve) == 1
    )
    assert not (first.output / "training.json").exists() and not (first.output / "adapter_config.json").exists()
    second = finetune(request_for("timed"))
    assert second.finished and second.resumed_from == 1
    assert same(second, undisturbed)


@pytest.fixture
def copied(request_for: Request, undisturbed: FinetuneResult) -> FinetuneRequest:
    """A request whose folder already holds the whole training."""
    request = request_for("copy")
    shutil.copytree(undisturbed.output, request.output)
    return request


def test_end_lost_between_last_step_and_record(copied: FinetuneRequest, undisturbed: FinetuneResult) -> None:
    for name in ("training.json", "adapter_model.safetensors"):
        (copied.output / name).unlink()
    again = finetune(copied)
    assert again.resumed_from == 18 and again.finished and same(again, undisturbed)


def test_torn_checkpoint_is_not_gone_on_from(copied: FinetuneRequest, undisturbed: FinetuneResult) -> None:
    (copied.output / "training.json").unlink()
    (copied.output / "checkpoints" / "checkpoint-18" / "optimizer.pt").write_bytes(b"half")
    again = finetune(copied)
    assert again.resumed_from == 15 and same(again, undisturbed)


def test_checkpoints_of_nobody_knows_what(copied: FinetuneRequest) -> None:
    (copied.output / "training.json").unlink()
    job = copied.output / "checkpoints" / "job.json"
    for text in ("{", "[1]"):
        job.write_text(text, encoding="utf-8")
        with pytest.raises(RunError, match=r"job\.json cannot be read .*: choose another folder"):
            finetune(copied)


def test_finished_training_is_given_again(copied: FinetuneRequest, undisturbed: FinetuneResult) -> None:
    stamp = (copied.output / "adapter_model.safetensors").stat().st_mtime_ns
    again = finetune(replace(copied, overrides={**copied.overrides, "log_every": "1"}))
    assert again == replace(undisturbed, output=copied.output, resumed_from=18, seconds=again.seconds)
    assert (copied.output / "adapter_model.safetensors").stat().st_mtime_ns == stamp


def test_what_a_kill_in_the_first_write_left_is_no_file_of_others(request_for: Request) -> None:
    request = request_for("killed", rows=8, stop_after=0.0)
    (request.output / "checkpoints").mkdir(parents=True)
    (request.output / "checkpoints" / ".job.json.tmp").write_text("{", encoding="utf-8")
    assert finetune(request).steps == 1
    assert not (request.output / "checkpoints" / ".job.json.tmp").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_another_request_is_refused_by_name(
    request_for: Request, make_base: Any, tiny_tokenizer: Any, tmp_path: Path, finished: bool
) -> None:
    request = request_for(rows=8, stop_after=None if finished else 0.0)
    finetune(request)
    other = make_base(tmp_path / "other", tiny_tokenizer, intermediate_size=96)
    with pytest.raises(RunError, match=r"different: recipe: learning_rate \(then 0\.002, now 0\.001\)\."):
        finetune(replace(request, overrides={**request.overrides, "learning_rate": "1e-3"}))
    with pytest.raises(RunError, match=r"different: data\."):
        finetune(replace(request, examples=request.examples[:-1]))
    with pytest.raises(RunError, match=r"different: base\."):
        finetune(replace(request, base=str(other)))
    with pytest.raises(RunError, match=r"different: data; prompt\."):
        finetune(replace(request, system="আপনি একজন শিক্ষক।"))


@pytest.mark.parametrize(
    ("record", "why"), [("{", "damaged"), ('{"schema_version": 99}', "not what this bnbench writes")]
)
def test_a_record_that_is_not_ours_is_left_alone(request_for: Request, record: str, why: str) -> None:
    request = request_for("theirs")
    request.output.mkdir()
    (request.output / "training.json").write_text(record, encoding="utf-8")
    with pytest.raises(RunError, match=rf"{why}.*choose another folder"):
        finetune(request)
    assert (request.output / "training.json").read_text(encoding="utf-8") == record


def test_files_of_others_are_left_alone(request_for: Request) -> None:
    request = request_for("theirs")
    foreign = request.output / "checkpoints" / "checkpoint-7"
    foreign.mkdir(parents=True)
    with pytest.raises(RunError, match="did not write"):
        finetune(request)
    assert foreign.exists()
    request = request_for("adapter")
    request.output.mkdir()
    (request.output / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"holds an adapter \(adapter_config\.json\), and nothing to go on with"):
        finetune(request)
