"""Formulas of scores that not every device's library has, written in the array API.

x is (n, d), labels (n,), centres (k, d), sizes (k,); k is from 2 to n - 1. Formulas on the host take NumPy arrays. This
module must not know a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_cluster.backend import Array, Backend, take
from gpu_cluster.backend.blockwise import blocks
from gpu_cluster.clustering import kmeans
from gpu_cluster.sampling import sorted_sample

# The silhouettes hold the distances of this many rows to as many others at once: 32 MB.
_SILHOUETTE_ROWS = 2000

HostFloats = npt.NDArray[np.floating[Any]]
HostInts = npt.NDArray[np.integer[Any]]


def davies_bouldin(xp: ModuleType, centres: Array, spreads: Array) -> Array:
    """Return the Davies-Bouldin index (Davies and Bouldin 1979): lower is better, 0 is best.

    `spreads` (k,) is the mean distance of a cluster's rows to their centre.
    """
    k, d = centres.shape
    worst = []
    for rows in blocks(k, k * d):
        difference = centres[rows, None, :] - centres[None, :, :]
        apart = xp.sqrt(xp.sum(difference * difference, axis=2))
        together = spreads[rows, None] + spreads[None, :]
        # A distance of 0 gives 0 here, because each cluster compared with itself must not count. Two clusters with the
        # same centre give 0 too, as in scikit-learn.
        ratio = xp.where(apart > 0, together / xp.where(apart > 0, apart, xp.ones_like(apart)), xp.zeros_like(apart))
        worst.append(xp.max(ratio, axis=1))
    return xp.mean(xp.concat(worst))


def calinski_harabasz(xp: ModuleType, centres: Array, sizes: Array, mean: Array, inertia: float) -> Array:
    """Return the variance ratio criterion (Calinski and Harabasz 1974): higher is better.

    `mean` (d,) is the mean of all rows, `inertia` the sum of squared distances of the rows to their centres.
    """
    k = centres.shape[0]
    n = xp.sum(sizes)
    difference = centres - mean
    between = xp.sum(sizes * xp.sum(difference * difference, axis=1))
    return (between / (k - 1)) / (inertia / (n - k)) if inertia > 0 else xp.ones_like(n)


def matched_accuracy(counts: HostInts) -> float:
    """Return the share of rows in the right cluster under the best one-to-one matching of classes and clusters.

    The matching is an assignment problem (Kuhn 1955). The rows of classes or clusters that have no partner count as
    wrong.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


def knee(ks: Sequence[int], inertias: Sequence[float]) -> int | None:
    """Return the knee of a falling curve (Kneedle: Satopaa et al. 2011), or None if there is none."""
    from kneed import KneeLocator

    if len(ks) < 3 or max(inertias) <= min(inertias):
        return None
    found = KneeLocator(ks, inertias, curve="convex", direction="decreasing").knee
    return None if found is None else int(found)


def farthest_from_chord(ks: Sequence[int], inertias: Sequence[float]) -> int:
    """Return the k whose point lies farthest below the straight line from the curve's first point to its last."""
    x, y = np.asarray(ks, float), np.asarray(inertias, float)
    if len(ks) < 3 or y[0] == y[-1]:
        return int(ks[0])
    below = (x - x[0]) / (x[-1] - x[0]) + (y - y[-1]) / (y[0] - y[-1])
    return int(ks[int(np.argmin(below))])


def silhouettes(
    x: Array, labels: Array, k: int, *, sample: int, seed: int, backend: Backend
) -> tuple[HostFloats, HostInts]:
    """Return silhouettes (Rousseeuw 1987) and the rows that they belong to, both host.

    These are all rows, or, if there are more than `sample`, a random sample of that size (the same for the same n and
    seed), whose silhouettes are computed within the sample. Both are empty if the silhouette is not defined: with fewer
    than 2 clusters, or as many clusters as rows.
    """
    n = x.shape[0]
    rows = silhouette_rows(n, sample, seed)
    if len(rows) < n:
        x, labels = take(x, rows, backend), take(labels, rows, backend)
        k = int(np.unique(backend.to_host(labels)).size)
    if not 2 <= k <= len(rows) - 1:
        return np.empty(0, np.float32), rows[:0]
    return backend.to_host(silhouette_samples(x, labels, backend)), rows


def silhouette_rows(n: int, sample: int, seed: int) -> HostInts:
    """Return the rows of n whose silhouettes are computed: all, or a random sample of `sample` of them; host."""
    return sorted_sample(n, sample, np.random.RandomState(seed))


def mean_silhouettes(x: Array, groupings: Sequence[Array], backend: Backend) -> list[float | None]:
    """Return the mean silhouette of x (n, d) for each of several labels (n,), or None where it is not defined.

    The distances between the rows are computed once for all labels, in float64, and rounded to float32, as those of
    scikit-learn, because the sums of them take most of the time. Memory: that of `silhouette_samples`, k being the
    number of clusters of all labels together.
    """
    means: list[float | None] = [None] * len(groupings)
    dense = [_dense(labels, backend) for labels in groupings]
    defined = [number for number, (_labels, k) in enumerate(dense) if 2 <= k <= x.shape[0] - 1]
    found = _silhouettes(x, [dense[number] for number in defined], backend.xp.float32, backend)
    for number, values in zip(defined, found, strict=True):
        means[number] = mean_or_none(backend.to_host(values))
    return means


