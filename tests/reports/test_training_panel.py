from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bnbench
from bnbench.records import as_json, read_run, read_training
from bnbench.reports import write_report
from tests.reports.conftest import ADAPTER


def page(folder: Path) -> str:
    return write_report([read_run(folder)], folder, resamples=50).html.read_text(encoding="utf-8")


def test_only_adapters_with_a_record_have_a_panel(make_run: Callable[..., Path]) -> None:
    folder = make_run(n=8)
    assert 'id="training"' not in page(folder) and "#training" not in page(folder)
    meta = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    record = read_training(Path(bnbench.__file__).parent / "demo" / "adapter")
    assert record is not None
    trained = as_json(record.summary())
    trained["recipe"]["name"] = "<script>"
    next(c for c in meta["candidates"] if c["name"] == ADAPTER)["training"] = trained
    (folder / "run.json").write_text(json.dumps(meta), encoding="utf-8")
    text = page(folder)
    panel = text.partition('<section id="training">')[2].partition("</section>")[0]
    assert panel.count("<svg") == 1 and f"Training loss of {ADAPTER}" in panel and 'href="#training"' in text
    for fact in ("160 rows", "160 steps", "r 16, α 32", "learning rate 0.004", "5.962 → 4.225"):
        assert fact in panel, fact
    assert "<script>:" not in panel and "&lt;script&gt;:" in panel
