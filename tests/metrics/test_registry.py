"""Metrics by name, the default set, and other packages' metrics by entry point."""

from __future__ import annotations

import json
import logging
from importlib.metadata import EntryPoint
from typing import ClassVar

import numpy as np
import pytest

from bnbench.metrics import (
    Metric,
    Registry,
    Texts,
    UsageError,
    default_metrics,
    evaluate_pairs,
    get_metric,
    metric_names,
)
from bnbench.metrics.exceptions import nearest
from bnbench.metrics.registry import METRICS


class Length(Metric):
    name: ClassVar[str] = "length"
    description: ClassVar[str] = "characters of the reply"
    columns = ("characters", "replies")
    values = ("length",)

    def statistics(self, texts: Texts) -> np.ndarray:
        return np.array([[len(reply), 1] for reply in texts.replies], dtype=np.float64)

    def formula(self, sums: np.ndarray) -> np.ndarray:
        return sums[..., :1] / np.maximum(sums[..., 1:], 1)

    def signature(self, n: int) -> str:
        return f"length|n:{n}"


def not_a_metric() -> str:
    return "length"


def entry(name: str, target: str) -> EntryPoint:
    return EntryPoint(name, target, METRICS.group)


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    here = sys.modules[Length.__module__]
    monkeypatch.setitem(sys.modules, "someones_metrics", here)
    entries = [
        entry("length", "someones_metrics:Length"),
        entry("broken", "someones_metrics:Missing"),
        entry("gone", "no_such_package.metrics:Gone"),
        entry("wrong", "someones_metrics:not_a_metric"),
        entry("BLEU", "someones_metrics:Length"),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries if group == "bnbench.metrics" else [])


def test_built_in_names() -> None:
    assert metric_names()[0] == "chrF++"
    assert {get_metric(name).name for name in metric_names()} == set(metric_names())
    assert get_metric("rouge").name == "ROUGE"
    assert get_metric("CHRF++").name == "chrF++"


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'ROUGE'.*known: chrF\+\+"):
        get_metric("rogue")
    names = ("demo", "t4", "base", "odd")
    assert [nearest(word, names) for word in ("T5", "basis", "BASE")] == [
        f"; did you mean {name!r}?" for name in ("t4", "base", "base")
    ]
    assert not any(nearest(word, names) for word in ("zz", "good", "", "এক"))


def test_default_set() -> None:
    everything = frozenset({"references", "messages", "likelihoods"})
    names = [metric.name for metric in default_metrics(everything)]
    assert names == ["chrF++", "BLEU", "ROUGE", "keyword-empathy", "semantic-empathy", "perplexity", "degeneration"]
    assert [metric.name for metric in default_metrics(frozenset())] == ["degeneration"]
    assert "perplexity" not in [m.name for m in default_metrics(frozenset({"references", "messages"}))]


def test_every_metric_is_a_table_and_a_formula() -> None:
    texts = Texts.of(
        ["আমি পাশে আছি।", "", "ভালো"],
        ["আমি আছি।", "না", ""],
        ["মন খারাপ", "কেন", "হুম"],
        [[1, 2, 3, 4]] * 3,
        [True, False, False],
    )
    for metric in map(get_metric, metric_names()):
        assert np.isfinite(metric.formula(np.zeros(len(metric.columns)))).all(), metric.name
        assert np.isfinite(metric.formula(np.zeros((2, 3, len(metric.columns))))).all(), metric.name
        assert metric.formula(np.zeros((2, 3, len(metric.columns)))).shape == (2, 3, len(metric.values))
        if metric.name != "BERTScore":
            table = metric.statistics(texts)
            assert table.shape == (3, len(metric.columns))
            assert np.isfinite(metric.formula(table)).all()
            assert metric.signature(3).startswith(metric.name)


@pytest.mark.usefixtures("plug_ins")
def test_a_plug_in_is_a_metric_like_any_other() -> None:
    assert metric_names()[-2:] == ("length", "wrong")
    assert get_metric("length").score(["ভালো"]).value == 4
    made = evaluate_pairs(["ভালো", "না"], ["ভালো", "না"], ["length", "BLEU"])
    assert made["length"].value == 3
    assert made["BLEU"].value == 100


@pytest.mark.usefixtures("plug_ins")
def test_a_broken_plug_in_is_named_and_skipped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        names = metric_names()
    assert not {"broken", "gone"} & set(names)
    for name, why in (("broken", "Missing"), ("gone", "no_such_package"), ("BLEU", "taken")):
        assert any(f"'{name}'" in message and why in message for message in caplog.messages), name
    with pytest.raises(UsageError, match=r"no usable metric 'broken': .*Missing"):
        get_metric("broken")
    with pytest.raises(UsageError, match=r"gives str, not a bnbench.metrics.Metric"):
        get_metric("wrong")


@pytest.mark.usefixtures("plug_ins")
def test_a_registry_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnError(UsageError):
        pass

    kinds = Registry("bnbench.metrics", "tuner", {"one": "json:loads", "Two": "json:dumps"}, OwnError)
    assert kinds.names() == ("one", "Two", "length", "wrong", "BLEU")
    assert kinds.get("TWO") is json.dumps
    assert kinds.get("LENGTH") is Length
    with pytest.raises(OwnError, match=r"there is no tuner 'lenght'; did you mean 'length'.* known: one, Two"):
        kinds.get("lenght")
    # Of two plug-ins with one name, the broken one hides not the other.
    entries = [entry("length", "someones_metrics:Missing"), entry("length", "someones_metrics:Length")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    assert kinds.get("length") is Length


def test_an_argument_after_the_colon() -> None:
    metric = get_metric("chrf++:none")
    assert metric.signature(1).startswith("chrF++|norm:none")
    assert metric.spelling == "chrF++:none"
    assert get_metric("rouge").spelling == "ROUGE"
    with pytest.raises(UsageError, match="no normalisation profile 'bn9'"):
        get_metric("ROUGE:bn9")
    with pytest.raises(UsageError, match="no metric 'rogue'"):
        get_metric("rogue:none")


@pytest.mark.usefixtures("plug_ins")
def test_an_argument_that_a_metric_does_not_take() -> None:
    with pytest.raises(UsageError, match="the metric length takes no argument"):
        get_metric("length:5")
