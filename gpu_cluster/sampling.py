"""Random samples of rows that are the same for the same seed."""

from __future__ import annotations

import numpy as np

from gpu_cluster.backend import IntArray


def sorted_sample(n: int, size: int, random: np.random.RandomState) -> IntArray:
    """Return all of n rows, or `size` of them drawn without replacement, in their order; host."""
    return np.arange(n) if n <= size else np.sort(random.choice(n, size, replace=False))
