"""Random samples of rows; the same seed gives the same sample."""

from __future__ import annotations

import numpy as np

from gpu_cluster.backend import IntArray


def sorted_sample(n: int, size: int, random: np.random.RandomState) -> IntArray:
    """Return the indices of `size` of n rows, drawn without replacement and sorted; host. All of them if n <= size."""
    return np.arange(n) if n <= size else np.sort(random.choice(n, size, replace=False))
