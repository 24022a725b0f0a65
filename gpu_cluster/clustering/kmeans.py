"""Draws the starts of k-means and restarts `Backend.fit_kmeans`; holds the arithmetic that all devices share.

Input: a matrix x (n, d) and k. Output: centres, labels and distances that agree on every device up to rounding. This
module must not know what the rows are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gpu_cluster.backend import Array, Backend
from gpu_cluster.backend.base import HostArray
from gpu_cluster.backend.blockwise import blocks
from gpu_cluster.config import ClusterConfig
from gpu_cluster.sampling import sorted_sample

# k-means++ draws its starts from all rows; for more rows than this, from a random sample of this size (same seed, same
# sample).
START_ROWS = 20_000

# A restart replaces the best one only if it is better by more than rounding. Of two equal restarts the first one stays,
# because which of them is lower in the last digits differs between devices.
_BETTER = 1 - 1e-6


@dataclass(frozen=True)
class Partition:
    """k-means of x: centres (k, d), labels (n,), squared distances (n,) to the own centre, their sum, iterations.

    `agreement` is the mean adjusted Rand index of the best restart with the others; None if there was only one restart.
    """

    centres: Array
    labels: Array
    squared_distances: Array
    inertia: float
    n_iter: int
    agreement: float | None = None


def fit(x: Array, k: int, config: ClusterConfig, *, seed: int, backend: Backend) -> Partition:
    """Cluster x (n, d) into k clusters and return the best of `n_init` restarts.

    The starts are those that scikit-learn's own KMeans would draw: all restarts use one RandomState, one after the
    other. The returned centres are the means of the clusters that the device found; each label is the nearest of these
    centres.
    """
    from sklearn.metrics import adjusted_rand_score

    best: Partition | None = None
    sample = backend.from_host(sorted_sample(x.shape[0], START_ROWS, np.random.RandomState(seed)))
    found_labels: list[HostArray] = []
    best_number = 0
    for starts in draw_starts(x, k, config.n_init, seed=seed, backend=backend):
        found = backend.fit_kmeans(x, starts, max_iter=config.max_iter, tol=config.tol)
        centres = _means(x, nearest(x, found.centres, backend), found.centres, backend)
        labels = nearest(x, centres, backend)
        squared = squared_distances(x, centres, labels, backend)
        inertia = float(backend.to_host(backend.xp.sum(squared, dtype=backend.xp.float64)))
        if best is None or inertia < best.inertia * _BETTER:
            best = Partition(centres, labels, squared, inertia, found.n_iter)
            best_number = len(found_labels)
        found_labels.append(backend.to_host(backend.xp.take(labels, sample)))
    assert best is not None  # n_init is at least 1
    others = [labels for number, labels in enumerate(found_labels) if number != best_number]
    if not others:
        return best
    agreed = [adjusted_rand_score(found_labels[best_number], labels) for labels in others]
    return replace(best, agreement=float(np.mean(agreed)))


def draw_starts(x: Array, k: int, n_init: int, *, seed: int, backend: Backend) -> Iterator[Array]:
    """Yield `n_init` sets of starting centres (k, d) of k-means++ (Arthur and Vassilvitskii 2007) on the host."""
    from sklearn.cluster import kmeans_plusplus

    n = x.shape[0]
    random = np.random.RandomState(seed)
    if n > START_ROWS:
        sample = sorted_sample(n, max(START_ROWS, k), random)
        x = backend.xp.take(x, backend.from_host(sample), axis=0)
    rows = backend.to_host(x)
    for _ in range(n_init):
        centres, _indices = kmeans_plusplus(rows, k, random_state=random)
        yield backend.from_host(np.ascontiguousarray(centres))


def nearest(x: Array, centres: Array, backend: Backend) -> Array:
    """Return the index (n,) int64 of the centre nearest to each row."""
    xp = backend.xp
    # This is |x - c|^2 without |x|^2, which is the same for every centre.
    offsets = xp.sum(centres * centres, axis=1)
    axes = xp.matrix_transpose(centres)
    found = [xp.argmin(offsets - 2 * (x[rows, :] @ axes), axis=1) for rows in blocks(x.shape[0], centres.shape[0])]
    return xp.concat(found)


def squared_distances(x: Array, centres: Array, labels: Array, backend: Backend) -> Array:
    """Return the squared Euclidean distance (n,) of each row to the centre of its label."""
    xp = backend.xp
    found = []
    for rows in blocks(*x.shape):
        found.append(row_squares(x[rows, :] - xp.take(centres, labels[rows], axis=0), backend))
    return xp.concat(found)


def row_squares(x: Array, backend: Backend) -> Array:
    """Return the sum of squares (n,) of each row, without a temporary matrix of the size of x."""
    xp = backend.xp
    return xp.concat([xp.sum(x[rows, :] * x[rows, :], axis=1) for rows in blocks(*x.shape)])


def row_norms(x: Array, backend: Backend) -> Array:
    """Return the Euclidean norm (n, 1) of each row, but 1 for a row of zeros, so that dividing leaves it unchanged."""
    xp = backend.xp
    norms = xp.sqrt(row_squares(x, backend))[:, None]
    return xp.where(norms > 0, norms, xp.ones_like(norms))


def one_hot(labels: Array, k: int, backend: Backend) -> Array:
    """Return (n, k) float64: 1 in the column of the row's label, else 0."""
    clusters = backend.from_host(np.arange(k))
    return backend.xp.astype(labels[:, None] == clusters[None, :], backend.xp.float64)


def cluster_sums(values: Array, labels: Array, k: int, backend: Backend) -> Array:
    """Return the sum (k, d) float64 of the rows of `values` (n, d) in each cluster."""
    xp = backend.xp
    total = 0.0
    for rows in blocks(values.shape[0], k + values.shape[1]):
        members = xp.matrix_transpose(one_hot(labels[rows], k, backend))
        total = total + members @ xp.astype(values[rows, :], xp.float64)
    return total


def cluster_sizes(labels: Array, k: int, backend: Backend) -> Array:
    """Return the number (k,) float64 of rows in each cluster."""
    ones = backend.xp.ones_like(labels[:, None])
    return cluster_sums(ones, labels, k, backend)[:, 0]


def _means(x: Array, labels: Array, centres: Array, backend: Backend) -> Array:
    """Return the mean (k, d) of each cluster; an empty cluster keeps its centre.

    The libraries add up in the order in which their threads finish, so the last digits of their own centres differ from
    run to run. Therefore the means are computed again here.
    """
    xp = backend.xp
    k = centres.shape[0]
    sizes = cluster_sizes(labels, k, backend)[:, None]
    means = cluster_sums(x, labels, k, backend) / xp.where(sizes > 0, sizes, xp.ones_like(sizes))
    return xp.where(sizes > 0, xp.astype(means, centres.dtype), centres)
