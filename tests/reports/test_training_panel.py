from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import bnbench
from bnbench.records import as_json, read_run, read_training
from bnbench.reports import rank, write_report
from bnbench.reports.panels import Facts, Table, training_panel
from tests.reports.conftest import ADAPTER, PAIR, Spec


def page(folder: Path) -> str:
    return write_report([read_run(folder)], folder, resamples=50).html.read_text(encoding="utf-8")


def test_what_an_older_record_lacks_is_no_difference(make_run: Callable[..., Path]) -> None:
    """A setting that one record does not have is no column, and one that all have, or a measure, is absent in its."""
    record = read_training(Path(bnbench.__file__).parent / "demo" / "adapter")
    assert record is not None
    folder = make_run((*PAIR, Spec("older", 0.5), Spec("oldest", 0.6)), n=8)
    meta = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for name, changes in ((ADAPTER, {"r": 8}), ("older", {"r": 16}), ("oldest", {})):
        trained = as_json(record.summary()) | {"peak_memory_bytes": None, "validation": None}
        trained["recipe"] |= {"supervise": "last"} | changes
        if name == "oldest":
            trained["recipe"] = {k: v for k, v in trained["recipe"].items() if k not in ("supervise", "r", "schedule")}
        next(c for c in meta["candidates"] if c["name"] == name)["training"] = trained
    (folder / "run.json").write_text(json.dumps(meta), encoding="utf-8")
    [panel] = training_panel(rank([read_run(folder)], resamples=50))
    costs = next(block for block in panel.blocks if isinstance(block, Table))
    assert [c.head for c in costs.columns] == ["candidate", "r", "steps", "minutes", "loss"]
    assert [row[1] for row in costs.rows] == ["8", "16", "–"]
    facts = [dict(block.pairs) for block in panel.blocks if isinstance(block, Facts)]
    assert (
        "None" not in str(facts) and ", r –, α" in facts[2]["Adapter"] and "0.004, –, warm-up" in facts[2]["Schedule"]
    )


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
