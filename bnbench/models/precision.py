"""The arithmetic of a run, chosen once, with its reason as text that goes into the run's record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bnbench.errors import UsageError, require

DType = Literal["float32", "float16", "bfloat16"]
Quantisation = Literal["none", "nf4"]

BFLOAT16_SINCE = (8, 0)  # compute capability; older cards only emulate it, at the rate of float32
ROOM = 0.25  # share of the card kept for keys, values, logits and fragments


@dataclass(frozen=True)
class Device:
    """What decides about precision: `type` cuda, cpu or another; compute capability and memory in bytes of a card."""

    type: str
    name: str = ""
    capability: tuple[int, int] | None = None
    memory: int | None = None

    @classmethod
    def of(cls, device: str | Device) -> Device:
        """Asks torch about `cuda`, `cuda:1`, `mps` or `cpu`; `auto` is the first card there is, else the CPU.

        Raises:
            MissingExtraError: torch is not installed.
            UsageError: torch sees no such device.
        """
        if isinstance(device, Device):
            return device
        torch: Any = require("torch", extra="models")
        cuda = torch.cuda
        name = ("cuda" if cuda.is_available() else "cpu") if device == "auto" else device
        try:
            chosen = torch.device(name)
        except RuntimeError as error:
            raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
        if chosen.type == "cuda":
            if (chosen.index or 0) >= cuda.device_count():
                raise UsageError(
                    f"--device {name}: torch {torch.__version__} sees {cuda.device_count()} CUDA cards; use cpu"
                )
            seen = cuda.get_device_properties(chosen)
            return cls("cuda", seen.name, (seen.major, seen.minor), seen.total_memory)
        if chosen.type == "mps" and not torch.backends.mps.is_available():
            raise UsageError(f"--device {name}: torch {torch.__version__} sees no Apple GPU; use cpu")
        return cls(chosen.type)


@dataclass(frozen=True)
class Precision:
    """The dtype of weights and arithmetic, how the weights are stored (`nf4`: 4 bits), and why."""

    dtype_name: DType
    quantisation: Quantisation
    reason: str


def choose_precision(device: str | Device, n_parameters: int, quantise: bool | None = None) -> Precision:
    """The dtype that the device computes fast in, and 4-bit weights where asked for or where the card is too small.

    Args:
        device: a name that torch knows, or a `Device`.
        n_parameters: of the model, for its size.
        quantise: True or False decides about NF4; None takes it only where 16-bit weights do not fit on the card.
    """
    card = Device.of(device)
    dtype: DType = "float16"
    if card.type == "cpu":
        dtype, why = "float32", "float32, because the CPU computes 16-bit numbers no faster"
    elif card.type != "cuda" or card.capability is None:
        why = f"float16, the fast 16-bit arithmetic of {card.type}"
    else:
        why = f"{card.name or 'the card'} has compute capability {card.capability[0]}.{card.capability[1]}"
        # Not torch.cuda.is_bf16_supported(): it is True where bfloat16 is only emulated.
        if card.capability >= BFLOAT16_SINCE:
            dtype, why = "bfloat16", f"bfloat16, because {why} (8.0 and above compute in it)"
        else:
            why = f"float16, because {why} and bfloat16 is emulated below 8.0"
    if quantise is not None:
        asked = "; NF4 weights were asked for" if quantise else ""
        return Precision(dtype, "nf4" if quantise else "none", why + asked)
    needs = n_parameters * (4 if dtype == "float32" else 2)
    if card.type == "cuda" and card.memory is not None and needs > card.memory * (1 - ROOM):
        sizes = f"{needs / 2**30:.1f} GiB of {dtype} weights leave too little of the card's {card.memory / 2**30:.1f}"
        return Precision(dtype, "nf4", f"{why}; NF4 weights, because {sizes} GiB")
    return Precision(dtype, "none", why)
