"""Draws the starts of k-means and restarts `Backend.fit_kmeans`; holds the arithmetic that all devices share.

Above a number of rows (`sweep_sample`), the restarts run on a random sample of that many, and the best of them is
carried on with all rows: ten restarts take ten times as long as one, and on a sample they choose as well.

Input: a matrix x (n, d) and k. Output: centres, labels and distances that agree on every device up to rounding. This
module must not know what the rows are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpu_cluster.backend import Array, Backend, KMeansFit, take
from gpu_cluster.backend.base import HostArray
from gpu_cluster.backend.blockwise import blocks
from gpu_cluster.clustering.contingency import adjusted_rand, contingency
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


def fit(x: Array, k: int, config: ClusterConfig, *, sample: int, seed: int, backend: Backend) -> Partition:
    """Cluster x (n, d) into k clusters and return the best of `n_init` restarts.

    The starts are those that scikit-learn's own KMeans would draw: all restarts use one RandomState, one after the
    other. The returned centres are the means of the clusters that the device found; each label is the nearest of these
    centres. With more than `sample` rows, the restarts run on a random sample of that many, and the best one is carried
    on with all rows until it ends; the agreement is that of the restarts on the sample.
    """
    starts = Starts(x, sample=sample, seed=seed, backend=backend, most_k=k).draw(k, config.n_init)
    rows = sampled(x, sample, seed=seed, backend=backend)
    best = best_restart(rows, starts, config, seed=seed, backend=backend)
    if x.shape[0] <= sample:
        return best
    found = finish(x, KMeansFit(best.centres, best.n_iter), config, sample=sample, backend=backend)
    return replace(found, agreement=best.agreement)


def sampled(x: Array, sample: int, *, seed: int, backend: Backend) -> Array:
    """Return the rows of x (n, d) on which restarts run: a random sample of `sample` of them, or all if n is less."""
    n = x.shape[0]
    if n <= sample:
        return x
    return take(x, sorted_sample(n, sample, np.random.RandomState(seed)), backend)


def best_restart(x: Array, starts: Iterable[Array], config: ClusterConfig, *, seed: int, backend: Backend) -> Partition:
    """Run k-means on x (n, d) from each of the starts (k, d), and return the partition with the lowest inertia."""
    best: Partition | None = None
    sample = backend.from_host(sorted_sample(x.shape[0], START_ROWS, np.random.RandomState(seed)))
    found_labels: list[HostArray] = []
    best_number = 0

    def restart(start: Array) -> Partition:
        return _partition(x, backend.fit_kmeans(x, start, max_iter=config.max_iter, tol=config.tol), backend)

    for found in backend.each(restart, starts, bytes_each=bytes_of_a_fit(x)):
        if best is None or is_better(found.inertia, best.inertia):
            best, best_number = found, len(found_labels)
        found_labels.append(backend.to_host(backend.xp.take(found.labels, sample)))
    assert best is not None  # n_init is at least 1
    return replace(best, agreement=agreement(found_labels, best_number, best.centres.shape[0]))


def bytes_of_a_fit(x: Array) -> int:
    """Return the memory in bytes of k-means on x (n, d) float32: a centred copy of x, and products of a block of it."""
    n, d = x.shape
    return int(4 * n * (d + 8))


def agreement(labels: Sequence[HostArray], best: int, k: int) -> float | None:
    """Return the mean adjusted Rand index of the labels of the best restart with those of each other; host."""
    others = [other for number, other in enumerate(labels) if number != best]
    agreed = [adjusted_rand(contingency(labels[best], other, k, k)) for other in others]
    return float(np.mean(agreed)) if agreed else None


def is_better(inertia: float, best: float) -> bool:
    """Return whether an inertia is below the best so far by more than rounding."""
    return inertia < best * _BETTER


def finish(x: Array, found: KMeansFit, config: ClusterConfig, *, sample: int, backend: Backend) -> Partition:
    """Return the partition of x (n, d) to which the sweep's centres for some k lead, without restarts.

    Up to `sample` rows, the centres are those of a restart that has ended, and the partition is that restart's. With
    more rows, k-means goes on from the centres with all rows until it ends.
    """
    if x.shape[0] <= sample:
        return _assigned(x, found, backend)
    more = backend.fit_kmeans(x, found.centres, max_iter=config.max_iter, tol=config.tol)
    return _partition(x, KMeansFit(more.centres, found.n_iter + more.n_iter), backend)


def _partition(x: Array, found: KMeansFit, backend: Backend) -> Partition:
    """Return the partition whose centres are the means of the clusters that the device found.

    The libraries add up in the order in which their threads finish, so the last digits of their own centres differ from
    run to run. Therefore the means are computed again here.
    """
    k, labels = found.centres.shape[0], nearest(x, found.centres, backend)
    sums, sizes = cluster_sums(x, labels, k, backend), cluster_sizes(labels, k, backend)
    centres = means(sums, sizes, found.centres, backend)
    return _assigned(x, KMeansFit(centres, found.n_iter), backend)


def _assigned(x: Array, found: KMeansFit, backend: Backend) -> Partition:
    """Return the partition in which each row belongs to the nearest of the centres."""
    labels = nearest(x, found.centres, backend)
    squared = squared_distances(x, found.centres, labels, backend)
    inertia = float(backend.to_host(backend.xp.sum(squared, dtype=backend.xp.float64)))
    return Partition(found.centres, labels, squared, inertia, found.n_iter)


class Starts:
    """Draws starting centres by k-means++ (Arthur and Vassilvitskii 2007) on the host, as scikit-learn's KMeans does.

    They are drawn from all rows of x (n, d) in their order, or above 20,000 rows from a random sample of 20,000. Only
    these rows leave the device, once for all k.
    """

    def __init__(self, x: Array, *, sample: int, seed: int, backend: Backend, most_k: int = 1) -> None:
        """Read the rows; `most_k` is the largest number of centres that will be drawn."""
        n, self._backend = x.shape[0], backend
        random = np.random.RandomState(seed)
        x = take(x, sorted_sample(n, max(START_ROWS, most_k), random), backend)
        self._rows, self._random = backend.to_host(x), random.get_state()
        self._dtype = self._rows.dtype
        if n > sample:
            # In float32, scikit-learn converts the rows to float64 for every centre that it draws, which takes longer
            # than the rest. The draws are the same but for rounding, which decides nothing up to `sample` rows.
            self._rows = self._rows.astype(np.float64)

    def draw(self, k: int, n_init: int) -> Iterator[Array]:
        """Yield `n_init` sets of centres (k, d): for each k the same from the same seed, whatever was drawn before."""
        from sklearn.cluster import kmeans_plusplus

        random = np.random.RandomState()
        random.set_state(self._random)
        for _ in range(n_init):
            centres, _indices = kmeans_plusplus(self._rows, k, random_state=random)
            yield self._backend.from_host(np.ascontiguousarray(centres, self._dtype))


def nearest(x: Array, centres: Array, backend: Backend) -> Array:
    """Return the index (n,) int64 of the centre nearest to each row."""
    xp = backend.xp
    # This is |x - c|^2 without |x|^2, which is the same for every centre.
    offsets = xp.sum(centres * centres, axis=1)
    axes = xp.matrix_transpose(centres)
    found = [xp.argmin(offsets - 2 * (x[rows, :] @ axes), axis=1) for rows in blocks(x.shape[0], max(centres.shape))]
    return xp.concat(found)


def squared_distances(x: Array, centres: Array, labels: Array, backend: Backend) -> Array:
    """Return the squared Euclidean distance (n,) of each row to the centre of its label."""
    xp = backend.xp
    found = []
    for rows in blocks(*x.shape):
        found.append(row_squares(x[rows, :] - xp.take(centres, labels[rows], axis=0), backend))
    return xp.concat(found)


def all_distances(x: Array, centres: Array, backend: Backend) -> Array:
    """Return the Euclidean distance (n, k) of each row to each of the centres (k, d)."""
    xp, (n, k) = backend.xp, (x.shape[0], centres.shape[0])
    labels = (backend.from_host(np.full(n, number, np.int64)) for number in range(k))
    return xp.sqrt(xp.stack([squared_distances(x, centres, of_all, backend) for of_all in labels], axis=1))


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
    total = 0.0
    for rows in blocks(labels.shape[0], k):
        total = total + backend.xp.sum(one_hot(labels[rows], k, backend), axis=0)
    return total


def means(sums: Array, sizes: Array, centres: Array, backend: Backend) -> Array:
    """Return the mean (k, d) of each cluster from its sum (k, d) and size (k,), both float64.

    An empty cluster keeps its centre of `centres` (k, d), whose dtype the means get.
    """
    xp = backend.xp
    sizes = sizes[:, None]
    found = sums / xp.where(sizes > 0, sizes, xp.ones_like(sizes))
    return xp.where(sizes > 0, xp.astype(found, centres.dtype), centres)
