import csv
import json
import random
import shutil
import time
from dataclasses import replace
from importlib import metadata
from importlib.resources import files
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.data.corpus import load_corpus
from bnbench.errors import InputError, PartialRunError, RunError, UsageError
from bnbench.evaluate import EvaluationRequest, _test_rows, choose_measures, evaluate
from bnbench.metrics.chrf import ChrF
from bnbench.models import Backend, Reply, recorded
from bnbench.models.candidates import parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.yardsticks import STOCK_REPLY
from bnbench.records import read_run

BATCH = 4


def request(base, adapter, out, **changes):
    candidates = parse_candidates(f"ভিত্তি={base}", [f"অ্যাডাপ্টার={adapter}"], [])
    settings = {
        "candidates": candidates,
        "out": out,
        "limit": 10,
        "decoding": Decoding(max_new_tokens=12),
        "batch_size": BATCH,
        "quiet": True,
        "device": "cpu",
        "quantise": False,
    }
    return EvaluationRequest(**{**settings, **changes})


def demo_rows():
    return list(csv.DictReader((files("bnbench.demo") / "conversations.csv").read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def undisturbed(tiny_base, tiny_adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    return evaluate(request(tiny_base, tiny_adapter, out))


def test_a_run_holds_everything_that_a_report_needs(undisturbed):
    run = read_run(undisturbed)
    assert tuple(run.replies) == ("ভিত্তি", "অ্যাডাপ্টার")
    assert len(run.examples) == 10
    for name in run.replies:
        assert [g.id for g in run.replies[name]] == [e["id"] for e in run.examples]
        assert {"chrF++", "BLEU", "ROUGE", "perplexity", "degeneration", "keyword-empathy"} <= set(run.tables[name])
    for described in run.record.metrics:
        assert described.signature.startswith(described.name + "|")
        assert "n:10" in described.signature
    base, adapter = (run.tables[name]["perplexity"] for name in run.replies)
    assert (base[:, 1:] == adapter[:, 1:]).all()
    assert (base[:, 0] != adapter[:, 0]).all()
    assert len({g.key for g in run.replies["ভিত্তি"] + run.replies["অ্যাডাপ্টার"]}) == 20


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(5))
def test_a_run_cut_anywhere_ends_with_the_same_bytes(undisturbed, tiny_base, tiny_adapter, tmp_path, seed):
    whole = (undisturbed / "generations.jsonl").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "generations.jsonl").write_bytes(whole[: random.Random(seed).randrange(len(whole))])
    out = evaluate(request(tiny_base, tiny_adapter, tmp_path / "cut"))
    assert (out / "generations.jsonl").read_bytes() == whole


def test_whole_batches_are_not_generated_again(undisturbed, tiny_base, tiny_adapter, tmp_path, monkeypatch):
    from bnbench.models import hf

    answered = []
    original = hf.TransformersBackend.generate

    def counting(self, candidate, prompts, items, decoding):
        answered.extend(items)
        return original(self, candidate, prompts, items, decoding)

    monkeypatch.setattr(hf.TransformersBackend, "generate", counting)
    lines = (undisturbed / "generations.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "generations.jsonl").write_bytes(b"".join(lines[:14]) + lines[14][:20])
    evaluate(request(tiny_base, tiny_adapter, tmp_path / "run"))
    # 10 of the base and one batch of the adapter are whole; the torn line's batch and the last one are not.
    assert len(answered) == 20 - (10 + BATCH)


def test_times_and_memory_are_those_of_all_sessions(tiny_base, tiny_adapter, tmp_path, monkeypatch):
    from bnbench.models import hf

    original, left = hf.TransformersBackend.generate, [3]

    def failing(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("the card fell off the bus")
        time.sleep(0.05)
        return original(self, *args)

    monkeypatch.setattr(hf.TransformersBackend, "generate", failing)
    asked = request(tiny_base, tiny_adapter, tmp_path / "run")
    with pytest.raises(PartialRunError):
        evaluate(asked)
    begun = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert begun["finished"] is None
    first, second = (c["seconds"] for c in begun["candidates"])
    assert first > 0.15 and second is None  # three batches are the base's, and the adapter's first one failed
    left[0] = 99
    for _ in range(2):  # to its end, and once more when nothing is left to do
        done = read_run(evaluate(asked)).record
        base, adapter = done.candidates
        assert base.seconds == first
        tokens = sum(g.tokens for g in read_run(tmp_path / "run").replies[adapter.name])
        assert adapter.tokens_per_second == pytest.approx(tokens / adapter.seconds, abs=0.1)
        assert adapter.seconds > 0.15
        assert done.peak_memory_bytes >= begun["peak_memory_bytes"] > 0
        assert done.created == begun["created"]
        assert list(done.stages) == ["load", "generate", "score"] and done.stages["load"] > begun["stages"]["load"] > 0
        assert done.stages["generate"] == pytest.approx(base.seconds + adapter.seconds) and done.stages["score"] > 0


def test_replies_under_another_name_are_another_run(tmp_path):
    (tmp_path / "a.txt").write_text("আমি শুনছি।\n" * 240, encoding="utf-8")
    for name in ("ক", "খ"):
        named = parse_candidates(predictions=[f"{name}={tmp_path / 'a.txt'}"])
        asked = EvaluationRequest(named, tmp_path / "run", limit=3, quiet=True)
        if name == "ক":
            assert read_run(evaluate(asked)).record.candidates[0].tokens_per_second is None
        else:
            with pytest.raises(RunError, match=r"holds another run: candidates was ক and is খ now\. Name"):
                evaluate(asked)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"decoding": Decoding(greedy=True, max_new_tokens=13)},
            "greedy was False and is True now; max_new_tokens was ",
        ),
        ({"limit": 5}, "limit was 10 and is 5 now. Name"),
        ({"batch_size": 5}, "batch_size was 4 and is 5 now. Name"),
        ({"system": {"": "none"}}, "system was আপনি একজন সহানুভূতিশীল বাংলা কথো and is none now; template_sha of "),
    ],
)
def test_a_folder_with_another_run_is_refused_and_kept(undisturbed, tiny_base, tiny_adapter, other, said):
    before = (undisturbed / "generations.jsonl").read_bytes()
    with pytest.raises(RunError, match=f"{undisturbed} holds another run: {said}"):
        evaluate(request(tiny_base, tiny_adapter, undisturbed, **other))
    assert (undisturbed / "generations.jsonl").read_bytes() == before


