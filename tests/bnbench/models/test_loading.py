"""What people really have: bases of many architectures, adapters of every kind, and files that are not whole."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bnbench.errors import CandidateError
from bnbench.models import BackendOptions
from bnbench.models.candidates import SUPPORTED, parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.hf import TransformersBackend
from bnbench.models.hub import ModelFiles
from bnbench.models.loading import load_base, load_config
from bnbench.models.prompts import PROBE

Make = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]
SMALL = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 6}
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = {**WIDTH, "num_key_value_heads": 1, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
BASES: dict[str, Any] = {
    "qwen2": lambda: transformers.Qwen2Config(**WIDTH, num_key_value_heads=1, tie_word_embeddings=False, **SMALL),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, **SMALL),
    "bloom": lambda: transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=2, **SMALL),
    "opt": lambda: transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, word_embed_proj_dim=32, **SMALL
    ),
    "xglm": lambda: transformers.XGLMConfig(d_model=32, num_layers=2, attention_heads=2, ffn_dim=48, **SMALL),
    "falcon": lambda: transformers.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, **SMALL),
    "neox": lambda: transformers.GPTNeoXConfig(**WIDTH, **SMALL),
    "phi3": lambda: transformers.Phi3Config(**WIDTH, num_key_value_heads=1, **SMALL),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, sliding_window=8, **SMALL),
    "mixtral": lambda: transformers.MixtralConfig(
        **WIDTH, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, **SMALL
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**GROUPED, **EXPERTS, **SMALL),
    "llama4": lambda: transformers.Llama4TextConfig(
        **GROUPED, intermediate_size_mlp=48, num_local_experts=2, **SMALL
    ),
    "mamba": lambda: transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **SMALL),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **{**GROUPED, "num_hidden_layers": 4}, **EXPERTS, shared_expert_intermediate_size=24, linear_num_value_heads=2,
        linear_num_key_heads=1, linear_key_head_dim=16, linear_value_head_dim=16, **SMALL,
    ),
}  # fmt: skip
LORA = {"r": 4, "task_type": "CAUSAL_LM"}
QV = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
Q = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
ADAPTERS: dict[str, Any] = {
    "LoRA": lambda: peft.LoraConfig(r=4, **QV),
    "rsLoRA": lambda: peft.LoraConfig(r=4, use_rslora=True, **QV),
    "DoRA": lambda: peft.LoraConfig(r=4, use_dora=True, **QV),
    "PiSSA": lambda: peft.LoraConfig(r=4, init_lora_weights="pissa", **QV),
    "OLoRA": lambda: peft.LoraConfig(r=4, init_lora_weights="olora", **QV),
    "EVA-initialised LoRA": lambda: peft.LoraConfig(r=4, init_lora_weights="eva", **QV),
    "LoRA with biases": lambda: peft.LoraConfig(r=4, bias="lora_only", **QV),
    "LoRA, modules_to_save": lambda: peft.LoraConfig(r=4, modules_to_save=["lm_head", "norm"], **QV),
    "LoRA, trainable tokens": lambda: peft.LoraConfig(r=4, trainable_token_indices=[5, 6, 30], **QV),
    "LoRA, layer_replication": lambda: peft.LoraConfig(r=4, layer_replication=[[0, 1], [0, 2]], **QV),
    "LoRA on lm_head": lambda: peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"),
    "LoRA on embed_tokens": lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM"),
    "LoHa": lambda: peft.LoHaConfig(r=4, **QV),
    "LoKr": lambda: peft.LoKrConfig(r=4, **QV),
    "IA³": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
    ),
    "VeRA": lambda: peft.VeraConfig(r=4, **Q),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=16, **QV),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, **QV),
    "AdaLoRA": lambda: peft.AdaLoraConfig(total_step=10, tinit=1, tfinal=1, **QV),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        token_indices=[5, 6, 30], target_modules=["embed_tokens"], task_type="CAUSAL_LM"
    ),
    "LN tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
    "HRA": lambda: peft.HRAConfig(r=4, **QV),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=50, **QV),
    "MiSS": lambda: peft.MissConfig(r=4, **QV),
    "RandLoRA": lambda: peft.RandLoraConfig(r=4, **Q),
    "C3A": lambda: peft.C3AConfig(block_size=16, **Q),
    "SHiRA": lambda: peft.ShiraConfig(r=4, **Q),
    "VB-LoRA": lambda: peft.VBLoRAConfig(r=4, num_vectors=8, vector_length=16, **Q),
    "RoAd": lambda: peft.RoadConfig(group_size=16, **QV),
    "DeLoRA": lambda: peft.DeloraConfig(r=4, **QV),
    "GraLoRA": lambda: peft.GraloraConfig(r=4, **QV),
    "WaveFT": lambda: peft.WaveFTConfig(n_frequency=64, **Q),
}
CHANGE_THEIR_BASE = {"PiSSA", "OLoRA", "LoRA, layer_replication"}


@cache
def read(base: Path) -> Any:
    """A base by transformers alone; to be copied, as PEFT changes what it is put on."""
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def trained(base: Path, config: Any, folder: Path) -> Path:
    """An adapter of `base` in `folder`, as if trained: every parameter that training would move is moved."""
    model = copy.deepcopy(read(base))
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def opened(base: Path, *adapters: str) -> TransformersBackend:
    made = TransformersBackend(parse_candidates(str(base), adapters), BackendOptions(device="cpu"))
    made.load()
    return made


def truth(backend: TransformersBackend, base: Path, adapter: Path | None = None) -> torch.Tensor:
    """The logits of PROBE by transformers and peft alone."""
    return truth_of(tuple(backend._probe_ids), base, adapter)


@cache
def truth_of(probe: tuple[int, ...], base: Path, adapter: Path | None) -> torch.Tensor:
    model = copy.deepcopy(read(base))
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(input_ids=torch.tensor([probe])).logits
    return logits


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", BASES)
def test_architectures(kind: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = tmp_path / kind
    model = transformers.AutoModelForCausalLM.from_config(BASES[kind]())
    model.save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    ends = {n.rpartition(".")[2] for n, m in model.named_modules() if type(m).__name__.endswith(("Linear", "Conv1D"))}
    targets = sorted(ends - {"lm_head", "embed_out", "router", "gate", "x_proj", "out_proj", "shared_expert_gate"})
    configs = {f"a{r}": peft.LoraConfig(r=r, target_modules=targets) for r in (2, 4)}
    adapters = [trained(base, config, tmp_path / name) for name, config in configs.items()]
    both = opened(base, *(f"{a.name}={a}" for a in adapters))
    plain, *others = both.candidates
    assert torch.equal(both._probe(plain), truth(both, base))
    for candidate, folder in zip(others, adapters, strict=True):
        assert torch.equal(both._probe(candidate), truth(both, base, folder))

    # Padded rows of a batch answer as each does alone by transformers' own `generate`.
    prompter = both.prompters[plain.name]
    prompts = [prompter.prompt(PROBE), prompter.prompt(PROBE.__class__("খ", "", "", "মন ভালো নেই।", ""))]
    drawn = both.generate(plain, prompts, ["ক", "খ"], Decoding(greedy=True, max_new_tokens=6))
    model = model.eval()
    for reply, prompt in zip(drawn, prompts, strict=True):
        ids = torch.tensor([prompt.ids])
        how = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": list(prompter.stop_ids), "pad_token_id": 6}
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), repetition_penalty=1.1, **how)
        assert reply.text == prompter.decode(whole[0, ids.shape[1] :].tolist(), cut=reply.hit_limit or False)


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", ADAPTERS)
def test_kinds_of_adapters(kind: str, tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    config = ADAPTERS[kind]()
    assert config.peft_type.value in SUPPORTED
    if kind.startswith("EVA"):  # its start is computed from data; what it leaves is a LoRA like another
        config.init_lora_weights = True
    folder = trained(tiny_base, config, tmp_path / "own")
    if kind.startswith("EVA"):
        path = folder / "adapter_config.json"
        path.write_text(
            path.read_text(encoding="utf-8").replace('"init_lora_weights": true', '"init_lora_weights": "eva"'),
            encoding="utf-8",
        )
    both = opened(tiny_base, f"own={folder}", f"other={tiny_adapter}")
    base, own, other = both.candidates
    for candidate, place in ((own, folder), (base, None), (other, tiny_adapter), (own, folder)):
        assert torch.equal(both._probe(candidate), truth(both, tiny_base, place)), candidate.name
    assert ("own" in both._apart) is (kind in CHANGE_THEIR_BASE)


def test_the_docs_name_every_kind_that_was_tried() -> None:
    table = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    for kind in ADAPTERS:
        row = next(line for line in table.splitlines() if line.startswith(f"| {kind} |"))
        assert ("by itself" in row) is (kind in CHANGE_THEIR_BASE), kind
    assert all(f"`{kind}`" in table for kind in SUPPORTED)


def test_adapter_with_tokens_of_its_own(
    tiny_base: Path, tiny_adapter: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens(["<ভাব>", "<শেষ>"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, modules_to_save=["embed_tokens", "lm_head"], **QV))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    both = opened(tiny_base, f"own={tmp_path / 'own'}", f"other={tiny_adapter}")
    base, own, other = both.candidates
    assert both._apart == ["own"]
    assert "<ভাব>" in both.prompters[own.name].tokenizer.get_vocab()
    ids = torch.tensor([both.prompters[base.name].prompt(PROBE).ids])
    with torch.inference_mode():
        assert torch.equal(both._probe(own), model.eval()(input_ids=ids).logits)
    assert torch.equal(both._probe(base), truth(both, tiny_base))
    assert torch.equal(both._probe(other), truth(both, tiny_base, tiny_adapter))


def test_tokens_that_are_added_and_trained_alone(tiny_tokenizer: Any, tmp_path: Path) -> None:
    base = tmp_path / "tied"
    config = transformers.Qwen2Config(**WIDTH, num_key_value_heads=1, tie_word_embeddings=True, **SMALL)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    other = trained(base, peft.LoraConfig(r=4, **QV), tmp_path / "other")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<ভাব>", "<শেষ>"])
    model, n = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config.vocab_size
    model.resize_token_embeddings(len(tokenizer))
    added = list(range(n, len(tokenizer)))
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, trainable_token_indices=[5, *added], **QV))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "own", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "own")
    both = opened(base, str(tmp_path / "own"), str(other))
    plain, own, beside = both.candidates
    ids = torch.tensor([both._probe_ids])
    with torch.inference_mode():
        assert torch.equal(both._probe(own), model.eval()(input_ids=ids).logits)
    assert torch.equal(both._probe(plain), truth(both, base))
    assert torch.equal(both._probe(beside), truth(both, base, other))
    edit_config(tmp_path / "own", "adapter_config.json", trainable_token_indices=[5, *added[1:]])  # not each
    with pytest.raises(CandidateError, match="cannot be put on its base"):
        opened(base, str(tmp_path / "own"))


def edited(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], name: str) -> Path:
    """The folder with its tensors changed."""
    save_file(change(load_file(folder / name)), folder / name, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: {k: v for k, v in t.items() if "v_proj" not in k}, r"4 tensors not in its file: .*v_proj\.lora_A"),
        (lambda t: {k.replace("v_proj", "w_proj"): v for k, v in t.items()}, r"4 tensors not in its file: .*v_proj"),
        (lambda t: {**t, "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(32)},
         r"1 tensor of its file not used: .*lora_magnitude_vector"),
        (lambda t: {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in t.items()}, "cannot be put on its"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_second", [False, True])
def test_adapters_that_are_not_whole(
    change: Any, why: str, is_second: bool, tiny_base: Path, tiny_adapter: Path, tmp_path: Path, make_adapter: Make
) -> None:
    whole = trained(tiny_base, peft.LoraConfig(r=4, **QV), tmp_path / "whole")
    half = edited(shutil.copytree(whole, tmp_path / "half"), change, "adapter_model.safetensors")
    before = [f"first={tiny_adapter}"] if is_second else []
    with pytest.raises(CandidateError, match=f"adapter {half}: it .*{why}") as caught:
        opened(tiny_base, *before, f"half={half}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_what_a_newer_peft_has_set_is_not_left_out_in_silence(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained(tiny_base, peft.LoraConfig(r=4, **QV), tmp_path / "newer")
    edit_config(folder, "adapter_config.json", gate=3.0, merge_weights=False)  # the second is of an old one, and off
    with caplog.at_level(logging.WARNING):
        opened(tiny_base, str(folder))
    says = f"peft {peft.__version__} does not know what its adapter_config.json sets, and goes on without: gate"
    assert caplog.messages == [f"adapter {folder}: {says}"]


@pytest.mark.parametrize("ids", ["ক", 5, [-1], ["5"], {"embed_tokens": 5}])
def test_tokens_that_are_no_ids(ids: Any, tiny_base: Path, tmp_path: Path) -> None:
    folder = trained(tiny_base, peft.LoraConfig(r=4, **QV), tmp_path / "odd")
    edit_config(folder, "adapter_config.json", trainable_token_indices=ids)
    with pytest.raises(CandidateError, match=rf"adapter {folder}: .* names tokens that are no ids"):
        opened(tiny_base, str(folder))


def test_adapters_of_experts_alone(tiny_tokenizer: Any, tmp_path: Path) -> None:
    base = tmp_path / "mixtral"
    transformers.AutoModelForCausalLM.from_config(BASES["mixtral"]()).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    parts: dict[str, Any] = {"both": ["gate_up_proj", "down_proj"], "down": ["down_proj"]}
    adapters = []
    for name, ends in parts.items():
        config = peft.LoraConfig(target_modules=[], target_parameters=[f"mlp.experts.{e}" for e in ends], **LORA)
        adapters.append(trained(base, config, tmp_path / name))
    made = opened(base, *map(str, adapters))
    for candidate, folder in zip(made.candidates, (None, *adapters), strict=True):
        assert torch.equal(made._probe(candidate), truth(made, base, folder)), candidate.name


def edit_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "—"}), encoding="utf-8")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unknown type": (lambda d: edit_config(d, model_type="zeta4"), r"config\.json cannot be used \(ValueError"),
    "no type": (lambda d: edit_config(d, model_type="—"), r"config\.json cannot be used"),
    "null": (lambda d: edit_config(d, num_attention_heads=None), r"config\.json cannot be used .*num_attention_heads"),
    "tokenizer": (
        lambda d: (d / "tokenizer.json").write_text('{"model": {"merges": [1]}}', encoding="utf-8"), "the tokenizer in"
    ),
    "tuples": (lambda d: edit_config(d, return_dict=False), "it cannot compute"),
    "generation": (
        lambda d: (d / "generation_config.json").write_text("{ না", encoding="utf-8"),
        r"generation_config\.json cannot be read",
    ),
    "vocabulary": (
        lambda d: edit_config(d, vocab_size=404), r"2 tensors of another shape: lm_head.weight \(stored as \(400"
    ),
    "untied": (
        lambda d: edited(d, lambda t: {k: v for k, v in t.items() if "lm_head" not in k}, "model.safetensors"),
        r"1 tensor not in its file: lm_head.weight",
    ),
    "layer": (
        lambda d: edited(d, lambda t: {k: v for k, v in t.items() if ".layers.1." not in k}, "model.safetensors"),
        r"9 tensors not in its file: model.layers.1",
    ),
    "names": (
        lambda d: edited(
            d, lambda t: {k.replace("q_proj", "q_proj.base_layer"): v for k, v in t.items()}, "model.safetensors"
        ),
        r"2 tensors not in its file: .*q_proj.weight.*2 tensors of its file not used: .*base_layer",
    ),
    "gptq": (
        lambda d: edit_config(d, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}),
        "it cannot be loaded .*GPTQ",
    ),
}  # fmt: skip


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", BROKEN)
def test_bases_that_do_not_load_whole(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    folder, (damage, why) = shutil.copytree(tiny_base, tmp_path / "base"), BROKEN[kind]
    damage(folder)
    with pytest.raises(CandidateError, match=why) as caught:
        opened(folder)
    assert str(caught.value).startswith(f"base {folder}: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_consolidated_weights_are_not_counted(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    save_file({"x": torch.zeros(9)}, folder / "consolidated.safetensors")
    assert opened(folder).n_parameters == opened(tiny_base).n_parameters


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (lambda: transformers.BertConfig(**WIDTH, vocab_size=400), "bert is an encoder"),
        (lambda: transformers.T5Config(d_model=32, num_layers=1, num_heads=2, vocab_size=400), "t5 does not write on"),
    ],
)
def test_models_that_see_what_they_are_scored_on(config: Any, why: str, tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    config().save_pretrained(folder)
    with pytest.raises(CandidateError, match=f"a model of type {why}"):
        opened(folder)


def test_model_that_sees_the_next_word_whatever_it_is_called(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnbench.models import hf

    def two_ways(files: ModelFiles, **options: Any) -> Any:
        model = load_base(files, **options)
        model.model.norm.register_forward_hook(lambda _, given, out: out + out.flip(1))
        return model

    monkeypatch.setattr(hf, "load_base", two_ways)
    with pytest.raises(CandidateError, match="it sees the words after the one that it writes"):
        opened(tiny_base)


def test_no_library_is_heard(tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = trained(tiny_base, peft.LoraConfig(r=4, init_lora_weights="pissa", **QV), tmp_path / "own")
    capfd.readouterr()
    logging.getLogger("bnbench").setLevel(logging.INFO)
    opened(tiny_base, f"own={folder}")
    said = capfd.readouterr().err
    assert "Warning" not in said and "transformers" not in said


def test_configuration_of_a_language_model(tiny_base: Path) -> None:
    assert load_config(ModelFiles("base", "", "", tiny_base)).model_type == "llama"


def test_the_libraries_come_without_torch_s_compiler_and_without_a_word() -> None:
    """bitsandbytes would bring it along, 550 modules, and leaves it to the machine's C++ compiler what is computed. It
    warns, on some processors only, of a path that is not taken, so its logger is used here as it uses it there.
    """
    from bitsandbytes.backends.cpu import ops

    code = f"""
import logging, sys, torch
import bnbench.models.hf
compiler = torch.compile
from bnbench.models.loading import import_libraries
import_libraries()
assert torch.compile is compiler
assert {{"peft", "transformers", "bitsandbytes"}} <= sys.modules.keys()
logging.getLogger({ops.logger.name!r}).warning("Failed to load CPU gemm_4bit_forward")
print([name for name in sys.modules if name.startswith("torch._inductor.compile_fx")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
