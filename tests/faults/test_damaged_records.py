"""Each record of a run, an adapter and an audit, damaged: one message, no traceback. `fuzz.py` is the long form."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnbench.data.files import KINDS

NAMES = (
    "run.json", "examples.jsonl", "generations.jsonl", "ratings.jsonl", "human-key.jsonl", "rater-1.csv", "a.parquet",
    "training.json", "adapter_config.json", "audits.json", "sealed.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        for report in (fuzz.render.write_report, fuzz.render.people_report):
            patch.setitem(report.__kwdefaults__, "resamples", 50)
        yield fuzz.make(tmp_path_factory.mktemp("damaged"))


@pytest.mark.no_cover
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_record_is_told_in_words(whole: Path, name: str) -> None:
    path, read = next(one for one in fuzz.targets(whole) if one[0].name == name)
    every = list(fuzz.damages(path, 1))
    for what, content in random.Random(name).sample(every, 4):
        try:
            fuzz.try_one(path, read, content)
        except Exception as error:
            error.add_note(what)
            raise


@pytest.mark.no_cover
@given(st.sampled_from(KINDS), st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_parser_raises_anything_else(tmp_path: Path, kind: str, content: bytes) -> None:
    fuzz.parse(kind, content, tmp_path)
