"""A packed step is the step: same loss, same gradients, and no sample sees another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bnbench.finetune.engine import decoder, offload
from bnbench.finetune.engine.collate import IGNORED, Collate, Pass, Row, make_pass, share
from bnbench.finetune.engine.decoder import LeanLayer, Recomputation
from bnbench.finetune.engine.layers import ATTENTION, Packed, attend
from bnbench.finetune.engine.offload import HostMemory, Offloaded
from bnbench.finetune.engine.step import prepare, summed_loss
from bnbench.finetune.memory import chunk_positions
from bnbench.finetune.recipes import Recipe, load_recipe
from bnbench.finetune.tuners.adapter import adapt
from bnbench.models.loading import make_portable

LENGTHS = (97, 3, 41, 12, 230, 5)


def row(length: int, seed: int) -> Row:
    ids = tuple(torch.randint(10, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())
    prompt = length // 3
    return Row(f"row-{seed}", ids, (IGNORED,) * prompt + ids[prompt:])


ROWS = [row(length, seed) for seed, length in enumerate(LENGTHS)]


def make_model(base: Path, recipe: Recipe, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    loaded = AutoModelForCausalLM.from_pretrained(base, attn_implementation=ATTENTION, **options)
    model = adapt(make_portable(loaded), recipe)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide every gradient of lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("demo", {"r": "4", "dropout": "0"})


def losses(model: Any, passes: list[Pass]) -> torch.Tensor:
    return sum((model(one_pass=p)["loss"] for p in passes), torch.zeros(()))


def gradients(model: Any, passes: list[Pass]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (losses(model, passes) / sum(p.supervised for p in passes)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    # A and B of seven linear layers in two blocks, and DoRA's lengths
    assert found.keys() == expected.keys() and len(found) == (42 if any("magnitude" in name for name in found) else 28)
    for name, gradient in expected.items():
        assert gradient.norm() > 0 and (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_packed_gradients_are_those_of_one_sample_at_a_time(tiny_base: Path, recipe: Recipe) -> None:
    model = make_model(tiny_base, recipe)
    prepare(model, "cpu")
    single = [Collate(None)([r])[0] for r in ROWS]
    expected = gradients(model, single)
    for tokens in (64, 256, 10_000):
        passes = Collate(tokens)(ROWS)
        assert losses(model, passes).item() == pytest.approx(losses(model, single).item(), rel=1e-5)
        assert_same(gradients(model, passes), expected)
    assert_same(gradients(model, Collate(None)(ROWS)), expected)


@pytest.mark.parametrize("kind", [{}, {"rslora": True, "r": 64}, {"dora": True}, {"dora": True, "rslora": True}])
def test_gradients_are_those_of_peft_and_transformers(tiny_base: Path, recipe: Recipe, kind: dict[str, Any]) -> None:
    """Against the libraries' own modules, masks and loss, sample by sample."""
    recipe = replace(recipe, **kind)
    model = make_model(tiny_base, recipe)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert layer.scaling["default"] == 32 / (recipe.r**0.5 if recipe.rslora else recipe.r)
    total = sum(r.supervised for r in ROWS)
    model.set_attn_implementation("sdpa")
    for r in ROWS:
        logits = model(input_ids=torch.tensor([r.ids])).logits[0, :-1]
        (torch.nn.functional.cross_entropy(logits, torch.tensor(r.labels[1:]), reduction="sum") / total).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    packed = make_model(tiny_base, recipe)
    prepare(packed, "cpu")
    packed.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients(packed.train(), Collate(256)(ROWS)), expected)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_gradients_of_processes_add_up_to_the_step_s(tiny_base: Path, recipe: Recipe, count: int) -> None:
    model = make_model(tiny_base, recipe)
    prepare(model, "cpu")
    expected = gradients(model, Collate(10_000)(ROWS))
    total, found = sum(r.supervised for r in ROWS), []
    for index in range(count):
        passes = [p for rows in share([ROWS[:4], ROWS[4:]], 4, index, count) if rows for p in Collate(128)(rows)]
        weight = sum(p.supervised for p in passes) / total  # `gradients` divides by the passes' own tokens
        found.append({name: g * weight for name, g in gradients(model, passes).items()})
    assert_same({name: torch.stack([f[name] for f in found]).sum(0) for name in expected}, expected)


