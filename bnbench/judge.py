"""Ratings of replies: by a judge, and, to be audited as it is, by people.

A judge is a language model behind an OpenAI-compatible server that rates replies, one at a time or in pairs. It
is asked once for each text, by a rubric of `rubrics/`, and its metrics are tables of what it said. A rating is kept
under a hash of all that it depends on, so that one of another reply, model or rubric is never taken for it.
"""

import hashlib
import json
import re
import tomllib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bnbench.data.corpus import make_example, repair
from bnbench.data.pairs import read_ratings
from bnbench.errors import EndpointError, InputError, PartialRunError, UsageError
from bnbench.metrics.audit import AuditReport, audit
from bnbench.metrics.audit.checks import check_auditable
from bnbench.metrics.core import FloatArray, MeanMetric, Metric, Texts, ratio
from bnbench.metrics.labelled import LabelledSet, labelled_set
from bnbench.models.candidates import Candidate, parse_candidates
from bnbench.models.client import MOST_AT_ONCE, Client
from bnbench.models.endpoint import text_of
from bnbench.progress import Stage
from bnbench.records import RATINGS, Rating, alone, append_lines, log, read_lines

SCALES = {2: dict.fromkeys(("overall", "empathy", "relevance", "fluency"), range(1, 6)), 3: {"better": range(3)}}
"""By the number of texts in a question: what is asked, and the whole numbers that answer it."""
MOST_TOKENS = 512  # of an answer, which has 40; with the rubric it has to fit into 4,096
FEWEST = 8  # questions that may all go unanswered before the judge is given up
FAMILIES = "claude|command-r|deepseek|gemini|gemma|glm|gpt|granite|grok|kimi|llama|mistral|mixtral|olmo|phi-|qwen"

Question = tuple[str, ...]  # a message and the reply to be rated, or the two to be compared, in the order shown
Answer = Mapping[str, float]  # by criterion; empty: twice no answer that could be used


