"""Two processes on the CPU, started as a launcher starts them, train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bnbench
from bnbench.errors import RecipeError
from bnbench.finetune import FinetuneRequest, finetune, load_recipe, plan, session
from bnbench.finetune.engine.collate import Row, share
from bnbench.finetune.tuners.adapter import AdapterTuner

Request = Callable[..., FinetuneRequest]
ROOT = Path(bnbench.__file__).parents[1]
SETTINGS = {"batch_size": "2", "accumulate": "2", "epochs": "1", "save_every": "2", "tokens_per_row": "256"}
SETTINGS["validate_every"] = "1"

CHILD = """
import json, os, signal, sys
from pathlib import Path
import torch
from bnbench.data.corpus import Example
from bnbench.errors import BnbenchError
from bnbench.finetune import FinetuneRequest, finetune
from bnbench.finetune.engine.processes import Stop
torch.set_num_threads(1)
given = json.loads(sys.stdin.read())
examples = tuple(Example(**e) for e in given["examples"])
second, ask = os.environ["RANK"] == "1", Stop.__call__

held = []
def train(output, dropout="0", at_step_2=None, **more):
    steps = []
    def asked(stop):
        steps.append(None)
        if second and at_step_2 and len(steps) == 2:
            at_step_2()
        return ask(stop)
    Stop.__call__ = asked
    settings = {**given["settings"], "dropout": dropout, **more}
    output = Path(given["folder"]) / output
    try:
        result = finetune(FinetuneRequest(given["base"], examples, "f00d", output, "t4", settings, device="cpu",
                                          validation=examples[::3]))
        told = {"steps": result.steps, "resumed": result.resumed_from, "curve": [p.loss for p in result.curve]}
        told["validation"] = [bits for _, bits, _ in result.validation.curve]
    except (BnbenchError, SystemExit) as error:
        told = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(told | ({"held": held[-1]} if held else {})), flush=True)
"""
ALIKE = """
train("plain")
train("whole", "0.05")
train("stopped", "0.05", lambda: os.kill(os.getpid(), signal.SIGTERM))
train("stopped", "0.05")
train("plain")
train("lost", at_step_2=lambda: os._exit(9))
"""
SHARED = """
from bnbench.finetune.tuners import adapter
adapt = adapter.adapt
def measured(base, *given, **named):
    if not next(base.parameters()).is_meta:
        layers = [p for layer in base.model.layers for p in layer.parameters()]
        storages = {s.data_ptr(): s.nbytes() for s in (p.untyped_storage() for p in layers)}
        held.append(sum(storages.values()))
    return adapt(base, *given, **named)
