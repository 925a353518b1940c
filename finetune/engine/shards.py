"""A base whose decoder layers are shared out among the processes, where one card does not hold them all (FSDP).

Layer i lies whole, packed as it was loaded, with process i mod n. When its turn comes the others are sent it, one layer
ahead, into one of two buffers, which their layers in turn take for theirs. What is frozen has no gradients to be
summed, and LoRA's go through DDP.

torch's FSDP has each process load and pack all layers before they are cut up, knows nothing of the scales of NF4, and
puts parameters of its own into modules, whose weights our kernels hold. Here each reads its own layers alone.
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
"""Bytes that the beginning of a tensor is a multiple of, as with CUDA's allocator."""
_log = logging.getLogger("bnbench.finetune")


class Elsewhere:
    """Stands for a tensor of a checkpoint that another process reads: it is loaded onto torch's device "meta"."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __getitem__(self, _: Any) -> Elsewhere:
        return self

    def to(self, device: Any = None, dtype: Any = None) -> torch.Tensor:
        """Its shape, and no numbers."""
        return torch.empty(self.shape, dtype=dtype, device="meta")


def decoder_layers(model: Any) -> dict[str, Any]:
    """Those that are shared out, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)}


def _place(name: str) -> tuple[str, int]:
    """The end of a layer's name, which a checkpoint has too, and the process that holds the layer."""
    match = re.search(r"\b\w+\.(\d+)\b", name)
    return (match[0], int(match[1]) % processes.count()) if match else ("", 0)


def own_part(files: ModelFiles, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Options for `loading.load_base` by which layers of other processes are not read."""
    model = outline(files, trust_remote_code=trust_remote_code)
    found, places = dict[str, Any](), {_place(name)[0] for name in decoder_layers(model)}
    for path in files.weights():
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            (place, owner), tensor = _place(name), file.get_slice(name)
            is_ours = place not in places or owner == processes.index()
            found[name] = tensor if is_ours else Elsewhere(tuple(tensor.get_shape()))
    return {"load": partial(type(model).from_pretrained, None), "config": model.config, "state_dict": found}


class Shards:
    """The layers of a model that `own_part` loaded, on their way: `enter` makes sure that one is here."""

    def __init__(self, model: Any) -> None:
        device = next(p.device for p in model.parameters() if not p.is_meta)
        layers, buffers = decoder_layers(model), dict[tuple[int, int], torch.Tensor]()
        self.owners = [_place(name)[1] for name in layers]
        self.flat: list[torch.Tensor] = []
        self.here, self.sent, self.at, self.step = [-1, -1], list[Any]([None, None]), -1, 1
        for i, (layer, owner) in enumerate(zip(layers.values(), self.owners, strict=True)):
            parts, ends = list(_tensors(layer, device)), [0]
            for part in parts:
                ends.append(ends[-1] + -(-part.nbytes // ALIGNED) * ALIGNED)
            key = (i % 2 if owner != processes.index() else -1 - i, ends[-1])
            if key not in buffers:
                buffers[key] = torch.empty(ends[-1], dtype=torch.uint8, device=device)
            self.flat.append(buffers[key])
            for part, start in zip(parts, ends, strict=False):
                place = self.flat[i][start : start + part.nbytes].view(part.dtype).view(part.shape)
                part.data = place.copy_(part.data)
            layer._apply = lambda *_, layer=layer, **__: layer  # whatever moves the model leaves it there
            layer.register_forward_pre_hook(lambda *_, i=i: self.enter(i, 1))
            layer.register_forward_hook(lambda *given, i=i: self._watch(i, given[-1]))
        if lost := [name for name, p in model.named_parameters() if p.is_meta]:
            raise TrainingError(f"{lost[0]} is called as a layer's, and belongs to none: the base cannot be shared")
        if device.type == "cuda":  # of what transformers reserved for the whole base, NCCL needs some
            torch.cuda.empty_cache()
        _log.info("%d of %d layers of the base lie here", self.owners.count(processes.index()), len(layers))

    def enter(self, i: int, step: int) -> None:
        """Layer `i` is here from now on, until the one after the next is; `step` is 1, or -1 in a backward pass."""
        if step > self.step and i == self.at:
            return  # computed again, in its backward pass
        self.at, self.step = i, step
        for j in (i, i + step):
            if 0 <= j < len(self.flat) and self.here[j % 2] != j:
                self.here[j % 2] = j
                self.sent[j % 2] = torch.distributed.broadcast(self.flat[j], self.owners[j], async_op=True)
        self.sent[i % 2].wait()

    def _watch(self, i: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.enter(i, -1))


def _tensors(layer: Any, device: torch.device) -> Iterator[torch.Tensor]:
    """All of a layer, made where others have it, and the scales of packed ones, whose tables are the same anywhere."""
    for module in layer.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in [(name, tensor) for name, tensor in held.items() if tensor is not None]:
                if tensor.is_meta:
                    held[name] = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
                    if hasattr(tensor, "quant_state"):  # packed to the same sizes as the owner's
                        held[name] = type(tensor)(held[name], requires_grad=False, **vars(tensor)).to(device)
                    elif held is module._parameters:
                        held[name] = torch.nn.Parameter(held[name], requires_grad=False)
                yield held[name]
                if state := getattr(held[name], "quant_state", None):
                    yield from (state.absmax, *((state.offset, state.state2.absmax) if state.nested else ()))
