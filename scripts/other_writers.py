"""How both empathy scorers do on replies by writers whom they did not learn from: into docs/empathy.md.

    python scripts/other_writers.py                # the held-out writers of blind_bn.csv; writes the table, a minute
    python scripts/other_writers.py --leave-out    # prints what leaving each writer out in turn gives, five minutes

The first is a record of what was found, and no place to try changes: a number chosen after a look at it is no result.
Changes are chosen by the second: the head and the calibration are fitted without a writer and score that one's replies
(the model of `relevance` is fitted to all of them). Intervals: 95 %, bootstrap over messages.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from calibrate_head import fit  # noqa: E402

from bnbench.metrics import KeywordEmpathy, SemanticEmpathy, labelled  # noqa: E402
from bnbench.metrics.audit.agreement import auc, group_numbers, kendall  # noqa: E402
from bnbench.metrics.core import FloatArray  # noqa: E402
from bnbench.metrics.empathy import MECHANISMS, keyword, mechanisms, semantic  # noqa: E402
from bnbench.metrics.empathy.head import Head  # noqa: E402
from bnbench.metrics.labelled import LabelledReply, LabelledSet, blind_set, calibration_set  # noqa: E402

HELD_OUT = {"A, B, D": "ABD", "o, w, x": "owx", "u, v, g, h": "uvgh"}
KINDS = ("negated", "mismatched", "belittling", "weak", "advice", "stuffed")
RESAMPLES, SEED = 2000, 7
PAGE = ROOT / "docs" / "empathy.md"


class Sample:
    """Some replies, and figures of their scores; the same resamples of messages for each."""

    def __init__(self, rows: Sequence[LabelledReply]) -> None:
        self.groups = group_numbers([row.id for row in rows])
        n = int(self.groups.max()) + 1
        drawn = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n))
        self.counts = np.stack([np.bincount(each, minlength=n) for each in drawn]).astype(np.float64)
        self.empathic = np.array([row.empathic for row in rows])
        self.levels = np.array([row.levels for row in rows], dtype=np.float64)

    def auc(self, scores: FloatArray, above: FloatArray | None = None) -> tuple[float, float, float]:
        found = auc(scores, self.empathic if above is None else above, self.groups, self.counts)
        return (found.value, *np.nanpercentile(found.resampled, [2.5, 97.5]))

    def tau(self, scores: FloatArray, mechanism: int) -> tuple[float, float, float]:
        found = kendall(scores, self.levels[:, mechanism], self.groups, self.counts)
        return (found.value, *np.nanpercentile(found.resampled, [2.5, 97.5]))


def scores_of(rows: Sequence[LabelledReply]) -> list[FloatArray]:
    """(n, 3), by mechanism, of the keyword and of the semantic scorer."""
    texts = [row.reply for row in rows], [row.message for row in rows]
    return [mechanisms(metric.score(texts[0], messages=texts[1])) for metric in (KeywordEmpathy(), SemanticEmpathy())]


def table() -> str:
    """The held-out writers, a column for each scorer and group of them."""
    rows = blind_set().part("held-out").rows
    path = Path(labelled.__file__).parent / "blind_bn.csv"
    with path.open(encoding="utf-8", newline="") as file:
        variety = np.array([row["variety"] for row in csv.DictReader(file) if row["half"] == "held-out"])
    kind, writer = np.array([row.kind for row in rows]), np.array([row.id[0] for row in rows])
    scores, counted = scores_of(rows), dict[str, list[str]]()
    cells: dict[str, list[str]] = {}

    def add(name: str, values: tuple[float, float, float], size: int | None = None) -> None:
        cells.setdefault(name, []).append("{:.3f} [{:.3f}, {:.3f}]".format(*values))
        if size is not None and str(size) not in counted.setdefault(name, [])[-1:]:
            counted[name].append(str(size))

    head = ["AUC, τ"]
    for title, letters in HELD_OUT.items():
        group = np.isin(writer, list(letters))
        of = {row.id for row, inside in zip(rows, group, strict=True) if inside}
        head += [f"{title} ({group.sum()} to {len(of)}): keyword", "semantic"]
        for by_mechanism in scores:
            mean = by_mechanism.mean(axis=1)

            def measure(mask: np.ndarray, above: str = "", mean: FloatArray = mean) -> tuple[float, float, float]:
                some = Sample([row for row, inside in zip(rows, mask, strict=True) if inside])
                return some.auc(mean[mask], kind[mask] == above if above else None)

            add("empathic against all others", measure(group))
            for other in KINDS:
                add(f"warm against {other}", measure(group & np.isin(kind, ["warm", other]), "warm"))
            others = ~np.isin(kind, ["warm"])
            add("plain_warm against all that are not empathic", measure(group & others, "plain_warm"))
            for name in ("standard", "dialect", "romanised", "mixed"):
                mask = group & (variety == name)
                if mask.any():
                    add(name, measure(mask), int(mask.sum()))
                else:
                    cells.setdefault(name, []).append("–")
            sample = Sample([row for row, inside in zip(rows, group, strict=True) if inside])
            for m, name in enumerate(MECHANISMS):
                add(f"τ {name.replace('_', ' ')}", sample.tau(by_mechanism[group, m], m))
    lines = [head, ["---"] * len(head)]
    lines += [[f"{n} ({'; '.join(counted[n])})" if n in counted else n, *values] for n, values in cells.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def leave_out() -> None:
    """Print, for both scorers, what the replies of each writer get when it is not learnt from."""
    rows = calibration_set().rows
    # The first set's writers have no letter of their own; its development half is one fold.
    first = len(labelled.labelled_set("development"))
    writer = np.array(["first" if n < first else row.id[0] for n, row in enumerate(rows)])
    reader, found = SemanticEmpathy().reader, [np.zeros((len(rows), 3)) for _ in range(2)]
    for each in sorted(set(writer)):
        inside = writer == each
        others = tuple(row for row, test in zip(rows, inside, strict=True) if not test)
        head, calibration = Head(fit(others)), semantic.calibrate(reader, LabelledSet(others, "", ""))
        with (
            patch.object(keyword, "load_head", lambda head=head: head),
            patch.object(semantic, "load_head", lambda head=head: head),
            patch.object(SemanticEmpathy, "calibration", calibration),
        ):
            for all_scores, some in zip(found, scores_of([row for row in rows if row not in others]), strict=True):
                all_scores[inside] = some
        print(f"without {each}: {inside.sum()} replies", flush=True)
    kind = np.array([row.kind for row in rows])
    short = np.isin(writer, ["E", "F"])
    for title, mask in (("all but E, F", ~short & (kind != "copy")), ("E, F", short)):
        sample = Sample([row for row, inside in zip(rows, mask, strict=True) if inside])
        for name, by_mechanism in zip(("keyword", "semantic"), found, strict=True):
            mean, some = by_mechanism.mean(axis=1), by_mechanism[mask]
            taus = " ".join(f"{sample.tau(some[:, m], m)[0]:.3f}" for m in range(3))
            against = {k: mask & np.isin(kind, ["warm", k]) for k in KINDS if (mask & (kind == k)).any()}
            warm = {
                k: round(Sample([r for r, i in zip(rows, m, strict=True) if i]).auc(mean[m], kind[m] == "warm")[0], 3)
                for k, m in against.items()
            }
            means = {str(k): round(float(mean[mask & (kind == k)].mean()), 1) for k in sorted(set(kind[mask]))}
            print(f"{title} ({mask.sum()}), {name}: AUC {sample.auc(mean[mask])[0]:.3f}, τ {taus}")
            print(f"  warm against {warm}; means {means}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leave-out", action="store_true", help="leave writers out in turn; writes nothing")
    if parser.parse_args().leave_out:
        leave_out()
        return
    block = f"<!-- writers: scripts/other_writers.py -->\n{table()}\n<!-- end -->"
    page, found = re.subn("<!-- writers: .*?<!-- end -->", lambda _: block, PAGE.read_text("utf-8"), flags=re.DOTALL)
    if found != 1:
        sys.exit(f"{PAGE}: {found} blocks named 'writers'; one is needed")
    PAGE.write_text(page, encoding="utf-8")
    print(block)


if __name__ == "__main__":
    main()
