"""What a stage shows on stderr: plain lines, a bar on a terminal, or nothing."""

from __future__ import annotations

import pytest

from bnbench import progress
from bnbench.progress import Stage


def test_plain_lines_say_how_far_and_how_fast(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 104.0, 120.0, 121.0, 140.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Stage("generate", 40) as one:
        one.advance(1, 50)  # too early for a line
        one.advance(9, 150)
        one.advance(10)  # a second after the last line
    out, told = capsys.readouterr()
    assert out == ""
    assert told.splitlines() == ["generate: 10/40 · 0.5 items/s · 10 tokens/s · 60 s left", "generate: 20/40 in 40.0 s"]


def test_a_stage_that_fails_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Stage("score", 2):
        raise KeyError
    assert capsys.readouterr().err.startswith("score: 0/2 in ")


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_SECONDS", 0.0)
    with Stage("score", 2, quiet=True) as one:
        one.advance(2)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Stage("score", 2) as one:
        one.advance(1, 30)
    told = capsys.readouterr().err
    assert "score" in told and "1/2" in told and "tokens/s" in told and "score: 1/2 in" not in told


def test_a_note_and_minutes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 120.0, 121.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Stage("train", 1000, unit="steps") as one:
        one.advance(10, 1000, "loss 2.100 · 6.5 GiB")
    told = "train: 10/1000 · loss 2.100 · 6.5 GiB · 0.5 steps/s · 50 tokens/s · 33 min left"
    assert capsys.readouterr().err.splitlines()[0] == told
