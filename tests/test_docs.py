"""docs/metrics.md and docs/empathy.md say what the code does: names, signatures, directions, rules, tokens, figures of
audits, and examples that run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bnbench.metrics import CombinedScore, get_metric, metric_names, normalize, original_scores, registry, tokenize
from bnbench.metrics.audit import read_audits
from bnbench.metrics.normalization import PROFILES, RULES
from bnbench.metrics.tokenization import TOKENIZERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
EMPATHY = (Path(__file__).parents[1] / "docs" / "empathy.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
PYTHON = re.findall(r"```python\n(.*?)```", PAGE + EMPATHY, re.DOTALL)


def rows(section):
    """The cells of the tables in a section, heads and rules left out."""
    lines = [line for line in SECTIONS[section].splitlines() if line.strip().startswith("| `")]
    return [[c.strip().replace(r"\|", "|") for c in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in lines]


def spelt(text):
    return re.sub(r"\{U\+([0-9A-F]{4})\}", lambda code: chr(int(code[1], 16)), text)


def section_of(name):
    section = "chrF" if name == "chrF++" else name
    assert section in SECTIONS, f"docs/metrics.md needs a section ## {section}, made as that of address is"
    return SECTIONS[section]


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_has_its_section(name):
    metric, section = get_metric(name), section_of(name)
    signature = re.sub(r"(?<=[@:-])[0-9a-f]{8}(?=\|)", "xxxxxxxx", metric.signature(300))
    assert f"`{signature}`" in section
    for part in ("**Formula.**", "**Scale.**", "**Cannot see.**", "**Signature.**"):
        assert part in section
    if name != "diversity":
        assert ("higher is better" if metric.higher_is_better else "lower is better") in section
    for value in metric.values:
        assert f"`{value}`" in section or "_precision" in value or "_recall" in value, value


def test_the_table_of_metrics():
    table = dict(re.findall(r"^\| \[(\S+)\](\(#.*)$", PAGE, re.MULTILINE))
    assert set(table) == set(metric_names()), "each metric has a row in the first table of docs/metrics.md"
    for name, line in table.items():
        metric = get_metric(name)
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[0] == f"`{metric.values[0]}`"
        assert cells[2] == ("higher" if metric.higher_is_better else "lower")
        assert cells[3] == (", ".join(metric.needs) or "nothing")
        assert cells[4].startswith("yes" if name in registry.DEFAULT else "no")
        anchor = line.split("#")[1].split(")")[0]
        assert anchor in {title.lower().replace(" ", "-") for title in SECTIONS}


def test_every_key_of_a_signature_is_explained():
    explained = " ".join(row[0] for row in rows("Signatures"))
    for name in metric_names():
        for part in get_metric(name).signature(300).split("|")[1:]:
            assert f"`{part.split(':')[0]}:" in explained, part


def test_every_rule_is_told_with_an_example_that_holds():
    told = [row for row in rows("Normalisation") if len(row) == 4]
    source = (ROOT / "metrics" / "normalization.py").read_text(encoding="utf-8").splitlines()
    assert [row[0] for row in told] == [f"`{rule.name}`" for rule in RULES]
    for rule, (_, reason, before, after) in zip(RULES, told, strict=True):
        (at,) = (at for at, line in enumerate(source) if line.startswith(f'    Rule("{rule.name}"'))
        assert source[at].endswith(f"  # {reason}") or source[at - 1] == f"    # {reason}"
        assert normalize(spelt(before)) == normalize(spelt(after)), rule.name
        # The joiners of র‍্য would be dropped by the next rule too.
        off = {rule.name, "joiners"} if rule.name == "ra_ya" else {rule.name}
        assert normalize(spelt(before), off=off) != normalize(spelt(after), off=off), rule.name
    assert [row[0] for row in rows("Normalisation")[len(RULES) :]] == [f"`{name}`" for name in PROFILES]


def test_what_bn1_leaves_alone_is_left_alone():
    for text in ("৫:৩০", "১,৫০০.৭৫", "২য়", "৳৫০", "মো. রহিম", "ডা. সেন", "৩ কি.মি. দূর", "বি.বি.সি. বাংলা", "a5@b.com"):
        assert normalize(text) == normalize(text, profile="nfc"), text


def test_the_tokens_of_every_tokeniser():
    text = re.search(r"\| tokeniser \| what a token is \| (.+?) \|", PAGE)[1]
    told = {name.strip("`"): re.findall("`(.+?)`", tokens) for name, _, tokens in rows("Tokenisers")}
    assert told == {name: tokenize(text, tokenizer=name) for name in TOKENIZERS}


def test_significance_and_the_original_are_told_by_their_names():
    import bnbench.metrics as package

    for name, *_ in rows("Significance"):
        assert name.strip("`") == "clusters=" or hasattr(package, name.strip("`"))
    made = original_scores(["ক"], ["ক"])
    assert f"`{made.signature}`" in SECTIONS["The original's figures"]
    told = {name for row in rows("The original's figures") for name in re.findall("`(.+?)`", row[0])}
    assert told == set(made.__dataclass_fields__) - {"n", "corrected", "signature"}


def test_the_commands_have_the_options_that_they_are_shown_with():
    from typer.main import get_command

    from bnbench.cli import app

    lines = re.findall(r"^\$ bnbench (\S+) (.*)$", PAGE + EMPATHY, re.MULTILINE)
    assert {name for name, _ in lines} == {"score", "evaluate", "audit", "report"} and len(lines) == 8
    for name, rest in lines:
        known = {option for parameter in get_command(app).commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, rest


def test_the_combined_score_is_told_as_it_is():
    signature = CombinedScore({"chrF++": 0.25, "semantic-empathy": 0.75}).signature(300)
    assert f"`{re.sub('(?<=parts:)[0-9a-f]{8}', 'xxxxxxxx', signature)}`" in SECTIONS["Combined score"]
    assert "`parts:…`" in SECTIONS["Signatures"]


def test_the_tables_of_audits_are_those_on_record():
    """Where it fails: run `python scripts/record_audits.py`."""
    path = Path(__file__).parents[1] / "scripts" / "record_audits.py"
    spec = importlib.util.spec_from_file_location("record_audits", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.page_with(EMPATHY, read_audits()) == EMPATHY


def run(code):
    module = types.ModuleType("page")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "docs/metrics.md", "exec"), module.__dict__)
    return module, printed.getvalue()


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_every_example_runs_and_prints_what_it_says(code):
    _, printed = run(code)
    for line in re.findall(r"print\(result\)  # (.+)", code):
        assert line in printed.splitlines()


def test_the_metric_of_your_own_is_one_like_any_other(monkeypatch, tmp_path):
    from bnbench.score import score_files

    code = next(code for code in PYTHON if "class Questions" in code)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    module, _ = run(code)
    monkeypatch.setitem(sys.modules, "my_package.metrics", module)
    toml = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1]
    group, name, target = re.fullmatch(r'\[project\.entry-points\."(.+?)"\]\n(\w+) = "(.+?)"\n', toml).groups()
    assert group == registry.METRICS.group
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [EntryPoint(name, target, group)])
    replies = tmp_path / "replies.txt"
    replies.write_text("কেমন আছো?\nভালো।\n\n", encoding="utf-8")
    result = score_files(replies, metrics=[name], quiet=True).results[name]
    assert result.value == pytest.approx(100 / 3)
    assert result.signature == "questions|norm:bn1|tok:bn1|n:3|my-package:1.0"
    assert get_metric(name).formula(module.np.zeros(2)).tolist() == [0]