@pytest.mark.parametrize("tokens", [128, 10_000])
def test_changing_a_sample_changes_no_other_loss(tiny_base: Path, recipe: Recipe, tokens: int) -> None:
    model = make_model(tiny_base, recipe)
    prepare(model, "cpu")

    def each(rows: list[Row]) -> dict[int, float]:
        """The loss of every sample in packed rows, by its length."""
        found = {}
        for whole in Collate(tokens)(rows):
            ends = torch.tensor(whole.lengths).cumsum(0).tolist()
            for length, end in zip(whole.lengths, ends, strict=True):
                inside = (whole.index >= end - length) & (whole.index < end)
                one = replace(whole, index=whole.index[inside], targets=whole.targets[inside])
                found[length] = model(one_pass=one)["loss"].item()
        return found

    before = each(ROWS)
    assert before.keys() == set(LENGTHS)
    for changed in LENGTHS:
        after = each([row(changed, 100) if len(r.ids) == changed else r for r in ROWS])
        assert {n for n in LENGTHS if after[n] != before[n]} == {changed}


@pytest.mark.parametrize("dropout", ["0", "0.3"])
def test_lean_layers_are_peft_s_layers_in_four_bits(tiny_base: Path, dropout: str) -> None:
    """Same dropout mask, since it is drawn alike; the rounding of float32 is all that differs."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = make_model(tiny_base, load_recipe("t4", {"r": "4", "dropout": dropout}), quantization_config=settings)
    layer = model.get_base_model().model.layers[0].train()
    x = torch.randn(1, 7, 32, requires_grad=True)

    def run() -> list[torch.Tensor]:
        torch.manual_seed(3)
        y = layer.mlp(layer.self_attn.q_proj(x)[..., :32])
        weights = [layer.self_attn.q_proj.lora_A.default.weight, layer.self_attn.q_proj.lora_B.default.weight]
        return [y, *torch.autograd.grad(y.square().sum(), [x, *weights])]

    expected = run()
    prepare(model, "cpu")
    assert "forward" in vars(layer.self_attn.q_proj) and "forward" in vars(layer.mlp.down_proj)
    for found, wanted in zip(run(), expected, strict=True):
        assert (found - wanted).norm() < 1e-6 * wanted.norm()


def test_loss_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, targets = torch.randn(50, 8, requires_grad=True), torch.randint(0, 30, (50,))
    head = torch.nn.Linear(8, 30, bias=False).requires_grad_(False)
    expected = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    wanted = torch.autograd.grad(expected * 3, hidden)[0]
    monkeypatch.setattr("bnbench.finetune.memory.CHUNK_BYTES", 1)
    assert chunk_positions(30) == 16
    found = summed_loss(hidden, head, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(torch.autograd.grad(found * 3, hidden)[0], wanted, rtol=1e-5, atol=1e-6)


def test_logits_that_are_more_than_the_head_s_are_made_whole(
    tiny_base: Path, recipe: Recipe, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tiny_base, recipe)
    base = model.get_base_model()
    plain = type(base).forward

    def capped(self: Any, **kwargs: Any) -> Any:
        output = plain(self, **kwargs)
        output.logits = output.logits.tanh()
        return output

    monkeypatch.setattr(type(base), "forward", capped)
    prepare(model, "cpu")
    assert "they are made whole" in caplog.text
    one = make_pass(ROWS)
    logits = capped(base, input_ids=one.ids, position_ids=one.positions, lengths=one.lengths).logits[0, one.index]
    expected = torch.nn.functional.cross_entropy(logits, one.targets, reduction="sum")
    assert model(one_pass=one)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_sliding_windows_are_kept(tiny_base: Path) -> None:
    q, k = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8)
    found = attend(None, q, k, k, None, lengths=(6, 3), sliding_window=4)[0]
    position = torch.arange(9)
    sample = torch.tensor([0] * 6 + [1] * 3)
    distance = position[:, None] - position[None]
    mask = (distance >= 0) & (distance < 4) & (sample[:, None] == sample[None])
    scores = q @ k.repeat_interleave(2, 1).mT / 8**0.5
    expected = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ k.repeat_interleave(2, 1)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-6)


def test_rows_keep_to_the_budget_and_lose_nothing() -> None:
    passes = Collate(100)(ROWS)
    assert [p.lengths for p in passes] == [(230,), (97, 3), (41, 12, 5)]
    assert sum(p.supervised for p in passes) == sum(r.supervised for r in ROWS)
    assert Collate(100).largest(ROWS[1:4], 3).lengths == (41, 12, 3)
    assert Collate(50).largest(ROWS[1:4], 3).lengths == (41, 9)
    assert Collate(100).largest(ROWS, 4).lengths == (230,)
    assert Collate(None).largest(ROWS, 2).ids.shape == (2, 230)
    assert passes[1].positions[0].tolist() == [*range(97), 0, 1, 2]


def test_untied_input_embeddings_stay_on_the_cpu_wherever_the_model_goes(
    tiny_base: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = make_model(tiny_base, recipe), make_model(tiny_base, recipe)
    prepare(model, "cpu")
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # without a card there is none
    prepare(other, "cuda")
    one = make_pass(ROWS)
    assert other(one_pass=one)["loss"].item() == model(one_pass=one)["loss"].item()
    other.to("meta")
    base = other.get_base_model()
    assert base.get_input_embeddings().weight.device.type == "cpu" and base.lm_head.weight.device.type == "meta"


def test_the_last_layers_keep_what_the_measured_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU with 1,000 bytes taken: a layer keeps 4 a token, or 1 when it recomputes; a step takes 20 a token."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model = torch.nn.ModuleList(GradientCheckpointingLayer() for _ in range(3))
    recomputation = Recomputation(model, budget=0.0)
    alive = 1000

    def forward() -> object:
        nonlocal alive
        alive = 1000 + 100 * sum(1 if layer.gradient_checkpointing else 4 for layer in model)
        return object()

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: alive)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3000 if stepped else alive + 50)
    stepped: list[bool] = []
    recomputation.set_for(10)
    assert all(layer.gradient_checkpointing for layer in model)
    recomputation.measure(100, forward, lambda: stepped.append(True))
    measured = {"fixed": 1000, "per_token": 20, "forward": 3, "chunk": 50, "kept": 3, "budget": 3000}
    assert vars(recomputation).items() >= measured.items()
    for tokens, kept in (
        (100, 0),
        (87, 0),
        (86, 1),
        (76, 2),
        (10, 3),
    ):  # of 2,000 bytes a token takes 20, and 3 a layer
        recomputation.set_for(tokens)
        assert [layer.gradient_checkpointing for layer in model] == [True] * (3 - kept) + [False] * kept


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_adapters_of_16_bit_bases_are_float32(tiny_base: Path, recipe: Recipe, dtype: str) -> None:
    model = make_model(tiny_base, recipe, dtype=getattr(torch, dtype))
    prepare(model, "cpu")
    found = gradients(model, Collate(256)(ROWS))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in found.values())
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {getattr(torch, dtype)}


@pytest.mark.parametrize("targets", ["q_proj,v_proj", "q_proj,down_proj", "o_proj,up_proj", "all-linear"])
def test_a_recomputed_layer_is_the_one_that_keeps(
    tiny_base: Path, targets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with dropout: both times the same numbers are dropped, and other ones in the next pass.

    Where attention is offloaded instead, the numbers are those of recomputing to the bit.
    """
    monkeypatch.setattr(offload, "LEAST", 1)
    model = make_model(tiny_base, load_recipe("demo", {"r": "4", "dropout": "0.3", "targets": targets})).train()
    prepare(model, "cpu")
    layers, host = [m for m in model.modules() if isinstance(m, LeanLayer)], HostMemory(torch.device("cpu"))
    assert len(layers) == 2 and type(layers[0]).__name__ == "LeanLayer"
    found, calls = [], []
    monkeypatch.setattr(decoder, "attend", lambda *a, **k: calls.append(0) or attend(*a, **k))
    for recomputed, offloaded in (((), ()), ((0,), ()), ((0, 1), ()), ((0, 1), (0, 1)), ((0, 1), (1,))):
        for i, layer in enumerate(layers):
            layer.gradient_checkpointing, layer.host = i in recomputed, host if i in offloaded else None
        torch.manual_seed(7)
        calls.clear()
        found.append([gradients(model, Collate(256)(ROWS)) for _ in range(2)])
        assert len(calls) == 2 * len(Collate(256)(ROWS)) * (2 + len(recomputed) - len(offloaded))
    for other in found[1:]:
        for first, second in zip(found[0], other, strict=True):
            assert all((first[n] - second[n]).norm() <= 1e-5 * first[n].norm() for n in first)
    for other in found[3:]:
        for first, second in zip(found[2], other, strict=True):
            assert all(torch.equal(first[n], second[n]) for n in first)
    assert any((found[0][0][n] - found[0][1][n]).norm() > 1e-2 * found[0][0][n].norm() for n in found[0][0])
    passes = Collate(256)(ROWS)  # all go forward before any goes back
    assert len(host.free) == 2 * len(passes), "a buffer a layer and pass, used again in every step"
    losses(model, passes)  # a graph that is dropped
    assert len(host.free) == 2 * len(passes)


