"""Backends by name, and what a backend from outside must write to take part in a run."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest

from bnbench.errors import UsageError
from bnbench.models import Backend, BackendOptions, Candidate, Prompt, Reply, get_backend, hf
from bnbench.models.backend import BACKENDS
from bnbench.models.decoding import Decoding
from bnbench.models.recorded import RecordedReplies


class Echo(Backend):
    """The whole of a backend."""

    def generate(
        self, candidate: Candidate, prompts: Sequence[Prompt], items: Sequence[str], decoding: Decoding
    ) -> list[Reply]:
        return [Reply(f"{candidate.location}: {prompt.user}") for prompt in prompts]


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("no such thing")

    points = [
        SimpleNamespace(name="echo", value="x:y", load=lambda: Echo),
        SimpleNamespace(name="broken", value="a.b:c", load=fail),
        SimpleNamespace(name="number", value="x:z", load=lambda: 3),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "bnbench.backends" else [])


def test_registry(plug_ins: None, caplog: pytest.LogCaptureFixture) -> None:
    assert BACKENDS.names() == ("hf", "recorded", "endpoint", "echo", "number")
    assert (get_backend("HF"), get_backend("recorded"), get_backend("echo")) == (
        hf.TransformersBackend,
        RecordedReplies,
        Echo,
    )
    with pytest.raises(UsageError, match=r"no usable backend 'broken': the plug-in a\.b:c does not load: ImportError"):
        get_backend("broken")
    assert "'broken' (a.b:c) is skipped: ImportError: no such thing" in caplog.text
    with pytest.raises(
        UsageError, match=r"no backend 'ecko'; did you mean 'echo'\? known: hf, recorded, endpoint, echo"
    ):
        get_backend("ecko")
    with pytest.raises(UsageError, match=r"'number' is 3, not a subclass of bnbench\.models\.Backend"):
        get_backend("number")


def test_what_a_backend_need_not_write() -> None:
    candidate = Candidate("mine", "base", "some/model", "v1")
    backend = Echo([candidate], BackendOptions("echo", system="সহকারী"))
    other = Echo([candidate], BackendOptions("echo", system="আরেক সহকারী"))
    backend.bind([])
    backend.load()
    assert backend.identity(candidate)["model"] == "some/model" and backend.identity(candidate)["revision"] == "v1"
    assert backend.identity(candidate) != other.identity(candidate)  # what it is asked is part of what it is
    assert backend.likelihood(candidate, [], []) is None
    assert hf.TransformersBackend.needs_files and not Echo.needs_files
    assert backend.precision["reason"] == "chosen by the backend echo" and backend.peak_memory_bytes() is None


def test_a_backend_must_answer() -> None:
    lazy: Any = type("Lazy", (Backend,), {})
    with pytest.raises(TypeError, match="generate"):
        lazy([], BackendOptions())
