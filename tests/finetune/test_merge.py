"""An adapter merged: the same model by its likelihoods and prompts, refused where it would not be, and its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bnbench.cli import app
from bnbench.data.corpus import load_corpus
from bnbench.errors import BnbenchError, CandidateError, RunError, TrainingError, UsageError
from bnbench.evaluate import EvaluationRequest, evaluate
from bnbench.finetune import Exported, export
from bnbench.models.candidates import parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.hub import locate
from bnbench.records import SEEN, alone, read_run
from bnbench.reports import rank
from bnbench.reports.exports import may_be_told
from bnbench.reports.ranking import Ranking
from bnbench.reports.verdict import warnings

DEMO = "bnbench-demo/adapter"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(DEMO, tmp_path_factory.mktemp("merged") / "demo", ollama=True)


def test_it_evaluates_equal_to_the_adapter(merged: Exported, tmp_path: Path) -> None:
    runs = []
    for name, base, adapters in (("adapter", None, [f"mine={DEMO}"]), ("merged", f"whole={merged.folder}", [])):
        request = EvaluationRequest(
            parse_candidates(base, adapters, []), tmp_path / name, limit=4, metrics=("chrF++", "perplexity"),
            decoding=Decoding(greedy=True, max_new_tokens=12), device="cpu", quantise=False, quiet=True,
        )  # fmt: skip
        evaluate(request)
        runs.append(read_run(tmp_path / name))
    ranking = rank(runs, resamples=200)
    bits = {s.candidate: s.value("perplexity", "bits_per_character") for s in ranking.standings}
    base, mine, whole = (float(bits[name] or 0) for name in ("base", "mine", "whole"))
    assert abs(mine - whole) < 1e-4 < 0.5 < abs(mine - base)
    assert [r.reply for r in runs[0].replies["mine"]] == [r.reply for r in runs[1].replies["whole"]]
    # Template, tokenizer and what ends a reply are the adapter's.
    asked = [run.record.candidates[-1].key_fields for run in runs]
    assert all(asked[0][key] == asked[1][key] for key in ("template_sha", "tokenizer_sha", "stop_ids", "dtype"))
    assert 0 < merged.gap < 1e-4


def test_the_modelfile_has_the_adapters_template(merged: Exported) -> None:
    assert merged.modelfile is not None
    text = merged.modelfile.read_text(encoding="utf-8")
    turns = [("system", "{{ .System }}"), ("user", "{{ .Prompt }}"), ("assistant", "{{ .Response }}")]
    written = "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in turns)
    assert text.startswith(f'FROM ./\nTEMPLATE """{written}"""\n')
    assert 'SYSTEM """আপনি একজন সহানুভূতিশীল বাংলা কথোপকথন সহকারী।"""' in text
    assert 'PARAMETER stop "<|eot_id|>"\n' in text and "PARAMETER repeat_penalty 1.1\n" in text
    assert "PARAMETER top_k 0\nPARAMETER repeat_penalty 1.1\nPARAMETER repeat_last_n -1\n" in text
    assert "<|begin_of_text|>" not in text  # llama.cpp puts it in front itself
    assert str(merged).endswith(f"ollama create demo -f {merged.modelfile}")


def test_16_bit_weights_stay_16_bit(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(locate("base", "bnbench-demo/base").folder, base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    found = export(DEMO, tmp_path / "whole", base=str(base))
    written = load_file(tmp_path / "whole" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16} and written.keys() == weights.keys()
    assert 1e-4 < found.gap < 0.05


def test_what_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def refused(error: type[BnbenchError], why: str, adapter: str = DEMO, base: str | None = None) -> None:
        with pytest.raises(error, match=why):
            export(adapter, out, base=base)
        assert not list(tmp_path.glob("*out*"))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
        refused(UsageError, "0.0 GiB are needed and 0.0 are free; free some")
    with alone(tmp_path / ".out.busy"), pytest.raises(RunError, match="another bnbench works in this folder"):
        export(DEMO, out)
    adapter = tmp_path / "adapter"
    shutil.copytree(locate("adapter", DEMO).folder, adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {k: t * torch.inf if "lora_B" in k else t for k, t in weights.items()}, adapter / "adapter_model.safetensors"
    )
    refused(CandidateError, "it cannot be merged .*NaNs detected", str(adapter))
    # What PEFT merges otherwise than it computes is seen by its logits.
    with monkeypatch.context() as patch:
        from peft.tuners.lora.layer import Linear

        right = Linear.get_delta_weight
        patch.setattr(Linear, "get_delta_weight", lambda self, name: right(self, name) * 0.9)
        refused(CandidateError, r"merged, its logits are .* % off \(at most 0.1 %\); serve it as an adapter")
    packed = tmp_path / "packed"
    shutil.copytree(locate("base", "bnbench-demo/base").folder, packed)
    config = json.loads((packed / "config.json").read_text(encoding="utf-8"))
    stored = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (packed / "config.json").write_text(json.dumps(config | stored), encoding="utf-8")
    refused(CandidateError, "stored quantised; name its 16-bit original with --base", base=str(packed))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "kept").touch()
    with pytest.raises(UsageError, match="not empty: name a new folder"):
        export(DEMO, taken)
    assert [p.name for p in taken.iterdir()] == ["kept"]


def test_gguf_by_llama_cpps_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # llama.cpp is no package of ours: programs with its command lines stand in for it.
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=False)
    with pytest.raises(UsageError, match=r"needs llama.cpp's converter on the PATH: `conda install"):
        export(DEMO, tmp_path / "out", gguf="Q4_K_M")

    def program(name: str, script: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (programs / name).chmod(0o755)

    program("convert_hf_to_gguf.py", '[ -f "$1/model.safetensors" ] && echo "$2 $4 $5" > "$3"')
    with pytest.raises(UsageError, match=r"--gguf Q4_K_M needs llama.cpp's llama-quantize .*Q8_0 go without it"):
        export(DEMO, tmp_path / "out", gguf="q4_k_m")
    eight = export(DEMO, tmp_path / "eight", gguf="q8_0")
    assert eight.gguf == tmp_path / "eight" / "eight-Q8_0.gguf"
    assert eight.gguf.read_text(encoding="utf-8") == "--outfile --outtype q8_0\n"
    program("llama-quantize", 'read line < "$1"; echo "$line, then $3" > "$2"')
    four = export(DEMO, tmp_path / "four", gguf="Q4_K_M", ollama=True)
    assert four.gguf is not None and four.modelfile is not None
    assert four.gguf.read_text(encoding="utf-8") == "--outfile --outtype auto, then Q4_K_M\n"
    assert four.modelfile.read_text(encoding="utf-8").startswith("FROM ./four-Q4_K_M.gguf\n")
    assert not list(four.folder.glob(".*"))  # nothing of the way there
    program("llama-quantize", "echo loading; echo 'invalid ftype' >&2; exit 1")
    with pytest.raises(TrainingError, match="llama-quantize failed: invalid ftype; --merged goes without it"):
        export(DEMO, tmp_path / "out", gguf="Q9")
    assert not list(tmp_path.glob("*out*"))


def test_on_the_command_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", DEMO, "--merged", str(tmp_path / "x"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout).items() >= {"folder": str(tmp_path / "x"), "gguf": None, "modelfile": None}.items()
    for words in ([], ["--merged", "a", "--ollama", "b"]):
        refused = CliRunner().invoke(app, ["export", DEMO, *words])
        assert refused.exit_code == 2 and "one of --merged DIR and --ollama DIR" in refused.stderr


def test_the_record_of_the_training_goes_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A merged adapter is known by the rows that it learned as the adapter is, and so is what is trained on it."""
    adapter, rows = tmp_path / "mine", load_corpus(None).select("test", 4)
    shutil.copytree(locate("adapter", DEMO).folder, adapter)
    record = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    record |= {"examples": [row.id for row in rows[:3]], "command": f"bnbench finetune --out {tmp_path}"}
    (adapter / "training.json").write_text(json.dumps(record), encoding="utf-8")
    folder = export(str(adapter), tmp_path / "whole").folder
    kept = (folder / "training.json").read_text(encoding="utf-8")
    assert json.loads(kept)["examples"] == record["examples"] and str(tmp_path) not in kept
    assert not any(row.reference[:20] in kept or row.question[:20] in kept for row in rows)

    def tested(name: str, base: str, *adapters: str) -> Ranking:
        request = EvaluationRequest(
            parse_candidates(base, adapters), tmp_path / name, limit=4, metrics=("chrF++",), quiet=True, device="cpu",
            decoding=Decoding(greedy=True, max_new_tokens=4), quantise=False,
        )  # fmt: skip
        caplog.clear()
        return rank([read_run(evaluate(request))], resamples=50)

    note = f"whole was trained on 3 of the 4 test rows: {SEEN}"
    alone = tested("alone", f"whole={folder}")
    assert list(alone.notes) == [note] == [m for m in caplog.messages if m.endswith(SEEN)]
    assert warnings(alone)[0] == note and not may_be_told(alone, alone.standings[0])
    # On top of it stands an adapter that learned one row more; merged again, it has the rows of both.
    record["examples"] = [rows[3].id]
    (adapter / "training.json").write_text(json.dumps(record), encoding="utf-8")
    over = tested("over", f"whole={folder}", f"over={adapter}")
    assert set(over.notes) == {note, f"over was trained on 4 of the 4 test rows: {SEEN}"}
    (adapter / "training.json").unlink()
    over = tested("foreign", f"whole={folder}", f"over={adapter}")
    assert set(over.notes) == {note, note.replace("whole", "over", 1)}
    (adapter / "training.json").write_text(json.dumps(record), encoding="utf-8")
    twice = export(str(adapter), tmp_path / "twice", base=str(folder)).folder
    assert json.loads((twice / "training.json").read_bytes())["examples"] == [row.id for row in rows]
    # Replies that lie in its folder are nobody's training.
    lines = (json.dumps({"id": row.id, "reply": "আপনি একা নন।"}) + "\n" for row in rows)
    (folder / "said.jsonl").write_text("".join(lines), encoding="utf-8")
    said = parse_candidates(predictions=[str(folder / "said.jsonl")])
    request = EvaluationRequest(said, tmp_path / "said", limit=4, metrics=("chrF++",), quiet=True)
    assert not any(note.endswith(SEEN) for note in read_run(evaluate(request)).record.notes)
    # A damaged record is told, and stops nothing.
    (folder / "training.json").write_text(kept.replace('"loss"', '"lost"'), encoding="utf-8")
    assert not tested("damaged", f"whole={folder}").notes and "training.json: damaged (loss is missing" in caplog.text
