"""What yardsticks are and score: the bundled test set's figures, those of `bnbench score`, and how they are drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bnbench.data.corpus import load_corpus, make_example
from bnbench.evaluate import EvaluationRequest, evaluate
from bnbench.metrics.registry import get_metric
from bnbench.metrics.tokenization import split_sentences
from bnbench.models.candidates import parse_candidates
from bnbench.models.yardsticks import STOCK_REPLY, drawings, write_yardsticks
from bnbench.records import Run, read_run
from bnbench.score import score_files

SHOWN = {"chrF++": "chrF++", "BLEU": "BLEU", "ROUGE": "rougeL", "keyword-empathy": "", "semantic-empathy": ""}


def request(folder: Path, **changes: object) -> EvaluationRequest:
    recorded = folder / "replies.txt"
    recorded.write_text("আমি শুনছি, আপনার কষ্টটা বুঝি।\n" * 240, encoding="utf-8")
    candidates = parse_candidates(predictions=[f"ক={recorded}"])
    return EvaluationRequest(candidates, folder / "run", **{"quiet": True, **changes})


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The bundled test set, answered with one line."""
    return read_run(evaluate(request(tmp_path_factory.mktemp("yardsticks"))))


def scores(run: Run, name: str, drawing: int | None = None) -> list[float]:
    """chrF++, BLEU, ROUGE-L, keyword and semantic empathy of one yardstick, of one or all of its drawings."""
    found = []
    for metric in SHOWN:
        table = run.yardsticks[name][metric]
        rows = table.mean(axis=1) if drawing is None else table[:, drawing]
        found.append(float(get_metric(metric).formula(rows.sum(axis=0))[0]))
    return found


def test_the_figures_of_the_bundled_test_set(bundled: Run) -> None:
    assert scores(bundled, "reference") == pytest.approx([100, 100, 100, 25.5, 21.6], abs=0.05)
    assert scores(bundled, "copy") == pytest.approx([18.6, 1.4, 7.8, 0, 0], abs=0.05)
    # Published for one drawing (18.6 / 0.3 / 5.2; empathy by scorers that did not ask whose the reply is). The mean of
    # five is within what drawings differ by.
    assert scores(bundled, "another") == pytest.approx([18.6, 0.42, 5.55, 5.2, 3.5], abs=0.05)
    each = np.array([scores(bundled, "another", drawing) for drawing in range(5)])
    assert (np.abs(each[:, :3] - [18.6, 0.3, 5.2]).max(axis=0) < [0.25, 0.55, 0.75]).all()
    # The score is that of all five drawings' replies as one corpus, which is the mean but for BLEU's.
    assert each.mean(axis=0) == pytest.approx(scores(bundled, "another"), abs=0.06)
    # What a stock reply scores depends on its words; another one was published with 14.1 / 0.3 / 6.6 / 0 / 11.
    assert scores(bundled, "stock") == pytest.approx([16.2, 0.39, 5.49, 5.0, 20.6], abs=0.05)
    assert scores(bundled, "central") == pytest.approx([19.2, 0.43, 4.85, 4.6, 2.8], abs=0.05)


def test_they_score_what_bnbench_score_gives_for_such_files(bundled: Run, tmp_path: Path) -> None:
    examples = bundled.path / "examples.jsonl"
    asked = [{**e, "question": f"{e['title']} {e['question']}".strip(), "title": ""} for e in bundled.examples]
    messages = tmp_path / "messages.jsonl"
    messages.write_text("".join(json.dumps(e) + "\n" for e in asked), encoding="utf-8")
    texts = {y.name: y.text for y in bundled.record.yardsticks}
    assert texts["stock"] == STOCK_REPLY and texts["central"] in {
        e.reference for e in load_corpus(None).splits["train"]
    }
    for name in ("copy", "stock", "central"):
        replies = tmp_path / f"{name}.jsonl"
        lines = [{"id": e["id"], "reply": texts[name] or e["question"]} for e in bundled.examples]
        replies.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        made = score_files(replies, [examples], messages=messages, quiet=True)
        for metric, table in bundled.yardsticks[name].items():
            if metric != "perplexity":
                assert np.array_equal(made.results[metric].table, table[:, 0]), (name, metric)


