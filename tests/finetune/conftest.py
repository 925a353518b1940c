"""Requests small enough for a test: a random Llama, 22 short conversations, a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnbench.data.corpus import Example
from bnbench.finetune import FinetuneRequest, FinetuneResult, finetune

MESSAGES = [
    "আমার মন খারাপ, কিছুতেই ঘুম আসে না।",
    "পরীক্ষার ফল খারাপ হয়েছে, বাবা-মাকে কীভাবে বলব? সকাল থেকে শুধু এটাই ভাবছি।",
    "চাকরিটা চলে গেছে।",
    "মা হাসপাতালে, একা একা সব সামলাতে পারছি না, বন্ধুরাও দূরে থাকে।",
]
REPLIES = [
    "আপনার কষ্টটা বুঝতে পারছি। আজ রাতে ঘুমানোর আগে একটু হাঁটুন, আর কাছের কাউকে কথাটা বলুন।",
    "তুমি একা নও।",
    "ধীরে ধীরে সব ঠিক হয়ে যাবে; আমরা পাশে আছি।",
]
SHORT = {
    "epochs": "3",
    "batch_size": "2",
    "accumulate": "2",
    "save_every": "3",
    "log_every": "2",
    "r": "4",
    "learning_rate": "2e-3",
}


def make_examples(count: int) -> tuple[Example, ...]:
    return tuple(
        Example(f"row-{i}", "মানসিক স্বাস্থ্য", "", f"{MESSAGES[i % 4]} ({i})", f"{REPLIES[i % 3]} {i % 5}")
        for i in range(count)
    )


def make_request(
    folder: Path, output: Path, overrides: dict[str, str] | None = None, rows: int = 22, **changes: Any
) -> FinetuneRequest:
    settings: dict[str, Any] = {
        "base": str(folder),
        "examples": make_examples(rows),
        "fingerprint": "f00d",
        "output": output,
        "recipe": "demo",
        "overrides": {**SHORT, **(overrides or {})},
        "device": "cpu",
        "command": "bnbench finetune …",
    }
    return FinetuneRequest(**{**settings, **changes})


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Sums over several threads differ in the last digit from one process to another, and two cores are shared here."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def request_for(tiny_base: Path, tmp_path: Path) -> Callable[..., FinetuneRequest]:
    return lambda output="out", **changes: make_request(tiny_base, tmp_path / output, **changes)


@pytest.fixture(scope="session")
def undisturbed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    """The 18 steps of the default request, never stopped; its folder is read only."""
    return finetune(make_request(tiny_base, tmp_path_factory.mktemp("undisturbed") / "out"))