def test_the_primary_metric_cannot_be_changed_afterwards(undisturbed, tiny_base, tiny_adapter):
    with pytest.raises(RunError, match=r"began with chrF\+\+ as the primary metric"):
        evaluate(request(tiny_base, tiny_adapter, undisturbed, primary="BLEU"))


def test_a_combined_score_is_declared_once(tmp_path):
    (tmp_path / "a.txt").write_text("আমি শুনছি, আপনার কষ্টটা বুঝি।\n" * 240, encoding="utf-8")
    named = parse_candidates(predictions=[f"ক={tmp_path / 'a.txt'}"])
    weights = {"chrF++": 0.25, "keyword-empathy": 0.75}

    def asked(**changes):
        return EvaluationRequest(named, tmp_path / "run", limit=3, quiet=True, **{"combine": weights, **changes})

    run = read_run(evaluate(asked()))
    assert run.record.combined == weights and run.record.primary_metric == "chrF++"
    [described] = [m for m in run.record.metrics if m.name == "combined"]
    assert described.signature.startswith("combined|chrF++:0.25|keyword-empathy:0.75|parts:")
    own = run.tables["ক"]
    assert (own["combined"] == np.hstack([own["chrF++"], own["keyword-empathy"]])).all()
    evaluate(asked())
    for changes, says in (
        (
            {"combine": {"chrF++": 0.5, "keyword-empathy": 0.5}},
            "0.75 keyword-empathy and cannot go on with the combined score 0.5 chrF",
        ),
        (
            {"combine": {}},
            "began with the combined score 0.25 chrF.*cannot go on without a combined score; name another",
        ),
        ({"primary": "combined"}, "cannot go on with combined as the primary metric"),
    ):
        with pytest.raises(RunError, match=says):
            evaluate(asked(**changes))
    assert read_run(evaluate(asked(overwrite=True, primary="combined"))).record.primary_metric == "combined"


