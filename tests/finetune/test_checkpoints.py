from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

from bnbench.finetune.engine.processes import stop_on_signals
from bnbench.finetune.tuners.base import newest_checkpoint, seal


def checkpoint(parent: Path, step: int, *, sealed: bool = True) -> Path:
    folder = parent / f"checkpoint-{step}"
    (folder / "sub").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (folder / "sub" / "state.json").write_text("{}", encoding="utf-8")
    if sealed:
        seal(folder, seconds=step * 2.0)
    return folder


def test_newest_by_number(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        checkpoint(tmp_path, step)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and (newest.step, newest.seconds) == (100, 200.0)


def test_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize("damage", ["unsealed", "cut", "changed", "missing", "broken seal"])
def test_torn_is_skipped_for_the_one_before(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint(tmp_path, 10)
    torn = checkpoint(tmp_path, 20, sealed=damage != "unsealed")
    weights = torn / "adapter_model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:50])
    elif damage == "changed":
        weights.write_bytes(b"Weights" * 100)
    elif damage == "missing":
        weights.unlink()
    elif damage == "broken seal":
        (torn / "sealed.json").write_text('{"seconds": 1', encoding="utf-8")
    with caplog.at_level(logging.WARNING, "bnbench.finetune"):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.step == 10
    assert "checkpoint-20 is torn" in caplog.text and not torn.exists()


def test_signals_ask_for_a_stop_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop() and stop.signal == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_second_interrupt_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)


def test_time_is_up() -> None:
    with stop_on_signals(after=0.0) as stop:
        assert stop() and stop.signal is None
    with stop_on_signals(after=60.0) as stop:
        assert not stop()
