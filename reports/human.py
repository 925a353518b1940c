"""Blind sheets for people, and what comes back from them.

bnbench human sheet RUN        forms for raters; the key, human-key.jsonl, stays with the run
bnbench human import RUN FILE  checks filled forms, and adds them to ratings.jsonl
"""

import io
import re
import secrets
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bnbench
from bnbench.data.files import as_text, csv_text, header_of, read_records, whole_number
from bnbench.errors import UsageError
from bnbench.metrics.core import FloatArray
from bnbench.metrics.registry import get_metric
from bnbench.progress import storable
from bnbench.records import PERSON, RATINGS, Rating, Run, alone, append_lines, read_lines, read_run, write_text
from bnbench.reports.people import BETTER, CRITERIA, LEVELS, TABLE, read_people, text_key
from bnbench.reports.render import page, templates
from bnbench.reports.values import counted, name

KEY = "human-key.jsonl"
_LETTERS = "bcdfghjkmnpqrstvwxz"  # a code of them is no word, and no number or formula to a spreadsheet
_CELL = 32_000  # characters; a spreadsheet's cell holds 32,767
_SHOWN = 3  # faults of one kind in a file's column that have a line each

Fault = tuple[str, str, str]  # where, the column if it is of one, and why
Question = Mapping[str, Any]  # what one page of a form shows: code, title, message and one text, or two


@dataclass(frozen=True)
class Shown:
    """A line of the key: what stands under one code on one form."""

    code: str
    form: str
    item: str
    topic: str
    disagreement: float  # how the item was drawn, and by which seed
    seed: int
    key: str  # that of its ratings
    texts: tuple[tuple[str, ...], ...]  # the candidates that said each text

    def __post_init__(self) -> None:
        if not self.texts or not all(self.texts):
            raise ValueError("texts has no text, or one that no candidate said")


@dataclass(frozen=True)
class Sheets:
    """The files, what one rater has to do, and how many items were `asked` for; `before` counts earlier forms."""

    files: tuple[str, ...]
    key: str
    items: int
    pages: int
    before: int = 0
    asked: int = 0

    def __str__(self) -> str:
        fewer = [f"The run has only {self.items} items, not {self.asked}."] if self.items < self.asked else []
        told = f"{self.items} items, {self.pages} pages a rater; each rater gets one of the forms, as page or as table:"
        earlier = [f"Forms of earlier sheets still count ({self.before}); these come on top, for further raters."]
        key = f"The key is {self.key}: whoever rates must not see it."
        return "\n".join([*fewer, *(earlier if self.before else ()), told, *self.files, key])