class Judge:
    """A model (URL#MODEL) that rates by a language's rubric, and with `pairs` compares; UsageError without either."""

    tried = 48  # labelled replies that it rates first, two to a message

    def __init__(self, address: str, language: str = "bn", *, pairs: bool = False, quiet: bool = True) -> None:
        if not re.match(r"https?://.+#.", address):
            raise UsageError(f"the judge {address!r}: write URL#MODEL, such as --judge http://127.0.0.1:8000#my-model")
        [served] = parse_candidates(endpoints=[address])
        rubrics = {path.stem: path for path in (Path(__file__).parent / "rubrics").glob("*.toml")}
        if language not in rubrics:
            raise UsageError(f"there is no rubric {language!r} for a judge; there are {', '.join(sorted(rubrics))}")
        self._rubric = tomllib.loads(rubrics[language].read_text(encoding="utf-8"))
        self._sha = _sha256(self._rubric)
        self.model, self.rubric = served.location, f"{language}-{self._sha[:8]}"
        self._urls, self._extras = served.urls, {"chat_template_kwargs": {"enable_thinking": False}}
        self.pairs, self.quiet = pairs, quiet
        self._said: dict[str, Answer] = {}
        self._path: Path | None = None
        self._is_met = False

    @property
    def metrics(self) -> list["Judged"]:
        """A mean for each criterion, and with pairs the share of wins."""
        kinds: list[type[Judged]] = [Overall, Empathy, Relevance, Fluency, *([Wins] if self.pairs else [])]
        return [kind(self) for kind in kinds]

    def keep(self, path: Path) -> None:
        """Goes on from the ratings of a file, and adds each new one to it."""
        found: dict[str, dict[str, float]] = {}
        for rating in read_lines(Rating, path):
            found.setdefault(rating.key, {})[rating.criterion] = rating.value
        scales = [scale.keys() for scale in SCALES.values()]
        self._said = {key: values for key, values in found.items() if values.keys() in scales}
        self._path = path

    def answers(self, questions: Sequence[Question]) -> list[Answer]:
        """What the judge says to each question; only what it was not asked before goes out. Raises EndpointError where
        no server answers, or nothing of use, CandidateError where it serves another model.
        """
        asked = {self._key(question): question for question in questions}
        new, client = [key for key in asked if key not in self._said], Client(self._urls, self.model)
        if new and not self._is_met:
            client.owner()  # one that is not there is known at once, and one that goes away is waited for
            self._is_met = True
        with Stage("judge", len(new), quiet=self.quiet or not new) as progress:
            for start in range(0, len(new), MOST_AT_ONCE):
                window = new[start : start + MOST_AT_ONCE]
                self._ask(client, {key: asked[key] for key in window})
                progress.advance(len(window))
        return [self._said[self._key(question)] for question in questions]

    def _key(self, question: Question) -> str:
        return _sha256([self.model, self._sha, *question])

    def _ask(self, client: Client, asked: Mapping[str, Question]) -> None:
        """Asks each question, those that are answered in another form once more, and keeps what was said."""
        chats = {key: [{"role": "user", "content": self._prompt(key, question)}] for key, question in asked.items()}
        said, again = "", {"role": "user", "content": self._rubric["again"]}
        for _ in range(2):
            bodies = [{"messages": chat, "temperature": 0.0, "max_tokens": MOST_TOKENS} for chat in chats.values()]
            failed = {}
            while True:
                try:
                    answers, failure = client.map("chat/completions", [body | self._extras for body in bodies]), None
                except EndpointError as error:
                    answers, failure = list(error.before), error
                if failure is None or any(answers) or not self._extras or failure.status not in (400, 422):
                    break
                self._extras = {}  # a server that does not know what only models that think have a use for
            came = (one for one in zip(chats.items(), answers, strict=False) if one[1] is not None)  # {} came
            for (key, chat), answer in came:
                said = ""
                with suppress(KeyError, IndexError, TypeError):
                    said = _whole(str(text_of(answer["choices"][0]["message"]["content"]) or ""))
                if values := _values(said, SCALES[len(asked[key])]):
                    self._said[key] = values
                else:
                    failed[key] = [*chat, {"role": "assistant", "content": said[:1000] or "…"}, again]
            rater, new = f"{self.model}|{self.rubric}", [key for key in chats if self._said.get(key)]
            if self._path and new:
                append_lines(self._path, [Rating(k, rater, *one) for k in new for one in self._said[k].items()])
            if failure:
                raise failure
            chats = failed
        if len(chats) == len(asked) >= FEWEST:
            told = f"the judge {self.model} answered none of {len(asked)} questions as it was asked to"
            raise EndpointError(f"{told}; it said: {client.words(said)}")
        self._said |= {key: {} for key in chats}  # not on record, so that the next session asks again

    def _prompt(self, key: str, question: Question) -> str:
        """Rubric, texts, and what to answer. No text can hold the mark of its brackets, which is a hash of it."""
        kind, *names = ("rating", "reply") if len(question) == 2 else ("pair", "reply 1", "reply 2")
        words, mark, named = self._rubric[kind], key[:12], zip(["message", *names], question, strict=True)
        texts = [f"[{name} {mark}]\n{_whole(text)}\n[/{name} {mark}]" for name, text in named]
        return "\n\n".join([words["rubric"].strip().replace("FENCE", mark), *texts, words["ask"].strip()])

    def audits(self, data: LabelledSet | None = None, *, seed: int = 42) -> list[AuditReport]:
        """How far its ratings of empathy, and overall, agree with labels: by default of a part of the shipped replies.
        Raises InputError for replies that cannot be audited before it is asked, EndpointError as `answers` does.
        """
        data = data or labelled_part()
        check_auditable(Overall(self), data)
        answers = self.answers([(row.message, row.reply) for row in data.rows])
        rated = [row for row, answer in zip(data.rows, answers, strict=True) if answer]
        part = LabelledSet(rated, data.source, data.sha256)
        return [audit(metric(self), part, seed=seed, perturb=False) for metric in (Overall, Empathy)]

    def rate(self, candidates: Sequence[Texts]) -> list[str]:
        """Asks all that its metrics need of the candidates' texts; notes on what is missing and what hangs on order."""
        questions = [q for metric in self.metrics for texts in candidates for q in metric.questions(texts)]
        said = dict(zip(questions, self.answers(questions), strict=True))
        notes, missing = [], sum(not answer for answer in said.values())
        if missing:
            why = "could not be read, twice: these ratings are missing"
            notes.append(f"{missing} of {len(said)} answers of the judge {self.model} {why}")
        pairs = [(said[q], said[q[0], q[2], q[1]]) for q in said if len(q) == 3 and q[1] < q[2]]
        if won := [_won(*orders) for orders in pairs if all(orders)]:
            ties, n = won.count(None), len(won)
            share = f"{ties} of {n} comparisons ({ties / n:.0%}), which count as ties"
            notes.append(f"the judge {self.model} changed its mind with the order of the replies in {share}")
        return notes

    def kin(self, candidates: Iterable[Candidate]) -> list[str]:
        """A note for each candidate of the judge's own name or family."""
        own, notes = self.model.casefold(), []
        for candidate in candidates:
            names = " ".join([candidate.name, candidate.location, candidate.base or ""]).casefold()
            if shared := [word for word in (*re.findall(FAMILIES, own), own) if word in names]:
                told = f"the judge {self.model} and {candidate.name} are of one family ({shared[0]})"
                notes.append(f"{told}: models are known to favour their own kind")
        return notes


