"""Matrices that are read in blocks of rows: held on the device, held on the host, or any kind that can be read again.

Every kind gives the same blocks, so what is computed from them does not depend on the kind. This module must not know
what the rows are, or where another kind keeps them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from gpu_cluster.backend.base import Array, Backend, HostArray, IntArray

# Rows in a block. A product of two blocks in float32 adds up this many terms, and there is one sum in float64 for each
# block. With 1,024 columns a block of twice this size does not fit the cache any more, and scaling it takes twice as
# long.
BLOCK_ROWS = 2_048
# Rows in a span, which is a whole number of blocks: what a function that is mapped over a matrix gets at a time. Sums
# over the blocks of a span are added up first, and then those of the spans, wherever a span is computed.
SPAN_ROWS = 32 * BLOCK_ROWS
# What a kind that keeps the rows elsewhere reads at a time, in bytes; a matrix up to this size is held by every device.
WINDOW_BYTES = 1 << 27


# Takes the blocks (b, d) of one span, in their order, and the device that they are on; returns arrays of that device.
# It may run in another process, and is then pickled.
SpanFunction: TypeAlias = Callable[[Iterator[Array], Backend], tuple[Array, ...]]


class Rows(ABC):
    """A matrix (n, d) float32 whose rows are read in blocks, in their order, as often as needed.

    Attributes
    ----------
    shape : (n, d)
    """

    shape: tuple[int, int]

    def __repr__(self) -> str:
        return f"<float32 rows of shape {self.shape}>"

    @abstractmethod
    def take(self, rows: IntArray) -> Array:
        """Return some rows, given by their numbers (r,), host, as one array (r, d) on the device."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """Yield every block: which rows it is, and the rows (b, d) on the device; the caller must not change them."""

    @abstractmethod
    def whole(self) -> Array:
        """Return all rows as one array (n, d) on the device; the caller must not change it."""

    @abstractmethod
    def map(self, function: SpanFunction) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        """Yield for every span, in their order, which rows it is, and what the function returns for it."""


def mapped(
    function: SpanFunction, blocks: Iterator[tuple[slice, Array]], n: int, backend: Backend
) -> Iterator[tuple[slice, tuple[Array, ...]]]:
    """Yield for every span of n rows what the function returns for it, from the blocks of all rows in their order."""
    for span in span_slices(n):
        n_blocks = -(-(span.stop - span.start) // BLOCK_ROWS)
        yield span, function((block for _rows, block in islice(blocks, n_blocks)), backend)


class HeldRows(Rows):
    """A matrix (n, d) that is held on the device."""

    def __init__(self, x: Array, backend: Backend) -> None:
        self.shape = (x.shape[0], x.shape[1])
        self._x = x
        self._backend = backend

    def take(self, rows: IntArray) -> Array:
        return take(self._x, rows, self._backend)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        for rows in block_slices(self.shape[0]):
            yield rows, self._x[rows, :]

    def whole(self) -> Array:
        return self._x

    def map(self, function: SpanFunction) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        return mapped(function, self.blocks(), self.shape[0], self._backend)


class HostRows(Rows):
    """A matrix (n, m) float32 in the memory of the host, for which the device has no room; see `Backend.empty_space`.

    Slices of rows are read and written as those of an array of the device: what is read is copied to the device, and
    what is written is copied to the host. So everything that works in blocks of rows takes it like an array.

    Attributes
    ----------
    on_host : (n, m) float32, NumPy
    dtype : the device's float32
    """

    def __init__(self, shape: tuple[int, int], backend: Backend) -> None:
        self.shape = shape
        self.on_host: HostArray = np.empty(shape, np.float32)
        self.dtype: Any = backend.xp.float32
        self._backend = backend

    def __getitem__(self, part: tuple[slice, slice]) -> Array:
        return self._backend.from_host(self.on_host[part])

    def __setitem__(self, part: tuple[slice, slice], values: Array) -> None:
        self.on_host[part] = self._backend.to_host(values)

    def take(self, rows: IntArray) -> Array:
        return self._backend.from_host(self.on_host[rows])

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        for rows in block_slices(self.shape[0]):
            yield rows, self[rows, :]

    def whole(self) -> Array:
        return self[:, :]

    def map(self, function: SpanFunction) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        return mapped(function, self.blocks(), self.shape[0], self._backend)


class JoinedRows(Rows):
    """Several matrices (n, d_i) side by side, each row scaled to unit length and then by the weight of its matrix.

    They are joined a block at a time, and only `whole` makes a second matrix. A row of zeros stays one.
    """

    def __init__(self, parts: Sequence[Rows], shares: Sequence[float], backend: Backend) -> None:
        self.shape = (parts[0].shape[0], sum(part.shape[1] for part in parts))
        self._parts = tuple(parts)
        self._shares = tuple(shares)
        self._backend = backend

    def take(self, rows: IntArray) -> Array:
        return self._joined([part.take(rows) for part in self._parts])

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        for of_parts in zip(*(part.blocks() for part in self._parts), strict=True):
            yield of_parts[0][0], self._joined([block for _rows, block in of_parts])

    def whole(self) -> Array:
        return gathered(self, self._backend)

    def map(self, function: SpanFunction) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        return mapped(function, self.blocks(), self.shape[0], self._backend)

    def _joined(self, of_parts: Sequence[Array]) -> Array:
        xp = self._backend.xp
        scaled = []
        for x, share in zip(of_parts, self._shares, strict=True):
            lengths = xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))
            scaled.append(x * (share / xp.where(lengths > 0, lengths, xp.ones_like(lengths))))
        return xp.concat(scaled, axis=1)


def take(x: Array | Rows, rows: IntArray, backend: Backend) -> Array:
    """Return some rows of x, an array of the device or `Rows`, given by their numbers (r,), host, as an array."""
    if isinstance(x, Rows):
        return x.take(rows)
    return backend.xp.take(x, backend.from_host(rows), axis=0)


def gathered(x: Rows, backend: Backend) -> Array:
    """Return all rows of a matrix as one array (n, d) on the device, read block by block."""
    found = backend.empty(x.shape)
    for rows, block in x.blocks():
        found[rows, :] = block
    return found


def block_slices(n: int) -> Iterator[slice]:
    """Yield the slices of n rows that are the blocks of every kind of `Rows`."""
    for first in range(0, n, BLOCK_ROWS):
        yield slice(first, min(first + BLOCK_ROWS, n))


def span_slices(n: int) -> Iterator[slice]:
    """Yield the slices of n rows that are the spans of every kind of `Rows`."""
    for first in range(0, n, SPAN_ROWS):
        yield slice(first, min(first + SPAN_ROWS, n))


def filled(rows: Iterator[tuple[slice, Array]], shape: tuple[int, int], backend: Backend) -> Array:
    """Return the blocks as one space of this shape (see `Backend.empty_space`), without a second copy of it."""
    x = backend.empty_space(shape)
    for part, block in rows:
        x[part, :] = block
    return x