def test_what_is_offloaded_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its sizes and strides; what shares a storage travels once, and small things stay."""
    monkeypatch.setattr(offload, "LEAST", 100)
    host = HostMemory(torch.device("cpu"))
    whole, small = torch.randn(4, 6, 8), torch.ones(2)
    views = [whole.transpose(1, 2), whole[:, 2:], whole, torch.arange(90).bool()]
    wanted = [view.clone() for view in views]
    apart = Offloaded(host)
    tickets = [apart.pack(view) for view in views]
    assert apart.pack(small) is small and apart.pack(None) is None and apart.pack((1, 2)) == (1, 2)
    assert tickets[3] is views[3], "90 bytes"
    apart.send()
    host.settle()
    whole.zero_()  # the card has given the memory to somebody else
    assert len(apart.buffer) == whole.nbytes and not host.free
    apart.fetch()
    for ticket, view, value in zip(tickets, views, wanted, strict=True):
        back = apart.unpack(ticket)
        assert torch.equal(back, value) and back.stride() == view.stride()
    assert [len(buffer) for buffer in host.free] == [whole.nbytes]
    assert host.take(whole.nbytes + 1).numel() > whole.nbytes and len(host.free) == 1
    assert host.take(8).numel() == whole.nbytes and not host.free
    assert HostMemory.has_room(2**20, 1) and not HostMemory.has_room(2**50, 1)


@pytest.fixture
def measuring(tiny_base: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recomputation of a model, on what passes for a card: a layer keeps 100 bytes a token, a step takes 1,000."""
    model = make_model(tiny_base, recipe)
    prepare(model, "cpu")
    recomputation = Recomputation(model, budget=0.0)
    layers = recomputation.layers
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    kept = lambda: sum(not layer.gradient_checkpointing for layer in layers)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 10**6 + 100 * 2000 * kept())
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10**6 + 1000 * 2000)
    return recomputation


