"""The record of a training as others show it, and the drawing of its loss."""

from __future__ import annotations

import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bnbench
from bnbench.training import loss_svg, thinned, training_facts, training_summary

ADAPTER = Path(bnbench.__file__).parent / "demo" / "adapter"
SVG = "{http://www.w3.org/2000/svg}"


def places(svg: str) -> list[list[tuple[float, float]]]:
    paths = [p.get("d", "") for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if p.get("class") != "axis"]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", d)] for d in paths]


def test_the_bundled_adapter() -> None:
    summary = training_summary(ADAPTER)
    assert summary is not None and (summary["rows"], summary["steps"]) == (160, 160)
    assert summary["recipe"]["name"] == "demo" and summary["loss_at_start"] > summary["loss_at_end"] + 1
    assert json.loads(json.dumps(summary)) == summary


def test_what_a_preference_training_gained() -> None:
    summary = training_summary(ADAPTER)
    assert summary is not None and "Preferences" not in dict(training_facts(summary))
    gain = {"margin": 0.518, "low": -0.2, "high": 0.9, "pairs": 31}
    told = dict(training_facts({**summary, "gain": gain}))["Preferences"]
    assert told.startswith("the chosen reply gained +0.52 nats (95 % −0.20 to +0.90)") and "31 held-out pairs" in told


@pytest.mark.parametrize("damage", [{"schema_version": 2}, {"loss": [["x", "y", 0]]}, {"loss": []}, {"data": {}}])
def test_a_record_that_is_not_ours_or_damaged(damage: dict[str, object], tmp_path: Path) -> None:
    record = json.loads((ADAPTER / "training.json").read_text(encoding="utf-8"))
    (tmp_path / "training.json").write_text(json.dumps({**record, **damage}), encoding="utf-8")
    assert training_summary(tmp_path) is None
    (tmp_path / "training.json").write_text("[1", encoding="utf-8")
    assert training_summary(tmp_path) is None
    shutil.copy(ADAPTER / "training.json", tmp_path)
    assert training_summary(tmp_path) is not None


def test_thinning_keeps_the_mean() -> None:
    points = [(i, float(i % 7)) for i in range(1, 961)]
    few = thinned(points)
    assert len(few) == 240 and few[-1][0] == 960 and few[0] == (4, (1 + 2 + 3 + 4) / 4)
    assert sum(y for _, y in few) / 240 == pytest.approx(sum(y for _, y in points) / 960)
    assert thinned(points[:240]) == points[:240]


def test_the_drawing_is_to_scale() -> None:
    thin, thick = places(loss_svg([(i, 5 - i / 25) for i in range(1, 101)]))
    assert len(thin) == len(thick) == 100 and thin == sorted(thin)
    assert all(b[1] > a[1] for a, b in pairwise(thin))  # a falling loss: downwards
    assert thin[0][1] < thick[0][1] and thin[-1][1] > thick[-1][1]  # the mean of a line lies within it
    steps = [b[0] - a[0] for a, b in pairwise(thin)]
    assert max(steps) - min(steps) < 0.2


def test_the_drawing_is_whole_and_names_nothing_outside() -> None:
    svg = loss_svg([(1, 4.0), (2, math.nan), (3, 3.5)], "আমার <অ্যাডাপ্টার>")
    root = ElementTree.fromstring(svg)
    assert (root.get("role"), root[0].text) == ("img", "Training loss of আমার <অ্যাডাপ্টার>, from 4.000 to 3.500 in 3 steps")
    assert {"optimiser step", "loss"} <= {t.text for t in root.iter(f"{SVG}text")}
    assert "prefers-color-scheme:dark" in svg and not re.search(r"href|url\(|@import|script", svg)
    assert svg.count("http") == 1  # the namespace


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 2.0), (2, 2.0)], [(5, 0.0)] * 3])
def test_curves_that_are_hardly_one(points: list[tuple[int, float]]) -> None:
    svg = loss_svg(points)
    assert "nan" not in svg.casefold().replace("mean", "") and ElementTree.fromstring(svg) is not None
    assert ("<circle" in svg) == (len(points) == 1)