@pytest.mark.parametrize(("at", "replies"), [(0, 0), (9, 3)])
@pytest.mark.parametrize("fault", ["raises", "nan", "shape"])
def test_a_metric_that_fails_is_told_before_what_it_would_waste(fault, at, replies, tmp_path, monkeypatch):
    original = ChrF.statistics

    def failing(self, texts):  # on each text, or on a yardstick that is known while the first candidate answers
        if at and not any(reply == STOCK_REPLY for reply in texts.replies):
            return original(self, texts)
        if fault == "raises":
            raise KeyError("tone")
        return np.full((len(texts), len(self.columns)), np.nan) if fault == "nan" else np.zeros((len(texts), 1))

    def slow(self, candidate, *args):
        time.sleep(0.7 * (candidate.name == "a"))
        return answer(self, candidate, *args)

    answer = recorded.RecordedReplies.generate
    monkeypatch.setattr(ChrF, "statistics", failing)
    monkeypatch.setattr(recorded.RecordedReplies, "generate", slow)
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("আমি শুনছি।\n" * 240, encoding="utf-8")
    named = parse_candidates(predictions=[f"{name}={tmp_path / name}.txt" for name in "ab"])
    says = "KeyError: 'tone'" if fault == "raises" else r"its table must be \d+ x \d+ finite numbers"
    with pytest.raises(InputError, match=f"the metric chrF fails: .*{says}"):
        evaluate(EvaluationRequest(named, tmp_path / "run", limit=3, quiet=True, metrics=("chrF",), primary="chrF"))
    kept = tmp_path / "run" / "generations.jsonl"
    assert len(kept.read_bytes().splitlines() if kept.exists() else []) == replies


def test_a_metric_that_needs_what_no_run_has_is_refused(monkeypatch):
    monkeypatch.setattr(ChrF, "needs", frozenset({"reference"}))
    with pytest.raises(UsageError, match=r"chrF needs reference, and a run has only .*references"):
        choose_measures("chrF", ["chrF"])


@pytest.mark.parametrize("failure", [RuntimeError("the disk fell off the bus"), KeyboardInterrupt()])
def test_a_failure_does_not_wait_for_scoring_that_has_not_begun(failure, tmp_path, monkeypatch):
    original, counted = recorded.RecordedReplies.generate, []

    def failing(self, candidate, *args):
        if candidate.name == "b":
            raise failure
        return original(self, candidate, *args)

    monkeypatch.setattr(recorded.RecordedReplies, "generate", failing)
    monkeypatch.setattr("bnbench.evaluate.write_yardsticks", lambda *_: time.sleep(0.5))  # has the only thread
    monkeypatch.setattr("bnbench.evaluate.statistics", lambda texts, metrics: counted.append(len(texts)))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("আমি শুনছি।\n" * 240, encoding="utf-8")
    named = parse_candidates(predictions=[f"{name}={tmp_path / name}.txt" for name in "ab"])
    with pytest.raises((PartialRunError, KeyboardInterrupt)):
        evaluate(EvaluationRequest(named, tmp_path / "run", limit=3, quiet=True))
    # One reference is tried before; the replies that came are not counted.
    assert counted == [1] and len((tmp_path / "run" / "generations.jsonl").read_bytes().splitlines()) == 3