adapter.adapt = measured
whole = {"tuner": "lora", "quantisation": "none"}
train("plain")
train("plain-16", **whole)
os.environ["ACCELERATE_USE_FSDP"] = "true"
train("shared")
train("shared-16", **whole)
train("stopped", at_step_2=lambda: os.kill(os.getpid(), signal.SIGTERM))
train("stopped")
train("refused", dora="true")
train("lost", at_step_2=lambda: os._exit(9))
"""


@pytest.fixture
def launch(request_for: Request, tmp_path: Path, forked: Any) -> Callable[..., list[list[dict[str, Any]]]]:
    return lambda script, base=None: launched(script, request_for(rows=9), tmp_path, base, forked)


def launched(
    script: str, request: FinetuneRequest, tmp_path: Path, base: Path | None, forked: Any
) -> list[list[dict[str, Any]]]:
    """What each of two processes says of its trainings."""
    given = {"base": str(base or request.base), "settings": {"r": "4", **SETTINGS}, "folder": str(tmp_path)}
    text = json.dumps({**given, "examples": [vars(e) for e in request.examples]})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    each = [{**told, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    done = forked(CHILD + script, folder=tmp_path, given=text, each=each)
    assert [one.returncode for one in done] == [0, 9], done[0].stderr + done[1].stderr
    return [[json.loads(line) for line in one.stdout.splitlines()] for one in done]


def test_two_processes_train_as_one(launch: Any, request_for: Request, tmp_path: Path) -> None:
    told = launch(ALIKE)
    request = request_for("one", rows=9, recipe="t4", overrides={**SETTINGS, "dropout": "0", "learning_rate": "2e-4"})
    one = finetune(replace(request, validation=request.examples[::3]))
    plain, whole, stopped, resumed, again, lost = told[0]
    assert plain["steps"] == 3 and plain["curve"] == pytest.approx([p.loss for p in one.curve], rel=1e-6)
    assert one.validation is not None and resumed["validation"] == whole["validation"]
    assert plain["validation"] == pytest.approx([bits for _, bits, _ in one.validation.curve], rel=1e-6)
    expected, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "plain"))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=0, atol=1e-6), name
    record = json.loads((tmp_path / "plain" / "training.json").read_text(encoding="utf-8"))
    assert record["processes"] == 2
    # A signal to the second stops both, and the first says so.
    assert "stopped by SIGTERM: step 2 is saved" in stopped["error"]
    assert told[1][2] == {"error": "3", "kind": "SystemExit"}
    assert resumed["resumed"] == 2 and resumed["curve"] == whole["curve"] != plain["curve"]
    for name in ("adapter_model.safetensors", "loss.csv"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert again == {**plain, "resumed": 3} and [told[1][i] for i in (0, 1, 3, 4)] == [plain, whole, resumed, again]
    assert lost["kind"] == "TrainingError" and "process 0 of 2 lost the others" in lost["error"]


def test_two_processes_share_a_base(
    launch: Any, make_base: Callable[..., Path], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", tiny_tokenizer, num_hidden_layers=8, hidden_size=128, intermediate_size=256)
    for plain, plain_16, shared, shared_16, stopped, resumed, refused, *lost in launch(SHARED, base):
        for one, other in ((plain, shared), (plain_16, shared_16), (plain, resumed)):
            assert other["curve"] == pytest.approx(one["curve"], abs=1e-4) and other["steps"] == 3
            assert other["validation"] == pytest.approx(one["validation"], abs=1e-4)
        for one, other in ((plain, shared), (plain_16, shared_16)):  # four of eight layers, and the one that is sent
            assert 0.6 * one["held"] < other["held"] < 0.7 * one["held"]
        assert "error" in stopped and resumed["resumed"] == 2
        assert "DoRA" in refused["error"] or refused["kind"] == "SystemExit"
        assert [found["kind"] for found in lost] in ([], ["TrainingError"])
    for one, other in (("plain", "shared"), ("plain-16", "shared-16"), ("plain", "stopped")):
        expected, found = (load_file(tmp_path / name / "adapter_model.safetensors") for name in (one, other))
        assert expected.keys() == found.keys()
        configs = [(tmp_path / name / "adapter_config.json").read_bytes() for name in (one, other)]
        assert configs[0] == configs[1]
        assert all(torch.allclose(found[name], value, rtol=0, atol=1e-4) for name, value in expected.items())


def test_shares_are_even_and_lose_nothing() -> None:
    rows = [Row(str(i), (7,) * n, (7,) * n) for i, n in enumerate((90, 10, 50, 60, 20, 30, 80, 70))]
    batches = [rows[:4], rows[4:]]
    assert share(batches, 4, 0, 1) == batches
    for count in (2, 4, 8):
        shares = [share(batches, 4, index, count) for index in range(count)]
        assert all(len(s) == 2 and s[-1] for s in shares)
        dealt = [[row for batch in s for row in batch] for s in shares]
        assert sorted(row.id for d in dealt for row in d) == sorted(row.id for row in rows)
        assert {len(d) for d in dealt} == {8 // count}
        tokens = [sum(len(row.ids) for row in d) for d in dealt]
        assert count == 8 or max(tokens) - min(tokens) <= 20
    assert [share([rows[:1]], 4, index, 2) for index in range(2)] == [[[rows[0]]], [[]]]


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(key, value)


@pytest.mark.usefixtures("three")
def test_plan_says_how_many_processes(request_for: Request) -> None:
    with pytest.raises(RecipeError, match=r"a step of 4 rows .* cannot be shared by 3 processes"):
        plan(request_for())
    six = request_for(overrides={"batch_size": "6", "accumulate": "1", "packing": "true"})
    planned = plan(six)
    assert "steps of 6 rows shared by 3 processes" in str(planned) and planned.summary()["processes"] == 3
    assert planned.estimate.largest_pass == sum(sorted(len(row.ids) for row in planned.rows)[-2:])
    assert load_recipe("t4", {"batch_size": "2", "accumulate": "3"}).shared(2).samples_per_step == 4  # 2, then 1


@pytest.mark.usefixtures("three")
def test_a_tuner_of_one_process_is_not_started_in_three(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterTuner, "shares_steps", False)
    six = request_for(overrides={"batch_size": "6"})
    with pytest.raises(RecipeError, match="the tuner 'lora' trains in one process"):
        session._begin(six, ExitStack())


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["ACCELERATE_USE_DEEPSPEED"], "DeepSpeed is not supported: launch with --multi_gpu, or --use_fsdp"),
        (["ACCELERATE_USE_FSDP", "FSDP_OFFLOAD_PARAMS"], "stay on the cards: launch without --fsdp_offload_params"),
    ],
)
def test_a_launcher_that_asks_for_more_is_refused(
    names: list[str], said: str, request_for: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in names:
        monkeypatch.setenv(name, "true")
    with pytest.raises(RecipeError, match=said):
        finetune(request_for())


@pytest.mark.usefixtures("three")
def test_a_base_that_cannot_be_shared_is_refused(request_for: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    six: dict[str, Any] = {"batch_size": "6", "accumulate": "1"}
    with pytest.raises(RecipeError, match=r"reentrant.*is for one process"):
        plan(request_for(overrides={**six, "checkpointing": "reentrant"}))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    planned = plan(request_for(overrides=six))
    assert planned.estimate.seconds is None and "shared by 3 processes, as is the base" in str(planned)
    with pytest.raises(RecipeError, match=r"cannot be shared .*DoRA"):
        plan(request_for(overrides={**six, "dora": "true"}))


@pytest.mark.parametrize(("rank", "said"), [("0", "শেষ\n"), ("1", "")])
def test_only_the_first_speaks(rank: str, said: str) -> None:
    code = (
        "import logging, sys\nfrom bnbench.progress import quiet_beside_the_first\nquiet_beside_the_first()\n"
        "logging.basicConfig(level=logging.INFO)\nlogging.info('noted')\nlogging.error('wrong')\nprint('শেষ')"
    )
    environment = {**os.environ, "RANK": rank, "LOCAL_RANK": rank, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT, env=environment, check=True
    )
    assert done.stdout == said and ("noted" in done.stderr) == (rank == "0") and "wrong" in done.stderr
