"""What a preference training did to pairs it never saw: by how much the chosen reply gained on the rejected one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bnbench.finetune.tuners.base import Gain
from bnbench.metrics.significance import paired_test

NOTHING_HELD_OUT = "no pairs were held out, so what the chosen replies gained on other messages is not known"


def measure_gain(
    base: npt.NDArray[np.float64], adapter: npt.NDArray[np.float64], messages: Sequence[Hashable], beta: float
) -> Gain:
    """From log p(chosen), log p(rejected) in nats, shape (n, 2), of base and adapter; `messages` names each pair's.

    Raises InputError for no pairs.
    """
    after, before = (np.stack([beta * (p[:, 0] - p[:, 1]), np.ones(len(p))], 1) for p in (adapter, base))
    found = paired_test(after, before, _mean, clusters=messages)[0]
    chosen, rejected = (adapter - base).mean(0)
    return Gain(
        pairs=len(base),
        messages=len(set(messages)),
        beta=beta,
        margin=found.difference,
        low=found.interval.low,
        high=found.interval.high,
        p_value=found.p_value,
        won=float((after[:, 0] > before[:, 0]).mean()),
        chosen=float(chosen),
        rejected=float(rejected),
    )


def gain_from(record: Mapping[str, Any]) -> Gain | None:
    """The gain in a training's record, None where nothing was held out."""
    found = record.get("gain")
    return Gain(**found) if found else None


def _mean(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return sums[..., :1] / sums[..., 1:]