class Judged(Metric):
    """A metric of what a judge says: a sum over a count. Without its judge it only reads tables that are there."""

    needs, is_percent = frozenset({"messages"}), False

    def __init__(self, judge: Judge | str = "") -> None:
        self.values = (self.name.replace("-", "_"),)
        self.judge = Judge(judge) if judge and isinstance(judge, str) else judge

    @property
    def choices(self) -> Mapping[str, object]:
        """The model and the rubric, with its language and a hash of its words."""
        return {"model": self._asked().model, "rubric": self._asked().rubric}

    def _asked(self) -> Judge:
        if not isinstance(self.judge, Judge):
            how = f"--judge URL#MODEL of `bnbench evaluate`, --metric {self.name}:URL#MODEL of `bnbench score`"
            raise UsageError(f"{self.name} needs a judge: {how}")
        return self.judge

    def formula(self, sums: FloatArray) -> FloatArray:
        """The first sum over the second, which is the number of answers; 0 where there are none."""
        return ratio(sums[..., :1], sums[..., 1:])

    @abstractmethod
    def questions(self, texts: Texts) -> list[Question]:
        """What the judge has to be asked for these texts."""


class MeanRating(Judged):
    """The mean of the ratings by one criterion, 1-5. A reply without a rating is not counted."""

    columns, bounds = ("sum", "ratings"), (1, 5)

    def questions(self, texts: Texts) -> list[Question]:
        """One for each reply."""
        return list(zip(texts.messages or (), texts.replies, strict=True))

    def statistics(self, texts: Texts) -> FloatArray:
        """The rating of each reply and 1, or 0 and 0."""
        self.check(texts)
        said, criterion = self._asked().answers(self.questions(texts)), self.name.removeprefix("judge-")
        return np.array([(answer.get(criterion, 0.0), bool(answer)) for answer in said], dtype=np.float64)


def _mean(name: str, of: str) -> type[MeanRating]:
    told = f"mean rating of {of} by a language model, 1-5, higher is better"
    own = {"__doc__": told, "__module__": __name__, "name": f"judge-{name.lower()}", "description": told}
    return type(name, (MeanRating,), own)


Overall, Empathy = _mean("Overall", "the whole reply"), _mean("Empathy", "the reply's empathy")
Relevance, Fluency = _mean("Relevance", "how far the reply answers"), _mean("Fluency", "the reply's Bengali")


class Wins(Judged):
    """The share of comparisons with the other candidates' replies that are won, a tie counting half."""

    name = "judge-wins"
    description = "share of comparisons with other candidates won before a language model, 0-100, higher is better"
    columns, needs, is_percent = ("wins", "comparisons"), frozenset({"messages", "rivals"}), True

    def questions(self, texts: Texts) -> list[Question]:
        """Two for each rival that says something else, so that each reply stands first once."""
        found = zip(texts.messages or (), texts.replies, texts.rivals or (), strict=True)
        pairs = [(message, reply, rival) for message, reply, rivals in found for rival in rivals if rival != reply]
        return [asked for message, *two in pairs for asked in ((message, *two), (message, *reversed(two)))]

    def statistics(self, texts: Texts) -> FloatArray:
        """Of each reply 100 for each win and 50 for each tie, and how many rivals it was compared with."""
        self.check(texts)
        asked = self.questions(texts)
        said, table = dict(zip(asked, self._asked().answers(asked), strict=True)), np.zeros((len(texts), 2))
        found = zip(texts.messages or (), texts.replies, texts.rivals or (), strict=True)
        for row, (message, reply, rivals) in enumerate(found):
            for rival in rivals:
                ways = (message, reply, rival), (message, rival, reply)
                orders = [said.get(way, {"better": 0.0}) for way in ways]  # two that say the same are equal, unasked
                if all(orders):
                    won = _won(*orders)
                    table[row] += (100 * (0.5 if won is None else won), 1)
        return table


