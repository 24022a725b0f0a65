"""Computes a position in the plane for every picture (t-SNE), so that similar pictures lie near each other in a plot.

Input: a space x (n, m). Output: positions (n, 2). This module must not know clusters or labels, so that the groups seen
in the plot are independent of them.
"""

from __future__ import annotations

import numpy as np

from gpu_cluster.backend import Array, Backend, FloatArray, IntArray, take
from gpu_cluster.clustering import kmeans
from gpu_cluster.config import ReportConfig
from gpu_cluster.events import Observer
from gpu_cluster.sampling import sorted_sample

# With fewer pictures a t-SNE has no meaning.
_FEWEST = 5

# Rows of which checksums are computed at once.
_BLOCK = 65_536


def lay_out(
    x: Array,
    pcs: Array,
    config: ReportConfig,
    *,
    seed: int,
    backend: Backend,
    observer: Observer,
    originals: IntArray | None = None,
) -> FloatArray:
    """Return (n, 2) float32, host: t-SNE (van der Maaten and Hinton 2008) of the clustered space x (n, m).

    For more than `layout_sample` pictures, t-SNE runs on a random sample of that size (same seed, same sample), and
    each other picture is put beside the picture of the sample that is nearest to it. With fewer than 5 pictures, or if
    the pictures or the sample differ in one direction only, the positions are the first two principal components `pcs`
    (n, 2). Copies, as named by `originals` (see `copies`), get the positions of their originals.
    """
    plane = _lay_out(x, pcs, config, seed=seed, backend=backend, observer=observer)
    return plane if originals is None else plane[originals]


def checksums(x: Array, backend: Backend) -> FloatArray:
    """Return (n,) float64, host: for each row of x (n, m) a weighted sum, which changes with any of its numbers.

    So the host can tell whether x is the same as that of an earlier run, and x itself stays where it is.
    """
    xp = backend.xp
    weights = backend.from_host(np.random.RandomState(0).uniform(1, 2, x.shape[1]))
    parts = [
        backend.to_host(xp.sum(xp.astype(x[first : first + _BLOCK, :], xp.float64) * weights, axis=1))
        for first in range(0, x.shape[0], _BLOCK)
    ]
    return np.concatenate(parts)


def _lay_out(
    x: Array, pcs: Array, config: ReportConfig, *, seed: int, backend: Backend, observer: Observer
) -> FloatArray:
    n = x.shape[0]
    plain = np.asarray(backend.to_host(pcs), np.float32)
    random = np.random.RandomState(seed)
    rows = sorted_sample(n, config.layout_sample, random)
    sampled = take(x, rows, backend)
    if not _spans(sampled, plain[rows], backend):
        return plain
    plane = np.asarray(backend.to_host(backend.tsne(sampled, seed=seed)), np.float32)
    if len(rows) == n:
        return plane
    observer.notice(f"t-SNE of a random sample of {len(rows):,} of {n:,} images; each other lies beside its nearest")
    nearest = backend.to_host(kmeans.nearest(x, sampled, backend))
    # A picture does not lie exactly on its nearest one: it is moved by about a tenth of the usual distance between
    # pictures of the sample.
    room = np.sqrt(np.prod(np.ptp(plane, axis=0)) / len(plane))
    beside = random.normal(scale=0.1 * room, size=(n, 2))
    beside[rows] = 0
    return (plane[nearest] + beside).astype(np.float32)


def _spans(x: Array, plain: FloatArray, backend: Backend) -> bool:
    """Return whether the pictures differ in two directions: t-SNE divides by the spread of its start positions."""
    xp = backend.xp
    if len(plain) < _FEWEST or x.shape[1] < 2 or not np.ptp(plain, axis=0).all():
        return False
    # The components are computed before rows are scaled to unit length; after that, rows may be equal.
    return bool(np.any(backend.to_host(xp.max(x, axis=0) - xp.min(x, axis=0))))