def test_a_failure_midway_keeps_the_replies_and_says_how_to_go_on(tiny_base, tiny_adapter, tmp_path, monkeypatch):
    from bnbench.models import hf

    original = hf.TransformersBackend.generate
    calls = []

    def failing(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the card fell off the bus")
        return original(self, *args)

    monkeypatch.setattr(hf.TransformersBackend, "generate", failing)
    with pytest.raises(PartialRunError, match=r"fell off the bus(.|\n)*go on with: bnbench evaluate --x") as caught:
        evaluate(request(tiny_base, tiny_adapter, tmp_path / "run", command="bnbench evaluate --x"))
    assert caught.value.exit_code == 3
    assert len((tmp_path / "run" / "generations.jsonl").read_bytes().splitlines()) == 2 * BATCH
    with pytest.raises(RunError, match="not finished"):
        read_run(tmp_path / "run")


def test_an_adapter_tested_on_its_own_training_rows_is_named(tiny_base, tiny_adapter, tmp_path, undisturbed):
    ids = [e["id"] for e in read_run(undisturbed).examples]
    trained = shutil.copytree(tiny_adapter, tmp_path / "trained")
    record = json.loads((files("bnbench.demo") / "adapter" / "training.json").read_text(encoding="utf-8"))
    (trained / "training.json").write_text(json.dumps({**record, "examples": ids[:3]}), encoding="utf-8")
    run = read_run(evaluate(request(tiny_base, trained, tmp_path / "run")))
    assert list(run.record.notes) == [
        "অ্যাডাপ্টার was trained on 3 of the 10 test rows: its scores here say nothing about new messages"
    ]


def test_an_unknown_primary_metric_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(UsageError, match="chrF"):
        evaluate(EvaluationRequest(candidates=(), out=tmp_path, primary="chrF+++"))


@pytest.mark.no_cover
def test_sigkill_in_the_middle_twice(tiny_base, tiny_adapter, tmp_path, forked):
    """The real thing: a process killed with -9 once it has got on, twice, then the same command to its end."""
    words = ["evaluate", "--base", str(tiny_base), "--adapter", str(tiny_adapter)]
    words += ["--limit", "12", "--batch-size", "2", "--max-new-tokens", "24", "--device", "cpu", "--quiet"]
    words += ["--metric", "chrF++", "--metric", "perplexity"]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom tests.faults.kills import fork, wait\n"
        "killed = Path(sys.argv[1])\njournal, words = killed / 'generations.jsonl', [*sys.argv[2:], '--out', killed]\n"
        "for _ in range(2):\n"
        "    size = journal.stat().st_size if journal.exists() else 0\n"
        "    child = fork([*map(str, words)])\n"
        "    while not (journal.exists() and journal.stat().st_size > size):\n"
        "        assert os.waitpid(child, os.WNOHANG) == (0, 0)\n"
        "        time.sleep(0.01)\n"
        "    os.kill(child, signal.SIGKILL)\n"
        "    assert wait(child) == -signal.SIGKILL\n"
    )
    [done] = forked(code, str(killed), *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for out in (killed, calm):
        done = CliRunner().invoke(app, [*words, "--out", str(out)])
        assert done.exit_code == 0, done.output
    for name in ("generations.jsonl", "ranking.json"):
        assert (killed / name).read_bytes() == (calm / name).read_bytes()


def test_a_foreign_training_record_names_no_rows(tiny_base, tiny_adapter, tmp_path):
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    (adapter / "training.json").write_text("{}", encoding="utf-8")
    run = read_run(evaluate(request(tiny_base, adapter, tmp_path / "run", limit=2)))
    assert run.record.notes == () and run.record.candidates[1].training is None


# Models and recorded replies in one run


def test_each_candidate_is_asked_and_answered_by_its_own_backend(tiny_base, tiny_adapter, tmp_path):
    rows = [row["Answers"] for row in demo_rows()]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"reply": r}) + "\n" for r in rows), encoding="utf-8")
    candidates = parse_candidates(str(tiny_base), [f"a={tiny_adapter}"], [str(tmp_path / "mine.jsonl")])
    run = read_run(evaluate(request(tiny_base, tiny_adapter, tmp_path / "run", candidates=candidates, limit=4)))
    base, adapter, mine = run.record.candidates
    assert [c.key_fields["backend"] for c in (base, adapter, mine)] == ["hf", "hf", "recorded"]
    assert [g.reply for g in run.replies["mine"]] == [e["reference"] for e in run.examples]
    assert {g.tokens for g in run.replies["mine"]} == {None} and mine.seconds is None and base.seconds > 0
    assert "perplexity" in run.tables["a"] and "perplexity" not in run.tables["mine"]
    assert run.record.prompt["kind"] == "llama-3.1" and run.record.precision["dtype"] == "float32"
    alone = read_run(evaluate(request(tiny_base, tiny_adapter, tmp_path / "alone", candidates=candidates[2:], limit=4)))
    # A file's replies are the same candidate whatever model stands beside them.
    assert alone.replies["mine"] == run.replies["mine"] and alone.record.prompt["kind"] == "recorded"


# A backend from outside


class Shout(Backend):
    """Answers with what it was asked, so many times; counts how often it was loaded."""

    loads = 0

    def load(self):
        Shout.loads += 1

    def generate(self, candidate, prompts, items, decoding):
        return [Reply(f"{prompt.user} " * len(candidate.location), 3, False) for prompt in prompts]


@pytest.fixture
def shout(monkeypatch):
    point = SimpleNamespace(name="shout", value="a:Shout", load=lambda: Shout)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "bnbench.backends" else [])
    Shout.loads = 0


