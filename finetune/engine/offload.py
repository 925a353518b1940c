"""Activations that wait for the backward pass in the host's memory, copied there and back beside the arithmetic.

A layer of Llama-3.1-8B over 4,096 tokens computes for 3.4 ms on an H200 before the next begins, in which its bus moves
some 150 MB: more than queries, keys, values and attention's output are. They come back while the gates are computed
again (Rhu et al. 2016, vDNN). The numbers are the same to the bit, since nothing is computed twice.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import psutil
import torch

LEAST = 2**20
"""Bytes of a tensor below which it stays where it is."""


class HostMemory:
    """Pinned buffers that are used again pass by pass, and a stream for the copies, which follow one another there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_cuda = device, device.type == "cuda"
        self.stream: Any = torch.cuda.Stream(device) if self.is_cuda else None  # type: ignore[no-untyped-call]
        self.free: list[torch.Tensor] = []
        self.sent: Any = None  # what is being copied, which must lie there until it is

    @staticmethod
    def has_room(size: int, processes: int) -> bool:
        """Whether each of so many processes may pin `size` bytes: half of what the host has left is not touched."""
        return bool(2 * size * processes <= psutil.virtual_memory().available)

    def take(self, size: int) -> torch.Tensor:
        """A buffer of at least so many bytes."""
        place = next((i for i, buffer in enumerate(self.free) if len(buffer) >= size), None)
        return torch.empty(size, dtype=torch.uint8, pin_memory=self.is_cuda) if place is None else self.free.pop(place)

    def beside(self) -> AbstractContextManager[Any]:
        """In it copies go on beside the arithmetic, after what was launched so far."""
        if not self.is_cuda:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self.stream)

    def mark(self) -> Any:
        """For `wait_for`: all copies up to now."""
        return self.stream.record_event() if self.is_cuda else None

    def settle(self) -> None:
        """Lets go of what was sent last, once it is here."""
        if self.sent:
            wait_for(self.sent[0])
        self.sent = None


def wait_for(mark: Any) -> None:
    """Lets what is launched from now on wait for the copies up to a mark; the host goes on."""
    if mark is not None:
        torch.cuda.current_stream().wait_event(mark)


class Ticket(NamedTuple):
    """Of a tensor that was offloaded: the address its storage had, and its place there."""

    address: int
    dtype: torch.dtype
    place: tuple[Any, ...]


class Offloaded:
    """Tensors of one layer and pass: packed, sent off together, fetched, and unpacked. A storage travels once."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory, self.storages = memory, dict[int, Any]()
        self.buffer: torch.Tensor | None = None

    def __del__(self) -> None:
        self._give_back()  # of a graph that is dropped before its backward pass

    def _give_back(self) -> None:
        # The next copy into it, or out of it, comes after this one's: there is one stream.
        if self.buffer is not None:
            self.memory.free.append(self.buffer)
        self.buffer = None

    def pack(self, x: Any) -> Any:
        """A ticket for a large tensor, which nothing may change from now on; anything else as it is."""
        if not isinstance(x, torch.Tensor) or x.nbytes < LEAST:
            return x
        storage = x.untyped_storage()
        self.storages[storage.data_ptr()] = storage
        return Ticket(storage.data_ptr(), x.dtype, (x.storage_offset(), x.size(), x.stride()))

    def send(self) -> None:
        """Copies what was packed, and forgets it when the next layer's is sent."""
        sizes = {address: storage.nbytes() for address, storage in self.storages.items()}
        self.buffer, storages = self.memory.take(sum(sizes.values())), self.storages
        parts = torch.split(self.buffer[: sum(sizes.values())], list(sizes.values()))
        self.memory.settle()
        with self.memory.beside():
            for part, storage in zip(parts, storages.values(), strict=True):
                part.copy_(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage), non_blocking=True)
        self.memory.sent, self.storages = (self.memory.mark(), storages), dict(zip(sizes, parts, strict=True))

    def fetch(self) -> None:
        """Copies it back, what was packed last first: with the first of all everything is there."""
        self.memory.settle()
        found = {at: torch.empty_like(part, device=self.memory.device) for at, part in reversed(self.storages.items())}
        with self.memory.beside():
            for address, whole in found.items():
                whole.copy_(self.storages[address], non_blocking=True)
                self.storages[address] = whole.untyped_storage(), self.memory.mark()
        self._give_back()

    def unpack(self, ticket: Any) -> Any:
        """The tensor again, of the same sizes and strides."""
        if not isinstance(ticket, Ticket):
            return ticket
        storage, mark = self.storages[ticket.address]
        wait_for(mark)
        return torch.empty(0, dtype=ticket.dtype, device=self.memory.device).set_(storage, *ticket.place)
