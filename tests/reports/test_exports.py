"""Exports: each read back by its consumer's own reader where the test environment has one, else by its schema."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.errors import RunError, UsageError
from bnbench.records import SEEN, alone, read_run, write_text
from bnbench.reports import Ranking, rank
from bnbench.reports.exports import FORMATS, Dataset, export
from bnbench.reports.verdict import trained_on_test
from bnbench.score import score
from tests.reports.conftest import ADAPTER, BASE, PAIR, Spec

SCHEMAS = json.loads((Path(__file__).parent / "every_eval_ever.json").read_text(encoding="utf-8"))
DATASET = Dataset.parse("me/bn-replies@abc#empathy")
ODD = r"আমার_অ্যাডাপ্টার 50% & \x"


@pytest.fixture
def ranking(make_run: Callable[..., Path]) -> Ranking:
    return rank([read_run(make_run(n=24))], resamples=200)


def test_csv_as_pandas_reads_it(ranking: Ranking, tmp_path: Path) -> None:
    frame = pd.read_csv(export(ranking, "csv", tmp_path)).set_index(["candidate", "metric", "value"])
    for standing in ranking.standings:
        for one in standing.scores:
            read = frame.loc[(standing.candidate, one.metric, one.name)]
            assert (read["score"], read["low"], read["n"]) == pytest.approx((one.value, one.low, 24), nan_ok=True)


def test_latex_has_a_row_a_candidate_and_escapes_names(make_run: Callable[..., Path], tmp_path: Path) -> None:
    specs = (Spec(BASE, 0.0, "base"), Spec(ODD, 1.0, base="x"))
    ranking = rank([read_run(make_run(specs, n=24, yardsticks=True))], resamples=200)
    text = export(ranking, f"latex={tmp_path / 'table.tex'}", tmp_path).read_text(encoding="utf-8")
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    rows = [line.removesuffix(" \\\\").split(" & ") for line in body.splitlines() if line != "\\midrule"]
    first, second, *under = rows
    head = text.partition("\\toprule\n")[2].splitlines()[0].split(" & ")
    assert {len(row) for row in rows} == {len(head)} and "100.0" in under[0][1]
    assert [row[0] for row in under] == [y.label for y in ranking.yardsticks] and under[0][0] == "the reference itself"
    assert first[0] == r"আমার\_অ্যাডাপ্টার 50\% \& \textbackslash{}x" and second[0] == BASE
    best = ranking.standings[0].scores[0].value
    assert first[1].startswith(rf"\textbf{{{best:.1f}}}") and r"\textbf" not in " ".join(second)
    assert text.startswith("% \\usepackage{booktabs}") and "% chrF++|norm:bn1|tok:bn1|n:24|" in text


def test_latex_takes_no_name_for_an_argument_of_the_row_before(make_run: Callable[..., Path], tmp_path: Path) -> None:
    ranking = rank([read_run(make_run((Spec("*base", 0.2, "base"), Spec("[2pt] x", 0.4)), n=4))], resamples=50)
    rows = export(ranking, "latex", tmp_path).read_text(encoding="utf-8").splitlines()
    assert [row.partition(" & ")[0] for row in rows if r"\\" in row][1:] == ["{}[2pt] x", "{}*base"]


def test_sacrebleu_lays_systems_out_like_this(
    ranking: Ranking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sacrebleu.significance import Result
    from sacrebleu.utils import print_results_table

    ours = json.loads(export(ranking, "sacrebleu", tmp_path).read_text(encoding="utf-8"))
    assert [system["system"] for system in ours] == [f"Baseline: {BASE}", ADAPTER]
    signatures = {name: of.pop("signature") for system in ours for name, of in system.items() if name != "system"}
    assert signatures["chrF++"] == ranking.signatures["chrF++"]
    theirs: dict[str, Any] = {"System": [system["system"] for system in ours]}
    for name in signatures:
        theirs[name] = [Result(**system[name]) for system in ours]
    print_results_table(theirs, signatures, argparse.Namespace(format="json"))
    assert json.loads(capsys.readouterr().out) == ours
    c = ranking.standings[0].versus("chrF++", "chrF++")
    assert c is not None and ours[1]["chrF++"]["p_value"] == c.p and ours[0]["chrF++"]["p_value"] is None


def test_lm_eval_results_and_samples(ranking: Ranking, tmp_path: Path) -> None:
    folder = export(ranking, "lm-eval", tmp_path) / f"local__{ADAPTER}"
    results = json.loads(next(folder.glob("results_*.json")).read_text(encoding="utf-8"))
    ((task, found),) = results["results"].items()
    standing = ranking.standings[0]
    assert found["chrF++,none"] == standing.scores[0].value
    # 1.96 standard errors to each side are our interval.
    assert found["chrF++_stderr,none"] * 3.92 == pytest.approx(standing.scores[0].high - standing.scores[0].low, 1e-3)
    assert results["higher_is_better"][task]["perplexity/bits_per_character"] is False
    assert results["n-samples"][task] == {"original": 24, "effective": 24}
    assert results["configs"][task]["generation_kwargs"]["top_p"] == 0.9
    # Their samples are among the logs that `bnbench score` reads: the same replies and references, the same score.
    (samples,) = folder.glob(f"samples_{task}_*.jsonl")
    scored = score(samples, [samples], metrics=["chrF++"], quiet=True, columns={"reference": "target"})
    assert scored.results["chrF++"].value == pytest.approx(found["chrF++,none"])
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(24))
    assert rows[3]["filtered_resps"] == [ranking.entries[1].replies[3].reply] == rows[3]["resps"][0]
    assert rows[3]["arguments"]["gen_args_0"]["arg_0"].endswith(rows[3]["doc"]["question"])
    assert rows[3]["degeneration/degenerate"] in (0.0, 100.0)


def test_every_eval_ever_by_its_schema(ranking: Ranking, tmp_path: Path) -> None:
    folder = export(ranking, "every-eval-ever", tmp_path)
    (path,) = (folder / "data" / "conversations.csv" / "local" / ADAPTER).glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator(SCHEMAS["aggregate"]).validate(record)
    by_id = {result["evaluation_result_id"]: result for result in record["evaluation_results"]}
    one, details = ranking.standings[0].scores[0], by_id["chrF++"]["score_details"]
    interval = details["uncertainty"]["confidence_interval"]
    assert (details["score"], interval["lower"], interval["upper"]) == (one.value, one.low, one.high)
    assert by_id["perplexity/bits_per_character"]["metric_config"]["lower_is_better"] is True
    assert by_id["chrF++"]["generation_config"]["generation_args"]["max_tokens"] == 384
    samples = folder / record["detailed_evaluation_results"]["file_path"]
    assert hashlib.sha256(samples.read_bytes()).hexdigest() == record["detailed_evaluation_results"]["checksum"]
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == record["detailed_evaluation_results"]["total_rows"]
    checked = jsonschema.Draft7Validator(SCHEMAS["instance"])
    for row in rows:
        checked.validate(row)
        assert row["evaluation_result_id"] in by_id and row["evaluation_id"] == record["evaluation_id"]
    assert len([row for row in rows if row["evaluation_result_id"] == "chrF++"]) == 24
    with pytest.raises(jsonschema.ValidationError):
        checked.validate({**rows[0], "evaluation": {"score": "১৪"}})


def test_the_tools_themselves_read_them(ranking: Ranking, tmp_path: Path) -> None:
    # Neither is a dependency: lm-eval is heavy, and every-eval-ever wants an older huggingface_hub than ours.
    pytest.importorskip("lm_eval", reason="pip install lm-eval, in an environment of its own")
    pytest.importorskip("every_eval_ever", reason="pip install every-eval-ever, in an environment of its own")
    from every_eval_ever.converters.lm_eval.adapter import LMEvalAdapter
    from every_eval_ever.validator.validate import _LocalRepositoryFiles, validate_file
    from lm_eval.utils import make_table

    harness, store = export(ranking, "lm-eval", tmp_path), export(ranking, "every-eval-ever", tmp_path)
    tables = [make_table(json.loads(p.read_text(encoding="utf-8"))) for p in harness.rglob("results_*.json")]
    assert any(f"{ranking.standings[0].scores[0].value:.4f}" in table for table in tables)
    logs = LMEvalAdapter().transform_from_directory(harness, {})
    scores = {round(r.score_details.score, 6) for log in logs for r in log.evaluation_results}
    assert {round(s.scores[0].value, 6) for s in ranking.standings} <= scores
    files = _LocalRepositoryFiles(store)
    for path in (p for p in store.rglob("*") if p.is_file()):
        at, read = path.relative_to(store).as_posix(), files.read_text
        found = validate_file(path, repo_path=at, available_files=files, read_repo_file=read, run_semantic_checks=True)
        assert found.valid and not found.warnings, found


def test_the_hub_reads_cards_and_results(ranking: Ranking, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub._eval_results import parse_eval_result_entries

    card = ModelCard.load(export(ranking, "model-index", tmp_path, DATASET) / ADAPTER / "README.md")
    results = {r.metric_name: r for r in card.data.eval_results}
    assert results["chrF++: chrF++"].metric_value == ranking.standings[0].scores[0].value
    assert results["chrF++: chrF++"].dataset_type == "me/bn-replies" and card.data.model_name == ADAPTER
    path = export(ranking, "eval-results", tmp_path, DATASET) / ADAPTER / ".eval_results" / "bnbench.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_bytes()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("me/bn-replies", "empathy", "abc")
    assert entry.value == ranking.standings[0].scores[0].value


def test_the_hub_is_told_no_score_of_rows_that_were_trained_on(
    make_run: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = f"{ADAPTER} was trained on 8 of the 8 test rows: {SEEN}"
    ranking = rank([read_run(make_run((*PAIR, Spec("other", 0.3, base="x")), n=8, notes=[note]))], resamples=50)
    for kind in ("model-index", "eval-results"):
        caplog.clear()
        assert sorted(p.name for p in export(ranking, kind, tmp_path, DATASET).iterdir()) == [BASE, "other"]
        assert caplog.messages == [f"{note}; none go into model-index or .eval_results: test on others"]
    assert len(list(export(ranking, "lm-eval", tmp_path).iterdir())) == 3  # which goes to nobody
    # A seed of a group is among what the group's scores are made of; another run's candidate of that name is not it.
    specs = (PAIR[0], Spec("a", 0.3, base="x"), Spec("b", 0.5, base="x"))
    seen = f"b was trained on 1 of the 8 test rows: {SEEN}"
    run = make_run(specs, n=8, notes=[seen])
    ranking = rank([read_run(run)], resamples=50, groups={"t4": ("a", "b")})
    told = {s.candidate: trained_on_test(ranking, s) for s in ranking.standings}
    assert told == {BASE: "", "t4": seen}
    ranking = rank(
        [read_run(run), read_run(make_run((PAIR[0], Spec("b", 0.9, base="x", location="y")), n=8))], resamples=50
    )
    told = {s.candidate: trained_on_test(ranking, s) for s in ranking.standings}
    assert [name for name, note in told.items() if note] == ["b"] and len(told) == 4


def test_models_of_the_hub_go_by_their_ids(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run((*PAIR, Spec("আগের", 0.3, base="x")), n=8)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for candidate, revision in zip(record["candidates"][1:], ("ab12", "cd34"), strict=True):
        candidate |= {"location": "me/bengali-lora", "revision": revision}
    record["corpus"]["source"] = "me/bn-replies:default@abc"
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    ranking = rank([read_run(run)], resamples=50)
    # Two revisions of one model do not write over each other.
    places = {p.name for p in export(ranking, "lm-eval", tmp_path).iterdir()}
    assert len(places) == 3 and places >= {"me__bengali-lora", "local__demo-base"}
    store = export(ranking, "every-eval-ever", tmp_path) / "data" / "conversations.csv"
    (path,) = (store / "me" / "bengali-lora").glob("*.json")
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["model_info"]["id"] == "me/bengali-lora" and told["model_info"]["developer"] == "me"
    assert told["evaluation_results"][0]["source_data"]["hf_repo"] == "me/bn-replies"


def test_a_group_of_seeds_has_the_scores_of_the_replies_that_it_shows(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    specs = (PAIR[0], Spec("a", 0.3, base="x"), Spec("b", 0.5, base="x"))
    ranking = rank([read_run(make_run(specs, n=8))], resamples=50, groups={"t4": ("a", "b")})
    (path,) = (export(ranking, "lm-eval", tmp_path) / "local__t4").glob("samples_*")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    run = ranking.runs[0]
    alone = ranking.metrics["chrF++"].formula(run.tables["a"]["chrF++"])[:, 0]
    assert [row["filtered_resps"][0] for row in rows] == [reply.reply for reply in run.replies["a"]]
    assert [row["chrF++"] for row in rows] == pytest.approx(list(alone))


def test_what_cannot_be_exported(ranking: Ranking, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--export json: no such format; there are csv, latex, .*eval-results"):
        export(ranking, "json", tmp_path)
    with pytest.raises(UsageError, match="--dataset-id owner/name#task"):
        export(ranking, "eval-results", tmp_path)
    assert not list(tmp_path.glob("eval-results*"))


def test_they_are_written_while_the_run_is_locked(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = make_run(n=4), list[str]()

    def second(path: Path, text: str | bytes) -> None:
        with pytest.raises(RunError, match="another bnbench works in this folder"), alone(run):
            pass
        seen.append(path.name)
        write_text(path, text)

    for module in ("render", "exports"):
        monkeypatch.setattr(f"bnbench.reports.{module}.write_text", second)
    words = ["--export", "csv=t.csv", "--forest", str(tmp_path / "f.svg")]
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["report", str(run), *words]).exit_code == 0
    assert seen[-2:] == ["f.svg", "t.csv"] and seen[-3] == "report.html"


def test_on_the_command_line(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run, table = make_run(n=4), tmp_path / "our table.tex"
    command = ["report", str(run), "--export", "sacrebleu", "--export", f"latex={table}"]
    data = ["--export", f"lm-eval={tmp_path / 'lm'}", "--dataset-id", "me/replies"]  # which the others do not name
    assert CliRunner().invoke(app, [*command, *data]).exit_code == 0 and (tmp_path / "lm").is_dir()
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"{run}/report.html\n{run}/exports/sacrebleu.json\n{table}\n")
    assert table.is_file() and json.loads((run / "exports" / "sacrebleu.json").read_text(encoding="utf-8"))
    (run / "report.html").unlink()
    for words, says in (
        (["--export", "json"], "no such format"), (["--export", "eval-results"], "--dataset-id owner/name#task"),
        (["--export", "csv", "--dataset-id", "x"], "write it as owner/name"),
        (["--export", f"csv={run}/run.json"], "run.json: it is a file of a run, which would be lost; name another one"),
        (["--export", f"csv={run}/scores/yardsticks/stock.parquet"], "it is a file of a run"),
    ):  # fmt: skip
        wrong = CliRunner().invoke(app, ["report", str(run), *words])
        assert wrong.exit_code == 2 and says in wrong.stderr
    assert not (run / "report.html").exists()
    from bnbench.cli import EXPORT

    assert EXPORT.endswith(f"There are {', '.join(FORMATS)}.")
