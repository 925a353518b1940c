"""How well scores agree with labels: AUC, and Kendall's tau-b with tie calibration.

Sources: Hanley & McNeil 1982 (AUC as a count over pairs); Kendall 1945 (tau-b); Deutsch, Foster & Freitag 2023, "Ties
Matter" (tie calibration: a metric that never ties is compared with labels that mostly do, so scores closer than a
threshold count as tied, the one that serves the metric best); Field & Welsh 2007 (resampling whole clusters).
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bnbench.metrics.audit.findings import Estimate
from bnbench.metrics.core import FloatArray, ratio

MOST_ROWS = 4_000  # of a labelled set: every pair of them is looked at, eight million here
MOST_GROUPS = 500  # clusters that are resampled; more share groups, at 1/sqrt(1000) = 3 % of an interval's width
_BLOCK = 256  # rows that are compared with all others at once

Groups = npt.NDArray[np.int64]
Counts = Callable[[Groups, Groups], list[FloatArray]]  # from the numbers of rows to m counts of each pair of them


@dataclass(frozen=True)
class Agreement:
    """A measure, and what it is in each of R resamples, (R,), in one order for all that is compared."""

    value: float
    resampled: FloatArray = field(repr=False)
    tie_threshold: float | None = None

    @property
    def estimate(self) -> Estimate:
        """The value with its percentile interval, 95 %."""
        low, high = np.quantile(self.resampled, [0.025, 0.975])
        return Estimate(self.value, float(low), float(high))

    def against(self, other: "Agreement") -> tuple["Agreement", float]:
        """This less another measure on the R resamples, and p of no difference: 2 (1 + those beyond 0) / (R + 1)."""
        lead = Agreement(self.value - other.value, self.resampled - other.resampled)
        rarer = int(min(np.count_nonzero(lead.resampled <= 0), np.count_nonzero(lead.resampled >= 0)))
        return lead, min(1.0, 2 * (1 + rarer) / (1 + len(lead.resampled)))


def group_numbers(clusters: Sequence[Hashable]) -> Groups:
    """Each row's group from 0: its cluster, in order of appearance, modulo `MOST_GROUPS`."""
    numbers = {name: number % MOST_GROUPS for number, name in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[name] for name in clusters], dtype=np.int64)


def auc(scores: FloatArray, positive: npt.NDArray[np.bool_], groups: Groups, weights: FloatArray) -> Agreement:
    """The chance that a positive row scores above another one, half a chance where they tie; 0.5 without such pairs.

    `weights` (R, c) says how often each resample draws each of the c groups.
    """

    def counts(a: Groups, b: Groups) -> list[FloatArray]:
        pairs = np.asarray(positive[a] & ~positive[b], dtype=np.float64)
        return [pairs * (np.sign(scores[a] - scores[b]) + 1) / 2, pairs]

    won, pairs = _sums(groups, weights, counts)
    share = np.where(pairs > 0, ratio(won, pairs), 0.5)
    return Agreement(float(share[0]), share[1:])


def kendall(
    scores: FloatArray, labels: FloatArray, groups: Groups, weights: FloatArray, threshold: float | None = None
) -> Agreement:
    """tau-b, where scores no further apart than `threshold` are tied (None: `tie_threshold`); `weights` as in `auc`."""
    tied = tie_threshold(scores, labels) if threshold is None else threshold

    def counts(a: Groups, b: Groups) -> list[FloatArray]:
        gaps, truth = scores[a] - scores[b], np.sign(labels[a] - labels[b])
        order = np.sign(gaps) * (np.abs(gaps) > tied)
        return [order * truth, np.abs(order), np.abs(truth)]

    agreeing, in_scores, in_labels = _sums(groups, weights, counts)
    tau = ratio(agreeing, np.sqrt(in_scores * in_labels))
    return Agreement(float(tau[0]), tau[1:], tied)


def tie_threshold(scores: FloatArray, labels: FloatArray) -> float:
    """The difference up to which scores are to count as tied so that tau-b is largest; the smallest such, 0 or more."""
    first, second = np.triu_indices(len(scores), 1)
    gaps = scores[first] - scores[second]
    # A pair that ties whatever the threshold is put before the others, so that 0 is among the thresholds.
    agreeing = np.append(0.0, np.sign(gaps) * np.sign(labels[first] - labels[second]))
    sizes = np.append(0.0, np.abs(gaps))
    # With the pairs sorted by the gap of their scores, a threshold at pair i leaves the later ones untied: what agrees
    # among them is a sum that only shrinks, so all thresholds are tried at once.
    order = np.argsort(sizes, kind="stable")
    sizes, left = sizes[order], agreeing.sum() - np.cumsum(agreeing[order])
    last = np.append(sizes[1:] > sizes[:-1], True)  # pairs of one size tie together
    return float(sizes[last][np.argmax(ratio(left, np.sqrt(np.arange(len(sizes) - 1, -1, -1)))[last])])


def _sums(groups: Groups, weights: FloatArray, counts: Counts) -> list[FloatArray]:
    """Each of m counts summed over all pairs of rows, (1 + R,): as they stand, and under each of R resamples."""
    # Summed over the pairs between two clusters, a count is a quadratic form in the number of times that each is drawn:
    # a bootstrap over whole clusters is a few small matrix products and never sees the pairs again.
    member = np.eye(int(groups.max()) + 1)[groups]
    rows, forms = np.arange(len(groups)), np.zeros((1, 1, 1))  # forms: (m, c, c), the sums for each pair of groups
    for start in range(0, len(rows), _BLOCK):  # all pairs at once would be n x n numbers for each count
        block = rows[start : start + _BLOCK]
        forms = forms + np.stack([member[block].T @ (each @ member) for each in counts(block[:, None], rows[None, :])])
    drawn = np.vstack([np.ones(member.shape[1]), weights])
    return [((drawn @ form) * drawn).sum(axis=1) for form in forms]