def make_sheets(
    folder: Path, raters: int = 3, items: int = 40, *, pairs: bool = False, out: Path | None = None, seed: int = 42
) -> Sheets:
    """Writes a form for each rater, as .html, .csv and .xlsx, into `out` (by default RUN/human), and adds to the key.

    All raters read the same items, in orders of their own that no seed gives away. Of candidates that said the same the
    text is shown once. With `pairs` each text is then compared with two others of its item. Raises RunError for what is
    no finished run, UsageError where pairs are asked for of one candidate.
    """
    with alone(folder):
        run, out, rng = read_run(folder), out or folder / "human", secrets.SystemRandom()
        if pairs and len(run.replies) < 2:
            raise UsageError(f"{folder}: --pairs compares candidates, and this run has only one")
        drawn, key, forms = draw(run, items, seed), list[Shown](), dict[str, list[Question]]()
        before = len({shown.form for shown in read_lines(Shown, folder / KEY)})
        for number in range(before + 1, before + raters + 1):
            form = f"rater-{number}"
            forms[form] = []
            for i, disagreement in rng.sample(drawn, len(drawn)):
                example, said = run.examples[i], dict[str, list[str]]()
                for candidate, replies in run.replies.items():
                    said.setdefault(replies[i].reply, []).append(candidate)
                texts = rng.sample(list(said), len(said))
                asked: list[tuple[str, ...]] = [(text,) for text in texts]
                if pairs and len(texts) > 1:  # around a circle, so that each stands first once and second once
                    circle = list(zip(texts, texts[1:] + texts[:1], strict=True))[: len(texts) if len(texts) > 2 else 1]
                    asked += rng.sample(circle, len(circle))
                for these in asked:
                    code = "".join(rng.choice(_LETTERS) for _ in range(8))
                    place = form, example["id"], example["topic"], disagreement, seed, text_key(example["id"], *these)
                    key.append(Shown(code, *place, tuple(tuple(said[text]) for text in these)))
                    message, *cut = map(_cut, (example["question"], *these))
                    forms[form].append({"code": code, "title": example["title"], "message": message, "texts": cut})
        files: dict[Path, str | bytes] = {}
        for form, questions in forms.items():
            rows = list(_rows(form, questions))
            files[out / f"{form}.html"] = form_html(form, questions)
            files[out / f"{form}.csv"] = csv_text(rows, "\r\n").encode("utf-8-sig")  # else Excel takes it for Latin
            files[out / f"{form}.xlsx"] = workbook(rows)
        append_lines(folder / KEY, key)
        for path, content in files.items():
            write_text(path, content)
    return Sheets(tuple(map(str, files)), str(folder / KEY), len(drawn), len(key) // raters, before, items)


def _cut(text: str) -> str:
    """What a cell holds; a browser, too, takes minutes to break a word of a million letters."""
    return f"{text[:_CELL]} … (cut here: {len(text):,} characters)" if len(text) > _CELL else text


def draw(run: Run, items: int, seed: int) -> list[tuple[int, float]]:
    """At most so many items of a run, by number, each with how much the run's metrics disagree on it.

    Every item has the same chance, so that means over those drawn stand for all. A systematic sample of a list that is
    sorted by thirds of disagreement and, within, by topic takes from both in proportion (Cochran 1977, ch. 8).
    Disagreement is the standard deviation over metrics of a reply's rank among all, mean over candidates.
    """
    ranks = list[FloatArray]()
    for record in (m for m in run.record.metrics if not m.weights):
        tables = [own[record.name] for own in run.tables.values() if record.name in own]
        with suppress(UsageError):  # a metric that is not to be had here
            formula = get_metric(record.spelling or record.name).formula
            x = np.nan_to_num(np.stack([formula(table)[:, 0] for table in tables]), posinf=0.0, neginf=0.0)
            ordered = np.sort(x, axis=None)
            rank = (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / (2 * x.size)
            ranks += [rank if record.higher_is_better else 1 - rank] if len(tables) == len(run.tables) else []
    n = len(run.examples)
    spread = np.std(ranks, axis=0).mean(axis=0) if ranks else np.zeros(n)
    third = np.argsort(np.argsort(spread, kind="stable")) * 3 // n
    rng, topics = np.random.default_rng(seed), sorted({example["topic"] for example in run.examples})
    place = dict(zip(topics, rng.permutation(len(topics)).tolist(), strict=True))
    # Topics go up and down in turn, so that neighbours at the border of two thirds are alike.
    each = zip(run.examples, third.tolist(), rng.random(n), strict=True)
    key = [(t, (-1) ** t * place[e["topic"]], chance) for e, t, chance in each]
    order, k, start = sorted(range(n), key=lambda i: key[i]), min(items, n), rng.random()
    return [(i, round(float(spread[i]), 4)) for i in [order[int((start + j) * n / k)] for j in range(k)]]


def _rows(form: str, questions: Sequence[Question]) -> Iterator[list[str]]:
    """The form as a table: a head, then a row a page; empty cells are to be filled in."""
    paired = any(len(q["texts"]) > 1 for q in questions)
    yield ["code", "rater", "title", "message", "reply", *["second reply"] * paired, *CRITERIA, *[BETTER] * paired]
    for q in questions:
        cells = [q["code"], form, q["title"], q["message"], q["texts"][0], *(q["texts"][1:] or [""] * paired)]
        yield [*map(storable, cells), *[""] * (len(CRITERIA) + paired)]


def form_html(form: str, questions: Sequence[Question]) -> str:
    """One self-contained page in Bengali and English, with the criteria in the words of the judge's rubrics."""
    scales = []
    for language in ("bn", "en"):
        path = Path(bnbench.__file__).parent / "rubrics" / f"{language}.toml"
        rubric = tomllib.loads(path.read_text(encoding="utf-8"))["rating"]["rubric"]
        found = re.findall(r"^(\w+)(?: – ([^:]+))?: (.+)\n((?:  [1-5] = .+\n?){5})", rubric, re.MULTILINE)
        scales.append({n: (label or n.title(), told, re.findall(r"= (.+)", words)) for n, label, told, words in found})
    bn, en = scales
    anchors = {n: list(zip(bn[n][2], en[n][2], strict=True)) for n in CRITERIA}
    criteria = [{"name": n, "bn": bn[n][:2], "en": en[n][:2], "anchors": anchors[n]} for n in CRITERIA]
    has_pairs, store = any(len(q["texts"]) > 1 for q in questions), f"bnbench-{questions[0]['code']}"
    return page("human", form=form, store=store, questions=questions, criteria=criteria, has_pairs=has_pairs)


def workbook(rows: Sequence[Sequence[str]]) -> bytes:
    """An .xlsx of one sheet of texts: no cell is a formula. The head stays in view, ratings take whole numbers only."""
    made: Any = templates().get_template("workbook.xml.j2").module
    parts = {
        "[Content_Types].xml": made.types(), "_rels/.rels": made.package(), "xl/workbook.xml": made.workbook(),
        "xl/_rels/workbook.xml.rels": made.relations(), "xl/styles.xml": made.styles(),
        "xl/worksheets/sheet1.xml": made.sheet(rows, dict.fromkeys(CRITERIA, (1, LEVELS)) | {BETTER: (0, 2)}),
    }  # fmt: skip
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, xml in parts.items():
            archive.writestr(part, xml)
    return file.getvalue()


@dataclass(frozen=True)
class Imported:
    """What an import added to ratings.jsonl."""

    raters: tuple[str, ...]
    added: int
    known: int
    missing: Mapping[str, int]  # how many answers each rater has still to give on the forms that came back
    table: str

    def __str__(self) -> str:
        told = f"{self.added} answers added, {self.known} were there, {sum(self.missing.values())} missing"
        left = f" ({', '.join(f'{name(rater)} {n}' for rater, n in self.missing.items())})" if self.missing else ""
        who = ", ".join(map(name, self.raters))
        return f"{who}: {told}{left}\n{self.table}: all ratings, also for `bnbench preferences`"


def import_ratings(folder: Path, files: Sequence[Path], *, replace: bool = False) -> Imported:
    """Adds filled forms (.json of the page, .csv, .xlsx) to a run's ratings, all or nothing, and to human-ratings.csv.

    With `replace` a rater's new answers take the place of other ones. Raises UsageError with every fault by file, row
    and column, where a form holds no answer at all, and where two files of one rater contradict each other, or one the
    ratings on record. A form is of one person, whose name is the same in whatever case.
    """
    with alone(folder):
        run, shown = read_run(folder), {line.code: line for line in read_lines(Shown, folder / KEY)}
        if not shown:
            raise UsageError(f"{folder}: no sheet was made of this run: make one with `bnbench human sheet {folder}`")
        before = {(r.key, r.rater, r.criterion): (r, RATINGS) for r in read_lines(Rating, folder / RATINGS)}
        spelt = {(rater := r.rater.removeprefix(PERSON)).casefold(): rater for r, _ in before.values()}
        owners = {shown[r.code].form: r.rater.removeprefix(PERSON) for r, _ in before.values() if r.code in shown}
        found, begun = dict[tuple[str, str, str], tuple[Rating, str]](), set[tuple[str, str]]()
        faults, sorted_apart = list[Fault](), list[str]()
        for path in files:
            seen, empty, moved = set[tuple[str, str]](), dict[str, bool](), list[tuple[str, str]]()
            for where, row in _filled(path).items():
                code, rater = (as_text(row.get(own)).strip() for own in ("code", "rater"))
                rater = spelt.setdefault(rater.casefold(), rater)
                values, wrong = _answers(row, shown.get(code), run, moved)
                wrong += [("rater", "no name")] if values and not rater else []
                wrong += [("code", f"{code} stands twice")] if values and (code, rater) in seen else []
                seen.add((code, rater))
                faults += [(where, column, why) for column, why in wrong]
                if wrong:
                    continue
                form = shown[code].form
                empty[form] = empty.get(form, True) and not values
                if values and (owner := owners.setdefault(form, rater)) != rater and (form, rater) not in begun:
                    why = f"{name(rater)}, but the form {form} was filled in by {name(owner)}"
                    faults.append((where, "rater", f"{why}; a form is of one person, under one name"))
                begun |= {(form, rater)} if values else set()
                for criterion, value in values.items():
                    new = Rating(shown[code].key, f"{PERSON}{rater}", criterion, value, code)
                    at = new.key, new.rater, criterion
                    other, there = found.get(at, ({} if replace else before).get(at, (new, "")))
                    if other.value != value:
                        why = f"{name(rater)} gave {value:g} here and {other.value:g} in {there}"
                        how = "give one of two people another name, or take the later answers with --replace"
                        faults.append((where, criterion, f"{why}; {how}"))
                    found[at] = new, where
            how = f"fill in {', '.join(CRITERIA)}, or leave it out"
            faults += [(str(path), "", f"no answer in the form {form}; {how}") for form, so in empty.items() if so]
            is_order = sorted(here for here, _ in moved) == sorted(its for _, its in moved)
            sorted_apart += [str(path)] if moved and is_order else []
        if faults:
            raise UsageError(_told(faults, sorted_apart))
        new_ones = [new for at, (new, _) in found.items() if at not in before or before[at][0].value != new.value]
        append_lines(folder / RATINGS, new_ones)
        raters = tuple(dict.fromkeys(rating.rater.removeprefix(PERSON) for rating, _ in found.values()))
        whole = [(line, rater) for form, rater in begun for line in shown.values() if line.form == form]
        asked = {(line.key, f"{PERSON}{rater}", criterion) for line, rater in whole for criterion in _asked(line)}
        left = Counter(rater.removeprefix(PERSON) for _, rater, _ in sorted(asked - found.keys() - before.keys()))
        write_text(folder / TABLE, ratings_csv(run))
    return Imported(raters, len(new_ones), len(found) - len(new_ones), left, str(folder / TABLE))


def _told(faults: Sequence[Fault], sorted_apart: Sequence[str]) -> str:
    """All faults: of one kind the first few have a line each, and a further line says where the others are."""
    kinds, lines = dict[tuple[str, ...], list[Fault]](), list[str]()
    for where, column, why in faults:  # two words end each kind, whatever was quoted before
        kinds.setdefault((where.rpartition(" ")[0], column, *why.split()[-2:]), []).append((where, column, why))
    for (of, column, *_), these in kinds.items():
        n = _SHOWN if column and len(these) > _SHOWN + 1 else len(these)
        lines += [f"{', '.join(filter(None, (where, own)))}: {why}" for where, own, why in these[:n]]
        rest = [where.rpartition(" ")[2] for where, *_ in these[n:]]
        lines += [f"{of}s {', '.join(rest)}, {column}: {len(rest)} more like these"] if rest else []
    why = "every reply is there, in another order than its codes: columns were sorted without the others"
    lines += [f"{path}: {why}; undo that, or fill in the form as it was" for path in sorted_apart]
    return "\n".join([f"{counted(len(faults), 'fault')}, nothing was imported:", *lines])


def _filled(path: Path) -> dict[str, Mapping[str, Any]]:
    """The rows of a form by where they stand, less the empty ones that a spreadsheet leaves under the last."""
    records = read_records(path)
    if lacking := [own for own in ("code", "rater") if own not in header_of(records.values())]:
        raise UsageError(f"{path}: no column {lacking[0]!r}; give back a form of `bnbench human sheet` as it was")
    return {where: row for where, row in records.items() if "".join(map(as_text, row.values())).strip()}


def _asked(line: Shown) -> tuple[str, ...]:
    return (BETTER,) if len(line.texts) > 1 else CRITERIA


def _answers(
    row: Mapping[str, Any], shown: Shown | None, run: Run, moved: list[tuple[str, str]]
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """A row's answers, what is wrong by column; adds to `moved` a reply that is not its code's, and the one that is."""
    if shown is None:
        return {}, [("code", f"{as_text(row.get('code'))[:40]!r} is not on the key of this run")]
    values, wrong, asked = dict[str, float](), list[tuple[str, str]](), _asked(shown)
    least, most = (0, 2) if BETTER in asked else (1, LEVELS)
    for column in (*CRITERIA, BETTER):
        text = whole_number(as_text(row.get(column)).strip())
        if text and column not in asked:
            wrong.append((column, f"{text[:40]!r}, but this row does not ask for it; leave it empty"))
        elif text and not (text.isdecimal() and least <= int(text) <= most):  # Bengali digits too
            wrong.append((column, f"{text[:40]!r} is no whole number from {least} to {most}"))
        elif text:
            values[column] = float(int(text))
    # A table sorted by some of its columns has codes beside other replies than theirs.
    texts = [g.reply for who, *_ in shown.texts for g in run.replies.get(who, ()) if g.id == shown.item]
    if "reply" in row and text_key(shown.item, *texts) == shown.key:  # else the run has other replies now
        here, there = ("".join(storable(text).split())[:1000] for text in (as_text(row["reply"]), texts[0]))
        if here != there:
            moved.append((here, there))
            wrong += [("reply", "not the one of this code; sort and copy whole rows only")] if values else []
    return values, wrong


def ratings_csv(run: Run) -> str:
    """A row for each rater of a reply that says something, as `bnbench preferences` reads rated replies."""
    people, rows = read_people(run), [["id", "topic", "title", "message", "reply", "candidate", "rater", *CRITERIA]]
    if people:
        given = np.stack([people.given[criterion] for criterion in CRITERIA], axis=-1)
        names = list(run.replies)
        for i, c, r in np.argwhere(~np.isnan(given).all(axis=-1)).tolist():
            e, values = run.examples[i], ["" if x != x else f"{x:g}" for x in given[i, c, r].tolist()]
            who = run.replies[names[c]][i].reply, names[c], people.raters[r].removeprefix(PERSON)
            if who[0].strip():
                rows.append([e["id"], e["topic"], e["title"], e["question"], *who, *values])
    return storable(csv_text(rows))
