from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bnbench import __version__, doctor
from bnbench.cli import app
from bnbench.models.loading import Device


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["doctor", *words])


def test_what_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blob = tmp_path / "models--a--b" / "blobs" / "x"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run("--json", "--device", "cpu")
    told = json.loads(done.stdout)
    assert told["bnbench"] == __version__ and told["packages"]["torch"] == metadata.version("torch")
    assert told["precision"] == "float32, because the CPU computes 16-bit numbers no faster"
    assert told["caches"]["hub"] == f"{tmp_path}: 0.0 GiB, offline" and told["caches"]["HF_TOKEN"] == "is set"
    assert told["need"] is None and "canary" not in done.stdout
    shown = run("--device", "cpu").stdout
    lacking = doctor.examine(device="cpu")
    text = str(replace(lacking, extras={"models": ("torch",), "vllm": ()}))
    assert 'models        lacks torch: pip install ".[models]" in a clone\n  vllm          ok\n\ncaches\n' in text
    assert "\nextras\n" in shown and "None" not in shown and re.search("accelerator +none\n", shown)


def test_an_extra_is_told_with_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        "numpy>=2.0", 'here<3,>=1.2; extra == "one"', 'gone>=1; extra == "one"', 'old>=2.10; extra == "two"',
        'new<3; extra == "two"', 'bnbench[one]; extra == "two"', 'gone; extra == "dev"',
    ]  # fmt: skip
    versions = {"here": "2.9.1+cpu", "old": "2.9", "new": "3.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda _: asked)
    monkeypatch.setattr(metadata, "version", version)
    assert doctor.extras() == {"one": ("gone",), "two": ("old >= 2.10 (here 2.9)", "new < 3 (here 3.0)", "gone")}


def test_what_an_evaluation_needs(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("--base", str(tiny_base), "--rows", "20", "--device", "cpu")
    assert "20 items" in done.stdout and "at a batch of 8: fits" in done.stdout and "which are here" in done.stdout
    # Eight billion parameters in float32 on a machine of 16 GiB; weights alone are 30.
    monkeypatch.setattr(doctor, "_product", lambda *_: 0.001)
    monkeypatch.setattr("os.sysconf", lambda name: 2**10 if name == "SC_PAGE_SIZE" else 1)
    small = doctor.estimate_need(str(tiny_base), 20, Device("cpu"), None, False)
    assert small.memory_gib > small.memory_there_gib and "does NOT fit" in str(small)
    held = sum(path.stat().st_size for path in tiny_base.glob("*.safetensors")) / 2**30
    assert small.weights_gib == pytest.approx(held) and small.fetched
    # Three batches of each candidate, a step of which has two layers and 32 products of the widths of this model.
    parts = (small.parameters - 400 * 32) / (32 * 64), 2 * doctor.LAUNCH["cpu"]
    assert small.seconds == pytest.approx(2 * 3 * small.new_tokens * (parts[0] * 0.001 + parts[1]), rel=0.01)


def test_time_on_a_cpu_is_that_of_a_run(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a small base takes one thread; a second one that waits for its turn slows it a thousand times."""
    threads, used = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(doctor, "_product", lambda *_: used.append(torch.get_num_threads()) or 0.0)
    try:
        torch.set_num_threads(4)
        doctor.estimate_need(str(tiny_base), 8, Device("cpu"), None, False)
    finally:
        torch.set_num_threads(threads)
    assert used == [1]


def test_a_card_takes_as_many_rows_as_it_holds(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_product", lambda *_: 0.0)
    card = Device("cuda", "Tesla T4", (7, 5), 15 * 2**30)
    need = doctor.estimate_need(str(tiny_base), 1000, card, None, False)
    assert (need.batch, need.dtype, need.quantisation) == (256, "float16", "none")
    assert need.seconds == pytest.approx(2 * 4 * need.new_tokens * 2 * doctor.LAUNCH["cuda"])
    assert doctor.estimate_need(str(tiny_base), 10, card, True, False).quantisation == "nf4"


def test_a_base_that_is_not_there() -> None:
    done = run("--base", "./nowhere/at/all")
    assert done.exit_code == 2 and "there is no folder ./nowhere/at/all" in done.stderr
