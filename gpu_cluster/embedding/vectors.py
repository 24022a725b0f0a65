"""Vectors that were computed elsewhere, and the names of their pictures: an array, or a file in NumPy's format.

Everything that such a file declares is checked before memory is taken for it, and nothing is unpickled. It is read in
blocks, and never mapped into memory: if it became shorter meanwhile, a process that has it mapped would be ended. This
module must not know pictures or what the vectors are used for.
"""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import FloatArray, IntArray
from gpu_cluster.columns import Texts
from gpu_cluster.errors import ConfigError, DataError, JobError
from gpu_cluster.events import Observer, interrupted
from gpu_cluster.files import printable

# The header of an array of numbers takes 128 bytes; this is the largest that version 1.0 of the format can have.
_MOST_HEADER_BYTES = 1 << 16
# Numbers in a vector: VGG16 without any pooling has 25,088.
MOST_FEATURES = 1 << 17
# What is read at a time.
WINDOW_BYTES = 1 << 25

_EXPECTED = "expected numbers of type float16, float32 or float64, in an array of n rows and d columns"


class NumberedRows(Protocol):
    """A matrix (n, d) of which rows can be read by their numbers."""

    shape: tuple[int, int]

    def read(self, rows: IntArray) -> FloatArray:
        """Return some rows (r, d) float32, host."""


class Vectors(ABC):
    """n vectors of d numbers each, with the names of their pictures.

    Attributes
    ----------
    path : the file; None for an array
    shown : what they are called in messages
    table : where their names are: relative names may start from its folder
    shape : (n, d)
    dtype : type of the numbers
    names : (n,) name of the picture of each row, no two the same
    plain : the rows by their numbers, where each can be read by itself; else None
    """

    path: Path | None = None
    shown: str
    table: Path
    shape: tuple[int, int]
    dtype: str
    names: Texts
    plain: NumberedRows | None = None

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """Yield all rows in their order: which they are, and their numbers (b, d) float32, host.

        Raises
        ------
        DataError
            When the file is damaged, or a row has another length.
        """

    @abstractmethod
    def sha256(self, observer: Observer) -> str:
        """Return the sha256 of the file, or of the bytes of the array.

        Raises
        ------
        InterruptedJobError
            When the observer asked to stop.
        """

    def check_unchanged(self) -> None:  # noqa: B027 - nobody else can write an array
        """Check that they are those that were checked before work started.

        Raises
        ------
        JobError
            When the file was written meanwhile.
        """


class VectorsInFile(Vectors):
    """Vectors in a file that stays open."""

    path: Path

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        self.path = self.table = path
        self.shown = f"--embeddings {printable(str(path))!r}"
        self._stream = stream
        self._status = os.fstat(stream.fileno())

    def sha256(self, observer: Observer) -> str:
        hashed, block = hashlib.sha256(), bytearray(1 << 20)
        self._stream.seek(0)
        while n := self._stream.readinto(block):
            hashed.update(memoryview(block)[:n])
            if observer.stopping():
                raise interrupted()
        return hashed.hexdigest()

    def check_unchanged(self) -> None:
        now = os.fstat(self._stream.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns):
            raise JobError(f"{self.shown} was changed while the job ran; run the same command again")


