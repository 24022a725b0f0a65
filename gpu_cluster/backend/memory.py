"""Explains in one place what did not fit when the memory of a device runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from gpu_cluster.backend.base import Backend
from gpu_cluster.errors import DeviceError

_HELPS = {
    "embedding": (
        "end other programs that use this memory, or try a smaller --batch-size, a smaller --pooling than flatten, or "
        "fewer pictures"
    ),
    "clustering": "try a smaller --silhouette-sample, or --sweep-space projection, or a smaller --pca",
}


@contextmanager
def memory_error_explained(
    doing: Literal["embedding", "clustering"], n: int, d: int, backend: Backend
) -> Iterator[None]:
    """Turn a MemoryError (NumPy, CuPy and RMM all raise it) into an error that says what did not fit and what helps.

    Raises
    ------
    DeviceError
        When the block, which works on a matrix of n x d float32, raises a MemoryError.
    """
    try:
        yield
    except MemoryError as error:
        size, free = n * d * 4 / 1e9, backend.free_bytes() / 1e9
        raise DeviceError(
            f"out of memory on the {backend.name} while {doing} a matrix of {n} x {d} float32, {size:.2f} GB, "
            f"{free:.2f} GB free: {_HELPS[doing]}; or use a device with more memory"
        ) from error
