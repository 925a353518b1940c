"""A base whose decoder layers are shared out among the processes, where one card does not hold them all (FSDP).

A layer lies whole, packed as it was loaded, in the memory of one process, layer i in that of process i mod n. When its
turn comes the others are sent it, one layer ahead, into one of two buffers, which the layers in turn take for
theirs. Nothing is gathered twice in a row, cast, or averaged: what is frozen has no gradients, and LoRA's go through DDP.

torch's FSDP would have each process load and quantise every layer before it cuts it up, knows nothing of the scales
of NF4, and trains in transformers' layers, not in ours. So processes read their own layers alone, and no module changes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from transformers.modeling_layers import GradientCheckpointingLayer

from bnbench.errors import TrainingError
from bnbench.finetune.engine import processes
from bnbench.models.hub import ModelFiles
from bnbench.models.loading import outline

ALIGNED = 256
"""Bytes that the beginning of a tensor is a multiple of, as CUDA's allocator would have it."""
_PLACE = re.compile(r"\b\w+\.(\d+)\b")
_log = logging.getLogger("bnbench.finetune")


class Elsewhere:
    """Stands for a tensor of a checkpoint that another process reads: loaded, it has a shape and no numbers."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, _: Any) -> Elsewhere:
        return self

    def to(self, device: Any = None, dtype: Any = None) -> torch.Tensor:
        """On torch's device "meta", whichever is asked for."""
        return torch.empty(self.shape, dtype=dtype, device="meta")


def decoder_layers(model: Any) -> dict[str, Any]:
    """Those that are shared out, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)}


def own_part(files: ModelFiles, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Options for `loading.load_base` by which the layers of other processes are not read."""
    # A checkpoint may call its layers otherwise than the model, but for the end of their names.
    model = outline(files, trust_remote_code=trust_remote_code)
    places = {_place(name)[0] for name in decoder_layers(model)}
    found: dict[str, Any] = {}
    for path in files.weights():
        file = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            tensor, (place, number) = file.get_slice(name), _place(name)
            is_own = place not in places or number % processes.count() == processes.index()
            found[name] = tensor if is_own else Elsewhere(tuple(tensor.get_shape()))
    return {"load": partial(type(model).from_pretrained, None), "config": model.config, "state_dict": found}


def _place(name: str) -> tuple[str, int]:
    match = _PLACE.search(name)
    return (match[0], int(match[1])) if match else ("", 0)


class Shards:
    """The layers of a base on their way: `enter` makes sure that one is here."""

    def __init__(self, model: Any) -> None:
        """Gives every layer its place, and calls `enter` where it begins, forward and backward."""
        device = next(p.device for p in model.parameters() if p.device.type != "meta")
        self.here, self.sent = [-1, -1], list[Any]([None, None])  # what each buffer holds, and what is on its way there
        self.at, self.step = -1, 1
        self.flat: list[torch.Tensor] = []
        self.owners: list[int] = []
        buffers: dict[tuple[int, int], torch.Tensor] = {}
        for i, (name, layer) in enumerate(decoder_layers(model).items()):
            self.owners.append(_place(name)[1] % processes.count())
            if self.owners[i] != processes.index():
                _fill(layer, device)
            parts = list(_frozen(layer))
            ends = [0]
            for part in parts:
                ends.append(-(-(ends[-1] + part.nbytes) // ALIGNED) * ALIGNED)
            if self.owners[i] == processes.index():
                flat = torch.empty(ends[-1], dtype=torch.uint8, device=device)
            elif (key := (i % 2, ends[-1])) in buffers:
                flat = buffers[key]
            else:
                flat = buffers[key] = torch.empty(ends[-1], dtype=torch.uint8, device=device)
            for part, start in zip(parts, ends, strict=False):
                place = flat[start : start + part.nbytes].view(part.dtype).view(part.shape)
                part.data = place.copy_(part.data)
            self.flat.append(flat)
            layer._apply = partial(_stay, layer)
            layer.register_forward_pre_hook(partial(self._before, i))
            layer.register_forward_hook(partial(self._after, i))
        if lost := [name for name, p in model.named_parameters() if p.is_meta]:
            raise TrainingError(
                f"{lost[0]} belongs to no decoder layer, and has a name like theirs: it cannot be shared"
            )
        own = sum(flat.nbytes for flat, owner in zip(self.flat, self.owners, strict=True) if owner == processes.index())
        told = "%d of %d layers lie here, %.2f GiB; the others come when their turn does"
        _log.info(told, self.owners.count(processes.index()), len(self.flat), own / 2**30)

    def enter(self, i: int, step: int) -> None:
        """Layer `i` is here from now on, until the one after the next is; `step` is 1, or -1 in a backward pass."""
        if step > self.step and i == self.at:
            return  # computed again, in its backward pass
        self.at, self.step = i, step
        for j in (i, i + step):
            if 0 <= j < len(self.flat) and self.here[j % 2] != j:
                self.here[j % 2] = j
                self.sent[j % 2] = torch.distributed.broadcast(self.flat[j], self.owners[j], async_op=True)
        if self.sent[i % 2] is not None:
            self.sent[i % 2].wait()
            self.sent[i % 2] = None

    def _before(self, i: int, *_: Any) -> None:
        self.enter(i, 1)

    def _after(self, i: int, _: Any, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.enter(i, -1))


def _stay(layer: Any, *_: Any, **__: Any) -> Any:
    return layer  # whatever moves the model leaves it there


def _frozen(layer: Any) -> Iterator[torch.Tensor]:
    """All tensors of a layer, the scales of packed ones too; the tables of these are the same everywhere."""
    for module in layer.modules():
        for tensor in filter(lambda t: t is not None, (*module._parameters.values(), *module._buffers.values())):
            yield tensor
            if state := getattr(tensor, "quant_state", None):
                yield state.absmax
                if state.nested:
                    yield from (state.offset, state.state2.absmax)


def _fill(layer: Any, device: torch.device) -> None:
    """Gives the tensors of a layer that lies elsewhere the sizes that they have there."""
    for module in layer.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None or not tensor.is_meta:
                    continue
                made = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
                if hasattr(tensor, "quant_state"):  # packed in the same way
                    made = type(tensor)(made, requires_grad=False, **vars(tensor)).to(device)
                elif held is module._parameters:
                    made = torch.nn.Parameter(made, requires_grad=False)
                held[name] = made
