"""What a page holds of its runs, so that it is compared like their folders: the files of each, packed as JSON."""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnbench.errors import RunError
from bnbench.records import AUDITS, GENERATIONS, Run, write_text

_FILES = ("run.json", AUDITS, "examples.jsonl", GENERATIONS)
_TABLE = re.compile(r"scores/(yardsticks/)?[^/\\]+\.parquet")
_HELD = re.compile(r'<script type="application/gzip" id="data">([A-Za-z0-9+/=]*)</script>')


def packed(runs: Sequence[Run], more: Mapping[str, Any]) -> str:
    """What is read of the folders of `runs`, and `more`, as JSON under gzip in base64; the same files give the same.

    Ratings stay outside: they have the names of people.
    """
    import pandas as pd

    found = []
    for run in runs:
        record: dict[str, Any] = {}
        for path in (run.path / name for name in _FILES if (run.path / name).exists()):
            is_list, text = path.suffix == ".jsonl", path.read_bytes()
            # A last line without its end was torn by a crash.
            record[path.name] = list(map(json.loads, text.split(b"\n")[:-1])) if is_list else json.loads(text)
        for at, row in enumerate(record[GENERATIONS]):  # hashes do not compress
            row["key"] = str(at)
        for path in sorted((run.path / "scores").rglob("*.parquet")):
            # Whole numbers are written as such: most statistics are counts.
            columns = {c: of.tolist() for c, of in pd.read_parquet(path).items()}
            record[path.relative_to(run.path).as_posix()] = {
                str(c): [None if x != x else int(x) if isinstance(x, float) and x.is_integer() else x for x in of]
                for c, of in columns.items()
            }
        found.append(record)
    # Half a character, which JSON can carry and UTF-8 cannot, is written as read_run reads it.
    whole = json.dumps({"schema_version": 1, "runs": found, **more}, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(whole.encode("utf-8", "surrogatepass"), 6, mtime=0)).decode()


def unpack(page: Path, folder: Path) -> list[Path]:
    """Writes the runs that a page holds as run folders under `folder`. Raises RunError where it holds none of ours."""
    import pandas as pd

    advice = "name a report.html that this bnbench wrote, or the run's folder"
    found = _HELD.search(page.read_text(encoding="utf-8", errors="replace"))
    if not found:
        raise RunError(f"{page}: a page without the data of a run; {advice}")
    try:
        held = json.loads(gzip.decompress(base64.b64decode(found[1])))
        runs: list[dict[str, Any]] = held["runs"] if held["schema_version"] == 1 else []
        paths = []
        for at, files in enumerate(runs):
            place = folder / str(at)
            for name, value in files.items():
                if name not in _FILES and not _TABLE.fullmatch(name):
                    raise ValueError(f"a file called {name[:60]}")
                if name.endswith(".parquet"):
                    content: str | bytes = pd.DataFrame(value).to_parquet(index=False)
                else:
                    lines = value if name.endswith(".jsonl") else [value]
                    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                    content = text.encode("utf-8", "surrogatepass")
                write_text(place / name, content)
            paths.append(place)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{page}: its data are damaged ({' '.join(str(error).split())[:200]}); {advice}") from None
    if not paths:
        raise RunError(f"{page}: its data are of another schema; {advice}")
    return paths
