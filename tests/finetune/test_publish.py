"""Publishing: the folder, its card as the hub reads it, and the push to a hub of our own on this machine."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.errors import BnbenchError, CandidateError, RunError, TrainingError, UsageError
from bnbench.evaluate import EvaluationRequest, evaluate
from bnbench.finetune import FinetuneResult, Published, finetune, load_recipe, publish
from bnbench.models.candidates import parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.hub import file_sha256
from bnbench.records import SEEN, Rating, append_lines, read_run
from bnbench.reports import write_report
from bnbench.reports.people import text_key
from tests.finetune.conftest import make_examples, make_request

BASE, REPO = "org/tiny-base", "me/bengali-lora"
PULL = f"https://huggingface.co/{REPO}/discussions/7"


@pytest.fixture(scope="module")
def run(tiny_base: Path, undisturbed: FinetuneResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    candidates = parse_candidates(f"ভিত্তি={tiny_base}", [f"আমার|অ্যাডাপ্টার={undisturbed.output}"], [])
    out = tmp_path_factory.mktemp("run") / "run"
    decoding = Decoding(max_new_tokens=8)
    evaluate(EvaluationRequest(candidates, out, limit=6, decoding=decoding, device="cpu", quantise=False, quiet=True))
    write_report([read_run(out)], out)
    return out


@pytest.fixture
def write(undisturbed: FinetuneResult, tmp_path: Path) -> Callable[..., Published]:
    """Publishes the trained adapter as a dry run, unless told otherwise."""
    return lambda adapter=undisturbed.output, **more: publish(
        adapter, **{"dry_run": True, "base_id": BASE, "out": tmp_path / "card", **more}
    )


def front(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])  # type: ignore[no-any-return]


def test_the_folder(write: Callable[..., Published], undisturbed: FinetuneResult, tiny_base: Path) -> None:
    folder = write().folder
    assert {p.name for p in folder.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "loss.csv", "loss.svg", "recipe.toml",
        "training.json",
    }  # fmt: skip
    weights = "adapter_model.safetensors"
    assert file_sha256(folder / weights) == file_sha256(undisturbed.output / weights)
    assert json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == BASE
    record = json.loads((undisturbed.output / "training.json").read_text(encoding="utf-8"))
    assert load_recipe(folder / "recipe.toml").to_dict() == record["recipe"]
    published = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert (published["base"]["name"], published["examples"]) == (BASE, record["examples"])
    for file in folder.iterdir():
        assert str(tiny_base).encode() not in file.read_bytes(), file.name  # nothing of this machine
        assert "মন খারাপ, কিছুতেই ঘুম আসে না। (".encode() not in file.read_bytes(), file.name  # and no row


@pytest.mark.parametrize("license", ["Apache 2.0", "MIT", "cc0_1.0", "", "mit,apache-2.0", "-mit"])
def test_a_licence_that_the_hub_cannot_know_is_refused(write: Callable[..., Published], license: str) -> None:
    with pytest.raises(UsageError, match=f"--license '{license}': write its id as in .*repositories-licenses, such as"):
        write(license=license)
    assert "license: llama3.1" in (write(license="llama3.1").folder / "README.md").read_text(encoding="utf-8")


def test_a_card_without_an_evaluation_says_so(write: Callable[..., Published]) -> None:
    folder = write(license="mit").folder
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        "**Not evaluated:**" in text
        and "## Evaluation" not in text
        and "![Loss of each optimiser step](loss.svg)" in text
    )
    assert front(folder) == {
        "base_model": BASE, "base_model_relation": "adapter", "library_name": "peft",
        "pipeline_tag": "text-generation", "language": "bn", "license": "mit", "tags": ["bengali", "bnbench", "lora"],
    }  # fmt: skip
    assert "| Data | fingerprint f00d |" in text and "22 rows" in text and "18 steps" in text and "torch " in text


def test_the_hub_reads_the_evaluation(write: Callable[..., Published], run: Path) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub._eval_results import parse_eval_result_entries

    folder = write(run=run, repo=REPO, dataset_id="me/bn-replies@abc#empathy").folder
    ranking = json.loads((run / "ranking.json").read_text(encoding="utf-8"))
    mine = next(s for s in ranking["standings"] if s["kind"] == "adapter")
    value = mine["scores"][0]["value"]
    card = ModelCard.load(folder / "README.md")
    results = {r.metric_name: r for r in card.data.eval_results}
    assert results["chrF++: chrF++"].metric_value == value and results["chrF++: chrF++"].metric_type == "chrf"
    assert (results["chrF++: chrF++"].dataset_type, results["chrF++: chrF++"].dataset_split) == (
        "me/bn-replies",
        "test",
    )
    assert "perplexity: bits_per_character" in results and not any("recall" in name for name in results)
    (entry,) = parse_eval_result_entries(yaml.safe_load((folder / ".eval_results/bnbench.yaml").read_bytes()))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("me/bn-replies", "empathy", "abc")
    assert entry.value == value and entry.source_url == f"https://huggingface.co/{REPO}" and "n:6" in str(entry.notes)


def test_a_run_on_rows_that_were_trained_on(
    write: Callable[..., Published], run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its scores go to no leaderboard, the card says why before what they say, and so does the log."""
    seen = shutil.copytree(run, tmp_path / "seen")
    record = json.loads((seen / "run.json").read_text(encoding="utf-8"))
    record["notes"].append(note := f"আমার|অ্যাডাপ্টার was trained on 6 of the 6 test rows: {SEEN}")
    (seen / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        folder = write(run=seen, repo=REPO, dataset_id="me/bn-replies").folder
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{note}; none go into model-index or .eval_results: test on others" in caplog.text
    assert text.index("> **Warning:** আমার\\|অ্যাডাপ্টার was trained on 6 of") < text.index("\n**")
    assert "model-index" not in front(folder) and not (folder / ".eval_results").exists()
    caplog.clear()
    other = write(run=run, repo=REPO, dataset_id="me/bn-replies").folder
    assert "model-index" in front(other) and (other / ".eval_results").exists()
    assert "Warning" not in (other / "README.md").read_text(encoding="utf-8") and not caplog.text


def test_data_of_no_hub_have_no_id_of_one(write: Callable[..., Published], run: Path) -> None:
    [index] = front(write(run=run).folder)["model-index"]
    assert {(r["dataset"]["type"], r["dataset"]["name"]) for r in index["results"]} == {("unknown", "bnbench demo")}


def test_only_the_yardsticks_of_the_run_are_explained(
    write: Callable[..., Published], run: Path, tmp_path: Path
) -> None:
    few = shutil.copytree(run, tmp_path / "few")
    record = json.loads((few / "run.json").read_text(encoding="utf-8"))
    whole = (write(run=run).folder / "README.md").read_text(encoding="utf-8")
    assert "the most central training reply (the one most like all others), one stock reply for all, a copy of" in whole
    for kept, says in (
        (("reference", "another", "copy"), "for the message: another item’s reference, a copy of the message. A score"),
        (("reference",), "unadjusted.\n\nAn AUC is"),
    ):
        record["yardsticks"] = [y for y in record["yardsticks"] if y["name"] in kept]
        (few / "run.json").write_text(json.dumps(record), encoding="utf-8")
        text = (write(run=few).folder / "README.md").read_text(encoding="utf-8")
        assert says in text and "(the one most like" not in text


def test_a_card_explains_itself(write: Callable[..., Published], run: Path) -> None:
    """Its reader has never seen bnbench: names are told what they stand for, and flags of commands stay out."""
    text = (write(run=run).folder / "README.md").read_text(encoding="utf-8")
    names = r"Here আমার\|অ্যাডাপ্টার is this adapter and ভিত্তি its base, which answered the same messages without it."
    assert names in text and "Yardsticks are replies that nobody made for the message: " in text
    prose = re.sub(r"```.*?```|`[^`]*`", "", text.split("---\n")[2], flags=re.DOTALL)
    assert not re.search(r"--\w|weights none|\bIt speaks", prose), prose
    assert re.search(r"not quantised, arithmetic in float32, because", prose)


def test_the_table_is_the_ranking(write: Callable[..., Published], run: Path) -> None:
    folder = write(run=run).folder
    text = (folder / "README.md").read_text(encoding="utf-8").replace(" ∅ |", " |")
    ranking = json.loads((run / "ranking.json").read_text(encoding="utf-8"))
    mine = next(s for s in ranking["standings"] if s["kind"] == "adapter")
    # Every cell of every row is a number of ranking.json, rounded.
    numbers = re.compile(r"[-+]?\d+(?:\.\d+)?")
    table = [
        line.replace("−", "-").split(" | ") for line in text.splitlines() if " | ↑ | " in line or " | ↓ | " in line
    ]
    labels = {"chrF++": ("chrF++", "chrF++"), "unfinished, %": ("degeneration", "unfinished")}
    for label, (metric, name) in labels.items():
        cells = next(cells for cells in table if cells[0] == f"| {label}")
        score, c = (
            next(x for x in mine[part] if x["name"] == name and x["metric"] == metric)
            for part in ("scores", "versus_base")
        )
        expected = [
            score["value"],
            score["low"],
            score["high"],
            score["value"] - c["difference"],
            c["difference"],
            c["low"],
            c["high"],
        ]
        assert [float(n) for cell in cells[2:7] for n in numbers.findall(cell)] == pytest.approx(expected, abs=0.06)
    assert len(table) > 3 and len({len(cells) for cells in table}) == 1
    head = next(line for line in text.splitlines() if "অ্যাডাপ্টার" in line and line.startswith("| "))
    assert "আমার\\|অ্যাডাপ্টার" in head and len(head.split(" | ")) == len(table[0])
    assert "than its base ভিত্তি" in text or "from its base ভিত্তি" in text
    assert "> **Note:** 6 items: too few to trust the intervals" in text and "would often go undetected" in text
    assert f"`{ranking['signatures']['chrF++']}`" in text and "the variance of training itself" in text
    assert not (folder / ".eval_results").exists()
    with pytest.raises(UsageError, match="give the evaluation with --run"):
        write(dataset_id="me/data")
    with pytest.raises(UsageError, match=r"write it as owner/name\[@revision\]\[#task\]"):
        write(run=run, dataset_id="data.csv")


def test_ratings_of_some_messages_are_told_as_such(write: Callable[..., Published], run: Path, tmp_path: Path) -> None:
    rated = shutil.copytree(run, tmp_path / "rated")
    assert "the judgement of people who read the replies" in (write(run=rated).folder / "README.md").read_text("utf-8")
    found = read_run(rated)
    read = ((e["id"], of[i].reply) for i, e in enumerate(found.examples[:4]) for of in found.replies.values())
    rows = [Rating(text_key(*one), "human:মিতা", "overall", float(1 + at % 5)) for at, one in enumerate(read)]
    append_lines(rated / "ratings.jsonl", rows)
    text = (write(run=rated).folder / "README.md").read_text("utf-8")
    assert "human overall (n = 4) | ↑ |" in text and "human-overall|raters:1-" in text and "|items:4|n:4|" in text
    assert "on only 4 of the 6 items, where every candidate has a value: too few to trust the intervals" in text
    assert "the judgement of people who read the replies" not in text
    assert "the judgement of people other than those who rated here" in text


def test_a_hub_client_that_knows_no_eval_results(
    write: Callable[..., Published], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    class Old(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name == "EvalResultEntry":
                raise AttributeError(name)
            return getattr(huggingface_hub, name)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Old("huggingface_hub"))
    assert write(run=run).folder.exists()
    shutil.rmtree(tmp_path / "card")
    with pytest.raises(UsageError, match="--dataset-id needs a newer huggingface_hub than"):
        write(run=run, dataset_id="me/data")
    assert not (tmp_path / "card").exists()


def test_a_run_of_other_weights_is_refused(write: Callable[..., Published], run: Path, tiny_adapter: Path) -> None:
    with pytest.raises(
        RunError, match=r"about আমার\|অ্যাডাপ্টার \([0-9a-f]{12}\), not about these weights .*bnbench evaluate"
    ):
        write(tiny_adapter, run=run)


def test_a_run_without_a_report_is_ranked(write: Callable[..., Published], run: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(run, tmp_path / "bare")
    (bare / "ranking.json").unlink()
    (bare / "report.md").unlink()
    card = (write(run=run).folder / "README.md").read_bytes()
    assert (write(run=bare).folder / "README.md").read_bytes() == card


def test_one_seed_of_a_group_has_its_own_scores(write: Callable[..., Published], run: Path, tmp_path: Path) -> None:
    grouped = shutil.copytree(run, tmp_path / "grouped")
    record = json.loads((grouped / "run.json").read_text(encoding="utf-8"))
    groups = {"t4": [c["name"] for c in record["candidates"]]}
    (grouped / "run.json").write_text(json.dumps({**record, "groups": groups}), encoding="utf-8")
    card = (write(run=run).folder / "README.md").read_bytes()
    assert (write(run=grouped).folder / "README.md").read_bytes() == card


def test_a_run_that_is_not_finished(write: Callable[..., Published], run: Path, tmp_path: Path) -> None:
    half = shutil.copytree(run, tmp_path / "half")
    record = json.loads((half / "run.json").read_text(encoding="utf-8"))
    (half / "run.json").write_text(json.dumps({**record, "finished": None}), encoding="utf-8")
    with pytest.raises(RunError, match="this run is not finished; go on with"):
        write(run=half)


def test_the_snippet_names_no_topic_where_the_data_have_none(
    write: Callable[..., Published], undisturbed: FinetuneResult, run: Path, tiny_base: Path, tmp_path: Path
) -> None:
    def system(**more: Any) -> str:
        return next(
            line for line in (write(**more).folder / "README.md").read_text("utf-8").splitlines() if "system =" in line
        )

    plain, on = "আপনি একজন সহানুভূতিশীল বাংলা কথোপকথন সহকারী।", "আপনি একজন সহানুভূতিশীল বাংলা কথোপকথন সহকারী। বিষয়: মানসিক স্বাস্থ্য"
    without = tuple(replace(example, topic=" ") for example in make_examples(4))
    request = make_request(tiny_base, tmp_path / "own", {"epochs": "1"}, examples=without)
    own = finetune(request)
    assert system(adapter=own.output) == f'system = "{plain}"' and system() == f'system = "{on}"'
    assert finetune(request).curve == own.curve  # what it is resumed by is as it was
    # A record of before this was kept, with a run on the same data; and another tool's adapter.
    bare, old = shutil.copytree(run, tmp_path / "bare"), shutil.copytree(undisturbed.output, tmp_path / "old")
    lines = (bare / "examples.jsonl").read_text("utf-8").splitlines()
    rows = [json.dumps({**json.loads(line.rpartition(', "sha256"')[0] + "}"), "topic": ""}) for line in lines]
    (bare / "examples.jsonl").write_text("\n".join([*rows, ""]), encoding="utf-8")
    assert system(adapter=old, run=bare) == f'system = "{on}"'  # of other data
    record = json.loads((old / "training.json").read_text("utf-8"))
    record["data"]["fingerprint"] = read_run(bare).record.corpus.fingerprint
    (old / "training.json").write_text(json.dumps(record), encoding="utf-8")
    assert system(adapter=old, run=bare) == f'system = "{plain}"' and system(adapter=old, run=run) == f'system = "{on}"'
    (old / "training.json").unlink()
    assert system(adapter=old, run=bare) == f'system = "{plain}"' and system(adapter=old) == f'system = "{on}"'


@pytest.mark.parametrize("topic", ["মানসিক স্বাস্থ্য", ""])
@pytest.mark.parametrize("kind", ["llama-3.1", "plain", "chat"])
def test_the_snippet_runs_and_prompts_as_in_training(
    kind: str, topic: str, make_tokenizer: Any, make_base: Any, make_adapter: Any, tmp_path: Path
) -> None:
    import torch

    from bnbench.data.corpus import Example
    from bnbench.finetune.publish import snippet
    from bnbench.models.prompts import SYSTEM, Prompter, without_topic

    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
    special = {"llama-3.1": {}, "plain": {"template": None}, "chat": {"template": template}}[kind]
    if kind != "llama-3.1":
        special["special"] = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = make_tokenizer(**special)
    base = make_base(tmp_path / "base", tokenizer)
    adapter = make_adapter(tmp_path / "adapter", base)
    prompts = Prompter.of(tokenizer)
    assert prompts.kind == kind
    told = prompts.describe() | ({} if topic else {"system": without_topic(SYSTEM)})
    code = snippet(str(base), None, str(adapter), told).replace("max_new_tokens=400", "max_new_tokens=3")
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, names)
    expected = prompts.prompt(Example("", topic, "", names["message"], "")).ids
    ids = tuple(names["inputs"]["input_ids"][0].tolist())
    assert ids == (expected if kind != "chat" else (tokenizer.bos_token_id, *expected)[-len(ids) :])
    assert len(ids) < names["output"].shape[1] <= len(ids) + 3


def test_an_adapter_of_another_tool(write: Callable[..., Published], tiny_adapter: Path) -> None:
    folder = write(tiny_adapter).folder
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "How it was trained is not recorded" in text and "r 4, lora\\_alpha 8" in text
    assert {p.name for p in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}


def test_a_base_that_only_this_machine_has(write: Callable[..., Published], tiny_base: Path, tmp_path: Path) -> None:
    for bad in (None, "not a hub id", "base"):
        with pytest.raises(UsageError, match=r"--base-id (owner/name|not a hub id|base)"):
            write(base_id=bad)
    cached = tmp_path / "models--org--base" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_base, cached)
    adapter = shutil.copytree(write().folder, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    for named, revision, expected in (
        (str(cached), None, ("org/base", "a" * 40)),
        ("org/base", "v2", ("org/base", "v2")),
    ):
        changed = {**config, "base_model_name_or_path": named, "revision": revision}
        (adapter / "adapter_config.json").write_text(json.dumps(changed), encoding="utf-8")
        folder = write(adapter, base_id=None, out=tmp_path / f"out-{revision}").folder
        found = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert (found["base_model_name_or_path"], found["revision"]) == expected
        assert f'revision="{expected[1]}"' in (folder / "README.md").read_text(encoding="utf-8")


def test_no_folder_of_others_is_written_over(
    write: Callable[..., Published], undisturbed: FinetuneResult, tiny_adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="own folder"):
        write(out=undisturbed.output)
    other = shutil.copytree(tiny_adapter, tmp_path / "other")
    with pytest.raises(UsageError, match="did not write"):
        write(out=other)
    folder = write().folder
    (folder / "LICENSE").write_text("MIT", encoding="utf-8")
    assert write(tiny_adapter).folder == folder
    assert (folder / "LICENSE").exists() and not (folder / "training.json").exists()


def test_a_copy_that_was_cut_short(write: Callable[..., Published], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            write()
    assert (write().folder / "adapter_model.safetensors").is_file()


def test_what_a_kill_left_is_not_published(write: Callable[..., Published], tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    folder.mkdir()
    (folder / ".README.md.tmp").write_text("half", encoding="utf-8")  # a kill in the first write of all
    whole = sorted(path.name for path in write(out=folder).folder.iterdir())
    (folder / ".recipe.toml.tmp").write_text("half", encoding="utf-8")
    assert sorted(path.name for path in write(out=folder).folder.iterdir()) == whole
    assert "README.md" in whole and not any(name.endswith(".tmp") for name in whole)


@pytest.mark.parametrize("damage", [{"parameters": {}}, {"base": {}}, {"packages": None}])
def test_a_damaged_record(
    damage: dict[str, Any], write: Callable[..., Published], undisturbed: FinetuneResult, tmp_path: Path
) -> None:
    adapter = shutil.copytree(undisturbed.output, tmp_path / "damaged", ignore=shutil.ignore_patterns("checkpoints"))
    record = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    (adapter / "training.json").write_text(json.dumps({**record, **damage}), encoding="utf-8")
    with pytest.raises(RunError, match=r"training\.json: damaged \((parameters|base|packages)"):
        write(adapter)
    assert not (tmp_path / "card").exists()


def test_what_is_no_adapter(write: Callable[..., Published], tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CandidateError) as evaluated:
        parse_candidates(None, [str(tmp_path / "empty")], [])
    with pytest.raises(CandidateError, match=r"no adapter_config\.json") as published:
        write(tmp_path / "empty")
    assert str(published.value) == str(evaluated.value)
    with pytest.raises(CandidateError, match=r"no adapter_config\.json"):
        write(tiny_base)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CandidateError, match=r"no adapter_model\.safetensors"):
        write(tmp_path / "half")
    with pytest.raises(UsageError, match="give --repo owner/name to push to, or --dry-run"):
        write(dry_run=False)


class Hub(ThreadingHTTPServer):
    """As much of the hub's API as making a repository and uploading a folder needs; it keeps what it was sent."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.files, self.made = token, dict[str, bytes](), list[dict[str, Any]]()
        self.is_there = True


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {self.server.token}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self._answer(200, {"url": f"https://huggingface.co/{REPO}"})
        if self.path.startswith(f"/api/models/{REPO}/preupload/"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if self.path.startswith(f"/api/models/{REPO}/commit/"):
            if not self.server.is_there:
                return self._answer(404, {"error": "Repository not found"})
            sent = [json.loads(line) for line in body.splitlines()]
            for one in (s["value"] for s in sent if s["key"] == "file"):
                self.server.files[one["path"]] = base64.b64decode(one["content"])
            pull = {"pullRequestUrl": f"{PULL}"} if "create_pr=1" in self.path else {}
            return self._answer(200, {"commitUrl": f"https://huggingface.co/{REPO}/commit/1", "commitOid": "1", **pull})
        return self._answer(200, {"errors": [], "warnings": []})  # the check of a card's front matter

    def do_GET(self) -> None:
        self._answer(404, {"error": "not found"})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    server = Hub("hf_right")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_pushing(hub: Hub, write: Callable[..., Published], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    published = write(run=run, repo=REPO, dataset_id="me/data", dry_run=False, private=True)
    assert published.url is not None and published.url.endswith(REPO) and "private" in json.dumps(hub.made[0])
    on_disk = {
        p.relative_to(published.folder).as_posix(): p.read_bytes() for p in published.folder.rglob("*") if p.is_file()
    }
    assert hub.files == on_disk and ".eval_results/bnbench.yaml" in on_disk


def test_a_pull_request_for_an_adapter_of_the_hub(
    hub: Hub, write: Callable[..., Published], run: Path, undisturbed: FinetuneResult, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "hf_right")
    cached, asked = tmp_path / "models--me--bengali-lora" / "snapshots" / ("ab" * 20), list[dict[str, Any]]()
    shutil.copytree(undisturbed.output, cached, ignore=shutil.ignore_patterns("checkpoints"))

    def snapshot_download(repo: str, **how: Any) -> str:
        assert repo == REPO
        asked.append(how)
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    published = write(f"{REPO}@v1", run=run, dry_run=False, create_pr=True)
    assert published.url == PULL and not hub.made  # a repository of somebody else is not made
    assert {how["revision"] for how in asked} == {"v1"} and "adapter_model.safetensors" in asked[-1]["allow_patterns"]
    assert hub.files.keys() >= {"README.md", "adapter_model.safetensors", "training.json", "loss.csv"}
    assert f'"{REPO}"' in hub.files["README.md"].decode()  # the snippet loads it from there
    # A folder's own needs to be told where to.
    with pytest.raises(UsageError, match="give --repo owner/name to push to"):
        write(dry_run=False, create_pr=True)
    assert write(repo=REPO, dry_run=False, create_pr=True).url == PULL
    with pytest.raises(UsageError, match="--private makes a repository, --create-pr is for one that is there"):
        write(repo=REPO, dry_run=False, create_pr=True, private=True)
    hub.is_there = False
    with pytest.raises(TrainingError, match="there is no such repository to make a pull request to"):
        write(repo=REPO, dry_run=False, create_pr=True)


def test_the_token_of_a_file(hub: Hub, write: Callable[..., Published], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_right\n", encoding="utf-8")
    assert write(repo=REPO, dry_run=False).url and "README.md" in hub.files
    assert "private" not in json.dumps({k: v for k, v in hub.made[0].items() if v})


def test_pushing_in_vain(
    hub: Hub, write: Callable[..., Published], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def refused(kind: type[BnbenchError], why: str) -> None:
        shutil.rmtree(tmp_path / "card", ignore_errors=True)
        with pytest.raises(kind, match=why) as error:
            write(repo=REPO, dry_run=False)
        assert "\n" not in str(error.value) and "card is ready" in str(error.value)
        assert (tmp_path / "card" / "README.md").is_file() and not hub.files

    refused(UsageError, "there is no token: set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused(TrainingError, rf"the hub refused the token \(401\): HF_TOKEN must be one that may write to {REPO}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(TrainingError, "not pushed, ConnectError")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(UsageError, "HF_HUB_OFFLINE is set")


def test_on_the_command_line(undisturbed: FinetuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    command = [
        "publish",
        str(undisturbed.output),
        "--base-id",
        BASE,
        "--out",
        str(tmp_path / "x"),
        "--dry-run",
        "--json",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and json.loads(done.stdout) == {"folder": str(tmp_path / "x"), "url": None}
    for more in ([], ["--dry-run", "--repo", "mine"]):
        refused = CliRunner().invoke(app, ["publish", str(undisturbed.output), *more])
        assert refused.exit_code == 2 and re.search("give --repo owner/name to push to", refused.stderr)
