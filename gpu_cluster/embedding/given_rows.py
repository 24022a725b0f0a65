"""Rows of a matrix that the user has given, or the job has written to a file: read in blocks, as often as needed.

This module must not know what the rows are of.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpu_cluster.backend import Array, Backend, IntArray, Rows
from gpu_cluster.backend.rows import SpanFunction, block_slices, gathered, mapped
from gpu_cluster.embedding.vectors import NumberedRows, PlainRows


class ChosenRows(Rows):
    """Some rows (n, d) of a matrix, in any order; it holds the number of each."""

    def __init__(self, matrix: NumberedRows, numbers: IntArray, backend: Backend) -> None:
        self.shape = (len(numbers), matrix.shape[1])
        self._matrix = matrix
        self._numbers = numbers
        self._backend = backend

    def take(self, rows: IntArray) -> Array:
        return self._backend.from_host(self._matrix.read(self._numbers[rows]))

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        for part in block_slices(self.shape[0]):
            yield part, self._backend.from_host(self._matrix.read(self._numbers[part]))

    def whole(self) -> Array:
        return gathered(self, self._backend)

    def map(self, function: SpanFunction) -> Iterator[tuple[slice, tuple[Array, ...]]]:
        return mapped(function, self.blocks(), self.shape[0], self._backend)


class _UnnamedRows(PlainRows):
    """A matrix in a file that is gone when this object is."""

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - it is read as long as this is
        super().__init__(self._file.fileno(), 0, shape, np.float32)


def room_in(folder: Path, shape: tuple[int, int]) -> PlainRows:
    """Return an empty matrix (n, d) float32 in a file without a name, on the disk of a folder, which may not exist yet.

    Whatever ends the process, nothing is left of it.
    """
    return _UnnamedRows(next(parent for parent in (folder, *folder.parents) if parent.is_dir()), shape)