def test_a_plug_in_runs_from_the_command_line_to_the_report(shout, tmp_path):
    words = ["evaluate", "--backend", "shout", "--base", "x", "--adapter", "long=xyz", "--limit", "3", "-q"]
    words += ["--out", str(tmp_path / "run"), "--json"]
    for _ in range(2):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    assert Shout.loads == 1  # the second time nothing was left to do
    assert {row["candidate"] for row in json.loads(done.stdout)["standings"]} == {"x", "long"}
    run = read_run(tmp_path / "run")
    question = run.examples[0]["question"]
    assert run.replies["long"][0].reply.count(question) == 3 and run.replies["x"][0].reply.count(question) == 1
    assert run.record.prompt["kind"] == "messages" and "{topic}" in run.record.prompt["system"]
    assert run.record.candidates[0].key_fields["backend"] == "shout"
    assert "perplexity" not in run.tables["x"]


def test_too_few_replies_are_a_fault_of_the_backend(shout, tmp_path, monkeypatch):
    monkeypatch.setattr(Shout, "generate", lambda *_: [Reply("এক")])
    candidates = parse_candidates("x", needs_files=False)
    with pytest.raises(PartialRunError, match="x gave 1 replies to 3 prompts"):
        evaluate(EvaluationRequest(candidates, tmp_path / "run", backend="shout", limit=3, quiet=True))


# The metrics of a run


def recorded_request(tmp_path, **changes):
    (tmp_path / "a.txt").write_text("আমি শুনছি, আপনার কষ্টটা বুঝি।\n" * 240, encoding="utf-8")
    named = parse_candidates(predictions=[f"ক={tmp_path / 'a.txt'}"])
    return EvaluationRequest(named, **{"out": tmp_path / "run", "limit": 3, "quiet": True, **changes})


def test_a_run_computes_what_it_is_asked_for_and_ranks_by_any_of_it(tmp_path):
    run = read_run(evaluate(recorded_request(tmp_path, metrics=("DIVERSITY", "chrF:none"), primary="chrf")))
    assert [m.name for m in run.record.metrics] == ["diversity", "chrF"] and run.record.primary_metric == "chrF"
    assert run.record.metrics[1].spelling == "chrF:none"  # by which a report gets it again
    assert set(run.tables["ক"]) == {"diversity", "chrF"}
    assert "norm:none" in run.record.metrics[1].signature


def test_processes_beside_a_run_change_none_of_its_bytes(tmp_path):
    """Each counts a part of the replies, with metrics that this process has used before."""
    by_one = evaluate(recorded_request(tmp_path, limit=5))
    by_two = evaluate(recorded_request(tmp_path, limit=5, out=tmp_path / "two", workers=2))
    tables = {path.relative_to(by_one): path.read_bytes() for path in (by_one / "scores").rglob("*.parquet")}
    assert len(tables) > 5 and all((by_two / path).read_bytes() == table for path, table in tables.items())
    assert read_run(by_two).record.yardsticks == read_run(by_one).record.yardsticks


@pytest.mark.no_cover
def test_a_reply_s_key_depends_on_all_that_made_it_and_on_nothing_else(tmp_path):
    def keys(name, reply="আমি শুনছি।", **changes):
        (tmp_path / "a.txt").write_text(f"{reply}\n" * 240, encoding="utf-8")
        named = parse_candidates(predictions=[f"ক={tmp_path / 'a.txt'}"])
        asked = {"limit": 3, "quiet": True, **changes}
        return [g.key for g in read_run(evaluate(EvaluationRequest(named, tmp_path / name, **asked))).replies["ক"]]

    first = keys("a")
    assert keys("b", metrics=("BLEU",), primary="BLEU") == first
    others = [keys("c", "হুম"), keys("d", decoding=Decoding(seed=2)), keys("e", batch_size=2)]
    assert len({key for each in (first, *others) for key in each}) == 12


def test_other_metrics_keep_the_replies_and_another_primary_one_is_refused(tmp_path):
    evaluate(recorded_request(tmp_path))
    written = (tmp_path / "run" / "generations.jsonl").stat().st_mtime_ns
    run = read_run(evaluate(recorded_request(tmp_path, metrics=("diversity",))))
    assert [m.name for m in run.record.metrics] == ["diversity", "chrF++"]  # what ranks was not named, and is added
    assert (tmp_path / "run" / "generations.jsonl").stat().st_mtime_ns == written
    with pytest.raises(RunError, match="cannot go on with diversity as the primary metric"):
        evaluate(recorded_request(tmp_path, metrics=("diversity",), primary="diversity"))


