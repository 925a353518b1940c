from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnbench.errors import CandidateError
from bnbench.models.candidates import parse_candidates, parse_spec
from bnbench.models.hub import ModelFiles, file_sha256, locate

BASE = "NousResearch/Meta-Llama-3.1-8B-Instruct"
ADAPTER = "CaptainNimo/bengali-empathetic-llama-3.1-8b-lora4000"
SHA_BASE, SHA_ADAPTER, SHA_OLD = "a" * 40, "b" * 40, "c" * 40
Make = Callable[..., Path]


def lay(cache: Path, name: str, sha: str, source: Path, ref: str = "main") -> Path:
    """A folder as a snapshot of the hub cache, with its large files as blobs named by their sha256."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / sha
    snapshot.mkdir(parents=True)
    for made in ("refs", "blobs"):
        (root / made).mkdir(exist_ok=True)
    (root / "refs" / ref).write_text(sha, encoding="utf-8")
    for file in source.iterdir():
        blob = root / "blobs" / file_sha256(file)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def named_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, make_adapter: Make) -> Path:
    """An adapter that names the real base."""
    return make_adapter(tmp_path_factory.mktemp("named") / "adapter", tiny_base, BASE)


def copy(source: Path, target: Path, **config: Any) -> Path:
    """A copy of an adapter with changed configuration; None removes a key."""
    shutil.copytree(source, target)
    path = target / "adapter_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | config
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
    return target


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("a/b", ("b", "a/b", "")),
        ("a/b@v1", ("b@v1", "a/b", "v1")),
        ("আমার=a/b@v1", ("আমার", "a/b", "v1")),
        ("a/b=c", ("b=c", "a/b=c", "")),
        ("./x@y/z", ("z", "./x@y/z", "")),
        ("n=/m@1/models", ("n", "/m@1/models", "")),
    ],
)
def test_spelling(text: str, spec: tuple[str, str, str]) -> None:
    parsed = parse_spec(text)
    assert (parsed.name, parsed.location, parsed.revision) == spec


def test_existing_path_with_signs_in_it_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b@c").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_spec("a=b@c").location == "a=b@c"
    assert parse_spec("x=a=b@c").location == "a=b@c"


@pytest.mark.parametrize("text", ["", "name=", "name=@v1"])
def test_spelling_that_names_nothing(text: str) -> None:
    with pytest.raises(CandidateError, match="names no model"):
        parse_spec(text)


def test_adapter_folder_brings_its_base(tiny_base: Path, tiny_adapter: Path) -> None:
    base, adapter = parse_candidates(adapters=[f"mine={tiny_adapter}"])
    assert (base.name, base.kind, base.folder, base.revision) == ("base", "base", str(tiny_base), "")
    assert (adapter.name, adapter.kind, adapter.base, adapter.base_folder) == (
        "mine",
        "adapter",
        str(tiny_base),
        str(tiny_base),
    )
    assert adapter.weights_sha256 == file_sha256(tiny_adapter / "adapter_model.safetensors")
    assert base.weights_sha256 == file_sha256(tiny_base / "model.safetensors")


def test_real_names_from_the_hub_cache(hub: Path, tiny_base: Path, named_adapter: Path) -> None:
    snapshot = lay(hub, BASE, SHA_BASE, tiny_base)
    lay(hub, ADAPTER, SHA_ADAPTER, named_adapter)
    base, adapter = parse_candidates(adapters=[ADAPTER])
    assert (base.name, base.location, base.revision) == ("Meta-Llama-3.1-8B-Instruct", BASE, SHA_BASE)
    assert Path(base.folder) == snapshot
    assert (adapter.name, adapter.revision) == ("bengali-empathetic-llama-3.1-8b-lora4000", SHA_ADAPTER)
    assert (adapter.base, adapter.base_revision) == (BASE, SHA_BASE)
    assert adapter.weights_sha256 == file_sha256(named_adapter / "adapter_model.safetensors")
    assert parse_candidates(base=BASE, adapters=[ADAPTER]) == (base, adapter)
    assert parse_candidates(base=str(snapshot), adapters=[ADAPTER])[1].base_folder == str(snapshot)


def test_revisions_are_resolved_to_their_commit(
    hub: Path, tiny_base: Path, named_adapter: Path, make_adapter: Make, tmp_path: Path
) -> None:
    lay(hub, BASE, SHA_BASE, tiny_base)
    lay(hub, ADAPTER, SHA_ADAPTER, named_adapter)
    lay(hub, ADAPTER, SHA_OLD, make_adapter(tmp_path / "old", tiny_base, BASE, seed=9), ref="v1")
    _, new, old = parse_candidates(adapters=[ADAPTER, f"{ADAPTER}@v1"])
    assert (new.revision, old.revision) == (SHA_ADAPTER, SHA_OLD)
    assert old.name.endswith("@v1")
    assert new.weights_sha256 != old.weights_sha256
    with pytest.raises(CandidateError, match=r"@v2 is not in the hub cache.*HF_HUB_OFFLINE is set.*--revision v2"):
        parse_candidates(adapters=[f"{ADAPTER}@v2"])


def test_base_revision_of_the_adapter_configuration(
    hub: Path, tiny_base: Path, named_adapter: Path, tmp_path: Path
) -> None:
    lay(hub, BASE, SHA_BASE, tiny_base)
    lay(hub, BASE, SHA_OLD, tiny_base, ref="v0")
    base, _ = parse_candidates(adapters=[str(copy(named_adapter, tmp_path / "pinned", revision="v0"))])
    assert base.revision == SHA_OLD


def test_missing_base_names_id_revision_and_cure(hub: Path, named_adapter: Path) -> None:
    lay(hub, ADAPTER, SHA_ADAPTER, named_adapter)
    with pytest.raises(CandidateError) as caught:
        parse_candidates(adapters=[ADAPTER])
    message = str(caught.value)
    assert f"base {BASE}: {BASE}@main is not in the hub cache {hub}" in message
    assert f"`hf download {BASE}`" in message
    assert "\n" not in message


@pytest.mark.parametrize("spelling", ["/kaggle/input/x/1", f"{BASE}-bnb-4bit", BASE.upper(), f"{BASE}/", "a/1"])
def test_a_base_that_is_given_is_taken_at_its_word(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path, spelling: str, hub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay(hub, BASE, SHA_BASE, tiny_base)
    adapter = str(copy(tiny_adapter, tmp_path / "own", base_model_name_or_path=spelling))
    base, found = parse_candidates(BASE, [adapter])
    assert (base.location, found.base) == (BASE, BASE)
    is_same = spelling in (BASE.upper(), f"{BASE}/")
    assert (f"was trained on {spelling}; it is put on {BASE}" in caplog.text) is not is_same


def test_bases_that_end_alike_are_two(tiny_adapter: Path, tmp_path: Path) -> None:
    adapters = [str(copy(tiny_adapter, tmp_path / n, base_model_name_or_path=f"{n}/1")) for n in ("ক", "খ")]
    with pytest.raises(CandidateError, match=r"belong to different bases.*to ক/1 and .*to খ/1; if both are the same"):
        parse_candidates(adapters=adapters)


def test_base_that_the_adapter_names_and_is_not_here(tiny_adapter: Path, tmp_path: Path) -> None:
    adapter = str(copy(tiny_adapter, tmp_path / "own", base_model_name_or_path="/kaggle/input/llama/1"))
    with pytest.raises(CandidateError, match=r"--base is not given, and its base /kaggle/input/llama/1: there is no"):
        parse_candidates(adapters=[adapter])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "XLORA"}, "type XLORA are not supported; these are: ADALORA"),
        ({"peft_type": "CARTRIDGE"}, "type CARTRIDGE are not supported"),
        ({"peft_type": "POLY"}, "type POLY are not supported"),
        ({"peft_type": "PROMPT_TUNING"}, "type PROMPT_TUNING are not supported"),
        ({"task_type": "SEQ_CLS"}, "trained for the task SEQ_CLS, and writes no replies"),
        ({"alora_invocation_tokens": [5, 6]}, r"activated LoRA \(aLoRA\)"),
    ],
)
def test_kinds_that_need_more_than_switching(
    tiny_adapter: Path, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(CandidateError, match=why):
        parse_candidates(adapters=[str(copy(tiny_adapter, tmp_path / "x", **changes))])


def test_local_copy_of_the_named_base_is_taken(tiny_base: Path, named_adapter: Path, tmp_path: Path) -> None:
    local = shutil.copytree(tiny_base, tmp_path / "Meta-Llama-3.1-8B-Instruct")
    assert parse_candidates(str(local), [str(named_adapter)])[1].base == str(local)


def test_base_beside_the_adapter(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "else" / "base").mkdir(parents=True)  # of the same name, from where the command is given
    (tmp_path / "else" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "else" / "here")
    adapter = copy(tiny_adapter, tmp_path / "adapter", base_model_name_or_path="../base")
    base, _ = parse_candidates(adapters=[str(adapter)])
    assert Path(base.folder).resolve() == (tmp_path / "base").resolve()
    assert len(parse_candidates(str(tmp_path / "base"), [str(adapter)])) == 2


def test_adapters_of_different_bases(tiny_adapter: Path, named_adapter: Path) -> None:
    with pytest.raises(CandidateError, match=rf"different bases.*{BASE}.*bnbench compare"):
        parse_candidates(adapters=[f"a={tiny_adapter}", f"b={named_adapter}"])


def test_pickled_weights_are_refused(hub: Path, tiny_base: Path, named_adapter: Path, tmp_path: Path) -> None:
    adapter = copy(named_adapter, tmp_path / "pickled")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    lay(hub, ADAPTER, SHA_ADAPTER, adapter)
    with pytest.raises(CandidateError, match=rf"adapter {ADAPTER}: its weights are pickled \(adapter_model.bin\)"):
        parse_candidates(adapters=[ADAPTER])
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CandidateError, match=r"base .*pickled \(pytorch_model-00001-of-00002.bin\)"):
        parse_candidates(str(base))


def test_a_decoy_beside_pickled_weights_is_nobody_s_weights(
    hub: Path, tiny_base: Path, tiny_adapter: Path, named_adapter: Path, tmp_path: Path
) -> None:
    decoy = (tiny_adapter / "adapter_model.safetensors").read_bytes()
    for source, single, pickle in (
        (named_adapter, "adapter_model.safetensors", "adapter_model.bin"),
        (tiny_base, "model.safetensors", "pytorch_model.bin"),
    ):
        folder = shutil.copytree(source, tmp_path / pickle)
        (folder / single).rename(folder / pickle)
        (folder / "decoy.safetensors").write_bytes(decoy)
        is_base = source == tiny_base
        given: Any = (str(folder), []) if is_base else (None, [str(folder)])
        with pytest.raises(CandidateError, match=rf"its weights are pickled \({pickle}\)"):
            parse_candidates(*given)
        lay(hub, f"owner/{pickle}", SHA_OLD, folder)
        given = (f"owner/{pickle}", []) if is_base else (None, [f"owner/{pickle}"])
        with pytest.raises(CandidateError, match=rf"its weights are pickled \({pickle}\)"):
            parse_candidates(*given)
        (folder / pickle).unlink()
        with pytest.raises(CandidateError, match=rf"no weights in .*: no {single}"):
            parse_candidates(*((str(folder), []) if is_base else (None, [str(folder)])))


def test_what_is_hashed_is_what_is_loaded(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    weights = (tiny_base / "model.safetensors").read_bytes()
    base, adapter = (shutil.copytree(f, tmp_path / f.name) for f in (tiny_base, tiny_adapter))
    before = [ModelFiles("", "", "", folder).weights_sha256() for folder in (base, adapter)]
    for folder in (base, adapter):
        (folder / "original").mkdir()
        for name in ("consolidated.safetensors", "model.fp16.safetensors", "original/model.safetensors"):
            (folder / name).write_bytes(b"no weights")
    (base / "pytorch_model.bin").write_bytes(b"no weights")
    (adapter / "model.safetensors").write_bytes(weights)
    assert [ModelFiles("", "", "", folder).weights_sha256() for folder in (base, adapter)] == before
    assert len(parse_candidates(str(base), [str(adapter)])) == 2
    (base / "model.safetensors").rename(base / "model-2.safetensors")
    shutil.copy(base / "model-2.safetensors", base / "model-1.safetensors")
    (base / "model-3.safetensors").write_bytes(b"no weights")
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}))
    assert [p.name for p in ModelFiles("", "", "", base).weights()] == ["model-1.safetensors", "model-2.safetensors"]
    assert len(parse_candidates(str(base))) == 1
    for shard, says in (("pytorch_model.bin", "pickled"), ("original/model.safetensors", "is missing")):
        index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors", "b": shard}}))
        with pytest.raises(CandidateError, match=says):
            parse_candidates(str(base))


def test_the_bundled_models_keep_their_hashes() -> None:
    # Recorded in run folders, training.json and published cards.
    base, adapter = parse_candidates()
    assert base.weights_sha256 == file_sha256(Path(base.folder) / "model.safetensors")
    assert adapter.weights_sha256 == file_sha256(Path(adapter.folder) / "adapter_model.safetensors")


def test_a_base_that_would_load_something_else_too(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    both = shutil.copytree(tiny_base, tmp_path / "both")
    shutil.copy(tiny_adapter / "adapter_config.json", both)
    with pytest.raises(CandidateError, match=r"adapter_config\.json beside config\.json"):
        parse_candidates(str(both))
    named = shutil.copytree(tiny_base, tmp_path / "named")
    config = json.loads((named / "config.json").read_text(encoding="utf-8"))
    (named / "config.json").write_text(json.dumps({**config, "transformers_weights": "decoy.safetensors"}))
    with pytest.raises(CandidateError, match=r"transformers_weights: decoy\.safetensors"):
        parse_candidates(str(named))


@pytest.mark.parametrize("key", ["peft_type", "target_modules", "r"])
def test_configuration_that_lacks_a_key(tiny_adapter: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(CandidateError, match=rf"adapter_config.json lacks {key}"):
        parse_candidates(adapters=[str(copy(tiny_adapter, tmp_path / "broken", **{key: None}))])


def test_configuration_without_base(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    adapter = str(copy(tiny_adapter, tmp_path / "orphan", base_model_name_or_path=None))
    with pytest.raises(CandidateError, match=r"lacks base_model_name_or_path; name the base with --base"):
        parse_candidates(adapters=[adapter])
    assert len(parse_candidates(str(tiny_base), [adapter])) == 2


def test_broken_files(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    adapter = copy(tiny_adapter, tmp_path / "torn")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(CandidateError, match="not a whole safetensors file"):
        parse_candidates(adapters=[str(adapter)])
    (adapter / "adapter_config.json").write_text("[1, 2", encoding="utf-8")
    with pytest.raises(CandidateError, match="cannot be read as JSON"):
        parse_candidates(adapters=[str(adapter)])
    base = shutil.copytree(tiny_base, tmp_path / "sharded")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CandidateError, match=r"model-00002.safetensors .*missing"):
        parse_candidates(str(base))
    (base / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}', encoding="utf-8")
    with pytest.raises(CandidateError, match=r"weight_map of .*index\.json is no object"):
        parse_candidates(str(base))
    with pytest.raises(CandidateError, match=r"adapters of type \['LORA'\] are not supported"):
        parse_candidates(adapters=[str(copy(tiny_adapter, tmp_path / "kind", peft_type=["LORA"]))])


def test_base_and_adapter_exchanged(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="give it as --base"):
        parse_candidates(adapters=[str(tiny_base)])
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tiny_adapter / name, bare / name)
    with pytest.raises(CandidateError, match=r"give it as --adapter"):
        parse_candidates(str(bare))
    with pytest.raises(CandidateError, match=r"no config\.json"):
        parse_candidates(str(tmp_path))


def test_code_of_its_own_needs_a_flag(tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "code")
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | {"auto_map": {"AutoConfig": "x.Y"}}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CandidateError, match="--trust-remote-code"):
        parse_candidates(str(base))
    assert parse_candidates(str(base), trust_remote_code=True)


def test_tokenizer_must_be_there(tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "mute")
    (base / "tokenizer.json").unlink()
    with pytest.raises(CandidateError, match="no tokenizer"):
        parse_candidates(str(base))


def test_predictions(tmp_path: Path) -> None:
    path = tmp_path / "উত্তর.v2.jsonl"
    path.write_text("{}\n", encoding="utf-8")
    first, second = parse_candidates(predictions=[str(path), f"mine={path}"])
    assert (first.name, first.kind, first.location) == ("উত্তর.v2", "predictions", str(path))
    assert (second.name, second.weights_sha256) == ("mine", file_sha256(path))
    with pytest.raises(CandidateError, match="no such file"):
        parse_candidates(predictions=[str(tmp_path / "none.csv")])


def test_names_must_differ(tiny_base: Path, tiny_adapter: Path) -> None:
    with pytest.raises(CandidateError, match="two candidates are called 'base'"):
        parse_candidates(str(tiny_base), [f"base={tiny_adapter}"])


def test_folder_that_is_not_there_and_folder_with_revision(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(CandidateError, match="there is no folder"):
        parse_candidates(str(tmp_path / "none"))
    with pytest.raises(CandidateError, match="has no revision 'v1'"):
        parse_candidates(f"{tiny_base}@v1")


def test_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", _raise(huggingface_hub.errors.LocalEntryNotFoundError("x"))
    )
    with pytest.raises(CandidateError, match="the hub cannot be reached"):
        locate("base a/b", "a/b")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raise(OSError("disk full\nmore")))
    with pytest.raises(CandidateError, match=r"cannot be fetched \(disk full\)"):
        locate("base a/b", "a/b")


def _raise(error: Exception) -> Callable[..., str]:
    def raiser(*_: Any, **__: Any) -> str:
        raise error

    return raiser


def test_blob_names_spare_the_hashing_of_large_files(tmp_path: Path) -> None:
    sha = "0123456789abcdef" * 4
    blob = tmp_path / "blobs" / sha
    blob.parent.mkdir()
    blob.write_bytes(b"not its hash: it was not read")
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert ModelFiles("x", "x", "", tmp_path).weights_sha256() == sha
    elsewhere = tmp_path / sha
    elsewhere.write_bytes(b"")
    (tmp_path / "own.safetensors").symlink_to(elsewhere)
    assert file_sha256(tmp_path / "own.safetensors") != sha
