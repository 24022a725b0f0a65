"""Matrices that are read in blocks of rows: one that is held on the device, or any other kind that can be read again.

Every kind gives the same blocks, so what is computed from them does not depend on the kind. This module must not know
what the rows are, or where another kind keeps them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from gpu_cluster.backend.base import Array, Backend, IntArray

# Rows in a block. A product of two blocks in float32 adds up this many terms, and there is one sum in float64 for each
# block. With 1,024 columns a block of twice this size does not fit the cache any more, and scaling it takes twice as
# long.
BLOCK_ROWS = 2_048
# What a kind that keeps the rows elsewhere reads at a time, in bytes; a matrix up to this size is held by every device.
WINDOW_BYTES = 1 << 27


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


class HeldRows(Rows):
    """A matrix (n, d) that is held on the device."""

    def __init__(self, x: Array, backend: Backend) -> None:
        self.shape = (x.shape[0], x.shape[1])
        self._x = x
        self._backend = backend

    def take(self, rows: IntArray) -> Array:
        return self._backend.xp.take(self._x, self._backend.from_host(rows), axis=0)

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        for rows in block_slices(self.shape[0]):
            yield rows, self._x[rows, :]

    def whole(self) -> Array:
        return self._x


def block_slices(n: int) -> Iterator[slice]:
    """Yield the slices of n rows that are the blocks of every kind of `Rows`."""
    for first in range(0, n, BLOCK_ROWS):
        yield slice(first, min(first + BLOCK_ROWS, n))


def filled(rows: Iterator[tuple[slice, Array]], shape: tuple[int, int], backend: Backend) -> Array:
    """Return the blocks as one array of this shape on the device, without a second copy of it."""
    x = backend.empty(shape)
    for part, block in rows:
        x[part, :] = block
    return x