def silhouette_samples(x: Array, labels: Array, backend: Backend) -> Array:
    """Return the silhouette (n,) float64 of each row of x (n, d) for labels (n,) with 2 to n - 1 clusters.

    The sums of the distances from a row to each cluster are a block of distances times a matrix that is 1 where a row
    belongs to a cluster: products of matrices, which repeat to the byte on a GPU too, where sums by atomic additions do
    not. Takes O(n^2 (d + k)) time and, besides (n, k) sums, the memory of a block of distances and two blocks of rows.
    """
    return next(_silhouettes(x, [_dense(labels, backend)], backend.xp.float64, backend))


def _dense(labels: Array, backend: Backend) -> tuple[Array, int]:
    """Return labels (n,) numbered from 0 without gaps, and how many there are: clusters without a row do not count."""
    held, dense = np.unique(backend.to_host(labels), return_inverse=True)
    return backend.from_host(dense), len(held)


def _silhouettes(x: Array, groupings: Sequence[tuple[Array, int]], precision: Any, backend: Backend) -> Iterator[Array]:
    """Yield the silhouettes (n,) float64 of x for each of several labels (n,), given with their numbers of clusters."""
    xp = backend.xp
    if not groupings:
        return
    members = xp.concat([kmeans.one_hot(labels, k, backend) for labels, k in groupings], axis=1)
    all_sums = _distance_sums(x, members, precision, backend)
    first = 0
    for _labels, k in groupings:
        member, sums = members[:, first : first + k], all_sums[:, first : first + k]
        first += k
        sizes = xp.sum(member, axis=0)
        own_size = xp.sum(member * sizes, axis=1)
        own = xp.sum(sums * member, axis=1) / xp.where(own_size > 1, own_size - 1, xp.ones_like(own_size))
        nearest = xp.min(xp.where(member > 0, xp.full_like(sums, np.inf), sums / sizes), axis=1)
        larger = xp.where(own > nearest, own, nearest)
        # Rousseeuw gives a row alone in its cluster 0; so does a row whose distances are all 0, as in scikit-learn.
        defined = (own_size > 1) & (larger > 0)
        yield xp.where(defined, (nearest - own) / xp.where(defined, larger, xp.ones_like(larger)), xp.zeros_like(own))


def _distance_sums(x: Array, member: Array, precision: Any, backend: Backend) -> Array:
    """Return the sum (n, k) float64 of the distances from each row of x to the rows of each cluster.

    `member` (n, k) is 1 in the column of the row's cluster, else 0. The distances are computed in float64; `precision`
    is the dtype in which those of a block are added up.
    """
    xp, n = backend.xp, x.shape[0]
    parts = [slice(first, min(first + _SILHOUETTE_ROWS, n)) for first in range(0, n, _SILHOUETTE_ROWS)]
    sums = [0.0] * len(parts)
    member = xp.astype(member, precision)

    def of_pair(pair: tuple[int, int]) -> tuple[Array, Array | None]:
        rows, columns = parts[pair[0]], parts[pair[1]]
        left = _beside_squares(x[rows, :], backend, left=True)
        right = _beside_squares(x[columns, :], backend, left=False)
        # Rounding can put the square of a distance of 0 below 0.
        distances = xp.astype(xp.abs(left @ xp.matrix_transpose(right)), precision, copy=False)
        distances **= 0.5
        if rows is columns:
            distances = xp.where(_diagonal(right.shape[0], backend), xp.zeros_like(distances), distances)
            return xp.astype(distances @ member[columns, :], xp.float64), None
        other = xp.astype(xp.matrix_transpose(distances) @ member[rows, :], xp.float64)
        return xp.astype(distances @ member[columns, :], xp.float64), other

    # Distances are the same in both directions, so each pair of blocks is computed once.
    pairs = [(number, other) for number in range(len(parts)) for other in range(number + 1)]
    # Bytes: the distances, zeros and what takes their places, in float64, and the mask of the diagonal.
    found = backend.each(of_pair, pairs, bytes_each=25 * _SILHOUETTE_ROWS**2)
    for (number, other), (of_rows, of_columns) in zip(pairs, found, strict=True):
        sums[number] = sums[number] + of_rows
        if of_columns is not None:
            sums[other] = sums[other] + of_columns
    return xp.concat(sums)


def _beside_squares(x: Array, backend: Backend, *, left: bool) -> Array:
    """Return rows (b, d + 2) float64 whose products, left with right, are |x|^2 - 2 x y + |y|^2."""
    xp = backend.xp
    x = xp.astype(x, xp.float64)
    squares = xp.sum(x * x, axis=1, keepdims=True)
    ones = xp.ones_like(squares)
    return xp.concat([-2 * x, squares, ones] if left else [x, ones, squares], axis=1)


def _diagonal(n: int, backend: Backend) -> Array:
    return backend.from_host(np.eye(n, dtype=bool))


def mean_or_none(values: HostFloats) -> float | None:
    """Return the mean in float64, or None if there are no values."""
    return float(np.mean(values, dtype=np.float64)) if values.size else None