@pytest.mark.parametrize(("own", "room", "chosen"), [(0.5, True, True), (2.0, True, False), (0.5, False, False)])
def test_attention_is_offloaded_where_that_is_faster(
    measuring: Any, own: float, room: bool, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def step() -> None:
        nonlocal now
        measuring.set_for(2000)
        now += own if measuring.layers[0].host else 1.0

    monkeypatch.setattr(decoder.time, "perf_counter", lambda: now)
    monkeypatch.setattr(HostMemory, "has_room", lambda size, processes: room)
    measuring.measure(2000, object, step)
    measuring.set_for(2000)
    assert all((layer.host is not None) == chosen for layer in measuring.layers)
    measuring.set_for(decoder.OFFLOAD_FROM - 1)
    assert all(layer.host is None for layer in measuring.layers)


def test_what_room_is_left_holds_unpacked_weights(measuring: Any) -> None:
    class Four(Packed):
        size = 1000

        def __init__(self) -> None:
            pass

        def __call__(self) -> torch.Tensor:
            return torch.ones(1)

    for layer in measuring.layers:
        layer.parts = layer.parts._replace(
            projections=tuple(p._replace(weight=Four()) for p in layer.parts.projections)
        )
    # Both layers keep 100 bytes for each of 2,000 tokens; then there is room for the seven weights of one.
    measuring.budget = 1.05 * (10**6 + 1000 * 2000 + 2 * 100 * 2000 + 7500)
    measuring.measure(2000, object, lambda: measuring.set_for(2000))
    held = [[p.weight.held is not None for p in layer.parts.projections] for layer in measuring.layers]
    assert held == [[True] * 7, [False] * 7] and measuring.host is None
    measuring.set_for(2000)
    assert not any(layer.gradient_checkpointing for layer in measuring.layers)
    measuring.set_for(2100)
    assert [layer.gradient_checkpointing for layer in measuring.layers] == [True, False]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_lean_decoders_are_those_of_transformers(name: str, recipe: Recipe) -> None:
    """Grouped heads, biases, sliding windows: gradients are the libraries' own, sample by sample."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    own: dict[str, Any] = {"mistral": {"sliding_window": 30}}.get(name, {})
    config = AutoConfig.for_model(name, vocab_size=320, num_key_value_heads=2, **sizes, **own)
    torch.manual_seed(2)
    plain = AutoModelForCausalLM.from_config(config)
    state = plain.state_dict()
    total = sum(r.supervised for r in ROWS)

    def adapted() -> Any:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
        model.load_state_dict(state)
        model = adapt(model, recipe)
        generator = torch.Generator().manual_seed(5)
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        return model

    model = adapted()
    model.set_attn_implementation("eager")
    for r in ROWS:
        logits = model(input_ids=torch.tensor([r.ids])).logits[0, :-1]
        (torch.nn.functional.cross_entropy(logits, torch.tensor(r.labels[1:]), reduction="sum") / total).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    lean = adapted()
    prepare(lean, "cpu")
    assert sum(isinstance(m, LeanLayer) for m in lean.modules()) == 2
    for recomputed in (False, True):
        for m in lean.modules():
            if isinstance(m, LeanLayer):
                m.gradient_checkpointing = recomputed
        assert_same(gradients(lean.train(), Collate(256)(ROWS)), expected)
