"""Reduces embeddings to a Projection: scale, PCA, whiten, normalise.

Input: embeddings (n, d), which are read in blocks of rows. Output: the space that is clustered, and two principal
components to plot. This module must not know what is found in that space.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from gpu_cluster.backend import Array, Backend, IntArray, PCAFit, Rows
from gpu_cluster.backend.base import Scaling
from gpu_cluster.backend.rows import BLOCK_ROWS, filled
from gpu_cluster.clustering import kmeans
from gpu_cluster.clustering.copies import as_originals
from gpu_cluster.config import ReduceConfig
from gpu_cluster.results import Projection, Reduction

log = logging.getLogger(__name__)

# A component whose variance is below this share of the strongest one's is float32 rounding and not a real direction;
# whitening would enlarge it to full size.
_NULL_SHARE = 1e-6
# The same for the data as a whole: if the variance is below this share of the mean square, the rows are equal up to
# rounding. TensorFlow's embedding of a picture varies by 4e-8 with the batch that it is in, its square root by 2e-4.
_EQUAL_SHARE = 1e-7


def reduce(
    x: Rows,
    config: ReduceConfig,
    *,
    backend: Backend,
    sweep_space: str = "projection",
    originals: IntArray | None = None,
) -> Projection:
    """Project the embeddings x (n, d) float32 into the space to cluster in.

    Copies, as named by `originals` (see `copies`), get the principal components of their originals.

    x is read twice, to fit PCA and to project, and once more before that if columns are scaled by their range.

    Memory: a few blocks, what `Backend.fit_pca` takes, and the result (n, m). If the sweep or the clustering uses the
    scaled columns themselves, these are held too: (n, d).
    """
    low, span = _column_range(x, backend) if config.scaling == "minmax" else (None, None)

    scaled = partial(scale, scaling=config.scaling, backend=backend, low=low, span=span)
    n_components = count_components(config.pca, *x.shape)
    fit = _fixed_signs(_fit(x, max(2, n_components), scaled, backend), backend)
    kept = None if config.pca == "none" else min(n_components, len(fit.explained_variance))
    reduction = Reduction(
        scaling=config.scaling,
        low=low,
        span=span,
        mean=fit.mean,
        components=fit.components,
        kept=kept,
        divisors=_divisors(fit, kept, config.whitening, backend) if kept is not None and config.whitening else None,
        normalize=config.normalize,
    )
    projected, pcs = apply(reduction, x, backend)
    space = _words(reduction, config.whitening)
    log.info("space: %s", space)
    swept_scaled = sweep_space == "scaled"
    scaling = _SCALING_WORDS[config.scaling]
    return Projection(
        reduction=reduction,
        x=projected,
        space=space,
        pcs=as_originals(pcs, originals, backend),
        pcs_variance_ratio=_variance_ratio(fit),
        pca_solver=fit.solver,
        sweep_x=_scaled_whole(x, scaled, backend) if swept_scaled else projected,
        sweep_space=f"{scaling}, {x.shape[1]} columns" if swept_scaled else space,
    )


def apply(reduction: Reduction, x: Rows, backend: Backend) -> tuple[Array, Array]:
    """Project embeddings x (n, d) float32 into a space: those that it was fitted on, or others.

    Returns
    -------
    x
        (n, m) float32, the rows in that space; `HostRows` if they do not fit the device.
    pcs
        (n, 2) float32, their first two principal components.
    """
    n, d = x.shape
    space = backend.empty_space((n, d if reduction.kept is None else reduction.kept))
    pcs = backend.empty((n, 2))
    # Bytes: a block, what `scale` makes of it, and two temporaries of that.
    bytes_each = 4 * 4 * d * min(n, BLOCK_ROWS)
    for rows, (part, firsts) in x.map(partial(_projected, reduction, bytes_each)):
        space[rows, :] = part
        pcs[rows, :] = firsts
    return space, pcs


def _projected(reduction: Reduction, bytes_each: int, blocks: Iterator[Array], backend: Backend) -> tuple[Array, ...]:
    """Return of the r rows of a span: themselves in the space (r, m), and their first two components (r, 2)."""
    xp = backend.xp
    axes = xp.matrix_transpose(reduction.components)

    def of_block(block: Array) -> tuple[Array, Array]:
        scaled = scale(block, reduction.scaling, backend, low=reduction.low, span=reduction.span)
        # x C' - m C' instead of (x - m) C' avoids a second block.
        scores = scaled @ axes - reduction.mean @ axes
        part = scaled if reduction.kept is None else scores[:, : reduction.kept]
        if reduction.divisors is not None:
            part = part / reduction.divisors
        if reduction.normalize:
            part = part / kmeans.row_norms(part, backend)
        return part, _first_two(scores, backend)

    parts, firsts = zip(*backend.each(of_block, blocks, bytes_each=bytes_each), strict=True)
    return xp.concat(parts), xp.concat(firsts)


def _scaled_whole(x: Rows, scaled: Scaling, backend: Backend) -> Array:
    return filled(((rows, scaled(block)) for rows, block in x.blocks()), x.shape, backend)


def _divisors(fit: PCAFit, kept: int, power: float, backend: Backend) -> Array:
    # Full whitening enlarges the weak components to the size of the strong ones; a power below a half does so only
    # partly.
    variance = np.maximum(fit.explained_variance[:kept], np.finfo(np.float32).tiny)
    return backend.from_host((variance**power).astype(np.float32))


def _words(reduction: Reduction, whitening: float) -> str:
    steps = [_SCALING_WORDS[reduction.scaling]]
    if reduction.kept is not None:
        steps.append(f"PCA to {reduction.kept}")
    if reduction.divisors is not None:
        steps.append("whitened" if whitening == 0.5 else f"whitened by {whitening:g}")
    if reduction.normalize:
        steps.append("unit length")
    return ", ".join(steps)


_SCALING_WORDS = {
    "sqrt-l2": "square root and unit length",
    "l2": "unit length",
    "minmax": "min-max",
    "none": "embeddings as they are",
}


def scale(x: Array, scaling: str, backend: Backend, *, low: Array | None = None, span: Array | None = None) -> Array:
    """Scale embeddings (n, d): `sqrt-l2` and `l2` scale rows, `minmax` columns by `low` and `span`, `none` nothing."""
    xp = backend.xp
    if scaling == "sqrt-l2":
        # The Hellinger map of Arandjelovic and Zisserman 2012 (RootSIFT): embeddings end in a ReLU, so none is below 0.
        roots = xp.sqrt(x)
        roots /= kmeans.row_norms(roots, backend)
        return roots
    if scaling == "l2":
        return x / kmeans.row_norms(x, backend)
    if scaling == "minmax":
        above = x - low
        above /= span
        return above
    return x


def _column_range(x: Rows, backend: Backend) -> tuple[Array, Array]:
    """Return the smallest value (d,) and the range (d,) of each column; the range is 1 for a constant column."""
    xp = backend.xp
    ends = [found for _rows, found in x.map(_ends)]
    low = xp.min(xp.concat([low for low, _ in ends]), axis=0)
    high = xp.max(xp.concat([high for _, high in ends]), axis=0)
    return low, xp.where(high > low, high - low, xp.ones_like(high))


def _ends(blocks: Iterator[Array], backend: Backend) -> tuple[Array, ...]:
    """Return of the blocks of a span the smallest and the largest value (1, d) of each column."""
    xp = backend.xp
    ends = [(xp.min(block, axis=0), xp.max(block, axis=0)) for block in blocks]
    low = xp.min(xp.stack([low for low, _ in ends]), axis=0)
    high = xp.max(xp.stack([high for _, high in ends]), axis=0)
    return low[None, :], high[None, :]


def count_components(pca: int | str, n: int, d: int) -> int:
    """Return the number of components: `auto` is sqrt(n) clipped to 8..32; at most n - 1 and d, at least 1."""
    wanted = int(np.clip(np.sqrt(n), 8, 32)) if pca == "auto" else 1 if pca == "none" else int(pca)
    return max(1, min(wanted, n - 1, d))


def _fit(x: Rows, n_components: int, scaled: Scaling, backend: Backend) -> PCAFit:
    """Fit PCA and drop the components without variance; if all rows are equal, one component of zeros remains."""
    xp = backend.xp
    n, d = x.shape
    if n == 1:
        nothing = np.zeros((1, d), np.float32)
        return PCAFit(scaled(x.whole())[0, :], backend.from_host(nothing), np.zeros(1), 0.0, "none: there is one row")
    fit = backend.fit_pca(x, max(1, min(n_components, n - 1, d)), scale=scaled)
    of_mean = float(backend.to_host(xp.sum(fit.mean * fit.mean, dtype=xp.float64)))
    mean_square = fit.total_variance * (n - 1) / n + of_mean
    variance = fit.explained_variance
    n_real = int(np.sum(variance > max(variance[0] * _NULL_SHARE, mean_square * _EQUAL_SHARE)))
    if n_real == 0:
        log.info("the embeddings are equal up to rounding: nothing varies")
        return replace(fit, components=fit.components[:1, :] * 0, explained_variance=np.zeros(1), total_variance=0.0)
    if n_real < len(variance):
        log.info("%d of %d components vary; the others are dropped", n_real, len(variance))
    return replace(fit, components=fit.components[:n_real, :], explained_variance=variance[:n_real])


def _fixed_signs(fit: PCAFit, backend: Backend) -> PCAFit:
    """Give every component the sign that makes its largest loading positive, because libraries choose signs freely."""
    xp = backend.xp
    largest = xp.max(fit.components, axis=1, keepdims=True)
    smallest = xp.min(fit.components, axis=1, keepdims=True)
    signs = xp.where(largest >= -smallest, xp.ones_like(largest), -xp.ones_like(largest))
    return replace(fit, components=fit.components * signs)


def _first_two(scores: Array, backend: Backend) -> Array:
    xp = backend.xp
    return scores[:, :2] if scores.shape[1] >= 2 else xp.concat([scores, xp.zeros_like(scores)], axis=1)


def _variance_ratio(fit: PCAFit) -> tuple[float, float]:
    total = fit.total_variance or 1.0
    first, second = (*(fit.explained_variance / total), 0.0)[:2]
    return float(first), float(second)
