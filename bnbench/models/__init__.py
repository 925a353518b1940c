"""Backends: what answers a prompt. `open_session` gives one session over all candidates of a run."""

from __future__ import annotations

from collections.abc import Sequence

from bnbench.models.backend import Reply, Session, SessionOptions, backend_names, get_backend
from bnbench.models.candidates import Candidate
from bnbench.models.joint import JointSession
from bnbench.models.prompts import SYSTEM

__all__ = ["Reply", "Session", "SessionOptions", "backend_names", "get_backend", "open_session"]


def open_session(
    candidates: Sequence[Candidate],
    *,
    backend: str = "hf",
    quantise: bool | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    system: str = SYSTEM,
) -> Session:
    """A session over models (answered by `backend`) and recorded replies alike; no weights are read yet.

    Raises:
        CandidateError, PromptError: files, tokenizer or chat template are unusable.
        MissingExtraError: a package that the backend needs is not installed.
        UsageError: no such backend or device.
    """
    options = SessionOptions(device, quantise, trust_remote_code, system)
    models = [c for c in candidates if c.kind != "predictions"]
    recorded = [c for c in candidates if c.kind == "predictions"]
    sessions = [(models, get_backend(backend)(models, options))] if models else []
    if recorded:
        sessions.append((recorded, get_backend("recorded")(recorded, options)))
    return sessions[0][1] if len(sessions) == 1 else JointSession(sessions)
