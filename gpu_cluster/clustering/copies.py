"""Rows of copies -> the rows of their originals.

A product of matrices gives equal rows different last bits, depending on where in a block they lie. What is reported of
files with the same bytes is therefore computed for all rows, and then read from the first of them.
"""

from __future__ import annotations

from gpu_cluster.backend import Array, Backend, IntArray


def as_originals(values: Array, originals: IntArray | None, backend: Backend) -> Array:
    """Return `values` (n, ...) with every row replaced by the row of its original.

    `originals` (n,), host, holds for each row the first row of the same bytes; None where no row is a copy.
    """
    return values if originals is None else backend.xp.take(values, backend.from_host(originals), axis=0)
