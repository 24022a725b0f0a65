"""Replaces values of copied files by those of their originals.

In a product of matrices, equal rows can differ in their last bits, depending on their position in a block. Values that
are reported are therefore computed for all rows, and files with the same bytes get the values of the first of them.
"""

from __future__ import annotations

import hashlib

import numpy as np

from gpu_cluster.backend import Array, Backend, FloatArray, IntArray


def as_originals(values: Array, originals: IntArray | None, backend: Backend) -> Array:
    """Return `values` (n, ...) with every row replaced by the row of its original.

    `originals` (n,), host, holds for each row the first row with the same bytes; None if no row is a copy.
    """
    return values if originals is None else backend.xp.take(values, backend.from_host(originals), axis=0)


def equal_rows(x: FloatArray) -> IntArray | None:
    """Return for each row of x (n, d), host, the first row with the same bytes; None if no two rows are equal.

    Where nothing is known of the files that rows come from, it stands for the originals of the files.
    """
    first_of: dict[bytes, int] = {}
    digests = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x)
    found = np.array([first_of.setdefault(digest, number) for number, digest in enumerate(digests)], dtype=np.int64)
    return None if len(first_of) == len(x) else found
