"""Reads the embeddings of a job from its shards, in blocks of rows, as often as needed.

This module must not know what the rows are of, or what is computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpu_cluster.backend import Array, Backend, FloatArray, IntArray, Rows
from gpu_cluster.backend.base import HostArray
from gpu_cluster.backend.rows import (
    BLOCK_ROWS,
    WINDOW_BYTES,
    JoinedRows,
    SpanFunction,
    block_slices,
    gathered,
    mapped,
    span_slices,
)
from gpu_cluster.errors import JobError, StoreError
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.executor import Executor, Lost, Reporter, Serial, Stage
from gpu_cluster.files import printable
from gpu_cluster.store.embeddings import embeddings_of
from gpu_cluster.store.shards import opened

# Results of spans that are held while an earlier one is missing: a covariance of 1,024 columns has 8 MB.
_MOST_AHEAD = 64


class StoredRows(Rows):
    """Embeddings (n, d) that lie in shards; it holds where each of them lies, and reads some blocks ahead.

    The job verified the shards when it found the rows in them, or wrote them; they are not verified again.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        shard_of: IntArray,
        row_of: IntArray,
        d: int,
        backend: Backend,
        *,
        executor: Executor | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Set the shards, for each row (n,), host, the number of its shard and its row in it, and who maps over them.

        The observer is told of the progress of the stage `reduce` if the executor has other processes.
        """
        self.shape = (len(shard_of), d)
        self._shards = shards
        self._shard_of = shard_of
        self._row_of = row_of
        self._backend = backend
        self._executor = executor or Serial()
        self._observer = observer or Observer()

    def take(self, rows: IntArray) -> Array:
        return self._backend.from_host(self._read(rows))

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        n, d = self.shape
        # Several blocks at a time: if rows that follow each other lie in many shards, each of these is read less often.
        window = max(1, WINDOW_BYTES // (4 * d * BLOCK_ROWS)) * BLOCK_ROWS
        pool = ThreadPoolExecutor(1)
        try:
            ahead = pool.submit(self._read, np.arange(min(window, n)))
            for first in range(0, n, window):
                x = ahead.result()
                ahead = pool.submit(self._read, np.arange(first + window, min(first + 2 * window, n)))
                for part in block_slices(len(x)):
                    yield slice(first + part.start, first + part.stop), self._backend.from_host(x[part])
                del x
        finally:
            pool.shutdown(cancel_futures=True)

    def whole(self) -> Array:
        return gathered(self, self._backend)

    def map(self, function: SpanFunction) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        if not self._executor.is_remote:
            return mapped(function, self.blocks(), self.shape[0], self._backend)
        return _mapped_elsewhere(
            function, self.part, self.shape[0], self._backend, executor=self._executor, observer=self._observer
        )

    def part(self, span: slice) -> StoredRows:
        """Return the rows of a span as rows of their own, which know only the shards that they need."""
        numbers, shard_of = np.unique(self._shard_of[span], return_inverse=True)
        shards = [self._shards[number] for number in numbers]
        return StoredRows(shards, shard_of.astype(np.int32), self._row_of[span], self.shape[1], self._backend)

    def _read(self, rows: IntArray) -> FloatArray:
        x = np.empty((len(rows), self.shape[1]), np.float32)
        if not len(rows):
            return x
        shard_of, row_of = self._shard_of[rows], self._row_of[rows]
        order = np.argsort(shard_of, kind="stable")
        numbers, first = np.unique(shard_of[order], return_index=True)
        for number, at in zip(numbers, np.split(order, first[1:]), strict=True):
            shard = self._read_shard(self._shards[number])
            if at[-1] - at[0] == len(at) - 1:
                # Without a copy in between: `mode` keeps NumPy from making one.
                np.take(shard, row_of[at], axis=0, out=x[at[0] : at[-1] + 1], mode="clip")
            else:
                x[at] = shard[row_of[at]]
        return x

    def _read_shard(self, shard: Path) -> FloatArray:
        import pyarrow as pa

        try:
            with shard.open("rb") as stream:
                table = opened(stream).read(["embedding"], use_threads=False)
            return embeddings_of(table, self.shape[1])
        except FileNotFoundError as error:
            raise StoreError(
                f"cannot read {printable(str(shard))!r} again: it was removed. With --no-cache (no_cache=True), "
                "embeddings are removed when the job ends: to read them after a run, leave it out or give --cache "
                "FOLDER. If the job was still running, run the same command again, which computes only what is missing"
            ) from error
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise StoreError(
                f"cannot read {printable(str(shard))!r} again ({getattr(error, 'strerror', None) or error}): it was "
                "removed or changed while the job ran, or the disk failed; run the same command again, which computes "
                "only what is missing"
            ) from error


class JoinedStoredRows(JoinedRows):
    """Several `StoredRows` side by side, over which the executor of the first one maps; see `JoinedRows`."""

    def __init__(
        self,
        parts: Sequence[StoredRows],
        shares: Sequence[float],
        backend: Backend,
        *,
        executor: Executor | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(parts, shares, backend)
        self._stored = tuple(parts)
        self._executor = executor or Serial()
        self._observer = observer or Observer()

    def map(self, function: SpanFunction) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        if not self._executor.is_remote:
            return super().map(function)
        return _mapped_elsewhere(
            function, self.part, self.shape[0], self._backend, executor=self._executor, observer=self._observer
        )

    def part(self, span: slice) -> JoinedRows:
        """Return the rows of a span as rows of their own, which know only the shards that they need."""
        return JoinedRows([one.part(span) for one in self._stored], self._shares, self._backend)


def _mapped_elsewhere(
    function: SpanFunction,
    part: Callable[[slice], Rows],
    n: int,
    backend: Backend,
    *,
    executor: Executor,
    observer: Observer,
) -> Iterator[tuple[slice, tuple[Array, ...]]]:
    """Yield for every span of n rows what the function returns for it, which an executor computes from its `part`."""
    spans = list(span_slices(n))
    tasks = (_SpanTask(part(span), backend, function) for span in spans)
    done = 0
    stage = Stage("reduce", observer, n, most_ahead=_MOST_AHEAD)
    for span, found in zip(spans, executor.map_in_order(_of_span, tasks, stage), strict=False):
        if isinstance(found, Lost):
            raise JobError(f"embeddings cannot be read by workers: {found.reason}; run the same command again")
        yield span, tuple(backend.from_host(one) for one in found)
        done = span.stop
    if done < n:
        raise interrupted()


@dataclass(frozen=True)
class _SpanTask:
    """The rows of a span, and what is done with them."""

    rows: Rows
    backend: Backend
    function: SpanFunction


def _of_span(task: _SpanTask, reporter: Reporter) -> tuple[HostArray, ...]:
    """Return, on the host, what the function of a task returns; this runs in a worker."""
    task.backend.claim_device(WINDOW_BYTES)
    found = task.function((block for _rows, block in task.rows.blocks()), task.backend)
    reporter.progress(task.rows.shape[0])
    return tuple(task.backend.to_host(one) for one in found)
