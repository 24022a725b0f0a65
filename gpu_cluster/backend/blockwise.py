"""Arithmetic that every device does in the same way, in the array API: in blocks of rows, float32 data, float64 sums.

Input: arrays of a backend, on its device. Output: what its libraries would return. No temporary is of the size of the
input. This module must not know which device it works on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np

from gpu_cluster.backend.base import Array, Backend, KMeansFit, PCAFit, Scaling
from gpu_cluster.backend.rows import BLOCK_ROWS, Rows

# Largest number of values in a temporary of a pass over the rows.
_BLOCK_SIZE = 1 << 24

# A direction whose variance is below this share of the strongest one's is float64 rounding in a Gram matrix.
_ROUNDING_SHARE = 1e-12

# One iteration of Lloyd's algorithm: from centres (k, d) to the next centres, and the labels (n,) of the nearest of
# these.
Iteration: TypeAlias = Callable[[Array], tuple[Array, Array]]


def blocks(n: int, width: int, most: int | None = None) -> Iterator[slice]:
    """Yield slices that cover n rows, so short that `width` values for each row are at most `most`, else 2^24."""
    size = max(1, (most or _BLOCK_SIZE) // max(1, width))
    for first in range(0, n, size):
        yield slice(first, min(first + size, n))


def column_means(x: Array, backend: Backend, scale: Scaling) -> Array:
    """Return the mean (d,) float64 of each column of the scaled matrix (n, d)."""
    xp = backend.xp
    total = 0.0
    for rows in blocks(*x.shape):
        total = total + xp.sum(scale(x[rows, :]), axis=0, dtype=xp.float64)
    return total / x.shape[0]


def fit_pca(x: Rows, n_components: int, *, scale: Scaling, backend: Backend) -> PCAFit:
    """Fit principal axes as `Backend.fit_pca` does, in one pass over the blocks of x (n, d).

    The axes are the eigenvectors of the covariance (d, d). With fewer rows than columns, they come from the
    eigenvectors of the Gram matrix (n, n) of the centred rows instead (Turk and Pentland 1991).

    Memory: a block, or the blocks that `Backend.each` does at the same time, and 8 bytes four times for each number of
    the smaller of these two matrices: for itself, the sum of a block, and the eigenvectors with their work space. With
    fewer rows than columns, x as a whole too.
    """
    if x.shape[1] <= x.shape[0]:
        return _of_covariance(x, n_components, scale, backend)
    whole = x.whole()
    return _of_gram(whole, n_components, column_means(whole, backend, scale), scale, backend)


def _of_covariance(x: Rows, m: int, scale: Scaling, backend: Backend) -> PCAFit:
    """Fit from the sum of squares within the blocks, and that between their means (Chan, Golub and LeVeque 1979).

    Rows are centred by the mean of their own block, so nothing large cancels out, however far the data are from the
    origin. Products within a block are float32, and the sums over the blocks float64: an eigenvalue is exact to 3e-7 of
    the largest one.
    """
    xp = backend.xp
    (n, d), within = x.shape, 0.0
    means, rests, roots = [], [], []
    # Bytes: a block, what `scale` makes of it, a temporary of that, the centred block, and the product.
    bytes_each = 4 * d * (4 * min(n, BLOCK_ROWS) + d)
    for _rows, (squares, about, rest, root) in x.map(partial(_scatter, scale, bytes_each)):
        within = within + squares
        means.append(about)
        rests.append(rest)
        roots.append(root)
    weights = xp.concat(roots)[:, None]
    weighted, off = xp.concat(means), xp.concat(rests)
    mean = xp.sum(weighted * weights, axis=0) / n
    between = weighted - weights * mean[None, :]
    scatter = within + xp.matrix_transpose(between) @ between - xp.matrix_transpose(off) @ off
    values, vectors, total = _strongest(scatter, m, backend)
    return _fit(xp.matrix_transpose(vectors), values, total, mean, n, "covariance by blocks", backend)


def _scatter(scale: Scaling, bytes_each: int, blocks: Iterator[Array], backend: Backend) -> tuple[Array, ...]:
    """Return of the b blocks of a span, in float64: the sum of squares (d, d) about the mean of each block; these means
    (b, d), and what float32 lacks of them (b, d), both times the root of the block's number of rows; these roots (b,).
    """
    xp = backend.xp

    def of_block(block: Array) -> tuple[int, Array, Array, Array]:
        scaled = scale(block)
        about = xp.mean(scaled, axis=0)
        centred = scaled - about[None, :]
        # A float32 mean is off by the third. The fourth is a matrix with itself, which BLAS computes by half (syrk).
        rest = xp.astype(xp.mean(centred, axis=0), xp.float64)
        return block.shape[0], about, rest, xp.matrix_transpose(centred) @ centred

    within = 0.0
    means, rests, roots = [], [], []
    for n_rows, about, rest, product in backend.each(of_block, blocks, bytes_each=bytes_each):
        within = within + xp.astype(product, xp.float64)
        root = n_rows**0.5
        means.append(((xp.astype(about, xp.float64) + rest) * root)[None, :])
        rests.append((rest * root)[None, :])
        roots.append(root)
    return within, xp.concat(means), xp.concat(rests), backend.from_host(np.array(roots))


def _of_gram(x: Array, m: int, mean: Array, scale: Scaling, backend: Backend) -> PCAFit:
    xp = backend.xp
    n, parts = x.shape[0], list(blocks(*x.shape))
    # Made of an array of the device, because the array API's `zeros` would not know which device is meant.
    gram = xp.zeros_like(xp.broadcast_to(backend.from_host(np.zeros((n, 1))), (n, n)))
    for number, rows in enumerate(parts):
        centred = _centred(x, rows, mean, scale, backend)
        for others in parts[: number + 1]:
            products = centred @ xp.matrix_transpose(_centred(x, others, mean, scale, backend))
            gram[rows, others] = products
            gram[others, rows] = xp.matrix_transpose(products)
    values, vectors, total = _strongest(gram, m, backend)
    components = 0.0
    for rows in parts:
        centred = _centred(x, rows, mean, scale, backend)
        components = components + xp.matrix_transpose(vectors[rows, :]) @ centred
    lengths = xp.sqrt(xp.sum(components * components, axis=1))[:, None]
    # A direction without variance has no axis: what is left of it is rounding.
    real = values[:, None] > _ROUNDING_SHARE * xp.max(values)
    components = xp.where(real, components, xp.zeros_like(components)) / xp.where(real, lengths, xp.ones_like(lengths))
    return _fit(components, values, total, mean, n, "Gram matrix by blocks", backend)


def _centred(x: Array, rows: slice, mean: Array, scale: Scaling, backend: Backend) -> Array:
    return backend.xp.astype(scale(x[rows, :]), backend.xp.float64) - mean


def _strongest(symmetric: Array, m: int, backend: Backend) -> tuple[Array, Array, float]:
    """Return the m largest eigenvalues (m,), largest first, their eigenvectors as columns, and the sum of all."""
    xp = backend.xp
    values, vectors, total = backend.strongest(symmetric, m)
    return xp.flip(values, axis=0), xp.flip(vectors, axis=1), total


def _fit(components: Array, values: Array, total: float, mean: Array, n: int, solver: str, backend: Backend) -> PCAFit:
    xp, freedom = backend.xp, n - 1
    return PCAFit(
        mean=xp.astype(mean, xp.float32),
        components=xp.astype(components, xp.float32),
        explained_variance=np.maximum(backend.to_host(values), 0) / freedom,
        total_variance=total / freedom,
        solver=solver,
    )


def lloyd(x: Array, starts: Array, iterate: Iteration, *, max_iter: int, tol: float, backend: Backend) -> KMeansFit:
    """Run Lloyd's algorithm on x (n, d) from `starts` (k, d), one iteration of the device's library at a time.

    It ends where scikit-learn's ends: when the squared distance that the centres moved, summed over all of them, is at
    most `tol` times the mean variance of the columns, or when no label changed.
    """
    xp = backend.xp
    most = tol * mean_variance(x, backend) if tol else 0.0
    centres, before, n_iter = starts, None, 0
    while True:
        moved, labels = iterate(centres)
        steps = xp.astype(moved, xp.float64) - xp.astype(centres, xp.float64)
        shift = float(backend.to_host(xp.sum(steps * steps)))
        still = before is not None and bool(backend.to_host(xp.all(labels == before)))
        centres, before, n_iter = moved, labels, n_iter + 1
        if still or shift <= most or n_iter == max_iter:
            return KMeansFit(centres, n_iter)


def mean_variance(x: Array, backend: Backend) -> float:
    """Return the mean over the columns of x (n, d) of their variances."""
    xp = backend.xp
    mean = column_means(x, backend, as_it_is)
    total = 0.0
    for rows in blocks(*x.shape):
        centred = _centred(x, rows, mean, as_it_is, backend)
        total = total + xp.sum(centred * centred)
    return float(backend.to_host(total)) / float(np.prod(x.shape))


def as_it_is(x: Array) -> Array:
    """Return x: the scaling that scales nothing."""
    return x
