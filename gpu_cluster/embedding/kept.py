"""Where the embeddings of a job are while it computes them, and when it has all of them: on the device, or in shards.

In this module, index i is the i-th distinct content, and a row is one of the result: a file whose embedding is asked
for. This module must not know the network, or what becomes of the embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, Backend, FloatArray, HeldRows, IntArray, Rows
from gpu_cluster.events import Observer
from gpu_cluster.executor import Executor
from gpu_cluster.store.embeddings import EmbeddingShards, FoundShard
from gpu_cluster.store.stored import StoredRows

# Rows that are moved at a time in a matrix.
_MOVED_ROWS = 1 << 14


class Kept(ABC):
    """The embeddings of the distinct contents of a job, which come from the store and from the network."""

    @abstractmethod
    def found(self, shard: FoundShard) -> None:
        """Take what a shard holds; `shard.at` are indices."""

    @abstractmethod
    def computed(self, indices: IntArray, x: Array) -> None:
        """Take embeddings (b, d) of some contents, on the device."""

    @abstractmethod
    def elsewhere(self, indices: IntArray, shard: Path, shards: EmbeddingShards) -> None:
        """Take the rows of a shard, in their order, which another process has written for some contents.

        Raises
        ------
        StoreError
            When it cannot be read here.
        """

    @abstractmethod
    def to_write(self, indices: IntArray) -> FloatArray:
        """Return computed embeddings (s, d), host, that were not written yet."""

    @abstractmethod
    def finite(self, indices: IntArray) -> npt.NDArray[np.bool_]:
        """Return for each of some computed embeddings (s,), host, that were not written yet, whether it is finite."""

    @abstractmethod
    def written(self, indices: IntArray, shard: Path | None) -> None:
        """Of all that was computed, these contents are the rows of a shard now; the others are of no use."""

    @abstractmethod
    def rows(self, content_of: IntArray) -> Rows:
        """Return the result: for each of its rows (n,), the embedding of the content `content_of`."""


class OnDevice(Kept):
    """The embeddings are in one matrix on the device, which has a row for each file."""

    def __init__(self, content_of: IntArray, d: int, backend: Backend) -> None:
        self._content_of = content_of
        self._backend = backend
        self._x = backend.empty((len(content_of), d))
        # The row of the first file with each content.
        self._at = np.unique(content_of, return_index=True)[1]

    def found(self, shard: FoundShard) -> None:
        self.computed(shard.at, self._backend.from_host(shard.x))

    def computed(self, indices: IntArray, x: Array) -> None:
        self._x[self._backend.from_host(self._at[indices])] = x

    def elsewhere(self, indices: IntArray, shard: Path, shards: EmbeddingShards) -> None:
        self.computed(indices, self._backend.from_host(shards.written(shard)))

    def to_write(self, indices: IntArray) -> FloatArray:
        return self._backend.to_host(self._take(self._at[indices]))

    def finite(self, indices: IntArray) -> npt.NDArray[np.bool_]:
        xp = self._backend.xp
        return self._backend.to_host(xp.all(xp.isfinite(self._take(self._at[indices])), axis=1))

    def written(self, indices: IntArray, shard: Path | None) -> None:
        pass

    def rows(self, content_of: IntArray) -> Rows:
        copies = np.setdiff1d(np.arange(len(self._content_of)), self._at)
        self._move(self._at[self._content_of[copies]], copies)
        if len(content_of) == len(self._content_of):
            return HeldRows(self._x, self._backend)
        # Each row moves up or stays, and its new place is not below it: nothing is overwritten before it is read.
        kept = np.flatnonzero(np.isin(self._content_of, content_of))
        self._move(kept, np.arange(len(kept)))
        return HeldRows(self._x[: len(kept), :], self._backend)

    def _move(self, sources: IntArray, targets: IntArray) -> None:
        """Write some rows over others, in blocks, so that there is no second matrix."""
        for first in range(0, len(targets), _MOVED_ROWS):
            part = slice(first, first + _MOVED_ROWS)
            self._x[self._backend.from_host(targets[part])] = self._take(sources[part])

    def _take(self, rows: IntArray) -> Array:
        return self._backend.xp.take(self._x, self._backend.from_host(rows), axis=0)


class InShards(Kept):
    """The embeddings are in shards; what is held is where each of them is, and what was not written yet."""

    def __init__(
        self, n_contents: int, d: int, backend: Backend, executor: Executor | None, observer: Observer
    ) -> None:
        """Set what the shards hold, and who will read them: an executor, or this process if there is none."""
        self._backend = backend
        self._executor = executor
        self._observer = observer
        self._d = d
        self._shards: list[Path] = []
        self._shard_of = np.full(n_contents, -1, np.int32)
        self._row_of = np.zeros(n_contents, np.int32)
        self._unwritten: dict[int, FloatArray] = {}

    def found(self, shard: FoundShard) -> None:
        self._add(shard.path, shard.at, shard.rows)

    def computed(self, indices: IntArray, x: Array) -> None:
        on_host = self._backend.to_host(x)
        # Copies, because the engine may use this memory again.
        self._unwritten |= {int(index): row.copy() for index, row in zip(indices, on_host, strict=True)}

    def elsewhere(self, indices: IntArray, shard: Path, shards: EmbeddingShards) -> None:
        self._add(shard, indices, np.arange(len(indices)))

    def to_write(self, indices: IntArray) -> FloatArray:
        return np.stack([self._unwritten[int(index)] for index in indices])

    def finite(self, indices: IntArray) -> npt.NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.to_write(indices)).all(axis=1))

    def written(self, indices: IntArray, shard: Path | None) -> None:
        self._unwritten.clear()
        if shard is not None:
            self._add(shard, indices, np.arange(len(indices)))

    def rows(self, content_of: IntArray) -> Rows:
        return StoredRows(
            self._shards,
            self._shard_of[content_of],
            self._row_of[content_of],
            self._d,
            self._backend,
            executor=self._executor,
            observer=self._observer,
        )

    def _add(self, shard: Path, indices: IntArray, rows: IntArray) -> None:
        self._shard_of[indices] = len(self._shards)
        self._row_of[indices] = rows
        self._shards.append(shard)