def test_a_default_metric_gives_way_to_the_same_one_with_an_argument():
    chosen = choose_measures("chrF++:none")
    assert (chosen.primary, chosen.metrics[0].spelling) == ("chrF++", "chrF++:none")
    assert [m.name for m in chosen.metrics].count("chrF++") == 1
    parts = choose_measures("chrF++", ["BLEU"], {"chrF++": 0.5, "chrF": 0.5})
    assert [m.name for m in parts.metrics] == ["BLEU", "chrF++", "chrF", "combined"]


def test_a_metric_that_is_named_twice_is_one():
    for primary in ("chrF++", "CHRF++:bn1"):
        chosen = choose_measures(primary, ["chrF++", "chrf++", "chrF++:bn1", "BLEU"])
        assert ([m.name for m in chosen.metrics], chosen.primary) == (["chrF++", "BLEU"], "chrF++")


def test_a_metric_that_nobody_can_give_its_needs_is_refused_before_anything_is_read(tmp_path):
    for changes in ({"metrics": ("perplexity",)}, {"primary": "perplexity"}):
        with pytest.raises(UsageError, match=r"perplexity cannot be computed .*needs likelihoods.*choose from .*chrF"):
            evaluate(recorded_request(tmp_path, data="not-read.csv", **changes))


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--metric", "chrF", "--primary", "chrF"], "chrF on 3 items"),
        (["--metric", "diversity"], "distinct1"),
        (["--metric", "semantic-empathy:ENCODER", "--primary", "Semantic-Empathy"], "semantic empathy"),
    ],
)
def test_chosen_metrics_reach_the_report(tmp_path, words, shown):
    words = [
        word.replace("ENCODER", str(files("bnbench.metrics.empathy") / "encoders" / "bn-static")) for word in words
    ]
    (tmp_path / "a.txt").write_text("আমি শুনছি।\n" * 240, encoding="utf-8")
    given = ["evaluate", "--predictions", str(tmp_path / "a.txt"), "--limit", "3", "-q", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*given, *words])
    assert done.exit_code == 0, done.output
    assert shown in done.stdout and "BLEU" not in done.stdout
    assert "BLEU" not in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["semantic-empathy:/nowhere/encoder", "BERTScore:/nowhere/encoder"])
def test_an_encoder_that_is_not_there_is_known_before_anything_is_generated(tmp_path, name):
    with pytest.raises(UsageError, match="/nowhere/encoder"):
        evaluate(recorded_request(tmp_path, metrics=("chrF", name), primary="chrF"))
    assert not (tmp_path / "run").exists()


def test_all_rows_of_a_file_are_tested_unless_a_candidate_was_trained_on_them(tmp_path, caplog):
    rows = [{k: v for k, v in row.items() if k != "split"} for row in demo_rows()[:110]]
    rows += [
        row | {"Questions": row["Questions"] + " আবার"} for row in rows[:20]
    ]  # nearly the same, and rows all the same

    def tested(name, rows, candidates, **changes):
        path = tmp_path / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
        with caplog.at_level("INFO", "bnbench"):
            corpus, asked = _test_rows(
                load_corpus(path), EvaluationRequest(candidates, tmp_path / "run", str(path), **changes)
            )
        return asked.split, len(corpus.select(asked.split)), caplog.records[-1].getMessage()

    recorded = tmp_path / "p.txt"
    recorded.write_text("না\n" * len(rows), encoding="utf-8")
    others = parse_candidates(predictions=[str(recorded)])
    split, n, said = tested("a", rows, others)
    assert (split, n) == ("all", 130) and "all rows are tested; --split test" in said
    corpus = load_corpus(tmp_path / "a.csv")
    held_out = len(corpus.splits["test"])
    assert 2 < held_out < 30
    assert tested("a", rows, others, split="test")[:2] == ("test", held_out)
    assert tested("a", rows[:60], others)[:2] == ("all", 60)
    split, n, said = tested("b", demo_rows(), others)
    assert (split, n) == ("test", 40) and "only its test rows are tested, as its column 'split'" in said

    record = json.loads((files("bnbench.demo") / "adapter" / "training.json").read_text(encoding="utf-8"))
    trained = tuple(replace(one, name="আমার", folder=str(tmp_path)) for one in others)
    ids = [e.id for e in corpus.splits["train"]]
    for changes, expected in (
        ({"examples": ids}, "test"),
        ({"examples": ["x"], "data": record["data"] | {"fingerprint": corpus.fingerprint}}, "test"),
        ({"examples": [*ids, "x"]}, "all"),  # trained on another file
    ):
        (tmp_path / "training.json").write_text(json.dumps(record | changes), encoding="utf-8")
        split, n, said = tested("a", rows, trained)
        assert (split, n) == (expected, held_out if expected == "test" else 130)
        assert ("as আমার was trained on others of this file" in said) == (expected == "test")


