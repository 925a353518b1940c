"""The shape of the house: its size, its floors, and how much of it one evaluation walks through."""

from __future__ import annotations

import ast
import statistics
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bnbench", "metrics", "finetune", "reports")

# Imports run down these floors, or stay on one: the longest name that fits says where a module lives.
FLOORS = {
    "bnbench.cli": 6,
    "bnbench.__main__": 7,
    "bnbench.evaluate": 5,
    "bnbench.windows": 5,
    "bnbench.doctor": 5,
    "bnbench.finetune": 5,
    "bnbench.reports": 5,
    "bnbench.models": 4,
    "bnbench.score": 4,
    "bnbench.judge": 4,
    "bnbench.data": 3,
    "bnbench.records": 3,
    "bnbench.plot": 4,
    "bnbench.progress": 2,
    "bnbench.errors": 1,
    "bnbench.metrics": 0,
    "bnbench.demo": 0,
    "bnbench": 0,
}
# Counts the functions of ours that a command enters: each named one once, without class bodies and comprehensions.
TRACE = """
import sys, threading
from pathlib import Path
root, entered = Path(sys.argv.pop(1)), set()
def seen(frame, event, argument):  # of each call; no line of it is traced, as nothing is returned
    if frame.f_code.co_flags & 1:
        entered.add(frame.f_code)
from bnbench.cli import main
threading.settrace(seen)
sys.settrace(seen)
try:
    main()
except SystemExit as ended:
    assert not ended.code
sys.settrace(None)
ours = {(Path(c.co_filename).resolve(), c.co_qualname, c.co_firstlineno) for c in entered}
ours = {
    f for f in ours
    if f[0].is_relative_to(root) and f[0].relative_to(root).parts[0] in ("bnbench", "metrics", "finetune", "reports")
    and not f[1].rpartition(".")[2].startswith("<")
}
print(len({f[0] for f in ours}), len(ours))
"""


@cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of the four packages by the name it is imported by."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if package == "bnbench" else ("bnbench", *parts)
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = path, ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(name: str) -> set[str]:
    """The modules of ours that a module imports, at its head or inside a function."""
    modules, found = sources(), set()
    for node in ast.walk(modules[name][1]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}, line {node.lineno}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in modules else str(node.module) for one in inner}
    return {one for one in found if one in modules} - {name}


def floor(name: str) -> int:
    while name not in FLOORS:
        name = name.rpartition(".")[0]
    return FLOORS[name]


def test_size() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path, _ in sources().values()}
    functions = {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: n for name, n in functions.items() if n > 60}
    assert 8 <= statistics.median(functions.values()) <= 12
    # No aim but what there is: it holds the house from growing in silence until `test_size_that_is_meant` passes.
    # 21,636, 149 by which bases became shareable by several cards and replies are held against their messages, and 3
    # for what no reply has.
    bound, total = 21_788, sum(lines.values())
    assert total <= bound, f"{total} lines: shorten, or raise this bound by the lines that you add and say why"


@pytest.mark.xfail(strict=True, reason="missed: 21,788 lines in 101 files with issues 10 to 15; issue 9 is open for it")
def test_size_that_is_meant() -> None:
    lines = [path.read_text(encoding="utf-8").count("\n") for path, _ in sources().values()]
    assert len(lines) <= 85 and sum(lines) <= 13_000


def test_imports_run_down() -> None:
    for name in sources():
        for other in imports(name):
            assert floor(other) <= floor(name), f"{name} imports {other}, which lives above it"


def test_no_circle() -> None:
    # A package's own head gives its modules' names again, so the modules under it stand for it.
    list(TopologicalSorter({name: imports(name) for name in sources()}).static_order())


def test_no_module_name_stands_twice() -> None:
    stems = [path.stem for path, _ in sources().values() if path.stem not in ("__init__", "__main__")]
    assert sorted({stem for stem in stems if stems.count(stem) > 1}) in ([], ["base"])


def test_evaluation_is_a_short_walk(walk: tuple[int, int]) -> None:
    files, functions = walk
    assert files <= 45 and functions <= 400


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, forked: Any) -> tuple[int, int]:
    """How many files and functions of ours `bnbench evaluate` enters."""
    folder = tmp_path_factory.mktemp("walk")
    words = ["evaluate", "--adapter", "bnbench-demo/adapter", "--out", str(folder / "run"), "--limit", "8", "-q"]
    [done] = forked(TRACE, str(ROOT), *words, folder=folder)
    if done.returncode:
        pytest.fail(done.stderr)
    files, functions = map(int, done.stdout.splitlines()[-1].split())
    return files, functions
