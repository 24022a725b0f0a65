"""A space -> a position in the plane for every picture, neighbours beside neighbours (t-SNE), to look at.

Must not know clusters or labels: what the eye finds in the plane is not put there by them.
"""

from __future__ import annotations

import numpy as np

from gpu_cluster.backend import Array, Backend, FloatArray, IntArray
from gpu_cluster.clustering import kmeans
from gpu_cluster.config import ReportConfig
from gpu_cluster.events import Observer
from gpu_cluster.sampling import sorted_sample

# Fewer have no neighbours to speak of.
_FEWEST = 5


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

    Above `layout_sample` pictures t-SNE is of a fixed random sample of as many, and the others are put beside the
    nearest picture of it. Fewer than 5 pictures, and pictures or a sample that differ in no more than one direction,
    keep their first two principal components `pcs` (n, 2). Copies, as `originals` names them (see `copies`), lie where
    their originals lie.
    """
    plane = _lay_out(x, pcs, config, seed=seed, backend=backend, observer=observer)
    return plane if originals is None else plane[originals]


def _lay_out(
    x: Array, pcs: Array, config: ReportConfig, *, seed: int, backend: Backend, observer: Observer
) -> FloatArray:
    n = x.shape[0]
    plain = np.asarray(backend.to_host(pcs), np.float32)
    random = np.random.RandomState(seed)
    rows = sorted_sample(n, config.layout_sample, random)
    sampled = x if len(rows) == n else backend.xp.take(x, backend.from_host(rows), axis=0)
    if not _spans(sampled, plain[rows], backend):
        return plain
    plane = np.asarray(backend.to_host(backend.tsne(sampled, seed=seed)), np.float32)
    if len(rows) == n:
        return plane
    observer.notice(f"t-SNE of a fixed random sample of {len(rows):,} of {n:,} images; the others beside their nearest")
    nearest = backend.to_host(kmeans.nearest(x, sampled, backend))
    # Not on top of it: a tenth of the distance that there is for each picture of the sample.
    room = np.sqrt(np.prod(np.ptp(plane, axis=0)) / len(plane))
    beside = random.normal(scale=0.1 * room, size=(n, 2))
    beside[rows] = 0
    return (plane[nearest] + beside).astype(np.float32)


def _spans(x: Array, plain: FloatArray, backend: Backend) -> bool:
    """Tell whether there is a plane to lay out: t-SNE divides by the spread of what it starts from."""
    xp = backend.xp
    if len(plain) < _FEWEST or x.shape[1] < 2 or not np.ptp(plain, axis=0).all():
        return False
    # Rows of unit length may be equal where the components, taken before, are not.
    return bool(np.any(backend.to_host(xp.max(x, axis=0) - xp.min(x, axis=0))))
