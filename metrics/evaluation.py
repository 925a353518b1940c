"""Several metrics over the same texts, which are normalised, tokenised and counted once, some at a time."""

import os
import signal
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from multiprocessing import parent_process
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from bnbench.metrics.core import FloatArray, Metric, Progress, Result, Texts, statistics
from bnbench.metrics.exceptions import BnbenchError, InputError
from bnbench.metrics.registry import default_metrics, distinct, get_metric
from bnbench.metrics.significance import BLOCKS


class Results(dict[str, Result]):
    """Results by the metric's name; capitals do not matter when one is asked for."""

    def __getitem__(self, name: str) -> Result:
        return super().__getitem__({own.casefold(): own for own in self}.get(name.casefold(), name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.casefold() in map(str.casefold, self)

    def get(self, name: str, default: Any = None) -> Any:
        """The result of that name, or the default."""
        return self[name] if name in self else default  # noqa: SIM401  # it is what `get` is made of


def evaluate_pairs(
    predictions: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]] | None = None,
    metrics: Sequence[str | Metric] | None = None, *, messages: Sequence[str] | None = None,
    likelihoods: npt.ArrayLike | None = None, cut: Sequence[bool] | None = None,
    clusters: Sequence[Hashable] | None = None, resamples: int = 10_000, seed: int = 42, progress: Progress = None,
) -> Results:  # fmt: skip
    """Score n predictions with several metrics, by default all that what is given allows; results by the metric's name.

    `metrics` are names (as `get_metric` takes them) or `Metric`s. `progress` is called with the number of replies done
    since its last call. Raises `InputError` on unequal lengths, no predictions, or something a metric needs and lacks.
    """
    texts = Texts.of(predictions, references, messages, likelihoods, cut)
    clusters = texts.clusters(clusters)
    if metrics is None:
        given = ("references", "messages", "likelihoods")
        metrics = default_metrics(frozenset(name for name in given if getattr(texts, name) is not None))
    chosen = _named(metrics)
    scored = zip(chosen, statistics(texts, chosen, progress), strict=True)
    return Results({m.name: Result(m, table, resamples, seed, clusters=clusters) for m, table in scored})


def evaluate_stream(
    stream: Iterable[Texts], metrics: Sequence[str | Metric], *, workers: int = 1, resamples: int = 10_000,
    seed: int = 42, progress: Progress = None,
) -> Results:  # fmt: skip
    """Score more texts than fit in memory: `stream` gives them some at a time, in order.

    The results equal those of `evaluate_pairs` on all at once, intervals included; only `per_item` is not kept above
    10,000 replies. With `workers` > 1 that many processes work beside this one, started by spawning: a script needs the
    usual `if __name__ == "__main__":`. Raises as `evaluate_pairs` does, and `BnbenchError` where a process is killed.
    """
    chosen = _named(metrics)
    sums, n = [np.zeros((BLOCKS, len(metric.columns))) for metric in chosen], 0
    for tables in _tables((piece for texts in stream for piece in texts.parts()), chosen, workers):
        rows = np.arange(n, n + len(tables[0])) % BLOCKS
        for total, table in zip(sums, tables, strict=True):
            total[rows] += table
        n += len(rows)
        if progress is not None:
            progress(len(rows))
    if not n:
        raise InputError("there is no reply to score")
    scored = zip(chosen, sums, strict=True)
    return Results({m.name: Result(m, total[:n], resamples, seed, items=n) for m, total in scored})


def _tables(pieces: Iterable[Texts], metrics: list[Metric], workers: int) -> Iterator[list[FloatArray]]:
    """The tables of each piece, in order; a few pieces a worker are under way at once, whatever their number."""
    if workers < 2:
        yield from (statistics(piece, metrics) for piece in pieces)
        return
    from concurrent.futures.process import BrokenProcessPool

    with processes(workers) as pool:
        waiting: deque[Any] = deque()
        try:
            for piece in pieces:
                waiting.append(pool.submit(statistics, piece, metrics))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            why = "it was killed, most likely for want of memory (use fewer workers), or could not import a metric"
            raise BnbenchError(f"a process that scored died: {why}") from error
        finally:
            pool.shutdown(cancel_futures=True)


def processes(workers: int) -> Executor:
    """So many processes beside this one, started by spawning when there is work; they end with this one."""
    # Imported here, since one process is the rule and these take a while.
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Read when a process loads numpy: four of them with 16 threads each on 16 cores took 35 times as long as with one.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)


def _begin_worker() -> None:
    """Ctrl-C is the parent's to handle, whose pool ends its workers; one that is killed cannot, so they watch it."""

    def watch() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=watch, daemon=True).start()


def _named(metrics: Sequence[str | Metric]) -> list[Metric]:
    if isinstance(metrics, str):
        raise InputError(f"metrics is one string; give a list: [{metrics!r}]")
    return distinct(get_metric(metric) if isinstance(metric, str) else metric for metric in metrics)
