"""What a preference training did to pairs it never saw: by how much the chosen reply gained on the rejected one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnbench.metrics.significance import paired_tests

NOTHING_HELD_OUT = "no pairs were held out, so what the chosen replies gained on other messages is not known"


@dataclass(frozen=True)
class Gain:
    """What held-out pairs gained, mean over pairs, whole messages resampled.

    `margin` is DPO's implicit reward margin, beta times what log p(chosen) − log p(rejected) is above the base's, so 0
    before the training; with its 95 % bootstrap interval and paired randomisation p. `chosen` and `rejected` are the
    changes of log p of either reply in nats, `won` the share of pairs whose margin is above 0.
    """

    pairs: int
    messages: int
    beta: float
    margin: float
    low: float
    high: float
    p_value: float
    won: float
    chosen: float
    rejected: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Gain(**them)` gives it back."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.pairs} held-out pairs of {self.messages} messages: reward margin 0 → {self.margin:+.3f} "
            f"(95 % {self.low:+.3f} to {self.high:+.3f}, p = {self.p_value:.4f}); the chosen reply gained on the "
            f"rejected one in {100 * self.won:.0f} % (log p {self.chosen:+.1f} and {self.rejected:+.1f} nats)"
        )


def measure_gain(
    base: npt.NDArray[np.float64], adapter: npt.NDArray[np.float64], messages: Sequence[Hashable], beta: float
) -> Gain:
    """From log p(chosen), log p(rejected) in nats, shape (n, 2), of base and adapter; `messages` names each pair's.

    Raises InputError for no pairs.
    """
    after, before = (np.stack([beta * (p[:, 0] - p[:, 1]), np.ones(len(p))], 1) for p in (adapter, base))
    [[found]] = paired_tests([(after, before, _mean)], clusters=messages)
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
