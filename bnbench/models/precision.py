"""The arithmetic of a run, chosen once, with its reason as text that goes into the run's record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
        return device if isinstance(device, Device) else _ask(device)


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
    dtype, why = _dtype(card)
    needs = n_parameters * (4 if dtype == "float32" else 2)
    if quantise is not None:
        return Precision(
            dtype, "nf4" if quantise else "none", why + ("; NF4 weights were asked for" if quantise else "")
        )
    if card.type == "cuda" and card.memory is not None and needs > card.memory * (1 - ROOM):
        size = (
            f"{needs / 2**30:.1f} GiB of {dtype} weights leave too little of the card's {card.memory / 2**30:.1f} GiB"
        )
        return Precision(dtype, "nf4", f"{why}; NF4 weights, because {size}")
    return Precision(dtype, "none", why)


def _dtype(card: Device) -> tuple[DType, str]:
    if card.type == "cpu":
        return "float32", "float32, because the CPU computes 16-bit numbers no faster"
    if card.type != "cuda" or card.capability is None:
        return "float16", f"float16, the fast 16-bit arithmetic of {card.type}"
    text = f"{card.name or 'the card'} has compute capability {card.capability[0]}.{card.capability[1]}"
    # Not torch.cuda.is_bf16_supported(): it is True where bfloat16 is only emulated.
    if card.capability >= BFLOAT16_SINCE:
        return "bfloat16", f"bfloat16, because {text} (8.0 and above compute in it)"
    return "float16", f"float16, because {text} and bfloat16 is emulated below 8.0"


def _ask(name: str) -> Device:
    from bnbench.errors import UsageError
    from bnbench.extras import require

    torch: Any = require("torch", extra="models")
    cuda = torch.cuda
    if name == "auto":
        name = "cuda" if cuda.is_available() else "cpu"
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
        return Device("cuda", seen.name, (seen.major, seen.minor), seen.total_memory)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"--device {name}: torch {torch.__version__} sees no Apple GPU; use cpu")
    return Device(chosen.type)
