"""Compares two groupings of the same rows by how many rows each pair of their groups shares; all on the host.

This module must not know how the groupings were found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

HostInts = npt.NDArray[np.integer[Any]]


def contingency(classes: HostInts, labels: HostInts, n_classes: int, k: int) -> HostInts:
    """Return the numbers (n_classes, k) of rows of each class in each cluster."""
    pairs = np.asarray(classes, np.int64) * k + labels
    return np.bincount(pairs, minlength=n_classes * k).reshape(n_classes, k)


def adjusted_rand(counts: HostInts) -> float:
    """Return the adjusted Rand index (Hubert and Arabie 1985) of a contingency table of whole numbers.

    To the last digit scikit-learn's `adjusted_rand_score`, which takes ten times as long, because it first finds out
    which labels there are.
    """
    n = int(counts.sum())
    of_both = int(np.sum(counts**2, dtype=np.int64))
    of_rows, of_columns = (int(np.sum(counts.sum(axis=axis) ** 2, dtype=np.int64)) for axis in (1, 0))
    # Ordered pairs of rows that share a group in both groupings, in neither, or in one of them only.
    both, one, other = of_both - n, of_rows - of_both, of_columns - of_both
    neither = n * n - of_both - one - other
    if one == 0 and other == 0:
        return 1.0
    expected = (both + one) * (one + neither) + (both + other) * (other + neither)
    return 2.0 * (both * neither - one * other) / expected