def test_another_item_is_never_this_one_nor_one_with_its_message() -> None:
    for n, messages in ((2, ["ক", "খ"]), (40, list(map(str, range(40)))), (9, ["ক"] * 4 + ["খ"] * 3 + ["গ", "ঘ"])):
        drawn = list(drawings(messages, 42))
        assert len(drawn) == 5 and drawn == list(drawings(messages, 42))
        for others in drawn:
            assert sorted(others) == list(range(n))  # every reply is used once
            assert all(messages[other] != message for message, other in zip(messages, others, strict=True))
    many = list(map(str, range(40)))
    assert len({tuple(others) for seed in (1, 2) for others in drawings(many, seed)}) == 10
    assert list(drawings(["ক"], 42)) == list(drawings(["ক", "ক", "খ"], 42)) == []


def test_halves_of_a_reference_share_no_sentence(tmp_path: Path) -> None:
    references = ("আপনি একা নন। আমি পাশে আছি। কী হয়েছে, বলুন।", "খুব কষ্ট পেয়েছেন, বুঝতে পারছি।", "হুম")
    examples = [make_example("", "", f"প্রশ্ন {i}", text) for i, text in enumerate(references)]
    write_yardsticks(tmp_path, examples, [], [get_metric("chrF++")], 42, True)
    import pandas as pd

    half = pd.read_parquet(tmp_path / "scores" / "yardsticks" / "half.parquet").set_index("id")
    expected = get_metric("chrF++").score(
        ["আপনি একা নন। আমি পাশে আছি।", "খুব কষ্ট পেয়েছেন,", "হুম"], ["কী হয়েছে, বলুন।", "বুঝতে পারছি।", ""]
    )
    assert np.array_equal(half.loc[[e.id for e in examples]].to_numpy(), expected.table)
    assert not (tmp_path / "scores" / "yardsticks" / "central.parquet").exists()


def test_halves_that_belong_together_are_told_among_others_of_like_length() -> None:
    references = [e.reference for e in load_corpus(None).splits["test"]]
    chrf, first, second = get_metric("chrF++"), list[str](), list[str]()
    for text in references:
        parts = sentences if len(sentences := split_sentences(text)) > 1 else text.split()
        middle = (len(parts) + 1) // 2
        first.append(" ".join(parts[:middle]))
        second.append(" ".join(parts[middle:]))
    lengths, won = np.array(list(map(len, first))), []
    for i, half in enumerate(second):
        near = [j for j in np.argsort(np.abs(lengths - lengths[i]), kind="stable") if j != i][:5]
        found = chrf.score([first[j] for j in (i, *near)], [half] * 6).per_item
        won.append((found[0] > found[1:]).mean())
    assert 0.6 < np.mean(won) < 0.75


def test_only_references_that_are_not_tested_give_a_stock_reply(tmp_path: Path) -> None:
    one = {"metrics": ("chrF",), "primary": "chrF", "overwrite": True}
    for split, limit, there in (("train", None, False), ("validation", 4, True), ("train", 4, True)):
        run = read_run(evaluate(request(tmp_path, split=split, limit=limit, **one)))
        assert ("central" in run.yardsticks) == there
    [text] = [y.text for y in run.record.yardsticks if y.name == "central"]
    assert text not in {e["reference"] for e in run.examples}


def test_one_item_and_likelihoods_alone(tmp_path: Path) -> None:
    run = read_run(evaluate(request(tmp_path, limit=1)))
    assert list(run.yardsticks) == ["reference", "central", "stock", "copy", "half"]
    assert all("perplexity" not in own for own in run.yardsticks.values())


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    asked = request(tmp_path, limit=4, metrics=("chrF++", "keyword-empathy"))
    files = sorted((evaluate(asked) / "scores" / "yardsticks").iterdir())
    before = [file.read_bytes() for file in files]
    evaluate(replace(asked, limit=4))
    assert len(files) == 7 and [file.read_bytes() for file in files] == before