def test_replies_that_think_aloud_are_scored_without_and_counted(tmp_path):
    request = recorded_request(tmp_path, metrics=("chrF++",))
    plain = read_run(evaluate(request))
    path = tmp_path / "a.txt"
    replies = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"<think>একটু ভাবি।</think>{reply}\n" for reply in replies), encoding="utf-8")
    named = parse_candidates(predictions=[f"ক={path}"])
    loud = read_run(evaluate(replace(request, candidates=named, out=tmp_path / "loud")))
    assert (loud.tables["ক"]["chrF++"] == plain.tables["ক"]["chrF++"]).all()
    assert "ক thinks aloud in 3 of 3 replies; <think>…</think> is not scored" in loud.record.notes


def test_several_replies_are_drawn_for_each_item(undisturbed, tiny_base, tiny_adapter, tmp_path):
    out = evaluate(request(tiny_base, tiny_adapter, tmp_path / "run", samples=3, limit=5))
    lines = [json.loads(line) for line in (out / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2 * 5 * 3 and len({line["key"] for line in lines}) == 30
    assert all(("nll" in line and line["nll"] is not None) == ("sample" not in line) for line in lines)
    run = read_run(out)
    texts = {(g["candidate"], g["id"], g.get("sample", 0)): g["reply"] for g in lines}
    assert len(set(texts.values())) > 20  # the dice fall anew
    first = {g.id: g.reply for g in read_run(undisturbed).replies["ভিত্তি"]}
    for g in run.replies["ভিত্তি"]:
        assert g.reply == texts["ভিত্তি", g.id, 0] == first[g.id]  # the first reply is that of one alone
    drawn = run.drawn["ভিত্তি"]["chrF++"]
    assert drawn.shape[:2] == (5, 3) and np.allclose(run.tables["ভিত্তি"]["chrF++"], drawn.mean(axis=1))
    before = (out / "generations.jsonl").read_bytes()
    (out / "generations.jsonl").write_bytes(before[: len(before) * 2 // 3])
    evaluate(request(tiny_base, tiny_adapter, out, samples=3, limit=5))
    assert (out / "generations.jsonl").read_bytes() == before
    with pytest.raises(UsageError, match="without sampling an item has one reply"):
        evaluate(request(tiny_base, tiny_adapter, tmp_path / "b", samples=2, decoding=Decoding(greedy=True)))


def test_a_report_in_bengali_is_asked_for_with_the_evaluation(tmp_path):
    candidates = recorded_request(tmp_path).candidates
    words = ["evaluate", "--out", str(tmp_path / "run"), "--metric", "chrF++", "--lang", "bn", "--limit", "3", "-q"]
    words += [word for c in candidates for word in ("--predictions", f"{c.name}={c.location}")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "মাপকাঠি" in done.stdout and '<html lang="bn">' in (tmp_path / "run" / "report.html").read_text("utf-8")


def test_rows_that_cleaning_left_out_are_told_with_the_scores(tmp_path):
    said = {
        "আমার মন খারাপ।": "শুনে কষ্ট হলো, একটু বিশ্রাম নাও।", "রাতে ঘুম হয় না।": "মোবাইল দূরে রেখে শুতে চেষ্টা করো।",
        "ভয় লাগে।": "আচ্ছা।", "একা লাগে।": "হুম।", "": "আমি তোমার পাশে আছি।",
    }  # fmt: skip
    rows = [{"question": q, "reference": r} for q, r in said.items()]
    (tmp_path / "ছোট.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "a.txt").write_text("আমি শুনছি।\n" * 5, encoding="utf-8")

    def told(*words):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return " ".join(done.stdout.split())

    given = ("--predictions", f"ক={tmp_path / 'a.txt'}", "--data", tmp_path / "ছোট.jsonl", "--metric", "chrF++", "-q")
    note = "the scores are of 2 of 5 rows of ছোট.jsonl; left out in cleaning: 1 empty, 2 too short"
    out = tmp_path / "run"
    assert f"Note: {note}" in told("evaluate", *given, "--out", out)
    assert f"**Note:** {note}" in (out / "report.md").read_text(encoding="utf-8")
    assert f"<li>{note}</li>" in (out / "report.html").read_text(encoding="utf-8")
    assert note in json.loads((out / "ranking.json").read_text(encoding="utf-8"))["notes"]
    again = told("evaluate", *given, "--limit", "1", "--out", tmp_path / "one")
    assert "the scores are of 1 of 5 rows of ছোট.jsonl; left out in cleaning: 1 empty, 2 too short" in again
    told("evaluate", *given, "--metric", "BLEU", "--out", tmp_path / "two")
    assert told("compare", out, tmp_path / "two", "--out", tmp_path / "both").count(note) == 1
    bengali = "স্কোরগুলো ছোট.jsonl-এর ৫টি সারির ২টির উপর; পরিষ্কার করার সময় বাদ পড়েছে: ফাঁকা ১টি, খুব ছোট ২টি"
    assert f"দ্রষ্টব্য: {bengali}" in told("report", out, "--lang", "bn")
    assert f"<li>{bengali}</li>" in (out / "report.html").read_text(encoding="utf-8")


def test_rows_that_only_the_split_leaves_out_are_told_where_all_are_asked_for(tmp_path):
    message = "আমার মন খুব খারাপ, পরীক্ষায় ফেল করেছি আর বাসায় কাউকে বলতে পারছি না"
    reply = "শুনে খুব কষ্ট হলো, একটু সময় নিয়ে কাছের কাউকে বলো"
    rows = [
        {"question": message + mark, "reference": reply, "split": side}
        for mark, side in (("।", "test"), ("!", "train"))
    ]
    rows.append({"question": "রাতে ঘুম হয় না কেন?", "reference": "শোবার আগে চা খেয়ো না।", "split": "validation"})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    request = recorded_request(tmp_path, metrics=("chrF++",), data=str(path), limit=None)
    (tmp_path / "a.txt").write_text("আমি শুনছি।\n" * 3, encoding="utf-8")
    assert [n for n in read_run(evaluate(request)).record.notes if "rows" in n] == []  # its test rows are all there
    whole = read_run(evaluate(replace(request, split="all", out=tmp_path / "all"))).record
    assert "the scores are of 2 of 3 rows of a.jsonl; left out in cleaning: 1 near-duplicate" in whole.notes
    assert {"name": "empty", "why": "no question or no answer", "changed": 0, "dropped": 0} in json.loads(
        (tmp_path / "all" / "run.json").read_text(encoding="utf-8")
    )["corpus"]["steps"]


def test_a_gate_that_is_none_is_refused_before_anything_is_read(tmp_path):
    words = ["evaluate", "--out", str(tmp_path / "run"), "-q"]
    for more, says in (
        (["--fail-if", "chrF < base"], "there is no metric 'chrF'; did you mean 'chrF++'"),
        (["--group", "a=b,c"], "--group a=b,c: there is no candidate 'b'"),
        (["--lang", "fr"], "--lang fr: there are en and bn"),
    ):
        done = CliRunner().invoke(app, [*words, *more])
        assert done.exit_code == 2 and says in done.stderr
    for name in ("good", "copy", "odd"):
        (tmp_path / f"{name}.txt").write_text("আমি শুনছি।\n", encoding="utf-8")
        words += ["--predictions", str(tmp_path / f"{name}.txt")]
    grouped = [*words, "--group", "g=good,copy"]
    for asked, gate, says in (
        (words, "chrF++ < base", "this run has no base; name a candidate (good, copy, odd) or a number"),
        (grouped, "odd: chrF++ < good", "there is no candidate 'good'; there are g, odd\n"),
        (grouped, "odd: chrF++ < odd", "it compares odd with itself alone"),
        (["evaluate", "-q", "--group", "g=demo-adapter,demo-base"], "chrF++ < base", "this run has no base"),
        (["evaluate", "-q", "--group", "g=demo-base,demo-adapter"], "chrF++ < base", "compares g with itself alone"),
    ):
        done = CliRunner().invoke(app, [*asked, "--fail-if", gate])
        assert done.exit_code == 2 and says in done.stderr
    assert not (tmp_path / "run").exists()
