"""Replaces values of copied files by those of their originals.

In a product of matrices, equal rows can differ in their last bits, depending on their position in a block. Values that
are reported are therefore computed for all rows, and files with the same bytes get the values of the first of them.
"""

from __future__ import annotations

from gpu_cluster.backend import Array, Backend, IntArray


def as_originals(values: Array, originals: IntArray | None, backend: Backend) -> Array:
    """Return `values` (n, ...) with every row replaced by the row of its original.

    `originals` (n,), host, holds for each row the first row with the same bytes; None if no row is a copy.
    """
    return values if originals is None else backend.xp.take(values, backend.from_host(originals), axis=0)
