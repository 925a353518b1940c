"""README and docs/ are followed as they stand, from page to page in one folder.

In a fence ```console every `bnbench` command runs; what needs a network, a server or a card stands in ```shell, where
only its options are looked up. Fences with the name of a file are written, ```python runs.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from bnbench.cli import app

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "README.bn.md", ROOT / "CONTRIBUTING.md", *DOCS]
FENCE = re.compile(r"^( *)```(\w+) ?(\S*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
# In the order in which a reader makes what the next one uses; the rest is followed by test_docs and test_contributing.
FOLLOWED = ["docs/kaggle.md", "README.md", "docs/index.md", "docs/evaluate.md", "docs/score.md", "docs/people.md",
            "docs/training.md", "docs/original.md"]  # fmt: skip
SHORTER = {
    "finetune": ["--set", "epochs=1", "--limit", "8", "--set", "validate_every=0"],
    "evaluate": ["--limit", "4", "--max-words", "12"],
}


def shorter(words: list[str]) -> list[str]:
    """The command with the options of `SHORTER`, in the place of its own where it has them."""
    more, kept = SHORTER.get(words[0], []) if "--list" not in words else [], list(words)
    for option, value in zip(more[::2], more[1::2], strict=True):
        key = value.partition("=")[0] if "=" in value else ""
        own = [at for at in range(len(kept) - 1) if kept[at] == option and kept[at + 1].startswith(key)]
        for at in reversed(own):
            del kept[at : at + 2]
    return [*kept, *more]


def commands(text: str) -> list[list[str]]:
    """The words of each `$ bnbench` line (`!bnbench` in a notebook), lines that go on put together, comments gone."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [re.match(r"\s*(?:\$ (?:\w+=\S+ )*|!)bnbench (.+)", line) for line in lines]
    return [shlex.split(match[1].replace("…", ""), comments=True) for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_shown_are_there(page: Path) -> None:
    known: Any = get_command(app)
    for _, kind, _, text in FENCE.findall(page.read_text(encoding="utf-8")):
        for words in commands(text) if kind in ("console", "shell") else ():
            command, at = known, 0
            while hasattr(command, "commands") and not words[at].startswith("-"):
                assert words[at] in command.commands, f"{page.name}: bnbench {' '.join(words)}"
                command, at = command.commands[words[at]], at + 1
            options = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
            asked = {word.split("=")[0] for word in words[at:] if re.fullmatch("--?[a-z0-9][a-z0-9-]*(=.*)?", word)}
            assert asked <= options | {"--help"}, f"{page.name}: bnbench {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(menu) == [page.name for page in DOCS]


def test_the_api_is_there() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    told = re.findall(r"^::: (\S+)\n(?: +(?!members).+\n)*(?: +members: \[(.+)\])?", text, re.MULTILINE)
    assert len(told) == text.count(":::")
    for module, members in told:
        for name in filter(None, members.split(", ")):
            assert hasattr(import_module(module), name), f"docs/api.md: {module}.{name}"


@pytest.mark.no_cover
def test_what_the_pages_say_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran, done = 0, set[str]()
    for name in FOLLOWED:
        for _, kind, file, text in FENCE.findall((ROOT / name).read_text(encoding="utf-8")):
            if kind == "python" and not file:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(text, name, "exec"), {})
            elif kind in ("jsonl", "text") and file:
                Path(file).write_text(text, encoding="utf-8")
            for words in commands(text) if kind == "console" else ():
                if (line := shlex.join(words)) in done:  # the same command on a second page
                    continue
                result = CliRunner().invoke(app, shorter(words))
                assert result.exit_code == 0, f"{name}: bnbench {line}\n{result.stderr or result.exception}"
                ran += 1
                done.update([line] if words[0] in ("evaluate", "finetune", "publish", "doctor") else [])
    assert ran >= 22
    assert "0.0000" in result.stdout  # the original's ROUGE, of identical texts
    assert Path("published/mine/README.md").exists() and Path("runs/mine/report.html").exists()
