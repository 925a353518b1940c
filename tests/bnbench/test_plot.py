"""The drawing of a training's loss."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from bnbench.plot import loss_svg

SVG = "{http://www.w3.org/2000/svg}"


def places(svg: str) -> list[list[tuple[float, float]]]:
    paths = [p.get("d", "") for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if p.get("class") != "axis"]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+),([\d.]+)", d)] for d in paths]


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