def window(d: int) -> int:
    """Return how many rows of d numbers are read at a time."""
    return max(1, WINDOW_BYTES // (8 * d))


def windows(vectors: Vectors) -> Iterator[slice]:
    """Yield the rows that are read at a time."""
    n, d = vectors.shape
    for first in range(0, n, window(d)):
        yield slice(first, min(first + window(d), n))


class PlainRows:
    """A matrix (n, d) that lies row after row in a file; rows are read and written by their numbers."""

    def __init__(self, descriptor: int, offset: int, shape: tuple[int, int], dtype: npt.DTypeLike) -> None:
        self.shape = shape
        self._descriptor = descriptor
        self._offset = offset
        self._dtype = np.dtype(dtype)

    def read(self, rows: IntArray) -> FloatArray:
        """Return some rows (r, d) float32, host.

        Raises
        ------
        JobError
            When the file cannot be read, or has become shorter.
        """
        x = np.empty((len(rows), self.shape[1]), self._dtype)
        for part, first in _runs(rows):
            self.read_into(x[part], first)
        return as_float32(x)

    def read_into(self, x: FloatArray, first: int) -> None:
        """Read rows that follow each other, from `first` on, into x (r, d), host, of the type that is in the file."""
        left = x.view(np.uint8).reshape(-1).data
        offset = self._offset + first * self._row_bytes
        while left:
            try:
                n = os.preadv(self._descriptor, [left], offset)
            except OSError as error:
                raise JobError(f"embeddings cannot be read again: {error.strerror}") from error
            if not n:
                raise JobError("embeddings cannot be read again: their file has become shorter while the job ran")
            left, offset = left[n:], offset + n

    def write(self, rows: IntArray, x: FloatArray) -> None:
        """Write some rows (r, d).

        Raises
        ------
        OSError
            When there is no room.
        """
        content = np.ascontiguousarray(x, self._dtype)
        for part, first in _runs(rows):
            left = content[part].view(np.uint8).reshape(-1).data
            offset = self._offset + first * self._row_bytes
            while left:
                n = os.pwrite(self._descriptor, left, offset)
                left, offset = left[n:], offset + n

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self._dtype.itemsize


def as_float32(x: FloatArray) -> FloatArray:
    """Return numbers as float32; what is too large for that becomes infinite, and so is not finite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


def _runs(rows: IntArray) -> Iterator[tuple[slice, int]]:
    """Yield the parts of row numbers in which each is one more than the one before, and the first number of each."""
    if len(rows):
        ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, last in zip([0, *ends], ends, strict=False):
            yield slice(first, last), int(rows[first])


def check_array(shape: tuple[int, ...], dtype: np.dtype, shown: str) -> tuple[int, int]:
    """Check the shape and the type of an array of vectors; return its shape (n, d).

    Raises
    ------
    DataError
        When they are others than those of n vectors of d floats.
    """
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise DataError(f"{shown}: {_EXPECTED}; found {dtype.name}; convert them with x.astype('float32')")
    if len(shape) != 2 or not all(type(size) is int and size >= 1 for size in shape) or shape[1] > MOST_FEATURES:
        raise DataError(
            f"{shown}: {_EXPECTED}, at least one of each and at most {MOST_FEATURES:,} columns; found the shape {shape}"
        )
    return shape[0], shape[1]


class ArrayVectors(Vectors):
    """An array in memory."""

    shown = "embeddings"
    # Relative names may start from the current folder.
    table = Path(shown)

    def __init__(self, given: Any, names: Texts) -> None:
        """Set whatever NumPy makes an array of.

        Raises
        ------
        ConfigError
            When it makes none of it.
        DataError
            When it is no array of floats (n, d).
        """
        try:
            self._x = np.asarray(given)
        # Such as a tensor on a card.
        except Exception as error:
            raise ConfigError(
                f"embeddings: {_EXPECTED}; NumPy makes none of {type(given).__name__}: {error}"
            ) from error
        self.shape = check_array(self._x.shape, self._x.dtype, self.shown)
        self.dtype, self.names, self.plain = self._x.dtype.name, names, self

    def read(self, rows: IntArray) -> FloatArray:
        """Return some rows (r, d) float32, host."""
        return as_float32(self._x[rows])

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        for rows in windows(self):
            yield rows, as_float32(self._x[rows])

    def sha256(self, observer: Observer) -> str:
        hashed = hashlib.sha256()
        for rows in windows(self):
            hashed.update(np.ascontiguousarray(self._x[rows]).view(np.uint8).data)
            if observer.stopping():
                raise interrupted()
        return hashed.hexdigest()


class NpyVectors(VectorsInFile):
    """An array in NumPy's format."""

    def __init__(self, path: Path, stream: io.BufferedReader, names: Texts) -> None:
        """Read and check the header.

        Raises
        ------
        DataError
            When it is no array of floats (n, d), or has another size than it states.
        """
        super().__init__(path, stream)
        self.names = names
        (n, d), self._is_fortran, dtype, offset = self._header()
        size, expected = self._status.st_size, offset + n * d * dtype.itemsize
        if size != expected:
            what = "cut short" if size < expected else "longer than it says"
            raise DataError(
                f"{self.shown} is {what}: its header states {n:,} x {d:,} numbers of {dtype.itemsize} "
                f"bytes, expected a file of {expected:,} bytes; found {size:,}"
            )
        self.shape, self.dtype = (n, d), dtype.newbyteorder("=").name
        self._offset, self._type = offset, dtype
        if not self._is_fortran:
            self.plain = PlainRows(stream.fileno(), offset, (n, d), dtype)

    def _header(self) -> tuple[tuple[int, int], bool, np.dtype, int]:
        """Return the shape, whether it lies column after column, the type, and where the numbers begin."""
        head = io.BytesIO(self._stream.read(_MOST_HEADER_BYTES))
        try:
            version = np.lib.format.read_magic(head)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in readers:
                raise ValueError(f"version {version} of the format")
            shape, is_fortran, dtype = readers[version](head)
        # What NumPy raises depends on where its parser stumbles.
        except Exception as error:
            raise DataError(
                f"{self.shown} is no array that NumPy wrote ({' '.join(str(error).split())[:200]}); "
                f"{_EXPECTED}, as numpy.save writes them"
            ) from error
        if dtype.hasobject:
            raise DataError(
                f"{self.shown} holds pickled objects, which are not read; {_EXPECTED}: "
                "numpy.save(file, numpy.stack(vectors))"
            )
        return check_array(shape, dtype, self.shown), is_fortran, dtype, head.tell()

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        for rows in windows(self):
            numbers = np.arange(rows.start, rows.stop)
            yield rows, self._of_columns(rows) if self.plain is None else self.plain.read(numbers)

    def _of_columns(self, rows: slice) -> FloatArray:
        """Return some rows of an array that lies column after column in the file."""
        n, d = self.shape
        x = np.empty((d, rows.stop - rows.start), self._type)
        for column in range(d):
            offset = self._offset + column * n * self._type.itemsize
            PlainRows(self._stream.fileno(), offset, (n, 1), self._type).read_into(x[column, :, None], rows.start)
        return np.ascontiguousarray(as_float32(x.T))