def audit_judge(
    judge: Judge, data: LabelledSet, out: Path | None, *, seed: int = 42, command: str = ""
) -> list[AuditReport]:
    """`Judge.audits`, from the ratings kept in `out` on; PartialRunError, with `command`, where some are kept."""
    with alone(out) if out else nullcontext():
        if out:
            judge.keep(out / RATINGS)
        new = len({judge._key((row.message, row.reply)) for row in data.rows} - judge._said.keys())
        again = "an answer that cannot be read is asked for once more"
        log.info("%s rates %d labelled replies, %d calls: %s", judge.model, len(data), new, again)
        try:
            return judge.audits(data, seed=seed)
        except EndpointError as error:
            if out and (out / RATINGS).exists():
                raise PartialRunError(f"{error}\nRatings are kept in {out}; go on with: {command}") from None
            raise


class Ratings(MeanMetric):
    """The mean of what people gave each of the labelled replies that they rated: `rated` is by message and reply."""

    name, description = "ratings", "mean rating of each reply in a file of ratings, higher is better"
    columns, values, needs = ("rating", "replies"), ("ratings",), frozenset({"messages"})
    is_percent, scale = False, 1

    def __init__(self, rated: Mapping[tuple[str, str], float]) -> None:
        self.rated, self.choices = rated, {"of": _sha256(sorted(map(str, rated.items())))[:8]}

    def per_reply(self, texts: Texts) -> FloatArray:
        """n x 1: the rating of each reply, all of which have one."""
        return np.array([[self.rated[key]] for key in zip(texts.messages or (), texts.replies, strict=True)])


def audit_ratings(path: Path, data: LabelledSet, columns: Sequence[str] = (), *, seed: int = 42) -> AuditReport:
    """How far a file of ratings agrees with the labels of the replies that it rates; the others are left out.

    Of several rows of one reply, such as one for each rater, the mean counts. Raises CorpusError as `read_ratings`
    does, with `columns` those of ratings, and InputError for a row that is none of the labelled replies.
    """
    keys = [make_example("", "", *map(repair, (row.message, row.reply))).id for row in data.rows]  # of any spelling
    given: dict[str, list[float]] = {key: [] for key in keys}
    for one in read_ratings(path, ratings=columns):
        key = make_example("", "", one.example.question, one.example.reference).id
        if key not in given:
            what = f"this message with this reply is not in {data.source}"
            raise InputError(f"{one.place}: {what}; name the labelled replies by --data and --half, or remove the row")
        given[key].append(one.rating)
    rated = [(row, fmean(given[key])) for row, key in zip(data.rows, keys, strict=True) if given[key]]
    source = data.source if len(rated) == len(data) else f"{data.source}, {len(rated)} of {len(data)} rated"
    part = LabelledSet([row for row, _ in rated], source, data.sha256)
    return audit(Ratings({(row.message, row.reply): mean for row, mean in rated}), part, seed=seed, perturb=False)


def labelled_part() -> LabelledSet:
    """`Judge.tried` held-out replies: to each of half as many messages an empathic one and one of the other kinds."""
    whole, rows = labelled_set("held-out"), []
    for place, name in enumerate(sorted(set(whole.ids), key=_sha256)[: Judge.tried // 2]):
        own = sorted((row for row in whole.rows if row.id == name), key=lambda row: row.kind)
        for empathic in (True, False):
            some = [row for row in own if row.empathic == empathic]
            rows.append(some[place % len(some)])
    return LabelledSet(rows, f"{whole.source}, {Judge.tried} of them", whole.sha256)


def _values(said: str, scales: Mapping[str, range]) -> Answer:
    """The ratings of an answer's one JSON object with a whole number on every scale, whatever else is said; or {}."""
    found: list[Answer] = []
    for text in re.findall(r"\{[^{}]*\}", said.rpartition("</think>")[2]):
        with suppress(ValueError, RecursionError):
            given = json.loads(text)
            if all(type(given.get(name)) is int and given[name] in scale for name, scale in scales.items()):
                values = {name: float(given[name]) for name in scales}
                found += [] if values in found else [values]
    return found[0] if len(found) == 1 else {}


def _won(first: Answer, second: Answer) -> float | None:
    """What the reply has won that stood first in `first`: 1, 0 or, equal, a half; None where the order decided."""
    return {(1.0, 2.0): 1.0, (2.0, 1.0): 0.0, (0.0, 0.0): 0.5}.get((first["better"], second["better"]))


def _whole(text: str) -> str:
    """Without halves of characters, which no UTF-8 can carry."""
    return text.encode("utf-8", "replace").decode()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
