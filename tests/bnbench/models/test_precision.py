from __future__ import annotations

import pytest

from bnbench.errors import UsageError
from bnbench.models.loading import Device, Precision, choose_precision

GIB = 2**30
T4 = Device("cuda", "Tesla T4", (7, 5), 15 * GIB)
H100 = Device("cuda", "NVIDIA H100", (9, 0), 80 * GIB)
CPU = Device("cpu")
SMALL = 1_000_000_000
LLAMA_8B = 8_030_261_248


def test_dtype_by_card_with_its_reason() -> None:
    assert choose_precision(T4, SMALL).dtype_name == "float16"
    assert "7.5" in choose_precision(T4, SMALL).reason
    assert choose_precision(H100, SMALL).dtype_name == "bfloat16"
    assert "9.0" in choose_precision(H100, SMALL).reason
    assert choose_precision(CPU, SMALL) == Precision("float32", "none", choose_precision(CPU, 1).reason)
    assert choose_precision(Device("mps"), SMALL).dtype_name == "float16"


def test_bfloat16_starts_at_8_0() -> None:
    assert choose_precision(Device("cuda", "", (8, 0), GIB), 1).dtype_name == "bfloat16"


def test_four_bits_where_the_card_is_too_small_and_the_reason_says_so() -> None:
    chosen = choose_precision(T4, LLAMA_8B)
    assert (chosen.dtype_name, chosen.quantisation) == ("float16", "nf4")
    assert "15.0 GiB of float16 weights" in chosen.reason and "card's 15.0 GiB" in chosen.reason
    assert choose_precision(H100, LLAMA_8B).quantisation == "none"
    assert choose_precision(CPU, 100 * LLAMA_8B).quantisation == "none"


def test_the_user_decides_about_four_bits() -> None:
    assert choose_precision(T4, LLAMA_8B, False).quantisation == "none"
    asked = choose_precision(H100, SMALL, True)
    assert asked.quantisation == "nf4" and "asked for" in asked.reason


def test_unknown_and_absent_devices() -> None:
    with pytest.raises(UsageError, match="--device toaster: there is no such device; use cpu, cuda"):
        Device.of("toaster")
    with pytest.raises(UsageError, match=r"--device cuda:99.*CUDA cards"):
        Device.of("cuda:99")


def test_auto_is_a_device_that_exists() -> None:
    assert Device.of("auto").type in ("cpu", "cuda")
