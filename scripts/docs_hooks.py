"""What the site changes in a page before it is drawn: pages of the repository's root, and file names over code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page; one that is only the name of a file of the root stands for that file."""
    if re.fullmatch(r"[A-Z]+\.md", markdown.strip()):
        markdown = (ROOT / markdown.strip()).read_text(encoding="utf-8")
    return re.sub(r"^( *```\w+) (\S+)$", r'\1 title="\2"', markdown, flags=re.MULTILINE)
